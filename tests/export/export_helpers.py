"""A template with text, and what exports hold, read without tokpipe."""

import io
import json
import tarfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow.parquet as pq
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

Arrays: TypeAlias = "dict[str, np.ndarray[Any, Any]]"

LAYOUT = "{bos}{caption} at {fps} fps{bov}{frames:{rows:{row}{eol}}{eof}}{eov}"
SPECIAL = ("bos", "bov", "eol", "eof", "eov", "pad")


def template_file(folder: Path, layout: str = LAYOUT, codebook_size: int = 8192) -> Path:
    """Write a template, and a tokenizer with one token for each byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([f"<|{name}|>" for name in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    vocabulary = {
        "text": "tokenizer.json",
        "codes": [{"size": codebook_size, "offset": 300}],
        "special": {name: f"<|{name}|>" for name in SPECIAL},
        "pad": "pad",
    }
    path = folder / "template.yaml"
    loss = ["codes", "eov"]
    path.write_text(yaml.safe_dump({"template": layout, "vocabulary": vocabulary, "loss": loss}))
    return path


def _memmap(folder: Path) -> list[Arrays]:
    dtype = json.loads((folder / "metadata.json").read_text())["token_dtype"]
    found = {
        "tokens": np.fromfile(folder / "tokens.bin", dtype),
        "loss": np.fromfile(folder / "loss.bin", np.uint8),
        "positions": np.fromfile(folder / "positions.bin", np.int16).reshape(-1, 3),
    }
    ids = np.fromfile(folder / "segment_ids.bin", np.int32)
    return [{name: array[ids == i] for name, array in found.items()} for i in np.unique(ids)]


def _webdataset(folder: Path) -> list[Arrays]:
    clips: dict[str, Arrays] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                clip_id, name, *_ = member.name.split(".")
                data = tar.extractfile(member)
                if name != "json" and data is not None:
                    clips.setdefault(clip_id, {})[name] = np.load(io.BytesIO(data.read()))
    return list(clips.values())


def _words(data: bytes, number: int, at: int = 0) -> list[int]:
    found: list[int] = np.frombuffer(data, "<u4", number, at).tolist()
    return found


KINDS = {"tokens": "<u2", "loss": "u1", "positions": "<i2"}


def _packed(path: Path, names: list[str], head_bytes: Callable[[str, bytes], int]) -> list[Arrays]:
    """Read a file of litdata or MDS, whose arrays begin with a head of so many bytes."""
    data, clips = path.read_bytes(), []
    offsets = _words(data, _words(data, 1)[0] + 1, 4)
    for start, end in pairwise(offsets):
        sizes = _words(data[start:end], len(names))
        at, found = start + 4 * len(names), {}
        for name, size in zip(names, sizes, strict=True):
            if name in KINDS:
                field = data[at : at + size]
                found[name] = np.frombuffer(field[head_bytes(name, field) :], KINDS[name])
            at += size
        assert at == end
        clips.append({**found, "positions": found["positions"].reshape(-1, 3)})
    return clips


def _litdata(folder: Path) -> list[Arrays]:
    config = json.loads((folder / "index.json").read_text())["config"]
    assert config["data_format"] == [
        *("str", "str", "no_header_numpy:4", "numpy", "no_header_numpy:5")
    ]
    names = json.loads(json.loads(config["data_spec"])[1]["context"])
    return _packed(folder / "chunk-0-0.bin", names, lambda name, _: 16 * (name == "positions"))


def _mds(folder: Path) -> list[Arrays]:
    (shard,) = json.loads((folder / "index.json").read_text())["shards"]
    assert shard["column_encodings"] == [
        *("str", "json", "ndarray:uint8", "ndarray:int16", "ndarray:uint16")
    ]
    return _packed(
        folder / "shard.00000.mds",
        shard["column_names"],
        lambda _, field: 1 + (field[0] >> 2) * (1 << (field[0] & 3)),
    )


def _megatron(folder: Path) -> list[Arrays]:
    index = (folder / "tokens.idx").read_bytes()
    assert index[:9] == b"MMIDIDX\0\0"
    assert index[9:17] == (1).to_bytes(8, "little")
    dtype = {8: "<u2", 4: "<i4"}[index[17]]
    number = int.from_bytes(index[18:26], "little")
    lengths = np.frombuffer(index, "<i4", number, 34)
    tokens = np.fromfile(folder / "tokens.bin", dtype)
    return [{"tokens": part} for part in np.split(tokens, np.cumsum(lengths)[:-1])]


def _huggingface(folder: Path) -> list[Arrays]:
    clips = []
    for path in sorted(folder.glob("data/*.parquet")):
        for row in pq.read_table(path).to_pylist():
            found = {name: np.array(row[name]) for name in ("tokens", "loss", "positions")}
            clips.append({**found, "positions": found["positions"].reshape(-1, 3)})
    return clips


READERS: dict[str, Callable[[Path], list[Arrays]]] = {
    "memmap": _memmap,
    "webdataset": _webdataset,
    "litdata": _litdata,
    "mds": _mds,
    "megatron": _megatron,
    "huggingface": _huggingface,
}
"""Format -> reads an export of tokens, in order."""

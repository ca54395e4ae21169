"""Tokenizers with several codes per position: from video to shards, readers, exports and pixels."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from tests.end_to_end.jobs import files, run_without_ray, write_job, write_video
from tests.pages import REPOSITORY, blocks_of
from tokpipe.cli import main
from tokpipe.config import load_job
from tokpipe.config.job import JobConfig
from tokpipe.config.tokenizer import CustomConfig
from tokpipe.errors import ConfigError
from tokpipe.export.command import export_output
from tokpipe.reader import ClipStream, CodeCache, TokenSequences, open_output

UNIT: dict[str, Any] = {"value_range": [0.0, 1.0]}
ON_PAGE = [
    yaml.safe_load(block.code)["tokenizer"]
    for block in blocks_of("docs/tokenizers.md")
    if "several_codes" in block.code
]
TOKENIZERS: dict[str, dict[str, Any]] = {
    **{one["implementation"].partition(":")[2]: one["declares"] for one in ON_PAGE},
    "ResidualLevels": {
        "temporal_stride": 1, "spatial_stride": 8, "codes_per_position": 3, "codebook_size": 8,
        **UNIT,
    },
    "Scales": {
        "temporal_stride": 1, "spatial_stride": 32, "codes_per_position": 85, "codebook_size": 64,
        "shared_codebook": True, "frame_size": [32, 32], "layout": "BCHW",
        "why_not_streamable": None,
    },
}  # fmt: skip
SIZES = {"Scales": [32, 32], "ResidualLevels": [16, 24]}
SHAPES = {
    "ResidualLevels": (12, 2, 3, 3),
    "Scales": (12, 1, 1, 85),
    "TokenList": (3, 1, 1, 48),
    "Codebooks": (12, 8, 8, 3),
}


@pytest.fixture(params=SHAPES)
def job(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> JobConfig:
    """A finished job of two videos of 12 frames."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "examples/custom_tokenizer"))
    for number in range(2):
        write_video(tmp_path / f"videos/{number}.mp4", 12, seed=number, size=(64, 64))
    return finished(tmp_path, request.param, TOKENIZERS[request.param], "several_codes")


def finished(place: Path, name: str, declares: dict[str, Any], module: str) -> JobConfig:
    config = load_job(
        write_job(
            place / "job.yaml",
            files(place / "videos"),
            str(place / "out"),
            tokenizer={
                "kind": "custom", "implementation": f"{module}:{name}", "declares": declares,
            },
            frames={"size": SIZES.get(name, [64, 64])},
            sampling={"fps": 8, "max_clip_frames": 16},
            chunking={"chunk_frames": 4},
        )
    )  # fmt: skip
    run_without_ray(config)
    return config


def test_codes_arrive_everywhere_in_their_shape(job: JobConfig, tmp_path: Path) -> None:
    declares = job.tokenizer.traits
    output = open_output(job.output.uri)
    clips = {clip.clip_id: clip.codes for clip in output.clips()}
    (shape,) = {codes.shape for codes in clips.values()}
    assert isinstance(job.tokenizer, CustomConfig)
    assert shape == SHAPES[job.tokenizer.implementation.partition(":")[2]]
    assert len({codes.tobytes() for codes in clips.values()}) == 2

    # As any Parquet reader sees them: flat, t slowest and c fastest.
    (row, *_) = pq.read_table(f"{job.output.uri}/shards").to_pylist()
    sides = [row[side] for side in "thwc"]
    first = clips[row["clip_id"]][: row["t"]]
    assert np.array_equal(np.array(row["codes"]).reshape(sides), first)

    # Encoded again from the videos, the codes are the same.
    assert main(["audit", job.output.uri, "--trust-uris", "--trust-code", "--sample", "2"]) == 0
    stream = ClipStream(CodeCache(output, tmp_path / "cache"))
    assert {one["clip_id"]: one["codes"].tolist() for one in stream} == {
        key: codes.tolist() for key, codes in clips.items()
    }

    sequences = TokenSequences(stream, 64, drop_last=False)
    offsets = np.cumsum([0, *declares.sizes])
    if declares.shared_codebook:  # a code is one token, in whichever place
        offsets = np.array([0] * len(declares.sizes) + [declares.codebook_size])
    assert sequences.vocab_size == offsets[-1] + 2
    tokens = np.concatenate([one["tokens"] for one in sequences])
    tokens, offsets = tokens[tokens < offsets[-1]], offsets[:-1]
    wanted = [(codes.astype(np.int64) + offsets).ravel() for codes in clips.values()]
    assert sorted(tokens.tolist()) == sorted(np.concatenate(wanted).tolist())

    export_output(output, "memmap", tmp_path / "flat")
    video = np.fromfile(tmp_path / "flat/video.bin", declares.code_dtype)
    whole = np.concatenate([clip.codes for clip in output.clips()])
    assert np.array_equal(video.reshape(whole.shape), whole)
    export_output(output, "webdataset", tmp_path / "tars")
    export_output(output, "megatron", tmp_path / "tokens")


def test_codes_become_pixels_again(job: JobConfig, tmp_path: Path) -> None:
    out = tmp_path / "decoded.mp4"
    assert (
        main(["decode", job.output.uri, "--trust-code", "--source", "0.mp4", "-o", str(out)]) == 0
    )
    assert out.stat().st_size > 0


def test_codes_of_40_bits_go_the_same_way(tmp_path: Path) -> None:
    write_video(tmp_path / "videos/a.mp4", 9, size=(32, 32))
    out = tmp_path / "out"
    network = {"ch": 32, "ch_mult": [1, 1, 1], "num_res_blocks": 1}
    tokenizer = {
        "encoder": {**network, "z_channels": 40},
        "quantizer": {"kind": "lfq", "dim": 40},
        "decoder": network,
    }
    job = write_job(
        tmp_path / "job.yaml", files(tmp_path / "videos"), str(out), tokenizer=tokenizer
    )
    run_without_ray(load_job(job))
    assert main(["audit", str(job), "--sample", "1"]) == 0
    assert main(["inspect", str(job)]) == 0
    assert main(["report", str(job), "-o", str(tmp_path / "report.html")]) == 0
    output = open_output(str(out))
    (clip,) = output.clips()
    assert clip.codes.dtype == np.uint64
    assert clip.codes.max() > 2**32
    stream = ClipStream(CodeCache(output, tmp_path / "cache"))
    with pytest.raises(ConfigError, match="which makes 1,099,511,627,776, and at most 16,777,214"):
        TokenSequences(stream, 64)
    (streamed,) = ClipStream(CodeCache(output, tmp_path / "cache"))
    assert np.array_equal(streamed["codes"], clip.codes)
    assert main(["decode", str(job), "-o", str(tmp_path / "a.png")]) == 0
    for name in ("webdataset", "litdata", "mds", "memmap", "huggingface"):
        export_output(output, name, tmp_path / name)

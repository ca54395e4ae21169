"""litdata and MDS exports equal what the libraries write, and the libraries read them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.export.by_libraries import (
    CODEBOOK_SIZES,
    WRITTEN,
    output_of,
    samples_of,
    small_output,
    template,
)
from tokpipe.export import export_output, packed
from tokpipe.export.samples import Sample

NAMES = ("litdata", "mds")
IGNORE_WARNINGS = pytest.mark.filterwarnings("ignore")  # raised inside the libraries


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", CODEBOOK_SIZES)
def test_files_equal_those_of_the_library_byte_for_byte(
    name: str, kind: str, tmp_path: Path
) -> None:
    export_output(small_output(kind), name, tmp_path / "export", template=template(kind))
    ours, theirs = files_in(tmp_path / "export"), files_in(WRITTEN / f"{name}-{kind}")
    assert ("metadata.json" in ours) == (kind == "tokens")
    ours.pop("metadata.json", None)
    if name == "litdata":  # later versions add keys with default values
        index, wanted = (json.loads(files.pop("index.json")) for files in (ours, theirs))
        assert index["chunks"] == wanted["chunks"]
        assert index["config"].items() <= wanted["config"].items()
        left = {key: wanted["config"][key] for key in wanted["config"].keys() - index["config"]}
        assert left.pop("types").keys() == samples_of(kind)[0].keys()
        assert not any(left.values())
    assert ours == theirs


@pytest.mark.parametrize("name", NAMES)
def test_files_stay_below_a_size(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "FILE_BYTES", 2000)
    output = output_of([(4, 4), (2, 3), (7, 1)])
    done = export_output(output, name, tmp_path / "export")
    files = [path for path in (tmp_path / "export").iterdir() if path.name != "index.json"]
    assert done.num_files - 1 == len(files) > 1
    assert all(path.stat().st_size <= 2000 for path in files)
    assert done.num_clips == 9


def test_a_sample_above_the_limit_gets_its_own_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "FILE_BYTES", 100)
    samples = [Sample("", "", {}, 0, "x" * size) for size in (10, 500, 10, 10)]
    assert [number for number, _ in packed.files_of(samples, lambda _: b"")] == [1, 1, 2]


def _assert_same(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    assert [one["clip_id"] for one in found] == [one["clip_id"] for one in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert one.keys() == other.keys()
        for name in one.keys() - {"clip_id", "json"}:
            assert one[name].dtype == other[name].dtype
            np.testing.assert_array_equal(one[name], other[name])


@IGNORE_WARNINGS
@pytest.mark.parametrize("kind", CODEBOOK_SIZES)
def test_litdata_reads_it(kind: str, tmp_path: Path) -> None:
    litdata = pytest.importorskip("litdata", reason="needs torchvision, which is not pinned")
    export_output(small_output(kind), "litdata", tmp_path / "export", template=template(kind))
    dataset = litdata.StreamingDataset(str(tmp_path / "export"))
    wanted = samples_of(kind)
    _assert_same([dataset[index] for index in range(len(dataset))], wanted)
    assert [one["json"] for one in dataset] == [one["json"] for one in wanted]


@IGNORE_WARNINGS
@pytest.mark.parametrize("kind", CODEBOOK_SIZES)
def test_streaming_reads_it(kind: str, tmp_path: Path) -> None:
    streaming = pytest.importorskip("streaming", reason="needs numpy < 2.2 and transformers < 5")
    export_output(small_output(kind), "mds", tmp_path / "export", template=template(kind))
    folders = {"remote": str(tmp_path / "export"), "local": str(tmp_path / "cache")}
    dataset = streaming.StreamingDataset(**folders, validate_hash="sha256", batch_size=1)
    wanted = samples_of(kind)
    _assert_same([dataset[index] for index in range(len(dataset))], wanted)
    assert [one["json"] for one in dataset] == [json.loads(one["json"]) for one in wanted]

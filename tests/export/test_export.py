"""Exports hold what the reader gives, and are whole or not there."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from tests.export.by_libraries import output_of
from tests.formats.formats_helpers import flipped
from tokpipe.cli import main
from tokpipe.errors import ConfigError, CorruptOutput
from tokpipe.export import FORMATS, export_output
from tokpipe.export import webdataset as webdataset_module
from tokpipe.export.catalogue import load
from tokpipe.reader.output import Output


@pytest.mark.parametrize("codebook_size", [8192, 262_144])
def test_memmap_is_read_as_1x_reads_it(codebook_size: int, tmp_path: Path) -> None:
    output = output_of([(4, 4), (4, 4)], codebook_size)
    done = export_output(output, "memmap", tmp_path / "flat")
    clips = list(output.clips())
    # As RawTokenDataset does.
    metadata = json.loads((tmp_path / "flat/metadata.json").read_text())
    shape = metadata["num_images"], metadata["s"], metadata["s"]
    dtype = np.dtype(metadata["token_dtype"])
    data = np.memmap(tmp_path / "flat/video.bin", dtype, "r", shape=shape)
    ids = np.memmap(tmp_path / "flat/segment_ids.bin", np.int32, "r", shape=shape[:1])
    np.testing.assert_array_equal(data, np.concatenate([clip.codes for clip in clips]))
    lengths = [len(clip.codes) for clip in clips]
    np.testing.assert_array_equal(ids, np.repeat(np.arange(len(clips)), lengths))
    assert metadata["vocab_size"] == codebook_size
    assert dtype.itemsize == (2 if codebook_size <= 65_536 else 4)
    lines = [json.loads(x) for x in (tmp_path / "flat/clips.jsonl").read_text().splitlines()]
    assert [line["clip_id"] for line in lines] == [clip.clip_id for clip in clips]
    assert [line["first_image"] for line in lines] == [0, *np.cumsum(lengths)[:-1].tolist()]
    assert (done.num_clips, done.num_codes) == (6, output.num_codes)
    assert done.num_files == 4


def test_webdataset_has_the_files_of_a_clip_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webdataset_module, "TAR_BYTES", 1000)
    output = output_of([(4, 4), (2, 3)])
    done = export_output(output, "webdataset", tmp_path / "tars")
    tars = sorted((tmp_path / "tars").glob("*.tar"))
    assert [path.name for path in tars] == [f"{number:06}.tar" for number in range(len(tars))]
    assert done.num_files == len(tars) > 1
    clips = {clip.clip_id: clip for clip in output.clips()}
    for path in tars:
        with tarfile.open(path) as tar:
            names = tar.getnames()
            assert [name.rpartition(".")[2] for name in names] == ["npy", "json"] * (
                len(names) // 2
            )
            for name in names[::2]:
                clip = clips.pop(name.removesuffix(".npy"))
                array, described = tar.extractfile(name), tar.extractfile(f"{clip.clip_id}.json")
                assert array is not None
                assert described is not None
                np.testing.assert_array_equal(np.load(io.BytesIO(array.read())), clip.codes)
                told = json.loads(described.read())
                assert told["source_uri"] == clip.source_uri
                assert told["metadata"] == {"caption": f"caption {clip.plan_row}"}
                assert sum(told["chunk_latents"]) == len(clip.codes)
    assert not clips


def test_one_array_cannot_hold_two_grids(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a grid of \(2, 3\) where others have \(4, 4\)"):
        export_output(output_of([(4, 4), (2, 3)]), "memmap", tmp_path / "flat")
    assert not (tmp_path / "flat").exists()


@pytest.mark.parametrize("name", FORMATS)
def test_an_output_without_clips_gives_an_export_without(name: str, tmp_path: Path) -> None:
    done = export_output(output_of([]), name, tmp_path / "none")
    assert (done.num_clips, done.num_codes) == (0, 0)


@pytest.mark.parametrize("name", FORMATS)
def test_what_lacks_a_clip_never_gets_its_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = output_of([(4, 4)])
    monkeypatch.setattr(Output, "num_clips", property(lambda _: 4))
    with pytest.raises(CorruptOutput, match=r"holds 3 clips .* lists 4 and"):
        export_output(output, name, tmp_path / "export")
    assert not (tmp_path / "export").exists()
    monkeypatch.undo()
    assert export_output(output, name, tmp_path / "export").num_clips == 3  # over what was left


@pytest.mark.parametrize(
    ("name", "file"),
    [("memmap", "video.bin"), ("litdata", "chunk-0-0.bin"), ("mds", "shard.00000.mds")],
)
def test_files_that_were_cut_do_not_count(name: str, file: str, tmp_path: Path) -> None:
    export_output(output_of([(4, 4)]), name, tmp_path / "export")
    path = tmp_path / "export" / file
    whole = path.read_bytes()
    for cut in (2, len(whole) // 2, len(whole) - 2):
        path.write_bytes(whole[:-cut])
        assert load(name).count(tmp_path / "export").num_clips == -1


def test_a_flipped_bit_of_an_mds_shard_does_not_count(tmp_path: Path) -> None:
    export_output(output_of([(4, 4)]), "mds", tmp_path / "mds")
    path = tmp_path / "mds/shard.00000.mds"
    path.write_bytes(flipped(path.read_bytes(), 8 * 400))
    assert load("mds").count(tmp_path / "mds").num_clips == -1


def test_what_is_there_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    with pytest.raises(ConfigError, match="would be mixed with the export"):
        export_output(output_of([(4, 4)]), "memmap", tmp_path / "export")
    with pytest.raises(ConfigError, match=r"no format 'csv'\. There are: memmap, webdataset"):
        export_output(output_of([(4, 4)]), "csv", tmp_path / "other")
    with pytest.raises(SystemExit):
        main(["export", str(tmp_path), "--to", "csv", "-o", str(tmp_path / "other")])

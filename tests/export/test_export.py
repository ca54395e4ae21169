"""Exports hold what the reader returns, and get their name only when they are complete."""

import io
import json
import tarfile
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from tests.export.by_libraries import output_of
from tokpipe.cli import main
from tokpipe.errors import ConfigError, CorruptOutput
from tokpipe.export import FORMATS, export_output, packed
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


def test_webdataset_keeps_the_files_of_a_clip_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "TAR_BYTES", 1000)
    output = output_of([(4, 4), (2, 3)])
    done = export_output(output, "webdataset", tmp_path / "tars")
    tars = sorted((tmp_path / "tars").glob("*.tar"))
    assert [path.name for path in tars] == [f"{number:06}.tar" for number in range(len(tars))]
    assert done.num_files == len(tars) > 1
    clips = output.clips()
    for path in tars:
        with tarfile.open(path) as tar:
            files = [(one.name, tar.extractfile(one).read()) for one in tar]  # type: ignore[union-attr]
        for (name, array), (json_name, text) in zip(files[::2], files[1::2], strict=True):
            clip = next(clips)
            assert (name, json_name) == (f"{clip.clip_id}.npy", f"{clip.clip_id}.json")
            np.testing.assert_array_equal(np.load(io.BytesIO(array)), clip.codes)
            sidecar = json.loads(text)
            assert sidecar["source_uri"] == clip.source_uri
            assert sidecar["metadata"] == {"caption": f"caption {clip.plan_row}"}
            assert sum(sidecar["chunk_latents"]) == len(clip.codes)
    assert next(clips, None) is None


@pytest.mark.parametrize(
    ("name", "grids", "wanted"),
    [
        ("webdataset", [(2, 3), (1, 300)], {"000000.tar": "1dbf2035a9d368fd"}),
        (
            "memmap",
            [(4, 4), (4, 4)],
            {
                "clips.jsonl": "1f907aa5bfe9be02",
                "metadata.json": "da4f637de04a0219",
                "segment_ids.bin": "64a995fe63d54314",
                "video.bin": "62e3acc223dd54bd",
            },
        ),
    ],
)
def test_exports_of_codes_keep_the_bytes_of_earlier_versions(
    name: str, grids: list[tuple[int, int]], wanted: dict[str, str], tmp_path: Path
) -> None:
    export_output(output_of(grids), name, tmp_path / "export")
    files = {path.name: path.read_bytes() for path in (tmp_path / "export").iterdir()}
    assert {file: sha256(data).hexdigest()[:16] for file, data in files.items()} == wanted


def test_memmap_cannot_hold_two_grids(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a grid of \(2, 3\), earlier clips have \(4, 4\)"):
        export_output(output_of([(4, 4), (2, 3)]), "memmap", tmp_path / "flat")
    assert not (tmp_path / "flat").exists()


@pytest.mark.parametrize("name", FORMATS)
def test_an_output_without_clips_can_be_exported(name: str, tmp_path: Path) -> None:
    done = export_output(output_of([]), name, tmp_path / "none")
    assert (done.num_clips, done.num_codes) == (0, 0)


@pytest.mark.parametrize("name", FORMATS)
def test_an_export_that_lacks_a_clip_does_not_get_its_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = output_of([(4, 4)])
    monkeypatch.setattr(Output, "num_clips", property(lambda _: 4))
    with pytest.raises(CorruptOutput, match=r"holds 3 clips .* lists 4 and"):
        export_output(output, name, tmp_path / "export")
    assert not (tmp_path / "export").exists()
    monkeypatch.undo()
    assert export_output(output, name, tmp_path / "export").num_clips == 3  # replaces .partial


def test_existing_folders_and_unknown_formats_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    with pytest.raises(ConfigError, match="exists: choose another folder"):
        export_output(output_of([(4, 4)]), "memmap", tmp_path / "export")
    with pytest.raises(ConfigError, match=r"unknown format 'csv'\. Choose from: memmap, webdata"):
        export_output(output_of([(4, 4)]), "csv", tmp_path / "other")
    with pytest.raises(SystemExit):
        main(["export", str(tmp_path), "--to", "csv", "-o", str(tmp_path / "other")])

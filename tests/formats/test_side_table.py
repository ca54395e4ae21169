from dataclasses import replace

import pyarrow as pa
import pytest

from tests.formats.formats_helpers import encoded_clip, parquet
from tokpipe.errors import CorruptOutput
from tokpipe.formats.checks import sha256
from tokpipe.formats.side_table import OWN_COLUMNS, build_side_table, read_side_table
from tokpipe.sources.rows import carried_names

CLIPS = [
    encoded_clip(2, (17, 5)),
    replace(encoded_clip(1, (9,)), source_sha256="5e" * 32, version=2**63),
]
CARRIED = pa.table(
    {
        "caption": pa.array(["second", None]),
        "score": pa.array([0.5, 0.25], pa.float32()),
        "tags": pa.array([["a"], []], pa.list_(pa.string())),
        "src_fps": pa.array([25, 30], pa.int32()),
    }
)


def read(data: bytes) -> pa.Table:
    return read_side_table("mem://t", data, size_bytes=len(data), sha256_hex=sha256(data))


def test_a_row_is_a_clip_with_its_carried_columns() -> None:
    table = read(build_side_table(CLIPS, CARRIED))
    first, second = table.to_pylist()
    assert first == {
        "clip_id": CLIPS[1].ref.clip_id, "source_uri": "s3://videos/1.mp4", "plan_row": 1,
        "segment": 0, "n_segments": 1, "n_frames": 9, "n_chunks": 1, "fps": 8.0,
        "decoder": "pyav", "encoder": "cpu AVX512", "marks": [], "damage": None,
        "start_pts_s": 0.25, "end_pts_s": 8 / 8 + 0.25, "source_sha256": "5e" * 32,
        "source_version": 2**63, "caption": None, "score": 0.25, "tags": [], "src_fps": 30,
    }  # fmt: skip
    assert second == first | {
        "clip_id": CLIPS[0].ref.clip_id, "source_uri": "s3://videos/2.mp4", "plan_row": 2,
        "n_frames": 22, "n_chunks": 2, "encoder": "cpu AVX2", "end_pts_s": 21 / 8 + 0.25,
        "source_sha256": "", "source_version": None, "caption": "second", "score": 0.5,
        "tags": ["a"], "src_fps": 25,
    }  # fmt: skip
    nullable = [name for name in OWN_COLUMNS if table.schema.field(name).nullable]
    assert nullable == ["damage", "source_version"]


def test_carried_columns_keep_their_types_even_when_all_null() -> None:
    nulls = CARRIED.schema.empty_table().to_pydict()
    nulls = pa.table({name: [None, None] for name in nulls}, schema=CARRIED.schema)
    table = read(build_side_table(CLIPS, nulls))
    assert table.schema.types[-4:] == CARRIED.schema.types


def test_marks_and_damage_are_kept() -> None:
    marked = replace(CLIPS[0], marks=("damaged", "other"), damage="the clip ends early")
    table = read(build_side_table([marked, CLIPS[1]], CARRIED))
    assert table["marks"].to_pylist() == [[], ["damaged", "other"]]
    assert table["damage"].to_pylist() == [None, "the clip ends early"]


LATER = ["marks", "damage", "encoder", "source_sha256", "source_version"]


@pytest.mark.parametrize("later", [LATER, LATER[2:], LATER[3:], LATER[4:]], ids=len)
def test_an_older_table_reads_as_unmarked(later: list[str]) -> None:
    clips = [replace(one, encoder="", source_sha256="", version=None) for one in CLIPS]
    if "encoder" not in later:
        clips = [replace(one, encoder="x") for one in clips]
    now = read(build_side_table(clips, CARRIED))
    old = now.drop_columns(later).append_column(later[0], pa.array(["x", "y"]))
    table = read(parquet(old))
    assert table.drop_columns([f"src_{later[0]}"]) == now
    assert table[f"src_{later[0]}"].to_pylist() == ["x", "y"]


def test_columns_carried_by_an_older_plan_are_renamed() -> None:
    carried = pa.table({"damage": ["hail", "fire"], "src_damage": ["a", "b"]})
    table = read(build_side_table(CLIPS, carried))
    assert table["damage"].to_pylist() == [None, None]
    assert table["src_src_damage"].to_pylist() == ["fire", "hail"]
    # A plan of today renames them itself.
    assert set(carried_names(OWN_COLUMNS)) & set(OWN_COLUMNS) == set()


def test_carried_columns_must_fit_the_clips_and_avoid_tokpipes_names() -> None:
    with pytest.raises(ValueError, match=r"carried columns \['fps'\] have names that tokpipe uses"):
        build_side_table(CLIPS, CARRIED.rename_columns(["caption", "score", "tags", "fps"]))
    with pytest.raises(ValueError, match="1 rows of carried columns for 2 clips"):
        build_side_table(CLIPS, CARRIED.slice(1))


def test_other_tables_are_rejected() -> None:
    with pytest.raises(CorruptOutput, match=r"its columns are \['a'\]"):
        read(parquet(pa.table({"a": [1]})))
    with pytest.raises(CorruptOutput, match="does not open as a side table"):
        read(b"text")
    with pytest.raises(CorruptOutput, match="SHA-256"):
        read_side_table("mem://t", b"text", size_bytes=4, sha256_hex=sha256(b"next"))

import dataclasses
import pickle
from pathlib import Path

import pytest

from tests.formats.formats_helpers import encoded_clip, shard_metadata
from tests.storage.listed import sizes
from tokpipe.config import JobConfig, parse_job
from tokpipe.errors import CorruptOutput, StorageError
from tokpipe.formats import shard as shard_module
from tokpipe.formats.shard_reader import ShardReader, check_shard
from tokpipe.formats.side_table import read_side_table
from tokpipe.plan import write_plan
from tokpipe.stages.write import WriteStage
from tokpipe.storage import Store
from tokpipe.types import EncodedClip

JOB = """
dataset: demo
sources: [{kind: table, uri: clips.csv, uri_column: url}]
output: {uri: out}
frames: {size: [32, 48]}
tokenizer:
  encoder: {ch: 32, ch_mult: [1, 1, 1, 1], num_res_blocks: 1, z_channels: 6}
  quantizer: {kind: fsq, levels: [8, 8, 8, 4, 2, 2]}
"""


@pytest.fixture
def job(tmp_path: Path) -> JobConfig:
    lines = [f"s3://videos/{row}.mp4,caption {row},{row / 4},{row}" for row in range(6)]
    (tmp_path / "clips.csv").write_text("\n".join(["url,caption,score,fps", *lines]) + "\n")
    return parse_job(JOB, name="job.yaml", root=tmp_path, environ={})


@pytest.fixture
def stage(job: JobConfig) -> WriteStage:
    plan = write_plan(job, Store(job.output.uri, job.storage), "attempt")
    metadata = shard_metadata(job.tokenizer.traits.codebook_size)
    built = WriteStage(job.output, job.storage, metadata.tokenizer, metadata.fingerprint, plan)
    sent: WriteStage = pickle.loads(pickle.dumps(built))  # as Ray carries it to the actor
    sent.setup()
    return sent


def clips() -> list[EncodedClip]:
    return [encoded_clip(row, frames, (4, 6)) for row, frames in [(4, (17, 3)), (1, (1,))]]


def keys(stage: WriteStage) -> set[str]:
    return {key for key in sizes(stage.store, "") if not key.startswith("plan/")}


def test_a_receipt_describes_the_shard_and_side_table_that_were_put(stage: WriteStage) -> None:
    written = clips()
    receipt = stage.process("p-3-a", written)
    assert keys(stage) == {"shards/p-3-a.parquet", "clips/p-3-a.parquet"}
    assert (receipt.shard, receipt.side_table) == ("shards/p-3-a.parquet", "clips/p-3-a.parquet")
    assert (receipt.num_rows, receipt.num_frames, receipt.grid) == (3, 21, (4, 6))
    assert receipt.num_codes == (5 + 2 + 1) * 24
    assert receipt.clips == tuple(clip.ref for clip in written)
    shard = stage.store.get(receipt.shard)
    check_shard("mem://s", shard, receipt, stage.metadata)
    rows = list(ShardReader("mem://s", shard).rows())
    written.sort(key=lambda clip: clip.ref.clip_id)
    blocks = [block.tolist() for clip in written for block in clip.codes]
    assert [row.codes.tolist() for row in rows] == blocks
    side_table = read_side_table(
        "mem://t",
        stage.store.get(receipt.side_table),
        size_bytes=receipt.side_table_size_bytes,
        sha256_hex=receipt.side_table_sha256,
    )
    by_row = {row["plan_row"]: row for row in side_table.to_pylist()}
    assert by_row.keys() == {1, 4}
    for row, values in by_row.items():
        assert values["source_uri"] == f"s3://videos/{row}.mp4"
        assert (values["caption"], values["score"]) == (f"caption {row}", str(row / 4))
        assert (values["fps"], values["src_fps"]) == (8.0, str(row))


def pieces_of_clip(whole: EncodedClip) -> list[EncodedClip]:
    """One piece per chunk."""
    pieces = []
    for chunk, block in zip(whole.chunks, whole.codes, strict=True):
        pts_s = whole.pts_s[chunk.first_frame : chunk.first_frame + chunk.num_frames]
        pieces.append(dataclasses.replace(whole, chunks=(chunk,), codes=(block,), pts_s=pts_s))
    return pieces


def test_pieces_of_a_streamed_clip_become_one_clip(stage: WriteStage) -> None:
    before, streamed, after = (encoded_clip(row, (17, 17, 3), (4, 6)) for row in (0, 1, 2))
    streamed = dataclasses.replace(streamed, marks=("a", "b"))
    pieces = pieces_of_clip(streamed)
    for number, marks in enumerate([("a",), (), ("b", "a")]):
        pieces[number] = dataclasses.replace(pieces[number], marks=marks)
    receipt = stage.process("p-3-a", [before, *pieces, after])
    whole = stage.process("p-3-b", [before, streamed, after])
    assert stage.store.get(receipt.shard) == stage.store.get(whole.shard)
    assert stage.store.get(receipt.side_table) == stage.store.get(whole.side_table)
    assert receipt.clips == (before.ref, streamed.ref, after.ref)
    assert (receipt.num_rows, receipt.num_frames) == (9, 3 * 37)
    for wrong in ([pieces[1], pieces[0], pieces[2]], pieces[:1] + pieces[2:], pieces[:2] * 2):
        with pytest.raises(ValueError, match="must start at frame"):
            stage.process("p-3-c", [before, *wrong, after])


def test_every_attempt_writes_the_same_bytes_under_its_own_names(stage: WriteStage) -> None:
    first, second = stage.process("p-3-a", clips()), stage.process("p-3-b", clips()[::-1])
    assert first.sha256 == second.sha256
    assert first.side_table_sha256 == second.side_table_sha256
    assert stage.process("p-3-a", clips()) == first
    assert len(keys(stage)) == 4


def test_mixed_grids_and_names_outside_the_folder_are_rejected(stage: WriteStage) -> None:
    with pytest.raises(ValueError, match="grid of"):
        stage.process("p-3-a", [*clips(), encoded_clip(0, (1,), (6, 4))])
    for name in ("", "a/b", "../a", ".a", "a b"):
        with pytest.raises(ValueError, match="shard name"):
            stage.process(name, clips())
    assert keys(stage) == set()


def test_wrong_codes_are_not_put(stage: WriteStage, monkeypatch: pytest.MonkeyPatch) -> None:
    crc32 = shard_module.codes_crc32
    monkeypatch.setattr(shard_module, "codes_crc32", lambda codes: crc32(codes) ^ 1)
    with pytest.raises(CorruptOutput, match="CRC-32"):
        stage.process("p-3-a", clips())
    assert keys(stage) == set()


def test_a_failed_put_raises(stage: WriteStage, monkeypatch: pytest.MonkeyPatch) -> None:
    put = stage.store.put

    def put_no_shard(key: str, data: bytes) -> None:
        if key.startswith("shards/"):
            raise StorageError("the store is down")
        put(key, data)

    monkeypatch.setattr(stage.store, "put", put_no_shard)
    with pytest.raises(StorageError, match="down"):
        stage.process("p-3-a", clips())
    assert not any(key.startswith("shards/") for key in keys(stage))

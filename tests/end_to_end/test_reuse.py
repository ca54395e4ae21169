"""Jobs that take clips from other outputs instead of encoding them again."""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.chaos.crash_points import CrashingStore
from tests.conftest import S3Bucket
from tests.end_to_end.jobs import (
    assert_complete,
    codes_of,
    files,
    output_of,
    run_well,
    run_without_ray,
    shard_rows,
    side_rows,
    write_job,
    write_video,
    write_videos,
)
from tests.formats.formats_helpers import Crash
from tokpipe.audit import Audit
from tokpipe.cli import main
from tokpipe.config import JobConfig, load_job
from tokpipe.config.job import StoreOptions
from tokpipe.runtime import assemble
from tokpipe.runtime.job import run_job
from tokpipe.stages.decode import DecodeStage
from tokpipe.storage import Store
from tokpipe.storage.fetch import LocalVideo
from tokpipe.types import EncodedClip, WorkItem

CALLS_APART = int(os.environ.get("TOKPIPE_TEST_CALLS_APART", "4"))
"""Between crashes at calls to a store: with 1 at each of them."""


def shared_jobs(folder: Path, num_shared: int, num_new: int, **changes: Any) -> tuple[Path, Path]:
    """Two jobs; the second has videos of the first under other names, and new ones.

    The first has been run.
    """
    (folder / "b").mkdir()
    for number in range(num_shared):
        write_video(folder / f"a/{number}.mp4", seed=number)
        shutil.copy(folder / f"a/{number}.mp4", folder / f"b/other{number}.mp4")
    for number in range(num_new):
        write_video(folder / f"b/new{number}.mp4", seed=100 + number)
    uris = [str(folder / "out/a"), str(folder / "out/b")]
    first = write_job(folder / "a.yaml", files(folder / "a"), uris[0], **changes)
    run_without_ray(load_job(first))
    changes |= {"dataset": "b", "reuse": [uris[0]]}
    return first, write_job(folder / "b.yaml", files(folder / "b"), uris[1], **changes)


def fresh(job: Path) -> Path:
    """Make the output of a job without ``reuse``; return its job file."""
    settings = json.loads(job.read_text())
    del settings["reuse"]
    settings["output"]["uri"] += "-fresh"
    path = job.with_suffix(".fresh.yaml")
    path.write_text(json.dumps(settings))
    run_without_ray(load_job(path))
    return path


def test_nine_of_ten_clips_are_not_encoded_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, job = shared_jobs(tmp_path, num_shared=9, num_new=1)
    assert main(["plan", str(job), "--codes-per-s", "16"]) == 0
    planned = capsys.readouterr().out
    assert "27 clips (90.0%) need no encoding (reuse)" in planned
    outcome = run_job(load_job(job), Console(quiet=True))
    assert outcome.account.clips == {"decode": 30, "reuse": 27, "encode": 3, "write": 30}
    assert_complete(job)
    assert Audit(output_of(job).store).is_clean
    without = fresh(job)
    assert shard_rows(job) == shard_rows(without)
    assert side_rows(job) == side_rows(without)
    assert main(["plan", str(without), "--codes-per-s", "16"]) == 0
    assert "need no encoding" not in capsys.readouterr().out


def test_a_run_says_what_it_took_and_needs_the_other_output_no_more(tmp_path: Path) -> None:
    first, job = shared_jobs(tmp_path, num_shared=2, num_new=0)
    printed = run_well(job)
    assert "6 clips of this run taken from the outputs under reuse" in printed
    before = codes_of(job)
    assert sorted(before.values()) == sorted(codes_of(first).values())
    shutil.rmtree(tmp_path / "out/a")
    assert "nothing left to do: 6 clips" in run_well(job)
    assert codes_of(job) == before


def test_clips_of_a_chain_of_outputs_are_found_in_any_of_them(tmp_path: Path) -> None:
    """An output may itself have taken its clips from another."""
    _, second = shared_jobs(tmp_path, num_shared=2, num_new=1)
    run_without_ray(load_job(second))
    shutil.rmtree(tmp_path / "out/a")
    reuse = [str(tmp_path / "out/b")]
    third = write_job(
        tmp_path / "c.yaml", files(tmp_path / "a"), str(tmp_path / "out/c"), reuse=reuse
    )
    taken = list(made_by_decoders(load_job(third)))
    assert len(taken) == 6
    assert all(isinstance(one, EncodedClip) for one in taken)


def made_by_decoders(job: JobConfig) -> Iterator[object]:
    """What decoders give for every clip of a job."""
    output, console = assemble.JobOutput(job), Console(quiet=True)
    output.start(console)
    run = assemble.Run(output, console)
    with DecodeStage(job.sampling, job.frames, job.decode, job.storage) as stage:
        stage.reuses = run.reused
        for item in run.feed.fetch(100).items:
            (first,) = stage.process([item])
            yield first
            for segment in range(1, total := first.ref.num_segments):
                yield from stage.process([replace(item, segment=segment, num_segments=total)])


@pytest.mark.s3
def test_objects_whose_etags_are_known_are_not_read(
    tmp_path: Path, s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(s3_bucket.uri, StoreOptions())
    for number, path in enumerate(write_videos(tmp_path / "local", 3)):
        data = path.read_bytes()
        store.put(f"a/{number}.mp4", data)
        store.put(f"b/{number}.mp4", data if number else data[:-1] + b"x")  # of the same size
    out = str(tmp_path / "out")
    run_without_ray(load_job(write_job(tmp_path / "a.yaml", files(f"{s3_bucket.uri}/a"), out)))
    fetched, fetch = set[str](), DecodeStage._fetch

    def noting(stage: DecodeStage, item: WorkItem) -> LocalVideo:
        fetched.add(item.source_uri)
        return fetch(stage, item)

    monkeypatch.setattr(DecodeStage, "_fetch", noting)
    in_s3, local = files(f"{s3_bucket.uri}/b"), files(tmp_path / "local")
    cut_elsewhere = {"sampling": {"fps": 8, "max_clip_frames": 18}}
    jobs: list[tuple[dict[str, Any], dict[str, Any], int]] = [
        (in_s3, {}, 3),
        (in_s3, {"reuse_trusts_etags": True}, 1),
        (local, {"reuse_trusts_etags": True}, 3),
        (in_s3, {"reuse_trusts_etags": True, **cut_elsewhere}, 3),
    ]
    for number, (source, changes, num_read) in enumerate(jobs):
        job = tmp_path / f"{number}.yaml"
        write_job(job, source, f"{out}-{number}", reuse=[out], dataset="b", **changes)
        fetched.clear()
        run_without_ray(load_job(job))
        assert len(fetched) == num_read, changes
        assert side_rows(job) == side_rows(without := fresh(job))
        assert shard_rows(job) == shard_rows(without)


@pytest.mark.parametrize("side", ["before", "after"])
def test_a_crash_at_any_call_to_the_store_loses_doubles_and_mistakes_nothing(
    side: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, job = shared_jobs(tmp_path, num_shared=3, num_new=1)
    wanted = codes_of(fresh(job))
    config, number, died = load_job(job), 0, True
    while died:
        uri = str(tmp_path / f"out/{number}")
        crashing = CrashingStore(Store(uri, config.storage), number, side)
        one = config.model_copy(update={"output": config.output.model_copy(update={"uri": uri})})
        monkeypatch.setattr(assemble, "Store", lambda *_, crashing=crashing: crashing)
        monkeypatch.setattr("tokpipe.stages.write.Store", lambda *_, c=crashing: c)
        try:
            run_without_ray(one)
            died = False
        except Crash:
            pass
        monkeypatch.undo()
        run_without_ray(one)
        assert_complete(one)
        assert codes_of(one) == wanted
        assert output_of(one).num_clips == 12
        number += CALLS_APART
    assert number > 20, "most calls were never reached"

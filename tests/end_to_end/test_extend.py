"""Outputs that grow by what is new in the sources of their job."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest
from rich.console import Console

from tests.end_to_end.jobs import (
    assert_complete,
    codes_of,
    codes_without_ray,
    files,
    output_of,
    run_well,
    run_without_ray,
    write_job,
    write_video,
)
from tokpipe.audit import Audit
from tokpipe.cli import main
from tokpipe.config import load_job
from tokpipe.errors import ConfigError, PlanMismatch
from tokpipe.formats.manifest import iter_entries
from tokpipe.reader import ClipStream, CodeCache, TokenSequences
from tokpipe.runtime.assemble import JobOutput, Run


def write_table(path: Path, videos: list[Path], captions: str = "caption") -> dict[str, Any]:
    rows = [f"{video},{video.stem}" for video in videos]
    path.write_text("\n".join([f"url,{captions}", *rows]) + "\n")
    return {"kind": "table", "uri": str(path), "uri_column": "url"}


def assert_equals_one_go(job: Path) -> None:
    """As if the job had been started with the sources that it has by now."""
    assert_complete(job)
    assert codes_of(job) == codes_without_ray(job)
    checked = Audit(output_of(job).store)
    assert checked.is_clean, [*checked.lines()]
    assert not checked.leftovers.num_objects


def test_ten_extensions_equal_one_job(tmp_path: Path) -> None:
    """New files come before, between and after those there were, and tables have other rows."""
    (tmp_path / "videos").mkdir()
    names = np.random.default_rng(0).permutation([f"{index:02}" for index in range(11)]).tolist()
    job, table = tmp_path / "job.yaml", [tmp_path / f"t{index}.mp4" for index in range(11)]
    for number, name in enumerate(names):
        write_video(tmp_path / f"videos/{name}.mp4", 12, seed=number)
        write_video(table[number], 12, seed=100 + number)
        known = write_table(tmp_path / "t.csv", table[number::-1])  # new rows come first
        write_job(job, [files(tmp_path / "videos"), known], str(tmp_path / "out"))
        run_without_ray(load_job(job), extend=number > 0)
        assert output_of(job).num_rows == 2 * (number + 1)
    assert_equals_one_go(job)
    captions = {clip.source_uri: clip.metadata.get("caption") for clip in output_of(job).clips()}
    assert captions[str(table[7])] == "t7"
    assert captions[str(tmp_path / "videos/00.mp4")] is None


def test_what_is_new_is_encoded_by_run_and_shown_by_verbs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_video(tmp_path / "videos/a.mp4")
    job = write_job(tmp_path / "job.yaml", files(tmp_path / "videos"), str(tmp_path / "out"))
    run_without_ray(load_job(job))
    before = codes_of(job)

    assert main(["run", str(job), "--extend"]) == 0  # without Ray: there is nothing new
    assert "nothing left to do: 3 clips" in capsys.readouterr().out
    assert not list(iter_entries(output_of(job).store))[-1].growth

    write_video(tmp_path / "videos/b.mp4", seed=1)
    printed = run_well(job, None, "--extend")
    assert "2 plan rows, 1 of them new, 1 settled before" in printed
    assert before.items() < codes_of(job).items()
    assert_equals_one_go(job)
    assert main(["status", str(job), "--sources"]) == 0
    printed = capsys.readouterr().out
    assert "2 of 2 plan rows settled" in printed
    assert "sources since the plan: unchanged" in printed
    assert main(["check", str(job)]) == 0


def test_sources_can_be_added_but_not_changed(tmp_path: Path) -> None:
    write_video(tmp_path / "a/a.mp4")
    write_video(tmp_path / "b/b.mp4", seed=1)
    first, second = files(tmp_path / "a"), files(tmp_path / "b")

    def job_of(*sources: dict[str, Any]) -> Path:
        return write_job(tmp_path / "job.yaml", [*sources], str(tmp_path / "out"))

    run_without_ray(load_job(job_of(first)))
    with pytest.raises(PlanMismatch, match="--extend"):
        JobOutput(load_job(job_of(first, second)))
    with pytest.raises(PlanMismatch):
        JobOutput(load_job(job_of(second, first)), extend=True)
    dry_run = ["run", str(job_of(first, second)), "--dry-run"]
    assert (main(dry_run), main([*dry_run, "--extend"])) == (3, 0)
    run_without_ray(load_job(job_of(first, second)), extend=True)
    assert_equals_one_go(job_of(first, second))
    JobOutput(load_job(job_of(first, second)))
    with pytest.raises(PlanMismatch):  # the second source is one of the output's by now
        JobOutput(load_job(job_of(first)))


def test_an_output_carries_the_same_columns_for_ever(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4")
    write_video(tmp_path / "b.mp4", seed=1)
    uri = str(tmp_path / "out")
    table = write_table(tmp_path / "t.csv", [tmp_path / "a.mp4"])
    run_without_ray(load_job(write_job(tmp_path / "job.yaml", table, uri)))
    table = write_table(tmp_path / "t.csv", [tmp_path / "a.mp4", tmp_path / "b.mp4"], "title")
    job = load_job(write_job(tmp_path / "job.yaml", table, uri))
    with pytest.raises(PlanMismatch, match=r"carry other columns \(title: \(not set\) -> 'string'"):
        JobOutput(job, extend=True)


def test_of_two_extensions_at_once_only_one_adds_rows(tmp_path: Path) -> None:
    write_video(tmp_path / "videos/a.mp4")
    job = write_job(tmp_path / "job.yaml", files(tmp_path / "videos"), str(tmp_path / "out"))
    run_without_ray(load_job(job))
    write_video(tmp_path / "videos/b.mp4", seed=1)
    late = JobOutput(load_job(job), extend=True)  # has listed the sources
    run_without_ray(load_job(job), extend=True)
    with pytest.raises(PlanMismatch, match="another run has extended the plan"):
        Run(late, Console(quiet=True))
    run_without_ray(load_job(job), extend=True)
    assert_complete(job)
    assert codes_of(job) == codes_without_ray(job)


def test_a_run_that_knows_an_older_plan_leaves_nothing_out(tmp_path: Path) -> None:
    """It has looked at the output, and then another run extends it and is killed."""
    write_video(tmp_path / "videos/a.mp4")
    job = write_job(tmp_path / "job.yaml", files(tmp_path / "videos"), str(tmp_path / "out"))
    run_without_ray(load_job(job))
    late = JobOutput(load_job(job))
    write_video(tmp_path / "videos/b.mp4", seed=1)
    Run(JobOutput(load_job(job), extend=True), Console(quiet=True))  # and no more
    with pytest.raises(PlanMismatch, match="another run has extended the plan"):
        Run(late, Console(quiet=True))
    run_without_ray(load_job(job))
    assert_equals_one_go(job)


def test_sources_that_are_gone_stay_in_the_output(tmp_path: Path) -> None:
    for name in "ab":
        write_video(tmp_path / f"videos/{name}.mp4", seed=ord(name))
    job = write_job(tmp_path / "job.yaml", files(tmp_path / "videos"), str(tmp_path / "out"))
    run_without_ray(load_job(job))
    before = codes_of(job)
    (tmp_path / "videos/a.mp4").unlink()
    shutil.copy(tmp_path / "videos/b.mp4", tmp_path / "videos/c.mp4")
    os.utime(tmp_path / "videos/b.mp4", (1, 1))  # changed, which is not new
    run_without_ray(load_job(job), extend=True)
    assert before.items() < codes_of(job).items()
    assert output_of(job).num_rows == 3


def test_growth_does_not_disturb_training(tmp_path: Path) -> None:
    """A state names the shards that its run read: a resumed run reads those, in the same order."""
    for index in range(4):
        write_video(tmp_path / f"videos/{index}.mp4", 20, seed=index)
    job = write_job(tmp_path / "job.yaml", files(tmp_path / "videos"), str(tmp_path / "out"))
    run_without_ray(load_job(job))

    def stream(**settings: Any) -> ClipStream:
        cache = CodeCache(output_of(job), tmp_path / "cache")
        return ClipStream(cache, seed=3, rank=0, world_size=1, **settings)

    keep = {"filter": pc.field("segment") < 2}
    for settings in ({}, keep):
        before = stream(**settings)
        first = [clip["clip_id"] for clip in before]
        second = [clip["clip_id"] for clip in before]
        reader = iter(before := stream(**settings))
        assert [next(reader)["clip_id"] for _ in range(5)] == first[:5]
        state = reader.state_dict()
        evenly = TokenSequences(before, 64, even="repeat")
        sequences = iter(evenly)
        next(sequences)
        place = sequences.state_dict()
        left = [item["tokens"].tolist() for item in sequences]

        name = f"late{len(settings)}"
        write_video(tmp_path / f"videos/{name}.mp4", 20, seed=9)
        run_without_ray(load_job(job), extend=True)
        resumed = stream(**settings)
        assert len(resumed) > len(first)
        resumed.resume([state])
        assert len(resumed) == len(first) - 5
        assert [clip["clip_id"] for clip in resumed] == first[5:]
        assert [clip["clip_id"] for clip in resumed] == second  # the epoch after it, too
        reader = iter(stream(**settings))
        reader.load_state_dict(state)
        assert [clip["clip_id"] for clip in reader] == first[5:]
        sequences = iter(TokenSequences(stream(**settings), 64, even="repeat"))
        sequences.load_state_dict(place)
        assert [item["tokens"].tolist() for item in sequences] == left
        anew = stream(**settings)
        anew.set_epoch(1)  # a new stream has what was added
        assert {clip["clip_id"] for clip in anew} > set(first)
    for number in (99, 1):
        with pytest.raises(ConfigError, match="the state has "):
            stream(**keep).resume([{**state, "num_shards": [number]}])

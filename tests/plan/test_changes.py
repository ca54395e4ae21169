"""What is new, gone or changed in sources since their plan, and where users see it."""

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.end_to_end.jobs import files, run_without_ray, write_job, write_video, write_videos
from tests.plan.test_plan import FILES, OPTIONS, TABLE, job_of
from tokpipe.cli import main
from tokpipe.config import load_job
from tokpipe.plan import write_plan
from tokpipe.plan.changes import SourceChanges
from tokpipe.storage import Store


def changes(root: Path, change: Any, *sources: dict[str, Any]) -> SourceChanges:
    """Plan the sources, change them, and compare."""
    job = job_of(root, *sources, on_duplicate="keep_first")
    store = Store(job.output.uri, OPTIONS)
    planned = write_plan(job, store, "attempt-1")
    change()
    return SourceChanges.of_output(job, store, planned)


def counts(found: SourceChanges) -> tuple[int, int, int]:
    return found.num_new, found.num_gone, found.num_changed


def touch(path: Path, size: int) -> None:
    """Write a file with an older time of change, so that another one differs."""
    path.write_bytes(b"v" * size)
    os.utime(path, ns=(10**18, 10**18))


def test_files_come_go_and_change(tmp_path: Path) -> None:
    for name in "abcd":
        touch(tmp_path / f"{name}.mp4", 10)

    def change() -> None:
        touch(tmp_path / "e.mp4", 10)
        (tmp_path / "b.mp4").unlink()
        touch(tmp_path / "c.mp4", 11)
        os.utime(tmp_path / "d.mp4", ns=(2 * 10**18, 2 * 10**18))

    found = changes(tmp_path, change, FILES)
    assert counts(found) == (1, 1, 2)
    uris = {kind: [Path(uri).name for uri in some] for kind, some in found.examples.items()}
    assert uris == {"new": ["e.mp4"], "gone": ["b.mp4"], "changed": ["c.mp4", "d.mp4"]}
    assert found.text == (
        f"1 row new (such as {tmp_path}/e.mp4), 1 row gone (such as {tmp_path}/b.mp4), "
        f"2 rows changed (such as {tmp_path}/c.mp4)"
    )
    assert not changes(tmp_path, lambda: None, FILES).text


def test_any_changes_are_counted(tmp_path: Path) -> None:
    """Whatever happens to the files of two sources, counts are those of set arithmetic."""
    dice = random.Random(0)
    for number in range(25):
        root = tmp_path / str(number)
        root.mkdir()
        before = {name: dice.randrange(3) for name in dice.sample(range(40), dice.randrange(1, 30))}
        after = {name: dice.randrange(3) for name in dice.sample(range(40), dice.randrange(1, 30))}
        after |= {name: size for name, size in before.items() if dice.random() < 0.5}

        def write(state: dict[int, int], root: Path = root) -> None:
            for folder in "ab":
                shutil.rmtree(root / folder, ignore_errors=True)
                (root / folder).mkdir()
            for name, size in state.items():
                touch(root / "ab"[name % 2] / f"{name}.mp4", size)
            for folder in "ab":  # never empty, which is an error
                touch(root / folder / "always.mp4", 1)

        write(before)
        found = changes(
            root,
            lambda write=write, after=after: write(after),
            *({"kind": "files", "uri": f"{folder}/*.mp4"} for folder in "ab"),
        )
        both = before.keys() & after.keys()
        assert counts(found) == (
            len(after.keys() - both),
            len(before.keys() - both),
            sum(before[name] != after[name] for name in both),
        )


def test_rows_of_tables_are_compared_by_source_and_span(tmp_path: Path) -> None:
    def write(*rows: str) -> None:
        lines = [f"{tmp_path}/{row}" for row in rows]
        (tmp_path / "t.csv").write_text("\n".join(["url,from,to,caption", *lines]) + "\n")

    write("a.mp4,0,1,x", "a.mp4,1,2,y", "b.mp4,,,z")
    source = {**TABLE, "uri": "t.csv"}
    found = changes(tmp_path, lambda: write("b.mp4,,,z", "a.mp4,1,2.5,y", "a.mp4,0,1,!"), source)
    assert counts(found) == (1, 1, 0)
    found = changes(tmp_path, lambda: write("b.mp4,,,z", "c.mp4,,,z", "c.mp4,,,z"), source)
    assert counts(found) == (1, 2, 0)  # a repeated row is one clip


def test_a_table_that_holds_its_videos_changes_as_a_whole(tmp_path: Path) -> None:
    def write(*names: str) -> None:
        rows = {"name": list(names), "video": [b"v"] * len(names)}
        pq.write_table(pa.table(rows), tmp_path / "t.parquet")

    source = {"kind": "table", "uri": "t.parquet", "uri_column": "video"}
    write("a", "b")
    found = changes(tmp_path, lambda: write("a", "b", "c"), source)
    assert counts(found) == (1, 0, 2)


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """The file of a finished job of two videos."""
    write_videos(tmp_path / "videos", 2)
    path = write_job(tmp_path / "job.yaml", files(tmp_path / "videos"), str(tmp_path / "out"))
    run_without_ray(load_job(path))
    return path


def test_every_verb_says_what_is_not_in_the_output(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = str(finished)
    for verb in ("run", "check", "plan", "status"):
        assert main([verb, job, *["--sources"] * (verb == "status")]) == 0
        printed = capsys.readouterr().out
        assert ("sources since the plan: unchanged" in printed) is (verb == "status")
        assert "new (such as" not in printed

    write_video(tmp_path / "videos/late.mp4", 20, seed=9)
    for verb in ("run", "check", "plan", "status"):
        assert main([verb, job, *["--sources"] * (verb == "status")]) == 0
        printed = " ".join(capsys.readouterr().out.split())
        assert f"1 row new (such as {tmp_path}/videos/late.mp4)" in printed, verb
        assert ("New ones are added by tokpipe run --extend" in printed) is (
            verb in ("run", "check")
        )

    assert main(["status", job, "--sources", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["source_changes"]
    assert (found["num_new"], found["num_gone"], found["num_changed"]) == (1, 0, 0)
    assert main(["plan", job, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["source_changes"] == found
    assert main(["status", str(tmp_path / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["source_changes"] is None
    assert main(["status", str(tmp_path / "out"), "--sources"]) == 2
    assert "name a job file" in capsys.readouterr().err


def test_a_finished_job_does_not_need_its_sources(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(tmp_path / "videos")
    assert main(["run", str(finished)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "nothing left to do" in printed
    assert "since it was planned: unknown, because the sources cannot be planned again" in printed
    assert main(["status", str(finished)]) == 0

"""The demo, as a newcomer runs it, and the code on the pages that continue from it."""

import csv
import json
import os
import re
import subprocess
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest
import yaml

from examples import demo
from tests.docs.scene import copy_repository, make_environment
from tests.end_to_end.jobs import assert_complete
from tests.pages import REPOSITORY, blocks_of
from tokpipe.reader import open_output


@pytest.mark.ray
def test_the_demo_makes_codes_that_anyone_can_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`make demo`, in a clone with an unusual path, next to a Ray cluster, without a terminal."""
    clone = tmp_path / "a [new] folder" / "tokpipe"
    copy_repository(clone)
    make_environment(clone, tmp_path)
    (clone / "out/demo/plan").mkdir(parents=True)  # of a demo that ended early
    (clone / "out/demo/plan/0.parquet").write_bytes(b"")
    done = subprocess.run(
        ["make", "demo"],
        cwd=clone,
        env={
            **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            "RAY_ADDRESS": "127.0.0.1:1",  # of another cluster: the demo has no use for it
            "RAY_AUTH_MODE": "token",
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    killed = re.search(r"killed with SIGKILL after (\d) of 8 clips", done.stdout)
    assert killed is not None, done.stdout
    assert 0 < int(killed[1]) < 8, "the job was not in the middle"
    assert f"8 clips: {killed[1]} from before the kill, {8 - int(killed[1])} new" in done.stdout
    assert "132 frames became 9,984 codes" in done.stdout
    assert "nothing lost, nothing doubled: 8 clips, each once" in done.stdout
    assert "2 clips were encoded again from the film: the same codes" in done.stdout
    psnr = re.search(r"what its codes keep below, (\d+\.\d) dB", done.stdout)
    assert psnr is not None
    assert float(psnr[1]) > 20, "the checkpoint that ships does not reproduce its training video"
    assert str(clone / "out/demo.html") in done.stdout
    assert (clone / "out/demo.html").read_text().startswith("<!DOCTYPE html>")
    assert (clone / "out/demo.png").read_bytes().startswith(b"\x89PNG")
    assert len(done.stdout.splitlines()) < 20, "no noise"

    assert_complete(clone / "jobs/demo.yaml")
    out = clone / "out/demo"
    clips = sorted(open_output(str(out)).clips(), key=lambda clip: clip.plan_row)
    # 132 frames in spans of 17; a first frame, and then one latent frame for each 4.
    assert [clip.codes.shape for clip in clips] == [*[(5, 16, 16)] * 7, (4, 16, 16)]
    assert clips[0].metadata["caption"] == "a grey rabbit crawls out of its burrow"
    # What the killed driver had written and not listed, which is chance, is in no output.
    listed = {out / shard.key for shard in open_output(str(out)).shards}
    for unlisted in {*(out / "shards").iterdir()} - listed:
        unlisted.unlink()
    table = pq.read_table(out / "shards", columns=["clip_id", "t", "h", "w", "codes"])
    monkeypatch.chdir(clone)
    (row,) = duckdb.execute(
        "SELECT count(DISTINCT clip_id), sum(len(codes)), max(list_max(codes)) "
        "FROM 'out/demo/shards/*.parquet'"
    ).fetchall()
    assert table.num_rows == 8
    assert row[:2] == (8, 9984)
    assert 0 < row[2] < 64_000

    (clone / "out/videos").symlink_to("demo")  # as if the videos of the pages were the film
    for page in ("README.md", "docs/quickstart.md", "docs/output.md"):
        names: dict[str, object] = {}  # blocks of a page go on from each other
        for block in blocks_of(page):
            if block.language == "python":
                exec(compile(block.code, str(block), "exec"), names)
            elif block.language == "sql":
                assert duckdb.execute(block.code).fetchall()


def project(folder: Path) -> Path:
    """A folder with the demo's job file."""
    (folder / "jobs").mkdir()
    (folder / "jobs/demo.yaml").write_text((REPOSITORY / "jobs/demo.yaml").read_text())
    return folder


def record(source: str) -> str:
    return json.dumps({"job": {"sources": [{"kind": "files", "uri": source}]}})


def test_the_demo_replaces_only_what_a_demo_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project(tmp_path))
    kept = tmp_path / "out/demo/job.json"
    kept.parent.mkdir(parents=True)
    kept.write_text(record("/data/mine/*.mp4"))
    with pytest.raises(demo.Stopped, match=r"out/demo has codes of /data/mine/\*.mp4"):
        demo.prepare()
    assert kept.exists()
    for name in ("captions.csv", "*.mp4"):  # of this version, and of an older one
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(record(f"/another/place/examples/data/{name}"))
        demo.prepare()
        assert not kept.parent.exists()
        assert "removing out/demo of an earlier demo" in capsys.readouterr().out


def test_a_step_that_fails_shows_what_its_command_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project(tmp_path))
    demo.prepare()
    demo.JOB.write_text("sources: 3\n")
    for step in (demo.tokenize_until_killed, demo.resume):
        with pytest.raises(demo.Stopped, match=r"(?s)tokpipe run out/demo.yaml.*ConfigError.*log"):
            step()


def test_the_demo_job_uses_nothing_but_what_it_ships() -> None:
    job = yaml.safe_load((REPOSITORY / "jobs/demo.yaml").read_text())
    (source,) = job["sources"]
    assert source["uri"] == "examples/data/captions.csv"
    with (REPOSITORY / source["uri"]).open() as table:
        assert {row["uri"] for row in csv.DictReader(table)} == {"bigbuckbunny.mp4"}

"""The shipped demo, as a newcomer and as a cluster would run it."""

import re
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest
import yaml

from tests.end_to_end.jobs import assert_complete, run_well
from tests.pages import REPOSITORY, Block, blocks_of, commands_of
from tests.ray_head import BIN, plain_environment, running_head
from tokpipe.cli import main
from tokpipe.reader import open_output


def _project(folder: Path) -> Path:
    """A folder that the demo's relative paths work in, with an output of its own."""
    (folder / "examples").mkdir(parents=True)
    shutil.copytree(REPOSITORY / "examples/data", folder / "examples/data")
    (folder / "jobs").mkdir()
    shutil.copy(REPOSITORY / "jobs/demo.yaml", folder / "jobs/demo.yaml")
    return folder / "jobs/demo.yaml"


@pytest.mark.ray
def test_the_demo_makes_codes_that_anyone_can_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = _project(tmp_path)
    printed = run_well(job)
    assert_complete(job)
    # 132 frames at 25/s are 5.28 s: 43 frames at 8/s, in clips of 17, 17 and 9.
    output = open_output(str(tmp_path / "out/demo"))
    assert sorted(clip.codes.shape for clip in output.clips()) == [
        (3, 16, 16),
        (5, 16, 16),
        (5, 16, 16),
    ]
    assert "3 clips, 43 frames, 3,328 codes" in printed

    shards = tmp_path / "out/demo/shards"
    table = pq.read_table(shards, columns=["clip_id", "t", "h", "w", "codes"])
    (row,) = duckdb.execute(
        "SELECT count(DISTINCT clip_id), sum(len(codes)), max(list_max(codes)) "
        f"FROM '{shards}/*.parquet'"
    ).fetchall()
    assert table.num_rows == 3
    assert row[:2] == (3, 3328)
    assert 0 < row[2] < 64_000

    picture = tmp_path / "clip.png"
    assert main(["decode", str(tmp_path / "out/demo"), "--compare", "-o", str(picture)]) == 0
    psnr = re.search(r"PSNR (\d+\.\d+) dB", capsys.readouterr().out)
    assert psnr is not None
    assert float(psnr[1]) > 20, "the checkpoint that ships does not reproduce its training video"

    monkeypatch.chdir(tmp_path)
    for page in ("README.md", "docs/output.md"):
        names: dict[str, object] = {}  # blocks of a page go on from each other
        for block in blocks_of(page):
            if block.language == "python":
                exec(compile(block.code, str(block), "exec"), names)
            elif block.language == "sql":
                assert duckdb.execute(block.code).fetchall()
            elif block.language == "sh":
                _give(block, "out/demo")


def _give(block: Block, output: str) -> None:
    """Give those of a block's commands that look at an output; all but those that name an ID."""
    for words in commands_of(block.code):
        if words[0] == "tokpipe" and output in words and "ID" not in words:
            assert main(words[1:]) == 0, f"{block}: {' '.join(words)}"


@pytest.mark.ray
def test_the_quickstart_leads_from_videos_to_a_model_that_learns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Page in hand. Its job is submitted to a cluster, which is the other way to start one."""
    (tmp_path / "jobs").mkdir()
    (tmp_path / "examples").mkdir()
    shutil.copytree(REPOSITORY / "examples/data", tmp_path / "videos")
    shutil.copy(REPOSITORY / "examples/train_transformer.py", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    seen = []
    for block in blocks_of("docs/quickstart.md"):
        if block.title is not None:
            (tmp_path / block.title).write_text(block.code)
        elif block.language == "python":
            exec(compile(block.code, str(block), "exec"), {})
        for words in commands_of(block.code) if block.language == "sh" else []:
            seen.append(" ".join(words[:2]))
            if words[:2] == ["tokpipe", "run"]:
                printed = _submit(tmp_path, words[2])
                assert "1 clip, 43 frames, 3,328 codes" in printed
                assert_complete(tmp_path / words[2])
            elif words[0] == "tokpipe":
                assert main(words[1:]) == 0, f"{block}: {' '.join(words)}"
            elif words[0] == "python":
                _train(tmp_path, words[1:])
            else:
                assert words[0] in ("make", "export")  # the installation, which has been
    assert {"tokpipe run", "tokpipe decode", "python examples/train_transformer.py"} <= {*seen}


def _train(folder: Path, arguments: list[str]) -> None:
    """The worked example learns from the codes, and generates a video."""
    command = [sys.executable, *arguments, "--steps", "41"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    losses = [float(loss) for loss in re.findall(r"step \d+: loss (\d+\.\d+)", done.stdout)]
    assert len(losses) == 3
    assert losses[0] > losses[1] > losses[2]
    assert (folder / "generated.mp4").stat().st_size > 1000


def _submit(folder: Path, job: str) -> str:
    """Submit a job to a cluster of this machine; return what it printed."""
    environment = {
        "HOME": str(folder),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "PYTHONPATH": str(REPOSITORY),
    }
    with running_head(folder, environment) as head:
        submitted = subprocess.run(
            [
                str(BIN / "ray"), "job", "submit", "--address", head.url, "--",
                "python", "-m", "tokpipe.run", job,
            ],
            cwd=folder,
            env={**plain_environment(), **environment},
            capture_output=True,
            text=True,
            timeout=1000,
            check=False,
        )  # fmt: skip
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    return submitted.stdout


def test_the_demo_job_uses_nothing_but_what_it_ships() -> None:
    job = yaml.safe_load((REPOSITORY / "jobs/demo.yaml").read_text())
    assert [source["uri"] for source in job["sources"]] == ["examples/data/*.mp4"]

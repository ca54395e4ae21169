"""A driver in a real terminal: what it shows, and how Ctrl-C and SIGTERM end it at any moment."""

import signal
from pathlib import Path

import pytest

from tests.end_to_end.jobs import (
    files,
    num_commits,
    slow_tokenizer,
    wait_until,
    write_job,
    write_videos,
)
from tests.terminal import Terminal
from tokpipe.cli import main


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("interrupted")
    write_videos(folder / "videos", 12)
    slow = slow_tokenizer(until=folder / "hurry", pause_s=0.5)
    return write_job(
        folder / "job.yaml", files(folder / "videos"), str(folder / "out"), tokenizer=slow
    )


@pytest.mark.ray
def test_sigterm_before_the_work_starts_ends_the_run_at_once(job: Path, ray_address: str) -> None:
    terminal = Terminal(job, ray_address)
    terminal.wait_for("connecting to Ray")
    terminal.driver.send_signal(signal.SIGTERM)
    assert terminal.end() == 128 + signal.SIGTERM
    assert "Run the same command to continue" in terminal.text
    assert not num_commits(job)


@pytest.mark.ray
def test_ctrl_c_while_workers_start_is_acknowledged_and_ends_in_good_order(
    job: Path, ray_address: str
) -> None:
    terminal = Terminal(job, ray_address)
    terminal.wait_for("starting ")
    terminal.press_ctrl_c()
    terminal.wait_for("stopping: committing finished clips")
    assert terminal.end() == 128 + signal.SIGINT
    assert "stopped after" in terminal.text
    assert "run the same command again to continue" in terminal.text


@pytest.mark.ray
def test_a_second_ctrl_c_ends_a_working_job_at_once(job: Path, ray_address: str) -> None:
    terminal = Terminal(job, ray_address)
    wait_until(lambda: num_commits(job) > 0 or terminal.driver.poll() is not None)
    terminal.press_ctrl_c()
    terminal.wait_for("stopping: committing finished clips")
    terminal.press_ctrl_c()
    assert terminal.end() == 128 + signal.SIGINT
    assert "stopping now" in terminal.text or "stopped after" in terminal.text
    assert main(["audit", str(job.parent / "out"), "--partial"]) == 0

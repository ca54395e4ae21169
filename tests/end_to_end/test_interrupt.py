"""A driver in a real terminal: what it shows, and how Ctrl-C and SIGTERM end it at any moment."""

import contextlib
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests.end_to_end.jobs import (
    await_line,
    files,
    finish,
    num_commits,
    slow_tokenizer,
    start_in_group,
    wait_until,
    write_job,
    write_videos,
)
from tests.end_to_end.processes import pids_of
from tests.ray_head import running_head
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


NUMBERS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
MOMENTS: tuple[float | str, ...] = (
    *(0.3, 1.0, 3.0),  # importing
    *("connecting to Ray", "planning", "settled before", "starting [a-z1-9]", "encode [1-9]"),
)
QUICK = [(number, moment) for number, moment in zip(NUMBERS, MOMENTS, strict=False)]


@pytest.mark.ray
@pytest.mark.parametrize(
    ("number", "moment"),
    [
        *(pytest.param(*cell) for cell in QUICK),
        *(
            pytest.param(number, moment, marks=pytest.mark.slow)
            for moment in MOMENTS
            for number in NUMBERS
            if (number, moment) not in QUICK
        ),
    ],
)
def test_a_signal_to_the_group_at_any_moment_ends_the_run_without_traces(
    job: Path, tmp_path: Path, number: signal.Signals, moment: float | str
) -> None:
    again = write_job(tmp_path / "job.yaml", files(job.parent / "videos"), str(tmp_path / "out"))
    driver = start_in_group(again, PYTHONUNBUFFERED="1")
    assert driver.stdout is not None
    seen = ""
    if isinstance(moment, str):
        while not re.search(moment, seen):
            seen += driver.stdout.readline()
            assert driver.poll() is None, f"the driver ended: {seen}"
    else:
        with contextlib.suppress(subprocess.TimeoutExpired):
            driver.wait(moment)
    if driver.poll() is None:
        os.killpg(driver.pid, number)
    code, printed = finish(driver)
    assert code in (0, 128 + number), seen + printed
    assert "Traceback" not in seen + printed
    assert "SIGTERM received" not in printed, "a native trace"


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("victim", ["gcs_server", "raylet/raylet"])
def test_a_dead_head_is_named_within_seconds_and_ends_the_run_in_one_line(
    job: Path, tmp_path: Path, victim: str
) -> None:
    again = write_job(
        tmp_path / "job.yaml",
        files(job.parent / "videos"),
        str(tmp_path / "out"),
        tokenizer=slow_tokenizer(until=tmp_path / "hurry", pause_s=10),
    )
    with running_head(tmp_path, {"RAY_AUTH_MODE": "disabled"}) as head:
        driver = start_in_group(again, RAY_ADDRESS=head.address, RAY_AUTH_MODE="disabled")
        await_line(driver, lambda line: bool(re.search(r"encode \d+ \([\d./]+s, 1 worker", line)))
        for pid in pids_of(victim):
            os.kill(pid, signal.SIGKILL)
        code, printed = finish(driver)
    assert code == 7, printed
    assert "waiting for the head of the Ray cluster" in printed
    assert printed.splitlines()[-1].startswith("HeadLost: the head of the Ray cluster")
    assert "Traceback" not in printed

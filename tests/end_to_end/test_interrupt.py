"""A driver in a real terminal: what it shows, and how Ctrl-C and SIGTERM end it at any moment."""

import contextlib
import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import threading
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
from tokpipe.cli import main

CTRL_C = b"\x03"


class Terminal:
    """A pseudo-terminal of 80 columns with ``tokpipe run JOB`` in the foreground."""

    def __init__(self, job: Path, address: str) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        # A session leader that opens a terminal is controlled by it, so Ctrl-C reaches it.
        command = 'exec "$@" 0<>"$TTY" 1>&0 2>&0'
        self.driver = subprocess.Popen(
            ["sh", "-c", command, "sh", sys.executable, "-m", "tokpipe.cli", "run", str(job)],
            env={
                **os.environ,
                "TTY": os.ttyname(slave),
                "TERM": "xterm-256color",
                "RAY_ADDRESS": address,
            },
            start_new_session=True,
        )
        self.text = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._slave = slave

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # how the end of a pseudo-terminal is reported
            while data := os.read(self._master, 65536):
                self.text += data.decode(errors="replace")

    def wait_for(self, text: str) -> None:
        """Wait until the driver has printed a text."""
        wait_until(lambda: text in self.text or self.driver.poll() is not None)
        assert text in self.text, self.text

    def press(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def end(self) -> int:
        """Wait for the driver's end; return its exit code."""
        try:
            code = self.driver.wait(600)
        finally:
            self.driver.kill()
            os.close(self._slave)
            self._reader.join(60)
            os.close(self._master)
        assert "Traceback" not in self.text, self.text
        assert "(raylet)" not in self.text, self.text
        return code


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
    terminal.press(CTRL_C)
    terminal.wait_for("stopping: committing finished clips")
    assert terminal.end() == 128 + signal.SIGINT
    assert "stopped after" in terminal.text
    assert "run the same command again to continue" in terminal.text


@pytest.mark.ray
def test_a_second_ctrl_c_ends_a_working_job_at_once(job: Path, ray_address: str) -> None:
    terminal = Terminal(job, ray_address)
    wait_until(lambda: num_commits(job) > 0 or terminal.driver.poll() is not None)
    terminal.press(CTRL_C)
    terminal.wait_for("stopping: committing finished clips")
    terminal.press(CTRL_C)
    assert terminal.end() == 128 + signal.SIGINT
    assert "stopping now" in terminal.text or "stopped after" in terminal.text
    assert main(["audit", str(job.parent / "out"), "--partial"]) == 0

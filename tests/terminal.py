"""A driver in a real terminal."""

import contextlib
import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import threading
from pathlib import Path

from tests.end_to_end.jobs import wait_until


class Terminal:
    """A pseudo-terminal with ``tokpipe run JOB`` in the foreground."""

    def __init__(self, job: Path, address: str, columns: int = 80) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
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

    def press_ctrl_c(self) -> None:
        os.write(self._master, b"\x03")

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

"""Signals that end a process: acknowledged at once, whatever it is doing."""

import errno
import os
import signal
import sys
import termios
import threading
import time
from collections.abc import Callable
from fcntl import F_DUPFD_CLOEXEC, fcntl
from functools import partial
from types import FrameType
from typing import NoReturn

INTERRUPTED = "interrupted; what was committed is kept. Run the same command to continue"
_STDERR = 2 if sys.stderr is None else fcntl(2, F_DUPFD_CLOEXEC, 3)  # Ray redirects 2 at times
SAME_REQUEST_S = 1.0
"""SIGTERM and SIGHUP are sent by programs: `timeout` sends each to the process, then to its group,
and systemd may send SIGHUP right after SIGTERM. In this time, more of them are the same request."""


class Signals:
    """The first signal stops a run in good order, and the second at once.

    A thread waits for signals, and all others block them: the main thread may be in C++ that does
    not return for a minute. Ray's handlers, which print stack traces, are never called, and a local
    Ray inherits that it blocks signals, which may be sent to a whole control group.
    """

    def __init__(self) -> None:
        self.received: list[signal.Signals] = []
        self.say: Callable[[str], None] = lambda _: None
        self.stop: Callable[[], None] | None = None  # None while there is nothing to commit

    def start(self) -> None:
        """Wait for signals from now on. Threads that exist already would still get them."""
        numbers = _not_ignored(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
        threading.Thread(target=self._wait, args=(numbers,), daemon=True).start()

    def _wait(self, numbers: set[signal.Signals]) -> None:
        same_until = 0.0
        while numbers:
            number = signal.Signals(signal.sigwait(numbers))
            if number != signal.SIGINT and time.monotonic() < same_until:
                continue
            same_until = 0.0 if number == signal.SIGINT else time.monotonic() + SAME_REQUEST_S
            _leave_lost_terminal()
            self.received.append(number)
            if self.stop is None or len(self.received) > 1:
                _shortly(partial(self.say, "stopping now ..."))
                end_now(number, INTERRUPTED)
            again = "Ctrl-C" if number == signal.SIGINT else number.name
            text = f"stopping: committing finished clips, a minute at most ({again} again: at once)"
            _shortly(partial(self.say, text))
            self.stop()


OF_RUN = Signals()  # Those of ``tokpipe run``, which starts to wait for them before its imports


def interrupt_verbs() -> None:
    """Let SIGINT and SIGTERM raise KeyboardInterrupt with the number. A second ends the process, as
    does one during an import, where a module of C may turn the exception into another."""
    received: list[int] = []

    def on_signal(number: int, frame: FrameType | None) -> None:
        received.append(number)
        while frame is not None:
            if len(received) > 1 or frame.f_code.co_filename == "<frozen importlib._bootstrap>":
                end_now(number, interrupted())
            frame = frame.f_back
        raise KeyboardInterrupt(number)

    for number in _not_ignored(signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)


def interrupted() -> str:
    """What an interrupted verb says: most leave nothing that the same command would continue."""
    return INTERRUPTED if {*sys.argv[1:2]} & {"run", "submit"} else "interrupted"


def _not_ignored(*numbers: signal.Signals) -> set[signal.Signals]:
    """Without those that `nohup`, or a shell that starts a job in the background, ignores."""
    return {one for one in numbers if signal.getsignal(one) is not signal.SIG_IGN}


def end_now(number: int, text: str) -> NoReturn:
    """End the process without unwinding, which C++ and other threads may hold up."""
    if os.isatty(1) and os.environ.get("TERM") != "dumb":
        _shortly(lambda: os.write(1, b"\x1b[?25h"))  # shows the cursor, which live lines hide
    _shortly(lambda: os.write(_STDERR, f"{text}\n".encode()), most_s=2)  # a busy machine is slow
    os._exit(128 + number)


def _shortly(action: Callable[[], object], most_s: float = 0.2) -> None:
    """Do what may never end for a moment: the terminal may be stopped, or a pipe full."""
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    thread.join(most_s)


def _leave_lost_terminal() -> None:
    """Print nowhere once the terminal is gone: every further line would raise an error."""
    for number in (0, 1, 2):
        try:
            termios.tcgetattr(number)
        except termios.error as error:
            if error.args[0] == errno.EIO:
                os.dup2(os.open(os.devnull, os.O_RDWR), number)

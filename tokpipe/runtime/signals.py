"""Signals that end a process: acknowledged at once, whatever it is doing."""

import errno
import os
import signal
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import ClassVar, NoReturn, Self

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
INTERRUPTED = "interrupted; what was committed is kept. Run the same command to continue"
_SAY_S = 0.2
"""How long a line may take: the terminal may be stopped, or a pipe full."""


def interrupt_verbs() -> None:
    """Let SIGINT and SIGTERM raise KeyboardInterrupt with the number; a second ends the process.

    One that arrives during an import ends it too: a module of C may turn the exception into
    another, or print a traceback.
    """
    received: list[int] = []

    def on_signal(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1 or _is_importing(frame):
            end_now(number)
        raise KeyboardInterrupt(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as of a job in the background
            signal.signal(number, on_signal)


def end_now(number: int) -> NoReturn:
    """End the process without unwinding, which C++ and other threads may hold up."""

    def restore_terminal() -> None:
        if sys.__stdout__ is not None and os.isatty(1) and os.environ.get("TERM") != "dumb":
            os.write(1, b"\x1b[?25h")  # the cursor, which live lines hide
        os.write(2, f"{INTERRUPTED}\n".encode())

    _shortly(restore_terminal)
    os._exit(128 + number)


class Signals:
    """The first signal stops a run in good order, and the second at once.

    While ``stop`` is None there is nothing to commit, so the first signal ends the run at once.

    A thread waits for signals, and every other one blocks them. So the main thread may be anywhere:
    in an import, in C++ that does not return for a minute, or printing. Ray's handlers, which print
    stack traces, are never called. The processes of a local Ray inherit that they block signals:
    one that is sent to a whole session or control group reaches the driver alone.
    """

    of_process: ClassVar["Signals | None"] = None
    """Those of ``tokpipe run``, from before its imports, whose threads must block signals too."""

    def __init__(self) -> None:
        self.say: Callable[[str], None] | None = None
        self.received: list[signal.Signals] = []
        self.stop: Callable[[], None] | None = None
        """Asks the run to commit what is finished and end."""
        self._is_over = False
        hangup_ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # as under nohup
        self._numbers = NUMBERS[:2] if hangup_ignored else NUMBERS
        self._before = signal.pthread_sigmask(signal.SIG_BLOCK, self._numbers)
        self._waiter = threading.Thread(target=self._wait, name="signals", daemon=True)
        self._waiter.start()

    @classmethod
    @contextmanager
    def of_run(cls, say: Callable[[str], None]) -> Iterator[Self]:
        """Yield those of the process, or new ones for the block."""
        signals = cls.of_process or cls()
        signals.say = say
        try:
            yield signals
        finally:
            signals.stop = None
            if cls.of_process is None:
                signals._close()

    def _close(self) -> None:
        self._is_over = True
        assert self._waiter.ident is not None
        with suppress(ProcessLookupError):
            signal.pthread_kill(self._waiter.ident, signal.SIGTERM)
        self._waiter.join()
        signal.pthread_sigmask(signal.SIG_SETMASK, self._before)

    def _wait(self) -> None:
        while True:
            number = signal.sigwait(self._numbers)
            if self._is_over:
                return
            self._on_signal(signal.Signals(number))

    def _on_signal(self, number: signal.Signals) -> None:
        _leave_lost_terminal()
        self.received.append(number)
        if self.stop is None or len(self.received) > 1:
            self._say("stopping now ...")
            end_now(number)
        again = "Ctrl-C" if number == signal.SIGINT else number.name
        self._say(
            f"stopping: committing finished clips, a minute at most ({again} again: stop now, and "
            "encode unfinished clips again in the next run)"
        )
        self.stop()

    def _say(self, text: str) -> None:
        if (say := self.say) is not None:
            _shortly(lambda: say(text))


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _shortly(action: Callable[[], None]) -> None:
    """Do what may never end, such as printing, for a moment."""
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    thread.join(_SAY_S)


def _leave_lost_terminal() -> None:
    """Print nowhere once the terminal is gone: every further line would raise an error."""
    for number in (0, 1, 2):
        try:
            termios.tcgetattr(number)
        except termios.error as error:
            if error.args[0] == errno.EIO:
                os.dup2(os.open(os.devnull, os.O_RDWR), number)

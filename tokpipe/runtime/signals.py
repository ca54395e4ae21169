"""SIGINT and SIGTERM during a run: acknowledged at once, whatever the driver is doing."""

import signal
import threading
from collections.abc import Callable
from typing import Self

NUMBERS = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """Within the block, the first signal stops the run in good order, and the second at once.

    While ``stop`` is None there is nothing to commit, so the first signal ends the run at once.
    That raises ``KeyboardInterrupt`` with the signal's number.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self.received: list[signal.Signals] = []
        self.stop: Callable[[], None] | None = None
        """Asks the run to commit what is finished and end."""

    def __enter__(self) -> Self:
        self._before = {one: signal.getsignal(one) for one in NUMBERS}
        self.arm()
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if isinstance(error, SystemExit) and error.code == signal.SIGTERM:
            # Ray's handler, which is in place until ``arm``, exits with the number of the signal.
            raise KeyboardInterrupt(signal.SIGTERM) from error

    def arm(self) -> None:
        """Install the handlers. Do so again after ``ray.init``, which installs one for SIGTERM."""
        for number in NUMBERS:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _: object) -> None:
        self.received.append(signal.Signals(number))
        if self.stop is None or len(self.received) > 1:
            self._acknowledge("stopping now ...")
            raise KeyboardInterrupt(number)
        again = "Ctrl-C" if number == signal.SIGINT else self.received[0].name
        self._acknowledge(
            f"stopping: committing finished clips, a minute at most ({again} again: stop now, and "
            "encode unfinished clips again in the next run)"
        )
        self.stop()

    def _acknowledge(self, text: str) -> None:
        # In a thread, because the signal may have interrupted this one while it was printing.
        thread = threading.Thread(target=self._say, args=(text,))
        thread.start()
        thread.join(0.2)

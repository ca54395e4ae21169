"""Following a job that still runs: which clips a stream may read by now, and waiting for more.

In a stream's first epoch, shards keep the order of their commits. It has whole windows, and the
rest once the job has finished, so its order does not depend on when a reader looks.
"""

import logging
import multiprocessing
import time
from collections.abc import Sequence
from typing import Any

from tokpipe.errors import ConfigError, IncompleteOutput
from tokpipe.reader.output import Output
from tokpipe.reader.ranks import worker
from tokpipe.telemetry.human import duration

_log = logging.getLogger(__name__)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 30.0  # Before the next request of a reader that waits
_SAY_AFTER_S = 60.0


class Supply:
    """The clips that a stream may read: all of its outputs, unless it follows the job of one."""

    def __init__(self, outputs: Sequence[Output], window_shards: int, **settings: Any) -> None:
        """``settings``: what cannot be set if it follows a job."""
        self.output, self._window_shards = outputs[0], window_shards
        self.is_limited = False  # To what there was when a state was saved
        self.follows = any(output.follow for output in outputs)
        used = [name for name, value in settings.items() if value is not None]
        if self.follows and (used or len(outputs) > 1):
            found = f"follow=True does not go with {used or 'a mix'}, which needs all clips"
            raise ConfigError(f"{self.output.uri}: {found}")

    @property
    def is_whole(self) -> bool:
        """Whether no more clips will come."""
        return self.is_limited or not (self.follows and self.output.num_rows_left)

    def num_served(self, epoch: int) -> int:
        """Return how many clips of an epoch can be read while more will come."""
        counts = self.output.shards.clip_counts
        whole = 0 if epoch else len(counts) // self._window_shards * self._window_shards
        return int(counts[:whole].sum())

    def wait(self, epoch: int, num_served: int) -> None:
        """Return once an epoch has more than ``num_served`` clips, or no more will come."""
        while not self.is_whole and self.num_served(epoch) <= num_served:
            self._await_commit()

    def _await_commit(self) -> None:
        """Wait, and report it now and then; IncompleteOutput after ``max_wait_s``."""
        since, pause_s, say_s = time.monotonic(), _FIRST_PAUSE_S, _SAY_AFTER_S
        while not self.output.refresh():
            quiet_s = time.monotonic() - since
            found = f"{self.output.uri} is {self.output.incomplete}, and nothing was "
            found += f"committed for {duration(quiet_s)}"
            if quiet_s >= self.output.max_wait_s:
                do = "Continue its job and resume, or wait longer"
                raise IncompleteOutput(f"{found}, longer than max_wait_s. {do}")
            if quiet_s >= say_s:
                _log.warning("%s. Waiting: if the job has stopped, run it again", found)
                say_s *= 2
            if worker() and (parent := multiprocessing.parent_process()) and not parent.is_alive():
                raise SystemExit  # a loader's worker would go on without its training process
            time.sleep(min(pause_s, self.output.max_wait_s - quiet_s))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

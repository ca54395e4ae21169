"""Which epoch the next iteration gets, agreed on by a process and all its data loader workers."""

import fcntl
import json
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import context, reduction
from pathlib import Path
from typing import Any

from tokpipe.reader.ranks import callers, training_process, worker

Epoch = tuple[int, Any]  # A number, and what is left of it as plain values; None if all of it is

_KEPT_CLAIMS = 100
_ITSELF = 0


class Epochs:
    """Hands out epochs, one to each iteration, to whoever iterates.

    All workers of one iteration of a loader get the same epoch; iterations that run at once get
    different ones. What was handed out is in a file without a name, which workers inherit. Ranks
    that were forked or spawned with a stream share its file, too, but each counts for itself. A
    stream that is pickled otherwise continues on its own from there.
    """

    def __init__(self) -> None:
        self._share(os.memfd_create("tokpipe-epochs"), os.getpid(), None)
        self.set((0, None))

    def _share(self, file: int, origin: int, first_worker: int | None) -> None:
        self._file = file
        weakref.finalize(self, os.close, file)
        self._origin = origin  # Processes without a count of their own start with its count
        self._first_worker = first_worker
        self._begun = 0  # Iterations that this worker has begun

    @property
    def next(self) -> Epoch:
        """What the next iteration gets."""
        with self._shared() as own:
            number, left = own["next"]
            return number, left

    def set(self, epoch: Epoch) -> None:
        """Give the next iteration this epoch, and those after it the following ones."""
        with self._shared() as own:
            own["next"] = epoch

    def claim(self, wanted: Epoch | None = None) -> Epoch:
        """Begin an iteration: ``wanted``, else what its first worker got, else the next epoch."""
        key = self._iteration()
        with self._shared() as own:
            claims = own["claims"]
            number, left = wanted or claims.get(key) or own["next"]
            if wanted or key not in claims:
                own["next"] = number + 1, None
            if key is not None:
                claims[key] = number, left
                own["claims"] = dict([*claims.items()][-_KEPT_CLAIMS:])
        return number, left

    def _iteration(self) -> str | None:
        """Return what all workers of an iteration have in common, and no other iteration has.

        None outside of workers. The seed is not enough: after another ``torch.manual_seed``, it can
        be that of an iteration that ended before all its workers began.
        """
        if (info := worker()) is None:
            return None
        self._begun += 1
        first = _first_worker()  # of a forked worker
        if first is None:
            first = self._first_worker
        return f"{info.seed - info.id}/{os.getpid() if first == _ITSELF else first}/{self._begun}"

    @contextmanager
    def _shared(self) -> Iterator[dict[str, Any]]:
        """Read what this training process shares with its workers, and write it back."""
        # Opened anew, because those who inherited the open file inherited its lock.
        with Path(f"/proc/self/fd/{self._file}").open("r+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            processes = json.loads(file.read() or "{}")
            first = processes.get(str(self._origin), {"next": (0, None)})
            own = {"next": first["next"], "claims": {}}
            yield processes.setdefault(str(training_process()), own)
            file.seek(0)
            file.write(json.dumps(processes).encode())
            file.truncate()

    def __getstate__(self) -> dict[str, Any]:
        if context.get_spawning_popen() is None:
            return {"next": self.next}
        file = reduction.DupFd(self._file)
        return {"shared": (file, training_process(), _first_worker())}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "next" in state:
            Epochs.__init__(self)
            self.set(state["next"])
        else:
            file, origin, first_worker = state["shared"]
            self._share(file.detach(), origin, first_worker)


def _first_worker() -> int | None:
    """Return the process id of the first worker of the loader that is starting this one, if any."""
    for loader in callers("__init__"):
        if (workers := getattr(loader, "_workers", None)) is not None:
            return workers[0].pid if workers else _ITSELF
    return None

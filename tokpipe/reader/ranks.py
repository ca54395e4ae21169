"""Which reader of a training run this process is. Looks at torch only where it is loaded."""

import multiprocessing
import os
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

from tokpipe.errors import ConfigError

_LOADERS = {"accelerate", "torch", "torchdata", "transformers"}


class Ranks:
    """The rank and world size of this process, and the data loader worker that it may be.

    Explicit numbers win. Otherwise they are looked up whenever an epoch begins: in
    ``torch.distributed`` if it is initialized, else in the variables RANK and WORLD_SIZE, else
    there is one rank. A worker that does not inherit these from its process, because it was not
    forked, gets what its process found.

    Nodes have equal numbers of ranks, which follow one another as ``torchrun`` numbers them.
    """

    def __init__(
        self, rank: int | None = None, world_size: int | None = None, num_nodes: int | None = None
    ) -> None:
        if (rank is None) != (world_size is None):
            raise ConfigError(f"rank={rank} and world_size={world_size}: pass both, or neither")
        self._given = None if rank is None or world_size is None else _checked(rank, world_size)
        self._num_nodes = num_nodes
        self._inherited: tuple[int, tuple[int, int]] | None = None

    def rank(self) -> tuple[int, int]:
        """Return (rank, world size)."""
        if self._given is not None:
            return self._given
        if self._inherited is not None and worker() is not None:
            process, found = self._inherited
            if process == training_process():
                return found
        distributed: Any = sys.modules.get("torch.distributed")
        if distributed is not None and distributed.is_available() and distributed.is_initialized():
            return distributed.get_rank(), distributed.get_world_size()
        if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
            return _checked(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
        return 0, 1

    def num_nodes(self) -> int:
        """Return how many nodes the ranks run on; ConfigError if some would have more ranks."""
        _, world_size = self.rank()
        num_nodes = self._num_nodes
        if num_nodes is None:
            num_nodes = world_size // int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
        if num_nodes < 1 or world_size % num_nodes:
            found = f"locality: {num_nodes} nodes cannot have the same number of the {world_size}"
            raise ConfigError(f"{found} ranks. Leave out locality, or pass num_nodes")
        return num_nodes

    def reader(self) -> tuple[int, int]:
        """Return (reader, number of readers), counting the workers of all ranks.

        ConfigError if a library would share out again what this rank reads.
        """
        rank, world_size = self.rank()
        _check_shared_once(world_size)
        info = worker()
        if info is None:
            return rank, world_size
        return rank * info.num_workers + info.id, world_size * info.num_workers

    def __getstate__(self) -> dict[str, Any]:
        found = self.rank()
        _check_shared_once(found[1])
        return {**vars(self), "_inherited": (os.getpid(), found)}


def worker() -> Any:
    """Return torch's ``WorkerInfo`` if this process is a data loader's worker, else None."""
    data = sys.modules.get("torch.utils.data")  # loaded in every worker
    return None if data is None else data.get_worker_info()


def training_process() -> int:
    """Return the process id of this process, or of the one whose loader this worker serves."""
    parent = None if worker() is None else multiprocessing.parent_process()
    return os.getpid() if parent is None or parent.pid is None else parent.pid


def callers(method: str) -> Iterator[Any]:
    """Yield the loaders whose ``method`` is running, from the innermost.

    A forked worker also finds those that were running in its process when it started.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code, package = frame.f_code, frame.f_globals.get("__name__", "").partition(".")[0]
        # Other frames are left alone: looking at local variables may keep them in memory.
        if (code.co_name, code.co_varnames[:1]) == (method, ("self",)) and package in _LOADERS:
            yield frame.f_locals["self"]
        frame = frame.f_back


def _checked(rank: int, world_size: int) -> tuple[int, int]:
    if not 0 <= rank < world_size:
        raise ConfigError(f"rank={rank}: must be from 0 to {world_size - 1}")
    return rank, world_size


def _check_shared_once(world_size: int) -> None:
    for loader in callers("__iter__") if world_size > 1 else ():
        name = type(loader).__name__
        if name in ("IterableDatasetShard", "DataLoaderDispatcher"):
            raise ConfigError(
                f"accelerate's {name} shares out samples among ranks, but so does this stream, so "
                "most clips would be skipped. Do not pass this loader to accelerator.prepare (in "
                "a Trainer, override get_train_dataloader), or pass the stream rank=0, world_size=1"
            )

"""A job that commits one shard at a time, and a training run that follows a job and can be killed.

    python -m tests.reader.following OUT FOLDER SEED

trains until the job has finished. Its checkpoint, ``FOLDER/checkpoint``, has the clips of every
batch so far. With a seed other than 0, each life has another number of workers.
"""

import os
import pickle
import random
import sys
import time
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.formats.formats_helpers import encoded_clip
from tests.reader.reader_helpers import begin, commit, ids, put_shard
from tokpipe.config.job import StoreOptions
from tokpipe.reader import ClipStream, CodeCache, open_output
from tokpipe.storage import Store


class Job:
    """Commits shards of ``sizes`` clips, one at a time."""

    def __init__(self, store: Store, sizes: Sequence[int]) -> None:
        self.store, self.sizes = store, sizes
        self.num_committed = 0
        begin(store, rows=range(sum(sizes)))

    def commit(self, number: int = 1) -> None:
        """Commit the next shards, as far as there are any."""
        for seq, end in list(enumerate(accumulate(self.sizes)))[self.num_committed :][:number]:
            clips = [encoded_clip(row, [5]) for row in range(end - self.sizes[seq], end)]
            commit(self.store, seq, put_shard(self.store, f"s{seq}", clips))
            self.num_committed += 1

    @property
    def is_finished(self) -> bool:
        return self.num_committed == len(self.sizes)


class Clock(SimpleNamespace):
    """The ``time`` of a reader that waits: while it sleeps, a job commits its next shards."""

    def __init__(self, job: Job, number: int = 1) -> None:
        self.job, self.number, self.now_s = job, number, 0.0
        self.num_pauses = 0

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self.num_pauses += 1
        self.job.commit(self.number)


def commit_slowly(uri: str, sizes: Sequence[int], pause_s: float) -> None:
    """Begin a job and run it to its end, in a process of its own."""
    job = Job(Store(uri, StoreOptions()), sizes)
    while not job.is_finished:
        time.sleep(pause_s)
        job.commit()


def loader_of(stream: ClipStream, num_workers: int, **how: Any) -> Any:
    from torchdata.stateful_dataloader import StatefulDataLoader

    from tokpipe.reader.dataset import ClipDataset

    return StatefulDataLoader(
        ClipDataset(stream), 3, num_workers=num_workers, collate_fn=ids, **how
    )


def follow(uri: str, cache: Path, **settings: Any) -> ClipStream:
    """Follow an output in windows of two shards."""
    output = open_output(uri, follow=True, max_wait_s=600)
    return ClipStream(CodeCache(output, cache), **{"seed": 1, "window_shards": 2, **settings})


def train(uri: str, folder: Path, seed: int) -> None:
    path, num_workers, batches, state = folder / "checkpoint", 2, [], None
    if path.exists():
        batches, state, num_workers = pickle.loads(path.read_bytes())
    stream = follow(uri, folder / "cache")
    before = num_workers
    if seed:
        num_workers = random.Random(seed).randrange(4)
    loader = loader_of(stream, num_workers)
    if state is not None and before == num_workers:
        loader.load_state_dict(state)
    elif state is not None:
        stream.resume([state])
    for batch in loader:
        batches.append(batch)
        new = folder / "checkpoint.new"
        new.write_bytes(pickle.dumps((batches, loader.state_dict(), num_workers)))
        os.replace(new, path)  # noqa: PTH105


if __name__ == "__main__":
    train(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))

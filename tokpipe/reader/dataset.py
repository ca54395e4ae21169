"""Clip streams as PyTorch takes them. The one module of the reader that needs torch."""

from __future__ import annotations

from typing import Any

from torch.utils.data import IterableDataset

from tokpipe.reader.stream import ClipIterator, ClipStream


class ClipDataset(IterableDataset[Any]):
    """A stream for ``DataLoader``, or for ``torchdata``'s ``StatefulDataLoader``.

    The latter keeps the state of every worker, so that a run goes on with the clip after the last
    one that it was given. For another number of ranks or workers, give what the loaders of all
    ranks return as ``state_dict()`` to ``ClipStream.resume``.
    """

    def __init__(self, stream: ClipStream) -> None:
        self.stream = stream

    def __iter__(self) -> ClipIterator:
        return iter(self.stream)

"""Clip streams as PyTorch takes them. The one module of the reader that needs torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import IterableDataset

from tokpipe.reader.sequences import TokenSequences
from tokpipe.reader.stream import ClipMix


class ClipDataset(IterableDataset[Any]):
    """A stream or mix of clips, or sequences of it, for ``DataLoader`` or ``StatefulDataLoader``.

    The latter, of ``torchdata``, keeps the state of every worker, so that a run goes on right after
    what it was given last. For another number of ranks or workers, give what the loaders of all
    ranks return as ``state_dict()`` to ``resume`` of the stream.
    """

    def __init__(self, stream: ClipMix | TokenSequences) -> None:
        self.stream = stream

    def __iter__(self) -> Iterator[Any]:
        return iter(self.stream)

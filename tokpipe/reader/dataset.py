"""Clip streams as PyTorch datasets. The only module of the reader that needs torch."""

from collections.abc import Iterator
from typing import Any

from torch.utils.data import IterableDataset

from tokpipe.reader.sequences import TokenSequences
from tokpipe.reader.stream import ClipMix


class ClipDataset(IterableDataset[Any]):
    """A stream or mix of clips, or its sequences, for ``DataLoader`` or ``StatefulDataLoader``.

    ``torchdata``'s ``StatefulDataLoader`` saves the state of every worker, so a run resumes right
    after the last item it received. To resume with another number of ranks or workers, pass the
    ``state_dict()`` of every rank's loader to the stream's ``resume``.
    """

    def __init__(self, stream: ClipMix | TokenSequences) -> None:
        self.stream = stream

    def __iter__(self) -> Iterator[Any]:
        return iter(self.stream)

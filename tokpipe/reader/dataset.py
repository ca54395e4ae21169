"""Clip streams as PyTorch datasets. The only module of the reader that needs torch."""

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from tokpipe.reader.ranks import callers
from tokpipe.reader.sequences import TokenSequences
from tokpipe.reader.stream import ClipMix


class ClipDataset(IterableDataset[Any]):
    """A stream or mix of clips, or its sequences, for ``DataLoader`` or ``StatefulDataLoader``.

    Each iteration of a loader is the next epoch, with any number of workers, persistent or not.

    ``torchdata``'s ``StatefulDataLoader`` saves the state of every worker, so a run resumes right
    after the last item it received. To resume with another number of ranks or workers, pass the
    ``state_dict()`` of every rank's loader to the stream's ``resume``.
    """

    def __init__(self, stream: ClipMix | TokenSequences) -> None:
        self.stream = stream

    def set_epoch(self, epoch: int) -> None:
        """Give the next iteration this epoch, as ``set_epoch`` of the stream does."""
        self.stream.set_epoch(epoch)

    def __len__(self) -> int:
        """Number of items that the next iteration yields on this rank; TypeError if unknown.

        A loader that asks gets a number that makes its number of batches right: every worker forms
        its own, and rounds up.
        """
        loader = next((one for one in callers("__len__") if isinstance(one, DataLoader)), None)
        items = self.stream.num_items(1 if loader is None else max(1, loader.num_workers))
        if loader is None or (size := loader.batch_size) is None:
            return sum(items)
        rest = 0 if loader.drop_last else size - 1
        return size * sum((number + rest) // size for number in items)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.stream)

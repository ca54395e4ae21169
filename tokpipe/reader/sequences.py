"""Sequences of equal length for transformers, from a stream of clips."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tokpipe.errors import ConfigError
from tokpipe.reader.stream import ClipIterator, ClipMix

FlattenOrder = Literal["thw", "twh", "htw", "hwt", "wth", "wht"]
"""Order of a clip's axes in a sequence, slowest first. ``thw`` goes frame by frame."""


class TokenSequences:
    """Concatenated clips, cut into sequences of ``length`` tokens.

    A separator precedes each clip. A clip that does not fit continues in the next sequence, and the
    last sequence of an epoch is padded. Each item is a dict of arrays:

    - ``tokens`` (length,) int64: codes, ``separator`` and ``padding``;
    - ``positions`` (length, 3) int32: t, h and w of each code in its clip; 0 for other tokens;
    - ``documents`` (length,) int32: the clip that a token or separator belongs to, counted from 0
      in each sequence; -1 for padding. ``document_mask`` turns it into an attention mask.

    Args:
        stream: a ``ClipStream`` or ``ClipMix`` with the default ``make``.
        length: tokens per sequence, at least 1.
        order: order of a clip's axes.
        drop_last: drop the last sequence of an epoch instead of padding it.
    """

    def __init__(
        self, stream: ClipMix, length: int, *, order: FlattenOrder = "thw", drop_last: bool = False
    ) -> None:
        if length < 1:
            raise ConfigError(f"length={length}: a sequence needs at least one token")
        self.stream, self.length, self.order, self.drop_last = stream, length, order, drop_last
        size = stream.tokenizer.codebook_size
        self.separator, self.padding = size, size + 1

    @property
    def vocab_size(self) -> int:
        """Tokens are 0 <= token < vocab_size: codes, separator and padding."""
        return self.padding + 1

    def set_epoch(self, epoch: int) -> None:
        """Give the next iteration this epoch, as ``set_epoch`` of the stream does."""
        self.stream.set_epoch(epoch)

    def num_items(self, num_workers: int) -> list[int]:
        raise TypeError("the number of sequences is unknown before they are read")

    def __iter__(self) -> "SequenceIterator":
        return SequenceIterator(self, iter(self.stream))


class SequenceIterator(Iterator[dict[str, Any]]):
    """The sequences that one reader gets of an epoch."""

    def __init__(self, sequences: TokenSequences, clips: ClipIterator) -> None:
        self._sequences = sequences
        self._clips = clips
        self._open: _Document | None = None  # The clip that continues in the next sequence
        self._used = 0  # Its tokens, or those of the next clip, that earlier sequences hold

    def __next__(self) -> dict[str, Any]:
        own = self._sequences
        tokens = np.full(own.length, own.padding, np.int64)
        positions = np.zeros((own.length, 3), np.int32)
        documents = np.full(own.length, -1, np.int32)
        filled = number = 0
        while filled < own.length:
            if self._open is None:
                if (sample := next(self._clips, None)) is None:
                    break
                self._open = _flattened(sample["codes"], own)
            its_tokens, its_positions = self._open
            size = len(its_tokens)
            count = min(own.length - filled, max(0, size - self._used))
            here, there = slice(filled, filled + count), slice(self._used, self._used + count)
            tokens[here], positions[here] = its_tokens[there], its_positions[there]
            documents[here] = number
            filled, number, self._used = filled + count, number + 1, self._used + count
            if self._used >= size:
                self._open, self._used = None, 0
        if not filled or (filled < own.length and own.drop_last):
            raise StopIteration
        return {"tokens": tokens, "positions": positions, "documents": documents}

    def state_dict(self) -> dict[str, Any]:
        """Return where the last sequence ended. An unfinished clip counts as not taken.

        Resuming with the same number of readers continues inside that clip; resuming with another
        number (``resume`` of the stream) starts it over.
        """
        state = self._clips.state_dict()
        taken = state["taken"] - (self._open is not None)
        return {"clips": {**state, "taken": taken}, "given": self._used}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of the same reader, with the same number of readers."""
        given, clips = state.get("given"), state.get("clips")
        if not isinstance(given, int) or given < 0 or not isinstance(clips, Mapping):
            raise ConfigError(f"the state is damaged: it has given={given!s:.99} or no clips")
        self._clips.load_state_dict(clips)
        self._used, self._open = given, None


_Document = tuple[NDArray[np.int64], NDArray[np.int32]]
"""The tokens of a clip, and their positions."""


def _flattened(codes: NDArray[np.int64], sequences: TokenSequences) -> _Document:
    axes = ["thw".index(axis) for axis in sequences.order]
    places = np.indices(codes.shape, np.int32).transpose(0, *(1 + axis for axis in axes))
    tokens = np.append(np.int64(sequences.separator), codes.transpose(axes).ravel())
    return tokens, np.concatenate([np.zeros((1, 3), np.int32), places.reshape(3, -1).T])


def document_mask(documents: NDArray[np.int32]) -> NDArray[np.bool_]:
    """(L,) -> (L, L): True where token ``i`` may attend to ``j``: not later, and of its clip."""
    same = documents[:, None] == documents[None, :]
    mask: NDArray[np.bool_] = np.tril(same) & (documents >= 0)[:, None]
    return mask

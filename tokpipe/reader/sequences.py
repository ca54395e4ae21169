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

    def __iter__(self) -> "SequenceIterator":
        return SequenceIterator(self, iter(self.stream))


class SequenceIterator(Iterator[dict[str, Any]]):
    """The sequences that one reader gets of an epoch."""

    def __init__(self, sequences: TokenSequences, clips: ClipIterator) -> None:
        self._sequences = sequences
        self._clips = clips
        self._skip = 0  # Tokens of the next clip that an earlier sequence already holds
        self._open: _Document | None = None  # The clip that continues in the next sequence

    def __next__(self) -> dict[str, Any]:
        own = self._sequences
        tokens = np.full(own.length, own.padding, np.int64)
        positions = np.zeros((own.length, 3), np.int32)
        documents = np.full(own.length, -1, np.int32)
        filled = number = 0
        while filled < own.length:
            document = self._open or self._next_document()
            if document is None:
                break
            count = min(own.length - filled, len(document.tokens) - document.used)
            here = slice(filled, filled + count)
            there = slice(document.used, document.used + count)
            tokens[here] = document.tokens[there]
            positions[here] = document.positions[there]
            documents[here] = number
            document.used += count
            self._open = document if document.used < len(document.tokens) else None
            filled += count
            number += 1
        if not filled or (filled < own.length and own.drop_last):
            raise StopIteration
        return {"tokens": tokens, "positions": positions, "documents": documents}

    def _next_document(self) -> "_Document | None":
        sample = next(self._clips, None)
        if sample is None:
            return None
        document = _Document(sample["codes"], self._sequences.order, self._sequences.separator)
        document.used, self._skip = min(self._skip, len(document.tokens)), 0
        return document

    def state_dict(self) -> dict[str, Any]:
        """Return where the last sequence ended. An unfinished clip counts as not taken.

        Resuming with the same number of readers continues inside that clip; resuming with another
        number (``resume`` of the stream) starts it over.
        """
        state = self._clips.state_dict()
        used = 0 if self._open is None else self._open.used
        return {"clips": {**state, "taken": state["taken"] - bool(used)}, "given": used}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of the same reader, with the same number of readers."""
        given, clips = state.get("given"), state.get("clips")
        if not isinstance(given, int) or given < 0 or not isinstance(clips, Mapping):
            raise ConfigError(f"the state is damaged: it has given={given!s:.99} or no clips")
        self._clips.load_state_dict(clips)
        self._skip, self._open = given, None


class _Document:
    """A clip as tokens with their positions."""

    def __init__(self, codes: NDArray[np.int64], order: FlattenOrder, separator: int) -> None:
        axes = ["thw".index(axis) for axis in order]
        places = np.indices(codes.shape, np.int32).transpose(0, *(1 + axis for axis in axes))
        self.tokens = np.append(np.int64(separator), codes.transpose(axes).ravel())
        self.positions = np.concatenate([np.zeros((1, 3), np.int32), places.reshape(3, -1).T])
        self.used = 0


def document_mask(documents: NDArray[np.int32]) -> NDArray[np.bool_]:
    """(L,) -> (L, L): True where token ``i`` may attend to ``j``: not later, and of its clip."""
    same = documents[:, None] == documents[None, :]
    mask: NDArray[np.bool_] = np.tril(same) & (documents >= 0)[:, None]
    return mask

"""Sequences of one length for transformers, out of a stream of clips."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tokpipe.errors import ConfigError
from tokpipe.reader.stream import ClipIterator, ClipMix

FlattenOrder = Literal["thw", "twh", "htw", "hwt", "wth", "wht"]
"""Axes of a clip's codes in a sequence, slowest first. ``thw`` goes frame by frame."""


class TokenSequences:
    """Clips one after the other, cut into sequences of ``length`` tokens.

    Before each clip stands a separator. A clip that does not fit goes on in the next sequence, and
    the last sequence of an epoch is filled up. Each item is a dict of arrays:

    - ``tokens`` (length,) int64: codes, ``separator`` and ``padding``;
    - ``positions`` (length, 3) int32: t, h and w of each code in its clip; 0 for other tokens;
    - ``documents`` (length,) int32: which clip of the sequence a token belongs to, counted from 0,
      its separator included; -1 for padding. ``document_mask`` makes an attention mask of it.

    Args:
        stream: of clips as they are (``ClipStream``, ``ClipMix``), without a ``make`` of its own.
        length: tokens of a sequence.
        order: how the axes of a clip follow each other.
        drop_last: leave the last sequence of an epoch out, rather than fill it up.

    Raises:
        ConfigError: a length of no tokens.
    """

    def __init__(
        self,
        stream: ClipMix,
        length: int,
        *,
        order: FlattenOrder = "thw",
        drop_last: bool = False,
    ) -> None:
        if length < 1:
            raise ConfigError(f"length={length}: a sequence has one token or more")
        self.stream, self.length, self.order, self.drop_last = stream, length, order, drop_last
        size = stream.tokenizer.codebook_size
        self.separator, self.padding = size, size + 1

    @property
    def vocab_size(self) -> int:
        """Tokens are 0 <= token < vocab_size: codes, the separator and the padding."""
        return self.padding + 1

    def __iter__(self) -> SequenceIterator:
        return SequenceIterator(self, iter(self.stream))


class SequenceIterator(Iterator[dict[str, Any]]):
    """What one reader gives of an epoch."""

    def __init__(self, sequences: TokenSequences, clips: ClipIterator) -> None:
        self._sequences = sequences
        self._clips = clips
        self._skip = 0
        """Tokens of the next clip that an earlier sequence has given."""
        self._open: _Document | None = None
        """The clip that is being given."""

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
            count = min(own.length - filled, len(document.tokens) - document.given)
            here = slice(filled, filled + count)
            there = slice(document.given, document.given + count)
            tokens[here] = document.tokens[there]
            positions[here] = document.positions[there]
            documents[here] = number
            document.given += count
            self._open = document if document.given < len(document.tokens) else None
            filled += count
            number += 1
        if not filled or (filled < own.length and own.drop_last):
            raise StopIteration
        return {"tokens": tokens, "positions": positions, "documents": documents}

    def _next_document(self) -> _Document | None:
        sample = next(self._clips, None)
        if sample is None:
            return None
        document = _Document(sample["codes"], self._sequences.order, self._sequences.separator)
        document.given, self._skip = self._skip, 0
        return document

    def state_dict(self) -> dict[str, Any]:
        """Where the last sequence ended. A clip in the middle counts as not taken.

        So a run with another number of readers (``resume`` of the stream) begins it anew, and one
        with as many goes on in it.
        """
        state = self._clips.state_dict()
        given = 0 if self._open is None else self._open.given
        return {"clips": {**state, "taken": state["taken"] - bool(given)}, "given": given}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a reader of the same number among as many stopped.

        Raises:
            ConfigError: it was another, or of another stream.
        """
        self._clips.load_state_dict(state["clips"])
        self._skip, self._open = state["given"], None


class _Document:
    """A clip as tokens with their places."""

    def __init__(self, codes: NDArray[np.int64], order: FlattenOrder, separator: int) -> None:
        axes = ["thw".index(axis) for axis in order]
        places = np.indices(codes.shape, np.int32).transpose(0, *(1 + axis for axis in axes))
        self.tokens = np.append(np.int64(separator), codes.transpose(axes).ravel())
        self.positions = np.concatenate([np.zeros((1, 3), np.int32), places.reshape(3, -1).T])
        self.given = 0


def document_mask(documents: NDArray[np.int32]) -> NDArray[np.bool_]:
    """(L,) -> (L, L): whether token ``i`` may attend to token ``j``: earlier, and of its clip."""
    same = documents[:, None] == documents[None, :]
    mask: NDArray[np.bool_] = np.tril(same) & (documents >= 0)[:, None]
    return mask

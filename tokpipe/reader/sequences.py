"""Sequences of equal length for transformers, from a stream of clips."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tokpipe.errors import ConfigError
from tokpipe.reader.compose import Document, Template, Vocabulary
from tokpipe.reader.stream import ClipIterator, ClipMix

FlattenOrder = Literal["thw", "twh", "htw", "hwt", "wth", "wht"]
"""Order of a clip's axes in a sequence, slowest first. ``thw`` goes frame by frame."""


class TokenSequences:
    """Concatenated clips, cut into sequences of ``length`` tokens.

    Without a template, a separator precedes each clip. A clip that does not fit continues in the
    next sequence, and the last sequence of an epoch is padded. Each item is a dict of arrays:

    - ``tokens`` (length,) int64: codes, ``separator`` and ``padding``;
    - ``positions`` (length, 3) int32: t, h and w of each code in its clip; 0 for other tokens;
    - ``documents`` (length,) int32: the clip that a token or separator belongs to, counted from 0
      in each sequence; -1 for padding. ``document_mask`` turns it into an attention mask.

    With a template, also ``loss`` (length,) bool, and ``index`` (length,) int32: the place of each
    token in its clip's document, which begins where it is 0; 0 for padding.

    Args:
        stream: a ``ClipStream`` or ``ClipMix`` with the default ``make``.
        length: tokens per sequence, at least 1.
        order: order of a clip's axes, without a template.
        drop_last: drop the last sequence of an epoch instead of padding it.
        template: how each clip becomes tokens. Its vocabulary needs ``pad``.
        cut: where a clip may continue in the next sequence: ``frames`` is between two frames. What
            does not fit begins the next sequence, and padding fills this one.
        long: what happens to a clip, or frame, that fits no sequence and must not be cut:
            ``error`` raises ConfigError, ``cut`` cuts it all the same.
    """

    def __init__(
        self,
        stream: ClipMix,
        length: int,
        *,
        order: FlattenOrder = "thw",
        drop_last: bool = False,
        template: Template | None = None,
        cut: Literal["anywhere", "frames", "never"] = "anywhere",
        long: Literal["error", "cut"] = "error",
    ) -> None:
        if length < 1:
            raise ConfigError(f"length={length}: a sequence needs at least one token")
        self.stream, self.length, self.order, self.drop_last = stream, length, order, drop_last
        size = stream.tokenizer.codebook_size
        self.has_template, self.cut, self.long = template is not None, cut, long
        if template is None:
            template = default_template(size, order)
        vocabulary = template.vocabulary
        if vocabulary.pad is None or (vocabulary.sizes != size).any():
            raise ConfigError(
                f"the template's vocabulary has codebooks of {vocabulary.sizes.tolist()} codes and "
                f"pad={vocabulary.pad}, but the clips have codes below {size}, and sequences need "
                "a pad token: set the size, and pad"
            )
        self.template = template
        self.padding = vocabulary.pad

    @property
    def separator(self) -> int:
        """The token before each clip, without a template."""
        return self.template.vocabulary.special["separator"]

    @property
    def vocab_size(self) -> int:
        """Tokens are 0 <= token < vocab_size."""
        return self.template.vocabulary.size

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
        self._open: Document | None = None  # The clip that continues in the next sequence
        self._used = 0  # Its tokens, or those of the next clip, that earlier sequences hold

    def __next__(self) -> dict[str, Any]:
        own = self._sequences
        tokens = np.full(own.length, own.padding, np.int64)
        positions = np.zeros((own.length, 3), np.int32)
        documents = np.full(own.length, -1, np.int32)
        loss, index = np.zeros(own.length, bool), np.zeros(own.length, np.int32)
        filled = number = 0
        ended = False
        while filled < own.length:
            if self._open is None:
                if (sample := next(self._clips, None)) is None:
                    ended = True
                    break
                self._open = own.template.compose(sample["codes"], sample)
            size = len(self._open.tokens)
            count = self._fitting(self._open, own.length - filled)
            if not count and self._used < size:
                break
            here, there = slice(filled, filled + count), slice(self._used, self._used + count)
            tokens[here], positions[here] = self._open.tokens[there], self._open.positions[there]
            loss[here], index[here] = self._open.loss[there], np.arange(there.start, there.stop)
            documents[here] = number
            filled, number, self._used = filled + count, number + 1, self._used + count
            if self._used >= size:
                self._open, self._used = None, 0
        if not filled or (ended and own.drop_last):
            raise StopIteration
        item = {"tokens": tokens, "positions": positions, "documents": documents}
        return {**item, "loss": loss, "index": index} if own.has_template else item

    def _fitting(self, document: Document, room: int) -> int:
        """Return how many of the next tokens of a document go into what is left of a sequence."""
        own, left = self._sequences, max(0, len(document.tokens) - self._used)
        if own.cut == "anywhere" or left <= room:
            return min(room, left)
        if own.cut == "frames":
            ends = document.cuts[document.cuts > self._used] - self._used
            if (fitting := ends[ends <= room]).size:
                return int(fitting[-1])
        if room < own.length:
            return 0
        if own.long == "error":
            raise ConfigError(
                f"a clip has {left} tokens without a place where cut={own.cut!r} allows to cut, "
                f"but sequences have {own.length}. Use a larger length, or long='cut'"
            )
        return room

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


def default_template(codebook_size: int, order: FlattenOrder = "thw") -> Template:
    """Return what takes the place of a template: a separator, then the codes as tokens."""
    special = {"separator": codebook_size, "padding": codebook_size + 1}
    codes = [{"size": codebook_size, "offset": 0}]
    vocabulary = Vocabulary(codes, special=special, pad="padding")
    return Template(f"{{separator}}{{codes:{order}}}", vocabulary, finds_shape=False)


def document_mask(documents: NDArray[np.int32]) -> NDArray[np.bool_]:
    """(L,) -> (L, L): True where token ``i`` may attend to ``j``: not later, and of its clip."""
    same = documents[:, None] == documents[None, :]
    mask: NDArray[np.bool_] = np.tril(same) & (documents >= 0)[:, None]
    return mask

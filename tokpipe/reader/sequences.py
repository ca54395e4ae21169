"""Sequences of equal length for transformers, from a stream of clips."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from tokpipe.errors import ConfigError
from tokpipe.formats.checks import explained
from tokpipe.formats.shard import TokenizerSpec
from tokpipe.reader.compose import Document, Template, Vocabulary
from tokpipe.reader.compose.vocabulary import MAX_TOKENS
from tokpipe.reader.order import Even, Share
from tokpipe.reader.stream import ClipIterator, ClipMix
from tokpipe.types import Count

FlattenOrder = Literal["thw", "twh", "htw", "hwt", "wth", "wht"]
"""Order of a clip's axes in a sequence, slowest first. ``thw`` goes frame by frame."""


class _State(BaseModel, strict=True):
    clips: dict[str, Any]
    given: Count
    yielded: Count
    taken: Count
    repeats: bool


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

    Clips differ in length, so readers have different numbers of sequences, unknown in advance. With
    ``num_sequences`` or ``even``, every reader yields exactly as many in each epoch. If its clips
    give more, the rest of them is left out; if fewer, it reads them again from its first one. No
    two readers read the same clip, as long as there is one for each.

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
        num_sequences: sequences of each reader (worker of a rank) in an epoch, at least 1.
        even: without a template, sets this to the tokens of the epoch's clips, by their mean,
            divided by ``length`` and the number of readers: ``drop`` rounds down, ``repeat`` up.
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
        num_sequences: int | None = None,
        even: Even | None = None,
    ) -> None:
        if length < 1 or (num_sequences is not None and num_sequences < 1):
            raise ConfigError(f"length={length}, num_sequences={num_sequences}: at least 1 each")
        follow = any(cache.output.follow for cache in stream.caches)
        if even and (template or num_sequences or stream.locality or follow):
            found = "does not go with num_sequences, a template, locality or a job that still runs"
            raise ConfigError(f"even={even!r} {found}: pass num_sequences alone")
        self.stream, self.length, self.order, self.drop_last = stream, length, order, drop_last
        self.cut, self.long, self.num_sequences, self.even = cut, long, num_sequences, even
        self.has_template = template is not None
        sizes = stream.tokenizer.sizes
        self.template = template or default_template(stream.tokenizer, order)
        vocabulary = self.template.vocabulary
        if vocabulary.pad is None or tuple(vocabulary.sizes) != sizes:
            found = f"codebooks of {vocabulary.sizes.tolist()} codes and pad={vocabulary.pad}"
            raise ConfigError(f"the vocabulary has {found}: clips need pad and sizes {[*sizes]}")
        self.padding = vocabulary.pad
        names = ("length", "cut", "long", "drop_last", "num_sequences", "even")
        self.settings = {name: getattr(self, name) for name in names}
        self.settings["template"] = self.template.digest

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
        """Return how many sequences each worker of this rank yields in the next iteration.

        TypeError if there is neither ``num_sequences`` nor ``even``.
        """
        share, *_ = self.stream.shares(num_workers)
        if (number := self.num_of(share)) is None:
            raise TypeError("the number of sequences is unknown: pass num_sequences or even")
        return [number] * num_workers

    def num_of(self, share: Share) -> int | None:
        """Return how many sequences a reader yields of what is left of an epoch."""
        if self.even is None:
            return self.num_sequences
        clips = zip(self.stream.sources, share.left.sizes, strict=True)
        num_tokens = sum(source.num_tokens(number) for source, number in clips)
        places = self.length * share.num_readers
        return max(1, num_tokens // places if self.even == "drop" else -(-num_tokens // places))

    def __len__(self) -> int:
        """Number of sequences that the next iteration yields on this rank, without workers."""
        return sum(self.num_items(1))

    def __iter__(self) -> "SequenceIterator":
        return SequenceIterator(self, iter(self.stream))


class SequenceIterator(Iterator[dict[str, Any]]):
    """The sequences that one reader gets of an epoch."""

    def __init__(self, sequences: TokenSequences, clips: ClipIterator) -> None:
        self._sequences = sequences
        self._clips = clips
        self._open: Document | None = None  # The clip that continues in the next sequence
        self._used = 0  # Its tokens, or those of the next clip, that earlier sequences hold
        self._yielded = 0  # Sequences of this epoch
        self._repeats = False  # Whether the clips are being read again

    def __next__(self) -> dict[str, Any]:
        own = self._sequences
        if self._yielded == self._num_sequences:
            raise StopIteration
        tokens = np.full(own.length, own.padding, np.int64)
        positions = np.zeros((own.length, 3), np.int32)
        documents = np.full(own.length, -1, np.int32)
        loss, index = np.zeros(own.length, bool), np.zeros(own.length, np.int32)
        filled = number = 0
        while filled < own.length:
            if self._open is None:
                if (sample := self._next_clip()) is None:
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
        if not filled or (own.drop_last and filled < own.length and self._open is None):
            raise StopIteration
        self._yielded += 1
        item = {"tokens": tokens, "positions": positions, "documents": documents}
        return {**item, "loss": loss, "index": index} if own.has_template else item

    @property
    def _num_sequences(self) -> int | None:
        return self._sequences.num_of(self._clips.share)

    def _next_clip(self) -> Any:
        sample = next(self._clips, None)
        if sample is None and self._num_sequences is not None:
            self._repeats = True
            self._clips.rewind()
            sample = next(self._clips, None)  # none if the epoch has no clips at all
        return sample

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
            found = f"a clip has {left} tokens without a place where cut={own.cut!r} allows to cut"
            raise ConfigError(f"{found}, but length is {own.length}: raise it, or use long='cut'")
        return room

    def state_dict(self) -> dict[str, Any]:
        """Return where the last sequence ended. An unfinished clip counts as not taken.

        Resuming with the same number of readers continues inside that clip; resuming with another
        number (``resume`` of the stream) starts it over.
        """
        clips, own = self._clips.state_dict(), self._sequences
        taken = clips["taken"] - (self._open is not None)
        ended = self._repeats or self._yielded == self._num_sequences
        clips |= {"taken": self._clips.num_clips if ended else taken}
        state = {"clips": clips, "given": self._used, "yielded": self._yielded, "taken": taken}
        return {**state, "repeats": self._repeats, **own.settings}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of the same reader, with the same number of readers.

        ConfigError if it is another reader's state, or one of other sequences.
        """
        for key, value in self._sequences.settings.items():
            if state.get(key) != value:
                other = f"the state has {key}={state.get(key)!s:.99}"
                raise ConfigError(f"{other}, but these sequences have {key}={value}")
        try:
            found = _State.model_validate({key: state.get(key) for key in _State.model_fields})
        except ValueError as error:
            raise ConfigError(f"the state is damaged: {explained(error)}") from error
        self._clips.load_state_dict(found.clips)
        if found.repeats:
            self._clips.rewind(found.taken)
        self._used, self._yielded, self._repeats = found.given, found.yielded, found.repeats
        self._open = None


def default_template(codes: TokenizerSpec, order: FlattenOrder = "thw") -> Template:
    """Return the template of sequences without one: a separator, then the codes, which are their
    own tokens. Those of a second codebook come after those of the first.

    ConfigError if a model cannot have as many tokens as there are codes.
    """
    sizes, repeat = codes.sizes, 1
    if codes.shared_codebook:
        sizes, repeat = sizes[:1], len(sizes)
    if (total := sum(sizes)) > MAX_TOKENS - 2:
        found = f"each code is a token, which makes {total:,}, and at most {MAX_TOKENS - 2:,} fit"
        raise ConfigError(f"{found}. Read codes from the stream, and split each into several")
    special = {"separator": total, "padding": total + 1}
    books = [
        {"size": size, "offset": sum(sizes[:i]), "repeat": repeat} for i, size in enumerate(sizes)
    ]
    vocabulary = Vocabulary(books, special=special, pad="padding")
    return Template(f"{{separator}}{{codes:{order}}}", vocabulary, finds_shape=False)


def document_mask(documents: NDArray[np.int32]) -> NDArray[np.bool_]:
    """(L,) -> (L, L): True where token ``i`` may attend to ``j``: not later, and of its clip."""
    same = documents[:, None] == documents[None, :]
    mask: NDArray[np.bool_] = np.tril(same) & (documents >= 0)[:, None]
    return mask

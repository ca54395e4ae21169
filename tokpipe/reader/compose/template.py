"""How a clip, text and metadata become one sequence of tokens, and come back."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokpipe.config.base import Frozen
from tokpipe.config.explain import validate_settings
from tokpipe.config.strict_yaml import read_mapping
from tokpipe.errors import ConfigError
from tokpipe.reader.compose.checks import check_codes, check_text
from tokpipe.reader.compose.grammar import SHAPE, Special, Text, Value, expanded, parsed, text_of
from tokpipe.reader.compose.presets import PRESETS
from tokpipe.reader.compose.vocabulary import Vocabulary, VocabularyConfig

Shape = tuple[int, int, int]
Run = tuple[Text | Value, ...]
_PATTERNS = {"text": "(.*)", "int": "([0-9]{1,18})", "float": "([-+.e0-9]{1,30})"}
_READ = {"text": str, "int": int, "float": float}


@dataclass(frozen=True, slots=True)
class Document:
    """One clip as a sequence of tokens."""

    tokens: NDArray[np.int64]
    """(n,) tokens."""
    loss: NDArray[np.bool_]
    """(n,) whether a model should learn to predict each token."""
    positions: NDArray[np.int32]
    """(n, 3) t, h and w of each code in its clip; 0 for other tokens."""
    cuts: NDArray[np.int64]
    """Places between two frames, as numbers of tokens before them."""


@dataclass(frozen=True, slots=True)
class Parsed:
    """What ``Template.parse`` finds in a sequence."""

    codes: NDArray[np.int64]
    """(t, h, w), or (t, h, w, c) for several codebooks."""
    values: dict[str, Any]
    """The fields of the template. In a loop over frames, a list with one value for each."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """A template for clips of one shape. Its text is yet missing."""

    index: NDArray[np.int64]  # Number of each code; special tokens come after the codes
    loss: NDArray[np.bool_]
    positions: NDArray[np.int32]
    events: list[tuple[int, Run | None]]  # Place in ``index`` of text, or of a cut


class TemplateConfig(Frozen):
    """A template file."""

    template: str
    """The layout of a clip's sequence."""
    vocabulary: VocabularyConfig
    """The tokens."""
    loss: tuple[str, ...] | None = None
    """What a model should learn to predict. Default: everything."""


class Template:
    """Composes clips with text and special tokens, and parses them back exactly.

    ``{name}`` is a special token of the vocabulary, or else a field: a value of the clip, as text
    (``{name:int}`` and ``{name:float}`` for numbers). ``{t}``, ``{h}`` and ``{w}`` are the sides of
    the codes. Codes are ``{codes}``, or ``{frames:...}`` with ``{frame}``, or within it
    ``{rows:...}`` with ``{row}``. ``{rows({eol}):...}`` puts a separator between rows.
    ``{codes:htw}`` orders the axes, slowest first; ``{codes.0}`` is one of several codebooks, which
    otherwise alternate. Fields in a loop over frames have one value for each. Other characters are
    literal text; a backslash precedes literal braces.

    Text between two special tokens is encoded as a whole.

    Args:
        template: the layout, such as ``{bos}{caption}{bov}{frames:{rows:{row}{eol}}{eof}}{eov}``.
        vocabulary: its tokens.
        loss: what a model should learn to predict: ``codes``, ``literals``, and names of special
            tokens and fields. By default, everything.
        finds_shape: False also allows layouts that do not tell the shape of a clip, such as
            ``{bos}{codes}``. ``parse`` then needs it.

    Raises:
        ConfigError: the template is wrong, or two clips would give the same sequence.
    """

    def __init__(
        self,
        template: str,
        vocabulary: Vocabulary,
        *,
        loss: Iterable[str] | None = None,
        finds_shape: bool = True,
    ) -> None:
        self.template, self.vocabulary = template, vocabulary
        self._nodes = parsed(template, vocabulary.special)
        self._names = list(vocabulary.special)
        self._loss = None if loss is None else frozenset(loss)
        self._layout = lru_cache(8)(self._make_layout)
        check_text(template, self._nodes, vocabulary.text is not None)
        check_codes(template, self._nodes, len(vocabulary.sizes))
        if finds_shape and not self._tells_shape():
            raise ConfigError(
                f"template {template!r}: the shape of a clip cannot be found in its sequence. End "
                "rows and frames with special tokens, or put {t}, {h} and {w} before the codes"
            )

    @classmethod
    def load(cls, path: str | Path) -> "Template":
        """Read a YAML or JSON file with ``template``, ``vocabulary`` and ``loss``, or with
        ``preset`` and what it lacks. Relative paths start at the file's folder."""
        path = Path(path)
        try:
            data = read_mapping(path.read_text(encoding="utf-8"), str(path), "template file")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: cannot be read as a template file: {error}") from error
        if (preset := data.pop("preset", None)) is not None:
            if preset not in PRESETS:
                raise ConfigError(f"{path}: preset: found {preset!r}; write one of {[*PRESETS]}")
            vocabulary = {**PRESETS[preset]["vocabulary"], **(data.get("vocabulary") or {})}
            data = {**PRESETS[preset], **data, "vocabulary": vocabulary}
        context = {"root": path.parent}
        config = validate_settings(TemplateConfig, data, name=str(path), context=context)
        return cls(config.template, Vocabulary(**config.vocabulary.model_dump()), loss=config.loss)

    def compose(self, codes: NDArray[Any], values: Mapping[str, Any] | None = None) -> Document:
        """Return a clip as one sequence.

        Args:
            codes: (t, h, w), or (t, h, w, c) for several codebooks.
            values: the fields of the template; others are ignored.

        Raises:
            ConfigError: the codes are not of this vocabulary, or a field is missing.
        """
        books = self.vocabulary.sizes
        grid = codes[..., None] if codes.ndim == 3 else codes
        if grid.ndim != 4 or not codes.size or grid.shape[-1] != len(books):
            raise ConfigError(
                f"codes of shape {codes.shape}: the vocabulary has {len(books)} codebooks, so "
                "(t, h, w) or (t, h, w, c) would be right"
            )
        if (grid < 0).any() or (grid >= books).any():
            raise ConfigError(f"codes up to {codes.max()} do not fit codebooks of {books} codes")
        shape: Shape = grid.shape[:3]
        sides = dict(zip(SHAPE, shape, strict=True))
        layout, values = self._layout(shape), {**(values or {}), **sides}
        flat = (grid + self.vocabulary.offsets).ravel()
        fixed = np.append(flat, [*self.vocabulary.special.values()])[layout.index]
        tokens, loss, positions, cuts = [], [], [], []
        begin = length = 0
        for place, run in [*layout.events, (len(fixed), None)]:
            tokens.append(fixed[begin:place])
            loss.append(layout.loss[begin:place])
            positions.append(layout.positions[begin:place])
            length, begin = length + place - begin, place
            if run is None:
                cuts.append(length)
                continue
            text, counts = self._encode(run, values)
            tokens.append(text)
            loss.append(counts)
            positions.append(np.zeros((len(text), 3), np.int32))
            length += len(text)
        join = np.concatenate
        return Document(join(tokens), join(loss), join(positions), np.array(cuts[:-1], np.int64))

    def parse(self, tokens: Sequence[int] | NDArray[Any], shape: Shape | None = None) -> Parsed:
        """Return the clip and the fields from which ``compose`` makes these tokens.

        Raises:
            ConfigError: no clip gives them, or their shape cannot be found.
        """
        tokens = np.asarray(tokens, np.int64)
        if tokens.ndim != 1:
            raise ConfigError(f"tokens of shape {tokens.shape}: parse takes one sequence")
        book = _books(self.vocabulary, tokens)
        number = int((book >= 0).sum())
        shape = shape or self._shape_of(tokens, number // len(self.vocabulary.sizes))
        if np.prod([*shape, len(self.vocabulary.sizes)], dtype=object) != number or min(shape) < 1:
            raise _no_clip(f"{number} codes are not a clip of shape {shape}")
        layout = self._layout(shape)
        flat = np.empty(number, np.int64)
        values, at = self._walk(layout, tokens, shape, len(layout.index), flat)
        if at != len(tokens):
            raise _no_clip(f"{len(tokens) - at} tokens follow its end")
        for side, name in zip(shape, SHAPE, strict=True):
            if values.pop(name, side) != side:
                raise _no_clip(f"it has {name}={side}, but its text has another")
        grid = flat.reshape(*shape, -1) - self.vocabulary.offsets
        if (grid < 0).any() or (grid >= self.vocabulary.sizes).any():
            raise _no_clip("a code is of another codebook")
        return Parsed(grid[..., 0] if grid.shape[-1] == 1 else grid, values)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_layout"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _layout=lru_cache(8)(self._make_layout))

    def _walk(
        self,
        layout: _Layout,
        tokens: NDArray[np.int64],
        shape: Shape,
        until: int,
        flat: NDArray[np.int64] | None = None,
    ) -> tuple[dict[str, Any], int]:
        """Compare tokens with a layout up to a place of its ``index``, and fill ``flat`` in.

        Return the values of its fields, and the number of tokens.
        """
        special = np.array([*self.vocabulary.special.values()], np.int64)
        num_codes = int(np.prod(shape)) * len(self.vocabulary.sizes)
        values: dict[str, Any] = {}
        begin = at = 0
        events = [event for event in layout.events if event[0] <= until]
        for place, run in [*events, (until, None)]:
            wanted, found = layout.index[begin:place], tokens[at : at + place - begin]
            is_code = wanted < num_codes
            if (
                len(found) < len(wanted)
                or (found[~is_code] != special[wanted[~is_code] - num_codes]).any()
            ):
                raise _no_clip(f"tokens {at} to {at + len(wanted)} are not those of its layout")
            if flat is not None:
                flat[wanted[is_code]] = found[is_code]
            begin, at = place, at + len(wanted)
            if run is not None:
                at = self._read(run, tokens, at, shape, values)
        return values, at

    def _read(
        self, run: Run, tokens: NDArray[np.int64], at: int, shape: Shape, values: dict[str, Any]
    ) -> int:
        """Read the fields of a run of text into ``values``. Return where it ends."""
        text = self.vocabulary.text
        assert text is not None
        rest = tokens[at:]
        inside = (rest >= 0) & (rest < len(text.is_text))
        inside[inside] = text.is_text[rest[inside]]
        end = at + (len(rest) if inside.all() else int(inside.argmin()))
        found = text.decode(tokens[at:end].tolist())
        pattern = "".join(
            re.escape(one.text) if isinstance(one, Text) else _PATTERNS[one.kind] for one in run
        )
        if not (match := re.fullmatch(pattern, found, re.DOTALL)):
            raise _no_clip(f"its text {found!r:.99} is not that of the template")
        fields = [one for one in run if isinstance(one, Value)]
        for field, written in zip(fields, match.groups(), strict=True):
            try:
                value = _READ[field.kind](written)
            except ValueError as error:
                raise _no_clip(f"{field.name} is {written!r}") from error
            if field.frame is not None:
                values.setdefault(field.name, [None] * shape[0])[field.frame] = value
            elif values.setdefault(field.name, value) != value:
                raise _no_clip(f"{field.name} has two values")
        again = "".join(text_of(one, values, shape[0]) for one in run)
        if text.encode(again)[0].tolist() != tokens[at:end].tolist():
            raise _no_clip(f"its text {found!r:.99} is not encoded as the tokenizer does")
        return end

    def _encode(
        self, run: Run, values: Mapping[str, Any]
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return the tokens of a run of text, and whether each counts in the loss."""
        text = self.vocabulary.text
        assert text is not None
        parts = [text_of(one, values, values["t"]) for one in run]
        tokens, spans = text.encode("".join(parts))
        counted = [self._counts("literals" if isinstance(one, Text) else one.name) for one in run]
        marks = np.repeat(counted, [len(part) for part in parts])
        loss = [bool(marks[first : max(end, first + 1)].any()) for first, end in spans]
        return tokens, np.array(loss, bool)

    def _counts(self, name: str) -> bool:
        return self._loss is None or name in self._loss

    def _make_layout(self, shape: Shape) -> _Layout:
        grid = (*shape, len(self.vocabulary.sizes))
        numbers = np.arange(np.prod(grid, dtype=np.int64)).reshape(grid)
        parts: list[NDArray[np.int64]] = []
        counted: list[NDArray[np.bool_]] = []
        events: list[tuple[int, Run | None]] = []
        length = 0
        items = list(expanded(self._nodes, numbers))
        for is_text, group in groupby(items, lambda item: isinstance(item, Text | Value)):
            if is_text:
                events.append(
                    (length, tuple(one for one in group if isinstance(one, Text | Value)))
                )
                continue
            for item in group:
                if item is None:
                    events.append((length, None))
                    continue
                part, name = np.empty(0, np.int64), "codes"
                if isinstance(item, Special):
                    part, name = np.array([numbers.size + self._names.index(item.name)]), item.name
                elif isinstance(item, np.ndarray):
                    part = item
                parts.append(part)
                counted.append(np.full(len(part), self._counts(name)))
                length += len(part)
        index = np.concatenate(parts)
        positions = np.zeros((length, 3), np.int32)
        is_code = index < numbers.size
        positions[is_code] = np.stack(np.unravel_index(index[is_code], grid)[:3], axis=-1)
        return _Layout(index, np.concatenate(counted), positions, events)

    def _rows(self) -> list[tuple[int, int, int, int]]:
        """Return (token, a, b, c): a special token occurs a + b t + c t h times."""

        def count(t: int, h: int) -> NDArray[np.int64]:
            index = self._layout((t, h, 1)).index - t * h * len(self.vocabulary.sizes)
            return np.bincount(index[index >= 0], minlength=len(self._names))

        one, frames, rows = count(1, 1), count(2, 1), count(1, 2)
        c = rows - one
        b = frames - one - c
        return [
            (token, int(x), int(y), int(z))
            for token, x, y, z in zip(
                self.vocabulary.special.values(), one - b - c, b, c, strict=True
            )
            if y or z
        ]

    def _prefix(self) -> tuple[_Layout, int]:
        """Return the layout of the smallest clip, and the place of its first code."""
        layout = self._layout((1, 1, 1))
        is_code = layout.index < len(self.vocabulary.sizes)
        return layout, int(is_code.argmax())

    def _tells_shape(self) -> bool:
        layout, first = self._prefix()
        runs = [run or () for place, run in layout.events if place <= first]
        known = {one.name for run in runs for one in run if isinstance(one, Value)} & {*SHAPE}
        counts = [(b, c, 0) for _, _, b, c in self._rows()]
        sides = range(1, 2 + max((abs(b) for b, _, _ in counts), default=0))
        return all(
            _solved([*counts, *_equations(dict.fromkeys(known, side), side)]) is not None
            for side in sides
        )

    def _shape_of(self, tokens: NDArray[np.int64], num_places: int) -> Shape:
        """Find a shape from how often special tokens occur, and from fields before the codes."""
        layout, first = self._prefix()
        values, _ = self._walk(layout, tokens, (1, 1, 1), first)
        known = {name: values[name] for name in SHAPE if name in values}
        counts = [(b, c, int((tokens == token).sum()) - a) for token, a, b, c in self._rows()]
        found = _solved([*counts, *_equations(known, num_places)])
        if found is None or min(found) < 1:
            raise _no_clip("the shape of the clip cannot be found: pass shape=(t, h, w)")
        t, rows = found
        return t, rows // t, num_places // rows


def _equations(known: Mapping[str, int], num_places: int) -> Iterator[tuple[int, int, int]]:
    """Yield (a, b, c) with a t + b t h = c, for each side that is known."""
    for name, side in known.items():
        yield {"t": (1, 0, side), "h": (side, -1, 0), "w": (0, side, num_places)}[name]


def _solved(equations: Sequence[tuple[int, int, int]]) -> tuple[int, int] | None:
    """Return t and t h; None if the equations do not determine them."""
    for (a, b, p), (c, d, q) in combinations(equations, 2):
        if det := a * d - b * c:
            return (p * d - b * q) // det, (a * q - p * c) // det
    return None


def _books(vocabulary: Vocabulary, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return (n,) the codebook of each token; -1 for others."""
    book = np.full(len(tokens), -1)
    spans = zip(vocabulary.offsets, vocabulary.sizes, strict=True)
    for number, (offset, size) in enumerate(spans):
        book[(tokens >= offset) & (tokens < offset + size)] = number
    return book


def _no_clip(problem: str) -> ConfigError:
    return ConfigError(f"no clip gives this sequence by the template: {problem}")

"""How a clip, text and metadata become one sequence of tokens, and come back."""

import hashlib
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby, product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokpipe.config.base import Frozen
from tokpipe.config.explain import validate_settings
from tokpipe.config.strict_yaml import read_mapping
from tokpipe.errors import ConfigError
from tokpipe.reader.compose.grammar import KINDS, SHAPE, Part, expanded, parsed, text_of, wrong
from tokpipe.reader.compose.vocabulary import TEXT, Vocabulary, VocabularyConfig

_PUBLISHED = tomllib.loads(Path(__file__).with_name("presets.toml").read_text(encoding="utf-8"))
PRESETS: dict[str, str] = _PUBLISHED["templates"]

Shape = tuple[int, ...]  # (t, h, w)
Run = tuple[Part, ...]  # Literal text and fields that follow each other
_TEXT, _NUMBER = _FIELD = "\ud800\ud801"  # Stand for fields: no text has these characters


@dataclass(frozen=True, slots=True)
class Document:
    """One clip as a sequence of tokens."""

    tokens: NDArray[np.int64]  # (n,)
    loss: NDArray[np.bool_]  # (n,) whether a model should learn to predict each token
    positions: NDArray[np.int32]  # (n, 3) t, h and w of each code in its clip; 0 for other tokens
    cuts: NDArray[np.int64]  # Places between two frames, as numbers of tokens before them


@dataclass(frozen=True, slots=True)
class Parsed:
    """What ``Template.parse`` finds in a sequence."""

    codes: NDArray[np.int64]  # (t, h, w), or (t, h, w, c) for several codebooks
    values: dict[str, Any]  # The fields; in a loop over frames, a list with one value for each


class TemplateConfig(Frozen):
    """A template file: the arguments of ``Template``."""

    template: str
    vocabulary: VocabularyConfig
    loss: tuple[str, ...] | None = None


class Template:
    """Composes clips with text and special tokens, and parses them back exactly.

    ``{name}`` is a special token of the vocabulary, or else a field: a value of the clip, as text
    (``{name:int}`` and ``{name:float}`` for numbers). ``{t}``, ``{h}`` and ``{w}`` are the sides of
    the codes. Codes are ``{codes}``, or ``{frames:...}`` with ``{frame}``, or within it
    ``{rows:...}`` with ``{row}``. ``{rows(eol):...}`` puts a special token between rows.
    ``{codes:htw}`` orders the axes, slowest first; ``{codes.0}`` is one of several codebooks, which
    otherwise alternate. Fields in a loop over frames have one value for each. Other characters are
    literal text, where ``{{`` and ``}}`` stand for braces.

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
        self.parts = parsed(template, [*vocabulary.special])
        self._loss = None if loss is None else frozenset(loss)
        self._special = np.array([*vocabulary.special.values()][::-1], np.int64)
        for shape in product(range(1, 5), repeat=3) if finds_shape else [(2, 2, 2)]:
            layout, codes = _layout_of(self, shape), np.zeros((*shape, len(vocabulary.sizes)), int)
            runs = (piece for piece in layout.pieces if isinstance(piece, tuple))
            fields = [part for run in runs for part in run if part.kind in KINDS]
            values = {p.name: KINDS[p.kind][0]() for p in fields}
            values |= {p.name: [values[p.name]] * shape[0] for p in fields if p.frame is not None}
            tokens = self.compose(codes, values).tokens
            if finds_shape and self._shape_of(tokens) != shape:
                problem = "the shape of a clip cannot be found in its sequence. End rows and"
                do = "frames with special tokens, or put {t}, {h} and {w} before the codes"
                raise wrong(template, f"{problem} {do}")

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
            vocabulary = {**_PUBLISHED["vocabulary"], **(data.get("vocabulary") or {})}
            data = {"template": PRESETS[preset], **data, "vocabulary": vocabulary}
        context = {"root": path.parent}
        config = validate_settings(TemplateConfig, data, name=str(path), context=context)
        return cls(config.template, Vocabulary(**config.vocabulary.model_dump()), loss=config.loss)

    @property
    def digest(self) -> str:
        """SHA-256 of everything that determines the tokens and the loss."""
        words, loss = self.vocabulary, None if self._loss is None else sorted(self._loss)
        tokens = sorted(words.special.items()), words.pad, words.sizes.tolist()
        where = words.offsets.tolist(), words.text and words.text.digest
        return hashlib.sha256(repr((self.template, loss, tokens, where)).encode()).hexdigest()

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
        has_shape = grid.ndim == 4 and codes.size and grid.shape[-1] == len(books)
        if not has_shape or (grid < 0).any() or (grid >= books).any():
            found = f"codes of shape {codes.shape} up to {codes.max(initial=0)}"
            needs = f"(t, h, w) or (t, h, w, c), for codebooks of {books.tolist()} codes"
            raise ConfigError(f"{found}: the vocabulary needs {needs}")
        layout = _layout_of(self, grid.shape[:3])
        values = {**(values or {}), **dict(zip(SHAPE, grid.shape[:3], strict=True))}
        flat = (grid + self.vocabulary.offsets).ravel()
        fixed = np.concatenate([flat, self._special])[layout.index]
        parts, cuts, length = [], [], 0
        for piece in layout.pieces:
            if piece is None:
                cuts.append(length)
                continue
            if isinstance(piece, slice):
                parts.append((fixed[piece], layout.loss[piece], layout.positions[piece]))
            else:
                parts.append(self._encode(piece, values))
            length += len(parts[-1][0])
        tokens, loss, positions = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return Document(tokens, loss, positions, np.array(cuts, np.int64))

    def parse(self, tokens: Sequence[int] | NDArray[Any], shape: Shape | None = None) -> Parsed:
        """Return the clip and the fields from which ``compose`` makes these tokens.

        Raises:
            ConfigError: no clip gives them, or their shape cannot be found.
        """
        tokens, books = np.asarray(tokens, np.int64), len(self.vocabulary.sizes)
        try:
            if tokens.ndim != 1 or ((tokens < 0) | (tokens >= self.vocabulary.size)).any():
                raise ValueError(f"it needs (n,) tokens below {self.vocabulary.size}")
            if (shape := shape or self._shape_of(tokens)) is None:
                raise ValueError("the shape of its clip cannot be found: pass shape=(t, h, w)")
            layout = _layout_of(self, shape)
            values = self._values_in(layout, tokens)
            order = layout.index[layout.index >= 0]
            found = tokens[self.vocabulary.uses[tokens] >= len(self.vocabulary.special)]
            if len(found) != len(order):
                raise ValueError(f"it has {len(found)} codes, and the clip {len(order)}")
            flat = np.empty_like(found)
            flat[order] = found
            codes = flat.reshape(*shape, books) - self.vocabulary.offsets
            again = self.compose(codes, values).tokens
            if not np.array_equal(again, tokens):
                raise ValueError("what it seems to hold gives another sequence")
        except (ConfigError, ValueError) as error:
            raise ConfigError(f"no clip gives this sequence by the template: {error}") from error
        fields = {name: value for name, value in values.items() if name not in SHAPE}
        return Parsed(codes[..., 0] if books == 1 else codes, fields)

    def _encode(
        self, run: Run, values: dict[str, Any]
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.int32]]:
        """Return the tokens of a run of text, whether each counts in the loss, and positions."""
        assert self.vocabulary.text is not None
        texts = [text_of(part, values) for part in run]
        tokens, spans = self.vocabulary.text.encode("".join(texts))
        names = ("literals" if part.kind == "literal" else part.name for part in run)
        marks = np.repeat([self.counts(name) for name in names], [len(text) for text in texts])
        loss = [bool(marks[first : max(end, first + 1)].any()) for first, end in spans]
        return tokens, np.array(loss, bool), np.zeros((len(tokens), 3), np.int32)

    def code_at(self, codes: NDArray[Any], values: Mapping[str, Any], token: int) -> int | None:
        """Return which code of a clip, flattened, a token of its sequence is; None if it is none.

        Takes the arguments of ``compose``, and raises what that does.
        """
        tokens = self.compose(codes, values).tokens
        is_code = self.vocabulary.uses[tokens] >= len(self.vocabulary.special)
        numbers = _layout_of(self, codes.shape[:3]).index
        return int(numbers[numbers >= 0][is_code[:token].sum()]) if is_code[token] else None

    def counts(self, name: str) -> bool:
        """Return whether a model should learn to predict these tokens."""
        return self._loss is None or name in self._loss

    def _shape_of(self, tokens: NDArray[np.int64]) -> Shape | None:
        """Find a clip's shape from counts of special tokens, and sides in text before its codes."""
        num_special = len(self.vocabulary.special)

        def count(t: int, h: int) -> NDArray[np.int64]:
            index = _layout_of(self, (t, h, 1)).index
            return np.bincount(~index[index < 0], minlength=num_special)

        values = self._values_in(_layout_of(self, (1, 1, 1)), tokens, first_code=True)
        uses = self.vocabulary.uses[tokens]
        number = int((uses >= num_special).sum()) // len(self.vocabulary.sizes)
        # Special tokens occur a + b t + c t h times: equations for t and t h.
        c = count(1, 2) - count(1, 1)
        b = count(2, 1) - count(1, 1) - c
        counts = np.bincount(uses[uses >= 0], minlength=num_special)[:num_special]
        equations = [*zip(b, c, counts - count(1, 1) + b + c, strict=True)]
        sides = {name: values.get(name, 0) for name in SHAPE}
        found = {"t": (1, 0, sides["t"]), "h": (sides["h"], -1, 0), "w": (0, sides["w"], number)}
        equations += [found[name] for name in SHAPE if name in values]
        matrix = np.array(equations, float).reshape(-1, 3)
        solved, _, rank, _ = np.linalg.lstsq(matrix[:, :2], matrix[:, 2])
        t, rows = np.rint(solved).astype(int).tolist()
        return (t, rows // t, number // rows) if rank == 2 and min(t, rows) > 0 else None

    def _values_in(
        self, layout: "_Layout", tokens: NDArray[np.int64], first_code: bool = False
    ) -> dict[str, Any]:
        """Return the text's fields, or those before the first code, where all layouts are equal."""
        values, at = dict[str, Any](), 0
        stops = np.append(np.flatnonzero(self.vocabulary.uses[tokens] != TEXT), len(tokens))
        for piece in layout.pieces:
            if isinstance(piece, slice):
                if first_code and (layout.index[piece] >= 0).any():
                    break
                at += piece.stop - piece.start
                if at > len(tokens):
                    raise ValueError("it ends too early")
            if not isinstance(piece, tuple):
                continue
            assert self.vocabulary.text is not None
            start, at = at, int(stops[np.searchsorted(stops, at)])
            text = self.vocabulary.text.decode(tokens[start:at].tolist())
            looks = (KINDS[p.kind][1] if p.kind in KINDS else re.escape(p.name) for p in piece)
            if not (match := re.fullmatch("".join(looks), text, re.DOTALL)):
                raise ValueError(f"its text {text!r:.99} is not that of the template")
            fields = (part for part in piece if part.kind in KINDS)
            for field, found in zip(fields, match.groups(), strict=True):
                value = KINDS[field.kind][0](found)
                if field.frame is None:
                    values[field.name] = value
                else:  # frames come in order, and some have the same field twice
                    values[field.name] = [*values.get(field.name, [])[: field.frame], value]
        return values


class _Layout:
    """A template for clips of one shape. Its text is yet missing.

    ConfigError if a clip does not have every code once, or fields could not be told apart.
    """

    def __init__(self, template: Template, shape: Shape) -> None:
        grid = (*shape, len(template.vocabulary.sizes))
        numbers = np.arange(np.prod(grid, dtype=np.int64)).reshape(grid)
        try:
            items: list[Any] = [*expanded(template.parts, numbers)]
        except IndexError as error:
            raise wrong(template.template, f"codebooks are 0 to {grid[-1] - 1}") from error
        indices, length = [np.empty(0, np.int64)], 0
        self.pieces: list[slice | Run | None] = []  # Places in ``index``; text; None between frames
        for kind, group in groupby(items, type):
            if kind is np.ndarray:
                indices.append(np.concatenate([*group]))
                start, length = length, length + len(indices[-1])
                self.pieces.append(slice(start, length))
            elif kind is Part:
                _check_run(template, run := tuple(group))
                if isinstance(next(filter(None, reversed(self.pieces)), None), tuple):
                    problem = "the text of two frames could not be told apart: put a token between"
                    raise wrong(template.template, problem)
                self.pieces.append(run)
            else:
                self.pieces += group
        self.index = np.concatenate(indices)  # Number of each code; ~k for special token k
        is_code = self.index >= 0
        codes = self.index[is_code]
        if len(codes) != numbers.size or not np.bincount(codes).all():
            raise wrong(template.template, "it does not have every code of a clip exactly once")
        self.positions = np.zeros((length, 3), np.int32)
        self.positions[is_code] = np.stack(np.unravel_index(codes, grid)[:3], axis=-1)
        counted = [template.counts(name) for name in ("codes", *template.vocabulary.special)]
        self.loss = np.array(counted)[np.maximum(0, -self.index)]


_layout_of = lru_cache(16)(_Layout)


def _check_run(template: Template, run: Run) -> None:
    if template.vocabulary.text is None:
        raise wrong(template.template, "it has text, so its vocabulary needs text, too")
    marks = {"text": _TEXT, "int": _NUMBER, "float": _NUMBER}
    marked = "".join(marks.get(part.kind, part.name) for part in run)
    if marked.count(_TEXT) > 1 or re.search(f"[{_FIELD}][-+.e0-9]*[{_FIELD}]", marked):
        names = ", ".join(part.name for part in run if part.kind in KINDS)
        raise wrong(template.template, f"{names} could not be told apart: put a token between")

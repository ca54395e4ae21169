"""The language of templates: special tokens, text, fields, codes, and loops over them."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tokpipe.errors import ConfigError

SHAPE = ("t", "h", "w")  # Fields that every clip has
_INNER = {"": "frames", "frames": "rows"}  # Loop that a place of the template may have
_CODES = {"": "codes", "frames": "frame", "rows": "row"}
_KINDS = {"t": "int", "h": "int", "w": "int", "fps": "float"}
_PIECE = re.compile(
    r"(?P<text>(?:[^{}\\]|\\[{}\\])+)"
    r"|\{(?P<loop>frames|rows)(?:\((?P<separator>[^)]*)\))?:"
    r"|\{(?P<name>[A-Za-z_]\w*)(?:\.(?P<book>\d))?(?::(?P<kind>\w+))?\}"
    r"|(?P<end>\})"
)


@dataclass(frozen=True, slots=True)
class Text:
    """Literal text."""

    text: str


@dataclass(frozen=True, slots=True)
class Special:
    """A special token, by its name in the vocabulary."""

    name: str


@dataclass(frozen=True, slots=True)
class Value:
    """A value of the clip, as text. In a loop over frames, each frame has its own."""

    name: str
    kind: Literal["text", "int", "float"]
    frame: int | None = None


@dataclass(frozen=True, slots=True)
class Codes:
    """All codes of the clip, of a frame or of a row, slowest axis first; of one codebook or all."""

    order: str
    book: int | None


@dataclass(frozen=True, slots=True)
class Loop:
    """Its body for every frame of the clip, or row of a frame, with a separator between them."""

    axis: str
    body: tuple["Node", ...]
    separator: tuple["Node", ...]


Node: TypeAlias = Text | Special | Value | Codes | Loop
Item: TypeAlias = "Text | Special | Value | NDArray[np.int64] | None"
"""What a template consists of for one shape: arrays are numbers of codes, None is a place between
two frames."""


def parsed(template: str, special: Mapping[str, int]) -> tuple[Node, ...]:
    """Parse a template; ``special`` has the names that are special tokens, not fields."""
    nodes, end = _nodes(template, 0, "", special)
    if end != len(template):
        raise _wrong(template, end, r"closes nothing: write \} for a brace")
    return nodes


def _nodes(
    template: str, at: int, scope: str, special: Mapping[str, int]
) -> tuple[tuple[Node, ...], int]:
    """Parse up to the end of a loop, or of the template. Return where that is, too."""
    nodes: list[Node] = []
    while at < len(template):
        if not (piece := _PIECE.match(template, at)):
            raise _wrong(template, at, r"is not complete: write {name}, or \{ for a brace")
        if piece["end"]:
            break
        start, at = at, piece.end()
        if piece["text"]:
            nodes.append(Text(re.sub(r"\\(.)", r"\1", piece["text"])))
        elif axis := piece["loop"]:
            if _INNER.get(scope) != axis:
                raise _wrong(template, start, "rows go into frames, and frames into nothing")
            separator, _ = _nodes(piece["separator"] or "", 0, "separator", special)
            if not all(isinstance(one, Special | Text) for one in separator):
                raise _wrong(template, start, "a separator has only special tokens and text")
            body, at = _nodes(template, at, axis, special)
            if at == len(template):
                raise _wrong(template, start, "is not closed: write } after its body")
            nodes.append(Loop(axis, body, separator))
            at += 1
        else:
            nodes.append(_named(template, piece, scope, special))
    return tuple(nodes), at


def _named(template: str, piece: re.Match[str], scope: str, special: Mapping[str, int]) -> Node:
    name, kind, book = piece["name"], piece["kind"], piece["book"]
    if name in _CODES.values():
        axes = "thw"[["codes", "frame", "row"].index(name) :]
        if _CODES.get(scope) != name or sorted(kind or axes) != sorted(axes):
            wanted = (
                f"{{codes}} outside of loops, {{frame}} in frames, {{row}} in rows, here {axes}"
            )
            raise _wrong(template, piece.start(), f"is out of place: use {wanted}")
        return Codes(kind or axes, None if book is None else int(book))
    if name in special and not kind:
        return Special(name)
    kind = kind or _KINDS.get(name, "text")
    if kind not in ("text", "int", "float") or book or scope == "rows":
        raise _wrong(template, piece.start(), "a field is text, int or float, and not in rows")
    return Value(name, kind)  # type: ignore[arg-type]


def _wrong(template: str, at: int, problem: str) -> ConfigError:
    return ConfigError(f"template, at {template[at : at + 20]!r}: {problem}")


def expanded(
    nodes: Sequence[Node], codes: NDArray[np.int64], frame: int | None = None
) -> Iterator[Item]:
    """Yield what a template consists of.

    ``codes`` are the numbers of the codes at hand: (t, h, w, c), in a loop (h, w, c) or (w, c).
    """
    for node in nodes:
        if isinstance(node, Loop):
            for number, part in enumerate(codes):
                if number:
                    yield from expanded(node.separator, part)
                    if node.axis == "frames":
                        yield None
                yield from expanded(node.body, part, number if frame is None else frame)
        elif isinstance(node, Codes):
            axes = ["thw"[4 - codes.ndim :].index(axis) for axis in node.order]
            part = codes.transpose(*axes, -1)
            part = part if node.book is None else part[..., node.book]
            for number, inner in enumerate(part if node.order[0] == "t" else [part]):
                if number:
                    yield None
                yield inner.ravel()
        elif isinstance(node, Value) and node.name not in SHAPE:
            yield replace(node, frame=frame)
        else:
            yield node


def text_of(item: Text | Value, values: Mapping[str, Any], num_frames: int) -> str:
    """Return the text of an item. ConfigError if the values do not have it in its kind."""
    if isinstance(item, Text):
        return item.text
    value: Any = values.get(item.name)
    if item.frame is not None:
        whole = isinstance(value, list | tuple | np.ndarray) and len(value) == num_frames
        value = value[item.frame] if whole else None
    if isinstance(value, np.generic):
        value = value.item()
    if item.kind == "text" and isinstance(value, str):
        return value
    is_number = isinstance(value, int) and not isinstance(value, bool)
    if item.kind == "int" and is_number and 0 <= value < 10**18:
        return str(value)
    if item.kind == "float" and (is_number or isinstance(value, float)) and abs(value) < 1e300:
        return repr(float(value))
    wanted = f"one {item.kind} for each frame" if item.frame is not None else item.kind
    raise ConfigError(
        f"clip {values.get('clip_id', '')}: the template needs {item.name} ({wanted}), but found "
        f"{values.get(item.name)!r:.99}. Pass columns={[item.name]} to the stream, and a filter "
        "that leaves out clips without it"
    )

"""The language of templates: special tokens, text, fields, codes, and loops over them."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from string import Formatter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokpipe.errors import ConfigError

KINDS: dict[str, tuple[type, str]] = {
    "text": (str, "(.*)"),
    "int": (int, "([0-9]{1,18})"),
    "float": (float, "([-+.e0-9]{1,30})"),
}
"""Kind of a field -> type of its values, and how their text looks."""
SHAPE = ("t", "h", "w")  # Fields that every clip has
_COMPUTED = {"t": "int", "h": "int", "w": "int", "fps": "float"}
# Name -> the loop that it goes into, and the axes of its codes
_PLACES = {"codes": ("", "thw"), "frame": ("frames", "hw"), "row": ("rows", "w")}
_PLACES |= {"frames": ("", ""), "rows": ("frames", "")}
_NAME = re.compile(r"(\w+)(?:\.([0-9])|\((\w+)\))?")


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a template."""

    kind: str  # "literal", "special", "codes", "loop", or the kind of a field
    name: str  # The text, the token or the field; of codes their axes, slowest first
    number: int | None = None  # Which codebook, or special token; of a loop its separator
    frame: int | None = None  # Of a field in a loop over frames, where each has its own value
    body: tuple["Part", ...] = ()


def parsed(template: str, special: Sequence[str], loop: str = "") -> tuple[Part, ...]:
    """Parse a template, or the body of a loop. Names that are not ``special`` are fields."""
    parts: list[Part] = []
    try:
        pieces = [*Formatter().parse(template)]
    except ValueError as error:
        raise wrong(template, f"{error}. Literal braces are written {{{{ and }}}}") from error
    for literal, field, spec, conversion in pieces:
        if literal:
            parts.append(Part("literal", literal))
        if field is None:
            continue
        match = _NAME.fullmatch(field)
        name, book, separator = match.groups() if match else (field, None, None)
        number = None if book is None else int(book)
        place, axes = _PLACES.get(name, (loop, ""))
        is_loop = name in _PLACES and not axes
        if (
            (match is None or conversion or place != loop)
            or (book and not axes)
            or (separator and (separator not in special or not is_loop))
        ):
            found = f"{{{field}}} in {{{loop}:...}}" if loop else f"{{{field}}} outside of loops"
            places = "{frame} and {rows:...} go into {frames:...}, {row} goes into {rows:...}"
            raise wrong(template, f"found {found}; {places}")
        if axes:
            if sorted(spec or axes) != sorted(axes):
                raise wrong(template, f"{{{field}:{spec}}} needs the axes {axes} in any order")
            parts.append(Part("codes", spec or axes, number))
        elif is_loop:
            number = special.index(separator) if separator else None
            parts.append(Part("loop", name, number, body=parsed(spec or "", special, name)))
        elif name in special and not spec:
            parts.append(Part("special", name, special.index(name)))
        else:
            kind = spec or _COMPUTED.get(name, "text")
            if kind not in KINDS or loop == "rows":
                raise wrong(template, f"field {{{field}:{kind}}}: in rows, or not of {[*KINDS]}")
            parts.append(Part(kind, name))
    return tuple(parts)


def wrong(template: str, problem: str) -> ConfigError:
    return ConfigError(f"template {template!r}: {problem}")


def expanded(
    parts: Sequence[Part], codes: NDArray[np.int64], frame: int | None = None
) -> Iterator[Part | NDArray[np.int64] | None]:
    """Yield what a template consists of for one shape.

    Text comes as it is, numbers of codes as arrays, and the special token with number k as an
    array with ~k. None is a place between two frames. ``codes`` are the numbers of the codes at
    hand: (t, h, w, c), in a loop (h, w, c) or (w, c).
    """
    for part in parts:
        if part.kind == "loop":
            for number, inner in enumerate(codes):
                if number and part.number is not None:
                    yield np.array([~part.number])
                if number and part.name == "frames":
                    yield None
                yield from expanded(part.body, inner, number if frame is None else frame)
        elif part.kind == "codes":
            axes = ["thw"[4 - codes.ndim :].index(axis) for axis in part.name]
            ordered = codes.transpose(*axes, -1)
            ordered = ordered if part.number is None else ordered[..., part.number]
            for number, inner in enumerate(ordered if part.name[0] == "t" else [ordered]):
                if number:
                    yield None
                yield inner.ravel()
        elif part.kind == "special":
            yield np.array([~(part.number or 0)])
        else:
            yield replace(part, frame=None if part.name in SHAPE else frame)


def text_of(part: Part, values: dict[str, Any]) -> str:
    """Return the text of a part. ConfigError if reading it would not give the clip's value."""
    if part.kind == "literal":
        return part.name
    value: Any = values.get(part.name)
    wanted = part.kind
    if part.frame is not None:
        wanted = f"a list with one {part.kind} for each frame"
        is_whole = isinstance(value, list | tuple | np.ndarray) and len(value) == values["t"]
        value = value[part.frame] if is_whole else None
    read, pattern = KINDS[part.kind]
    try:
        same: Any = read(value)
        if same == value and re.fullmatch(pattern, str(same), re.DOTALL):
            return str(same)
    except (TypeError, ValueError, OverflowError):
        pass  # Explained below
    found = f"clip {values.get('clip_id', '')}: the template needs {part.name} ({wanted})"
    found += f", but found {values.get(part.name)!r:.99}"
    raise ConfigError(f"{found}. Pass columns={[part.name]} to the stream, or filter such clips")

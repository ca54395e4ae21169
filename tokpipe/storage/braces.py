"""Expands braces in patterns, as bash and WebDataset do."""

import itertools
import re

from tokpipe.errors import ConfigError

MAX_ALTERNATIVES = 100_000

_NUMBERS = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.(-?\d+))?")
_LETTERS = re.compile(r"([A-Za-z])\.\.([A-Za-z])(?:\.\.(-?\d+))?")
_PADDED = re.compile(r"-?0\d")


def expand_braces(text: str) -> list[str]:
    """Return what ``{a,b}``, ``{000..999}`` and ``{0..9..3}`` stand for, in order.

    Braces without a comma or a range, or without a partner, mean themselves.

    Raises:
        ConfigError: there are more than ``MAX_ALTERNATIVES``.
    """
    for opening in (match.start() for match in re.finditer("{", text)):
        commas, closing = _inside(text, opening)
        if closing < 0:
            continue
        options = _sequence(text[opening + 1 : closing])
        if commas:
            inner = itertools.pairwise([opening, *commas, closing])
            options = [option for a, b in inner for option in expand_braces(text[a + 1 : b])]
        if not options:
            continue
        rest = expand_braces(text[closing + 1 :])
        if len(options) * len(rest) > MAX_ALTERNATIVES:
            raise _too_many(text)
        return [f"{text[:opening]}{option}{end}" for option in options for end in rest]
    return [text]


def _inside(text: str, opening: int) -> tuple[list[int], int]:
    """Return where the commas of a brace are, and its partner; -1 if it has none."""
    commas: list[int] = []
    depth = 0
    for match in re.compile("[{},]").finditer(text, opening):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if not depth:
            return commas, match.start()
        if depth == 1 and match[0] == ",":
            commas.append(match.start())
    return [], -1


def _sequence(body: str) -> list[str]:
    """Return the texts of a range such as ``01..10``, none if it is not one."""
    if match := _NUMBERS.fullmatch(body):
        first, last = int(match[1]), int(match[2])
    elif match := _LETTERS.fullmatch(body):
        first, last = ord(match[1]), ord(match[2])
    else:
        return []
    step = abs(int(match[3] or 1)) or 1
    values = range(first, last + 1, step) if first <= last else range(first, last - 1, -step)
    if abs(last - first) // step >= MAX_ALTERNATIVES:  # len() overflows
        raise _too_many(f"{{{body}}}")
    if match.re is _LETTERS:
        return [chr(value) for value in values]
    ends = match[1], match[2]
    width = max(map(len, ends)) if any(map(_PADDED.match, ends)) else 0
    return [str(value).zfill(width) for value in values]


def _too_many(text: str) -> ConfigError:
    return ConfigError(
        f"{text}: these braces stand for more than {MAX_ALTERNATIVES:,} names, and each of them "
        "would be looked up. Use '*', which lists what is there"
    )

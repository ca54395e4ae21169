"""Expands braces in patterns, as bash and WebDataset do."""

import itertools
import re

from tokpipe.errors import ConfigError

MAX_ALTERNATIVES = 100_000
_MAX_CHARS = 2**28  # Of all of them together

_RANGE = re.compile(
    r"(?:(-?\d{1,99})\.\.(-?\d{1,99})|([A-Za-z])\.\.([A-Za-z]))(?:\.\.(-?\d{1,9}))?"
)
_PADDED = re.compile(r"-?0\d")


def expand_braces(text: str) -> list[str]:
    """Return what ``{a,b}``, ``{000..999}`` and ``{0..9..3}`` stand for, in order.

    Braces without a comma or a range, or without a partner, mean themselves.
    """
    _check_number(2 ** (text.count("{") // 10), text)  # which may be nested
    for opening in (match.start() for match in re.finditer("{", text)):
        cuts, depth = [opening], 0
        for match in re.compile("[{},]").finditer(text, opening):
            depth += {"{": 1, "}": -1}.get(match[0], 0)
            if depth == 0 or (depth == 1 and match[0] == ","):
                cuts.append(match.start())
            if depth == 0:
                break
        if depth:
            continue
        if len(cuts) > 2:
            inner = [text[a + 1 : b] for a, b in itertools.pairwise(cuts)]
            options = []
            for part in inner:
                options += expand_braces(part)
                _check_number(len(options), text)
        else:
            options = _sequence(text[opening + 1 : cuts[-1]])
        if options:
            rest = expand_braces(text[cuts[-1] + 1 :])
            _check_number(len(options) * len(rest), text)
            return [f"{text[:opening]}{option}{end}" for option in options for end in rest]
    return [text]


def _sequence(body: str) -> list[str]:
    """Return the texts of a range such as ``01..10``, none if it is not one."""
    match = _RANGE.fullmatch(body)
    if not match:
        return []
    ends = match[1] or match[3], match[2] or match[4]
    first, last = map(ord if match[3] else int, ends)
    step = abs(int(match[5] or 1)) or 1
    _check_number(abs(last - first) // step, f"{{{body}}}")
    values = range(first, last + 1, step) if first <= last else range(first, last - 1, -step)
    width = max(map(len, ends)) if any(map(_PADDED.match, ends)) else 0
    return [chr(value) if match[3] else str(value).zfill(width) for value in values]


def _check_number(number: int, text: str) -> None:
    if number > MAX_ALTERNATIVES or number * len(text) > _MAX_CHARS:
        raise ConfigError(
            f"{text[:1000]}: these braces stand for more than {MAX_ALTERNATIVES:,} names, or for "
            "very long ones, and each would be looked up. Use '*', which lists what is there"
        )

"""What must hold for a template, so that every sequence has one meaning."""

import re
from collections.abc import Sequence
from itertools import groupby, pairwise, product
from typing import Any

import numpy as np

from tokpipe.errors import ConfigError
from tokpipe.reader.compose.grammar import Node, Text, Value, expanded

_ENDS_A_NUMBER = re.compile(r"[^-+.e0-9]")


def check_text(template: str, nodes: Sequence[Node], has_text: bool) -> None:
    """Reject templates in which text could be divided in several ways."""
    for shape in product((1, 2, 3), (1, 2, 3), (1, 2)):
        items = list(expanded(nodes, np.zeros((*shape, 1), np.int64)))
        without_cuts = [item for item in items if item is not None]
        for is_text, group in groupby(without_cuts, lambda one: isinstance(one, Text | Value)):
            run = list(group)
            if is_text and not has_text:
                raise ConfigError(f"template {template!r} has text: set vocabulary.text")
            if is_text:
                _check_run(template, run)


def check_codes(template: str, nodes: Sequence[Node], number: int) -> None:
    """Reject templates that do not have every code once."""
    grid = np.arange(8 * number).reshape(2, 2, 2, number)
    try:
        arrays = [one for one in expanded(nodes, grid) if isinstance(one, np.ndarray)]
    except IndexError as error:
        raise ConfigError(f"template {template!r}: there are {number} codebooks") from error
    found = sorted(np.concatenate([np.empty(0, np.int64), *arrays]).tolist())
    if found != list(range(8 * number)):
        raise ConfigError(f"template {template!r} does not have every code of a clip exactly once")


def _check_run(template: str, run: Sequence[Any]) -> None:
    fields = [place for place, one in enumerate(run) if isinstance(one, Value)]
    names = [run[place].name for place in fields]
    between = [
        "".join(one.text for one in run[first + 1 : second]) for first, second in pairwise(fields)
    ]
    if sum(run[place].kind == "text" for place in fields) > 1 or not all(
        _ENDS_A_NUMBER.search(literal) for literal in between
    ):
        raise ConfigError(
            f"template {template!r}: {', '.join(names)} follow each other, and where one "
            "ends could not be told. Put a special token between them"
        )

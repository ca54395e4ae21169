"""Draws templates of every form, clips for them, and text that is hard to tell apart."""

import random
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np

from tokpipe.errors import ConfigError
from tokpipe.reader.compose import Template, Vocabulary

FRAGMENTS = [
    "a dog", "<|bos|>", "<|eov|>", "<|visual token 000003|>", "<|pad|><|eol|>", "12", "3.5", "-1e9",
    "3*4", "2x2", " fps)", "({fps} fps)", "{bos}", "{{", "}", "\\", "\n", "\r\n\t", "\x00", " ",
    "  ", "👩‍👧🏽", "🇺🇳", "e\u0301\u0301", "\u0301", "日本語の字幕", "½ Å\u00a0\ufb01",
    "\u200b\ufeff", "No. 7: ",
]  # fmt: skip
RUNS = [
    "{caption}", "A clip: {caption}", "{caption} ({fps} fps)", "{fps}", "{t}*{h}*{w}", "{h}*{w}",
    "No. {year:int}: {caption}", "{{{caption}}}", "12", "{year:int}x{fps}",
    "{speed:float}/s {title}",
]  # fmt: skip
FRAME_RUNS = ["{note}", "frame {second:float}: {note}", "{mark:int}", "{h}x{w}", "next "]
TOKENS = ["bos", "bov", "eol", "eof", "eov", "pad"]


def text(draw: random.Random) -> str:
    return "".join(draw.choices(FRAGMENTS, k=draw.choice([0, 1, 1, 2, 5])))


def template(draw: random.Random, books: int) -> str:
    """Draw a template for this number of codebooks. It may be ambiguous."""

    def tokens() -> str:
        return "".join(f"{{{name}}}" for name in draw.choices(TOKENS, k=draw.choice([0, 1, 1, 2])))

    def codes(name: str, axes: str) -> str:
        order = "".join(draw.choice([*permutations(axes)]))
        if draw.random() < 0.5:
            return f"{{{name}:{order}}}"
        return tokens().join(f"{{{name}.{book}:{order}}}" for book in range(books))

    def loop(name: str, body: str) -> str:
        separator = draw.choice(["", f"({draw.choice(TOKENS)})"])
        return f"{{{name}{separator}:{body}}}"

    def around(runs: list[str]) -> str:
        run = draw.choice(["", draw.choice(runs)])
        return tokens() + run + (draw.choice(["", "{bov}"]) if run else "")

    frame = codes("frame", "hw")
    if draw.random() < 0.6:
        frame = loop("rows", codes("row", "w") + tokens())
    middle = codes("codes", "thw")
    if draw.random() < 0.7:
        middle = loop("frames", around(FRAME_RUNS) + frame + tokens() + around(FRAME_RUNS))
    return around(RUNS) + around(RUNS) + middle + tokens() + around(RUNS)


@dataclass
class Count:
    """What round trips found."""

    trips: int = 0
    templates: int = 0
    without_shape: int = 0
    """Templates of which the parser is told the shape."""
    rejected: int = 0
    """Templates that were rejected as ambiguous."""


def round_trips(vocabularies: list[Vocabulary], num_templates: int, seed: int) -> Count:
    """Compose 50 clips with each of the templates, and assert that all come back."""
    draw, count = random.Random(seed), Count()
    rng = np.random.default_rng(seed)
    while count.templates < num_templates:
        vocabulary = draw.choice(vocabularies)
        books = len(vocabulary.sizes)
        layout, finds_shape = template(draw, books), True
        try:
            made = Template(layout, vocabulary)
        except ConfigError as error:
            if "could not be told" in str(error):
                count.rejected += 1
                continue
            if "shape of a clip cannot be found" not in str(error):
                raise
            made, finds_shape = Template(layout, vocabulary, finds_shape=False), False
            count.without_shape += 1
        count.templates += 1
        for _ in range(50):
            shape = tuple(draw.choices([1, 2, 3, 4, 7], k=3))
            grid = rng.integers(0, vocabulary.sizes, (*shape, books))
            _round_trip(draw, made, grid[..., 0] if books == 1 else grid, finds_shape)
            count.trips += 1
    return count


def _round_trip(draw: random.Random, made: Template, codes: Any, finds_shape: bool) -> None:
    values: dict[str, Any] = {
        "caption": text(draw), "title": text(draw), "year": draw.choice([0, 7, 10**17]),
        "fps": draw.choice([8.0, 23.976, 1e-9, 1e22]), "speed": draw.uniform(-9, 9),
        "note": [text(draw) for _ in codes], "mark": [draw.randrange(99) for _ in codes],
        "second": [number / 8 for number in range(len(codes))],
    }  # fmt: skip
    shape = codes.shape[:3]
    document = made.compose(codes, values)
    found = made.parse(document.tokens, None if finds_shape else shape)
    np.testing.assert_array_equal(found.codes, codes)
    assert found.values == {name: values[name] for name in found.values}
    assert set(found.values) == {name for name in values if f"{{{name}" in made.template}
    assert len(document.tokens) == len(document.loss) == len(document.positions)
    books = made.vocabulary.offsets, made.vocabulary.sizes
    for number, (offset, size) in enumerate(zip(*books, strict=True)):
        own = (document.tokens >= offset) & (document.tokens < offset + size)
        its_codes = codes if codes.ndim == 3 else codes[..., number]
        places = tuple(document.positions[own].T)
        np.testing.assert_array_equal(its_codes[places], document.tokens[own] - offset)
        assert own.sum() == its_codes.size
    changed = document.tokens.copy()
    changed[draw.randrange(len(changed))] = draw.randrange(made.vocabulary.size)
    try:
        other = made.parse(changed, None if finds_shape else shape)
    except ConfigError:
        return
    again = made.compose(other.codes, other.values)
    np.testing.assert_array_equal(again.tokens, changed)

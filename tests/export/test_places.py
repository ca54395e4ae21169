"""Tokens of exports are codes of clips: which, is found for each of them."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.export.by_libraries import output_of
from tests.export.export_helpers import LAYOUT, READERS, template_file
from tokpipe.errors import ConfigError, NotFound
from tokpipe.export import export_output
from tokpipe.export.places import place_of
from tokpipe.reader import Output
from tokpipe.reader.compose import Template
from tokpipe.reader.compose.vocabulary import Vocabulary


def check_every_token(
    output: Output, folder: Path, tokens: NDArray[np.integer], template: Template | None, first: int
) -> None:
    """Each token that is a code is found once, at a place that has this code."""
    found = set()
    for number, token in enumerate(tokens.tolist()):
        try:
            clip_id, position = place_of(output, folder, number, template)
        except NotFound as error:
            if "is text or a special token" not in str(error):
                raise
            continue
        found.add((clip_id, position))
        assert output.clip(clip_id).codes.flat[position] == token - first
    assert len(found) == output.num_codes
    with pytest.raises(NotFound, match=f"has no token {len(tokens):,}"):
        place_of(output, folder, len(tokens), template)


def test_codes_of_a_flat_export(tmp_path: Path) -> None:
    output = output_of([(2, 3), (2, 3)])
    export_output(output, "memmap", tmp_path / "flat")
    tokens = np.fromfile(tmp_path / "flat/video.bin", output.tokenizer.code_dtype)
    check_every_token(output, tmp_path / "flat", tokens, None, 0)


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("memmap", LAYOUT),
        ("memmap", "{bos}{t} {h} {w}{bov}{codes:htw}{eov}"),
        ("megatron", LAYOUT),
        ("megatron", ""),
    ],
)
def test_tokens_of_a_template(name: str, layout: str, tmp_path: Path) -> None:
    output = output_of([(2, 3), (4, 4)])
    template = Template.load(template_file(tmp_path, layout)) if layout else None
    export_output(output, name, tmp_path / "export", template=template)
    tokens = np.concatenate([one["tokens"] for one in READERS[name](tmp_path / "export")])
    check_every_token(output, tmp_path / "export", tokens, template, 300 if template else 0)


def test_several_codes_of_a_position(tmp_path: Path) -> None:
    output = output_of([(2, 2)])
    codes = np.arange(2 * 2 * 2 * 2).reshape(2, 2, 2, 2) % 8
    books = [{"size": 8, "offset": 1}, {"size": 8, "offset": 20}]
    words = Vocabulary(codes=books, special={"pad": 0, "end": 9}, pad="pad")
    template = Template("{frames:{rows:{row.1}{row.0}{end}}{pad}}", words)
    tokens = template.compose(codes).tokens
    for number, token in enumerate(tokens.tolist()):
        code = template.code_at(codes, {}, number)
        if token in (0, 9):
            assert code is None
        else:
            assert code is not None
            assert token == codes.flat[code] + (1, 20)[code % 2]
    assert output.num_codes


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    output, template = output_of([(2, 3)]), Template.load(template_file(tmp_path))
    export_output(output, "memmap", tmp_path / "tokens", template=template)
    export_output(output, "memmap", tmp_path / "flat")
    with pytest.raises(ConfigError, match=r"has tokens of the template '\{bos}"):
        place_of(output, tmp_path / "tokens", 0)
    with pytest.raises(ConfigError, match=r"has tokens of the template '\(none\)'"):
        place_of(output, tmp_path / "flat", 0, template)
    with pytest.raises(ConfigError, match="is not a finished export to memmap or megatron"):
        place_of(output, tmp_path, 0)
    about = tmp_path / "flat/metadata.json"
    about.write_text(about.read_text().replace(output.fingerprint, "0" * 32))
    with pytest.raises(ConfigError, match="is an export of another output"):
        place_of(output, tmp_path / "flat", 0)

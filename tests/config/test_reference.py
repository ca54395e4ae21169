"""The page that explains job files says what the models say."""

from __future__ import annotations

from pathlib import Path

from tokpipe.config.reference import reference


def test_the_page_is_what_the_models_say() -> None:
    page = Path(__file__).parents[2] / "docs/jobs.md"
    assert page.read_text() == reference(), "run: python -m tokpipe.config.reference > docs/jobs.md"

"""docs/jobs.md documents every setting, in the words of the models' docstrings."""

from pathlib import Path

from tests.docs.settings import START, reference


def test_the_tables_of_the_page_are_up_to_date() -> None:
    page = (Path(__file__).parents[2] / "docs/jobs.md").read_text()
    _, start, tables = page.partition(START)
    assert start + tables == reference(), "run: python -m tests.docs.settings docs/jobs.md"

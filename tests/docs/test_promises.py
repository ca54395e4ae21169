"""Pages of promises: each row names the tests that try to break it, and they exist."""

import ast
import re

import pytest

from tests.pages import REPOSITORY

PAGES = ("docs/reliability.md", "SECURITY.md")
NAMED = re.compile(r"`(tests/[\w/]+/test_\w+\.py)(?:::(\w+))?`")


def table_of(page: str) -> list[list[str]]:
    """The cells of a page's first table, with those of its head."""
    lines = re.findall(r"^\|.*(?:\n\|.*)*", (REPOSITORY / page).read_text(), re.MULTILINE)[0]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines.splitlines()]
    return [rows[0], *rows[2:]]


ROWS = [(page, row) for page in PAGES for row in table_of(page)[1:]]


@pytest.mark.parametrize("page", PAGES)
def test_the_table_of_promises_is_found(page: str) -> None:
    table = table_of(page)
    assert len(table) > 10
    assert {len(row) for row in table} == {4}
    assert "test" in table[0]


@pytest.mark.parametrize(("page", "row"), ROWS, ids=lambda part: str(part)[:60])
def test_each_promise_names_tests_that_exist(page: str, row: list[str]) -> None:
    named = NAMED.findall(row[table_of(page)[0].index("test")])
    assert named, "no test is named by its file"
    for path, function in named:
        tree = ast.parse((REPOSITORY / path).read_text())
        functions = [one.name for one in ast.walk(tree) if isinstance(one, ast.FunctionDef)]
        assert not function or function in functions, f"{path} has no {function}"


@pytest.mark.parametrize("page", PAGES)
def test_no_test_is_named_in_a_way_that_is_not_checked(page: str) -> None:
    named = re.findall(r"`tests/[^`]*`", (REPOSITORY / page).read_text())
    assert [one for one in named if not NAMED.fullmatch(one)] == []

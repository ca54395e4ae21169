"""docs/reliability.md: each promise names the tests that try to break it, and they exist."""

import ast
import re

import pytest

from tests.pages import REPOSITORY

PAGE = (REPOSITORY / "docs/reliability.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in PAGE.partition("| promise |")[2].partition("\n\n")[0].splitlines()[2:]
]
NAMED = re.compile(r"`(tests/[\w/]+/test_\w+\.py)(?:::(\w+))?`")


def test_the_table_of_promises_is_found() -> None:
    assert len(ROWS) > 20
    assert {len(row) for row in ROWS} == {4}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:50])
def test_each_promise_names_tests_that_exist(row: list[str]) -> None:
    named = NAMED.findall(row[2])
    assert named, "no test is named by its file"
    for path, function in named:
        tree = ast.parse((REPOSITORY / path).read_text())
        functions = [one.name for one in ast.walk(tree) if isinstance(one, ast.FunctionDef)]
        assert not function or function in functions, f"{path} has no {function}"


def test_no_test_is_named_in_a_way_that_is_not_checked() -> None:
    named = re.findall(r"`tests/[^`]*`", PAGE)
    assert [one for one in named if not NAMED.fullmatch(one)] == []

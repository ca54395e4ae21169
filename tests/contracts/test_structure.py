"""The shape of the package: no import cycles, a small root, small files."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import tokpipe

PACKAGE = Path(tokpipe.__file__).parent
TREES = {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): tree
    for path, tree in TREES.items()
}

MAX_FILE_LINES = 450
MAX_CLASS_LINES = 300


def imported_at_the_top(tree: ast.Module) -> set[str]:
    """Return the modules of tokpipe that a module needs when it is imported."""
    found: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            members = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            found |= members or {node.module}
    return found & MODULES.keys()


def test_there_are_no_import_cycles() -> None:
    graph = {name: imported_at_the_top(tree) for name, tree in MODULES.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError, which lists the cycle


def test_the_root_holds_only_what_every_room_shares() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} == {"__init__", "errors", "run", "types"}


@pytest.mark.parametrize("path", TREES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_classes_stay_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_FILE_LINES
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.ClassDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < MAX_CLASS_LINES, node.name

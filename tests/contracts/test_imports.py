"""The import arrows: who may know of whom, lazy imports included."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import tokpipe

PACKAGE = Path(tokpipe.__file__).parent

LIGHT = {"errors", "ids", "logs", "redact", "texts", "types"}
ARROWS: dict[str, set[str]] = {
    "types": set(),
    "texts": set(),
    "errors": set(),
    "ids": set(),
    "logs": {"errors", "redact"},
    "redact": set(),
    "quality": set(),
    "config": LIGHT,
    "chunks": {"config"} | LIGHT,
    "fingerprint": {"config"} | LIGHT,
    "models": {"config"} | LIGHT,
    "media": {"config"} | LIGHT,
    "storage": {"config"} | LIGHT,
    "weights": {"config", "formats", "storage"} | LIGHT,
    "formats": {"config", "storage"} | LIGHT,
    "sources": {"config", "formats", "storage"} | LIGHT,
    "plan": {"config", "formats", "sources", "storage"} | LIGHT,
    "reader": {"config", "formats", "storage"} | LIGHT,
    "stages": {"chunks", "config", "formats", "media", "models", "plan", "storage"} | LIGHT,
    "runtime": {
        *("chunks", "config", "fingerprint", "formats", "plan", "stages", "storage", "weights")
    }
    | LIGHT,
    "rejections": {"reader"} | LIGHT,
    "inspection": {"reader"} | LIGHT,
    "export": {"reader"} | LIGHT,
    "report": {
        *("formats", "inspection", "media", "quality", "reader", "reconstruct", "runtime"),
        "status",
    }
    | LIGHT,
    "forecast": {*("chunks", "config", "formats", "media", "plan", "stages", "storage")} | LIGHT,
    "status": {"formats", "storage"} | LIGHT,
    "convert": {"config", "formats", "models"} | LIGHT,
    "check": {"config", "formats", "sources", "storage", "weights"} | LIGHT,
    "reconstruct": {
        *("chunks", "config", "formats", "media", "models", "plan", "quality", "reader"),
        *("stages", "weights"),
    }
    | LIGHT,
    "audit": {*("config", "fingerprint", "formats", "plan", "reader", "reconstruct", "storage")}
    | LIGHT,
    "bench": {
        *("audit", "chunks", "config", "fingerprint", "formats", "media", "models", "plan"),
        *("reader", "runtime", "sources", "stages", "storage", "train", "weights"),
    }
    | LIGHT,
    "cli": {
        *(
            "audit",
            "bench",
            "check",
            "config",
            "convert",
            "export",
            "forecast",
            "inspection",
            "reader",
            "reconstruct",
            "rejections",
            "report",
            "runtime",
            "status",
        ),
        *("storage", "weights"),
    }
    | LIGHT,
    "run": {"cli"},
    "train": {"config", "media", "models", "quality"} | LIGHT,
}

HOMES: dict[str, set[str]] = {
    "ray": {"bench", "runtime"},
    "torch": {"bench", "models", "reader", "reconstruct", "stages", "train"},
    "decord": {"bench", "media"},
    "transformers": {"models"},
    "av": {"bench", "media"},
    "torchcodec": {"bench", "media"},
    "xformers": {"models"},
    "pyarrow": {"audit", "bench", "formats", "plan", "reader", "sources"},
    "fsspec": {"storage"},
    "s3fs": {"storage"},
    "botocore": {"storage"},
    "rich": {"bench", "cli", "runtime"},
}


def imports() -> Iterator[tuple[str, str, Path]]:
    """Yield (part of tokpipe, imported module, file) for every import statement."""
    for path in PACKAGE.rglob("*.py"):
        relative = path.relative_to(PACKAGE)
        part = relative.parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield part, alias.name, relative
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{relative}: relative import"
                assert node.module is not None
                yield part, node.module, relative


def test_imports_point_one_way() -> None:
    wrong = []
    for part, module, path in imports():
        names = module.split(".")
        other = names[1] if names[0] == "tokpipe" and len(names) > 1 else part
        if other != part and other not in ARROWS[part]:
            wrong.append(f"{path} imports {module}")
    assert not wrong


@pytest.mark.parametrize("library", HOMES)
def test_each_library_has_a_home(library: str) -> None:
    users = {part for part, module, _ in imports() if module.split(".")[0] == library}
    assert users <= HOMES[library]

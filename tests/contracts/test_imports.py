"""Which rooms may import which; lazy imports count too."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import tokpipe

PACKAGE = Path(tokpipe.__file__).parent

LIGHT = {"errors", "identity", "telemetry", "types"}
"""Every room may use these."""
ARROWS: dict[str, set[str]] = {
    "types": set(),
    "errors": set(),
    "telemetry": {"errors", "types"},
    "config": LIGHT - {"identity"},
    "identity": {"config", "errors", "types"},
    "storage": {"config"},
    "formats": {"config", "storage"},
    "sources": {"config", "formats", "storage"},
    "plan": {"config", "formats", "sources", "storage"},
    "media": {"config", "storage"},
    "models": {"config"},
    "weights": {"config", "models", "storage"},
    "reader": {"config", "formats", "storage"},
    "stages": {"config", "formats", "media", "models", "plan", "reader", "sources", "storage"},
    "runtime": {"config", "formats", "plan", "stages", "storage", "weights"},
    "verbs": {
        *("config", "formats", "media", "models", "plan", "reader", "sources", "stages"),
        *("storage", "weights"),
    },
    "reconstruct": {
        *("config", "formats", "media", "models", "plan", "reader", "stages", "weights")
    },
    "audit": {
        *("config", "formats", "plan", "reader", "reconstruct", "runtime", "stages", "storage")
    },
    "export": {"formats", "reader"},
    "report": {"formats", "media", "reader", "reconstruct", "storage", "verbs"},
    "cli": {
        *("audit", "config", "export", "reader", "reconstruct", "report", "runtime", "storage"),
        *("verbs", "weights"),
    },
    "run": {"cli"},
}
"""For each room, in order, the earlier rooms that it may import besides the light ones."""

HOMES: dict[str, set[str]] = {
    "ray": {"runtime"},
    "torch": {"models", "reader", "reconstruct", "stages", "verbs", "weights"},
    "decord": {"media"},
    "tokenizers": {"reader"},
    "transformers": {"models"},
    "av": {"media"},
    "PIL": {"media"},
    "pyarrow": {"audit", "export", "formats", "plan", "reader", "sources"},
    "bracex": {"storage"},
    "fsspec": {"storage"},
    "s3fs": {"storage"},
    "botocore": {"storage"},
    "rich": {"cli", "runtime"},
    "jinja2": {"report"},
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
        allowed = ARROWS[part] if part in LIGHT else ARROWS[part] | LIGHT
        if other not in {part, *allowed}:
            wrong.append(f"{path} imports {module}")
    assert not wrong


def test_arrows_lead_to_earlier_rooms_only() -> None:
    order = list(ARROWS)
    for place, part in enumerate(order):
        assert ARROWS[part] <= {*order[:place], *(LIGHT if part not in LIGHT else set())}, part


@pytest.mark.parametrize("library", HOMES)
def test_each_library_has_a_home(library: str) -> None:
    users = {part for part, module, _ in imports() if module.split(".")[0] == library}
    assert users <= HOMES[library]

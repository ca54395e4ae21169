"""CONTRIBUTING.md: its worked example applies to this tree, and its test fails without it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.pages import REPOSITORY, blocks_of


def run_example(tree: Path, name: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", name],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_worked_example_works(tmp_path: Path) -> None:
    kept = shutil.ignore_patterns("__pycache__", "*.safetensors")
    for name in ("tokpipe", "tests/media"):
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=kept)
    for name in ("pyproject.toml", "tests/videos.py"):
        shutil.copy(REPOSITORY / name, tmp_path / name)
    blocks = blocks_of("CONTRIBUTING.md")
    (example,) = (block for block in blocks if block.title is not None)
    (change,) = (block for block in blocks if block.language == "diff")
    assert example.title is not None
    (tmp_path / example.title).write_text(example.code)
    before = run_example(tmp_path, example.title)
    assert before.returncode == 1, before.stdout + before.stderr
    assert "min_source_side" in before.stdout
    subprocess.run(["git", "apply", "-"], cwd=tmp_path, input=change.code, text=True, check=True)
    after = run_example(tmp_path, example.title)
    assert after.returncode == 0, after.stdout + after.stderr
    assert "2 passed" in after.stdout

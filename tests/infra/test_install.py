"""The installer prefers the CPU build of PyTorch, and warns about the large one."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PIP = """#!/usr/bin/env bash
# A fake Python: it logs each installation, and fails those with a word of FAILING.
[[ "$*" == *"pip"*" show "* ]] && exit 1
echo "$*" >> "$LOG"
for word in $FAILING; do [[ "$*" == *"$word"* ]] && exit 1; done
exit 0
"""


@pytest.mark.parametrize(
    ("failing", "torch", "warns"),
    [
        ("", r"torch==[\d.]+\+cpu$", False),
        ("+cpu", r"torch==[\d.]+ --index-url \S+/whl/cpu$", False),
        ("+cpu --index-url", r"torch==[\d.]+$", True),
    ],
    ids=["where pip looks", "index of CPU builds", "PyPI"],
)
def test_the_cpu_build_is_preferred_and_pypi_is_the_last_resort(
    failing: str, torch: str, warns: bool, tmp_path: Path
) -> None:
    python = tmp_path / "venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(PIP)
    python.chmod(0o755)
    log = tmp_path / "log"
    environment = {"PATH": "/usr/bin:/bin", "LOG": str(log), "FAILING": failing}
    command = [str(ROOT / "infra/install.sh"), str(tmp_path / "venv")]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    installed = [line for line in log.read_text().splitlines() if "torch==" in line]
    assert re.search(torch, installed[-1])
    assert ("3 GB of CUDA packages" in ended.stdout) == warns
    assert log.read_text().splitlines()[-1].endswith("--editable .")


def test_running_jobs_needs_few_packages_and_no_development_tools() -> None:
    run, dev = ((ROOT / f"requirements{name}.txt").read_text() for name in ("", "-dev"))
    assert len(re.findall("^[\\w.-]+==", run, re.MULTILINE)) <= 60
    assert "--requirement requirements.txt" in dev
    assert "decord" not in run
    assert not {"pytest", "mkdocs", "duckdb"} & set(re.findall("^([\\w-]+)==", run, re.MULTILINE))


def test_decord_is_left_out_where_it_has_no_wheel() -> None:
    for name in ("requirements-dev.txt", "pyproject.toml"):
        text = (ROOT / name).read_text()
        (line,) = [line for line in text.splitlines() if re.match(r"\W*decord[=>]", line)]
        assert "platform_machine == " in line

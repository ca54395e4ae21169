"""Environments that hold a wheel and what its metadata asks for, and nothing else.

Packages come from the environment that runs the tests, as links, so this needs no network and takes
a second. What the metadata forgets is missing, as it is for whoever installs the wheel.
"""

import subprocess
import sys
import venv
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement


def build_wheel(folder: Path, root: Path) -> Path:
    """Build a project's wheel; ``root`` needs write access."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(root)], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def closure(requirements: list[str]) -> set[str]:
    """The names of packages that requirements need, directly or not."""
    found: set[tuple[str, str]] = set()
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        requirement = waiting.pop()
        for extra in ("", *requirement.extras):
            if (requirement.name, extra) in found:
                continue
            found.add((requirement.name, extra))
            for text in distribution(requirement.name).requires or ():
                needed = Requirement(text)
                if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                    waiting.append(needed)
    return {name for name, _ in found}


def environment(folder: Path, wheel: Path, extra: str = "") -> Path:
    """Create an environment; return its folder of commands."""
    venv.create(folder, symlinks=True)
    python = folder / "bin/python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps"]
    subprocess.run([*pip, "--quiet", "--no-index", str(wheel)], check=True)
    lines = ["import importlib.metadata as m", "print(*m.requires('tokpipe') or (), sep='\\n')"]
    listed = subprocess.run([python, "-Ic", "\n".join(lines)], capture_output=True, check=True)
    wanted = []
    for text in listed.stdout.decode().splitlines():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            requirement.marker = None
            wanted.append(str(requirement))
    (site,) = folder.glob("lib/python*/site-packages")
    linked: set[tuple[str, ...]] = set()
    for name in closure(wanted):
        source = Path(str(distribution(name).locate_file("")))
        for file in distribution(name).files or ():
            if file.parts[0] not in ("..", "__pycache__"):
                _link(site, source, file.parts, linked)
    return folder / "bin"


def _link(site: Path, source: Path, parts: tuple[str, ...], linked: set[tuple[str, ...]]) -> None:
    """Link the file's package whole, unless it is a namespace that packages share."""
    for depth in range(1, len(parts) + 1):
        if parts[:depth] in linked:
            return
        here, there = site.joinpath(*parts[:depth]), source.joinpath(*parts[:depth])
        is_namespace = depth < len(parts) and not (there / "__init__.py").exists()
        if is_namespace and there.suffix == "":
            here.mkdir(exist_ok=True)
            continue
        linked.add(parts[:depth])
        here.symlink_to(there)
        return

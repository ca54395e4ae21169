"""Checks the installed packages: consistent, all pinned, and without known vulnerabilities.

Run by ``make audit-dependencies``, in the environment to check. Fails on a package that is not
pinned, or has a vulnerability that ``ACCEPTED`` does not list. Where the vulnerability service
does not answer, it says loudly that nothing was looked up; ``AUDIT_REQUIRED=1`` makes that fail.
"""

import json
import os
import re
import subprocess
import sys
import sysconfig
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 25
REQUIREMENTS = ("requirements.txt", "requirements-dev.txt")
ACCEPTED: dict[str, str] = {}
"""Vulnerability ids that are known and do no harm here, with the reason."""
UNPINNED = {"pip", "setuptools", "wheel", "tokpipe", "torch", "triton"}
"""The installers, this project, and torch, whose version infra/install.sh pins."""


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def installed() -> dict[str, str]:
    """Name -> version of every package of this environment."""
    # Not sys.path: Ray adds the packages that it vendors.
    places = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    return {canonical(d.metadata["Name"]): d.version for d in distributions(path=places)}


def pinned(text: str) -> dict[str, set[str]]:
    """Name -> the versions that a requirements file pins, one for each platform."""
    pins: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.MULTILINE):
        pins.setdefault(canonical(name), set()).add(version)
    return pins


def not_pinned(found: dict[str, str], pins: dict[str, set[str]]) -> list[str]:
    """``name version`` of each package that is not one of those pinned."""
    return [
        f"{name} {version}"
        for name, version in sorted(found.items())
        if name not in UNPINNED
        and not name.startswith(("nvidia-", "cuda-"))
        and version not in pins.get(name, set())
    ]


def judge(report: dict[str, Any]) -> tuple[list[str], int, int]:
    """Return (vulnerabilities not accepted, packages looked up, packages that were not)."""
    bad, num_known, num_unknown = [], 0, 0
    for package in report["dependencies"]:
        # pip-audit reports "no vulnerabilities found" for packages that it could not look up.
        if "skip_reason" in package:
            num_unknown += 1
            continue
        num_known += 1
        for found in package["vulns"]:
            ids = {found["id"], *found.get("aliases", ())}
            if not ids & ACCEPTED.keys():
                fixed = ", ".join(found["fix_versions"]) or "no release"
                bad.append(f"{package['name']} {package['version']}: {found['id']}, fixed: {fixed}")
    return bad, num_known, num_unknown


def pip_audit() -> dict[str, Any] | None:
    """Return its report, or None where its service cannot be reached in time."""
    requirements = str(ROOT / REQUIREMENTS[-1])  # which includes the others
    command = [sys.executable, "-m", "pip_audit", "--requirement", requirements, "--no-deps"]
    options = ["--disable-pip", "--format", "json", "--timeout", "5", "--progress-spinner", "off"]
    try:
        ended = subprocess.run(
            [*command, *options], capture_output=True, text=True, timeout=LIMIT_S
        )
        report: dict[str, Any] = json.loads(ended.stdout)
    except (subprocess.TimeoutExpired, json.JSONDecodeError):
        return None
    return report


def main() -> int:
    failed = subprocess.run([sys.executable, "-m", "pip", "check"]).returncode != 0
    text = "\n".join((ROOT / name).read_text() for name in REQUIREMENTS)
    if loose := not_pinned(installed(), pinned(text)):
        print(f"not pinned in {' or '.join(REQUIREMENTS)}: {', '.join(loose)}")
        failed = True
    report = pip_audit()
    bad, num_known, num_unknown = judge(report) if report else ([], 0, 0)
    for line in bad:
        print(f"VULNERABLE {line}")
    if num_known:
        print(f"pip-audit: {num_known} packages looked up, {len(bad)} vulnerabilities")
    if num_unknown or not num_known:
        print(
            f"WARNING pip-audit: NOT REACHED for {num_unknown or 'all'} packages. Nobody has "
            "looked whether they have known vulnerabilities; run this where PyPI answers."
        )
        failed = failed or os.environ.get("AUDIT_REQUIRED") == "1"
    return 1 if failed or bad else 0


if __name__ == "__main__":
    sys.exit(main())

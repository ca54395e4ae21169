"""Checks the installed packages: consistent, all pinned, and without known vulnerabilities.

Run by ``make audit-dependencies``, in the environment to check. Fails on a package that is not
pinned, or has a vulnerability that ``ACCEPTED`` does not list. Where the vulnerability service
does not answer, or knows no vulnerabilities, as a mirror, it says loudly that nothing was looked
up; ``AUDIT_REQUIRED=1`` makes that fail, and waits longer for slow answers.
"""

import json
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = {False: 25, True: 600}
"""By whether the audit is required."""
REQUIREMENTS = ("requirements.txt", "requirements-dev.txt")
ACCEPTED: dict[str, str] = {}
"""Vulnerability ids that are known and do no harm here, with the reason."""
CONTROL = ("django", "2.2")
"""A version with many known vulnerabilities, looked up besides: a service that does not name any
of them has no data, and its "none found" means nothing."""
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
    bad, num_known, num_unknown, has_data = [], 0, 0, False
    for package in report["dependencies"]:
        if package["name"] == CONTROL[0]:
            has_data = bool(package.get("vulns"))
            continue
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
    return (bad, num_known, num_unknown) if has_data else (bad, 0, num_known + num_unknown)


def pip_audit() -> dict[str, Any] | None:
    """Return its report, or None where its service cannot be reached in time."""
    requirements = ROOT / REQUIREMENTS[-1]  # which includes the others
    pins = pinned("\n".join((ROOT / name).read_text() for name in REQUIREMENTS))
    more = [one for one in installed().items() if one[0] not in {*pins, "tokpipe"}]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        # Without local versions, such as +cpu, which PyPI does not have.
        file.writelines(f"{name}=={version.split('+')[0]}\n" for name, version in [*more, CONTROL])
        file.flush()
        command = [sys.executable, "-m", "pip_audit", "-r", str(requirements), "-r", file.name]
        options = ["--no-deps", "--disable-pip", "--format", "json", "--timeout", "5"]
        limit_s = LIMIT_S[is_required()]
        try:
            ended = subprocess.run(
                [*command, *options, "--progress-spinner", "off"],
                capture_output=True,
                text=True,
                timeout=limit_s,
            )
            report: dict[str, Any] = json.loads(ended.stdout)
        except subprocess.TimeoutExpired:
            print(f"pip-audit: not finished after {limit_s} s")
            return None
        except json.JSONDecodeError:
            print(f"pip-audit: {(ended.stderr.strip() or 'no output').splitlines()[-1]}")
            return None
    return report


def is_required() -> bool:
    return os.environ.get("AUDIT_REQUIRED") == "1"


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
        failed = failed or is_required()
    return 1 if failed or bad else 0


if __name__ == "__main__":
    sys.exit(main())

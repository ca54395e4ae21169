"""The dependency audit: vulnerable, unpinned and unchecked packages."""

import importlib.util
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
_SPEC = importlib.util.spec_from_file_location("audit", ROOT / "infra/audit.py")
assert _SPEC is not None
assert _SPEC.loader is not None
audit = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(audit)

FLAW = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["2.0"]}


def report(*packages: dict[str, Any], control: bool = True) -> dict[str, Any]:
    """What pip-audit writes for packages, and for the one that is known to be vulnerable."""
    found = [{"name": "p", "version": "1.0", "vulns": []} | p for p in packages]
    name, version = audit.CONTROL
    known = {"name": name, "version": version, "vulns": [FLAW] if control else []}
    return {"dependencies": [*found, known]}


def test_every_installed_package_is_pinned() -> None:
    pins = audit.pinned("\n".join((ROOT / name).read_text() for name in audit.REQUIREMENTS))
    assert audit.not_pinned(audit.installed(), pins) == []


def test_a_package_that_is_not_pinned_or_in_another_version_is_named() -> None:
    pins = audit.pinned('# pins\nGood.one==1.0\nold==1; python_version < "3.11"\nold==2\n')
    found = {"good-one": "1.0", "old": "1", "torch": "9", "other": "1.0"}
    assert audit.not_pinned(found, pins) == ["other 1.0"]
    assert audit.not_pinned({"old": "3"}, pins) == ["old 3"]


def test_a_vulnerability_is_named_with_the_version_that_fixes_it() -> None:
    bad, num_known, num_unknown = audit.judge(report({"vulns": [FLAW]}, {}))
    assert bad == ["p 1.0: PYSEC-1, fixed: 2.0"]
    assert (num_known, num_unknown) == (2, 0)


def test_an_accepted_vulnerability_passes_by_any_of_its_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(audit, "ACCEPTED", {"CVE-1": "not used"})
    assert audit.judge(report({"vulns": [FLAW]})) == ([], 1, 0)


def test_a_package_that_was_not_checked_does_not_count_as_safe() -> None:
    assert audit.judge(report({"skip_reason": "not found"}, {})) == ([], 1, 1)


def test_a_service_without_data_does_not_count_as_reached() -> None:
    """Mirrors answer with metadata that lack vulnerabilities, for which pip-audit finds none."""
    assert audit.judge(report({}, {}, control=False)) == ([], 0, 2)
    assert audit.judge({"dependencies": [{"name": "p", "version": "1.0", "vulns": []}]})[1] == 0


ENDED = {
    "name not resolved": ("", "Traceback:\nrequests.exceptions.ConnectionError: not resolved"),
    "HTTP error": ("", "pip_audit._service.interface.ServiceError"),
    "not JSON": ("", "requests.exceptions.JSONDecodeError: Expecting value"),
    "pip-audit is not installed": ("", "No module named pip_audit"),
    "nothing printed": ("", ""),
    "empty answers": (json.dumps(report({}, control=False)), "No known vulnerabilities found"),
    "no package found": (json.dumps(report({"skip_reason": "not found"})), ""),
    "no end": None,
}


@pytest.mark.parametrize("ended", ENDED.values(), ids=ENDED)
def test_an_unreachable_service_is_reported_and_fails_where_the_audit_is_required(
    ended: tuple[str, str] | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        if "pip_audit" not in command:
            return subprocess.CompletedProcess(command, 0)
        if ended is None:
            raise subprocess.TimeoutExpired(command, options["timeout"])
        return subprocess.CompletedProcess(command, 1, *ended)

    monkeypatch.setattr(audit.subprocess, "run", run)
    monkeypatch.delenv("AUDIT_REQUIRED", raising=False)
    assert audit.main() == 0
    printed = capsys.readouterr().out
    assert "NOT REACHED for" in printed
    assert "looked up," not in printed
    if ended and not ended[0] and ended[1]:
        assert ended[1].splitlines()[-1] in printed, "the reason is shown"
    monkeypatch.setenv("AUDIT_REQUIRED", "1")
    assert audit.main() == 1


def test_the_audit_itself_says_so_behind_a_proxy_that_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("https_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    monkeypatch.delenv("AUDIT_REQUIRED", raising=False)
    assert audit.pip_audit() is None
    assert "ProxyError" in capsys.readouterr().out


def test_packages_that_no_file_pins_are_looked_up_too(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        asked.extend(Path(command[command.index("-r", 5) + 1]).read_text().split())
        return subprocess.CompletedProcess(command, 0, json.dumps(report({})), "")

    monkeypatch.setattr(audit, "installed", lambda: {"torch": "2.10.0+cpu", "tokpipe": "1"})
    monkeypatch.setattr(audit.subprocess, "run", run)
    audit.pip_audit()
    assert asked == ["torch==2.10.0", "==".join(audit.CONTROL)]

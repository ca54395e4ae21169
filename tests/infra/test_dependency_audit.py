"""The dependency audit: vulnerable, unpinned and unchecked packages."""

import importlib.util
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


def report(*packages: dict[str, Any]) -> dict[str, Any]:
    return {"dependencies": [{"name": "p", "version": "1.0", "vulns": []} | p for p in packages]}


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


def test_an_unreachable_service_is_reported_and_fails_where_the_audit_is_required(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(audit, "pip_audit", lambda: None)
    monkeypatch.delenv("AUDIT_REQUIRED", raising=False)
    assert audit.main() == 0
    assert "NOT REACHED for all packages" in capsys.readouterr().out
    monkeypatch.setenv("AUDIT_REQUIRED", "1")
    assert audit.main() == 1

"""The audit of what is pinned, and the list of it that `make sbom` writes."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import audit
import pytest

ROOT = Path(__file__).parents[2]
BAD = {"id": "PYSEC-1", "aliases": ["CVE-1", "GHSA-1"], "fix_versions": ["2.0"]}


def package(*vulns: dict[str, Any]) -> dict[str, Any]:
    """As pip-audit tells of one."""
    return {"name": "thing", "version": "1.0", "vulns": list(vulns)}


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What a service that can be reached says of what is pinned."""
    answer: list[dict[str, Any]] = []
    monkeypatch.setattr(
        audit, "known", lambda file: answer if file == audit.PINNED else [package(BAD)]
    )
    return answer


def test_a_finding_fails_the_check_and_names_the_release_that_mends_it(
    service: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    service += [package(BAD), package()]
    assert audit.main() == 1
    assert "thing 1.0: PYSEC-1, CVE-1, GHSA-1; mended in 2.0" in capsys.readouterr().out


def test_nothing_known_passes_and_says_of_how_many(
    service: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    service += [package(), {"name": "own", "skip_reason": "not on PyPI"}]
    assert audit.main() == 0
    assert "1 of 2 packages looked up, 0 with findings" in capsys.readouterr().out


def test_a_finding_may_be_accepted_by_any_of_its_names(
    service: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    service += [package(BAD)]
    monkeypatch.setattr(audit, "ACCEPTED", {"CVE-1": "never called"})
    assert audit.found_in(service) == []


def test_an_index_that_knows_nothing_against_anything_is_no_audit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(audit, "known", lambda file: [package()])
    assert audit.main() == 0
    assert "audit skipped, no vulnerability service: the index" in capsys.readouterr().err


def test_a_service_that_answers_and_then_fails_is_no_audit_that_passed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def known(file: Path) -> list[dict[str, Any]]:
        if file == audit.PINNED:
            raise audit.NoAnswerError("a line that it cannot read")
        return [package(BAD)]

    monkeypatch.setattr(audit, "known", known)
    assert audit.main() == 1
    assert "not for constraints.txt: a line that it cannot read" in capsys.readouterr().out


def test_no_network_is_told_and_fails_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert audit.main() == 0
    assert "audit skipped, no vulnerability service: " in capsys.readouterr().err


def test_the_bill_of_materials_lists_the_versions_that_are_pinned(tmp_path: Path) -> None:
    bill = tmp_path / "bertray.cdx.json"
    subprocess.run([sys.executable, ROOT / "deploy" / "sbom.py", bill], check=True)
    components = json.loads(bill.read_text())["components"]
    listed = {component["name"]: component["version"].partition("+")[0] for component in components}
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)", audit.PINNED.read_text(), re.MULTILINE))
    for name in ("ray", "torch", "transformers"):
        assert listed[name] == pinned[name]

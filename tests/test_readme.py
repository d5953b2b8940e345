"""The README and docs/ claim only what is there."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
TESTS = {
    name
    for path in (ROOT / "tests").rglob("test_*.py")
    for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
}


def test_every_promise_names_a_test_that_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", README))
    assert len(named) >= 10
    assert not named - TESTS


def test_every_test_that_a_document_names_exists() -> None:
    for page in (ROOT / "docs").glob("*.md"):
        named = set(re.findall(r"`(test_\w+)`", page.read_text()))
        assert not named - TESTS, page.name


def test_every_file_the_readme_names_exists() -> None:
    named = re.findall(r"\b(?:configs|deploy|docs|jobs|benchmarks|bertray)/[\w./-]+\.\w+", README)
    assert named
    assert not [name for name in named if not (ROOT / name).exists()]


def test_every_make_target_the_readme_names_exists() -> None:
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    targets = {line.split()[0] for line in listed.stdout.splitlines() if line.strip()}
    named = set(re.findall(r"^    make ([a-z]+)", README, re.MULTILINE))
    assert {"demo", "test"} <= named
    assert named <= targets | {"help"}

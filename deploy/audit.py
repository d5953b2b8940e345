"""Look up what is known against the versions that constraints.txt pins, as `make check` does.

python deploy/audit.py

Ends with 1 if anything is known that `ACCEPTED` does not name. Where no vulnerability service can
be reached nothing is looked up: that is said, and is no failure.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PINNED = Path(__file__).parents[1] / "constraints.txt"
# A mirror of PyPI without such a service answers that nothing is known against anything.
KNOWN_BAD = "requests==2.20.0"
# Each id that is borne, and why; docs/security.md says when one may be.
ACCEPTED: dict[str, str] = {}


class NoAnswerError(Exception):
    """No vulnerability service can be reached; the text says what was tried."""


def main() -> int:
    """The audit; gives the exit code."""
    try:
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
            file.write(KNOWN_BAD)
            file.flush()
            if not found_in(known(Path(file.name))):
                raise NoAnswerError(f"the index knows nothing against {KNOWN_BAD}")
    except NoAnswerError as error:
        print(f"audit skipped, no vulnerability service: {error}", file=sys.stderr)
        return 0
    try:
        packages = known(PINNED)
    except NoAnswerError as error:
        print(f"audit failed, the service answered but not for {PINNED.name}: {error}")
        return 1
    found = found_in(packages)
    for package, ids, fixes in found:
        print(f"{package}: {', '.join(ids)}; mended in {', '.join(fixes) or 'no release'}")
    looked_up = sum("version" in package for package in packages)
    print(f"audit: {looked_up} of {len(packages)} packages looked up, {len(found)} with findings")
    return bool(found)


def known(requirements: Path) -> list[dict[str, Any]]:
    """What pip-audit says of each requirement.

    Raises:
        NoAnswerError: it could not ask.
    """
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip_audit", "--requirement", requirements, "--no-deps"),
            *("--disable-pip", "--format", "json", "--progress-spinner", "off"),
        ],
        capture_output=True,
        text=True,
        check=False,  # it ends with 1 upon a finding too
    )
    if not done.stdout.strip():
        raise NoAnswerError((done.stderr.strip().splitlines() or ["pip-audit says nothing"])[-1])
    return list(json.loads(done.stdout)["dependencies"])


def found_in(packages: list[dict[str, Any]]) -> list[tuple[str, list[str], list[str]]]:
    """Package, ids and the releases that mend it, of each finding that is not accepted."""
    return [
        (f"{package['name']} {package['version']}", ids, finding["fix_versions"])
        for package in packages
        for finding in package.get("vulns", [])
        if ACCEPTED.keys().isdisjoint(ids := [finding["id"], *finding["aliases"]])
    ]


if __name__ == "__main__":
    sys.exit(main())

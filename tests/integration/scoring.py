"""A small lake, the command that scores it, and what comes of it: for tests of several runs."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa


def texts(name: str, *more: str) -> pa.Table:
    return pa.table({"text": [f"{name} good film", "bad plot", *more]})


def command(model: Path, source: Path, out: Path, *words: str) -> list[str]:
    """With one actor, unless told: each more would import for longer than these lakes take."""
    paths = [f"model.path={model}", f"input.path={source}", f"output.path={out}"]
    return ["score", *paths, "pool.max_actors=1", *words]


def contents(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*.parquet"))}


def driver(
    words: list[str], environment: Mapping[str, str], *, before: str = ""
) -> "subprocess.Popen[str]":
    """The command in a process of its own, on the cluster that the environment names.

    Args:
        words: of the command line.
        environment: of the process.
        before: a line of Python to run before it.
    """
    code = f"{before}\nimport sys; from bertray.cli import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.Popen(
        [sys.executable, "-c", code, *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )

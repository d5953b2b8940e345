"""A small lake, the command that scores it, and what comes of it: for tests of several runs."""

from pathlib import Path

import pyarrow as pa


def texts(name: str, *more: str) -> pa.Table:
    return pa.table({"text": [f"{name} good film", "bad plot", *more]})


def command(model: Path, source: Path, out: Path, *words: str) -> list[str]:
    return ["score", f"model.path={model}", f"input.path={source}", f"output.path={out}", *words]


def contents(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*.parquet"))}

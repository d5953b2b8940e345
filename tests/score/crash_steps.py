"""A scoring run that kills itself at its n-th step, for every n. Run by `test_crash.py`.

    python crash_steps.py MODEL INPUT FOLDER

FOLDER is on local disk or on S3. A step is a moment before or after something that a reader of the
output, or a later run, could see: a file half written or whole, a sync, a link, a rename, a
removal; on S3 a request that changes something, whose reply is lost with the process. The run is
the real one, but for the cluster: splits are read, given made-up predictions and put in this
process. Each death is followed by a look at what readers see and by a run without a death. Prints a
line of JSON.
"""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from aiobotocore.client import AioBaseClient

from bertray import storage
from bertray.config import ScoreConfig, load_config
from bertray.schema import OK, Predictions, append_predictions
from bertray.score import run
from bertray.score.commits import SPLIT_ID, Receipt
from bertray.score.plan import Split
from bertray.score.sink import ShardSink
from bertray.score.source import read_split
from bertray.score.summary import Summary

CHANGES = ("Put", "Delete", "Create", "Upload", "Complete", "Copy")  # how S3 names what writes


def main(model: str, source: str, folder: str) -> None:
    """Clean run, then one death a step until a run ends by itself."""
    run.launch = without_cluster
    bundle = run.open_bundle(model)
    run.open_bundle, run.load_model = (
        lambda path, **_: bundle,
        lambda bundle: None,
    )  # read once is enough
    config_of = config_with(model, source)
    clean = storage.join(folder, "clean")
    assert alone(lambda: run.score(config_of(clean))) == 0
    wanted = contents(clean)
    kept = 0
    for step in count():
        out = storage.join(folder, f"step-{step}")
        status = alone(lambda step=step, out=out: dying(step, lambda: run.score(config_of(out))))
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL, status
        standing = look(out, wanted)
        kept += len(standing)
        assert alone(lambda out=out: run.score(config_of(out))) == 0, f"rerun after step {step}"
        assert contents(out) == wanted, f"after step {step}"
        for name, version in standing.items():
            now = storage.version_of(storage.join(out, name))
            assert now == version, f"{name} was written again at step {step}"
    told = {"deaths": step, "files_kept": kept, "files": len(wanted)}
    sys.stdout.write(json.dumps(told) + "\n")


def without_cluster(job: run.Job, splits: Sequence[Split], summary: Summary) -> Iterator[Receipt]:
    """What the cluster does, with predictions that follow from the text's length alone."""
    sink = ShardSink(
        output=storage.absolute(job.config.output.path),
        digests=job.contract.digests,
        engine="none",
        prefix=job.reading.prefix,
        keep_bad_rows=True,
        attempts=None,
    )
    labels = job.bundle.labels
    for split in splits:
        block = read_split(split, job.reading)
        lengths = [len(text) % len(labels) for text in block["text"].to_pylist()]
        values = np.eye(len(labels), dtype=np.float32)[lengths]
        scored = append_predictions(block, Predictions(values, (OK,) * len(values)), labels=labels)
        yield sink.write(scored.replace_schema_metadata(block.schema.metadata), split)


def alone(work: Callable[[], Any]) -> int:
    """Do something in a process of its own; gives how that ended."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    try:
        work()
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        os._exit(1)
    os._exit(0)


def dying(last_step: int, work: Callable[[], Any]) -> None:
    """Do something, and die at one of its steps."""
    steps = count()

    def step() -> None:
        if next(steps) == last_step:
            os.kill(os.getpid(), signal.SIGKILL)

    def deadly(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            step()
            result = function(*args, **kwargs)
            step()
            return result

        return call

    write_table, write_bytes = pq.write_table, Path.write_bytes

    def half_a_table(table: Any, where: Any, **options: Any) -> None:
        write_table(table, where, **options)
        if isinstance(where, Path):
            whole = where.read_bytes()
            write_bytes(where, whole[: len(whole) // 2])
            step()
            write_bytes(where, whole)

    def half_the_bytes(path: Path, data: bytes) -> int:
        write_bytes(path, data[: len(data) // 2])
        step()
        return write_bytes(path, data)

    pq.write_table, Path.write_bytes = half_a_table, half_the_bytes  # type: ignore[assignment, method-assign]
    for owner, name in (
        (os, "link"),
        (os, "fsync"),
        (os, "remove"),
        (os, "rmdir"),
        (os, "mkdir"),
        (Path, "mkdir"),
        (Path, "replace"),
        (Path, "unlink"),
    ):
        setattr(owner, name, deadly(getattr(owner, name)))
    request = AioBaseClient._make_api_call

    async def deadly_request(client: AioBaseClient, operation: str, details: Any) -> Any:
        if not operation.startswith(CHANGES):
            return await request(client, operation, details)
        step()
        reply = await request(client, operation, details)
        step()
        return reply

    AioBaseClient._make_api_call = deadly_request
    work()


def look(out: str, wanted: dict[str, bytes]) -> dict[str, str]:
    """What a reader sees: whole files or none, and no word of success too early.

    Returns:
        The scored files that stand, and their versions.
    """
    found = contents(out)
    standing = {}
    for name, data in found.items():
        if name.endswith((".parquet", ".json", "_SUCCESS")):
            assert data == wanted[name], name
        if name.endswith(".parquet"):
            assert SPLIT_ID in pq.read_metadata(pa.BufferReader(data)).metadata, name
            standing[name] = storage.version_of(storage.join(out, name))
    if "_SUCCESS" in found:
        assert set(wanted) <= set(found)
    return standing


def contents(out: str) -> dict[str, bytes]:
    """All files for readers: nothing of the run itself, its paths and times, nor the index."""
    files, root = storage.resolve(out)
    files.invalidate_cache()
    names = [name.removeprefix(root).lstrip("/") for name in files.find(root)]
    hidden = ("_lease.json", "_config.yaml", "_run.json", "_index/", ".")
    return {
        name: files.cat_file(f"{root}/{name}")
        for name in names
        if not name.startswith(hidden) and not Path(name).name.startswith(".")
    }


def config_with(model: str, source: str) -> Callable[[str], ScoreConfig]:
    """The job's config, by output folder."""

    def config(out: str) -> ScoreConfig:
        words = [f"model.path={model}", f"input.path={source}", f"output.path={out}"]
        return load_config(ScoreConfig, None, [*words, "input.max_split_rows=4"])

    return config


if __name__ == "__main__":
    main(*sys.argv[1:])

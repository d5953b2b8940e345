"""`bertray doctor`: are machine, cluster, model and input fit to score with."""

import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from bertray import __version__
from bertray.config import ScoreConfig
from bertray.errors import BertrayError

PACKAGES = ("ray", "torch", "transformers", "tokenizers", "pyarrow", "s3fs", "numpy")
OPTIONAL = ("nanotoken", "gigatoken", "onnxruntime", "gcsfs", "adlfs")


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    Attributes:
        what: its name.
        found: what is there.
        advice: what to do about it; empty if nothing.
        ok: False if a job would fail on it.
    """

    what: str
    found: str
    advice: str = ""
    ok: bool = True


def examine(config: ScoreConfig | None) -> Iterator[Finding]:
    """Look at versions, devices and the cluster; with a scoring config, at its model and input."""
    yield Finding(
        "bertray", f"{__version__} on Python {platform.python_version()} ({sys.platform})"
    )
    yield from _packages()
    yield _device()
    yield _guarded("cluster", _cluster)
    if config is not None:
        yield _guarded("model", lambda: _model(config))
        yield _guarded("input", lambda: _input(config))


def _packages() -> Iterator[Finding]:
    for name in PACKAGES:
        try:
            yield Finding(name, version(name))
        except PackageNotFoundError:
            yield Finding(name, "missing", f"pip install {name}", ok=False)
    there = []
    for name in OPTIONAL:
        try:
            there.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    yield Finding("optional packages", ", ".join(there) or "none")


def _device() -> Finding:
    import os

    import torch

    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        return Finding("GPUs on this machine", f"{count} x {torch.cuda.get_device_name(0)}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    built = "" if torch.version.cuda else "; this torch is built without CUDA"
    return Finding("GPUs on this machine", f"none ({cores} CPU cores{built})")


def _cluster() -> Finding:
    from bertray import cluster

    resources = cluster.connect()
    found = f"{resources.num_nodes} nodes, {resources.num_cpus:g} CPUs, {resources.num_gpus:g} GPUs"
    if resources.num_cpus < 1:
        return Finding("Ray cluster", found, "no node offers a CPU: start one", ok=False)
    return Finding("Ray cluster", found)


def _model(config: ScoreConfig) -> Finding:
    from bertray.model.bundle import load_model, open_bundle

    bundle = open_bundle(config.model.path, root=config.model.store)
    load_model(bundle)
    return Finding(
        "model",
        f"{bundle.source}: {bundle.task}, "
        f"{f'{len(bundle.labels)} labels, ' if bundle.task != 'regression' else ''}"
        f"max_length {bundle.max_length}, long texts: {bundle.long_text.long}, "
        f"digest {bundle.digest[:12]}",
    )


def _input(config: ScoreConfig) -> Finding:
    from bertray import storage
    from bertray.score.plan import plan_splits
    from bertray.score.source import Reading

    source = config.input
    reading = Reading(source.text, source.text_pair, source.columns, config.output.prefix)
    plan = plan_splits(
        storage.absolute(source.path),
        check_schema=reading.check,
        max_split_rows=source.max_split_rows,
    )
    found = f"{source.path}: {plan.num_rows:,} rows in {len(plan.splits)} splits"
    if plan.bad_shards:
        bad = plan.bad_shards[0]
        advice = f"{len(plan.bad_shards)} shards will be quarantined; {bad.shard}: {bad.reason}"
        return Finding("input", found, advice)
    return Finding("input", found)


def _guarded(what: str, look: Callable[[], Finding]) -> Finding:
    """A failure is a finding, so that the next thing is looked at too."""
    try:
        return look()
    except (BertrayError, OSError, RuntimeError, ConnectionError) as error:
        return Finding(what, "cannot be used", str(error), ok=False)

"""The Ray cluster a job runs on: reach it, and ask it what it has."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from bertray.errors import BertrayError, ClusterError

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Resources:
    """What the cluster's nodes offer together.

    Attributes:
        num_cpus: logical CPUs.
        num_gpus: GPUs.
        num_nodes: live nodes.
    """

    num_cpus: float
    num_gpus: float
    num_nodes: int


def connect(*, dashboard: bool = False) -> Resources:
    """Join the cluster that ``RAY_ADDRESS`` or ``ray start`` names, else start one in this process.

    Under ``ray job submit`` that is the cluster the job was submitted to.

    Args:
        dashboard: start one with a private cluster. Ray Train asks its API whether a run lives.
    """
    debug = logger.isEnabledFor(logging.DEBUG)
    if not debug:
        # Ray's own core reports harmless things as errors on the driver's stderr
        # (https://github.com/ray-project/ray/issues/53727). Workers' logs stay in Ray's log folder;
        # what a user must know comes back with the results.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if not ray.is_initialized():
        with nullcontext() if debug else _silent_stderr():
            ray.init(include_dashboard=dashboard, logging_level=logging.ERROR, log_to_driver=debug)
    if not debug:
        # Set up anew by `import ray.data`; its plans and bars are for debugging Ray.
        for name in ("ray.data", "ray.train"):
            logging.getLogger(name).setLevel(logging.ERROR)
    total = ray.cluster_resources()  # type: ignore[no-untyped-call]
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    return Resources(
        num_cpus=total.get("CPU", 0.0),
        num_gpus=total.get("GPU", 0.0),
        num_nodes=len([node for node in nodes if node["Alive"]]),
    )


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Keep what Ray's core greets with off the terminal; a failure to start is an exception."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def unwrapped(items: Iterator[T]) -> Iterator[T]:
    """Pass items on; of an error that Ray wrapped, raise the one that was raised in the worker.

    Raises:
        BertrayError: a worker raised it.
        ClusterError: Ray lost what it could not bring back.
    """
    try:
        yield from items
    except Exception as error:
        cause = _own_error(error)
        if cause is not None:
            raise cause from error
        if isinstance(error, RayError) and not isinstance(error, RayTaskError):
            first = str(error).strip().splitlines()[:1]
            raise ClusterError(f"{type(error).__name__}: {' '.join(first)}") from error
        raise


def _own_error(error: BaseException | None) -> BertrayError | None:
    """The first BertrayError in a chain of causes; Ray keeps some in ``.cause``."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        # Ray's stand-in is an instance of both, and its text is a traceback.
        if isinstance(error, BertrayError) and not isinstance(error, RayTaskError):
            return error
        seen.add(id(error))
        error = getattr(error, "cause", None) or error.__cause__
    return None

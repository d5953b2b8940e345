"""How many actors, each with which share of a node."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from bertray.cluster import Resources
from bertray.config import Pool
from bertray.errors import ConfigError
from bertray.model.backend import Device

# Of each CPU that an actor keeps busy it reserves this much; what is left lets the
# reading and writing processes be scheduled. Actors that take every CPU starve them for ever
# (https://github.com/ray-project/ray/issues/44687).
CPU_PER_THREAD = 0.8
HELPER_CPUS = 0.1
# One process reads, and one writes, for so many threads that compute; a GPU keeps two busy.
THREADS_PER_HELPER = 8
HELPERS_PER_GPU_ACTOR = 2
# Ray hands splits to an actor ten times a second, so a queue of two bounds it to twenty splits a
# second. Longer queues leave more with the slowest actor when the others have ended: each place is
# a small share of what an actor does in the run.
SHORTEST_QUEUE, LONGEST_QUEUE = 2, 8
SPLITS_PER_PLACE = 32


@dataclass(frozen=True)
class PoolPlan:
    """The actor pool of a run.

    Attributes:
        device: what the actors compute on.
        min_actors: the pool never shrinks below.
        max_actors: nor grows above.
        num_gpus: reserved by each actor; 0 on CPU.
        num_cpus: likewise.
        num_threads: torch threads of each actor on CPU; beside a GPU, threads that tokenize for it,
            None for `tokenizing_threads`, which an actor finds where it is.
        max_helpers: processes that read, at most; as many write. It begins with one of each.
        calls_per_actor: splits that an actor has in hand at once.
        splits_per_actor: that it has in hand or waiting.
        splits_per_helper: likewise, of a process that reads or writes.
    """

    device: Device
    min_actors: int
    max_actors: int
    num_gpus: float
    num_cpus: float
    num_threads: int | None
    max_helpers: int
    calls_per_actor: int
    splits_per_actor: int
    splits_per_helper: int


def plan_pool(pool: Pool, cluster: Resources, *, num_splits: int) -> PoolPlan:
    """Fill in what the config leaves to us from what the cluster has.

    Args:
        pool: the config's section.
        cluster: what it has now.
        num_splits: more actors than splits would only load models.

    Raises:
        ConfigError: the pool wants GPUs that the cluster does not have, or actors that fit no node.
    """
    gpus_each = (1.0 if cluster.num_gpus else 0.0) if pool.num_gpus == "auto" else pool.num_gpus
    threads = pool.num_threads or 1
    if gpus_each:
        if not cluster.num_gpus and pool.max_actors is None:
            raise ConfigError(
                f"pool.num_gpus={gpus_each:g}, but the cluster has no GPU now; set pool.max_actors "
                "if GPU nodes will join, or pool.num_gpus=0 to run on CPU"
            )
        fitting = _fitting(cluster, gpus_each)
        if not fitting and pool.max_actors is None:
            most = max(node.num_gpus for node in cluster.nodes)
            raise ConfigError(
                f"pool.num_gpus={gpus_each:g}, but no node has more than {most:g} now; "
                "set pool.max_actors if larger nodes will join, or fewer GPUs"
            )
        cpus_each = CPU_PER_THREAD
    else:
        node_cpus = cluster.largest_node_cpus
        if threads > max(node_cpus, 1) and pool.max_actors is None:
            raise ConfigError(
                f"pool.num_threads={threads}, but no node has more than {node_cpus:g} CPUs now; "
                "set pool.max_actors if larger nodes will join, or fewer threads"
            )
        fitting = int(cluster.num_cpus / threads)
        cpus_each = CPU_PER_THREAD * threads
        if node_cpus:  # else its nodes have yet to come, and are made for such actors
            cpus_each = min(cpus_each, max(node_cpus - 2 * HELPER_CPUS, HELPER_CPUS))
    most = max(min(pool.max_actors or max(fitting, pool.min_actors or 1), num_splits), 1)
    if gpus_each:
        helpers = min(HELPERS_PER_GPU_ACTOR * most, num_splits)
        calls = 2  # one is tokenized while the GPU computes the other
    else:
        helpers = min(math.ceil(most * threads / THREADS_PER_HELPER), num_splits)
        calls = 1  # two would be in each other's way
    return PoolPlan(
        device="cuda" if gpus_each else "cpu",
        min_actors=min(pool.min_actors or most, most),
        max_actors=most,
        num_gpus=gpus_each,
        num_cpus=cpus_each,
        num_threads=pool.num_threads if gpus_each else threads,
        max_helpers=max(helpers, 1),
        calls_per_actor=calls,
        splits_per_actor=max(2 * calls, _in_flight(num_splits, most)),
        splits_per_helper=_in_flight(num_splits, max(helpers, 1)),
    )


def _fitting(cluster: Resources, gpus_each: float) -> int:
    """How many actors there is room for: one lies on one node, and a fraction on one GPU."""
    if gpus_each < 1:
        return int(cluster.num_gpus) * int(1 / gpus_each)
    return sum(int(node.num_gpus / gpus_each) for node in cluster.nodes)


def tokenizing_threads(node: Mapping[str, float], *, num_gpus: float) -> int:
    """An actor's share of its node's CPUs, less those of the processes that read and write for it.

    They are not reserved: they work for moments, and Ray's other processes wait little for them.

    Args:
        node: its resources, as Ray counts them.
        num_gpus: of the actor.
    """
    share = node.get("CPU", 1.0) * num_gpus / max(node.get("GPU", 0.0), num_gpus)
    return max(int(share) - 2 * HELPERS_PER_GPU_ACTOR, 1)


def _in_flight(num_splits: int, num_actors: int) -> int:
    """How many splits may be with one actor."""
    share = num_splits // num_actors // SPLITS_PER_PLACE
    return min(max(share, SHORTEST_QUEUE), LONGEST_QUEUE)

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from bertray.cluster import Node, Resources
from bertray.config import Pool
from bertray.errors import ConfigError
from bertray.score.pool import (
    CPU_PER_THREAD,
    HELPER_CPUS,
    PoolPlan,
    plan_pool,
    tokenizing_threads,
)


def pool(**settings: object) -> Pool:
    return Pool.model_validate(settings)


def planned(
    pool: Pool,
    *,
    num_cpus: float,
    num_gpus: float,
    num_splits: int,
    num_nodes: int = 1,
) -> PoolPlan:
    """On one node, or on several that are alike."""
    nodes = [Node(num_cpus / num_nodes, num_gpus / num_nodes)] * num_nodes
    return plan_pool(pool, Resources(tuple(nodes)), num_splits=num_splits)


@given(st.integers(1, 256), st.integers(1, 1000), st.none() | st.integers(1, 8))
def test_a_default_cpu_pool_leaves_room_for_reading_and_writing(
    num_cpus: int, num_splits: int, threads: int | None
) -> None:
    assume(threads is None or threads <= num_cpus)
    plan = planned(pool(num_threads=threads), num_cpus=num_cpus, num_gpus=0, num_splits=num_splits)
    assert plan.device == "cpu"
    assert 1 <= plan.min_actors <= plan.max_actors <= max(num_splits, 1)
    assert plan.max_actors * plan.num_cpus + 2 * HELPER_CPUS <= num_cpus + 1e-9


def test_a_gpu_cluster_gets_one_actor_a_gpu() -> None:
    plan = planned(pool(), num_cpus=64, num_gpus=8, num_splits=1000)
    assert (plan.device, plan.max_actors, plan.num_gpus) == ("cuda", 8, 1)


@given(st.integers(1, 8), st.integers(0, 256))
def test_a_gpu_pool_leaves_room_for_reading_and_writing_too(num_gpus: int, more_cpus: int) -> None:
    num_cpus = num_gpus + more_cpus
    plan = planned(pool(), num_cpus=num_cpus, num_gpus=num_gpus, num_splits=1000)
    assert plan.max_actors == num_gpus
    assert plan.max_actors * plan.num_cpus + 2 * HELPER_CPUS <= num_cpus + 1e-9


def test_an_actor_that_fits_no_node_is_an_error_unless_the_size_is_given() -> None:
    four_nodes = {"num_cpus": 32, "num_gpus": 0, "num_splits": 9, "num_nodes": 4}
    with pytest.raises(ConfigError, match=r"num_threads=16, but no node has more than 8 CPUs"):
        planned(pool(num_threads=16), **four_nodes)
    assert planned(pool(num_threads=16, max_actors=2), **four_nodes).num_cpus < 8
    assert planned(pool(num_threads=8), **four_nodes).max_actors == 4


def test_a_gpu_actor_has_a_split_to_tokenize_while_it_computes_another() -> None:
    plan = planned(pool(), num_cpus=64, num_gpus=8, num_splits=1000)
    assert plan.calls_per_actor == 2
    assert planned(pool(), num_cpus=64, num_gpus=0, num_splits=1000).calls_per_actor == 1


def test_the_cpus_beside_a_gpu_tokenize_for_it() -> None:
    assert planned(pool(), num_cpus=64, num_gpus=8, num_splits=9).num_threads is None
    assert planned(pool(num_threads=3), num_cpus=64, num_gpus=8, num_splits=9).num_threads == 3
    node = {"CPU": 128.0, "GPU": 8.0}
    assert tokenizing_threads(node, num_gpus=1) == 12  # 16 a GPU, of which four read and write
    assert tokenizing_threads(node, num_gpus=0.5) == 4
    assert tokenizing_threads({"CPU": 8.0, "GPU": 8.0}, num_gpus=1) == 1
    assert tokenizing_threads({}, num_gpus=1) == 1


def test_a_fraction_of_a_gpu_shares_it() -> None:
    plan = planned(pool(num_gpus=0.5), num_cpus=64, num_gpus=2, num_splits=1000)
    assert (plan.device, plan.max_actors, plan.num_gpus) == ("cuda", 4, 0.5)


@pytest.mark.parametrize(
    ("each", "node_gpus", "expected"),
    [
        (0.4, (2,), 4),  # a fifth one would need a piece of either
        (0.7, (8,), 8),
        (0.1, (1, 1, 0), 20),
        (1, (1, 8, 0), 9),
        (2, (3, 3), 2),
        (2, (1, 4), 2),
    ],
)
def test_no_actor_is_planned_that_fits_on_no_gpu_and_no_node(
    each: float, node_gpus: tuple[float, ...], expected: int
) -> None:
    cluster = Resources(tuple(Node(16, gpus) for gpus in node_gpus))
    assert plan_pool(pool(num_gpus=each), cluster, num_splits=1000).max_actors == expected


def test_gpus_that_no_node_has_together_are_an_error_unless_the_size_is_given() -> None:
    four_nodes = {"num_cpus": 32, "num_gpus": 4, "num_splits": 9, "num_nodes": 4}
    with pytest.raises(ConfigError, match=r"num_gpus=2, but no node has more than 1 now"):
        planned(pool(num_gpus=2), **four_nodes)
    assert planned(pool(num_gpus=2, max_actors=3), **four_nodes).max_actors == 3


def test_actors_whose_nodes_have_yet_to_come_ask_for_all_they_keep_busy() -> None:
    plan = planned(pool(max_actors=16, num_threads=2), num_cpus=0, num_gpus=0, num_splits=99)
    assert (plan.max_actors, plan.num_cpus) == (16, 2 * CPU_PER_THREAD)


def test_no_more_actors_than_splits() -> None:
    assert planned(pool(), num_cpus=64, num_gpus=8, num_splits=3).max_actors == 3


def test_what_the_config_says_is_taken() -> None:
    plan = planned(pool(min_actors=2, max_actors=5), num_cpus=64, num_gpus=8, num_splits=100)
    assert (plan.min_actors, plan.max_actors) == (2, 5)
    assert planned(pool(num_gpus=0), num_cpus=4, num_gpus=8, num_splits=9).device == "cpu"


def test_gpus_that_are_not_there_are_an_error_unless_the_size_is_given() -> None:
    with pytest.raises(ConfigError, match=r"pool\.num_gpus=1, but the cluster has no GPU"):
        planned(pool(num_gpus=1), num_cpus=4, num_gpus=0, num_splits=9)
    plan = planned(pool(num_gpus=1, max_actors=4), num_cpus=4, num_gpus=0, num_splits=9)
    assert (plan.device, plan.max_actors) == ("cuda", 4)


def test_processes_that_read_and_write_are_few_beside_those_that_compute() -> None:
    def most(*, num_cpus: int, num_gpus: int, num_splits: int = 1000) -> int:
        plan = planned(pool(), num_cpus=num_cpus, num_gpus=num_gpus, num_splits=num_splits)
        return plan.max_helpers

    assert most(num_cpus=2, num_gpus=0) == 1
    assert most(num_cpus=64, num_gpus=0) == 8
    assert most(num_cpus=64, num_gpus=8) == 16
    assert most(num_cpus=64, num_gpus=8, num_splits=1) == 1


def test_a_queue_grows_with_what_an_actor_has_to_do_and_stays_a_small_share_of_it() -> None:
    def in_flight(*, num_splits: int, num_gpus: int = 0) -> tuple[int, int]:
        plan = planned(pool(), num_cpus=8, num_gpus=num_gpus, num_splits=num_splits)
        return plan.splits_per_actor, plan.splits_per_helper

    assert in_flight(num_splits=100) == (2, 3)
    assert in_flight(num_splits=10_000) == (8, 8)
    assert in_flight(num_splits=100, num_gpus=8) == (4, 2)  # two in hand, two waiting
    assert in_flight(num_splits=10_000, num_gpus=8) == (8, 8)

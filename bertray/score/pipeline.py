"""The stages that scoring and evaluation share: splits in, blocks with predictions out."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext, Dataset

from bertray import cluster
from bertray.cluster import PipelineGuard
from bertray.config import InferenceModel, InferenceText
from bertray.errors import ConfigError
from bertray.model.backend import Device
from bertray.model.bundle import Bundle
from bertray.model.settings import EngineSettings, resolve_settings
from bertray.score.classifier import Classifier, ClassifierSettings
from bertray.score.ledger import Attempts
from bertray.score.plan import Split
from bertray.score.pool import HELPER_CPUS, PoolPlan
from bertray.score.sink import ShardSink
from bertray.score.source import Reading, SplitSource
from bertray.text.long import LongText


def engine_settings(
    bundle: Bundle,
    model: InferenceModel,
    *,
    text: InferenceText,
    has_pairs: bool,
    device: Device,
    dtype: str | None = None,
) -> EngineSettings:
    """What the config's sections and the device class make of a model."""
    return resolve_settings(
        bundle,
        device=device,
        max_length=model.max_length,
        dtype=dtype or model.dtype,
        max_batch_tokens=model.max_batch_tokens,
        backend=model.backend,
        long_text=long_text_of(bundle, text),
        has_pairs=has_pairs,
    )


def long_text_of(bundle: Bundle, text: InferenceText) -> LongText:
    """What the bundle says, but for what the config does.

    Raises:
        ConfigError: a setting of windows is given where there are none.
    """
    given = text.model_dump(exclude_none=True)
    long_text = replace(bundle.long_text, **given)
    if long_text.long != "window" and (ignored := sorted(given.keys() - {"long"})):
        raise ConfigError(
            f"text.{ignored[0]}={given[ignored[0]]} is for text.long=window, and it is "
            f"{long_text.long}{'' if text.long else ' as ' + bundle.source + ' was trained'}"
        )
    return long_text


def classified(
    splits: Sequence[Split],
    *,
    bundle: Bundle,
    engine: EngineSettings,
    reading: Reading,
    pool: PoolPlan,
    attempts: Attempts,
    watch: PipelineGuard,
) -> Dataset:
    """Blocks with predictions, one a split. A split that fails is a block that says why."""
    settings = ClassifierSettings(
        model=bundle.location,
        model_digest=bundle.digest,
        engine=engine,
        reading=reading,
        num_threads=pool.num_threads,
        attempts=attempts,
    )
    with DataContext.current(_context(watch)):
        blocks = ray.data.read_datasource(
            SplitSource(splits, reading, attempts),
            num_cpus=HELPER_CPUS,
            override_num_blocks=len(splits),
            compute=_helpers(pool),
        )
    # For GPUs `map_batches` wants a number of rows; an engine makes its own batches of a split.
    scored: Dataset = blocks.map_batches_internal(
        Classifier,
        fn_constructor_args=(settings,),
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=ActorPoolStrategy(
            min_size=pool.min_actors,
            max_size=pool.max_actors,
            max_tasks_in_flight_per_actor=pool.splits_per_actor,
            max_concurrent_calls_per_actor=pool.calls_per_actor,
            enable_true_multi_threading=True,
        ),
        num_cpus=pool.num_cpus,
        num_gpus=pool.num_gpus or None,
    )
    return scored


def written(scored: Dataset, sink: ShardSink, pool: PoolPlan) -> Dataset:
    """Receipts, one a block, once its file stands in the output folder."""
    receipts: Dataset = scored.map_batches(
        type(sink),
        fn_constructor_kwargs=vars(sink),
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        num_cpus=HELPER_CPUS,
        compute=_helpers(pool),
    )
    return receipts


def blocks_of(dataset: Dataset) -> Iterator[pa.Table]:
    """Start a pipeline and give its last stage's blocks as they come.

    ``Dataset.iter_batches`` would send all that Ray knows of all blocks so far to an actor of Ray's
    every five seconds: after some thousand splits nothing else gets done.

    Raises:
        BertrayError: a worker raised it.
        ClusterError: Ray lost what it could not bring back.
    """
    yield from cluster.unwrapped(_blocks(dataset))


def _blocks(dataset: Dataset) -> Iterator[pa.Table]:
    for bundle in dataset.iter_internal_ref_bundles():
        yield from ray.get([entry.ref for entry in bundle.blocks])


def _context(watch: PipelineGuard) -> DataContext:
    """How Ray Data is to run our pipelines; the process's own settings are left as they are."""
    context = cluster.pipeline_context(watch)
    context.target_max_block_size = None  # a split stays one block from read to write
    context.memory_usage_poll_interval_s = None  # that starts a thread for each task
    return context


def _helpers(pool: PoolPlan) -> ActorPoolStrategy:
    """Processes that read, or that write; they stay.

    Tasks would not do: Ray ends a task's process after an idle second, and a new one imports for
    longer than it takes to read or write a split.
    """
    return ActorPoolStrategy(
        min_size=1,
        max_size=pool.max_helpers,
        max_tasks_in_flight_per_actor=pool.splits_per_helper,
        enable_true_multi_threading=True,  # one call at a time all the same, but no thread for it
    )

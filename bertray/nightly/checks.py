"""What can be wrong with a night beside its scoring, found before a row is scored."""

from collections.abc import Iterator
from importlib.util import find_spec

import pyarrow as pa
import pyarrow.parquet as pq

from bertray import storage
from bertray.config import EvaluateConfig, NightlyConfig, TrainConfig, load_config
from bertray.errors import ConfigError, DataError, SchemaError
from bertray.model.bundle import Bundle
from bertray.nightly.history import history_of
from bertray.report.run import find_evaluation
from bertray.schema import check_label_column
from bertray.score.plan import SUFFIX

FEW_SHARDS = 4  # at either end of a lake, whose schemas are looked at


def check(config: NightlyConfig, bundle: Bundle) -> None:
    """Look at what the report and the alert will need.

    Raises:
        UserError: it will not be there.
    """
    source, explain = config.input, config.explain.num_rows
    history_of(config)
    evaluation_of(config)
    webhook = config.alert.webhook
    if webhook is not None and not webhook.startswith(("https://", "http://")):
        raise ConfigError("alert.webhook: expected a URL that begins with https:// or http://")
    if explain and find_spec("captum") is None:
        raise ConfigError(
            f"explain.num_rows={explain}: explanations need captum; "
            "pip install 'bertray[explain]', or leave it out"
        )
    texts = [source.text, source.text_pair] if explain else []
    wanted = [("night.label", config.night.label), *(("explain.num_rows", one) for one in texts)]
    for key, column in wanted:
        if column is not None and source.columns is not None and column not in source.columns:
            raise ConfigError(
                f"{key}: the scored shards will not hold the column {column!r}; "
                "name it in input.columns too, or leave that out"
            )
    if config.night.label is not None:
        _check_label(config, bundle, config.night.label)


def evaluation_of(config: NightlyConfig) -> str | None:
    """The folder of metrics that the page shows; None while a challenger has yet to write it.

    Raises:
        DataError: there are none, and no challenger to write them.
    """
    folder = config.night.evaluation
    try:
        find_evaluation(folder, key="night.evaluation")
    except DataError:
        if config.challenger.evaluate is None:
            raise
        return None
    return folder


def check_challenger(config: NightlyConfig) -> None:
    """Read the configs of the challenger; a night goes on without it, a dry run need not.

    Raises:
        ConfigError: one of them cannot be read.
    """
    if config.challenger.train is not None and config.challenger.evaluate is not None:
        load_config(TrainConfig, config.challenger.train)
        load_config(EvaluateConfig, config.challenger.evaluate)


def _check_label(config: NightlyConfig, bundle: Bundle, label: str) -> None:
    """Some shards may lack the column, or be none of ours; it is wrong if it fits in no shard."""
    fault: SchemaError | None = None
    for schema, where in _some_schemas(config.input.path):
        if config.input.text not in schema.names:
            continue
        if label in schema.names and pa.types.is_null(schema.field(label).type):
            return
        try:
            check_label_column(schema, label, where=where, key="night.label", task=bundle.task)
            return
        except SchemaError as error:
            fault = fault or error
    if fault is not None:
        raise fault


def _some_schemas(source: str) -> Iterator[tuple[pa.Schema, str]]:
    """Of the last shards, where new days mostly are, and of the first ones; with their names."""
    root, files = storage.list_files(source, suffix=SUFFIX, key="input.path")
    for file in dict.fromkeys([*files[: -FEW_SHARDS - 1 : -1], *files[:FEW_SHARDS]]):
        try:
            with storage.open_input(storage.join(root, file.path)) as shard:
                schema = pq.read_schema(shard)
        except storage.UnreachableError:
            raise
        except Exception:  # a hostile footer may raise anything; it will be quarantined
            continue
        yield schema, file.path

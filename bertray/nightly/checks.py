"""What can be wrong with a night beside its scoring, found before a row is scored."""

from importlib.util import find_spec

import pyarrow as pa
import pyarrow.parquet as pq

from bertray import storage
from bertray.config import EvaluateConfig, NightlyConfig, TrainConfig, load_config
from bertray.errors import ConfigError
from bertray.model.bundle import Bundle
from bertray.report.run import find_evaluation
from bertray.schema import check_label_column
from bertray.score.plan import SUFFIX


def check(config: NightlyConfig, bundle: Bundle) -> None:
    """Look at what the report and the alert will need.

    Raises:
        UserError: it will not be there.
    """
    source, explain = config.input, config.explain.num_rows
    find_evaluation(config.night.evaluation, key="night.evaluation")
    webhook = config.alert.webhook
    if webhook is not None and not webhook.startswith(("https://", "http://")):
        raise ConfigError("alert.webhook: expected a URL that begins with https:// or http://")
    if explain and find_spec("captum") is None:
        raise ConfigError(
            f"explain.num_rows={explain}: explanations need captum; "
            "pip install 'bertray[explain]', or leave it out"
        )
    wanted = {
        "night.label": config.night.label,
        "explain.num_rows": source.text if explain else None,
    }
    for key, column in wanted.items():
        if column is not None and source.columns is not None and column not in source.columns:
            raise ConfigError(
                f"{key}: the scored shards will not hold the column {column!r}; "
                "name it in input.columns too, or leave that out"
            )
    if config.night.label is not None and (found := _a_schema(source.path)) is not None:
        schema, where = found
        check_label_column(
            schema, config.night.label, where=where, key="night.label", task=bundle.task
        )


def check_challenger(config: NightlyConfig) -> None:
    """Read the configs of the challenger; a night goes on without it, a dry run need not.

    Raises:
        ConfigError: one of them cannot be read.
    """
    if config.challenger.train is not None and config.challenger.evaluate is not None:
        load_config(TrainConfig, config.challenger.train)
        load_config(EvaluateConfig, config.challenger.evaluate)


def _a_schema(source: str) -> tuple[pa.Schema, str] | None:
    """Of the first shard that has one, and its name; None if none of the first few has."""
    root, files = storage.list_files(source, suffix=SUFFIX, key="input.path")
    for file in files[:8]:
        try:
            with storage.open_input(storage.join(root, file.path)) as shard:
                return pq.read_schema(shard), file.path
        except (OSError, pa.ArrowException):  # it will be quarantined
            continue
    return None

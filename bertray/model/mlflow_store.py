"""MLflow, as the tracking of a training and the registry of models reach it."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from bertray import storage
from bertray.errors import ConfigError

if TYPE_CHECKING:
    from mlflow import MlflowClient

INSTALL = "pip install bertray[mlflow]"
SQLITE = "sqlite:///"
EXPERIMENT = "bertray"
DATABRICKS, UNITY = "databricks", "databricks-uc"  # a workspace's registry, Unity Catalog's
BUNDLE = "bundle"  # folder of a run's artifacts that a bundle is logged to
DIGEST = "bertray.bundle"  # tag of the run, set once the bundle is there: its digest
ANSWER_S = 10  # that a server may take to answer, twice
TRANSFER_S = 120  # likewise, to take or to give a file


def workspace_of(uri: str) -> str | None:
    """Of a Databricks URI, such as ``databricks-uc://profile``, that of its tracking; else None."""
    kind, mark, profile = uri.partition("://")
    return f"{DATABRICKS}{mark}{profile}" if kind in (DATABRICKS, UNITY) else None


def check_uri(uri: str, *, key: str) -> None:
    """Raise ConfigError if a store's URI holds credentials, or MLflow is not installed."""
    shown = storage.without_secrets(uri)
    if shown != uri:
        raise ConfigError(
            f"{key}={shown}: a URI must not hold credentials; MLflow takes them from "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        )
    missing = [name for name in ("mlflow", "sqlalchemy", "alembic") if find_spec(name) is None]
    if missing:
        raise ConfigError(f"{key}={uri}: {missing[0]} is not installed; {INSTALL}")


def client_of(uri: str) -> "MlflowClient":
    """MLflow, kept from telling others that it is used, and from telling us of each retry."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    for name in ("mlflow", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return MlflowClient(tracking_uri=workspace_of(uri) or uri, registry_uri=uri)


def experiment_of(client: "MlflowClient", name: str, *, uri: str) -> str:
    """The id of an experiment. One that is made in an SQLite file has its artifacts beside it.

    Databricks has them in folders: a plain name stands for one in ``/Shared``.
    """
    if workspace_of(uri) is not None and not name.startswith("/"):
        name = f"/Shared/{name}"
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    beside = None
    if uri.startswith(SQLITE):
        beside = (Path(uri.removeprefix(SQLITE)).absolute().parent / "mlruns").as_uri()
    return str(client.create_experiment(name, artifact_location=beside))


@contextmanager
def patience(seconds: int) -> Iterator[None]:
    """Wait so long for a server's answer, twice, where MLflow itself would go on for minutes.

    Who sets MLflow's own environment variables is heeded.
    """
    wanted = {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(seconds),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    }
    ours = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            del os.environ[name]

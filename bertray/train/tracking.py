"""The MLflow run of a training: its settings, its course, its bundle. The driver alone writes it.

A training that was cut off goes on in the run it had. What the store holds is not logged again: a
step that was taken twice, before and after a lost worker, stands there once. Each trial of a search
has a run below the search's.
"""

import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import TYPE_CHECKING

from bertray import __version__, storage
from bertray.config import TrainConfig, known_keys
from bertray.errors import ConfigError
from bertray.model.cache import digest_of
from bertray.model.mlflow_store import (
    ANSWER_S,
    BUNDLE,
    DIGEST,
    SQLITE,
    TRANSFER_S,
    check_uri,
    client_of,
    experiment_of,
    patience,
)
from bertray.train.courses import ERROR, Course, TrialRuns, best_of, params_of, said_of, values_of
from bertray.train.lineage import run_name
from bertray.train.outcome import TrainSummary
from bertray.train.search import Trial, TrialEpoch
from bertray.train.state import Epoch
from bertray.train.steps import Step

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

logger = logging.getLogger(__name__)

KEY = "tracking.mlflow"
LOCAL_FILE = "mlflow.db"  # that MLflow's own commands take where they run
TRAINING, OUTPUT = "bertray.training", "bertray.output"
SECONDS_BETWEEN_BATCHES = 10.0


class Tracker:
    """The run at work.

    A store that fails meanwhile stops nothing: there is one warning, nothing is sent until the end
    of the training, and then all that the store lacks.
    """

    def __init__(self, client: "MlflowClient", run: "Run", *, uri: str) -> None:
        self._client = client
        self._run_id = run.info.run_id
        self._uri = uri
        self._course = Course(client, self._run_id)
        self._trials = TrialRuns(client, run.info)
        self._of_trials: list[TrialEpoch | Trial] = []  # that wait to be sent
        self._sent = time.monotonic()
        self._has_failed = False

    def update(self, event: object) -> None:
        """Log a step, an epoch or what a trial has come to; steps some at a time."""
        match event:
            case Step() | Epoch():
                self._course.add(values_of(event), step=event.step)
            case TrialEpoch() | Trial():
                self._of_trials.append(event)
            case _:
                return
        now = time.monotonic()
        is_due = not isinstance(event, Step) or now - self._sent >= SECONDS_BETWEEN_BATCHES
        if is_due and not self._has_failed:
            self._sent = now
            with self._bearing("the training goes on, and logs what is missing at its end"):
                self._send()

    def finish(self, made: Path, steps: Sequence[Step], summary: TrainSummary) -> None:
        """Log what the store lacks of the whole course, and the bundle in a local folder."""
        course: list[Step | Epoch] = [*steps, *summary.epochs]
        for event in course:
            self._course.add(values_of(event), step=event.step)
        self._course.add(best_of(summary.metrics), step=summary.kept.step)
        with self._bearing("the run lacks some of the training, which the bundle has"):
            self._course.send()
            with patience(TRANSFER_S):
                self._client.log_artifacts(self._run_id, str(made), BUNDLE)
                self._client.set_tag(self._run_id, DIGEST, digest_of(made))
                if summary.trials:
                    settings = json.dumps(summary.trials[0].settings)
                    self._client.set_tag(self._run_id, "bertray.best_settings", settings)
            self._send()

    def end(self, status: str, *, error: BaseException | None = None) -> None:
        """Say how the training ended, and by which error."""
        if error is not None:
            with self._bearing("the run lacks some of the training"):
                self._send()
        with self._bearing("the run stays open"), patience(ANSWER_S):
            if error is not None:
                self._client.set_tag(self._run_id, ERROR, said_of(error))
            self._client.set_terminated(self._run_id, status)
        for run_id in sorted(self._trials.open):
            with self._bearing("the runs of its trials stay open"), patience(ANSWER_S):
                self._client.set_terminated(run_id, status)

    def _send(self) -> None:
        self._course.send()
        while self._of_trials:
            self._trials.send(self._of_trials[0])
            self._of_trials.pop(0)

    @contextmanager
    def _bearing(self, outlook: str) -> Iterator[None]:
        """Whatever fails is logged, once."""
        try:
            yield
        except Exception as error:  # each store's client has errors of its own
            if not self._has_failed:
                reason = storage.reason_of(error)
                logger.warning(
                    "%s=%s: cannot be written to: %s; %s", KEY, self._uri, reason, outlook
                )
            self._has_failed = True


@contextmanager
def tracked(config: TrainConfig, lineage: dict[str, str]) -> Iterator[Tracker | None]:
    """The run of a training, which ends as the block does; None if none is wanted.

    Raises:
        ConfigError: MLflow is not installed, or the store cannot be used.
    """
    if not config.tracking.mlflow:
        yield None
        return
    tracker = open_tracker(config, lineage)
    try:
        yield tracker
    except KeyboardInterrupt:
        tracker.end("KILLED")
        raise
    except BaseException as error:
        tracker.end("FAILED", error=error)
        raise
    tracker.end("FINISHED")


def open_tracker(config: TrainConfig, lineage: dict[str, str]) -> Tracker:
    """Go on in the run of an unfinished training, or begin one.

    Raises:
        ConfigError: MLflow is not installed, or the store cannot be used.
    """
    uri = _uri_of(config.tracking.mlflow)
    tags = {
        TRAINING: run_name(lineage),
        OUTPUT: storage.absolute(config.output.path),
        "bertray.version": __version__,
        "bertray.data": lineage["data"],
        "bertray.base": lineage["base"],
    }
    try:
        with patience(ANSWER_S):
            client = client_of(uri)
            experiment = experiment_of(client, config.tracking.experiment, uri=uri)
            run = _unfinished_run(client, experiment, tags)
            if run is None:
                name = tags[OUTPUT].rstrip("/").rpartition("/")[2]
                run = client.create_run(experiment, tags=tags, run_name=name)
            else:
                client.update_run(run.info.run_id, status="RUNNING")
                if ERROR in run.data.tags:
                    client.delete_tag(run.info.run_id, ERROR)
            _log_settings(client, run, config)
            tracker = Tracker(client, run, uri=uri)
    except Exception as error:  # each store's client has errors of its own
        raise ConfigError(
            f"{KEY}={uri}, tracking.experiment={config.tracking.experiment}: cannot be used: "
            f"{storage.reason_of(error)}; mend that, or leave out {KEY}"
        ) from error
    logger.info("mlflow store=%s experiment=%s run=%s", uri, experiment, run.info.run_id)
    return tracker


def _uri_of(wanted: str | bool) -> str:
    """The store's URI, to be used and shown.

    Raises:
        ConfigError: it holds credentials, or MLflow is not installed.
    """
    uri = f"{SQLITE}{Path(LOCAL_FILE).absolute()}" if isinstance(wanted, bool) else wanted
    check_uri(uri, key=KEY)
    return uri


def _unfinished_run(client: "MlflowClient", experiment: str, tags: dict[str, str]) -> "Run | None":
    """The latest run of this training into this output, if it has not come to its end."""
    runs = client.search_runs(
        [experiment],
        f"tags.`{TRAINING}` = '{tags[TRAINING]}'",
        order_by=["attributes.start_time DESC"],
    )
    here = [run for run in runs if run.data.tags.get(OUTPUT) == tags[OUTPUT]]
    return here[0] if here and here[0].info.status != "FINISHED" else None


def _log_settings(client: "MlflowClient", run: "Run", config: TrainConfig) -> None:
    """Log the resolved config, of searched keys what they are searched in.

    What a run that goes on has already cannot be changed.
    """
    values = config.model_dump(mode="json")
    settings = {}
    for key, _ in known_keys(TrainConfig):
        if key not in run.data.params:
            value = reduce(getitem, key.split("."), values)
            settings[key] = values["search"]["keys"].get(key, value)
    client.log_batch(run.info.run_id, params=params_of(settings))

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
from typing import TYPE_CHECKING, Any

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
from bertray.train.lineage import run_name
from bertray.train.outcome import TrainSummary
from bertray.train.search import Trial, TrialEpoch
from bertray.train.state import Epoch
from bertray.train.steps import Step

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, Run

logger = logging.getLogger(__name__)

KEY = "tracking.mlflow"
LOCAL_FILE = "mlflow.db"  # that MLflow's own commands take where they run
TRAINING, OUTPUT, ERROR = "bertray.training", "bertray.output", "bertray.error"
TRIAL, OUTCOME = "bertray.trial", "bertray.outcome"
LONGEST_PARAM = 500  # characters that older servers take; `_config.yaml` has all of them
SECONDS_BETWEEN_BATCHES = 10.0


class Course:
    """The points of one run: those that its store has, and those that wait to be sent."""

    def __init__(self, client: "MlflowClient", run_id: str) -> None:
        self._client = client
        self.run_id = run_id
        self._waiting: dict[tuple[str, int], Metric] = {}
        self.look()

    def look(self) -> None:
        """See which metrics, at which of their steps, the store has."""
        keys = self._client.get_run(self.run_id).data.metrics
        self._held = {
            (key, one.step)
            for key in keys
            for one in self._client.get_metric_history(self.run_id, key)
        }

    def add(self, values: dict[str, float], *, step: int) -> None:
        """Keep a value of each metric until `send`."""
        from mlflow.entities import Metric

        now = round(time.time() * 1000)
        self._waiting |= {
            (key, step): Metric(key, value, now, step) for key, value in values.items()
        }

    def send(self) -> None:
        """Log what the store lacks; if that fails, all of it waits on."""
        missing = {at: one for at, one in self._waiting.items() if at not in self._held}
        with patience(ANSWER_S):
            self._client.log_batch(self.run_id, metrics=list(missing.values()))
        self._waiting = {}
        self._held |= missing.keys()


class Tracker:
    """The run at work.

    A store that fails meanwhile stops nothing: there is one warning, nothing is sent until the end
    of the training, and then all that the store lacks.
    """

    def __init__(self, client: "MlflowClient", run: "Run", *, uri: str) -> None:
        self._client = client
        self._run = run
        self._uri = uri
        self._course = Course(client, run.info.run_id)
        self._of_trials: list[TrialEpoch | Trial] = []  # that wait to be sent
        self._trials: dict[int, Course] = {}  # of those under way
        self._sent = time.monotonic()
        self._has_failed = False

    def update(self, event: object) -> None:
        """Log a step, an epoch or what a trial has come to; steps some at a time."""
        match event:
            case Step() | Epoch():
                self._course.add(_values_of(event), step=event.step)
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
            self._course.add(_values_of(event), step=event.step)
        self._course.add(_best(summary.metrics), step=summary.kept.step)
        run_id = self._run.info.run_id
        with self._bearing("the run lacks some of the training, which the bundle has"):
            with patience(ANSWER_S):
                self._course.look()
            self._trials.clear()  # and see what is held of those
            self._send()
            with patience(TRANSFER_S):
                self._client.log_artifacts(run_id, str(made), BUNDLE)
                self._client.set_tag(run_id, DIGEST, digest_of(made))
                if summary.trials:
                    settings = json.dumps(summary.trials[0].settings)
                    self._client.set_tag(run_id, "bertray.best_settings", settings)

    def end(self, status: str, *, error: BaseException | None = None) -> None:
        """Say how the training ended, and by which error."""
        with self._bearing("the run stays open"), patience(ANSWER_S):
            if error is not None:
                self._send()
                said = storage.without_secrets(str(error)) or type(error).__name__
                self._client.set_tag(self._run.info.run_id, ERROR, said)
            for course in self._trials.values():
                self._client.set_terminated(course.run_id, status)
            self._client.set_terminated(self._run.info.run_id, status)

    def _send(self) -> None:
        self._course.send()
        while self._of_trials:
            with patience(ANSWER_S):
                self._send_trial(self._of_trials[0])
            self._of_trials.pop(0)

    def _send_trial(self, event: TrialEpoch | Trial) -> None:
        if event.number not in self._trials:
            run_id = self._run_of(event.number, event.settings)
            self._trials[event.number] = Course(self._client, run_id)
        course = self._trials[event.number]
        if isinstance(event, TrialEpoch):
            course.add(_values_of(event.epoch), step=event.epoch.step)
            course.send()
            return
        course.add(_best(event.metrics), step=0)  # it does not tell of which epoch
        course.send()
        self._client.set_tag(course.run_id, OUTCOME, event.status)
        if event.reason is not None:
            self._client.set_tag(course.run_id, ERROR, storage.without_secrets(event.reason))
        self._client.set_terminated(
            course.run_id, "FAILED" if event.status == "failed" else "FINISHED"
        )
        del self._trials[event.number]

    def _run_of(self, number: int, settings: dict[str, Any]) -> str:
        """The run of a trial: that of an attempt before, or a new one."""
        from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

        parent = self._run.info
        tags = {MLFLOW_PARENT_RUN_ID: parent.run_id, TRIAL: str(number)}
        found = self._client.search_runs(
            [parent.experiment_id],
            " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items()),
        )
        if found:
            self._client.update_run(found[0].info.run_id, status="RUNNING")
            return str(found[0].info.run_id)
        run = self._client.create_run(
            parent.experiment_id, tags=tags, run_name=f"{parent.run_name}-trial-{number}"
        )
        self._client.log_batch(run.info.run_id, params=_params(settings))
        return str(run.info.run_id)

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
    client.log_batch(run.info.run_id, params=_params(settings))


def _params(settings: dict[str, Any]) -> "list[Param]":
    """As the store takes them."""
    from mlflow.entities import Param

    return [
        Param(key, (value if isinstance(value, str) else json.dumps(value))[:LONGEST_PARAM])
        for key, value in settings.items()
    ]


def _best(metrics: dict[str, float]) -> dict[str, float]:
    return {f"best/{name}": value for name, value in metrics.items()}


def _values_of(event: Step | Epoch) -> dict[str, float]:
    """Metrics by name."""
    if isinstance(event, Step):
        values = {"step/loss": event.loss, "step/learning_rate": event.learning_rate}
        if event.grad_norm is not None:
            values["step/grad_norm"] = event.grad_norm
        return values
    values = {f"validation/{name}": value for name, value in event.metrics.items()}
    values["train/loss"] = event.train_loss
    values["train/tokens_per_s"] = event.num_tokens / event.seconds
    return values

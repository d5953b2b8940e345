"""The points of MLflow's runs: of a training's, and of those of a search's trials.

What the store holds is not logged again.
"""

import json
import time
from typing import TYPE_CHECKING, Any

from bertray import storage
from bertray.model.mlflow_store import ANSWER_S, patience
from bertray.train.search import Trial, TrialEpoch
from bertray.train.state import Epoch
from bertray.train.steps import Step

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, Run, RunInfo

ERROR, TRIAL, OUTCOME = "bertray.error", "bertray.trial", "bertray.outcome"
LONGEST_PARAM = 500  # characters that older servers take; `_config.yaml` has all of them
LONGEST_TAG = 5_000  # likewise


class Course:
    """The points of one run: those that its store has, and those that wait to be sent."""

    def __init__(self, client: "MlflowClient", run_id: str) -> None:
        self._client = client
        self._run_id = run_id
        self._held: set[tuple[str, int]] | None = None  # not known
        self._waiting: dict[tuple[str, int], Metric] = {}

    def add(self, values: dict[str, float], *, step: int) -> None:
        """Keep a value of each metric until `send`."""
        from mlflow.entities import Metric

        now = round(time.time() * 1000)
        self._waiting |= {
            (key, step): Metric(key, value, now, step) for key, value in values.items()
        }

    def send(self) -> None:
        """Log what the store lacks; if that fails, all of it waits on."""
        with patience(ANSWER_S):
            held = self._points() if self._held is None else self._held
            missing = {at: one for at, one in self._waiting.items() if at not in held}
            self._held = None  # until the store has answered
            self._client.log_batch(self._run_id, metrics=list(missing.values()))
        self._held = held | missing.keys()
        self._waiting = {}

    def _points(self) -> set[tuple[str, int]]:
        """Metrics and their steps that the store has."""
        keys = self._client.get_run(self._run_id).data.metrics
        return {
            (key, one.step)
            for key in keys
            for one in self._client.get_metric_history(self._run_id, key)
        }


class TrialRuns:
    """The runs of a search's trials, below its own.

    Attributes:
        open: ids of those that have not ended, of attempts before as well.
    """

    def __init__(self, client: "MlflowClient", search: "RunInfo") -> None:
        self._client = client
        self._search = search
        self._runs = self._find()
        self._courses: dict[int, Course] = {}
        self.open = {run.info.run_id for run in self._runs.values() if run.info.status == "RUNNING"}

    def send(self, event: TrialEpoch | Trial) -> None:
        """Log what a trial has come to; what has been logged already, once."""
        if event.number not in self._courses:
            run = self._runs.get(event.number)
            if isinstance(event, Trial) and run is not None and _has_ended(run, event.status):
                return
            self._begin(event.number, event.settings)
        course = self._courses[event.number]
        if isinstance(event, TrialEpoch):
            course.add(values_of(event.epoch), step=event.epoch.step)
            course.send()
            return
        run_id = self._runs[event.number].info.run_id
        if event.status != "failed":
            course.add(best_of(event.metrics), step=0)  # it does not tell of which epoch
        course.send()
        with patience(ANSWER_S):
            self._client.set_tag(run_id, OUTCOME, event.status)
            if event.reason is not None:
                self._client.set_tag(run_id, ERROR, said_of(event.reason))
            status = "FAILED" if event.status == "failed" else "FINISHED"
            self._client.set_terminated(run_id, status)
        self.open.discard(run_id)

    def _begin(self, number: int, settings: dict[str, Any]) -> None:
        """Make the run, or go on in that of an attempt before, or of a call that failed halfway."""
        with patience(ANSWER_S):
            if number not in self._runs:
                self._runs = self._find()
            if number not in self._runs:
                self._runs[number] = self._make(number)
            run = self._runs[number]
            self.open.add(run.info.run_id)
            self._client.update_run(run.info.run_id, status="RUNNING")
            for tag in {OUTCOME, ERROR} & run.data.tags.keys():
                self._client.delete_tag(run.info.run_id, tag)
            missing = {key: it for key, it in settings.items() if key not in run.data.params}
            self._client.log_batch(run.info.run_id, params=params_of(missing))
        self._courses[number] = Course(self._client, run.info.run_id)

    def _make(self, number: int) -> "Run":
        from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

        return self._client.create_run(
            self._search.experiment_id,
            tags={MLFLOW_PARENT_RUN_ID: self._search.run_id, TRIAL: str(number)},
            run_name=f"{self._search.run_name}-trial-{number}",
        )

    def _find(self) -> "dict[int, Run]":
        """Those that the store has, by number."""
        from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

        found = self._client.search_runs(
            [self._search.experiment_id],
            f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{self._search.run_id}'",
        )
        return {int(run.data.tags[TRIAL]): run for run in found}


def values_of(event: Step | Epoch) -> dict[str, float]:
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


def best_of(metrics: dict[str, float]) -> dict[str, float]:
    """Metrics of the weights that are kept, by name."""
    return {f"best/{name}": value for name, value in metrics.items()}


def params_of(settings: dict[str, Any]) -> "list[Param]":
    """As the store takes them."""
    from mlflow.entities import Param

    return [
        Param(key, (value if isinstance(value, str) else json.dumps(value))[:LONGEST_PARAM])
        for key, value in settings.items()
    ]


def said_of(error: BaseException | str) -> str:
    """What went wrong, as a tag holds it."""
    return (storage.without_secrets(str(error)) or type(error).__name__)[:LONGEST_TAG]


def _has_ended(run: "Run", outcome: str) -> bool:
    return run.info.status != "RUNNING" and run.data.tags.get(OUTCOME) == outcome

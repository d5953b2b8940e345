"""The MLflow run of a training, in a real SQLite store; what is told of the training is made up."""

import logging
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from bertray.config import TrainConfig, load_config
from bertray.errors import ConfigError, DataError
from bertray.model import mlflow_store
from bertray.train import tracking
from bertray.train.courses import ERROR, TRIAL
from bertray.train.outcome import TrainSummary
from bertray.train.search import Trial, TrialEpoch
from bertray.train.state import Epoch
from bertray.train.steps import Step
from bertray.train.tracking import tracked

LINEAGE = {"data": "d" * 64, "base": "b" * 64}
# The first one overflowed float16.
STEPS = [Step(n, 6, 1 / n, 1e-5 * n, 2.0 if n > 1 else None, 32, 700) for n in range(1, 7)]
EPOCHS = [
    Epoch(n, 3 * n, 0.5 / n, {"accuracy": accuracy, "loss": 0.4}, 96, 2100, 3.0)
    for n, accuracy in ((1, 0.75), (2, 0.5))
]
SUMMARY = TrainSummary(
    epochs=tuple(EPOCHS),
    best_epoch=1,
    labels=("neg", "pos"),
    num_rows=96,
    num_validation_rows=8,
    num_rows_left_out=0,
    seconds=9.0,
)

TRIALS = (
    Trial(1, {"optim.weight_decay": 0.1}, "done", "loss", (0.4,), {"loss": 0.4}, 1.0),
    Trial(2, {"optim.weight_decay": 0.0}, "stopped", "loss", (0.6,), {"loss": 0.6}, 1.0),
    Trial(3, {"optim.weight_decay": 9.0}, "failed", "loss", (), {}, 1.0, "no number"),
)


@pytest.fixture
def store(tmp_path: Path, empty_mlflow: Path) -> str:
    shutil.copyfile(empty_mlflow, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture
def config(tmp_path: Path, store: str) -> TrainConfig:
    return config_of(tmp_path, store)


@pytest.fixture
def search(tmp_path: Path, store: str) -> TrainConfig:
    return config_of(tmp_path, store, "search.keys={optim.weight_decay: [0.0, 0.1]}")


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A bundle that is about to be published."""
    folder = tmp_path / "made"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "_steps.jsonl", "_curves.png"):
        (folder / name).write_text(name)
    return folder


def config_of(tmp_path: Path, store: str, *words: str) -> TrainConfig:
    output = f"output.path={tmp_path / 'out'}"
    return load_config(
        TrainConfig,
        None,
        ["model.base=base", "data.train=rows", output, f"tracking.mlflow={store}", *words],
    )


def runs_of(store: str) -> list[Run]:
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("bertray")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    return [run for run in runs if TRIAL not in run.data.tags]


def trials_of(store: str) -> list[Run]:
    """In their order."""
    (search,) = runs_of(store)
    runs = MlflowClient(store).search_runs(
        [search.info.experiment_id], f"tags.`mlflow.parentRunId` = '{search.info.run_id}'"
    )
    return sorted(runs, key=lambda run: int(run.data.tags[TRIAL]))


def history(store: str, key: str) -> dict[int, float]:
    """Values by step; each step is there once."""
    (run,) = runs_of(store)
    points = MlflowClient(store).get_metric_history(run.info.run_id, key)
    assert len({point.step for point in points}) == len(points)
    return {point.step: point.value for point in points}


def train(config: TrainConfig, made: Path, *, steps: list[Step] = STEPS) -> None:
    """Tell the run of a whole training, of whose steps some were seen."""
    with tracked(config, LINEAGE) as tracker:
        assert tracker is not None
        for event in (steps[0], EPOCHS[0], steps[-1], EPOCHS[1]):
            tracker.update(event)
        tracker.finish(made, STEPS, SUMMARY)


def test_a_run_holds_the_settings_each_step_and_epoch_and_the_bundle(
    config: TrainConfig, store: str, made: Path
) -> None:
    train(config, made)
    (run,) = runs_of(store)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "out"
    assert run.data.params["optim.learning_rate"] == "2e-05"
    assert run.data.params["data.validation"] == "null"
    assert run.data.tags["bertray.data"] == LINEAGE["data"]
    assert run.data.tags["bertray.bundle"] == tracking.digest_of(made)
    assert history(store, "step/loss") == {step.step: step.loss for step in STEPS}
    assert history(store, "step/learning_rate").keys() == {1, 2, 3, 4, 5, 6}
    assert history(store, "step/grad_norm") == dict.fromkeys(range(2, 7), 2.0)
    assert history(store, "validation/accuracy") == {3: 0.75, 6: 0.5}
    assert history(store, "train/tokens_per_s") == {3: 700.0, 6: 700.0}
    assert history(store, "best/accuracy") == {3: 0.75}
    logged = MlflowClient(store).list_artifacts(run.info.run_id, "bundle")
    assert {file.path for file in logged} == {f"bundle/{path.name}" for path in made.iterdir()}


def test_a_searchs_run_tells_what_was_tried_and_what_won(
    search: TrainConfig, store: str, made: Path
) -> None:
    with tracked(search, LINEAGE) as tracker:
        assert tracker is not None
        tracker.finish(made, STEPS, replace(SUMMARY, trials=TRIALS))
    (run,) = runs_of(store)
    assert run.data.params["optim.weight_decay"] == "[0.0, 0.1]"
    assert run.data.tags["bertray.best_settings"] == '{"optim.weight_decay": 0.1}'
    assert history(store, "step/loss").keys() == {1, 2, 3, 4, 5, 6}


def tell_search(
    config: TrainConfig, made: Path, *, before: Callable[[], None] = lambda: None
) -> None:
    """Tell the run of a whole search, of which something happens before its end."""
    first, other = (TrialEpoch(one.number, one.settings, EPOCHS[0]) for one in TRIALS[:2])
    with tracked(config, LINEAGE) as tracker:
        assert tracker is not None
        for event in (first, other, replace(first, epoch=EPOCHS[1]), *TRIALS):
            tracker.update(event)
        before()
        tracker.finish(made, STEPS, replace(SUMMARY, trials=TRIALS))


def check_search(store: str) -> None:
    """What `tell_search` tells is there, once."""
    runs = trials_of(store)
    assert [run.info.run_name for run in runs] == ["out-trial-1", "out-trial-2", "out-trial-3"]
    assert [run.info.status for run in runs] == ["FINISHED", "FINISHED", "FAILED"]
    assert [run.data.tags["bertray.outcome"] for run in runs] == ["done", "stopped", "failed"]
    assert [run.data.params["optim.weight_decay"] for run in runs] == ["0.1", "0.0", "9.0"]
    assert [run.data.metrics.get("best/loss") for run in runs] == [0.4, 0.6, None]
    assert runs[2].data.tags[ERROR] == "no number"
    for run, values in zip(runs, ([(3, 0.75), (6, 0.5)], [(3, 0.75)], []), strict=True):
        points = MlflowClient(store).get_metric_history(run.info.run_id, "validation/accuracy")
        assert [(point.step, point.value) for point in points] == values


def test_each_trial_has_a_run_below_the_searchs_and_goes_on_in_it(
    search: TrainConfig, store: str, made: Path
) -> None:
    with suppress(KeyboardInterrupt), tracked(search, LINEAGE) as tracker:
        assert tracker is not None
        tracker.update(TrialEpoch(1, TRIALS[0].settings, EPOCHS[0]))
        assert [run.info.status for run in trials_of(store)] == ["RUNNING"]
        raise KeyboardInterrupt
    assert [run.info.status for run in trials_of(store)] == ["KILLED"]
    tell_search(search, made)
    check_search(store)
    (run,) = runs_of(store)
    assert {file.path for file in MlflowClient(store).list_artifacts(run.info.run_id)} == {"bundle"}


# Of the calls that change something: those before are made when the run is begun.
@pytest.mark.parametrize("nth", [3, 4, 5, 6, 9, 14, 15, 16, 23])
@pytest.mark.parametrize("fails", [False, True])
def test_what_trials_came_to_is_logged_once_whichever_call_the_store_took_and_did_not_answer(
    search: TrainConfig,
    store: str,
    made: Path,
    monkeypatch: pytest.MonkeyPatch,
    nth: int,
    *,
    fails: bool,
) -> None:
    calls = count(1)

    def unanswered(call: Callable[..., Any]) -> Callable[..., Any]:
        def done(*words: Any, **options: Any) -> Any:
            answer = call(*words, **options)
            if next(calls) == nth:
                raise TimeoutError("no answer")
            return answer

        return done

    def end() -> None:
        assert next(calls) > nth
        if fails:
            raise DataError("the best trial's checkpoint is gone")

    for name in ("create_run", "update_run", "log_batch", "set_tag", "set_terminated"):
        monkeypatch.setattr(MlflowClient, name, unanswered(getattr(MlflowClient, name)))
    with suppress(DataError):
        tell_search(search, made, before=end)
    check_search(store)
    (run,) = runs_of(store)
    assert run.info.status == ("FAILED" if fails else "FINISHED")


def test_a_trial_that_failed_and_is_tried_again_is_told_of_as_the_last_attempt_was(
    search: TrainConfig, store: str, made: Path
) -> None:
    lost = replace(TRIALS[0], status="failed", metrics={"loss": 0.9}, reason="its node was lost")
    with suppress(KeyboardInterrupt), tracked(search, LINEAGE) as tracker:
        assert tracker is not None
        tracker.update(TrialEpoch(1, lost.settings, EPOCHS[0]))
        for event in (lost, TRIALS[1], TRIALS[2]):
            tracker.update(event)
        raise KeyboardInterrupt
    ended = [run.info.end_time for run in trials_of(store)]
    tell_search(search, made)
    first, *others = trials_of(store)
    assert (first.info.status, first.data.tags["bertray.outcome"]) == ("FINISHED", "done")
    assert ERROR not in first.data.tags
    assert first.data.metrics["best/loss"] == 0.4
    assert [run.info.end_time for run in others[1:]] == ended[2:]  # told of again, and left alone


def test_what_is_logged_meanwhile_can_be_seen_meanwhile(config: TrainConfig, store: str) -> None:
    with tracked(config, LINEAGE) as tracker:
        assert tracker is not None
        for event in (STEPS[0], STEPS[2], STEPS[2], EPOCHS[0]):  # one was taken twice
            tracker.update(event)
        assert history(store, "step/loss").keys() == {1, 3}
        assert history(store, "validation/accuracy") == {3: 0.75}
        assert runs_of(store)[0].info.status == "RUNNING"


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt(), "KILLED"), (DataError("no room"), "FAILED")]
)
def test_a_training_that_was_cut_off_goes_on_in_its_run_and_logs_nothing_twice(
    tmp_path: Path, config: TrainConfig, store: str, made: Path, error: Any, status: str
) -> None:
    with suppress(type(error)), tracked(config, LINEAGE) as tracker:
        assert tracker is not None
        for event in (*STEPS[:3], EPOCHS[0], STEPS[3]):
            tracker.update(event)
        raise error
    (run,) = runs_of(store)
    assert run.info.status == status
    moved = config_of(tmp_path, store, "data.train=elsewhere")  # the same rows, as far as is known
    train(moved, made, steps=STEPS[2:])
    (again,) = runs_of(store)
    assert (again.info.run_id, again.info.status) == (run.info.run_id, "FINISHED")
    assert ERROR not in again.data.tags
    assert history(store, "step/loss") == {step.step: step.loss for step in STEPS}
    assert history(store, "train/loss") == {3: 0.5, 6: 0.25}


def test_a_training_that_failed_says_why_and_how_far_it_came(
    config: TrainConfig, store: str
) -> None:
    with suppress(DataError), tracked(config, LINEAGE) as tracker:
        assert tracker is not None
        tracker.update(STEPS[0])
        raise DataError("step 2 of 6: the loss is nan; s3://me:secret@lake")
    (run,) = runs_of(store)
    assert run.info.status == "FAILED"
    assert run.data.tags[ERROR] == "step 2 of 6: the loss is nan; s3://***@lake"
    assert history(store, "step/loss") == {1: 1.0}


def test_another_training_or_another_output_is_another_run(
    tmp_path: Path, config: TrainConfig, store: str, made: Path
) -> None:
    train(config, made)
    train(config, made)  # the finished bundle was removed, and is made anew
    elsewhere = config_of(tmp_path, store, f"output.path={tmp_path / 'elsewhere'}")
    for other, lineage in ((elsewhere, LINEAGE), (config, {**LINEAGE, "data": "e" * 64})):
        with suppress(KeyboardInterrupt), tracked(other, lineage):
            raise KeyboardInterrupt
    assert len(runs_of(store)) == 4


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_store_that_goes_away_costs_one_warning_and_no_step_if_it_comes_back(
    config: TrainConfig,
    store: str,
    made: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    *,
    comes_back: bool,
) -> None:
    def away(*_: object, **__: object) -> None:
        raise ConnectionRefusedError("nobody there")

    with tracked(config, LINEAGE) as tracker:
        assert tracker is not None
        tracker.update(EPOCHS[0])
        with monkeypatch.context() as patch:
            patch.setattr(MlflowClient, "log_batch", away)
            for event in (STEPS[3], EPOCHS[1], STEPS[5]):
                tracker.update(event)
            if not comes_back:
                tracker.finish(made, STEPS, SUMMARY)
        if comes_back:
            tracker.finish(made, STEPS, SUMMARY)
    (warning,) = [one for one in caplog.records if one.levelno >= logging.WARNING]
    assert "nobody there; the training goes on" in warning.getMessage()
    if comes_back:
        assert history(store, "step/loss").keys() == {1, 2, 3, 4, 5, 6}
        assert history(store, "train/loss").keys() == {3, 6}


@pytest.fixture
def broken_server() -> Iterator[tuple[str, list[str]]]:
    """A server that can do nothing, and what it was asked."""
    asked: list[str] = []

    class Broken(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(503)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Broken) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.02])
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()


def test_a_server_that_cannot_is_asked_twice_and_named_before_anything_starts(
    tmp_path: Path, broken_server: tuple[str, list[str]]
) -> None:
    uri, asked = broken_server
    config = config_of(tmp_path, uri)
    with (
        pytest.raises(ConfigError, match=rf"tracking\.mlflow={uri}.*503"),
        tracked(config, LINEAGE),
    ):
        raise AssertionError("the training has begun")
    assert len(asked) == 2


@pytest.mark.parametrize(
    "uri", ["https://me:secret@mlflow.internal", "postgresql://db/mlflow?password=secret"]
)
def test_credentials_in_a_uri_are_refused_and_not_repeated(tmp_path: Path, uri: str) -> None:
    with (
        pytest.raises(ConfigError, match=r"tracking\.mlflow=.*must not hold") as caught,
        tracked(config_of(tmp_path, uri), LINEAGE),
    ):
        raise AssertionError("the training has begun")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("package", ["mlflow", "sqlalchemy", "alembic"])
def test_what_is_not_installed_is_named_with_the_command_that_installs_it(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setattr(
        mlflow_store, "find_spec", lambda name: None if name == package else find_spec(name)
    )
    with (
        pytest.raises(ConfigError, match=rf"{package} .*pip install bertray\[mlflow\]"),
        tracked(config, LINEAGE),
    ):
        raise AssertionError("the training has begun")


def test_without_a_uri_the_store_lies_where_the_command_runs(
    tmp_path: Path, store: str, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    train(config_of(tmp_path, "true"), made)
    (run,) = runs_of(store)
    assert run.info.artifact_uri.startswith((tmp_path / "mlruns").as_uri())


def test_by_default_nothing_is_tracked(tmp_path: Path) -> None:
    with tracked(config_of(tmp_path, "false"), LINEAGE) as tracker:
        assert tracker is None

"""A real MLflow server over HTTP: how a training is tracked, and a model registered and fetched.

python -m venv /tmp/mlflow && /tmp/mlflow/bin/pip install mlflow  # bertray has its client alone
pytest tests/model/test_mlflow_server.py --mlflow /tmp/mlflow/bin/mlflow
"""

import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from mlflow import MlflowClient

from bertray.config import TrainConfig, load_config
from bertray.model import mlflow_store, versions
from bertray.model.bundle import open_bundle
from bertray.model.cache import cache_folder
from bertray.train.outcome import TrainSummary
from bertray.train.state import Epoch
from bertray.train.steps import Step
from bertray.train.tracking import tracked

pytestmark = pytest.mark.usefixtures("own_cache")

LINEAGE = {"data": "d" * 64, "base": "b" * 64}
START_S = 120


@pytest.fixture(scope="module")
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    executable = request.config.getoption("--mlflow")
    if executable is None:
        pytest.skip("--mlflow names no executable of a full MLflow")
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    words += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    words += ["--artifacts-destination", str(folder / "artifacts")]
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(
            [executable, "server", *words], stdout=log, stderr=log, start_new_session=True
        ) as process,
    ):
        root, until = f"http://127.0.0.1:{port}", time.monotonic() + START_S
        while True:
            with suppress(OSError), urllib.request.urlopen(f"{root}/health"):
                break
            if process.poll() is not None or time.monotonic() > until:
                pytest.fail((folder / "log").read_text())
            time.sleep(0.2)
        yield root
        os.killpg(process.pid, signal.SIGTERM)  # its workers too


def test_a_version_is_registered_promoted_found_and_fetched(
    server: str, classifier_folder: Path, other_classifier: Path
) -> None:
    assert versions.champion(server, "reviews") is None
    first = versions.add(server, "reviews", classifier_folder)
    assert versions.add(server, "reviews", classifier_folder) == first
    versions.promote(server, first, why="the first")
    second = versions.add(server, "reviews", other_classifier)
    assert (first.number, second.number, second.parent) == (1, 2, 1)
    assert versions.find(server, "models:/reviews@champion") == first
    bundle = open_bundle("models:/reviews@champion", root=server)
    assert bundle.digest == open_bundle(str(classifier_folder)).digest == first.digest
    shutil.rmtree(cache_folder())
    assert open_bundle(bundle.location).digest == first.digest  # as an actor of another node
    versions.promote(server, second, why="better")
    assert versions.champion(server, "reviews") == second


def test_a_training_is_tracked_and_its_bundle_registered_as_it_lies_there(
    server: str, other_classifier: Path, tmp_path: Path
) -> None:
    made = tmp_path / "made"
    shutil.copytree(other_classifier, made)
    (made / "_steps.jsonl").write_text("{}\n")
    words = ["model.base=base", "data.train=rows", f"output.path={tmp_path / 'out'}"]
    words += [f"tracking.mlflow={server}", "tracking.experiment=trainings"]
    steps = [Step(n, 6, 1 / n, 1e-5 * n, 2.0, 32, 700) for n in range(1, 4)]
    epoch = Epoch(1, 3, 0.5, {"accuracy": 0.75, "loss": 0.4}, 96, 2100, 3.0)
    summary = TrainSummary(
        epochs=(epoch,),
        best_epoch=1,
        labels=("neg", "pos"),
        num_rows=96,
        num_validation_rows=8,
        num_rows_left_out=0,
        seconds=9.0,
    )
    for done in (False, True):  # cut off, and gone on with
        with (
            suppress(KeyboardInterrupt),
            tracked(load_config(TrainConfig, None, words), LINEAGE) as it,
        ):
            assert it is not None
            it.update(steps[0])
            it.update(epoch)
            if not done:
                raise KeyboardInterrupt
            it.finish(made, steps, summary)
    client = MlflowClient(server, server)
    experiment = client.get_experiment_by_name("trainings")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.tags[mlflow_store.DIGEST] == open_bundle(str(made)).digest
    points = client.get_metric_history(run.info.run_id, "step/loss")
    assert [(one.step, one.value) for one in points] == [(one.step, one.loss) for one in steps]
    version = versions.add(server, "trained", made)
    assert client.get_model_version("trained", "1").run_id == run.info.run_id
    assert open_bundle("models:/trained/1", root=server).digest == version.digest

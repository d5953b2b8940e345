"""MLflow's registry as a model store, in a real SQLite one."""

import json
import shutil
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from threading import Thread

import pytest
from mlflow import MlflowClient

from bertray.config import ScoreConfig, load_config
from bertray.errors import BertrayError, ConfigError, ModelError, StorageError
from bertray.model import mlflow_store, registry, versions
from bertray.model.bundle import open_bundle
from bertray.model.cache import cache_folder

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def root(tmp_path: Path, empty_mlflow: Path) -> str:
    shutil.copyfile(empty_mlflow, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


def test_versions_are_numbered_and_found_by_number_and_alias(
    root: str, classifier_folder: Path, other_classifier: Path
) -> None:
    assert versions.champion(root, "reviews") is None
    first = versions.add(root, "reviews", classifier_folder)
    versions.promote(root, first, why="the first")
    second = versions.add(root, "reviews", other_classifier)
    assert (first.number, first.parent, second.number, second.parent) == (1, None, 2, 1)
    assert versions.find(root, "models:/reviews/2") == second
    assert (
        versions.find(root, "models:/reviews@champion")
        == first
        == versions.champion(root, "reviews")
    )
    promoted = versions.promote(root, second, why="better by 0.02")
    assert versions.promote(root, second, why="said twice") == promoted
    assert versions.find(root, "models:/reviews@champion") == second
    client = MlflowClient(root, root)
    assert client.get_registered_model("reviews").aliases == {"champion": 2}
    tags = client.get_model_version("reviews", "2").tags
    assert (tags["bertray.bundle"], tags["bertray.why"]) == (second.digest, "better by 0.02")


def test_a_version_is_brought_into_the_cache_by_its_digest_once(
    root: str, classifier_folder: Path, tmp_path: Path
) -> None:
    version = versions.add(root, "reviews", classifier_folder)
    bundle = open_bundle("models:/reviews/1", root=root)
    assert bundle.digest == version.digest == open_bundle(str(classifier_folder)).digest
    assert bundle.source == "models:/reviews/1"
    assert bundle.folder == cache_folder() / "fetched" / bundle.digest
    shutil.rmtree(tmp_path / "mlruns")
    (tmp_path / "mlflow.db").unlink()
    assert open_bundle(bundle.location).digest == version.digest  # as an actor opens it
    assert not (tmp_path / "mlflow.db").exists()  # nobody asked


def test_another_node_brings_itself_the_files(root: str, classifier_folder: Path) -> None:
    versions.add(root, "reviews", classifier_folder)
    bundle = open_bundle("models:/reviews/1", root=root)
    shutil.rmtree(cache_folder())
    assert open_bundle(bundle.location).folder == bundle.folder


def test_the_same_files_are_the_same_version(root: str, classifier_folder: Path) -> None:
    one, two = (versions.add(root, "a", classifier_folder) for _ in range(2))
    assert one == two
    assert len(MlflowClient(root, root).search_model_versions("name = 'a'")) == 1


def logged_by_a_training(root: str, folder: Path, digest: str) -> str:
    """What `bertray.train.tracking` leaves of a bundle; gives the run."""
    client = MlflowClient(root, root)
    experiment = mlflow_store.experiment_of(client, "trainings", uri=root)
    run = client.create_run(experiment)
    client.log_artifacts(run.info.run_id, str(folder), mlflow_store.BUNDLE)
    client.set_tag(run.info.run_id, mlflow_store.DIGEST, digest)
    return str(run.info.run_id)


def test_a_bundle_that_its_training_has_logged_is_not_sent_again(
    root: str, classifier_folder: Path
) -> None:
    digest = open_bundle(str(classifier_folder)).digest
    run = logged_by_a_training(root, classifier_folder, digest)
    version = versions.add(root, "reviews", classifier_folder)
    client = MlflowClient(root, root)
    assert client.get_model_version("reviews", str(version.number)).run_id == run
    experiments = [one.experiment_id for one in client.search_experiments()]
    assert [one.info.run_id for one in client.search_runs(experiments)] == [run]
    assert open_bundle(version.reference, root=root).digest == digest


def test_a_version_that_somebody_registered_by_hand_is_known_by_its_run(
    root: str, classifier_folder: Path
) -> None:
    digest = open_bundle(str(classifier_folder)).digest
    run = logged_by_a_training(root, classifier_folder, digest)
    client = MlflowClient(root, root)
    client.create_registered_model("reviews")
    place = client.get_run(run).info.artifact_uri
    client.create_model_version("reviews", f"{place}/bundle", run_id=run)
    assert versions.find(root, "models:/reviews/1").digest == digest
    client.create_model_version("reviews", str(classifier_folder))  # of which nothing is known
    assert versions.find(root, "models:/reviews/2").digest is None
    assert open_bundle("models:/reviews/2", root=root).digest == digest


def test_files_that_were_changed_in_the_registry_are_refused(
    root: str, classifier_folder: Path, tmp_path: Path
) -> None:
    versions.add(root, "m", classifier_folder)
    (weights,) = (tmp_path / "mlruns").rglob("model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ModelError, match=r"models:/m/1: .* holds other files"):
        open_bundle("models:/m/1", root=root)
    assert not list((cache_folder() / "fetched").iterdir())


def test_files_that_are_gone_are_named(root: str, classifier_folder: Path, tmp_path: Path) -> None:
    versions.add(root, "m", classifier_folder)
    shutil.rmtree(tmp_path / "mlruns")
    with pytest.raises(StorageError, match=r"model\.store=sqlite.*cannot be used"):
        open_bundle("models:/m/1", root=root)


def test_a_registration_that_was_cut_off_leaves_no_version(
    root: str, classifier_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for step in ("log_artifact", "set_tag", "create_registered_model", "create_model_version"):
        with monkeypatch.context() as patch:
            patch.setattr(MlflowClient, step, killed)
            with pytest.raises(KeyboardInterrupt):
                versions.add(root, "m", classifier_folder)
        assert versions.champion(root, "m") is None
        with pytest.raises(ModelError, match="no version of a model 'm'"):
            versions.find(root, "models:/m/1")
    assert versions.add(root, "m", classifier_folder).number == 1
    assert open_bundle("models:/m/1", root=root).labels == ("bad", "so-so", "good")


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("models:/m/9", ModelError, "there is no version 9; there are 1"),
        ("models:/m@champion", ModelError, "no version of 'm' is called 'champion' yet"),
        ("models:/other@champion", ModelError, "no version of a model 'other'"),
        ("models:/m", ConfigError, "write models:/NAME@champion"),
        ("models:/m/latest", ConfigError, "write models:/NAME@champion"),
        ("models:/m' or '1'='1@champion", ConfigError, "write models:/NAME@champion"),
        ("store://m@champion", ConfigError, "is an MLflow store; write models:/NAME@champion"),
    ],
)
def test_what_is_not_there_is_named(
    source: str, error: type[BertrayError], message: str, root: str, classifier_folder: Path
) -> None:
    versions.add(root, "m", classifier_folder)
    with pytest.raises(error, match=message):
        open_bundle(source, root=root)


@pytest.mark.parametrize("root", [None, "s3://models", "/models"])
def test_a_reference_without_an_mlflow_store_names_the_key(root: str | None) -> None:
    with pytest.raises(ConfigError, match=r"set model\.store to the URI of the MLflow store"):
        open_bundle("models:/m@champion", root=root)


def test_a_registry_that_cannot_be_reached_is_named() -> None:
    with pytest.raises(StorageError, match=r"model\.store=http://127\.0\.0\.1:9: .*cannot be used"):
        open_bundle("models:/m@champion", root="http://127.0.0.1:9")


@pytest.mark.parametrize("package", ["mlflow", "sqlalchemy", "alembic"])
def test_what_is_not_installed_is_named_with_the_command_that_installs_it(
    root: str, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setattr(
        mlflow_store, "find_spec", lambda name: None if name == package else find_spec(name)
    )
    with pytest.raises(ConfigError, match=rf"{package} .*pip install bertray\[mlflow\]"):
        open_bundle("models:/m@champion", root=root)


def test_credentials_in_a_uri_are_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError, match=r"gate\.store=.*must not hold") as caught:
        versions.champion("https://me:secret@mlflow.internal", "m")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("root", "wanted"),
    [
        ("sqlite:////data/mlflow.db", True),
        ("postgresql+psycopg2://db/mlflow", True),
        ("https://mlflow.internal", True),
        ("databricks", True),
        ("databricks-uc", True),
        ("databricks://profile", True),
        ("databricks-uc://profile", True),
        ("./databricks", False),
        ("s3://models", False),
        ("models", False),
        ("/data/http", False),
    ],
)
def test_stores_of_mlflow_are_told_from_our_own(root: str, *, wanted: bool) -> None:
    assert registry.is_root(root) is wanted


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What a Databricks host that has one version, the champion, has been asked for."""
    asked: list[str] = []

    class Host(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path.startswith("/api/"):
                asked.append(path)
            version = {"name": "a.b.m", "version": "3", "creation_timestamp": 1_000}
            answer = {
                "model-versions/search": {"model_versions": [version]},
                "model-versions/get": {"model_version": version},
                "registered-models/get": {
                    "registered_model": {
                        "name": "a.b.m",
                        "aliases": [{"alias": "champion", "version": "3"}],
                    }
                },
            }.get("/".join(path.split("/")[-2:]))
            body = json.dumps(answer).encode()
            self.send_response(404 if answer is None else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Host) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        host = f"http://127.0.0.1:{server.server_port}"
        profiles = tmp_path / "databrickscfg"
        profiles.write_text(f"[profile]\nhost = {host}\ntoken = secret\n")
        monkeypatch.setenv("DATABRICKS_CONFIG_FILE", str(profiles))
        monkeypatch.setenv("DATABRICKS_HOST", host)
        monkeypatch.setenv("DATABRICKS_TOKEN", "secret")
        yield asked
        server.shutdown()


@pytest.mark.parametrize("profile", ["", "://profile"])
@pytest.mark.parametrize("registry_kind", ["databricks", "databricks-uc"])
def test_a_version_in_databricks_is_asked_for_as_mlflow_does(
    registry_kind: str, profile: str, workspace: list[str]
) -> None:
    root = f"{registry_kind}{profile}"
    words = ["model.path=models:/a.b.m@champion", f"model.store={root}"]
    config = load_config(ScoreConfig, None, [*words, "input.path=in", "output.path=out"])
    found = versions.find(config.model.store, config.model.path)
    assert (found.number, found.digest) == (3, None)
    assert found.location == f"{root}#models:/a.b.m/3"
    assert registry.is_location(found.location)
    assert workspace
    part = "unity-catalog/" if registry_kind == "databricks-uc" else ""
    assert all(path.startswith(f"/api/2.0/mlflow/{part}") for path in workspace)
    assert mlflow_store.workspace_of(root) == f"databricks{profile}"


def test_unity_catalog_is_said_to_take_no_bundles(classifier_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"set gate\.store=databricks://profile, the registry"):
        versions.add("databricks-uc://profile", "a.b.m", classifier_folder)

"""MLflow's model registry as a model store; see `bertray.model.store`, whose twin this is.

``models:/reviews@champion`` names a version by its alias, ``models:/reviews/3`` by its number; the
root is the URI of the MLflow store. A version's files are artifacts of a run: that of the training
which made the bundle, if it was logged there, else one of their own.
"""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertray import storage
from bertray.errors import BertrayError, ConfigError, ModelError, StorageError
from bertray.model.cache import cache_folder, digest_of, filling
from bertray.model.mlflow_store import (
    ANSWER_S,
    BUNDLE,
    DATABRICKS,
    DIGEST,
    EXPERIMENT,
    SQLITE,
    TRANSFER_S,
    UNITY,
    check_uri,
    client_of,
    experiment_of,
    patience,
    workspace_of,
)
from bertray.model.store import CHAMPION, Promotion, Version, now, root_key, who

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

SCHEME = "models:/"
# What MLflow keeps things in.
STORES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", DATABRICKS, UNITY)
PARENT, ADDED_BY, AT, BY, WHY = (
    f"bertray.{name}" for name in ("parent", "added_by", "promoted", "promoted_by", "why")
)  # tags of a version
LONGEST_TAG = 5_000  # characters that every server takes
_NAME = r"""[^/:@#%'"]+"""
_REFERENCE = re.compile(rf"{SCHEME}({_NAME})(?:@({_NAME})|/(\d+))")
_LOCATION = re.compile(rf"(.+)#{SCHEME}({_NAME})/(\d+)(?:@([0-9a-f]+))?")  # the digest, if known


def is_root(root: str) -> bool:
    """Whether a store is one of MLflow's."""
    return root.partition("://")[0].partition("+")[0] in STORES


def is_reference(source: str) -> bool:
    """Whether a model is named by its place in a registry."""
    return source.startswith(SCHEME)


def is_location(place: str) -> bool:
    """Whether it is the `Version.location` of a version in a registry."""
    return _LOCATION.fullmatch(place) is not None


def find(root: str | None, source: str, *, key: str = "model.path") -> Version:
    """The version that ``source`` names.

    Args:
        root: URI of the MLflow store.
        source: such as ``models:/reviews@champion`` or ``models:/reviews/3``.
        key: the setting that named it, for messages.

    Raises:
        ConfigError: ``source`` is malformed, there is no root, or MLflow is not installed.
        ModelError: the registry has no such model, alias or version.
        StorageError: it cannot be reached.
    """
    match = _REFERENCE.fullmatch(source)
    if match is None:
        raise ConfigError(
            f"{key}={source}: write models:/NAME@champion, or models:/NAME/3 for version 3"
        )
    if root is None or not is_root(root):
        raise ConfigError(
            f"{key}={source}: set {root_key(key)} to the URI of the MLflow store, as in "
            f"http://mlflow.internal:5000; it is {root}"
        )
    name, alias, number = match.groups()
    with _asking(root, key=root_key(key)) as client:
        found = {int(one.version) for one in _versions(client, name)}
        if not found:
            raise ModelError(
                f"{key}={source}: {root} has no version of a model {name!r}; `bertray evaluate "
                f"gate.store={root} gate.name={name} ...` puts one there"
            )
        listed = ", ".join(map(str, sorted(found)))
        if alias is not None:
            number = client.get_registered_model(name).aliases.get(alias)
            if number is None:
                raise ModelError(
                    f"{key}={source}: no version of {name!r} is called {alias!r} yet; there are "
                    f"{listed}"
                )
        if int(number) not in found:
            raise ModelError(f"{key}={source}: there is no version {number}; there are {listed}")
        return _version(root, client, client.get_model_version(name, str(number)))


def champion(root: str, name: str) -> Version | None:
    """The version in use; None if none is."""
    with _asking(root, key="gate.store") as client:
        number = _numbers_in_use(client, name).get(CHAMPION)
        if number is None:
            return None
        return _version(root, client, client.get_model_version(name, str(number)))


def add(root: str, name: str, folder: Path) -> Version:
    """Register a bundle; a version that has its files already is given back.

    Cut off anywhere it leaves no version, and may be called again. What the training has logged
    already is not sent again.

    Raises:
        ConfigError: ``name`` cannot be a model's, or the registry takes no bundles.
        StorageError: the registry cannot be reached, or refuses.
    """
    if re.fullmatch(_NAME, name) is None:
        raise ConfigError(f"gate.name={name!r}: without any of / : @ # % ' \"")
    if root.partition("://")[0] == UNITY:
        raise ConfigError(
            f"gate.store={root}: Unity Catalog takes MLflow models with a signature, and a bundle "
            f"is none; set gate.store={workspace_of(root)}, the registry of the workspace"
        )
    digest = digest_of(folder)
    with _asking(root, key="gate.store") as client:
        for one in _versions(client, name):
            if _digest_of(client, one) == digest:
                return _version(root, client, one)
        run = _run_that_has(client, digest) or _logged(client, root, name, folder, digest)
        if _registered(client, name) is None:
            client.create_registered_model(name)
        tags = {DIGEST: digest, ADDED_BY: who()}
        parent = _numbers_in_use(client, name).get(CHAMPION)
        if parent is not None:
            tags[PARENT] = str(parent)
        source = f"{client.get_run(run).info.artifact_uri}/{BUNDLE}"
        made = client.create_model_version(name, source, run_id=run, tags=tags)
        return _version(root, client, made)


def promote(root: str, version: Version, *, why: str) -> Promotion:
    """Make a version the champion; no-op if it is already. Of two at once the last one stays."""
    name, number = version.name, str(version.number)
    with _asking(root, key="gate.store") as client:
        if _numbers_in_use(client, name).get(CHAMPION) == version.number:
            return _promotion(client.get_model_version(name, number))
        promotion = Promotion(version.number, now(), who(), why[:LONGEST_TAG])
        said = {AT: promotion.at, BY: promotion.by, WHY: promotion.why}
        for tag, value in said.items():
            client.set_model_version_tag(name, number, tag, value)
        client.set_registered_model_alias(name, CHAMPION, number)
        return promotion


def promotion_of(root: str, version: Version) -> Promotion | None:
    """How a version came to be the champion; None if it was not by us."""
    with _asking(root, key="model.store") as client:
        found = client.get_model_version(version.name, str(version.number))
        return _promotion(found) if AT in found.tags else None


def fetch(location: str, *, key: str) -> Path:
    """The files of a version in the local cache, by their digest if it is known.

    What is there already needs neither MLflow nor its store.

    Raises:
        ConfigError: MLflow is not installed.
        ModelError: they are not those that were registered.
        StorageError: the registry cannot be reached, or the files are gone.
    """
    match = _LOCATION.fullmatch(location)
    assert match is not None
    root, name, number, digest = match.groups()
    kept = cache_folder() / "fetched"
    if digest is not None and (kept / digest).is_dir():
        return kept / digest
    with _asking(root, key=root_key(key)) as client:
        found = client.get_model_version(name, number)
        said = f"{key}={SCHEME}{name}/{number}"
        identity = f"{location} {found.creation_timestamp} {found.source}"
        target = kept / (digest or hashlib.sha256(identity.encode()).hexdigest())
        if target.is_dir():
            return target
        with filling(target) as folder:
            _download(client, f"{SCHEME}{name}/{number}", folder, root)
            if not (folder / "config.json").is_file():
                raise ModelError(f"{said}: no config.json in there, so it is no model folder")
            if digest is not None and digest_of(folder) != digest:
                raise ModelError(
                    f"{said}: {found.source} holds other files (digest {digest_of(folder)[:12]}) "
                    f"than were registered (digest {digest[:12]}); restore them, or name another "
                    "version"
                )
    return target


def _download(client: "MlflowClient", reference: str, folder: Path, root: str) -> None:
    """Fill a folder with the files of a version."""
    from mlflow.artifacts import download_artifacts

    workspace = workspace_of(root)
    if workspace is not None:  # which gives each file leave to be read, by the version's name
        uri = reference
    else:
        uri = client.get_model_version_download_uri(*reference.removeprefix(SCHEME).split("/"))
    with patience(TRANSFER_S):
        made = Path(
            download_artifacts(
                artifact_uri=uri,
                dst_path=str(folder),
                tracking_uri=workspace or root,
                registry_uri=root,
            )
        )
    if made == folder:
        return
    for path in [*made.iterdir()]:
        path.rename(folder / path.name)
    made.rmdir()


@contextmanager
def _asking(root: str, *, key: str) -> Iterator["MlflowClient"]:
    """The client of a store; what it cannot do is one error."""
    check_uri(root, key=key)
    try:
        with patience(ANSWER_S):
            yield client_of(root)
    except BertrayError:
        raise
    except Exception as error:  # each store's client has errors of its own
        raise StorageError(
            f"{key}={root}: MLflow's registry cannot be used: {storage.reason_of(error)}"
        ) from error


def _versions(client: "MlflowClient", name: str) -> list["ModelVersion"]:
    return list(client.search_model_versions(f"name = '{name}'"))


def _registered(client: "MlflowClient", name: str) -> "RegisteredModel | None":
    """Asked by name: Unity Catalog cannot be searched for one."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND"):
            raise
        return None


def _numbers_in_use(client: "MlflowClient", name: str) -> dict[str, int]:
    """Numbers by alias."""
    found = _registered(client, name)
    if found is None:
        return {}
    return {alias: int(number) for alias, number in found.aliases.items()}


def _version(root: str, client: "MlflowClient", found: "ModelVersion") -> Version:
    if root.startswith(SQLITE):
        root = f"{SQLITE}{Path(root.removeprefix(SQLITE)).absolute()}"
    reference = f"{SCHEME}{found.name}/{found.version}"
    digest = _digest_of(client, found)
    parent = found.tags.get(PARENT)
    added = datetime.fromtimestamp(found.creation_timestamp / 1000, UTC)
    return Version(
        name=found.name,
        number=int(found.version),
        digest=digest,
        parent=None if parent is None else int(parent),
        added=added.isoformat(timespec="seconds"),
        added_by=found.tags.get(ADDED_BY, found.user_id or ""),
        location=f"{root}#{reference}{'' if digest is None else f'@{digest}'}",
        reference=reference,
    )


def _promotion(found: "ModelVersion") -> Promotion:
    return Promotion(int(found.version), *(found.tags.get(tag, "") for tag in (AT, BY, WHY)))


def _digest_of(client: "MlflowClient", found: "ModelVersion") -> str | None:
    """As whoever registered it says, or the training whose bundle it is; None if nothing does."""
    if DIGEST in found.tags:
        return str(found.tags[DIGEST])
    if not found.run_id:
        return None
    run = client.get_run(found.run_id)
    if (found.source or "").rstrip("/") != f"{run.info.artifact_uri}/{BUNDLE}":
        return None
    return run.data.tags.get(DIGEST)


def _run_that_has(client: "MlflowClient", digest: str) -> str | None:
    """A run that has logged a bundle."""
    experiments = [one.experiment_id for one in client.search_experiments()]
    runs = client.search_runs(experiments, f"tags.`{DIGEST}` = '{digest}'", max_results=1)
    return str(runs[0].info.run_id) if runs else None


def _logged(client: "MlflowClient", root: str, name: str, folder: Path, digest: str) -> str:
    """A run of its own for a bundle."""
    experiment = experiment_of(client, EXPERIMENT, uri=root)
    run: Any = client.create_run(experiment, run_name=name)
    run_id = str(run.info.run_id)
    with patience(TRANSFER_S):
        for path in sorted(folder.iterdir()):
            if path.is_file():
                client.log_artifact(run_id, str(path), BUNDLE)
    client.set_tag(run_id, DIGEST, digest)
    client.set_terminated(run_id)
    return run_id

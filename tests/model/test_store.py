"""A store keeps every version of a model as it was added, and who put which one in use."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bertray import storage
from bertray.errors import BertrayError, ConfigError, ModelError
from bertray.model import store
from bertray.model.bundle import open_bundle


@pytest.fixture(params=["disk", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "store") if request.param == "disk" else request.getfixturevalue("s3")


def test_versions_are_numbered_and_found_by_number_and_alias(
    root: str, classifier_folder: Path, other_classifier: Path
) -> None:
    first = store.add(root, "reviews", classifier_folder)
    store.promote(root, first, why="the first")
    second = store.add(root, "reviews", other_classifier)
    assert (first.number, first.parent, second.number, second.parent) == (1, None, 2, 1)
    assert store.find(root, "store://reviews") == first  # the champion
    assert store.find(root, "store://reviews@2") == second
    store.promote(root, second, why="better by 0.02")
    store.promote(root, second, why="said twice")
    assert store.find(root, "store://reviews@champion") == second
    history = store.promotions(root, "reviews")
    assert [(one.version, one.why) for one in history] == [(1, "the first"), (2, "better by 0.02")]


def test_the_files_of_a_version_are_those_that_were_added(
    root: str, classifier_folder: Path
) -> None:
    version = store.add(root, "reviews", classifier_folder)
    bundle = open_bundle("store://reviews@1", root=root)
    assert bundle.digest == version.digest == open_bundle(str(classifier_folder)).digest
    assert bundle.source == "store://reviews@1"
    assert open_bundle(bundle.location).digest == version.digest  # as an actor opens it


def test_the_same_files_are_the_same_version(root: str, classifier_folder: Path) -> None:
    assert store.add(root, "a", classifier_folder) == store.add(root, "a", classifier_folder)
    assert len(store.versions(root, "a")) == 1


def test_two_that_add_at_once_get_two_numbers(
    root: str, classifier_folder: Path, other_classifier: Path
) -> None:
    with ThreadPoolExecutor(2) as pool:
        added = list(
            pool.map(
                lambda folder: store.add(root, "m", folder), [classifier_folder, other_classifier]
            )
        )
    assert sorted(version.number for version in added) == [1, 2]
    assert store.versions(root, "m") == sorted(added, key=lambda version: version.number)


def test_an_addition_that_was_cut_off_leaves_no_version(
    classifier_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = str(tmp_path / "store")

    def killed(*_: object, **__: object) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(storage, "put_json", killed)
        with pytest.raises(KeyboardInterrupt):
            store.add(root, "m", classifier_folder)
    assert store.versions(root, "m") == []
    assert store.add(root, "m", classifier_folder).number == 1


def test_files_that_were_changed_in_the_store_are_refused(
    classifier_folder: Path, tmp_path: Path
) -> None:
    root = str(tmp_path / "store")
    version = store.add(root, "m", classifier_folder)
    weights = Path(version.location) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ModelError, match=r"store://m@1: .* holds other files"):
        open_bundle("store://m@1", root=root)


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("store://m@9", ModelError, "there is no version 9; there are 1"),
        ("store://m@champion", ModelError, "no version of 'm' is called 'champion' yet"),
        ("store://other", ModelError, "has no model 'other'"),
        ("store://../m", ConfigError, "write store://NAME@champion"),
        ("store://m@../../x", ConfigError, "write store://NAME@champion"),
    ],
)
def test_what_is_not_there_is_named(
    source: str,
    error: type[BertrayError],
    message: str,
    classifier_folder: Path,
    tmp_path: Path,
) -> None:
    root = str(tmp_path / "store")
    store.add(root, "m", classifier_folder)
    with pytest.raises(error, match=message):
        store.find(root, source)


def test_a_reference_without_a_store_names_the_key() -> None:
    with pytest.raises(ConfigError, match=r"set model\.store"):
        open_bundle("store://m@champion")

"""Small random-weight classifiers of each family, saved as bundles."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from small_models import PACKED, PLAIN, TORCH_ONLY, save_classifier

from bertray.model.bundle import Bundle, open_bundle


@pytest.fixture(params=PACKED)
def packed_family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=PLAIN)
def plain_family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=PACKED | PLAIN)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def takes_onnx(family: str) -> bool:
    return family in PACKED and family not in TORCH_ONLY


@pytest.fixture(scope="session")
def make_bundle(
    tmp_path_factory: pytest.TempPathFactory, classifier_folder: Path
) -> Callable[[str], Bundle]:
    """A bundle of a family with the tests' small tokenizer; each is made once."""
    made: dict[str, Bundle] = {}

    def make(family: str) -> Bundle:
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            save_classifier(folder, family, tokenizer=classifier_folder)
            made[family] = replace(open_bundle(str(folder)), max_length=64)
        return made[family]

    return make


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of fetched models of the test's own: the models of all tests are the same."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

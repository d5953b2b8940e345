"""What `ray job submit --working-dir .` carries, and what the image is made of."""

import subprocess
import sys
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import pytest
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import create_package

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy" / "kuberay" / "Dockerfile"
HADOLINT = Path(sys.executable).with_name("hadolint")


@pytest.fixture(scope="module")
def carried(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive that Ray uploads, of git's files and of what else lies about."""
    checkout = tmp_path_factory.mktemp("checkout")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    for name in listed.stdout.splitlines():
        place = checkout / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            place.write_bytes((ROOT / name).read_bytes())
    for name in (
        ".venv/lib/large.so",
        ".demo/bundle/model.safetensors",
        "dist/a.whl",
        ".env",
        "key.pem",
    ):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_bytes(bytes(1_000_000))
    target = tmp_path_factory.mktemp("packed") / "carried.zip"
    excludes = get_runtime_env_default_excludes()
    create_package(str(checkout), target, include_gitignore=True, excludes=excludes)
    return target


def test_a_submission_carries_under_a_megabyte(carried: Path) -> None:
    assert carried.stat().st_size < 1_000_000


def test_a_submission_carries_what_jobs_need_and_nothing_private(carried: Path) -> None:
    names = zipfile.ZipFile(carried).namelist()
    kinds = {"bertray": "*.py", "configs": "*.yaml", "jobs": "*.py"}
    needed = [path for top, kind in kinds.items() for path in (ROOT / top).rglob(kind)]
    assert {str(path.relative_to(ROOT)) for path in needed} <= set(names)
    kept_back = ("tests/*", "docs/*", "deploy/*", ".git/*", ".venv/*", ".demo/*", "*.env", "*.pem")
    assert not [name for name in names for pattern in kept_back if fnmatch(name, pattern)]


def test_the_image_is_built_as_hadolint_would_have_it() -> None:
    done = subprocess.run([HADOLINT, DOCKERFILE], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_runs_as_nobody_special_and_takes_only_what_is_there() -> None:
    lines = DOCKERFILE.read_text().splitlines()
    assert [line for line in lines if line.startswith("USER")][-1] == "USER 1000"
    allowed = DOCKERFILE.with_name("Dockerfile.dockerignore").read_text().splitlines()
    for line in lines:
        if line.startswith("COPY"):
            for source in line.split()[2:-1]:
                assert (ROOT / source).exists()
                assert f"!{source}" in allowed

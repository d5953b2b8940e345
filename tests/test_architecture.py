"""The floors of docs/architecture.md hold: right may import left, never the reverse."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "bertray"
FLOORS = {
    "errors": 0,
    "config": 1,
    "schema": 1,
    "storage": 1,
    "cluster": 1,
    "lease": 2,
    "text": 2,
    "model": 3,
    "score": 4,
    "train": 4,
    "evaluate": 4,
    "report": 5,
    "nightly": 6,
    "doctor": 7,
    "console": 7,
    "cli": 8,
}
MAY_IMPORT_RAY = {
    "cluster.py",
    "score/source.py",
    "score/ledger.py",
    "score/metrics.py",
    "score/pipeline.py",
    "train/data.py",
    "train/loop.py",
    "train/run.py",
    "train/trials.py",
    "train/workers.py",
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> list[str]:
    """Dotted names of all that a module imports, at any depth."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def floor_of(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_its_own_floor_and_those_below(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own == "__init__":
        assert not imports(path)
        return
    for name in imports(path):
        if name.startswith("bertray.") and floor_of(name) in FLOORS:
            assert FLOORS[floor_of(name)] <= FLOORS[own], f"{path} imports {name}"


def test_training_and_scoring_never_import_each_other() -> None:
    for one, other in (("train", "score"), ("score", "train")):
        for path in (PACKAGE / one).rglob("*.py"):
            assert not [name for name in imports(path) if name.startswith(f"bertray.{other}")]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_ray_is_imported_by_the_few_that_run_on_it(path: Path) -> None:
    if str(path.relative_to(PACKAGE)) not in MAY_IMPORT_RAY:
        assert not [name for name in imports(path) if name.split(".")[0] == "ray"]


@pytest.mark.parametrize("module", ["bertray", "bertray.cli", "bertray.config", "bertray.errors"])
def test_the_front_door_is_light(module: str) -> None:
    code = (
        f"import sys, {module}; "
        "print(sorted({'ray', 'torch', 'transformers', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_engine_runs_without_ray() -> None:
    code = (
        "import sys, bertray.model.engine, bertray.text.batching; "
        "print('ray' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False True"

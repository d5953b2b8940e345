"""What was measured can be measured again: each script starts; one needs no bertray beside it."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks"
SHARED = "fine_tuning.py"
SCRIPTS = sorted(path for path in FOLDER.glob("*.py") if path.name != SHARED)
NOT_NEEDED = ("ray", "pydantic", "scipy", "sklearn", "onnxruntime", "nanotoken", "rich")
RUN = f"""
import runpy, sys
sys.modules |= dict.fromkeys({NOT_NEEDED})
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_every_benchmark_imports(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    assert callable(runpy.run_path(str(script))["main"])


def test_the_benchmark_of_one_card_runs_with_little_more_than_torch() -> None:
    words = "--device cpu --tiny --repeats 1 --dtype bfloat16 --max-batch-tokens 512".split()
    set_up = f"import sys; sys.argv = {['benchmarks/gpu.py', *words]}"
    done = subprocess.run(
        [sys.executable, "-c", set_up + RUN], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    sides = [line for line in done.stdout.splitlines() if line.startswith("| tiny |")]
    assert len(sides) == 6
    assert sum("| packed |" in line for line in sides) == 2

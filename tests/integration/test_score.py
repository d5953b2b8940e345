"""The scoring job on a real, small Ray cluster."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import files
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scoring import command, driver

from bertray.config import ScoreConfig, load_config
from bertray.schema import ABSTAINED, EMPTY_TEXT, NULL_TEXT, OK, scored_column_names
from bertray.score import run as score_run
from bertray.score.pool import PoolPlan, plan_pool
from bertray.score.run import score
from bertray.score.summary import Progress, Summary

Write = Callable[..., Path]
pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_cluster")]

WORDS = "good bad film plot the a is was very not great awful story actor".split()


def reviews(count: int, *, seed: int = 0) -> list[str]:
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, random.integers(1, 40))) for _ in range(count)]


def run(model: Path, source: Path, output: Path, *words: str) -> Summary:
    paths = [f"model.path={model}", f"input.path={source}", f"output.path={output}"]
    return score(load_config(ScoreConfig, None, [*paths, "pool.max_actors=1", *words]))


def plain(folder: Path, texts: list[str], pairs: list[str] | None = None) -> np.ndarray:
    """What transformers alone gives, row by row in float32."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = []
    for index, text in enumerate(texts):
        pair = pairs[index] if pairs is not None else None
        inputs = tokenizer(text, pair, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            rows.append(model(**inputs).logits.softmax(-1)[0].numpy())
    return np.stack(rows)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, classifier_folder: Path) -> Path:
    """A folder with an input ``in`` of 60 rows, scored into ``out`` by one clean run."""
    root = tmp_path_factory.mktemp("finished")
    texts = reviews(60)
    for number, start in enumerate(range(0, 60, 20)):
        rows = range(start, start + 20)
        table = {"id": rows, "text": texts[start : start + 20], "tags": [["x"]] * 20}
        path = root / f"in/day={number % 2}/part-{number:03d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(table), path)
    run(classifier_folder, root / "in", root / "out")
    return root


@pytest.fixture
def again(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished folder to meddle with, file times and all."""
    return Path(shutil.copytree(finished, tmp_path / "again"))


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["pool.max_actors=2", "model.max_batch_tokens=64"],
        ["input.max_split_rows=7", "pool.max_actors=2"],
    ],
    ids=["one-actor", "two-actors-small-batches", "many-splits"],
)
def test_probabilities_equal_plain_transformers_whatever_the_batches_and_actors(
    tmp_path: Path, classifier_folder: Path, write_shards: Write, words: list[str]
) -> None:
    texts = reviews(40)
    source = write_shards({"a": pa.table({"text": texts, "id": range(40)})}, row_group_size=6)
    summary = run(classifier_folder, source, tmp_path / "out", *words)
    scored = pq.read_table(tmp_path / "out").sort_by("id")
    expected = plain(classifier_folder, texts)
    found = np.array(scored["probabilities"].to_pylist())
    np.testing.assert_allclose(found, expected, atol=1e-5)
    names = np.array(["bad", "so-so", "good"])
    assert scored["predicted_label"].to_pylist() == list(names[expected.argmax(1)])
    assert (summary.num_rows, summary.num_rows_scored) == (40, 40)


def test_every_shard_comes_back_under_its_name_with_its_columns_and_order(finished: Path) -> None:
    source, out = finished / "in", finished / "out"
    shards = sorted(path.relative_to(source) for path in source.rglob("*.parquet"))
    assert len(shards) == 3
    assert sorted(path.relative_to(out) for path in out.rglob("*.parquet")) == shards
    for shard in shards:
        before = pq.ParquetFile(source / shard).read()
        after = pq.ParquetFile(out / shard).read()
        assert after.column_names == [*before.column_names, *scored_column_names("")]
        assert after.select(before.column_names).equals(before)
        assert set(after["prediction_status"].to_pylist()) == {OK}
    manifest = json.loads((out / "_manifest.json").read_text())
    assert (manifest["rows"], len(manifest["files"])) == (60, 3)
    assert (out / "_SUCCESS").exists()
    assert "max_length" in (out / "_config.yaml").read_text()


def test_an_actor_with_two_splits_in_hand_writes_the_same_bytes(
    finished: Path, tmp_path: Path, classifier_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def two_calls(*args: Any, **kwargs: Any) -> PoolPlan:
        return replace(plan_pool(*args, **kwargs), max_actors=1, min_actors=1, calls_per_actor=2)

    monkeypatch.setattr(score_run, "plan_pool", two_calls)
    run(classifier_folder, finished / "in", tmp_path / "out")
    shards = [path.relative_to(finished / "out") for path in (finished / "out").rglob("*.parquet")]
    assert len(shards) == 3
    for shard in shards:
        assert (tmp_path / "out" / shard).read_bytes() == (finished / "out" / shard).read_bytes()


ON_A_GPU = (
    "import ray; from dataclasses import replace; from bertray.score import run; "
    "ray.init(num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False); "
    "plan = run.plan_pool; "
    "run.plan_pool = lambda *args, **options: replace(plan(*args, **options), device='cpu')"
)


def test_actors_that_hold_a_gpu_write_the_same_bytes(
    finished: Path, tmp_path: Path, classifier_folder: Path
) -> None:
    """Ray has other rules for them. The GPU is one in Ray's books alone: CPUs do its work."""
    words = command(classifier_folder, finished / "in", tmp_path / "out")
    run = driver(words, dict(os.environ), before=ON_A_GPU)
    said, _ = run.communicate(timeout=120)
    assert run.returncode == 0, said
    shards = [path.relative_to(finished / "out") for path in (finished / "out").rglob("*.parquet")]
    for shard in shards:
        assert (tmp_path / "out" / shard).read_bytes() == (finished / "out" / shard).read_bytes()
    pool = json.loads((tmp_path / "out" / "_run.json").read_text())["pool"]
    assert (pool["num_gpus"], pool["calls_per_actor"]) == (1, 2)


def test_a_second_run_scores_nothing(finished: Path, classifier_folder: Path) -> None:
    def stamps() -> dict[Path, int]:
        files = [path for path in (finished / "out").rglob("*") if path.is_file()]
        return {path: path.stat().st_mtime_ns for path in files}

    before = stamps()
    summary = run(classifier_folder, finished / "in", finished / "out")
    assert (summary.num_rows, summary.num_rows_scored, summary.seconds) == (60, 0, 0.0)
    assert sum(summary.label_counts.values()) == 60
    assert stamps() == before


def test_a_run_that_was_cut_off_ends_like_a_clean_one_and_scores_only_what_was_missing(
    finished: Path, again: Path, classifier_folder: Path
) -> None:
    clean, crashed = finished / "out", again / "out"
    for name in ("_SUCCESS", "_manifest.json", "day=1/part-001.parquet"):
        (crashed / name).unlink()
    (crashed / "day=1/.half.tmp").write_bytes(b"left over")
    summary = run(classifier_folder, again / "in", crashed)
    assert (summary.num_rows, summary.num_rows_scored) == (60, 20)
    for name in [*(path.relative_to(clean) for path in clean.rglob("*.parquet")), "_manifest.json"]:
        assert (clean / name).read_bytes() == (crashed / name).read_bytes()


def test_a_new_shard_alone_is_scored(again: Path, classifier_folder: Path) -> None:
    out, seen = again / "out", []
    pq.write_table(
        pa.table({"text": ["good film", "bad"], "id": [98, 99]}), again / "in/new.parquet"
    )

    def look(progress: Progress) -> None:
        seen.append(progress.num_rows_done)
        assert pq.read_metadata(out / "new.parquet").num_rows == 2

    words = [f"model.path={classifier_folder}", f"input.path={again}/in", f"output.path={out}"]
    words.append("pool.max_actors=1")
    summary = score(load_config(ScoreConfig, None, words), on_progress=look)
    assert (summary.num_rows, summary.num_rows_scored) == (62, 2)
    assert seen == [62]


def test_nulls_blanks_empty_shards_and_broken_shards_lose_nobody_elses_rows(
    tmp_path: Path, classifier_folder: Path, write_shards: Write
) -> None:
    out = tmp_path / "out"
    holes = pa.table({"text": ["good", None, "", " \n", "bad"], "id": range(5)})
    source = write_shards(
        {
            "holes": holes,
            "none": holes.slice(0, 0),
            "alien": pa.table({"body": ["x"]}),
            "only-nulls": pa.table({"text": pa.array([None], pa.string()), "id": [7]}),
        }
    )
    (source / "truncated.parquet").write_bytes((source / "holes.parquet").read_bytes()[:-9])
    summary = run(classifier_folder, source, out)
    table = pq.ParquetFile(out / "holes.parquet").read()
    assert table["prediction_status"].to_pylist() == [OK, NULL_TEXT, EMPTY_TEXT, EMPTY_TEXT, OK]
    assert [label is None for label in table["predicted_label"].to_pylist()] == [
        False,
        True,
        True,
        True,
        False,
    ]
    empty = pq.ParquetFile(out / "none.parquet")
    assert empty.metadata.num_rows == 0
    assert empty.schema_arrow.equals(table.schema, check_metadata=False)
    assert pq.ParquetFile(out / "only-nulls.parquet").read()["id"].to_pylist() == [7]
    assert sorted(bad["shard"] for bad in summary.quarantined) == [
        "alien.parquet",
        "truncated.parquet",
    ]
    assert not (out / "_SUCCESS").exists()
    assert summary.num_rows_quarantined == 0


def test_pairs_are_scored_as_transformers_scores_pairs_under_the_columns_and_prefix_asked_for(
    tmp_path: Path, classifier_folder: Path, write_shards: Write
) -> None:
    one, two = reviews(20, seed=1), reviews(20, seed=2)
    source = write_shards({"a": pa.table({"text": one, "other": two, "id": range(20)})})
    expected = plain(classifier_folder, one, two)
    least = float(np.median(expected.max(axis=1)))
    words = ["input.text_pair=other", "input.columns=[id]", "output.prefix=new_"]
    summary = run(classifier_folder, source, tmp_path / "out", *words, f"abstain.below={least}")
    scored = pq.ParquetFile(tmp_path / "out/a.parquet").read()
    assert scored.column_names == ["id", *scored_column_names("new_")]
    found = np.array(scored["new_probabilities"].to_pylist())
    np.testing.assert_allclose(found, expected, atol=1e-5)
    labels, status = (
        scored[f"new_{name}"].to_pylist() for name in ("predicted_label", "prediction_status")
    )
    names = np.array(["bad", "so-so", "good"])[expected.argmax(axis=1)]
    unsure = expected.max(axis=1) < least
    assert labels == [
        None if abstains else name for name, abstains in zip(names, unsure, strict=True)
    ]
    assert status == [ABSTAINED if abstains else OK for abstains in unsure]
    assert summary.status_counts == {OK: 10, ABSTAINED: 10}
    assert summary.num_rows_quarantined == 0


def test_somebody_elses_fifty_class_model_with_pickled_weights_scores_as_it_is(
    tmp_path: Path, write_shards: Write
) -> None:
    weights = next(
        file
        for file in files("rxnfp") or ()
        if file.name == "pytorch_model.bin" and "bert_ft_10k_25s" in str(file)
    )
    folder = Path(str(weights.locate())).parent
    texts = ["C C ( = O ) O . O C C >> C C ( = O ) O C C", "c 1 c c c c c 1", "Br . [Na+]"] * 4
    run(folder, write_shards({"a": pa.table({"text": texts})}), tmp_path / "out")
    scored = pq.ParquetFile(tmp_path / "out/a.parquet").read()
    found = np.array(scored["probabilities"].to_pylist())
    assert found.shape == (12, 50)
    np.testing.assert_allclose(found, plain(folder, texts), atol=1e-5)
    assert all(label.startswith("LABEL_") for label in scored["predicted_label"].to_pylist())

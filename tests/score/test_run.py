"""Runs as they are but for the cluster: splits are read, labelled and put in this process."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bertray.cluster import Node, Resources
from bertray.config import ScoreConfig, load_config
from bertray.errors import ModelError, OutputError
from bertray.model import engine as engine_module
from bertray.schema import OK, Predictions, append_predictions
from bertray.score import run
from bertray.score.commits import Receipt
from bertray.score.plan import Split
from bertray.score.sink import ShardSink
from bertray.score.source import fault_of, read_block
from bertray.score.status import status_of
from bertray.score.summary import Summary

Write = Callable[..., Path]
Launch = Callable[[run.Job, Sequence[Split], Summary], Iterator[Receipt]]
MIB = 1 << 20


def rows(count: int) -> pa.Table:
    return pa.table({"id": range(count), "text": [f"row {number}" for number in range(count)]})


def without_cluster(job: run.Job, splits: Sequence[Split], summary: Summary) -> Iterator[Receipt]:
    labels, task = job.bundle.labels, job.bundle.task
    sink = ShardSink(job.config.output.path, job.contract.digests, "none", "", True, None, task)
    for split in splits:
        block = read_block(split, job.reading)
        if fault_of(block) is None:
            values = np.tile(np.array([0.2, 0.3, 0.5], np.float32), (block.num_rows, 1))
            predictions = Predictions(values, (OK,) * block.num_rows)
            block = append_predictions(block, predictions, labels=labels, task=task)
        yield Receipt.from_table(sink(block))


def half(launch: Launch) -> Launch:
    """A pipeline that gives up half-way."""

    def half_of_it(job: run.Job, splits: Sequence[Split], summary: Summary) -> Iterator[Receipt]:
        yield from launch(job, splits[: (len(splits) + 1) // 2], summary)
        raise KeyboardInterrupt

    return half_of_it


@pytest.fixture
def score(
    tmp_path: Path, classifier_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Summary]:
    """``bertray score`` with some words, from ``in`` into ``out``."""
    monkeypatch.setattr(run, "load_model", lambda bundle: None)

    def score_with(*words: str, launch: Launch = without_cluster) -> Summary:
        monkeypatch.setattr(run, "launch", launch)
        fixed = [f"model.path={classifier_folder}", f"input.path={tmp_path / 'in'}"]
        fixed.append(f"output.path={tmp_path / 'out'}")
        return run.score(load_config(ScoreConfig, None, [*fixed, *words]))

    return score_with


def ids(out: Path) -> list[int]:
    """Of all rows that a reader of the folder finds."""
    return sorted(
        number
        for path in out.rglob("[!._]*.parquet")
        for number in pq.read_table(path)["id"].to_pylist()
    )


@pytest.mark.parametrize("state", ["half done", "finished", "finished, its index lost"])
@pytest.mark.parametrize(
    "limit", ["input.max_split_rows=2", "input.max_split_rows=100", "input.max_split_bytes=400"]
)
def test_other_limits_on_an_output_lose_no_row_and_double_none_and_score_none_again(
    tmp_path: Path,
    write_shards: Write,
    score: Callable[..., Summary],
    caplog: pytest.LogCaptureFixture,
    state: str,
    limit: str,
) -> None:
    write_shards({"a": rows(20)}, row_group_size=2)
    begun, out = "input.max_split_rows=4", tmp_path / "out"
    if state == "half done":
        with pytest.raises(KeyboardInterrupt):
            score(begun, launch=half(without_cluster))
    else:
        score(begun)
    if "lost" in state:
        for segment in (out / "_index").iterdir():
            segment.unlink()
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    assert len(before) == (3 if state == "half done" else 5)

    key, _, value = limit.partition("=")
    caplog.clear()
    summary = score(begun, limit) if "bytes" in limit else score(limit)
    assert summary.num_rows == 20
    assert summary.num_rows_scored == (8 if state == "half done" else 0)
    assert ids(out) == list(range(20))
    assert len(list(out.glob("*.parquet"))) == 5
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (f"{key}={value}" in caplog.text) == ("rows" in key)
    assert (out / "_SUCCESS").exists()
    status = status_of(str(out))
    assert (status.num_splits_done, status.outdated, status.stale) == (5, (), ())


def test_a_split_that_was_too_large_is_scored_once_the_limit_is_raised(
    tmp_path: Path, write_shards: Write, score: Callable[..., Summary]
) -> None:
    write_shards({"a": rows(3), "b": pa.table({"id": [3], "text": ["x" * (2 * MIB)]})})
    summary = score(f"input.max_split_bytes={MIB}")
    assert [bad["shard"] for bad in summary.quarantined] == ["b.parquet"]
    assert score(f"input.max_split_bytes={4 * MIB}").num_rows_scored == 1
    assert ids(tmp_path / "out") == [0, 1, 2, 3]
    assert (tmp_path / "out/_SUCCESS").exists()


def test_an_output_that_is_started_over_takes_the_new_limits(
    tmp_path: Path, write_shards: Write, score: Callable[..., Summary]
) -> None:
    write_shards({"a": rows(20)}, row_group_size=2)
    score("input.max_split_rows=4")
    assert score("input.max_split_rows=10", "output.replace=true").num_rows_scored == 20
    assert len(list((tmp_path / "out").glob("*.parquet"))) == 2
    assert ids(tmp_path / "out") == list(range(20))
    with pytest.raises(OutputError, match=r"model\.max_length: None there, 32 here"):
        score("input.max_split_rows=4", "model.max_length=32")


def test_an_output_that_is_started_over_names_no_file_that_it_held_before(
    tmp_path: Path, write_shards: Write, score: Callable[..., Summary]
) -> None:
    write_shards({"a": rows(2), "gone": rows(2)})
    score()
    (tmp_path / "in/gone.parquet").unlink()
    assert score().vanished == ["gone.parquet"]
    assert score("model.max_length=32", "output.replace=true").vanished == []
    assert json.loads((tmp_path / "out/_manifest.json").read_text())["vanished"] == []


def test_status_knows_which_columns_the_model_writes(
    tmp_path: Path, write_shards: Write, classifier_folder: Path, score: Callable[..., Summary]
) -> None:
    several = tmp_path / "several"
    shutil.copytree(classifier_folder, several)
    settings = json.loads((several / "config.json").read_text())
    settings["problem_type"] = "multi_label_classification"
    (several / "config.json").write_text(json.dumps(settings))
    table = rows(3).append_column("predicted_label", pa.array(["theirs"] * 3))
    write_shards({"a": table})
    assert score(f"model.path={several}").num_rows_scored == 3
    write_shards({"b": table})
    status = status_of(str(tmp_path / "out"))
    assert (status.num_rows, status.num_rows_done, status.quarantined) == (6, 3, ())


def test_the_footers_name_torch_where_auto_goes_on_with_it(
    tmp_path: Path, classifier_folder: Path, write_shards: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ModelError("ONNX Runtime gives other numbers")

    engines = []
    monkeypatch.setattr(engine_module, "_load_backend", refuse)
    monkeypatch.setattr(run.cluster, "connect", lambda: Resources((Node(2),)))
    monkeypatch.setattr(run.Attempts, "start", lambda: None)
    monkeypatch.setattr(run, "classified", lambda _, *, engine, **__: engines.append(engine))
    monkeypatch.setattr(run, "written", lambda _, sink, __: engines.append(sink.engine))
    monkeypatch.setattr(run, "blocks_of", lambda _: ())
    words = [f"model.path={classifier_folder}", f"output.path={tmp_path / 'out'}"]
    words.append(f"input.path={write_shards({'a': rows(5)})}")
    job = run.prepare(load_config(ScoreConfig, None, words))
    assert list(run.launch(job, job.standing.pending, Summary())) == []
    settings, footer = engines
    assert settings.backend == "torch"
    assert footer == "cpu torch float32"

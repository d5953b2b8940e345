"""Nights on a real, small Ray cluster: from disk with a model of MLflow's registry, and on S3."""

import io
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scoring import texts

from bertray import cli, storage
from bertray.model import versions
from bertray.model.bundle import open_bundle
from bertray.nightly.history import Night, read_nights

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_cluster")]


def put_shard(folder: str, name: str, table: pa.Table) -> None:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    assert storage.put_bytes(storage.join(folder, f"{name}.parquet"), sink.getvalue())


def scored(output: str, name: str) -> tuple[str, pa.Table]:
    """A scored shard, and the version of its file."""
    uri = storage.join(output, f"{name}.parquet")
    with storage.open_input(uri) as file:
        return storage.version_of(uri), pq.read_table(file)


def night(root: str, *words: str) -> tuple[int, list[Night]]:
    """The exit code of a night, and all nights so far."""
    places = [f"input.path={root}/in", f"output.path={root}/out", f"history.path={root}/history"]
    code = cli.main(["nightly", *places, "pool.max_actors=1", *words])
    return code, read_nights(f"{root}/history")


def test_the_second_night_scores_the_new_shard_alone_and_a_third_run_does_nothing(
    tmp_path: Path, classifier_folder: Path, empty_mlflow: Path
) -> None:
    shutil.copyfile(empty_mlflow, tmp_path / "mlflow.db")
    registry, root = f"sqlite:///{tmp_path / 'mlflow.db'}", str(tmp_path)
    versions.promote(registry, versions.add(registry, "m", classifier_folder), why="")
    words = ["model.path=models:/m@champion", f"model.store={registry}"]

    put_shard(f"{root}/in", "a", texts("a", "so so"))
    code, nights = night(root, *words)
    assert (code, [one.num_rows_new for one in nights]) == (cli.DONE, [3])
    assert nights[0].model == "models:/m/1"
    first = scored(f"{root}/out", "a")
    assert set(first[1]["prediction_status"].to_pylist()) == {"ok"}

    put_shard(f"{root}/in", "b", texts("b"))
    code, nights = night(root, *words)
    assert (code, [one.num_rows_new for one in nights]) == (cli.DONE, [3, 2])
    assert all(one.rows_per_s for one in nights)
    assert scored(f"{root}/out", "a") == first
    assert scored(f"{root}/out", "b")[1].num_rows == 2
    page = tmp_path / "history" / nights[1].page
    assert "New rows of 2 nights" in page.read_text()

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.parquet")}
    code, again = night(root, *words)
    assert (code, again) == (cli.DONE, nights)
    assert before == {path: path.stat().st_mtime_ns for path in before}

    (tmp_path / "in/broken.parquet").write_bytes(b"PAR1 nothing")
    code, nights = night(root, *words)
    assert code == cli.QUARANTINED
    assert nights[-1].trouble == "shards quarantined: 1"


def test_a_challenger_that_learnt_more_is_the_one_that_scores_the_night(
    tmp_path: Path, classifier_folder: Path, base_without_dropout: Path
) -> None:
    root, store = str(tmp_path), str(tmp_path / "models")
    versions.promote(store, versions.add(store, "m", classifier_folder), why="the first")
    told = [f"{word} film" for word in ("good", "bad")] * 40
    put_shard(f"{root}/labelled", "all", pa.table({"text": told, "label": ["good", "bad"] * 40}))
    configs = {
        "train": {
            "model": {"base": str(base_without_dropout)},
            "data": {"train": f"{root}/labelled"},
            "optim": {"learning_rate": 3e-3},
            "output": {"path": f"{root}/challenger"},
        },
        "evaluate": {
            "model": {"path": f"{root}/challenger"},
            "data": {"path": f"{root}/labelled"},
            "pool": {"max_actors": 1},
            "gate": {"store": store, "name": "m"},
            "output": {"path": f"{root}/report"},
        },
    }
    words = ["model.path=store://m@champion", f"model.store={store}"]
    for name, config in configs.items():
        (tmp_path / f"{name}.yaml").write_text(json.dumps(config))
        words.append(f"challenger.{name}={tmp_path / name}.yaml")
    put_shard(f"{root}/in", "a", pa.table({"text": ["bad film", "good film"]}))
    code, nights = night(root, *words)
    assert code == cli.DONE
    assert nights[0].notes == ("store://m@2 was promoted",)
    assert nights[0].model == "store://m@2"
    _, table = scored(f"{root}/out", "a")
    assert table["predicted_label"].to_pylist() == ["bad", "good"]
    page = (tmp_path / "history" / nights[0].page).read_text()
    assert "store://m@2 was promoted" in page
    assert "after version 1" in page  # where the model comes from
    assert night(root, *words) == (cli.DONE, nights)


def test_a_model_is_judged_calibrated_and_put_in_use_on_s3_and_its_nights_are_there(
    s3: str, classifier_folder: Path
) -> None:
    told = [f"{word} film" for word in ("good", "bad", "awful", "great", "very good", "not bad")]
    labels = ["good", "bad", "bad", "good", "so-so", "so-so"]
    put_shard(f"{s3}/labelled", "all", pa.table({"text": told, "label": labels}))
    evaluate = [
        *("evaluate", f"model.path={classifier_folder}", f"data.path={s3}/labelled"),
        *(f"output.path={s3}/report", "pool.max_actors=1"),
        *("calibration.method=temperature", f"calibration.bundle={s3}/calibrated"),
        *(f"gate.store={s3}/models", "gate.name=reviews"),
    ]
    assert cli.main(evaluate) == cli.DONE
    metrics = storage.get_json(f"{s3}/report/metrics.json")
    copy = open_bundle(f"{s3}/calibrated")
    assert copy.calibration is not None
    assert copy.digest == metrics["calibration"]["bundle_digest"]
    assert not storage.exists(f"{s3}/calibrated/_copy.json")
    for name in ("report.md", "reliability.png", "config.yaml"):
        assert storage.get_bytes(f"{s3}/report/{name}")
    root = f"{s3}/models"
    champion = open_bundle("store://reviews@champion", root=root)
    assert champion.digest == metrics["model_digest"]
    assert cli.main([*evaluate, "gate.at_least.accuracy=1.1"]) == cli.REFUSED
    assert open_bundle("store://reviews@champion", root=root).digest == champion.digest

    words = ["model.path=store://reviews@champion", f"model.store={root}"]
    words.append(f"night.evaluation={s3}/report")
    put_shard(f"{s3}/in", "a", texts("a", "so so"))
    code, nights = night(s3, *words)
    assert (code, [one.num_rows_new for one in nights]) == (cli.DONE, [3])
    first = scored(f"{s3}/out", "a")
    put_shard(f"{s3}/in", "b", texts("b"))
    code, nights = night(s3, *words)
    assert (code, [one.num_rows_new for one in nights]) == (cli.DONE, [3, 2])
    assert scored(f"{s3}/out", "a") == first
    assert night(s3, *words) == (cli.DONE, nights)
    index = storage.get_bytes(f"{s3}/history/index.html") or b""
    for one in nights:
        assert one.page.encode() in index
        assert storage.get_bytes(f"{s3}/history/{one.page}")
    assert json.loads(storage.get_bytes(f"{s3}/out/_manifest.json") or b"{}")["rows"] == 5

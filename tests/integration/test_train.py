"""The training job on a real, small Ray cluster."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import ray
from mlflow import MlflowClient
from safetensors.torch import load_file
from scoring import driver

from bertray import storage
from bertray.config import TrainConfig, load_config
from bertray.errors import DataError
from bertray.model.bundle import open_bundle
from bertray.model.engine import Engine
from bertray.model.manifest import read_manifest
from bertray.model.settings import resolve_settings
from bertray.train.job import prepare
from bertray.train.run import Event, Start, TrainSummary, Trial, TrialEpoch, train
from bertray.train.search import draw
from bertray.train.state import Epoch, Resumed
from bertray.train.steps import Step
from bertray.train.workers import earlier_epochs, run_config

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_cluster")]

REPORTED_S = 4  # until Ray's controller has surely asked a worker for its reports
NUM_ROWS = 65  # with 12 held out, 53 to train on: batches of 8 and one of 5
WORDS = "film plot the a is was very story actor".split()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, base_without_dropout: Path) -> Path:
    """A folder with a base model without dropout, and shards that can be learnt."""
    root = tmp_path_factory.mktemp("training")
    shutil.copytree(base_without_dropout, root / "base")

    random = np.random.default_rng(0)
    labels = random.permutation(["neg", "pos"] * 33)[:NUM_ROWS].tolist()
    texts: list[str | None] = [
        " ".join(
            [*random.choice(WORDS, random.integers(1, 12)), "good" if label == "pos" else "bad"]
        )
        for label in labels
    ]
    texts[7] = None
    (root / "data").mkdir()
    for name, part in (("a", slice(0, 30)), ("b", slice(30, None))):
        table = pa.table({"text": texts[part], "label": labels[part]})
        pq.write_table(table, root / f"data/{name}.parquet", row_group_size=16)
    shutil.copytree(root / "data", root / "same")
    return root


def words_of(root: Path, output: str, *words: str) -> list[str]:
    return [
        f"model.base={root / 'base'}",
        f"data.train={root / 'data'}",
        f"output.path={root / output}",
        "data.validation_fraction=0.19",
        "optim.learning_rate=3e-3",
        "training.num_epochs=3",
        *words,
    ]


def config(root: Path, output: str, *words: str) -> TrainConfig:
    return load_config(TrainConfig, None, words_of(root, output, *words))


def two_workers(root: Path) -> TrainConfig:
    tracking = [f"tracking.mlflow=sqlite:///{root / 'mlflow.db'}", "tracking.tensorboard=true"]
    words = ["scaling.num_workers=2", "training.per_device_batch_size=4"]
    return config(root, "two", *words, *tracking)


@pytest.fixture(scope="module")
def trained(root: Path) -> tuple[TrainSummary, list[Event]]:
    events: list[Event] = []
    return train(two_workers(root), on_progress=events.append), events


def test_the_summary_counts_every_row(trained: tuple[TrainSummary, list[Event]]) -> None:
    summary, _ = trained
    held, left_out = summary.num_validation_rows, summary.num_rows_left_out
    assert summary.is_new
    assert (summary.num_rows + held, left_out) == (NUM_ROWS - 1, 1)
    assert [epoch.num_rows for epoch in summary.epochs] == [summary.num_rows] * 3
    assert summary.labels == ("neg", "pos")
    assert summary.tokens_per_s > 0


def test_what_can_be_learnt_is_learnt(trained: tuple[TrainSummary, list[Event]]) -> None:
    summary, _ = trained
    assert summary.epochs[-1].train_loss < 0.8 * summary.epochs[0].train_loss
    assert summary.metrics["accuracy"] == max(e.metrics["accuracy"] for e in summary.epochs)


def test_progress_is_told_on_the_driver(trained: tuple[TrainSummary, list[Event]]) -> None:
    summary, events = trained
    assert isinstance(events[0], Start)
    assert any(isinstance(event, Step) for event in events)
    assert [event for event in events if isinstance(event, Epoch)] == list(summary.epochs)


def test_the_bundle_is_a_plain_hugging_face_folder(
    root: Path, trained: tuple[TrainSummary, list[Event]]
) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(root / "two").eval()
    tokenizer = AutoTokenizer.from_pretrained(root / "two")
    assert model.config.id2label == {0: "neg", 1: "pos"}
    rows = [row for row in pq.read_table(root / "data").to_pylist() if row["text"]]
    inputs = tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")
    with torch.inference_mode():
        predicted = model(**inputs).logits.argmax(dim=1).tolist()
    right = [("neg", "pos")[id_] == row["label"] for id_, row in zip(predicted, rows, strict=True)]
    assert np.mean(right) > 0.65  # they are the weights that were trained
    assert sorted(path.name for path in (root / "two").iterdir()) == [
        "_config.yaml",
        "_curves.png",
        "_curves.tfevents",
        "_steps.jsonl",
        "_training.json",
        "bertray.json",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    bundle = open_bundle(str(root / "two"))
    assert (bundle.labels, bundle.task, bundle.max_length) == (("neg", "pos"), "single_label", 64)


def test_the_bundle_tells_of_each_step_and_shows_its_course(
    root: Path, trained: tuple[TrainSummary, list[Event]]
) -> None:
    summary, events = trained
    lines = (root / "two/_steps.jsonl").read_text().splitlines()
    steps = [Step(**json.loads(line)) for line in lines]
    assert [step.step for step in steps] == list(range(1, steps[-1].num_steps + 1))
    assert sum(step.num_rows for step in steps) == sum(one.num_rows for one in summary.epochs)
    assert {event.step for event in events if isinstance(event, Step)} <= {s.step for s in steps}
    assert (root / "two/_curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_mlflow_run_holds_what_was_trained(
    root: Path, trained: tuple[TrainSummary, list[Event]]
) -> None:
    summary, _ = trained
    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("bertray").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["scaling.num_workers"] == "2"
    assert run.data.tags["bertray.bundle"] == open_bundle(str(root / "two")).digest
    lines = (root / "two/_steps.jsonl").read_text().splitlines()
    steps = [Step(**json.loads(line)) for line in lines]
    logged = client.get_metric_history(run.info.run_id, "step/loss")
    assert {one.step: one.value for one in logged} == {step.step: step.loss for step in steps}
    assert len(logged) == len(steps)
    accuracy = client.get_metric_history(run.info.run_id, "validation/accuracy")
    assert [one.value for one in accuracy] == [one.metrics["accuracy"] for one in summary.epochs]
    names = {Path(file.path).name for file in client.list_artifacts(run.info.run_id, "bundle")}
    assert names == {path.name for path in (root / "two").iterdir()}


def no_cluster(**options: object) -> None:
    raise AssertionError("a cluster was asked for")


def test_the_same_command_again_does_no_work(
    root: Path, trained: tuple[TrainSummary, list[Event]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bertray.train.run.cluster.connect", no_cluster)
    digest = open_bundle(str(root / "two")).digest
    again = train(two_workers(root))
    assert not again.is_new
    assert again.epochs == trained[0].epochs
    assert open_bundle(str(root / "two")).digest == digest


def test_a_lost_worker_resumes_and_one_worker_learns_what_two_do(
    root: Path,
    tmp_path: Path,
    trained: tuple[TrainSummary, list[Event]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resumed_at = tmp_path / "resumed_at"

    def dies_once(settings: dict[str, object]) -> str | None:
        import ray.train

        from bertray.train import loop

        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            steps = loop.train_steps

            def die_in_the_second(*parts: Any, **settings: Any) -> Any:
                for step in steps(*parts, **settings):
                    if step.step == 12:
                        time.sleep(REPORTED_S)
                        os._exit(1)
                    yield step

            loop.train_steps = die_in_the_second
        else:
            resumed_at.write_text(Path(checkpoint.path).name)
        return loop.train_worker(settings)

    monkeypatch.setattr("bertray.train.workers.train_worker", dies_once)
    words = ["training.per_device_batch_size=8", "training.checkpoint_steps=3"]
    words += ["training.metric=loss"]  # the less the better: no checkpoint without one may win
    one = train(config(root, str(tmp_path / "one"), *words))
    assert resumed_at.read_text() == "epoch-001-step-000009"
    for epoch, expected in zip(one.epochs, trained[0].epochs, strict=True):
        assert epoch.num_rows == expected.num_rows
        assert epoch.train_loss == pytest.approx(expected.train_loss, abs=1e-4)
        assert epoch.metrics == pytest.approx(expected.metrics, abs=1e-4)
    losses = [epoch.metrics["loss"] for epoch in one.epochs]
    assert one.best_epoch == 1 + losses.index(min(losses))


def test_a_training_on_s3_cut_off_before_its_bundle_was_there_takes_no_step_again(
    root: Path,
    s3: str,
    trained: tuple[TrainSummary, list[Event]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def is_cut_off(made: Path, output: str) -> None:
        raise KeyboardInterrupt

    for shard in (root / "data").iterdir():
        assert storage.put_bytes(storage.join(s3, "data", shard.name), shard.read_bytes())
    words = words_of(root, "unused", "training.per_device_batch_size=8")
    words += [f"data.train={s3}/data", f"output.path={s3}/bundle"]
    wanted = load_config(TrainConfig, None, words)
    with monkeypatch.context() as patch:
        patch.setattr("bertray.train.lineage.publish", is_cut_off)
        with pytest.raises(KeyboardInterrupt):
            train(wanted)
    assert read_manifest(wanted.output.path) is None
    fs, path = storage.resolve(storage.join(wanted.output.path, "_run"))
    kept = {Path(file).parent.name for file in fs.find(path) if "/epoch-" in file}
    assert "epoch-003" in kept
    assert len(kept) <= 2  # the best and the latest of three

    events: list[Event] = []
    summary = train(wanted, on_progress=events.append)
    assert [event for event in events if isinstance(event, Resumed)] == [Resumed(21, 21)]
    assert not any(isinstance(event, Step) for event in events)
    assert summary.epochs[-1].metrics == pytest.approx(trained[0].epochs[-1].metrics, abs=1e-4)
    assert not storage.exists(storage.join(wanted.output.path, "_run/lineage.json"))
    bundle = open_bundle(wanted.output.path)
    engine = Engine(bundle, resolve_settings(bundle, device="cpu"))
    ids = engine.predict(["a good film", "a bad plot"]).probabilities.argmax(axis=1)
    assert [bundle.labels[label_id] for label_id in ids] == ["pos", "neg"]


# So that Ray's controller has asked for an epoch's reports before the next one has ended.
SLOWLY = """
import time
from bertray.train import workers

def slowly(settings):
    from bertray.train import loop
    steps = loop.train_steps
    def waits(*parts, **options):
        for step in steps(*parts, **options):
            yield step
            time.sleep(0.8)
    loop.train_steps = waits
    return loop.train_worker(settings)

workers.train_worker = slowly
"""


def train_until_killed(words: list[str], *, at: str, before: str = "") -> None:
    """Kill the command once it says so."""
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    with driver(["train", *words], environment, before=before) as run:
        assert run.stdout is not None
        said = []
        for line in run.stdout:
            said.append(line)
            if at in line:
                run.kill()
    assert run.returncode == -signal.SIGKILL, "".join(said)


def test_a_killed_driver_and_the_command_again_take_the_steps_of_an_uninterrupted_training(
    root: Path, tmp_path: Path, trained: tuple[TrainSummary, list[Event]]
) -> None:
    output, words = tmp_path / "killed", ["scaling.num_workers=2"]
    words += ["training.per_device_batch_size=4", "training.checkpoint_steps=3"]
    words = words_of(root, str(output), *words)
    train_until_killed(words, at="epoch=2/3", before=SLOWLY)
    kept = {path.name for path in output.glob("_run/*/epoch-*")}
    assert kept

    events: list[Event] = []
    summary = train(load_config(TrainConfig, None, words), on_progress=events.append)
    assert summary.is_new
    # The first epoch is not done again.
    assert min(event.step for event in events if isinstance(event, Step)) > 7
    whole, resumed = (
        [Step(**json.loads(line)) for line in (folder / "_steps.jsonl").read_text().splitlines()]
        for folder in (root / "two", output)
    )
    assert [step.step for step in resumed] == [step.step for step in whole]
    np.testing.assert_allclose(
        [step.loss for step in resumed], [step.loss for step in whole], rtol=0, atol=1e-6
    )
    assert summary.epochs[-1].metrics == pytest.approx(trained[0].epochs[-1].metrics, abs=1e-6)


def test_elastic_workers_take_the_same_steps_however_few_there_is_room_for(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether they share out the model or not; with layers that are unfrozen by and by."""

    def counts_workers(settings: dict[str, Any]) -> str | None:
        import ray.train

        from bertray.train import loop

        num_workers = ray.train.get_context().get_world_size()
        (tmp_path / f"{settings['job'].num_threads}-threads").write_text(str(num_workers))
        return loop.train_worker(settings)

    monkeypatch.setattr("bertray.train.workers.train_worker", counts_workers)
    losses = []
    # Of two elastic workers with two CPUs each one fits.
    for workers, threads, strategy in (("2", 1, "ddp"), ("2", 1, "fsdp2"), ("[1, 2]", 2, "fsdp2")):
        output = tmp_path / f"with-{threads}-{strategy}"
        words = [f"scaling.num_workers={workers}", f"scaling.num_threads={threads}"]
        words += [f"scaling.strategy={strategy}"]
        words += ["training.per_device_batch_size=4", "training.num_epochs=2"]
        # Measured by the rows trained on, so that the epoch that has moved a layer is kept.
        words += [f"data.validation={root / 'same'}", "training.metric=loss"]
        summary = train(config(root, str(output), *words, "training.unfreeze_layers=1"))
        losses.append([epoch.train_loss for epoch in summary.epochs])
        before = load_file(root / "base/model.safetensors")
        after = load_file(output / "model.safetensors")
        moved = {name for name, value in after.items() if not value.equal(before[name])}
        assert any("layer.1." in name for name in moved)
        assert not any("embeddings" in name or "layer.0." in name for name in moved)
    assert [(tmp_path / f"{n}-threads").read_text() for n in (1, 2)] == ["2", "1"]
    for other in losses[1:]:
        np.testing.assert_allclose(other, losses[0], atol=1e-4)


def test_a_linear_head_is_trained_and_scores_what_validation_saw(
    root: Path, tmp_path: Path
) -> None:
    words = [
        "model.head=linear",
        "model.classifier_dropout=0.2",
        f"data.validation={root / 'same'}",
    ]
    summary = train(config(root, str(tmp_path / "linear"), *words))
    bundle = open_bundle(str(tmp_path / "linear"))
    settings = json.loads((tmp_path / "linear/config.json").read_text())
    assert (bundle.head, settings["architectures"]) == ("linear", ["BertForTokenClassification"])
    table = pq.read_table(root / "data").filter(pc.field("text").is_valid())
    engine = Engine(bundle, resolve_settings(bundle, device="cpu"))
    ids = engine.predict(table["text"].to_pylist()).probabilities.argmax(axis=1)
    right = np.array(bundle.labels)[ids] == table["label"].to_numpy()
    assert np.mean(right) == pytest.approx(summary.metrics["accuracy"])


def test_texts_that_are_all_blank_are_named(root: Path, write_shards: Callable[..., Path]) -> None:
    blank = write_shards({"a": pa.table({"text": [" "] * 8, "label": ["neg", "pos"] * 4})})
    with pytest.raises(DataError, match=r"data\.train=.*: column 'text' has a text in none"):
        train(config(root, "blank", f"data.train={blank}"))


def test_a_text_that_is_damaged_is_an_error_of_one_line(root: Path, tmp_path: Path) -> None:
    shard = tmp_path / "damaged.parquet"
    table = pa.table({"text": ["a good film"] * 8, "label": ["neg", "pos"] * 4})
    plain = {"use_dictionary": False, "compression": "none", "write_page_checksum": True}
    pq.write_table(table, shard, **plain)
    shard.write_bytes(shard.read_bytes().replace(b"good", b"goop"))
    with pytest.raises(DataError, match=r"damaged\.parquet: cannot be read: .*write it anew"):
        train(config(root, str(tmp_path / "out"), f"data.train={shard}"))


# The GPU is one in Ray's books alone.
TAUGHT_BOTH_WAYS = """
import sys
import numpy as np, ray
from bertray.cluster import Node, Resources
from bertray.config import TrainConfig, load_config
from bertray.train import data
from bertray.train.job import prepare

job = prepare(load_config(TrainConfig, None, sys.argv[1:]))
ray.init(num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)
resources = Resources((Node(num_cpus=2, num_gpus=1),))
data.ROWS_PER_MODEL = 10
on_cpus, on_gpu = (
    data.encode(job.labelled, data=job.config.data, base=job.base, augmenter=None,
                teacher=job.teacher_on("cpu"), resources=resources, num_gpus=gpus)[0]
    for gpus in (0, 1)
)
np.testing.assert_array_equal(on_gpu.row_ids, on_cpus.row_ids)
np.testing.assert_array_equal(on_gpu.encoded.input_ids, on_cpus.encoded.input_ids)
np.testing.assert_allclose(on_gpu.teacher_logits, on_cpus.teacher_logits, atol=1e-5)
print("rows", len(on_gpu))
"""


def test_a_teacher_on_a_gpu_says_what_one_on_cpus_does(
    root: Path, trained: tuple[TrainSummary, list[Event]], tmp_path: Path
) -> None:
    """Ray has other rules for processes with GPUs: one stays and keeps the model."""
    words = words_of(root, str(tmp_path / "student"), f"distillation.teacher={root / 'two'}")
    code = [sys.executable, "-c", TAUGHT_BOTH_WAYS, *words]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(code, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert f"rows {trained[0].num_rows}" in done.stdout


def test_copies_are_trained_on_and_counted_and_validation_rows_have_none(
    root: Path, trained: tuple[TrainSummary, list[Event]], tmp_path: Path
) -> None:
    events: list[Event] = []
    words = ["augmentation.methods=[swap, deletion]", "training.num_epochs=1"]
    summary = train(config(root, str(tmp_path / "copies"), *words), on_progress=events.append)
    plain = trained[0]
    assert set(summary.copies) == {"swap", "deletion"}
    added = sum(summary.copies.values())
    assert 0 < added <= events[0].max_copies == 2 * 53  # type: ignore[union-attr]
    assert summary.num_rows == plain.num_rows + added == summary.epochs[0].num_rows
    assert (summary.num_validation_rows, summary.num_rows_left_out) == (
        plain.num_validation_rows,
        plain.num_rows_left_out,
    )


def test_a_student_is_trained_from_a_bundle_and_says_whose_it_is(
    root: Path, trained: tuple[TrainSummary, list[Event]], tmp_path: Path
) -> None:
    words = [f"distillation.teacher={root / 'two'}", "distillation.alpha=1.0"]
    summary = train(config(root, str(tmp_path / "student"), *words))
    plain = trained[0]
    assert (summary.num_rows, summary.labels) == (plain.num_rows, plain.labels)
    assert summary.epochs[-1].train_loss < summary.epochs[0].train_loss
    manifest = read_manifest(str(tmp_path / "student"))
    assert manifest is not None
    digest = open_bundle(str(root / "two")).digest
    assert manifest.lineage["distillation.teacher"] == json.dumps(digest)


@pytest.fixture(scope="module")
def search(root: Path) -> TrainConfig:
    """One trial that learns, one that does not, and one that breaks."""
    keys = "{optim.learning_rate: [3e-3, 1e-9, 1e+30]}"
    words = ["training.num_epochs=2", "training.metric=loss", "search.reduction_factor=2"]
    words += ["training.per_device_batch_size=4", f"data.validation={root / 'same'}"]
    words += ["scaling.num_threads=1", "search.max_concurrent=1"]
    wanted = config(root, "searched", f"search.keys={keys}", "search.seed=35", *words)
    assert [one.optim.learning_rate for one in draw(wanted)] == [3e-3, 1e-9, 1e30]
    return wanted


@pytest.fixture(scope="module")
def searched(search: TrainConfig) -> tuple[TrainSummary, list[Event]]:
    """Cut off when all trials have ended, and run again."""
    events: list[Event] = []

    def interrupted(*parts: object) -> None:
        raise KeyboardInterrupt

    def no_trial(*parts: object, **options: object) -> None:
        raise AssertionError("a trial was run again")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bertray.train.run.folder.publish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(search, on_progress=events.append)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bertray.train.trials.tune_trials", no_trial)
        return train(search), events


def test_a_search_writes_the_best_trials_bundle_and_a_table_of_all(
    search: TrainConfig, searched: tuple[TrainSummary, list[Event]]
) -> None:
    summary, _ = searched
    best, weak, broken = summary.trials
    assert [one.settings["optim.learning_rate"] for one in summary.trials] == [3e-3, 1e-9, 1e30]
    assert [one.status for one in summary.trials] == ["done", "stopped", "failed"]
    assert "optim.learning_rate" in (broken.reason or "")
    assert (len(best.values), len(weak.values), len(broken.values)) == (2, 1, 0)
    assert best.values == tuple(epoch.metrics["loss"] for epoch in summary.epochs)
    assert best.metrics == summary.metrics

    bundle = Path(search.output.path)
    lines = (bundle / "_trials.jsonl").read_text().splitlines()
    assert [Trial.from_json(json.loads(line)) for line in lines] == list(summary.trials)
    resolved = load_config(TrainConfig, bundle / "_config.yaml")
    assert (resolved.optim.learning_rate, resolved.search.keys) == (3e-3, {})
    manifest = read_manifest(str(bundle))
    assert manifest is not None
    assert manifest.metrics["loss"] == min(best.values)
    assert manifest.lineage["optim.learning_rate"] == "0.003"
    assert not (bundle / "_run").exists()


def test_each_trial_is_told_of_as_it_goes_and_once_it_has_ended(
    searched: tuple[TrainSummary, list[Event]],
) -> None:
    summary, events = searched
    trials = sorted(summary.trials, key=lambda one: one.number)
    assert [event for event in events if isinstance(event, Trial)] == trials
    told = [event for event in events if isinstance(event, TrialEpoch)]
    assert [(one.number, one.epoch.epoch) for one in told] == [(1, 1), (1, 2), (2, 1)]
    assert isinstance(events[0], Start)
    assert events[0].num_trials == 3


def test_a_finished_search_does_no_work(
    search: TrainConfig,
    searched: tuple[TrainSummary, list[Event]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bertray.train.run.cluster.connect", no_cluster)
    again = train(search)
    assert not again.is_new
    assert again.trials == searched[0].trials


def test_a_search_goes_on_within_a_trial_whose_driver_was_killed(
    root: Path, tmp_path: Path
) -> None:
    keys = "search.keys={optim.learning_rate: [3e-3]}"
    few = ["training.num_epochs=6", "search.num_trials=1", "scaling.num_threads=1"]
    words = words_of(root, str(tmp_path / "searched"), keys, *few)
    train_until_killed(words, at="trial=1/1 epoch=2")
    search = load_config(TrainConfig, None, words)
    job = prepare(search)
    assert job is not None
    before = earlier_epochs(run_config(job.trials[0]))
    assert 1 <= len(before) < 6  # the second may not have been written down yet

    events: list[Event] = []
    summary = train(search, on_progress=events.append)
    assert list(summary.epochs[: len(before)]) == before  # their seconds too: not done again
    assert len(summary.epochs) == 6
    told = [event.epoch.epoch for event in events if isinstance(event, TrialEpoch)]
    assert told == [1, 2, 3, 4, 5, 6]

"""What train() does before a cluster starts: every mistake is found, finished work is found too."""

import json
import os
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from queue import Queue
from typing import Any

import pyarrow as pa
import pytest
import torch
from ray.train import ScalingConfig
from small_models import add_relative_positions, save_classifier

from bertray.config import TrainConfig, TrainModel, load_config
from bertray.errors import ConfigError, ModelError, OutputError
from bertray.lease import Holder, hold
from bertray.model.bundle import open_bundle
from bertray.model.manifest import read_manifest
from bertray.model.pretrained import load_tokenizer
from bertray.text.long import LongText
from bertray.train import lineage as folder
from bertray.train.base import load_base, open_base
from bertray.train.examples import Examples
from bertray.train.job import Job, prepare, tell_unheeded
from bertray.train.loss import CROSS_ENTROPY, CrossEntropy
from bertray.train.optim import make_optimizer, make_schedule
from bertray.train.outcome import TrainSummary, write_bundle
from bertray.train.precision import Precision
from bertray.train.run import train
from bertray.train.state import Epoch, save_state
from bertray.train.workers import Run, plan_run

Write = Callable[..., Path]
METRICS = {"accuracy": 0.5, "macro_f1": 0.4, "loss": 0.7}


@pytest.fixture
def config(write_shards: Write, classifier_folder: Path, tmp_path: Path) -> TrainConfig:
    shards = {"a": pa.table({"text": ["good film"] * 20, "label": ["x", "y"] * 10})}
    return load_config(
        TrainConfig,
        None,
        [
            f"model.base={classifier_folder}",
            f"data.train={write_shards(shards)}",
            f"output.path={tmp_path / 'out'}",
        ],
    )


def changed(config: TrainConfig, **sections: dict[str, Any]) -> TrainConfig:
    values = config.model_dump()
    for name, section in sections.items():
        values[name] |= section
    return TrainConfig.model_validate(values)


def ready(config: TrainConfig) -> Job:
    job = prepare(config)
    assert isinstance(job, Job)
    return job


def finish(config: TrainConfig, tmp_path: Path) -> Job:
    """Put the bundle in place that a training would have made; of a search the last trial's."""
    job = ready(config)
    folder.begin(config.output.path, job.lineage)
    job = [job, *job.trials][-1]
    model = load_base(job.base, labels=job.labelled.labels, seed=0)
    optimizer = make_optimizer(model, config.optim)
    weights, made = tmp_path / "weights", tmp_path / "made"
    for path in (weights, made):
        path.mkdir(exist_ok=True)
    schedule = make_schedule(optimizer, config.optim, num_steps=1)
    precision = Precision("auto", torch.device("cpu"))
    save_state(weights, [], model, optimizer, schedule, precision=precision)
    summary = TrainSummary(
        epochs=(Epoch(1, 1, 0.7, METRICS, 18, 72, 2.0),),
        best_epoch=1,
        labels=job.labelled.labels,
        num_rows=18,
        num_validation_rows=2,
        num_rows_left_out=0,
        seconds=3.0,
    )
    write_bundle(made, weights=weights, job=job, summary=summary)
    folder.publish(made, config.output.path)
    return job


def test_settings_for_something_that_was_not_asked_for_are_told(
    config: TrainConfig, caplog: pytest.LogCaptureFixture
) -> None:
    ready(config)
    assert caplog.messages == []
    ready(changed(config, augmentation={"num_copies": 2}, search={"num_trials": 3}))
    assert caplog.messages == [
        "augmentation.num_copies is for augmentation.methods, which is not given",
        "search.num_trials is for search.keys, which is not given",
    ]
    caplog.clear()
    data = {"validation_fraction": 0.2, "validation": "v"}
    tell_unheeded(changed(config, data=data, optim={"warmup_ratio": 0.2, "warmup_steps": 4}))
    assert caplog.messages == [
        "data.validation_fraction is not heeded, as data.validation=v is",
        "optim.warmup_ratio is not heeded, as optim.warmup_steps=4 is",
    ]


@pytest.fixture
def plan(make_examples: Callable[..., Examples]) -> Callable[[TrainConfig], Run]:
    """What the workers get, of a training on twenty rows."""

    def make(config: TrainConfig) -> Run:
        rows: Any = make_examples(20)
        scaling, workers = config.scaling, ScalingConfig()
        return plan_run(
            ready(config), training=rows, examples=rows, scaling=scaling, workers=workers
        )

    return make


@pytest.mark.parametrize(("every", "is_told"), [(3, False), (4, True)])
def test_an_epoch_too_short_to_be_validated_within_is_told(
    every: int,
    is_told: bool,
    config: TrainConfig,
    plan: Callable[[TrainConfig], Run],
    caplog: pytest.LogCaptureFixture,
) -> None:
    plan(changed(config, training={"validation_steps": every, "per_device_batch_size": 4}))
    assert ["validation_steps=4: an epoch has 5" in said for said in caplog.messages] == [True] * (
        is_told
    )


@pytest.mark.parametrize(("num_steps", "is_told"), [(14, False), (15, True)])
def test_a_warmup_longer_than_the_training_is_told(
    num_steps: int,
    is_told: bool,
    config: TrainConfig,
    plan: Callable[[TrainConfig], Run],
    caplog: pytest.LogCaptureFixture,
) -> None:
    training = {"per_device_batch_size": 4}
    plan(changed(config, optim={"warmup_steps": num_steps}, training=training))
    assert ["there are 15 steps" in said for said in caplog.messages] == [True] * is_told


def test_what_is_set_of_the_loss_and_of_lost_workers_reaches_them(
    config: TrainConfig, plan: Callable[[TrainConfig], Run]
) -> None:
    assert plan(config).worker_job.loss == CROSS_ENTROPY
    weights = {"label_smoothing": 0.1, "focal_gamma": 2.0, "class_weights": {"x": 3.0}}
    made = plan(changed(config, training=weights, scaling={"max_failures": 7}))
    expected = CrossEntropy(label_smoothing=0.1, focal_gamma=2.0, class_weights=(3.0, 1.0))
    assert made.worker_job.loss == expected
    assert made.config.failure_config is not None
    assert made.config.failure_config.max_failures == 7


@pytest.mark.parametrize("training", [{"accumulation_steps": 4}, {"gradient_checkpointing": True}])
def test_what_only_takes_less_memory_goes_on_from_the_same_checkpoints(
    training: dict[str, Any], config: TrainConfig, caplog: pytest.LogCaptureFixture
) -> None:
    before, after = ready(config), ready(changed(config, training=training))
    assert folder.run_name(after.lineage) == folder.run_name(before.lineage)
    for job in (before, after):
        folder.begin(config.output.path, job.lineage)
    assert not caplog.messages


def test_a_training_that_another_one_was_begun_before_says_what_differs(
    config: TrainConfig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.begin(config.output.path, ready(config).lineage)
    folder.begin(config.output.path, ready(changed(config, training={"seed": 3})).lineage)
    monkeypatch.setattr(folder, "package_versions", lambda: {"torch": "9"})
    folder.begin(config.output.path, ready(changed(config, training={"seed": 3})).lineage)
    settings, versions = caplog.messages
    assert settings.endswith("is another one (training.seed: 0 there, 3 here)")
    assert re.search(r"[(; ]version\.torch: \S+ there, 9 here[;)]", versions)
    # That of the first is still there, and goes on.
    first = ready(config).lineage
    (Path(config.output.path) / folder.RUN / folder.run_name(first)).mkdir()
    folder.begin(config.output.path, first)
    assert len(caplog.messages) == 2


def test_a_second_training_of_one_output_waits_for_the_first_and_finds_its_bundle(
    config: TrainConfig, tmp_path: Path
) -> None:
    waits_for: Queue[Holder] = Queue()
    with ThreadPoolExecutor() as pool:
        with hold(config.output.path, on_wait=waits_for.put):
            second = pool.submit(train, config, on_wait=waits_for.put)
            assert waits_for.get(timeout=60).pid == os.getpid()
            finish(config, tmp_path)
        assert not second.result(timeout=60).is_new
    assert waits_for.empty()
    assert not (Path(config.output.path) / folder.RUN).exists()


def test_windows_of_a_model_that_padding_changes_are_refused(
    config: TrainConfig, classifier_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "xlnet").mkdir()
    save_classifier(tmp_path / "xlnet", "xlnet", tokenizer=classifier_folder)
    base = {"base": str(tmp_path / "xlnet"), "max_length": 32}
    ready(changed(config, model=base))
    with pytest.raises(ConfigError, match=r"text\.long=window: padding changes .* xlnet"):
        prepare(changed(config, model=base, text={"long": "window"}))


def test_a_head_of_the_same_labels_in_another_order_goes_on_with_what_it_knows(
    classifier_folder: Path, tmp_path: Path
) -> None:
    base = open_base(TrainModel(base=str(classifier_folder)))
    there = load_base(base, labels=("yes", "no"), seed=0)
    there.save_pretrained(tmp_path / "other")
    load_tokenizer(classifier_folder).save_pretrained(tmp_path / "other")
    base = open_base(TrainModel(base=str(tmp_path / "other")))
    here = load_base(base, labels=("no", "yes"), seed=0)
    assert here.config.id2label == {0: "no", 1: "yes"}
    for parameter in ("weight", "bias"):
        before, after = (getattr(one.classifier, parameter) for one in (there, here))
        assert torch.equal(after, before.flip(0))
    other = load_base(base, labels=("maybe", "no"), seed=0)
    assert torch.equal(other.classifier.weight, there.classifier.weight)


def test_a_finished_bundle_is_returned_at_once(config: TrainConfig, tmp_path: Path) -> None:
    finish(config, tmp_path)
    events: list[object] = []
    summary = train(config, on_progress=events.append)  # no cluster is there to start on
    assert not events
    assert not summary.is_new
    assert summary.metrics == METRICS
    assert summary.tokens_per_s == 36
    assert train(changed(config, output={"replace": True})) == summary


def test_a_bundle_that_came_while_the_job_was_prepared_is_not_trained_again(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = finish(config, tmp_path)
    monkeypatch.setattr("bertray.train.run.prepare", lambda config: job)
    assert not train(config).is_new  # no cluster is there to start on


def test_a_finished_bundle_is_returned_beside_a_training_that_is_to_replace_it(
    config: TrainConfig, tmp_path: Path
) -> None:
    job = finish(config, tmp_path)
    waits_for: list[Holder] = []
    with hold(config.output.path, on_wait=waits_for.append):
        folder.begin(config.output.path, job.lineage)
        assert not train(config, on_wait=waits_for.append).is_new
        assert (Path(config.output.path) / folder.OWNER).exists()
    assert not waits_for


def test_what_an_interrupted_publication_left_behind_is_swept(
    config: TrainConfig, tmp_path: Path
) -> None:
    job = finish(config, tmp_path)
    folder.begin(config.output.path, job.lineage)  # as if killed before the last removal
    assert not train(config).is_new
    assert not (Path(config.output.path) / folder.RUN).exists()


def test_the_bundle_says_what_it_was_made_of(config: TrainConfig, tmp_path: Path) -> None:
    job = finish(config, tmp_path)
    manifest = read_manifest(config.output.path)
    assert manifest is not None
    assert manifest.lineage == job.lineage
    assert manifest.labels == ["x", "y"]
    assert manifest.metrics == METRICS
    assert load_config(TrainConfig, Path(config.output.path) / "_config.yaml") == config


@pytest.mark.parametrize(
    ("sections", "named"),
    [
        ({"optim": {"learning_rate": 1e-4}}, "optim.learning_rate: 2e-05 there, 0.0001 here"),
        ({"training": {"num_epochs": 7}}, "training.num_epochs: 3 there, 7 here"),
        ({"model": {"max_length": 16}}, "model.max_length: 64 there, 16 here"),
        ({"scaling": {"num_workers": 2}}, "scaling.num_workers: 1 there, 2 here"),
    ],
)
def test_other_settings_are_refused_by_name_unless_told_to_replace(
    config: TrainConfig, tmp_path: Path, sections: dict[str, Any], named: str
) -> None:
    finish(config, tmp_path)
    other = changed(config, **sections)
    with pytest.raises(OutputError, match=rf"{named}\).*output\.replace=true"):
        prepare(other)
    assert ready(changed(other, output={"replace": True})).config.output.replace


def test_augmentation_is_named_in_the_lineage_and_its_rows_are_announced(
    config: TrainConfig, tmp_path: Path, wordnet_folder: Path, masked_folder: Path
) -> None:
    assert not any("augmentation" in key for key in finish(config, tmp_path).lineage)
    settings = {
        "methods": ["synonyms", "masked"],
        "row_share": 0.5,
        "wordnet": str(wordnet_folder),
        "masked_model": str(masked_folder),
    }
    augmented = changed(config, augmentation=settings)
    with pytest.raises(OutputError, match=r"augmentation\.methods: not known there"):
        prepare(augmented)
    job = ready(changed(augmented, output={"path": str(tmp_path / "other")}))
    assert job.max_copies == 2 * 9  # half of 18 training rows, by two methods
    assert job.lineage["augmentation.row_share"] == "0.5"
    for key in ("augmentation.wordnet", "augmentation.masked_model"):
        assert len(job.lineage[key]) >= 64  # a digest, not a place


def test_a_calibration_is_named_in_the_lineage_of_a_bundle_that_has_one(
    config: TrainConfig, tmp_path: Path
) -> None:
    assert not any("calibration" in key for key in finish(config, tmp_path).lineage)
    with pytest.raises(OutputError, match=r"calibration\.method: not known there, \"vector\" here"):
        prepare(changed(config, calibration={"method": "vector"}))


def test_other_data_and_another_base_are_refused_by_name(
    config: TrainConfig, tmp_path: Path, write_shards: Write
) -> None:
    job = finish(config, tmp_path)
    write_shards({"b": pa.table({"text": ["bad"], "label": ["x"]})})
    with pytest.raises(OutputError, match=r"data\.train or data\.validation"):
        prepare(config)
    (Path(config.data.train) / "b.parquet").unlink()
    lineage = {**job.lineage, "base": "another"}
    with pytest.raises(OutputError, match=r"model\.base"):
        folder.find_equal(config.output.path, lineage, base="b", replace=False)


def test_where_things_lie_and_how_fast_they_run_is_no_part_of_the_lineage(
    config: TrainConfig,
) -> None:
    other = changed(config, scaling={"num_threads": 4, "use_gpu": False}, output={"path": "x"})
    assert ready(config).lineage == ready(other).lineage


def test_a_replaced_bundle_leaves_no_file_behind(config: TrainConfig, tmp_path: Path) -> None:
    finish(config, tmp_path)
    stale = Path(config.output.path) / "model-00001-of-00002.safetensors"
    stale.write_bytes(b"")
    finish(changed(config, optim={"learning_rate": 1.0}, output={"replace": True}), tmp_path)
    assert not stale.exists()


def test_publishing_that_is_cut_short_leaves_no_bundle(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put: list[str] = []

    def dies_at_the_config(staged: Path, uri: str, **options: bool) -> bool:
        put.append(Path(uri).name)
        if put[-1] == "config.json":
            raise KeyboardInterrupt
        staged.replace(uri)
        return True

    with monkeypatch.context() as patch:
        patch.setattr("bertray.model.publish.storage.publish", dies_at_the_config)
        with pytest.raises(KeyboardInterrupt):
            finish(config, tmp_path)
    assert "model.safetensors" in put
    output = Path(config.output.path)
    assert not (output / "config.json").exists()
    assert not (output / "bertray.json").exists()
    assert put.index("model.safetensors") < put.index("config.json")
    assert ready(config)  # and the next run goes on


@pytest.mark.parametrize("others", [[], ["_lease.json"], ["_lease.json", "_run/ours.txt"]])
def test_a_folder_that_is_not_ours_is_left_alone(config: TrainConfig, others: list[str]) -> None:
    output = Path(config.output.path)
    for name in ("thesis.txt", *others):  # scoring has a lease too
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_text("mine")
    with pytest.raises(OutputError, match=r"output\.path=.*no bertray train has written"):
        prepare(changed(config, output={"replace": True}))
    assert (output / "thesis.txt").read_text() == "mine"


def test_a_file_at_the_output_path_is_an_error(config: TrainConfig) -> None:
    Path(config.output.path).write_text("")
    with pytest.raises(OutputError, match="is a file"):
        prepare(config)


def test_an_unfinished_training_of_our_own_is_no_obstacle(config: TrainConfig) -> None:
    Path(config.output.path).mkdir()
    (Path(config.output.path) / "_lease.json").write_text("{}")
    assert ready(config)
    folder.begin(config.output.path, {"of": "another try"})
    assert ready(config)


def test_a_base_that_cannot_be_reached_names_its_key(config: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model\.base=.*no-such-model"):
        prepare(changed(config, model={"base": "no-such-model"}))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"model\.base=.*config\.json"):
        prepare(changed(config, model={"base": str(tmp_path / "empty")}))


def test_an_encoder_with_missing_layers_is_refused(
    config: TrainConfig, classifier_folder: Path, tmp_path: Path
) -> None:
    broken = shutil.copytree(classifier_folder, tmp_path / "broken")
    settings = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**settings, "num_hidden_layers": 3}))
    with pytest.raises(ModelError, match=r"the weights lack bert\.encoder\.layer\.2"):
        prepare(changed(config, model={"base": str(broken)}))


def test_an_encoder_with_weights_of_other_shapes_is_refused(
    config: TrainConfig, classifier_folder: Path, tmp_path: Path
) -> None:
    broken = shutil.copytree(classifier_folder, tmp_path / "broken")
    settings = json.loads((broken / "config.json").read_text())
    wider = {**settings, "intermediate_size": settings["intermediate_size"] + 8}
    (broken / "config.json").write_text(json.dumps(wider))
    with pytest.raises(
        ModelError, match=r"lack bert\.encoder\.layer\.0\.\S+ of shape \(\d+.* there"
    ):
        prepare(changed(config, model={"base": str(broken)}))


def test_a_length_beyond_the_models_positions_is_refused(config: TrainConfig) -> None:
    with pytest.raises(ConfigError, match=r"model\.max_length=65: .* takes 64 tokens"):
        prepare(changed(config, model={"max_length": 65}))


@pytest.mark.parametrize(
    ("training", "named"),
    [
        ({"freeze_layers": 3}, r"training\.freeze_layers=3: the model has 2 layers"),
        ({"class_weights": {"z": 2}}, r"training\.class_weights: no row has the label 'z'"),
    ],
)
def test_layers_and_labels_that_are_not_there_are_refused(
    config: TrainConfig, training: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        prepare(changed(config, training=training))


def test_a_family_that_cannot_compute_activations_again_is_refused(
    config: TrainConfig, tmp_path: Path, classifier_folder: Path
) -> None:
    base = tmp_path / "base"
    base.mkdir()
    save_classifier(base, "mpnet", tokenizer=classifier_folder)
    asked = changed(config, model={"base": str(base)}, training={"gradient_checkpointing": True})
    with pytest.raises(ConfigError, match=r"gradient_checkpointing=true: .* than mpnet"):
        prepare(asked)


def test_a_search_is_found_again_by_its_own_settings_and_the_bundle_names_those_that_won(
    config: TrainConfig, tmp_path: Path
) -> None:
    keys = {"optim.learning_rate": [1e-4, 2e-4], "model.head": ["linear"]}
    search = changed(config, search={"keys": keys})
    won = finish(search, tmp_path)
    assert prepare(search) is None
    assert prepare(changed(config, search={"keys": keys, "max_concurrent": 3})) is None
    manifest = read_manifest(config.output.path)
    assert manifest is not None
    assert float(manifest.lineage["optim.learning_rate"]) == won.config.optim.learning_rate
    assert (manifest.head, manifest.lineage["model.head"]) == ("linear", '"linear"')
    resolved = load_config(TrainConfig, Path(config.output.path) / "_config.yaml")
    assert resolved == won.config
    assert not resolved.search.keys
    for other, named in (
        (changed(config, search={"keys": keys, "num_trials": 3}), "search: "),
        (changed(config, search={"keys": {**keys, "model.head": ["family"]}}), r"model\.head: \["),
        (changed(config, training={"num_epochs": 9}), "search: .* there, not known here"),
    ):
        with pytest.raises(OutputError, match=named):
            prepare(other)


def test_settings_of_a_trial_that_the_model_does_not_allow_are_refused(config: TrainConfig) -> None:
    keys = {"training.freeze_layers": [1, 2, 3]}
    with pytest.raises(ConfigError, match=r"training\.freeze_layers=3: the model has 2 layers"):
        train(changed(config, search={"keys": keys}))  # no cluster is there to start on
    with pytest.raises(ConfigError, match=r"search\.keys: output\.path cannot be searched"):
        train(changed(config, search={"keys": {"output.path": ["a", "b"]}}))


def test_what_becomes_of_long_texts_travels_in_the_bundle(
    config: TrainConfig, tmp_path: Path
) -> None:
    wanted = {"long": "window", "stride": 3, "max_windows": 5, "aggregate": "max"}
    finish(changed(config, text=wanted), tmp_path)
    assert open_bundle(config.output.path).long_text == LongText(**wanted)
    with pytest.raises(OutputError, match=r'text\.long: "window" there, "truncate" here'):
        prepare(config)


def test_windows_that_share_all_they_hold_are_refused(config: TrainConfig) -> None:
    with pytest.raises(ConfigError, match=r"text\.stride=62; set a smaller"):
        prepare(changed(config, text={"long": "window", "stride": 62}))


def test_bfloat16_that_a_gpu_but_emulates_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def of_a_t4(including_emulation: bool = True) -> bool:
        return including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", of_a_t4)
    assert Precision("auto", torch.device("cuda")).dtype == torch.float32


def test_a_base_whose_relative_positions_would_be_left_out_is_refused(
    config: TrainConfig, classifier_folder: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(classifier_folder, tmp_path / "base"))
    add_relative_positions(base)
    with pytest.raises(ModelError, match=r"model\.base=.*no longer reads .*distance_embedding"):
        prepare(changed(config, model={"base": str(base)}))


def test_a_base_that_changed_since_the_driver_saw_it_is_refused(classifier_folder: Path) -> None:
    base = open_base(TrainModel(base=str(classifier_folder)))
    with pytest.raises(ModelError, match="on this node"):
        load_base(replace(base, digest="0" * 64), labels=("x", "y"), seed=0)

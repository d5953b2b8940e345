"""A teacher's logits are its own, in the student's order of labels, which must be the same."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from scipy.special import log_softmax
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bertray.config import TrainConfig, TrainData, load_config
from bertray.errors import ConfigError, DataError, ModelError
from bertray.model import versions
from bertray.model.bundle import open_bundle
from bertray.text.long import LongText
from bertray.train.base import Base, load_base
from bertray.train.data import in_row_order, pieces_to_read, tokenize
from bertray.train.examples import Examples, select
from bertray.train.job import Job, prepare
from bertray.train.labels import list_shards, read_labels
from bertray.train.loss import CrossEntropy
from bertray.train.optim import make_optimizer, make_schedule
from bertray.train.plan import plan_epoch
from bertray.train.precision import Precision
from bertray.train.steps import predict, train_steps
from bertray.train.teacher import Teacher, make_teacher, teach

TEXTS = ["good film", "a very bad plot", "the actor was not great", "awful", "good film"]
LABELS = ("good", "bad", "so-so")  # the teacher has: bad, so-so, good


@pytest.fixture
def teacher(classifier_folder: Path) -> Teacher:
    return make_teacher(open_bundle(str(classifier_folder)), labels=LABELS, device="cpu")


def test_the_teacher_says_its_own_logits_in_the_students_order(
    teacher: Teacher, classifier_folder: Path
) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(classifier_folder).eval()
    inputs = AutoTokenizer.from_pretrained(classifier_folder)(
        TEXTS, padding=True, return_tensors="pt"
    )
    with torch.inference_mode():
        plain = log_softmax(model(**inputs).logits.numpy(), axis=1)
    assert teacher.order == (2, 0, 1)
    np.testing.assert_allclose(teach(teacher, [TEXTS]), plain[:, [2, 0, 1]], atol=1e-4)


def test_labels_that_are_not_those_of_the_data_are_named(classifier_folder: Path) -> None:
    bundle = open_bundle(str(classifier_folder))
    with pytest.raises(ConfigError, match=r"it has 'so-so' that no row has, and lacks 'other'"):
        make_teacher(bundle, labels=("good", "bad", "other"), device="cpu")
    with pytest.raises(ConfigError, match=r"distillation\.teacher=.*its task is regression"):
        make_teacher(replace(bundle, task="regression"), labels=LABELS, device="cpu")
    with pytest.raises(ConfigError, match=r"what is learnt here is multi_label; leave it out"):
        make_teacher(bundle, labels=LABELS, device="cpu", task="multi_label")


def test_a_teacher_that_cannot_read_pairs_is_refused_before_a_cluster_starts(
    classifier_folder: Path, tmp_path: Path
) -> None:
    bundle = open_bundle(str(classifier_folder))
    single = replace(bundle, takes_pairs=False)
    with pytest.raises(ConfigError, match=r"distillation\.teacher=.* trained on single texts"):
        make_teacher(single, labels=LABELS, device="cpu", text_pair="other")
    with pytest.raises(ConfigError, match=r"distillation\.teacher=.*; set data\.text_pair to"):
        make_teacher(replace(bundle, takes_pairs=True), labels=LABELS, device="cpu")
    pa.parquet.write_table(
        pa.table({"text": TEXTS * 6, "other": TEXTS * 6, "label": LABELS * 10}),
        tmp_path / "a.parquet",
    )
    words = [
        f"model.base={classifier_folder}",
        f"data.train={tmp_path / 'a.parquet'}",
        "data.text_pair=other",
        f"output.path={tmp_path / 'out'}",
    ]
    job = prepare(load_config(TrainConfig, None, words))
    assert isinstance(job, Job)
    windowed = replace(job, teacher=replace(bundle, long_text=LongText("window")))
    with pytest.raises(ConfigError, match=r"text\.long=window, .* data\.text_pair=other is given"):
        windowed.teacher_on("cpu")


def test_a_teacher_that_is_another_on_this_node_is_refused(teacher: Teacher) -> None:
    with pytest.raises(ModelError, match=r"distillation\.teacher=.*on this node"):
        teach(replace(teacher, digest="0" * 64), [TEXTS])


def test_a_row_without_a_prediction_is_an_error(teacher: Teacher) -> None:
    with pytest.raises(DataError, match=r"distillation\.teacher=.*no prediction for ' '"):
        teach(teacher, [["good", " "]])


def shards_of(tmp_path: Path, num_rows: int = 40) -> Path:
    random = np.random.default_rng(0)
    words = "film plot the a is was very story actor".split()
    texts = [" ".join(random.choice(words, random.integers(1, 9))) for _ in range(num_rows)]
    labels = [LABELS[place % 3] for place in range(num_rows)]
    (tmp_path / "data").mkdir()
    pa.parquet.write_table(pa.table({"text": texts, "label": labels}), tmp_path / "data/a.parquet")
    return tmp_path / "data"


def rows_taught(folder: Path, base: Base, classifier_folder: Path) -> tuple[Examples, Any]:
    data = TrainData(train=str(folder))
    labelled = read_labels(list_shards(data), data, seed=0)
    teacher = make_teacher(
        open_bundle(str(classifier_folder)), labels=labelled.labels, device="cpu"
    )
    items = pa.Table.from_pylist(list(pieces_to_read(labelled)))
    table = tokenize(items, base=base, columns=["text"], teacher=teacher)
    texts = pa.parquet.read_table(folder).column("text").to_pylist()
    return in_row_order(table, labelled.targets), teach(teacher, [texts])


def test_the_logits_stay_with_their_row(
    tmp_path: Path, base: Base, classifier_folder: Path
) -> None:
    examples, logits = rows_taught(shards_of(tmp_path), base, classifier_folder)
    np.testing.assert_array_equal(examples.teacher_logits, logits)
    some = select(examples, np.array([7, 3]))
    np.testing.assert_array_equal(some.teacher_logits, logits[[7, 3]])


def test_a_student_comes_to_say_what_its_teacher_says(
    tmp_path: Path, base: Base, classifier_folder: Path
) -> None:
    examples, logits = rows_taught(shards_of(tmp_path), base, classifier_folder)
    student = load_base(base, labels=sorted(LABELS), seed=0)
    torch.nn.init.normal_(student.classifier.weight)  # type: ignore[union-attr]  # not its teacher's
    optim = load_config(
        TrainConfig,
        None,
        ["model.base=a", "data.train=b", "output.path=c", "optim.learning_rate=1e-2"],
    ).optim
    optimizer = make_optimizer(student, optim)
    precision = Precision("float32", torch.device("cpu"))

    def disagreement() -> float:
        found = predict(
            student,
            examples.encoded,
            precision=precision,
            num_labels=3,
            max_tokens=512,
            pad_token_id=0,
            rank=0,
            world_size=1,
        )
        return float((np.exp(logits) * (logits - np.log(found))).sum(axis=1).mean())

    before = disagreement()
    plan = [
        batch
        for epoch in range(8)
        for batch in plan_epoch(examples.encoded.lengths, global_batch_size=8, seed=0, epoch=epoch)
    ]
    steps = train_steps(
        student,
        optimizer,
        make_schedule(optimizer, optim, num_steps=len(plan)),
        examples,
        plan=plan,
        steps_done=0,
        num_steps=len(plan),
        seed=0,
        max_grad_norm=1.0,
        pad_token_id=0,
        rank=0,
        world_size=1,
        precision=precision,
        loss=CrossEntropy(temperature=2.0, alpha=1.0),
    )
    assert len(list(steps)) == len(plan)
    assert disagreement() < 0.3 * before


def test_the_lineage_names_the_teachers_digest_and_its_labels_are_checked_at_once(
    tmp_path: Path, classifier_folder: Path
) -> None:
    words = [
        f"model.base={classifier_folder}",
        f"data.train={shards_of(tmp_path)}",
        f"output.path={tmp_path / 'out'}",
        f"distillation.teacher={classifier_folder}",
    ]
    job = prepare(load_config(TrainConfig, None, words))
    assert isinstance(job, Job)
    digest = open_bundle(str(classifier_folder)).digest
    assert job.lineage["distillation.teacher"] == f'"{digest}"'
    assert job.lineage["distillation.temperature"] == "2.0"
    plain = prepare(load_config(TrainConfig, None, words[:-1]))
    assert isinstance(plain, Job)
    assert not any("distillation" in key for key in plain.lineage)
    two = pa.table({"text": ["a", "b"] * 10, "label": ["good", "bad"] * 10})
    pa.parquet.write_table(two, tmp_path / "data/a.parquet")
    with pytest.raises(ConfigError, match=r"it has 'so-so' that no row has, and lacks none"):
        prepare(load_config(TrainConfig, None, words))


@pytest.mark.parametrize("kind", ["store", "mlflow"])
def test_a_teacher_in_a_store_is_the_same_teacher(
    kind: str,
    tmp_path: Path,
    classifier_folder: Path,
    empty_mlflow: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root, named = str(tmp_path / "store"), "store://tutor@champion"
    if kind == "mlflow":
        shutil.copyfile(empty_mlflow, tmp_path / "mlflow.db")
        root, named = f"sqlite:///{tmp_path / 'mlflow.db'}", "models:/tutor@champion"
    versions.promote(root, versions.add(root, "tutor", classifier_folder), why="the first")
    words = [
        f"model.base={classifier_folder}",
        f"data.train={shards_of(tmp_path)}",
        f"output.path={tmp_path / 'out'}",
    ]
    there = [f"distillation.teacher={named}", f"distillation.store={root}"]
    job = prepare(load_config(TrainConfig, None, [*words, *there]))
    plain = prepare(
        load_config(TrainConfig, None, [*words, f"distillation.teacher={classifier_folder}"])
    )
    assert isinstance(job, Job)
    assert isinstance(plain, Job)
    assert job.lineage == plain.lineage  # where it lies changes nothing
    found, other = job.teacher_on("cpu"), plain.teacher_on("cpu")
    assert found is not None
    assert other is not None
    np.testing.assert_array_equal(teach(found, [TEXTS]), teach(other, [TEXTS]))  # as a worker does
    with pytest.raises(ConfigError, match=r"distillation\.teacher=.*: set distillation\.store to"):
        prepare(load_config(TrainConfig, None, [*words, there[0]]))

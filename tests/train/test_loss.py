"""What a step minimises, against torch's own mean and by hand."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

from bertray.config import Distillation, Training
from bertray.errors import ConfigError
from bertray.schema import Scale, Task
from bertray.train.loss import (
    CROSS_ENTROPY,
    NO_TEACHER,
    BinaryCrossEntropy,
    CrossEntropy,
    Loss,
    make_loss,
)

LABELS = ("ham", "spam", "news")
SCALE = Scale(mean=3e6, std=2e6)
LABEL_IDS = np.array([0, 0, 0, 1, 2, 2, 0, 0])


@pytest.fixture
def logits() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(len(LABEL_IDS), 3, requires_grad=True)


HAS_LABEL = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 0, 0]], bool)


def made(
    training: Training, task: Task = "single_label", distillation: Distillation = NO_TEACHER
) -> Any:
    return make_loss(
        training,
        task=task,
        labels=LABELS,
        targets=HAS_LABEL if task == "multi_label" else LABEL_IDS,
        scale=SCALE if task == "regression" else None,
        distillation=distillation,
    )


def mean(loss: Loss, logits: torch.Tensor) -> torch.Tensor:
    return loss.of_rows(logits, torch.from_numpy(LABEL_IDS)) / loss.num_rows(LABEL_IDS)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("class_weights", [None, (0.5, 4.0, 1.0)])
def test_the_mean_is_that_of_torch(
    logits: torch.Tensor, label_smoothing: float, class_weights: tuple[float, ...] | None
) -> None:
    expected = cross_entropy(
        logits,
        torch.from_numpy(LABEL_IDS),
        weight=torch.tensor(class_weights) if class_weights else None,
        label_smoothing=label_smoothing,
    )
    found = mean(CrossEntropy(label_smoothing=label_smoothing, class_weights=class_weights), logits)
    torch.testing.assert_close(found, expected)


def test_focal_loss_is_its_formula(logits: torch.Tensor) -> None:
    p = logits.softmax(dim=1)[torch.arange(len(LABEL_IDS)), torch.from_numpy(LABEL_IDS)]
    expected = (-((1 - p) ** 2) * p.log()).mean()
    torch.testing.assert_close(mean(CrossEntropy(focal_gamma=2.0), logits), expected)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_a_row_that_is_certain_has_a_gradient_without_nan(gamma: float) -> None:
    logits = torch.tensor([[100.0, 0.0, 0.0]], requires_grad=True)
    CrossEntropy(focal_gamma=gamma).of_rows(logits, torch.tensor([0])).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    loss = made(Training(class_weights="balanced"))
    expected = compute_class_weight("balanced", classes=np.arange(3), y=LABEL_IDS)
    np.testing.assert_allclose(loss.class_weights, expected)
    assert loss.num_rows(LABEL_IDS) == pytest.approx(len(LABEL_IDS))


def test_weights_are_given_by_label_and_a_label_that_is_not_there_is_an_error() -> None:
    loss = made(Training(class_weights={"spam": 4}))
    assert loss.class_weights == (1.0, 4.0, 1.0)
    with pytest.raises(ConfigError, match=r"class_weights: no row has the label 'sapm'.*ham, spam"):
        made(Training(class_weights={"sapm": 4}))


def test_without_settings_it_is_plain_cross_entropy() -> None:
    assert made(Training()) == CROSS_ENTROPY


def mean_of_lists(loss: Loss, logits: torch.Tensor) -> torch.Tensor:
    return loss.of_rows(logits[:4], torch.from_numpy(HAS_LABEL)) / loss.num_rows(HAS_LABEL)


@pytest.mark.parametrize("weights", [None, (0.5, 4.0, 1.0)])
def test_the_mean_of_independent_labels_is_that_of_torch(
    logits: torch.Tensor, weights: tuple[float, ...] | None
) -> None:
    expected = binary_cross_entropy_with_logits(
        logits[:4],
        torch.from_numpy(HAS_LABEL).float(),
        pos_weight=torch.tensor(weights) if weights else None,
    )
    found = mean_of_lists(BinaryCrossEntropy(positive_weights=weights), logits)
    torch.testing.assert_close(found, expected)


def test_focal_loss_of_independent_labels_is_its_formula(logits: torch.Tensor) -> None:
    p = logits[:4].sigmoid()
    p = torch.where(torch.from_numpy(HAS_LABEL), p, 1 - p)
    expected = (-((1 - p) ** 2) * p.log()).mean()
    torch.testing.assert_close(mean_of_lists(BinaryCrossEntropy(2.0), logits), expected)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_a_label_that_is_certain_has_a_gradient_without_nan(gamma: float) -> None:
    logits = torch.tensor([[200.0, -200.0]], requires_grad=True)
    BinaryCrossEntropy(gamma).of_rows(logits, torch.tensor([[True, False]])).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_balanced_independent_labels_weigh_what_their_absence_weighs() -> None:
    loss = made(Training(class_weights="balanced"), "multi_label")
    assert loss.positive_weights == (1.0, 3.0, 3.0)
    weights = made(Training(class_weights={"spam": 4}, focal_gamma=1), "multi_label")
    assert weights == BinaryCrossEntropy(1.0, (1.0, 4.0, 1.0))
    with pytest.raises(ConfigError, match=r"class_weights: no row has the label 'sapm'"):
        made(Training(class_weights={"sapm": 4}), "multi_label")


def test_what_has_no_meaning_for_a_task_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"training\.label_smoothing=0\.1.*leave it out"):
        made(Training(label_smoothing=0.1), "multi_label")
    for setting, value in {
        "class_weights": "balanced",
        "label_smoothing": 0.1,
        "focal_gamma": 2,
    }.items():
        with pytest.raises(ConfigError, match=rf"training\.{setting}=.*leave it out"):
            made(Training(**{setting: value}), "regression")


def test_numbers_have_the_squared_error_in_deviations(logits: torch.Tensor) -> None:
    loss, numbers = made(Training(), "regression"), torch.arange(8) * 1e6
    expected = mse_loss(logits[:, 0], ((numbers - SCALE.mean) / SCALE.std).float())
    found = loss.of_rows(logits[:, :1], numbers.double()) / loss.num_rows(LABEL_IDS)
    torch.testing.assert_close(found, expected)


def test_the_loss_with_a_teacher_is_its_formula_by_hand() -> None:
    logits, teacher = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    # At temperature 2: the student says e/(e+1) and 1/(e+1), the teacher 1/(1+e^2) and e^2/(1+e^2).
    e = np.e
    student_p, teacher_p = np.array([e, 1]) / (e + 1), np.array([1, e**2]) / (1 + e**2)
    divergence = (teacher_p * np.log(teacher_p / student_p)).sum()
    by_label = -np.log(np.exp(2) / (np.exp(2) + 1))
    found = CrossEntropy(temperature=2.0, alpha=0.3).of_rows(logits, torch.tensor([0]), teacher)
    assert float(found) == pytest.approx(0.7 * by_label + 0.3 * 4 * divergence, rel=1e-6)


def test_a_student_that_says_what_the_teacher_says_has_nothing_to_learn_from_it(
    logits: torch.Tensor,
) -> None:
    teacher = logits.detach() + 5.0  # a constant more is no difference
    loss = CrossEntropy(temperature=3.0, alpha=1.0, class_weights=(0.5, 4.0, 1.0))
    found = loss.of_rows(logits, torch.from_numpy(LABEL_IDS), teacher)
    found.backward()
    assert float(found.detach()) == pytest.approx(0, abs=1e-5)
    torch.testing.assert_close(logits.grad, torch.zeros_like(logits), atol=1e-5, rtol=0)


def test_the_teachers_word_weighs_as_its_row_does() -> None:
    logits, teacher = torch.tensor([[1.0, 0.0, 0.0]] * 2), torch.tensor([[0.0, 1.0, 0.0]] * 2)
    ids = torch.tensor([0, 1])
    one, four = (
        CrossEntropy(alpha=1.0, class_weights=(1.0, weight, 1.0)).of_rows(logits, ids, teacher)
        for weight in (1.0, 4.0)
    )
    assert float(four / one) == pytest.approx(5 / 2)


def test_without_a_teacher_its_settings_say_nothing() -> None:
    settings = Distillation(temperature=4.0, alpha=0.9)
    loss = made(Training(), distillation=settings)
    assert loss == CROSS_ENTROPY
    settings = Distillation(teacher="x", temperature=4.0, alpha=0.9)
    loss = made(Training(), distillation=settings)
    assert (loss.temperature, loss.alpha) == (4.0, 0.9)

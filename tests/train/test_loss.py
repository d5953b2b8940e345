"""What a step minimises, against torch's own mean and by hand."""

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn.functional import cross_entropy

from bertray.config import Distillation, Training
from bertray.errors import ConfigError
from bertray.train.loss import CROSS_ENTROPY, Loss, make_loss

LABELS = ("ham", "spam", "news")
LABEL_IDS = np.array([0, 0, 0, 1, 2, 2, 0, 0])


@pytest.fixture
def logits() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(len(LABEL_IDS), 3, requires_grad=True)


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
    found = mean(Loss(label_smoothing=label_smoothing, class_weights=class_weights), logits)
    torch.testing.assert_close(found, expected)


def test_focal_loss_is_its_formula(logits: torch.Tensor) -> None:
    p = logits.softmax(dim=1)[torch.arange(len(LABEL_IDS)), torch.from_numpy(LABEL_IDS)]
    expected = (-((1 - p) ** 2) * p.log()).mean()
    torch.testing.assert_close(mean(Loss(focal_gamma=2.0), logits), expected)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_a_row_that_is_certain_has_a_gradient_without_nan(gamma: float) -> None:
    logits = torch.tensor([[100.0, 0.0, 0.0]], requires_grad=True)
    Loss(focal_gamma=gamma).of_rows(logits, torch.tensor([0])).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    loss = make_loss(Training(class_weights="balanced"), labels=LABELS, label_ids=LABEL_IDS)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=LABEL_IDS)
    np.testing.assert_allclose(loss.class_weights, expected)
    assert loss.num_rows(LABEL_IDS) == pytest.approx(len(LABEL_IDS))


def test_weights_are_given_by_label_and_a_label_that_is_not_there_is_an_error() -> None:
    loss = make_loss(Training(class_weights={"spam": 4}), labels=LABELS, label_ids=LABEL_IDS)
    assert loss.class_weights == (1.0, 4.0, 1.0)
    with pytest.raises(ConfigError, match=r"class_weights: no row has the label 'sapm'.*ham, spam"):
        make_loss(Training(class_weights={"sapm": 4}), labels=LABELS, label_ids=LABEL_IDS)


def test_without_settings_it_is_plain_cross_entropy() -> None:
    assert make_loss(Training(), labels=LABELS, label_ids=LABEL_IDS) == CROSS_ENTROPY


def test_the_loss_with_a_teacher_is_its_formula_by_hand() -> None:
    logits, teacher = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    # At temperature 2: the student says e/(e+1) and 1/(e+1), the teacher 1/(1+e^2) and e^2/(1+e^2).
    e = np.e
    student_p, teacher_p = np.array([e, 1]) / (e + 1), np.array([1, e**2]) / (1 + e**2)
    divergence = (teacher_p * np.log(teacher_p / student_p)).sum()
    by_label = -np.log(np.exp(2) / (np.exp(2) + 1))
    found = Loss(temperature=2.0, alpha=0.3).of_rows(logits, torch.tensor([0]), teacher)
    assert float(found) == pytest.approx(0.7 * by_label + 0.3 * 4 * divergence, rel=1e-6)


def test_a_student_that_says_what_the_teacher_says_has_nothing_to_learn_from_it(
    logits: torch.Tensor,
) -> None:
    teacher = logits.detach() + 5.0  # a constant more is no difference
    loss = Loss(temperature=3.0, alpha=1.0, class_weights=(0.5, 4.0, 1.0))
    found = loss.of_rows(logits, torch.from_numpy(LABEL_IDS), teacher)
    found.backward()
    assert float(found.detach()) == pytest.approx(0, abs=1e-5)
    torch.testing.assert_close(logits.grad, torch.zeros_like(logits), atol=1e-5, rtol=0)


def test_the_teachers_word_weighs_as_its_row_does() -> None:
    logits, teacher = torch.tensor([[1.0, 0.0, 0.0]] * 2), torch.tensor([[0.0, 1.0, 0.0]] * 2)
    ids = torch.tensor([0, 1])
    one, four = (
        Loss(alpha=1.0, class_weights=(1.0, weight, 1.0)).of_rows(logits, ids, teacher)
        for weight in (1.0, 4.0)
    )
    assert float(four / one) == pytest.approx(5 / 2)


def test_without_a_teacher_its_settings_say_nothing() -> None:
    settings = Distillation(temperature=4.0, alpha=0.9)
    made = make_loss(Training(), labels=LABELS, label_ids=LABEL_IDS, distillation=settings)
    assert made == CROSS_ENTROPY
    settings = Distillation(teacher="x", temperature=4.0, alpha=0.9)
    made = make_loss(Training(), labels=LABELS, label_ids=LABEL_IDS, distillation=settings)
    assert (made.temperature, made.alpha) == (4.0, 0.9)

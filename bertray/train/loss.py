"""What a step minimises, by task, and how far the model is from a teacher.

# B = rows in a batch, C = labels
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, kl_div

from bertray.config import Distillation, Training
from bertray.errors import ConfigError
from bertray.schema import Scale, Task


class Loss(Protocol):
    """The loss of rows is the sum of `of_rows` over `num_rows`, however a batch was cut."""

    def of_rows(
        self, logits_BC: Tensor, targets: Tensor, teacher_BC: Tensor | None = None, /
    ) -> Tensor:
        """The sum over rows, by their weights; a number on the logits' device."""

    def num_rows(self, targets: np.ndarray) -> float:
        """How many rows of weight 1 these are worth."""


@dataclass(frozen=True)
class CrossEntropy:
    """For one label out of C; as torch averages weighted rows.

    Attributes:
        label_smoothing: share of each row's target that is spread over all labels.
        focal_gamma: each row counts (1 - p)^gamma, p the probability of its label (Lin et al. 2017,
            "Focal Loss for Dense Object Detection", without the class factor); 0 for all alike.
        class_weights: of the C labels in label-id order; None for all alike.
        temperature: that both models' logits are divided by where there is a teacher (Hinton et al.
            2015, https://arxiv.org/abs/1503.02531).
        alpha: weight of the divergence from the teacher; all the above has the rest.
    """

    label_smoothing: float = 0.0
    focal_gamma: float = 0.0
    class_weights: tuple[float, ...] | None = None
    temperature: float = 1.0
    alpha: float = 0.0

    def of_rows(
        self, logits_BC: Tensor, label_ids_B: Tensor, teacher_BC: Tensor | None = None, /
    ) -> Tensor:
        """The weighted sum over rows; a number on the logits' device."""
        logits_BC = logits_BC.float()
        weights = self.class_weights
        losses_B = cross_entropy(
            logits_BC,
            label_ids_B,
            weight=None if weights is None else logits_BC.new_tensor(weights),
            label_smoothing=self.label_smoothing,
            reduction="none",
        )
        if self.focal_gamma:
            p_B = logits_BC.softmax(dim=-1).gather(1, label_ids_B[:, None])[:, 0]
            losses_B = losses_B * _focus(1 - p_B, self.focal_gamma)
        if teacher_BC is not None:
            far_B = _divergence(logits_BC, teacher_BC, temperature=self.temperature)
            if weights is not None:
                far_B = far_B * logits_BC.new_tensor(weights)[label_ids_B]
            losses_B = (1 - self.alpha) * losses_B + self.alpha * far_B
        return losses_B.sum()

    def num_rows(self, label_ids_B: np.ndarray) -> float:
        """How many rows of weight 1 these are worth."""
        if self.class_weights is None:
            return float(len(label_ids_B))
        return float(np.asarray(self.class_weights)[label_ids_B].sum())


CROSS_ENTROPY = CrossEntropy()
NO_TEACHER = Distillation()  # type: ignore[call-arg]


@dataclass(frozen=True)
class BinaryCrossEntropy:
    """For C independent labels: a row's loss is the mean over them. No teacher is known for these.

    Attributes:
        focal_gamma: as `CrossEntropy` has it, p the probability of what is true of the row and
            label.
        positive_weights: of the C labels: how much a row counts that has the label; one that has it
            not counts 1. None for all alike.
    """

    focal_gamma: float = 0.0
    positive_weights: tuple[float, ...] | None = None

    def of_rows(
        self, logits_BC: Tensor, has_label_BC: Tensor, _teacher: Tensor | None = None, /
    ) -> Tensor:
        """The sum over rows; a number on the logits' device."""
        logits_BC = logits_BC.float()
        weights = self.positive_weights
        losses_BC = binary_cross_entropy_with_logits(
            logits_BC,
            has_label_BC.to(logits_BC.dtype),
            pos_weight=None if weights is None else logits_BC.new_tensor(weights),
            reduction="none",
        )
        if self.focal_gamma:
            wrong_BC = torch.where(has_label_BC, -logits_BC, logits_BC).sigmoid()
            losses_BC = losses_BC * _focus(wrong_BC, self.focal_gamma)
        return losses_BC.mean(dim=1).sum()

    def num_rows(self, has_label_BC: np.ndarray) -> float:
        """How many rows these are: weights change what is learnt of a label, not of a row."""
        return float(len(has_label_BC))


@dataclass(frozen=True)
class SquaredError:
    """For numbers, in deviations off the mean: a fresh head begins near 0, whatever the unit.

    Attributes:
        scale: of the numbers to train on.
    """

    scale: Scale

    def of_rows(
        self, logits_B1: Tensor, numbers_B: Tensor, _teacher: Tensor | None = None, /
    ) -> Tensor:
        """The sum over rows; a number on the logits' device."""
        wanted_B = (numbers_B - self.scale.mean) / self.scale.std  # in 64 bits
        return (logits_B1[:, 0].float() - wanted_B.float()).square().sum()

    def num_rows(self, numbers_B: np.ndarray) -> float:
        """How many rows these are."""
        return float(len(numbers_B))


def make_loss(
    training: Training,
    *,
    task: Task,
    labels: Sequence[str],
    targets: np.ndarray,
    scale: Scale | None = None,
    distillation: Distillation = NO_TEACHER,
) -> Loss:
    """What the settings make of the training rows.

    Args:
        training: the config's section.
        task: what is learnt.
        labels: label names in label-id order.
        targets: of the rows that are trained on.
        scale: of numbers.
        distillation: the config's section; says nothing without a teacher.

    Raises:
        ConfigError: a setting has no meaning for this task, or a weight is given for a label that
            the rows do not have.
    """
    if scale is not None:
        for setting in ("class_weights", "label_smoothing", "focal_gamma"):
            if getattr(training, setting):
                raise ConfigError(
                    f"training.{setting}={getattr(training, setting)}: for labels, and "
                    f"training.task={task} learns numbers; leave it out"
                )
        return SquaredError(scale)
    if task == "multi_label":
        if training.label_smoothing:
            raise ConfigError(
                f"training.label_smoothing={training.label_smoothing:g}: a row with several labels "
                "has no target that could be spread over all labels; leave it out"
            )
        return BinaryCrossEntropy(
            training.focal_gamma, _weights(training.class_weights, labels, _balanced_each(targets))
        )
    balanced = _balanced(targets, num_labels=len(labels))
    return CrossEntropy(
        label_smoothing=training.label_smoothing,
        focal_gamma=training.focal_gamma,
        class_weights=_weights(training.class_weights, labels, balanced),
        temperature=distillation.temperature if distillation.teacher else 1.0,
        alpha=distillation.alpha if distillation.teacher else 0.0,
    )


def _divergence(logits_BC: Tensor, teacher_BC: Tensor, *, temperature: float) -> Tensor:
    """Kullback-Leibler, of shape (B,). Times T^2, its gradients are as large at any temperature."""
    ours = (logits_BC / temperature).log_softmax(dim=-1)
    theirs = (teacher_BC.float() / temperature).log_softmax(dim=-1)
    by_label_BC = kl_div(ours, theirs, reduction="none", log_target=True)
    return by_label_BC.sum(dim=-1) * temperature**2


def _weights(
    wanted: str | Mapping[str, float] | None, labels: Sequence[str], balanced: np.ndarray
) -> tuple[float, ...] | None:
    if wanted is None:
        return None
    if isinstance(wanted, str):
        return tuple(balanced)
    unknown = sorted(set(wanted) - set(labels))
    if unknown:
        raise ConfigError(
            f"training.class_weights: no row has the label {unknown[0]!r}; the labels are "
            f"{', '.join(labels[:8])}{' ...' if len(labels) > 8 else ''}"
        )
    return tuple(wanted.get(label, 1.0) for label in labels)


def _balanced(label_ids: np.ndarray, *, num_labels: int) -> np.ndarray:
    """So that each label weighs as much as any other."""
    counts = np.bincount(label_ids, minlength=num_labels)
    return np.asarray(len(label_ids) / (num_labels * np.maximum(counts, 1)))


def _balanced_each(has_label: np.ndarray) -> np.ndarray:
    """So that the rows with a label weigh as much as those without it."""
    counts = has_label.sum(axis=0)
    return np.asarray(np.maximum(len(has_label) - counts, 1) / np.maximum(counts, 1))


def _focus(wrong: Tensor, gamma: float) -> Tensor:
    """(1 - p)^gamma. Below gamma 1 its gradient has no bound where p is 1."""
    return wrong.clamp_min(torch.finfo(wrong.dtype).eps) ** gamma

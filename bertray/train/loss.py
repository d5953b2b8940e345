"""What a step minimises: cross-entropy in its kinds, and how far the model is from a teacher.

# B = rows in a batch, C = labels
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from bertray.config import Distillation, Training
from bertray.errors import ConfigError


@dataclass(frozen=True)
class Loss:
    """Cross-entropy of C labels.

    The loss of rows is the sum of `of_rows` over `num_rows`, as torch averages weighted rows.

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
        self, logits_BC: Tensor, label_ids_B: Tensor, teacher_BC: Tensor | None = None
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
            # Below gamma 1 the gradient of (1 - p)^gamma has no bound where p is 1.
            losses_B = (
                losses_B * (1 - p_B).clamp_min(torch.finfo(p_B.dtype).eps) ** self.focal_gamma
            )
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


CROSS_ENTROPY = Loss()
NO_TEACHER = Distillation()  # type: ignore[call-arg]


def make_loss(
    training: Training,
    *,
    labels: Sequence[str],
    label_ids: np.ndarray,
    distillation: Distillation = NO_TEACHER,
) -> Loss:
    """What the settings make of the training rows.

    Args:
        training: the config's section.
        distillation: likewise; says nothing without a teacher.
        labels: label names in label-id order.
        label_ids: of the rows that are trained on.

    Raises:
        ConfigError: a weight is given for a label that the rows do not have.
    """
    return Loss(
        label_smoothing=training.label_smoothing,
        focal_gamma=training.focal_gamma,
        class_weights=_class_weights(training.class_weights, labels, label_ids),
        temperature=distillation.temperature if distillation.teacher else 1.0,
        alpha=distillation.alpha if distillation.teacher else 0.0,
    )


def _divergence(logits_BC: Tensor, teacher_BC: Tensor, *, temperature: float) -> Tensor:
    """Kullback-Leibler, of shape (B,). Times T^2, its gradients are as large at any temperature."""
    ours = (logits_BC / temperature).log_softmax(dim=-1)
    theirs = (teacher_BC.float() / temperature).log_softmax(dim=-1)
    by_label_BC = kl_div(ours, theirs, reduction="none", log_target=True)
    return by_label_BC.sum(dim=-1) * temperature**2


def _class_weights(
    wanted: str | Mapping[str, float] | None, labels: Sequence[str], label_ids: np.ndarray
) -> tuple[float, ...] | None:
    if wanted is None:
        return None
    if isinstance(wanted, str):  # balanced: each label weighs as much as any other
        counts = np.bincount(label_ids, minlength=len(labels))
        return tuple(len(label_ids) / (len(labels) * np.maximum(counts, 1)))
    unknown = sorted(set(wanted) - set(labels))
    if unknown:
        raise ConfigError(
            f"training.class_weights: no row has the label {unknown[0]!r}; the labels are "
            f"{', '.join(labels[:8])}{' ...' if len(labels) > 8 else ''}"
        )
    return tuple(wanted.get(label, 1.0) for label in labels)

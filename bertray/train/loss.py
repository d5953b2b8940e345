"""What a step minimises: cross-entropy, smoothed, weighted by class, focused on hard rows.

# B = rows in a batch, C = labels
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from bertray.config import Training
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
    """

    label_smoothing: float = 0.0
    focal_gamma: float = 0.0
    class_weights: tuple[float, ...] | None = None

    def of_rows(self, logits_BC: Tensor, label_ids_B: Tensor) -> Tensor:
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
        return losses_B.sum()

    def num_rows(self, label_ids_B: np.ndarray) -> float:
        """How many rows of weight 1 these are worth."""
        if self.class_weights is None:
            return float(len(label_ids_B))
        return float(np.asarray(self.class_weights)[label_ids_B].sum())


CROSS_ENTROPY = Loss()


def make_loss(training: Training, *, labels: Sequence[str], label_ids: np.ndarray) -> Loss:
    """What the settings make of the training rows.

    Args:
        training: the config's section.
        labels: label names in label-id order.
        label_ids: of the rows that are trained on.

    Raises:
        ConfigError: a weight is given for a label that the rows do not have.
    """
    return Loss(
        label_smoothing=training.label_smoothing,
        focal_gamma=training.focal_gamma,
        class_weights=_class_weights(training.class_weights, labels, label_ids),
    )


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

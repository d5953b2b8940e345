"""How good predictions are, on scikit-learn.

# N = rows, C = labels
"""

import numpy as np
from sklearn.metrics import accuracy_score, f1_score

# Of each metric, whether more is better.
HIGHER_IS_BETTER = {"accuracy": True, "macro_f1": True, "loss": False}

# The least probability that the loss takes a logarithm of: float32 rounds smaller ones to 0.
LEAST_PROBABILITY = float(np.finfo(np.float32).tiny)


def classification_metrics(probabilities: np.ndarray, label_ids: np.ndarray) -> dict[str, float]:
    """Metrics of single-label predictions.

    Macro-F1 averages over the labels that occur among the true or the predicted ones, so a label
    that these rows never met counts neither way.

    Args:
        probabilities: of shape (N, C), rows sum to 1.
        label_ids: the true labels, integers of shape (N,).

    Returns:
        ``accuracy``, ``macro_f1`` and ``loss``, the mean cross-entropy in nats.

    Raises:
        ValueError: no rows, or another number of labels than of probabilities.
    """
    if not len(label_ids) or len(label_ids) != len(probabilities):
        raise ValueError(f"{len(probabilities)} predictions for {len(label_ids)} labels")
    predicted = probabilities.argmax(axis=1)
    true = probabilities[np.arange(len(label_ids)), label_ids].astype(np.float64)
    return {
        "accuracy": float(accuracy_score(label_ids, predicted)),
        "macro_f1": float(f1_score(label_ids, predicted, average="macro", zero_division=0.0)),
        "loss": float(-np.log(np.maximum(true, LEAST_PROBABILITY)).mean()),
    }

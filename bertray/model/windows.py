"""The logits of a row's windows become the row's, in training as in scoring.

# B = rows, S = their sequences, C = labels
"""

import numpy as np
import torch
from torch import Tensor

from bertray.text.long import Aggregate


def pool_windows(logits_SC: Tensor, num_windows: np.ndarray, *, aggregate: Aggregate) -> Tensor:
    """One line of logits a row.

    Args:
        logits_SC: of the sequences, a row's one after the other.
        num_windows: sequences per row, integers of shape (B,).
        aggregate: ``mean`` or ``max`` over a row's windows, each label by itself. ``first`` is for
            rows of which one window was read.

    Returns:
        Shape (B, C); not finite where a window's are not. What came in, where no row has more
        windows than one.
    """
    if len(logits_SC) == len(num_windows):
        return logits_SC
    lengths = torch.from_numpy(num_windows).to(logits_SC.device)
    return torch.segment_reduce(logits_SC.float(), aggregate, lengths=lengths, axis=0)

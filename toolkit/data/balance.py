"""Weights with which rare classes count as much as frequent ones."""

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from toolkit.data.manifest import class_matrix


def balanced_class_weights(labels: pd.Series, count: int) -> Tensor:
    """Weights [C] for the loss: N / (K n_c), N the labels, n_c those of class c.

    K is the number of classes with any; scikit-learn calls these weights `class_weight="balanced"`
    (King and Zeng, 2001). A class without labels has the weight 1: it can still be predicted,
    wrongly, and keeps its part of the loss.
    """
    counts = class_matrix(labels, count).sum(axis=0)
    present = (counts > 0).sum()
    weights = np.divide(counts.sum(), present * counts, out=np.ones(count), where=counts > 0)
    return torch.tensor(weights, dtype=torch.float32)


def balanced_clip_weights(labels: pd.Series, count: int) -> Tensor:
    """Relative chances [N] of each clip to be drawn: the sum of 1 / n_c over its classes.

    A clip without a class is drawn like one of the most frequent class (arXiv:2104.01778, 3.1).
    """
    held = class_matrix(labels, count)
    counts = held.sum(axis=0)
    weights = (held / np.maximum(counts, 1)).sum(axis=1)
    weights[weights == 0] = 1 / max(counts.max(), 1)
    return torch.from_numpy(weights)

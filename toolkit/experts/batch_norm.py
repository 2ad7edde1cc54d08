"""Batch norm for batches of any size."""

from torch import Tensor, nn
from torch.nn import functional


def batch_norm(norm: nn.Module, values: Tensor) -> Tensor:
    """Apply a batch norm, also to a training batch that is too small to have statistics.

    One value per channel (a batch of one clip with one slot or token) has no variance, and none
    has no mean either. Such a batch is normalised with the running statistics, as in evaluation,
    and does not change them.

    Args:
        norm: a batch norm, or what stands in its place.
        values: [N, C] or [N, C, L].
    """
    single = values.numel() < 2 * values.shape[1]
    if type(norm) is nn.BatchNorm1d and norm.training and single:
        return functional.batch_norm(
            values, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
        )
    normed: Tensor = norm(values)
    return normed

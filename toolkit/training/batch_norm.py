"""Batch norm over the batches of all processes, also without a GPU."""

from torch import Tensor, nn

from toolkit import processes


class JointBatchNorm(nn.BatchNorm1d):
    """A batch norm whose statistics in training are those of all processes together.

    `torch.nn.SyncBatchNorm` does this on GPUs only; this one is used on every device. It computes
    in float64: a rounding error can decide which experts a router behind it chooses.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise [N, C] or [N, C, L]; N may differ from process to process."""
        if not self.training:
            return super().forward(input)
        axes = [axis for axis in range(input.ndim) if axis != 1]
        shape = [-1 if axis == 1 else 1 for axis in range(input.ndim)]
        values = input.double()
        here = values.new_tensor(values.numel() // values.shape[1])
        count = processes.total(here)
        mean = processes.total(values.sum(dim=axes)) / count
        centred = values - mean.view(shape)
        variance = processes.total(centred.square().sum(dim=axes)) / count
        self._follow(mean.detach(), variance.detach() * count / (count - 1).clamp(min=1))
        normed = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            normed = normed * self.weight.view(shape) + self.bias.view(shape)
        return normed.to(input.dtype)

    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics, if any are kept, as `torch.nn.BatchNorm1d` does."""
        tracked = self.num_batches_tracked
        if self.running_mean is None or self.running_var is None or tracked is None:
            return
        tracked += 1
        rate = 1 / int(tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), rate)
        self.running_var.lerp_(variance.to(self.running_var), rate)


def join_batch_norms(model: nn.Module) -> None:
    """Make every `BatchNorm1d` of a model a `JointBatchNorm` with the same tensors, in place."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.BatchNorm1d:
                setattr(module, name, _joint(child))


def _joint(norm: nn.BatchNorm1d) -> JointBatchNorm:
    made = JointBatchNorm(
        norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats
    )
    made._parameters, made._buffers = norm._parameters, norm._buffers
    return made.train(norm.training)

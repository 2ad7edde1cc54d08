"""How sensitive the loss is to changes at each mixture: the Fisher information of its output."""

from collections.abc import Callable
from typing import Literal

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from toolkit.mixtures.tool import MixtureData
from toolkit.model import AudioClassifier
from toolkit.peft.base import Objective
from toolkit.peft.mixture import RoutedMixture, mixtures

Sensitivity = Literal["fisher_delta", "fisher_out"]


def measure(
    model: AudioClassifier, data: MixtureData, clips: pd.DataFrame, kind: Sensitivity
) -> dict[str, float]:
    """The sensitivity S of every mixture, in the order in which they run.

    Let g be the gradient of a clip's loss by the mixture's output at a token, and E_1 and E_2 the
    token's two strongest experts. `fisher_delta` is the mean over tokens of
    `sum_k g_k^2 (E_1 - E_2)_k^2`; `fisher_out` is the mean of `sum_k g_k^2`.

    Args:
        model: a model in eval mode.
        data, clips: the clips to measure on, with their true classes.
        kind: which of the two.
    """
    totals: dict[str, Tensor] = {}
    tokens = 0
    for batch in data.batches(clips, batch_size=1):  # so that none is padded to another's length
        features = model.backbone.features.normalise(batch.features, batch.lengths)
        for site, (mixture, x, gradient) in _gradients(
            model, features, data.objective(batch.labels)
        ).items():
            change = None if kind == "fisher_out" else between_strongest(mixture, x)
            totals[site] = totals.get(site, 0.0) + curvature(gradient.square(), change).sum()
        tokens += gradient.shape[0] * gradient.shape[1]
    return {site: (total / tokens).item() for site, total in totals.items()}


def curvature(diagonal: Tensor, change: Tensor | None) -> Tensor:
    """`sum_k h_k c_k^2` of each token: twice the change of the loss at a minimum, to second order.

    Args:
        diagonal: h [..., d], the diagonal of the Hessian or an estimate of it.
        change: c [..., d], the change of the output; None: all ones.

    Returns:
        [...].
    """
    return (diagonal if change is None else diagonal * change.square()).sum(dim=-1)


@torch.no_grad()
def between_strongest(mixture: RoutedMixture, x: Tensor) -> Tensor:
    """E_1(x) - E_2(x) of each token's two strongest experts: a mixture with gates 1 and -1.

    Args:
        mixture: a mixture with a router.
        x: tokens [B, T, d].

    Returns:
        [B, T, d].
    """
    gates = mixture.router.trained(x)
    first, second = gates.topk(2, dim=-1).indices.unbind(dim=-1)
    number = gates.shape[-1]
    signs = functional.one_hot(first, number) - functional.one_hot(second, number)
    return mixture.experts.mix(x, signs.to(x.dtype))


def _gradients(
    model: AudioClassifier, features: Tensor, objective: Objective
) -> dict[str, tuple[RoutedMixture, Tensor, Tensor]]:
    """The mixture, its tokens and the gradient of the loss by its output, by site; for one clip."""
    model.eval()
    seen: dict[str, tuple[RoutedMixture, Tensor, Tensor]] = {}

    def hook(site: str) -> Callable[..., Tensor]:
        def note(mixture: RoutedMixture, arguments: tuple[Tensor], output: Tensor) -> Tensor:
            probe = torch.zeros_like(output, requires_grad=True)
            seen[site] = (mixture, arguments[0].detach(), probe)
            return output + probe

        return note

    handles = [m.register_forward_hook(hook(site)) for site, m in mixtures(model.backbone).items()]
    try:
        with torch.enable_grad():
            loss = objective.loss(model(features))
            gradients = torch.autograd.grad(loss, [probe for *_, probe in seen.values()])
    finally:
        for handle in handles:
            handle.remove()
    return {
        site: (mixture, x, gradient)
        for (site, (mixture, x, _)), gradient in zip(seen.items(), gradients, strict=True)
    }

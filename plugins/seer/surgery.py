"""Taking experts out of a mixture: really smaller tensors, the same as masking their logits."""

from collections.abc import Sequence

import torch
from torch import nn

from toolkit.errors import ConfigError
from toolkit.experts.base import Experts
from toolkit.model import AudioClassifier
from toolkit.peft.dense_moa import DenseMixture
from toolkit.peft.soft_moa import SoftMixture
from toolkit.peft.topk import TopKMixture
from toolkit.routing.dense import DenseRouter
from toolkit.routing.topk import TopKRouter


def keep_experts(model: AudioClassifier, mixture: nn.Module, numbers: Sequence[int]) -> None:
    """Leave only some experts, in this order, and what the router has for them.

    The softmax over experts then runs over the rest, as if the others' logits were -inf; of a soft
    mixture only that of the combine weights, since every slot's softmax over tokens is its own.

    Args:
        model: its method makes the experts.
        mixture: see `refuse_unless_prunable`.
        numbers: of the experts that stay.
    """
    numbers, old = list(numbers), mixture.experts
    experts = model.method.experts(model.backbone, len(numbers), old.dim).to(old.up.device)
    experts.take(old, numbers)
    mixture.experts = experts.train(mixture.training)
    if isinstance(mixture, SoftMixture):
        mixture.phi = nn.Parameter(mixture.phi.detach()[:, numbers].clone())
        return
    _keep_rows(mixture.router.linear, numbers)
    if isinstance(mixture.router, TopKRouter):
        mixture.router.alive = mixture.router.alive[numbers].clone()


@torch.no_grad()
def _keep_rows(linear: nn.Linear, numbers: list[int]) -> None:
    linear.weight = nn.Parameter(linear.weight[numbers].clone())
    if linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias[numbers].clone())
    linear.out_features = len(numbers)


def refuse_unless_prunable(model: AudioClassifier, found: dict[str, nn.Module]) -> None:
    """Say why experts cannot be taken out.

    Args:
        model: whose mixtures these are.
        found: site -> mixture.

    Raises:
        ConfigError: no mixture of a known kind, or another tool has changed it.
    """
    name = model.method.registered_name
    kinds = DenseMixture | TopKMixture | SoftMixture
    if not found or not all(isinstance(mixture, kinds) for mixture in found.values()):
        raise ConfigError(
            f"'{name}' is no mixture from which seer can take experts: use a bundle of dense_moa, "
            "topk_moa or soft_moa"
        )
    routers = [mixture.router for mixture in found.values() if hasattr(mixture, "router")]
    experts = [mixture.experts for mixture in found.values()]
    if not all(isinstance(router, DenseRouter | TopKRouter) for router in routers) or not all(
        isinstance(e, Experts) and isinstance(e.down, nn.Parameter) for e in experts
    ):
        raise ConfigError(
            f"another tool has changed the experts or the routers of this '{name}': prune first, "
            "then compress"
        )

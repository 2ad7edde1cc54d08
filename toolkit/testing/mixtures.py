"""What every mixture answers when tools and views ask it, as a check."""

import torch
from torch import Tensor

from toolkit.errors import ConfigError
from toolkit.peft import insertion
from toolkit.peft.base import PeftMethod, Recorder
from toolkit.peft.mixture import Mixture, RoutedMixture, mixtures
from toolkit.testing.require import require
from toolkit.testing.tiny import tiny_batch, tiny_classifier, tiny_lengths


def check_mixtures(method: PeftMethod, family: str = "ast") -> None:
    """The mixtures of a method are found, record their passes, and give gates that are gates.

    A method without mixtures passes. So does one that this family refuses.
    """
    model = tiny_classifier(method, family=family, noise=0.05).eval()
    backbone = model.backbone
    recorders = [m for m in insertion.inserted(backbone) if isinstance(m, Recorder)]
    found = mixtures(backbone)
    require(list(found.values()) == recorders, "a module that records must extend Mixture")
    seen: dict[Mixture, Tensor] = {}
    for mixture in found.values():
        mixture.register_forward_pre_hook(lambda module, args: seen.update({module: args[0]}))
    (features, _), lengths = tiny_batch(backbone), tiny_lengths(backbone)
    method.record(backbone, on=True)
    with torch.no_grad():
        model(features, lengths)
        for site, mixture in found.items():
            _check_mixture(mixture, seen[mixture], site)
    for name, value in method.statistics(backbone).items():
        finite = torch.isfinite(torch.as_tensor(value)).all()
        require(finite, f"the statistic '{name}' is not finite: {value}")


def _check_mixture(mixture: Mixture, x: Tensor, site: str) -> None:
    kind, experts = type(mixture).__name__, mixture.num_experts
    shape = (*x.shape[:2], experts)
    require(mixture.alive.shape == (experts,), f"{kind}.alive at {site} must be [{experts}]")
    require(mixture.alive.any(), f"{kind} at {site} has no expert that is alive")
    require(mixture.records, f"{kind} at {site} records nothing: append to `records` in `forward`")
    used = mixture.experts_per_token()
    require(0 < used <= experts, f"{kind} at {site} says that {used} of {experts} experts are used")
    _check_gates(f"{kind}.shares at {site}", mixture.shares(x), shape)
    if not mixture.reads_slots:
        gates = mixture.gates(x)
        _check_gates(f"{kind}.gates at {site}", gates, shape)
        require(not gates[..., ~mixture.alive].any(), f"{kind} at {site} uses a dead expert")
        if isinstance(mixture, RoutedMixture) and mixture.k is not None:
            most = int((gates > 0).sum(dim=-1).max())
            require(most <= mixture.k, f"{kind} at {site} uses {most} experts and k is {mixture.k}")
        return
    try:
        mixture.gates(x)
    except ConfigError:
        return
    raise AssertionError(f"{kind} at {site} reads slots, so `gates` must raise ConfigError")


def _check_gates(what: str, gates: Tensor, shape: tuple[int, ...]) -> None:
    require(gates.shape == shape, f"{what} has the shape {list(gates.shape)}, not {list(shape)}")
    require(torch.isfinite(gates).all(), f"{what} is not finite")
    require((gates >= 0).all(), f"{what} is negative for some token: give gates, not logits")
    require(gates.sum() > 0, f"{what} is zero for all tokens")

"""The method topk_moa keeps the contract; its gate and mixture are tested in tests/peft."""

from pathlib import Path
from typing import Any

import pytest
import torch

from toolkit import plugins
from toolkit.errors import ConfigError
from toolkit.model import AudioClassifier
from toolkit.peft import insertion
from toolkit.peft.topk import topk_mixtures
from toolkit.registry import PEFT
from toolkit.routing import topk
from toolkit.testing import (
    CLASSES,
    check_identity,
    check_method,
    check_saving,
    tiny_backbone,
    tiny_batch,
)

plugins.load([Path(__file__).parent])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_experts": 33, "placement": "both", "w_z": 0.001, "w_entropy": 0.01},
        {"block": "conformer", "reduction": 24},
    ],
)
def test_contract(settings: dict[str, Any]) -> None:
    check_method("topk_moa", settings)


def test_contract_with_noise_and_capacity() -> None:
    """Not all of it: with so much noise, six steps need not lower the loss."""
    settings = {"k": 1, "jitter": 0.01, "noise": 0.1, "capacity": 1.25}
    method = PEFT.create({"name": "topk_moa", **settings})
    check_identity(method)
    check_saving(method)


def model(**settings: Any) -> AudioClassifier:
    """A tiny classifier with the method."""
    torch.manual_seed(0)
    method = PEFT.create({"name": "topk_moa", **settings})
    return AudioClassifier(tiny_backbone(), method, CLASSES, "all")


def test_parameters_in_closed_form() -> None:
    for n, reduction in ((7, 16), (40, 32)):
        made = model(num_experts=n, reduction=reduction, norms=False, final_norm=False)
        d, r = 96, 96 // reduction
        assert made.count().method == 2 * (n * (2 * d * r + r + d) + n * d)


def test_auxiliary_losses_are_weighted_named_and_asked_for_once() -> None:
    made = model(w_balance=0.5, w_z=0.25, w_entropy=2.0).train()
    method, backbone = made.method, made.backbone
    made(tiny_batch(backbone)[0])
    routings = [m.router.routing for m in topk_mixtures(backbone)]
    losses = method.auxiliary_losses(backbone)
    for name, weight, function in (
        ("balance", 0.5, topk.balance),
        ("router_z", 0.25, topk.z_loss),
        ("gate_entropy", 2.0, topk.entropy),
    ):
        torch.testing.assert_close(losses[name], weight * sum(function(r) for r in routings))
    with pytest.raises(RuntimeError, match="train mode"):
        method.auxiliary_losses(backbone)
    plain = model(w_balance=0.0).train()
    plain(tiny_batch(plain.backbone)[0])
    assert plain.method.auxiliary_losses(plain.backbone) == {}


def test_statistics() -> None:
    made = model().eval()
    made.method.record(made.backbone, True)
    made(tiny_batch(made.backbone)[0])
    found = made.method.statistics(made.backbone)
    assert sum(found["load"]) == pytest.approx(1) and len(found["load"]) == 7
    assert sum(found["importance"]) == pytest.approx(1)
    assert found["active_mean"] == 2 and found["alive"] == 7
    assert 0.5 < found["gate_entropy"] <= 1 and 0 <= found["unused"] < 1


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="lower 'k'"):
        model(k=8)
    for settings in ({"k": 0}, {"jitter": 1.5}, {"capacity": 0.0}, {"w_balance": -1.0}):
        with pytest.raises(ConfigError, match="must be at"):
            model(**settings)


def test_mixture_is_inserted_at_every_site() -> None:
    made = model(placement="both")
    assert len(topk_mixtures(made.backbone)) == 4 == len(list(insertion.inserted(made.backbone)))

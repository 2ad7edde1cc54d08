"""Every mixture, of the library and of the plugins, answers what tools and views ask."""

import copy

import pytest
import torch
from torch import Tensor

from toolkit import plugins
from toolkit.errors import ConfigError
from toolkit.peft import insertion
from toolkit.peft.base import Recorder
from toolkit.peft.mixture import Mixture, mixtures
from toolkit.registry import PEFT
from toolkit.routing.router import WrappedRouter
from toolkit.testing import first_mixture, tiny_batch, tiny_mixture

plugins.load()
PRUNABLE = ["dense_moa", "soft_moa", "topk_moa", "expert_pruning"]
OTHERS = ["automoe", "dynmoe", "mumoe", "peer", "thor"]


def tokens_of(name: str) -> tuple[Mixture, Tensor]:
    """The first mixture of a tiny model in eval mode, after a pass, and the tokens of that pass."""
    model, seen = tiny_mixture(name), []
    mixture = first_mixture(model)
    mixture.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    with torch.no_grad():
        model(tiny_batch(model.backbone)[0])
    return mixture, seen[0]


@pytest.mark.parametrize("name", PEFT.names())
def test_whatever_records_is_a_mixture_and_found(name: str) -> None:
    backbone = tiny_mixture(name).backbone
    recording = [m for m in insertion.inserted(backbone) if isinstance(m, Recorder)]
    assert list(mixtures(backbone).values()) == recording
    assert bool(recording) == (name in [*PRUNABLE, *OTHERS])


@pytest.mark.parametrize("name", [*PRUNABLE, *OTHERS])
def test_gates_or_a_refusal_and_recorded_experts(name: str) -> None:
    mixture, x = tokens_of(name)
    experts = mixture.num_experts
    assert mixture.alive.shape == (experts,) and mixture.alive.any()
    shares = mixture.shares(x)
    assert shares.shape == (*x.shape[:2], experts)
    if mixture.reads_slots:
        with pytest.raises(ConfigError, match="slots"):
            mixture.gates(x)
        assert mixture.token_weights(x).keys() == {"dispatch", "combine"}
    else:
        gates = mixture.gates(x)
        assert gates.shape == shares.shape and (gates >= 0).all() and gates.sum() > 0
        assert not gates[..., ~mixture.alive].any()
        assert torch.equal(mixture.token_weights(x)["gate"][..., 0], gates)
    for training in (False, True):
        mixture.recording = True
        mixture.records.clear()
        with torch.no_grad():
            mixture.train(training)(x)
        assert len(mixture.records) == 1
        assert 0 < mixture.experts_per_token() <= experts


@pytest.mark.parametrize("name", PRUNABLE)
def test_outputs_of_the_experts_inputs_sum_to_the_mixtures_output(name: str) -> None:
    mixture, x = tokens_of(name)
    inputs = mixture.expert_inputs(x)
    weights = mixture.token_weights(x)
    outputs = mixture.experts(inputs)
    if mixture.reads_slots:
        mixed = torch.einsum("b t e s, b e s d -> b t d", weights["combine"], outputs)
    else:
        mixed = torch.einsum("b t e, b e t d -> b t d", weights["gate"][..., 0], outputs)
    torch.testing.assert_close(mixed, mixture(x))


@pytest.mark.parametrize("name", [*PRUNABLE, *OTHERS])
def test_k_is_that_of_routers_that_have_one(name: str) -> None:
    mixture = first_mixture(tiny_mixture(name))
    chooses = name in ("topk_moa", "expert_pruning", "automoe")
    assert mixture.k == (mixture.router.k if chooses else None)
    assert mixture.has_router == (name not in ("soft_moa", "mumoe", "peer", "thor"))


@pytest.mark.parametrize("name", PRUNABLE)
def test_kept_experts_equal_silenced_others(name: str) -> None:
    """A kept expert has its own weights, in the order that was asked for."""
    mixture, x = tokens_of(name)
    whole, numbers = copy.deepcopy(mixture), [4, 1, 2]
    mixture.keep(numbers)
    assert mixture.num_experts == 3 == len(mixture.alive)
    assert not mixture.training and not mixture.experts.training
    for number, kept in enumerate(numbers):
        for key, tensor in mixture.experts.of(number).items():
            assert torch.equal(tensor, whole.experts.of(kept)[key])
    rest = whole.shares(x)[..., numbers]
    torch.testing.assert_close(mixture.shares(x), rest / rest.sum(dim=-1, keepdim=True))
    assert all(parameter.requires_grad for parameter in mixture.parameters())


@pytest.mark.parametrize("name", OTHERS)
def test_other_mixtures_refuse_to_lose_experts(name: str) -> None:
    with pytest.raises(ConfigError, match="no experts can be taken out"):
        first_mixture(tiny_mixture(name)).keep([0])


def test_statistics_in_training_are_those_of_the_pass_with_its_noise() -> None:
    """The router is noisy in training; what is recorded is what the tokens went through."""
    mixture, x = tokens_of("topk_moa")
    mixture.train()
    mixture.router.noise, mixture.recording = 50.0, True
    with torch.no_grad():
        mixture(x)
    used = mixture.router.take_routing().gates > 0
    counts = used.flatten(0, 1).sum(dim=0).float()
    torch.testing.assert_close(mixture.records[0]["load"], counts / counts.sum())


def test_statistics_count_the_gates_that_a_tool_has_changed() -> None:
    """A router that keeps a token's best expert alone, put around the trained one."""

    class Best(WrappedRouter):
        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            gates = self.router(x, mask)
            return gates * (gates == gates.amax(dim=-1, keepdim=True))

    mixture, x = tokens_of("topk_moa")
    mixture.router, mixture.recording = Best(mixture.router), True
    with torch.no_grad():
        mixture(x)
    assert mixture.experts_per_token() == 1
    assert mixture.weighs_experts and mixture.in_full_precision and not mixture.unchanged
    assert mixture.k == mixture.router.trained.k
    with pytest.raises(ConfigError, match="prune first"):
        mixture.keep([0])

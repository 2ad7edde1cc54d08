"""Routers decide in float32 whatever the precision around them, and never make NaN."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from toolkit import plugins
from toolkit.experts.bottleneck import Bottleneck
from toolkit.padding import TokenContext
from toolkit.peft.dense_moa import DenseMixture
from toolkit.peft.mixture import Mixture
from toolkit.peft.soft_moa import SoftMixture
from toolkit.peft.topk import TopKMixture
from toolkit.routing.topk import TopKRouter

plugins.load()
from toolkit_plugins.mumoe.multilinear import MultilinearBlock  # noqa: E402
from toolkit_plugins.mumoe.mumoe import MultilinearMixture  # noqa: E402
from toolkit_plugins.peer.peer import Peer, RetrievedExperts  # noqa: E402
from toolkit_plugins.peer.pool import NeuronPool  # noqa: E402

D, E = 96, 7


def peer() -> RetrievedExperts:
    """A retrieval that owns its pool."""
    return RetrievedExperts(Peer(n_keys=8), D, NeuronPool(64, D), owner=True)


def multilinear(norm: str = "batch") -> MultilinearMixture:
    """A mixture of 8 x 4 experts."""
    return MultilinearMixture(MultilinearBlock("cp", (8, 4), D, 4, 4, "entmax15", norm))


MAKE: dict[str, Callable[[], Mixture]] = {
    "soft": lambda: SoftMixture(Bottleneck(E, D, 4), 2),
    "soft, normalised": lambda: SoftMixture(Bottleneck(E, D, 4), 2, normalize=True),
    "soft, over experts": lambda: SoftMixture(Bottleneck(E, D, 4), 2, True, over_experts=True),
    "dense": lambda: DenseMixture(Bottleneck(E, D, 4)),
    "top-k": lambda: TopKMixture(Bottleneck(E, D, 4), TopKRouter(D, E)),
    "mumoe": multilinear,
    "mumoe, layer norm": lambda: multilinear("layer"),
    "peer": peer,
}


def noisy(module: Mixture, spread: float = 1.0) -> Mixture:
    """A mixture whose parameters are all random."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(spread * torch.randn_like(parameter) / math.sqrt(D))
    return module


def shares(module: Mixture, x: Tensor) -> Tensor:
    """How every token spreads its weight over the experts."""
    return module.shares(x)


@pytest.mark.parametrize("spread", [1, 10])
@pytest.mark.parametrize("kind", MAKE)
def test_gates_under_autocast_are_those_of_float64(kind: str, spread: float) -> None:
    torch.manual_seed(0)
    module, x = noisy(MAKE[kind](), spread).eval(), torch.randn(2, 50, D)
    want = shares(copy.deepcopy(module).double(), x.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = shares(module, x)
    assert got.dtype == torch.float32
    assert (0.5 * (got.double() - want).abs().sum(-1)).max() < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", MAKE)
def test_forward_and_backward_in_half_precision(kind: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module = noisy(MAKE[kind]()).train()
    x = torch.randn(2, 9, D, requires_grad=True)
    with torch.autocast("cpu", dtype=dtype):
        out = module(x)
    out.float().square().sum().backward()
    assert torch.isfinite(out).all() and torch.isfinite(x.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in module.parameters() if p.grad is not None)


def zero_tokens() -> tuple[Tensor, Tensor]:
    """Tokens whose length is zero."""
    return torch.zeros(2, 5, D), torch.ones(2, 5, dtype=torch.bool)


def only_padding() -> tuple[Tensor, Tensor]:
    """A batch without a real token."""
    return torch.randn(2, 5, D), torch.zeros(2, 5, dtype=torch.bool)


def one_clip_of_padding() -> tuple[Tensor, Tensor]:
    """A batch with a clip that has no real token."""
    return torch.randn(2, 5, D), torch.tensor([[True] * 5, [False] * 5])


def no_tokens() -> tuple[Tensor, Tensor]:
    """Clips of no tokens at all."""
    return torch.randn(2, 0, D), torch.ones(2, 0, dtype=torch.bool)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("batch", [zero_tokens, only_padding, one_clip_of_padding, no_tokens])
@pytest.mark.parametrize("kind", MAKE)
def test_no_nan(kind: str, batch: Callable[[], tuple[Tensor, Tensor]], training: bool) -> None:
    torch.manual_seed(0)
    module = noisy(MAKE[kind]()).train(training)
    x, mask = batch()
    x.requires_grad_()
    module.context = TokenContext(frames=mask)
    module.recording = True
    out = module(x)
    out.square().sum().backward()
    assert torch.isfinite(out).all() and torch.isfinite(x.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in module.parameters() if p.grad is not None)
    assert all(torch.isfinite(b).all() for b in module.buffers())
    assert mask.any() or not module.records
    for record in module.records:
        assert all(torch.isfinite(value).all() for value in record.values())


def test_autocast_is_left_as_it_was() -> None:
    """Only the routing leaves it: the experts still compute in the precision around them."""
    module = noisy(MAKE["soft"]())
    seen = []
    module.experts.register_forward_hook(lambda _, args, out: seen.append(out.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        module(torch.randn(1, 4, D))
        assert nn.functional.linear(torch.randn(1, D), torch.randn(2, D)).dtype == torch.bfloat16
    assert seen == [torch.bfloat16]

"""Routing and experts against naive loops, and the properties that their papers state."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from toolkit.experts.bottleneck import Bottleneck
from toolkit.peft.soft_moa import SoftMixture
from toolkit.routing import soft

SIZES = {
    "batch": st.integers(1, 3), "tokens": st.integers(1, 6), "dim": st.integers(1, 5),
    "experts": st.integers(1, 4), "slots": st.integers(1, 3), "seed": st.integers(0, 2**31),
}  # fmt: skip


def naive_mixture(x: Tensor, phi: Tensor, experts: Bottleneck) -> Tensor:
    """Soft mixture with loops over clips and slots: [B, T, d]."""
    _, count, slots = phi.shape
    out = torch.zeros_like(x)
    for b in range(len(x)):
        logits = torch.stack([phi[:, e, s] @ x[b].T for e in range(count) for s in range(slots)])
        combine = logits.softmax(dim=0)  # over all slots, for every token
        for e in range(count):
            for s in range(slots):
                row = e * slots + s
                weights = [math.exp(v) for v in (logits[row] - logits[row].max()).tolist()]
                slot = sum(w * token for w, token in zip(weights, x[b], strict=True)) / sum(weights)
                hidden = functional.gelu(experts.down[e] @ slot + experts.down_bias[e])
                answer = experts.up[e] @ hidden + experts.up_bias[e]
                for t in range(x.shape[1]):
                    out[b, t] += combine[row, t] * answer
    return out


def random_mixture(dim: int, experts: int, slots: int, **options: object) -> SoftMixture:
    """A mixture whose experts are not zero."""
    mixture = SoftMixture(Bottleneck(experts, dim, 2), slots, **options).double()
    with torch.no_grad():
        for parameter in mixture.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return mixture.eval()


@settings(max_examples=40, deadline=None)
@given(**SIZES)
def test_mixture_equals_a_naive_loop(
    batch: int, tokens: int, dim: int, experts: int, slots: int, seed: int
) -> None:
    torch.manual_seed(seed)
    mixture = random_mixture(dim, experts, slots)
    x = torch.randn(batch, tokens, dim, dtype=torch.float64)
    expected = naive_mixture(x, mixture.phi, mixture.experts)
    torch.testing.assert_close(mixture(x), expected, rtol=1e-9, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(**SIZES)
def test_weights_are_distributions(
    batch: int, tokens: int, dim: int, experts: int, slots: int, seed: int
) -> None:
    torch.manual_seed(seed)
    x = torch.randn(batch, tokens, dim, dtype=torch.float64)
    routing = soft.route(x, torch.randn(dim, experts, slots, dtype=torch.float64))
    one = torch.ones((), dtype=torch.float64)
    torch.testing.assert_close(routing.dispatch.sum(1), one.expand(batch, experts, slots))
    torch.testing.assert_close(routing.combine.sum((2, 3)), one.expand(batch, tokens))
    numbers = soft.metrics(routing)
    torch.testing.assert_close(numbers["load"].sum(), one)
    for name in ("combine_entropy", "dispatch_entropy"):
        assert -1e-9 <= numbers[name] <= 1 + 1e-9
    assert -1e-9 <= numbers["slot_similarity"] <= 1 + 1e-9


def test_metrics_of_known_routings() -> None:
    uniform = torch.full((1, 4, 2, 1), 0.25)
    same = soft.metrics(soft.SoftRouting(dispatch=uniform, combine=uniform * 2))
    assert same["slot_similarity"] == pytest.approx(1.0)
    assert same["dispatch_entropy"] == pytest.approx(1.0)
    assert same["combine_entropy"] == pytest.approx(1.0)
    apart = torch.zeros(1, 4, 2, 1)
    apart[0, 0, 0], apart[0, 1, 1] = 1, 1  # each slot reads a token of its own
    first = torch.zeros(1, 4, 2, 1)
    first[:, :, 0] = 1  # every token listens to expert 0
    other = soft.metrics(soft.SoftRouting(dispatch=apart, combine=first))
    assert other["slot_similarity"] == 0 and other["dispatch_entropy"] == 0
    assert other["load"].tolist() == [1, 0]


@pytest.mark.parametrize("normalize", [False, True])
def test_permutation_equivariance(normalize: bool) -> None:
    torch.manual_seed(0)
    mixture = random_mixture(6, 3, 2, normalize=normalize)
    x = torch.randn(2, 7, 6, dtype=torch.float64)
    order = torch.randperm(7)
    torch.testing.assert_close(mixture(x)[:, order], mixture(x[:, order]))


def test_samples_do_not_touch_each_other() -> None:
    torch.manual_seed(0)
    mixture = random_mixture(6, 3, 2)
    x = torch.randn(3, 7, 6, dtype=torch.float64)
    changed = x.clone()
    changed[1] += 1
    before, after = mixture(x), mixture(changed)
    assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert not torch.allclose(before[1], after[1])


def test_padding_cannot_leak() -> None:
    torch.manual_seed(0)
    mixture = random_mixture(6, 3, 2)
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    padded = torch.cat([x, 100 * torch.randn(2, 3, 6, dtype=torch.float64)], dim=1)
    mask = torch.arange(8).expand(2, 8) < 5
    torch.testing.assert_close(mixture(padded, mask)[:, :5], mixture(x))
    assert not torch.allclose(mixture(padded)[:, :5], mixture(x))


def test_normalised_routing_ignores_scale_and_keeps_slot_inputs() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 5, 6, dtype=torch.float64)
    phi = torch.randn(6, 3, 1, dtype=torch.float64)
    scale = torch.tensor(2.0, dtype=torch.float64)
    small, large = (soft.route(f * x, f * phi, scale=scale) for f in (1.0, 10.0))
    torch.testing.assert_close(small.dispatch, large.dispatch)
    torch.testing.assert_close(large.slots(10 * x), 10 * small.slots(x))
    cosine = functional.cosine_similarity(x[0, :, None], phi[:, :, 0].T[None], dim=-1)
    torch.testing.assert_close(small.dispatch[0, :, :, 0], (2 * cosine).softmax(dim=0))


def test_one_expert_with_one_slot_tells_every_token_the_same() -> None:
    torch.manual_seed(0)
    mixture = random_mixture(6, 1, 1)
    out = mixture(torch.randn(2, 5, 6, dtype=torch.float64))
    torch.testing.assert_close(out, out[:, :1].expand_as(out))


def test_noise_only_in_training() -> None:
    torch.manual_seed(0)
    mixture = random_mixture(6, 3, 2, noise=1.0)
    x = torch.randn(1, 5, 6, dtype=torch.float64)
    assert torch.equal(mixture(x), mixture(x))
    mixture.train()
    assert not torch.equal(mixture(x), mixture(x))


def test_gradients_at_the_start() -> None:
    """At step 0 every expert's `up` learns; the router and `down` follow once `up` is not zero."""
    torch.manual_seed(0)
    mixture = SoftMixture(Bottleneck(3, 6, 2), 2)
    x, target = torch.randn(2, 5, 6), torch.randn(2, 5, 6)
    (mixture(x) * target).sum().backward()
    assert (mixture.experts.up.grad.flatten(1).norm(dim=1) > 0).all()
    assert mixture.phi.grad.norm() == 0
    with torch.no_grad():
        mixture.experts.up.normal_()
    mixture.zero_grad()
    (mixture(x) * target).sum().backward()
    assert mixture.phi.grad.norm() > 0
    assert (mixture.experts.down.grad.flatten(1).norm(dim=1) > 0).all()

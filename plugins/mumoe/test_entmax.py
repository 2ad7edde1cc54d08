"""Entmax 1.5 against bisection, finite differences and its definition."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from toolkit import plugins

plugins.load([Path(__file__).parent])

from toolkit_plugins.mumoe.entmax import entmax15  # noqa: E402


def by_bisection(scores: Tensor) -> Tensor:
    """The threshold found by halving an interval, [..., N]."""
    halved = scores.double() / 2
    low, high = (halved.amax(-1, keepdim=True) + offset for offset in (-1.0, 0.0))
    for _ in range(80):
        middle = (low + high) / 2
        too_much = (halved - middle).clamp(min=0).square().sum(-1, keepdim=True) >= 1
        low, high = torch.where(too_much, middle, low), torch.where(too_much, high, middle)
    return (halved - low).clamp(min=0).square()


@settings(max_examples=100, deadline=None)
@given(
    size=st.integers(1, 40),
    spread=st.sampled_from([0.0, 1e-3, 0.5, 2.0, 50.0, 1e4]),
    shift=st.sampled_from([0.0, -300.0, 1e4]),
    seed=st.integers(0, 2**31),
)
def test_equals_bisection(size: int, spread: float, shift: float, seed: int) -> None:
    torch.manual_seed(seed)
    scores = shift + spread * torch.randn(3, size, dtype=torch.float64)
    gates = entmax15(scores)
    torch.testing.assert_close(gates, by_bisection(scores), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(gates.sum(-1), torch.ones(3, dtype=torch.float64))
    single = scores.float()
    torch.testing.assert_close(entmax15(single), by_bisection(single).float(), rtol=1e-4, atol=1e-5)


def test_exact_zeros_between_softmax_and_the_maximum() -> None:
    torch.manual_seed(0)
    scores = 2 * torch.randn(100, 64)
    gates = entmax15(scores)
    zeros = (gates == 0).sum(-1)
    assert (zeros > 0).all() and (zeros < 63).any()
    assert torch.equal(gates.argmax(-1), scores.argmax(-1))
    assert (gates.amax(-1) > scores.softmax(-1).amax(-1)).all()


def test_by_hand() -> None:
    # Two scores apart by 2 delta: roots r and r - delta, r^2 + (r - delta)^2 = 1.
    delta = 0.4
    root = (delta + (2 - delta**2) ** 0.5) / 2
    gates = entmax15(torch.tensor([2 * delta, 0.0], dtype=torch.float64))
    torch.testing.assert_close(gates, torch.tensor([root**2, (root - delta) ** 2]).double())
    far = torch.tensor([2.5, *[0.0] * 30, -1e6])  # apart by 2 or more: one-hot
    assert entmax15(far).tolist() == [1.0] + [0.0] * 31
    assert entmax15(torch.full((5,), 3.0)).tolist() == pytest.approx([0.2] * 5)


def test_order_and_shift_do_not_matter() -> None:
    torch.manual_seed(0)
    scores = torch.randn(4, 10, dtype=torch.float64)
    order = torch.randperm(10)
    torch.testing.assert_close(entmax15(scores[:, order]), entmax15(scores)[:, order])
    torch.testing.assert_close(entmax15(scores + 7), entmax15(scores))


@pytest.mark.parametrize("spread", [0.1, 1.0, 3.0])
def test_gradient_equals_finite_differences(spread: float) -> None:
    torch.manual_seed(0)
    scores = (spread * torch.randn(3, 2, 6, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(entmax15, (scores,))


def test_gradient_stays_finite_where_gates_are_zero() -> None:
    scores = torch.tensor([[5.0, 0.0, -5.0], [0.0, 0.0, 0.0]], requires_grad=True)
    (entmax15(scores) * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert scores.grad[0].tolist() == pytest.approx([0.0] * 3, abs=1e-6)  # one-hot: flat
    assert scores.grad.isfinite().all() and scores.grad[1].any()


def test_half_precision_is_computed_in_single() -> None:
    torch.manual_seed(0)
    scores = torch.randn(8, 20).bfloat16()
    gates = entmax15(scores)
    assert gates.dtype == torch.bfloat16
    assert torch.equal(gates, entmax15(scores.float()).bfloat16())

"""The top-any gate of DynMoE and its losses, by hand and by Monte Carlo."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from toolkit import plugins

plugins.load([Path(__file__).parent])

from toolkit_plugins.dynmoe import top_any  # noqa: E402
from toolkit_plugins.dynmoe.top_any import TopAnyGate, TopAnyRouting  # noqa: E402

D = 12


def gate_of() -> TopAnyGate:
    """A gate of five slots, three of them alive, in float64, without its initial values."""
    torch.manual_seed(0)
    gate = TopAnyGate(D, slots=5, alive=3).double()
    with torch.no_grad():
        gate.thresholds.uniform_(0, 0.1)
    return gate


def tokens() -> Tensor:
    """Isotropic tokens [2, 40, d] in float64."""
    return torch.randn(2, 40, D, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize("training", [True, False])
def test_scaling_tokens_does_not_change_who_takes_them(training: bool) -> None:
    gate, x = gate_of().train(training), tokens()
    once, scaled = gate.route(x), gate.route(37.5 * x)
    assert torch.equal(once.fired, scaled.fired)
    torch.testing.assert_close(once.scores, scaled.scores)


@pytest.mark.parametrize(("number", "share"), [(2, 0.25), (4, 0.065), (8, 0.0035)])
def test_at_the_start_nothing_fires_on_two_to_the_minus_n_of_isotropic_tokens(
    number: int, share: float
) -> None:
    torch.manual_seed(0)
    gate = TopAnyGate(64, slots=16, alive=number).train()
    samples = 200_000
    found = gate.route(torch.randn(1, samples, 64)).uncovered.float().mean().item()
    expected = 2.0**-number
    assert abs(found - expected) < 4 * (expected * (1 - expected) / samples) ** 0.5
    assert found == pytest.approx(share, rel=0.15)


def test_a_large_factor_does_not_blur_decisions() -> None:
    """sigmoid(100 cos) is 1 in float32 for both; the cosines still differ."""
    gate = TopAnyGate(2, slots=1, alive=1, tau=100.0)
    with torch.no_grad():
        gate.keys.copy_(torch.tensor([[1.0, 0.0]]))
        gate.thresholds.fill_(0.5)
    x = torch.tensor([[[0.6, 0.8], [0.4, 0.9]]])
    assert gate.train().route(x).fired.flatten().tolist() == [1, 0]
    learned = TopAnyGate(2, slots=1, alive=1, tau=100.0, learn_tau=True)
    with torch.no_grad():
        learned.log_tau.add_(3)
    assert learned.tau.item() == pytest.approx(top_any.MAX_TAU, rel=1e-5)


def test_decisions_are_made_in_full_precision() -> None:
    gate, x = gate_of().float().train(), tokens().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = gate.route(x)
    assert found.scores.dtype == torch.float32
    assert torch.equal(found.fired, gate.route(x).fired)


def test_losses_of_keys_by_hand() -> None:
    gate = gate_of()
    with torch.no_grad():
        gate.keys.add_(torch.randn(5, D))
    unit = [key / key.norm() for key in gate.keys.detach()]
    squares = [
        (float(unit[i] @ unit[j]) - (i == j)) ** 2 for i in range(5) for j in range(5)
        if gate.alive[i] and gate.alive[j]
    ]  # fmt: skip
    found = top_any.diversity(gate.keys, gate.alive).item()
    assert found == pytest.approx(sum(squares) ** 0.5)
    lengths = [key.norm().item() for key in gate.keys]
    assert top_any.simplicity(gate.keys).item() == pytest.approx(sum(lengths) / 5)


def test_diversity_can_be_differentiated_where_it_is_zero() -> None:
    keys = torch.nn.Parameter(torch.ones(1, 4))
    top_any.diversity(keys, torch.tensor([True])).backward()
    assert torch.isfinite(keys.grad).all()


def test_losses_of_the_routing_by_hand() -> None:
    gate, x = gate_of().train(), tokens()
    routing = gate.route(x)
    rows = [row for row in routing.fired.detach().flatten(0, 1) if row.sum() > 0]
    number = len(rows)
    gates = [sum(row[e] / row.sum() for row in rows) / number for e in range(5)]
    shares = [sum(row[e] for row in rows) / number for e in range(5)]
    expected = 3 * sum(mean * share for mean, share in zip(gates, shares, strict=True))
    assert number < 80
    assert top_any.balance(routing, 3).item() == pytest.approx(expected.item())
    efficiency = top_any.efficiency(routing)
    assert efficiency.item() == pytest.approx(routing.fired.detach().sum().item() / (80 * 5))
    efficiency.backward()
    assert torch.count_nonzero(gate.keys.grad) > 0
    even = torch.eye(4).expand(3, 4, 4)
    nowhere = torch.zeros(3, 4, dtype=torch.bool)
    routing = TopAnyRouting(even, even, nowhere, ~nowhere)
    assert top_any.balance(routing, 4).item() == pytest.approx(1)


def test_balance_differentiates_the_number_that_fires() -> None:
    """With one expert per token and equal shares, no change of the scores changes the loss."""
    fired = torch.eye(4).expand(3, 4, 4).clone().requires_grad_()
    nowhere = torch.zeros(3, 4, dtype=torch.bool)
    top_any.balance(TopAnyRouting(fired, fired, nowhere, ~nowhere), 4).backward()
    chosen = fired.grad[fired.detach() > 0]
    torch.testing.assert_close(chosen, torch.zeros_like(chosen))

"""Product keys against scoring every key, and pools against gathering every row."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from toolkit import plugins
from toolkit.testing import LargestTensor

plugins.load([Path(__file__).parent])

from toolkit_plugins.peer.pool import NeuronPool, products, weighted_sum  # noqa: E402
from toolkit_plugins.peer.product_key import ProductKeys, best_sums  # noqa: E402


def all_keys(keys: ProductKeys) -> Tensor:
    """Every key, one after the other: [n^2, d_k]."""
    first, second = keys.halves
    return torch.stack([torch.cat([a, b]) for a in first for b in second])


@settings(max_examples=60, deadline=None)
@given(
    queries=st.integers(1, 5),
    size=st.integers(1, 7),
    half=st.integers(1, 4),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**31),
)
def test_retrieval_equals_brute_force(
    queries: int, size: int, half: int, share: float, seed: int
) -> None:
    torch.manual_seed(seed)
    keys = ProductKeys(size, 2 * half).double()
    query = torch.randn(2, queries, 2 * half, dtype=torch.float64)
    k = max(1, round(share * size**2))
    found = keys(query, k)
    scores = query @ all_keys(keys).T
    expected = scores.topk(k, dim=-1)
    torch.testing.assert_close(found.scores, expected.values)
    torch.testing.assert_close(scores.gather(-1, found.indices), found.scores)
    assert torch.equal(found.indices, expected.indices)


def test_tied_scores_are_retrieved_once_each() -> None:
    found = best_sums(torch.zeros(1, 4), torch.zeros(1, 4), 16)
    assert found.indices.sort().values.tolist() == [list(range(16))]


def test_retrieval_does_not_score_every_key() -> None:
    first, second = torch.randn(2, 10, 100)
    with LargestTensor() as watch:
        best_sums(first, second, 4)
    assert watch.numel == 10 * 4 * 4 < 10 * 100**2


def test_keys_of_a_normalised_query_score_about_one() -> None:
    torch.manual_seed(0)
    keys = ProductKeys(300, 32)
    query = torch.randn(300, 32)
    scores = query[:, :16] @ keys.halves[0].T
    assert scores.std().item() == pytest.approx(1.0, rel=0.05)


# Pools


@pytest.fixture
def case() -> tuple[Tensor, Tensor, Tensor]:
    """Queries [5, 3], a table [7, 3] and rows [5, 4], some of them twice for one query."""
    torch.manual_seed(0)
    indices = torch.randint(0, 6, (5, 4))  # row 6 is never taken
    indices[0] = torch.tensor([2, 2, 1, 2])
    x, table = torch.randn(5, 3, dtype=torch.float64), torch.randn(7, 3, dtype=torch.float64)
    return x.requires_grad_(), table.requires_grad_(), indices


def test_products_equal_gathered_ones(case: tuple[Tensor, Tensor, Tensor]) -> None:
    x, table, indices = case
    rows = table[indices]  # [5, 4, 3]
    torch.testing.assert_close(products(x, table, indices), (rows * x[:, None]).sum(-1))
    assert torch.autograd.gradcheck(lambda x, table: products(x, table, indices), (x, table))


def test_sums_equal_gathered_ones(case: tuple[Tensor, Tensor, Tensor]) -> None:
    _, table, indices = case
    weights = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    expected = (weights[..., None] * table[indices]).sum(1)
    torch.testing.assert_close(weighted_sum(weights, table, indices), expected)
    assert torch.autograd.gradcheck(
        lambda w, table: weighted_sum(w, table, indices), (weights, table)
    )


@pytest.mark.parametrize("rank", [1, 3])
def test_pool_equals_a_loop(case: tuple[Tensor, Tensor, Tensor], rank: int) -> None:
    x, _, indices = case
    pool = NeuronPool(7, 3, rank).double()
    torch.nn.init.normal_(pool.up)
    gates = torch.rand(5, 4, dtype=torch.float64)
    expected = torch.zeros_like(x)
    for m in range(5):
        for k in range(4):
            down, up = pool.down[indices[m, k]], pool.up[indices[m, k]]
            for j in range(rank):
                expected[m] += gates[m, k] * functional.gelu(down[j] @ x[m]) * up[j]
    found = pool(x, gates, indices)
    torch.testing.assert_close(found, expected)
    found.square().sum().backward()
    taken = torch.zeros(7, dtype=torch.bool)
    taken[indices.unique()] = True
    for parameter in (pool.down, pool.up):
        assert torch.equal(parameter.grad.flatten(1).any(dim=1), taken)


def test_pool_in_inference_mode() -> None:
    """As `toolkit predict` uses it."""
    torch.manual_seed(0)
    pool = NeuronPool(7, 3)
    torch.nn.init.normal_(pool.up)
    case = torch.randn(5, 3), torch.rand(5, 4), torch.randint(0, 7, (5, 4))
    expected = pool(*case).detach()
    with torch.inference_mode():
        found = pool(*(tensor.clone() for tensor in case))
        copied = NeuronPool(7, 3)
        copied.load_state_dict(pool.state_dict())
        again = copied(*case)
    assert torch.equal(found, expected) and torch.equal(again, expected)


def test_pool_starts_at_zero_and_learns() -> None:
    torch.manual_seed(0)
    pool = NeuronPool(7, 3)
    out = pool(torch.randn(5, 3), torch.rand(5, 4), torch.randint(0, 7, (5, 4)))
    assert torch.count_nonzero(out) == 0
    (out * torch.randn(5, 3)).sum().backward()
    assert torch.count_nonzero(pool.up.grad) > 0


def test_pool_keeps_its_precision() -> None:
    torch.manual_seed(0)
    pool = NeuronPool(7, 3)
    torch.nn.init.normal_(pool.up)
    x, gates, indices = torch.randn(5, 3), torch.rand(5, 4), torch.randint(0, 7, (5, 4))
    half = pool(x.bfloat16(), gates, indices)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half, pool(x.bfloat16().float(), gates, indices).bfloat16())


def test_rows_are_never_gathered() -> None:
    tokens, taken, dim, experts = 50, 8, 16, 40
    pool = NeuronPool(experts, dim)
    x = torch.randn(tokens, dim, requires_grad=True)
    gates = torch.rand(tokens, taken, requires_grad=True)
    indices = torch.randint(0, experts, (tokens, taken))
    with LargestTensor() as watch:
        pool(x, gates, indices).sum().backward()
    assert watch.numel == tokens * dim  # below tokens * experts, tokens * taken * dim

"""PEER keeps the contract, retrieves what brute force retrieves, and shares one pool."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from toolkit import plugins
from toolkit.errors import ConfigError
from toolkit.model import AudioClassifier
from toolkit.peft import insertion
from toolkit.registry import PEFT
from toolkit.testing import CLASSES, LargestTensor, check_method, tiny_backbone, tiny_batch

FOLDER = Path(__file__).parent

plugins.load([FOLDER])

from toolkit_plugins.peer.peer import Peer, RetrievedExperts  # noqa: E402
from toolkit_plugins.peer.pool import NeuronPool  # noqa: E402

DIM = 12


def layer(**settings: Any) -> RetrievedExperts:
    """One retrieval in float64 whose experts do not return zero, in eval mode."""
    torch.manual_seed(0)
    method = Peer(**{"n_keys": 5, "heads": 3, "topk": 4, "d_key": 6, **settings})
    pool = NeuronPool(method.n_keys**2, DIM, method.expert_rank)
    module = RetrievedExperts(method, DIM, pool, owner=True).double()
    torch.nn.init.normal_(pool.up)
    return module.eval()


def tokens() -> Tensor:
    """[2, 7, d]."""
    torch.manual_seed(1)
    return torch.randn(2, 7, DIM, dtype=torch.float64)


def scores_of_all(module: RetrievedExperts, x: Tensor) -> Tensor:
    """Every head's score of every expert, [B, T, h, N], from whole keys."""
    first, second = module.keys.halves
    keys = torch.stack([torch.cat([a, b]) for a in first for b in second])
    query = functional.linear(x, module.query.weight)
    if isinstance(module.norm, torch.nn.BatchNorm1d):
        query = query / math.sqrt(1 + module.norm.eps)  # of statistics that have not moved
    return query.unflatten(-1, (module.heads, -1)) @ keys.T


def neurons(module: RetrievedExperts, x: Tensor) -> Tensor:
    """Every expert on every token, [B, T, N, d]."""
    pool = module.pool
    hidden = functional.gelu(torch.einsum("nrd,btd->btnr", pool.down, x))
    return torch.einsum("btnr,nrd->btnd", hidden, pool.up)


def masked_mixture(module: RetrievedExperts, x: Tensor) -> Tensor:
    """The definition: gates over all N that are zero but at the best `topk`, for each head."""
    scores = scores_of_all(module, x)
    kept = torch.zeros_like(scores, dtype=torch.bool)
    kept.scatter_(-1, scores.argsort(dim=-1, descending=True)[..., : module.topk], True)
    if module.score == "softmax":
        gates = scores.masked_fill(~kept, -math.inf).softmax(-1)
    else:
        gates = scores.sigmoid() * kept
    return torch.einsum("bthn,btnd->btd", gates, neurons(module, x))


def adapted(**settings: Any) -> AudioClassifier:
    """A tiny classifier."""
    torch.manual_seed(0)
    method = PEFT.create({"name": "peer", "n_keys": 6, **settings})
    return AudioClassifier(tiny_backbone(), method, CLASSES, "all")


def retrievals(model: AudioClassifier) -> list[RetrievedExperts]:
    """What was inserted."""
    return [m for m in insertion.inserted(model.backbone) if isinstance(m, RetrievedExperts)]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"score": "sigmoid", "placement": "both"},
        {"share_pool": False, "expert_rank": 2, "query_bn": False},
    ],
)
def test_contract(settings: dict[str, Any]) -> None:
    check_method("peer", settings)


# The mixture


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("query_bn", [True, False])
def test_equals_a_masked_mixture_of_all_experts(score: str, rank: int, query_bn: bool) -> None:
    module, x = layer(score=score, expert_rank=rank, query_bn=query_bn), tokens()
    found, expected = module(x), masked_mixture(module, x)
    torch.testing.assert_close(found, expected)
    parameters = [p for n, p in module.named_parameters() if not n.startswith("norm")]
    upstream = torch.randn_like(x)
    ours = torch.autograd.grad((found * upstream).sum(), parameters)
    theirs = torch.autograd.grad((expected * upstream).sum(), parameters)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)


def test_retrieving_everything_is_a_dense_softmax_mixture() -> None:
    module, x = layer(topk=25), tokens()
    gates = scores_of_all(module, x).softmax(-1)
    torch.testing.assert_close(module(x), torch.einsum("bthn,btnd->btd", gates, neurons(module, x)))


def test_one_expert_a_head_is_a_small_network_of_the_retrieved() -> None:
    module, x = layer(topk=1), tokens()
    best = scores_of_all(module, x).argmax(-1)  # [B, T, h]
    for b in range(2):
        for t in range(7):
            down, up = (table[best[b, t], 0] for table in (module.pool.down, module.pool.up))
            expected = functional.gelu(down @ x[b, t]) @ up  # an MLP with h neurons
            torch.testing.assert_close(module(x)[b, t], expected)


def test_gates_sum_to_one_and_only_the_retrieved_learn() -> None:
    module, x = layer(n_keys=9), tokens()
    with torch.no_grad():
        module.pool.down.zero_()[..., 0] = 1.0  # all experts alike: the sum of the gates remains
        module.pool.up.fill_(1.0)
    torch.testing.assert_close(
        module(x), (3 * functional.gelu(x[..., :1])).expand_as(x), msg="3 heads, gates of sum 1"
    )
    module(x).square().sum().backward()
    best = scores_of_all(module, x).topk(4).indices
    taken = torch.zeros(81, dtype=torch.bool)
    taken[best.flatten()] = True
    assert 0 < taken.sum() < 81
    for table in (module.pool.down, module.pool.up):
        assert torch.equal(table.grad.flatten(1).any(1), taken)


def test_nothing_of_the_size_of_the_pool_is_allocated() -> None:
    """Neither [B, T, N] nor, all the more, [B, T, N, d] or [B, T, h k, d], forward or backward."""
    method = Peer(n_keys=40, heads=2, topk=4, d_key=8)
    pool = NeuronPool(1600, 8)
    module = RetrievedExperts(method, 8, pool, owner=True)
    x = torch.randn(4, 50, 8, requires_grad=True)
    with LargestTensor() as watch:
        module(x).sum().backward()
    heads_of_halves = 2 * 4 * 50 * 2 * 40  # scores of half keys
    assert watch.numel <= max(1600 * 8, heads_of_halves) < 4 * 50 * 1600


# Around it


def test_step_zero_is_the_frozen_backbone_in_training_too() -> None:
    model, features = adapted(), tiny_batch(tiny_backbone())[0]
    expected = tiny_backbone()(features)
    assert torch.equal(model.train().backbone(features), expected)


def test_blocks_share_one_pool_that_the_first_owns() -> None:
    model = adapted(placement="both")
    owners = [m for m in retrievals(model) if hasattr(m, "pool")]
    assert len(retrievals(model)) == 4 and owners == retrievals(model)[:1]
    assert len({id(m.shared[0]) for m in retrievals(model)}) == 1
    for moved in (model.double(), copy.deepcopy(model)):  # as to a device: by structure
        storages = {m.shared[0].up.data_ptr() for m in retrievals(moved)}
        assert storages == {retrievals(moved)[0].pool.up.data_ptr()}
        assert all(m.shared[0].up.dtype == torch.float64 for m in retrievals(moved))
        moved(tiny_batch(moved.backbone)[0].double()).sum().backward()
    names = [n for n in model.state() if ".pool." in n]
    assert names == ["blocks.0.mhsa.peer.pool.down", "blocks.0.mhsa.peer.pool.up"]
    apart = adapted(share_pool=False)
    assert len({id(m.pool) for m in retrievals(apart)}) == 2


@pytest.mark.parametrize("shared", [True, False])
def test_parameter_count(shared: bool) -> None:
    model = adapted(heads=3, d_key=8, expert_rank=2, share_pool=shared, final_norm=False)
    d, width = model.backbone.dim, 3 * 8
    block = d * width + 2 * width + 2 * 6 * 4 + 2 * d  # queries, their norm, half keys, layer norm
    pools = 1 if shared else 2
    assert model.count().method == 2 * block + pools * 2 * 36 * 2 * d


def test_the_pool_has_a_learning_rate_of_its_own() -> None:
    model = adapted(pool_lr_mult=5.0)
    rest, pool = model.method.parameter_groups(model.trainable(), lr=0.1)
    assert (rest["lr"], pool["lr"]) == (0.1, 0.5)
    owner = retrievals(model)[0].pool
    assert {id(p) for p in pool["params"]} == {id(owner.down), id(owner.up)}
    assert len(rest["params"]) + 2 == len(model.trainable())


def test_batch_norm_of_the_queries() -> None:
    module = layer().train()
    x = 5 + 3 * tokens()
    seen = []
    module.norm.register_forward_hook(lambda _, args, out: seen.append(out))
    module(x)
    torch.testing.assert_close(seen[0].mean(0), torch.zeros(18, dtype=torch.float64))
    spread = seen[0].std(0, unbiased=False)
    torch.testing.assert_close(spread, torch.ones(18, dtype=torch.float64), rtol=1e-3, atol=0)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_statistics_by_hand(shared: bool, score: str) -> None:
    model = adapted(share_pool=shared, score=score).eval()
    method, backbone = model.method, model.backbone
    assert method.statistics(backbone) == {}
    seen: dict[RetrievedExperts, list[Tensor]] = {m: [] for m in retrievals(model)}
    for module in seen:
        module.register_forward_pre_hook(lambda m, args: seen[m].append(args[0]))
    method.record(backbone, on=True)
    for seed in (1, 2):
        model(tiny_batch(backbone, seed=seed)[0])
    sums, entropies, used = [], [], []
    for module, batches in seen.items():
        gates = torch.zeros(36)
        for x in batches:
            best = scores_of_all(module, x).topk(8)
            own = best.values.softmax(-1) if score == "softmax" else best.values.sigmoid()
            gates.index_add_(0, best.indices.flatten(), own.flatten())
            used += [len(set(row)) for row in best.indices.flatten(2).flatten(0, 1).tolist()]
            share = own / own.sum(-1, keepdim=True)
            entropies.append(-(share * share.log()).sum(-1).mean() / math.log(8))
        sums.append(gates)
    pools = [sum(sums)] if shared else sums
    z = [gates / gates.sum() for gates in pools]
    uneven = [math.log(36) + torch.xlogy(p, p).sum().item() for p in z]
    found = method.statistics(backbone)
    assert found["usage"] == pytest.approx(sum((p > 0).float().mean().item() for p in z) / len(z))
    assert found["unevenness"] == pytest.approx(sum(uneven) / len(z), abs=1e-4)
    assert found["gate_entropy"] == pytest.approx(torch.stack(entropies).mean().item(), abs=1e-4)
    assert found["active_mean"] == pytest.approx(sum(used) / len(used))
    assert 8 < found["active_mean"] < 4 * 8
    method.record(backbone, on=False)
    assert method.statistics(backbone) == {}


def test_statistics_of_known_uses() -> None:
    model = adapted(topk=1)
    first = retrievals(model)[0]
    record = {"gate_entropy": 3.0, "active_mean": 10.0, "tokens": 4.0}
    even = {key: torch.tensor(value) for key, value in record.items()} | {"gates": torch.ones(36)}
    first.records.append(even)
    found = model.method.statistics(model.backbone)
    assert found["usage"] == 1 and found["unevenness"] == pytest.approx(0, abs=1e-6)
    assert found["gate_entropy"] == 0.75 and found["active_mean"] == 2.5
    first.records[0] = even | {"gates": functional.one_hot(torch.tensor(3), 36).float()}
    found = model.method.statistics(model.backbone)
    assert found["usage"] == pytest.approx(1 / 36)
    assert found["unevenness"] == pytest.approx(math.log(36))


@pytest.mark.parametrize(
    ("settings", "match"), [({"d_key": 7}, "even"), ({"n_keys": 2, "topk": 5}, "'topk'")]
)
def test_what_cannot_work_is_refused(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        PEFT.create({"name": "peer", **settings})

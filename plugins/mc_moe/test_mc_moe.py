"""MC-MoE: the properties that moe_methods.md asks for, and bundles through the command line."""

import copy
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from bundles import change_bundle, check_prediction, tiny_bundle
from torch import Tensor, nn
from torch.nn import functional

from toolkit import plugins
from toolkit.bundle import load_bundle
from toolkit.errors import ConfigError
from toolkit.experts.base import by_expert
from toolkit.experts.bottleneck import Bottleneck
from toolkit.mixtures.observe import some_of, visit
from toolkit.mixtures.tool import MixtureData, trained_in
from toolkit.model import AudioClassifier
from toolkit.peft.mixture import Mixture, mixtures
from toolkit.registry import PEFT, TOOLS
from toolkit.testing import (
    compare_padded,
    first_mixture,
    tiny_batch,
    tiny_classifier,
    tiny_data,
    tiny_mixture,
)

plugins.load([Path(__file__).parents[1]])

from toolkit_plugins.mc_moe import calibration, pruning  # noqa: E402
from toolkit_plugins.mc_moe.mc_moe import MCMoE  # noqa: E402
from toolkit_plugins.mc_moe.packing import PackedTensor, pack, replace, unpack  # noqa: E402
from toolkit_plugins.mc_moe.programme import allocate, block_budgets  # noqa: E402
from toolkit_plugins.mc_moe.quantise import gptq, nearest  # noqa: E402

KINDS = [
    ("dense_moa", {}),
    ("dense_moa", {"block": "conformer", "placement": "both"}),
    ("dense_moa", {"block": "convpass", "convolution": "2d"}),
    ("topk_moa", {"placement": "ffn"}),
    ("soft_moa", {"slots": 3}),
    ("soft_moa", {"normalize": True, "reference": True, "zero_positions": False}),
]


def random(*shape: int, seed: int = 0, **options: Any) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **options)


def tool(**settings: Any) -> MCMoE:
    """The tool, without GPTQ unless asked for."""
    return TOOLS.create({"name": "mc_moe", "backend": "rtn", **settings})


@torch.no_grad()
def logits(model: AudioClassifier) -> Tensor:
    """Of the tiny clips."""
    return model(tiny_batch(model.backbone)[0])


# The integer programme


def by_force(
    costs: list[list[float]], widths: list[int], budget: int, required: set[int], exact: bool
) -> list[int] | None:
    """The best of all len(widths)^n choices; the same ties."""
    found = []
    for chosen in itertools.product(range(len(widths)), repeat=len(costs)):
        bits = [widths[j] for j in chosen]
        if required <= set(bits) and (sum(bits) == budget or (not exact and sum(bits) < budget)):
            cost = sum(row[j] for row, j in zip(costs, chosen, strict=True))
            found.append((cost, sum(bits), bits))
    return min(found)[2] if found else None


def test_programme_is_brute_force() -> None:
    generator = torch.Generator().manual_seed(0)
    infeasible = 0
    for instance in range(200):
        n = 1 + instance % 6
        # Multiples of 1/16, so that sums are exact and ties frequent.
        costs = (torch.randint(0, 40, (n, 3), generator=generator) / 16).tolist()
        budget = int(torch.randint(n, 3 * n + 1, (), generator=generator))
        required = [set(), {2, 3}, {1, 2, 3}][instance % 3]
        exact = instance % 4 > 0
        expected = by_force(costs, [1, 2, 3], budget, required, exact)
        if expected is None:
            infeasible += 1
            with pytest.raises(ConfigError, match=r"avg_bits|force_widths"):
                allocate(costs, [1, 2, 3], budget, required, exact)
            continue
        found = allocate(costs, [1, 2, 3], budget, required, exact)
        assert found == expected
        assert sum(found) == budget or (not exact and sum(found) < budget)
    assert 10 < infeasible < 100


def test_experts_that_never_fire_are_given_widths_in_order() -> None:
    costs = [[0.0] * 3] * 5
    first = allocate(costs, [1, 2, 3], 11, {2, 3})
    assert first == allocate(costs, [1, 2, 3], 11, {2, 3}) == [1, 2, 2, 3, 3]
    # One expert that counts gets its bits, wherever it stands; the others are filled up in order.
    for place in range(5):
        rows = list(costs)
        rows[place] = [3.0, 2.0, 1.0]
        found = allocate(rows, [1, 2, 3], 10, {2, 3})
        assert found[place] == 3
        assert [b for i, b in enumerate(found) if i != place] == [1, 1, 2, 3]


def test_ties_are_exact_whatever_the_floats() -> None:
    """0.1 + 0.2 + 0.3 is not 0.3 + 0.2 + 0.1 in floats; equal costs still tie."""
    costs = [[0.1, 0.3], [0.2, 0.2], [0.3, 0.1], [0.3, 0.1], [0.1, 0.3]]
    for order in itertools.permutations(range(5)):
        rows = [costs[i] for i in order]
        found = allocate(rows, [1, 2], 7)
        expected = by_force_exactly(rows, [1, 2], 7)
        assert found == expected


def by_force_exactly(costs: list[list[float]], widths: list[int], budget: int) -> list[int]:
    """Brute force with correctly rounded sums."""
    choices = [c for c in itertools.product(range(2), repeat=len(costs))
               if sum(widths[j] for j in c) == budget]  # fmt: skip
    best = min(choices, key=lambda c: (math.fsum(costs[i][j] for i, j in enumerate(c)), c))
    return [widths[j] for j in best]


def test_budgets_of_blocks_meet_the_average() -> None:
    assert block_budgets(2.5, [7] * 6) == [18, 17, 18, 17, 18, 17]
    assert block_budgets(2.0, [8, 4]) == [16, 8]
    for average in (1.57, 1.6, 2.05, 2.54, 3.0):
        budgets = block_budgets(average, [7] * 12)
        assert abs(sum(budgets) - 84 * average) <= 0.5
        assert max(budgets) - min(budgets) <= 1


# Codes


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [1, 8, 13, 96])
def test_packing_is_exact_and_small(bits: int, count: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    codes = torch.randint(0, 2**bits, (3, 2, count), generator=generator, dtype=torch.uint8)
    packed = pack(codes, bits)
    assert torch.equal(unpack(packed, count), codes)
    assert packed.numel() == 6 * bits * math.ceil(count / 8)


@pytest.mark.parametrize("size", [7, 96, 128, 768])
@pytest.mark.parametrize("kind", ["gaussian", "uniform", "outliers", "positive", "zero"])
def test_error_does_not_grow_with_bits(kind: str, size: int) -> None:
    weights = {
        "gaussian": random(40, 768),
        "uniform": random(40, 768).sigmoid() - 0.5,
        "outliers": random(40, 768) ** 5,
        "positive": random(40, 768).abs() + 3,
        "zero": torch.zeros(40, 768),
    }[kind]
    errors = [
        (nearest(weights, bits, size).weights() - weights).square().sum(dim=-1)
        for bits in range(1, 9)
    ]
    for fewer, more in itertools.pairwise(errors):  # of every single row
        assert bool((more <= fewer * (1 + 1e-6)).all())
    if kind == "gaussian" and size >= 96:
        assert errors[1].mean() / 768 < 0.2 < errors[0].mean() / 768
    if kind == "zero":
        assert all(error.sum() == 0 for error in errors)


def test_one_bit_is_the_sign_times_the_mean_magnitude() -> None:
    weights = random(3, 5, 64)
    found = nearest(weights, 1, 32).weights()
    groups = weights.view(3, 5, 2, 32)
    scale = groups.abs().sum(dim=-1, keepdim=True) / 32
    expected = (torch.where(groups >= 0, 1.0, -1.0) * scale).view_as(weights)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)


def test_every_code_is_the_nearest_level() -> None:
    weights = random(4, 50, dtype=torch.float64)
    for bits in (2, 3, 4):
        kept = nearest(weights, bits, 25)
        scale, zero = kept.scale.double(), kept.zero.double()
        levels = scale[..., None] * (torch.arange(2.0**bits) - zero[..., None])  # [4, 2, levels]
        distances = (weights.view(4, 2, 25, 1) - levels[:, :, None]).abs()
        own = (weights - kept.weights().double()).abs().view(4, 2, 25)
        torch.testing.assert_close(own, distances.amin(dim=-1), rtol=0, atol=1e-7)


@pytest.mark.parametrize("inputs", ["within", "across"])
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_gptq_beats_rounding_on_correlated_inputs(inputs: str, bits: int) -> None:
    mixing = random(64, 64) * torch.linspace(0.05, 2, 64)
    n = 64 if inputs == "within" else 12
    x = (random(2, 400, 64, seed=1) @ mixing)[..., :n]
    weights = random(2, 12, 64, seed=2)
    hessian = 2 * x.mT @ x

    def error(found: Tensor) -> float:
        matrix = found - weights if inputs == "within" else (found - weights).mT  # [E, m, n]
        return (matrix @ x.mT).square().sum().item()

    plain = error(nearest(weights, bits, 32).weights())
    assert error(gptq(weights, hessian, bits, 32, inputs).weights()) < 0.98 * plain


def gptq_by_elimination(weights: Tensor, hessian: Tensor, size: int, bits: int) -> Tensor:
    """Optimal brain quantisation of one matrix [m, n] in the order of columns, by its definition:
    after each column the best values of those left are found again, by least squares."""
    result, left = weights.clone(), weights.clone()
    n = weights.shape[1]
    for column in range(n):
        if column % size == 0:
            group = nearest(left[:, column : column + size], bits, size)
            scale, zero = group.scale.double(), group.zero.double()
        code = (left[:, column] / scale[:, 0] + zero[:, 0]).round().clamp(0, 2**bits - 1)
        result[:, column] = scale[:, 0] * (code - zero[:, 0])
        rest = slice(column + 1, n)
        if column + 1 < n:
            # min over rest of |delta_c x_c + sum delta_r x_r|^2, starting from the present values
            error = result[:, column] - left[:, column]
            solution = torch.linalg.solve(hessian[rest, rest], hessian[rest, column])
            left[:, rest] -= error[:, None] * solution
    return result


def test_gptq_is_least_squares_column_by_column() -> None:
    x = random(200, 24, dtype=torch.float64) @ random(24, 24, seed=1, dtype=torch.float64)
    hessian = 2 * x.T @ x
    weights = random(5, 24, seed=2, dtype=torch.float64)
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(24)
    expected = gptq_by_elimination(weights, damped, 8, 3)
    found = gptq(weights[None], hessian[None], 3, 8, "within").weights()[0]
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_gptq_without_data_is_rounding() -> None:
    weights = random(2, 4, 32)
    for inputs, n in (("within", 32), ("across", 4)):
        found = gptq(weights, torch.zeros(2, n, n), 3, 16, inputs)
        assert torch.equal(found.codes, nearest(weights.double(), 3, 16).codes)


# Packed experts


def packed_experts(rank: int = 3) -> tuple[Bottleneck, Bottleneck]:
    """Experts of widths 3, 1, 2, 1, and plain ones with the weights that these stand for."""
    torch.manual_seed(0)
    plain, packed = Bottleneck(4, 20, rank), Bottleneck(4, 20, rank)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.normal_()
    packed.load_state_dict(plain.state_dict())
    for name, axis in (("down", 2), ("up", 1)):
        vectors = getattr(plain, name).detach().movedim(axis, -1)
        kept = {bits: nearest(vectors, bits, 8) for bits in (1, 2, 3)}
        tensor = PackedTensor(getattr(plain, name).shape, axis, [3, 1, 2, 1], 8).fill(kept)
        replace(packed, name, tensor)
        stacked = torch.stack([kept[b].weights()[e] for e, b in enumerate([3, 1, 2, 1])])
        getattr(plain, name).data = stacked.movedim(-1, axis)
    return packed, plain


def test_packed_experts_compute_with_the_weights_that_their_codes_stand_for() -> None:
    packed, plain = packed_experts()
    x, gates = random(2, 7, 20), random(2, 7, 4).softmax(dim=-1)
    slots = random(2, 4, 5, 20)
    assert isinstance(packed, Bottleneck) and not list(packed.packed.parameters())
    with torch.no_grad():
        assert torch.equal(packed.mix(x, gates), plain.mix(x, gates))
        assert torch.equal(packed(slots), plain(slots))
        for expert in range(4):
            found, expected = packed.of(expert), plain.of(expert)
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[name], expected[name]) for name in found)
        found = copy.deepcopy(packed).double().mix(x.double(), gates.double())
        torch.testing.assert_close(found.float(), plain.mix(x, gates))


def test_packed_bytes_are_what_the_widths_say() -> None:
    packed, _ = packed_experts(rank=3)
    for tensor in packed.packed.children():
        sizes = {name: buffer.nbytes for name, buffer in tensor.named_buffers()}
        vectors, groups, bytes_of_a_bit = 3, 3, 3  # d = 20: three groups of 7, three bytes
        assert sizes["codes"] == (3 + 1 + 2 + 1) * vectors * bytes_of_a_bit
        assert sizes["scale"] == 2 * 4 * vectors * groups
        assert sizes["zero"] == 2 * vectors * groups


# Calibration, against loops


@pytest.mark.parametrize(("name", "settings"), KINDS)
@torch.no_grad()
def test_usage_and_errors_by_loops(name: str, settings: dict[str, Any]) -> None:
    model = tiny_mixture(name, num_experts=3, reduction=24, **settings).double()
    mixture = first_mixture(model)
    tokens = model.backbone.grid[0] * model.backbone.grid[1] + 2
    x = random(2, tokens, 96, dtype=torch.float64)
    seen = calibration.view(mixture, x, router_topk=2)
    usage = calibration.Usage(mixture.experts, hessians=False)
    usage.add(mixture, seen)
    activations, mass = torch.zeros(3), torch.zeros(3, dtype=torch.float64)
    for clip in range(2):
        for token in range(tokens):
            if name == "soft_moa":
                routing, _ = mixture.route(x)
                own = routing.combine[clip, token].sum(dim=-1)
                chosen = [int(own.argmax())]
            else:
                own = mixture.router(x)[clip, token]
                chosen = own.argsort(descending=True)[:2].tolist()
            mass += own
            for expert in chosen:
                activations[expert] += 1
    assert usage.tokens == 2 * tokens
    assert usage.activations.tolist() == activations.tolist()
    torch.testing.assert_close(usage.mass, mass)

    weights = {
        bits: {n: nearest(getattr(mixture.experts, n).movedim(a, -1), bits, 48).weights().double()
               .movedim(-1, a) for n, a in (("down", 2), ("up", 1))}
        for bits in (1, 3)
    }  # fmt: skip
    found = calibration.squared_errors(mixture, seen, weights)
    exact = mixture(x)
    for bits, changed in weights.items():
        for expert in range(3):
            other = copy.deepcopy(mixture)  # F(theta; E_i at j bits), as it is defined
            for n in ("down", "up"):
                getattr(other.experts, n).data[expert] = changed[n][expert]
            expected = (exact - other(x)).square().sum()
            torch.testing.assert_close(found[bits][expert], expected)


@pytest.mark.parametrize(("name", "settings"), [KINDS[0], KINDS[2], KINDS[4]])
@torch.no_grad()
def test_hessians_measure_the_error_in_the_output(name: str, settings: dict[str, Any]) -> None:
    """Half of tr(D H D^T) is the squared change of the output if `up` changes by D."""
    model = tiny_mixture(name, num_experts=3, reduction=24, **settings).double()
    mixture = first_mixture(model)
    x = random(2, 12, 96, dtype=torch.float64)
    usage = calibration.Usage(mixture.experts, hessians=True)
    usage.add(mixture, calibration.view(mixture, x, 2))
    change = random(3, 96, 4, seed=3, dtype=torch.float64)
    for expert in range(3):
        other = copy.deepcopy(mixture)
        other.experts.up.data[expert] += change[expert]
        expected = (other(x) - mixture(x)).square().sum()
        hessian = usage.hessians["up"][expert]
        found = 0.5 * torch.trace(change[expert] @ hessian @ change[expert].T)
        torch.testing.assert_close(found, expected)
    if name == "dense_moa":
        weighted = (mixture.router(x)[..., None] * x[:, :, None]).flatten(0, 1)  # [N, E, d]
        loop = sum(2 * torch.einsum("ed,ec->edc", row, row) for row in weighted)
        torch.testing.assert_close(usage.hessians["down"], loop)


# Online pruning


def gates_of(seed: int = 0, experts: int = 5) -> Tensor:
    """Gates of some tokens [2, 9, E]."""
    return (2 * random(2, 9, experts, seed=seed, dtype=torch.float64)).softmax(dim=-1)


def test_two_experts_are_pruned_as_the_paper_says() -> None:
    gates, mu = gates_of(experts=2), 0.4
    found = pruning.prune(gates, mu, torch.zeros(2, 9, dtype=torch.bool))
    for own, new in zip(gates.flatten(0, 1), found.flatten(0, 1), strict=True):
        first, second = own.sort(descending=True).values
        if second / first < mu:
            assert sorted(new.tolist()) == [0, pytest.approx(1)] and new.argmax() == own.argmax()
        else:
            assert torch.equal(new, own)
    assert 0 < (found == 0).sum() < 18


@pytest.mark.parametrize("experts", [2, 5])
def test_pruned_is_monotone_and_keeps_the_sum(experts: int) -> None:
    gates, nobody = 0.5 * gates_of(experts=experts), torch.zeros(2, 9, dtype=torch.bool)
    active = []
    for mu in (0.0, 0.1, 0.3, 0.6, 1.0, math.inf):
        found = pruning.prune(gates, mu, nobody)
        torch.testing.assert_close(found.sum(dim=-1), gates.sum(dim=-1))
        active.append((found > 0).sum().item())
    assert active == sorted(active, reverse=True)
    assert active[0] == gates.numel() and active[-1] == 18


def online(model: AudioClassifier, **settings: Any) -> AudioClassifier:
    """A model with online pruning and, at 8 bits all, nothing else of note."""
    made = tool(**settings)
    for site, mixture in mixtures(model.backbone).items():
        made._insert_pruning(model, site, mixture)
        mixture.router.mu.fill_(settings["mu"])
    return model


@pytest.mark.parametrize("settings", [{}, {"placement": "both"}, {"reference": True}])
def test_no_threshold_or_all_protected_changes_nothing(settings: dict[str, Any]) -> None:
    expected = logits(tiny_mixture("dense_moa", **settings))
    for mu, protect in ((0.0, 0.0), (0.0, 0.3), (1e30, 1.0)):
        model = online(tiny_mixture("dense_moa", **settings), mu=mu, protect=protect)
        assert torch.equal(logits(model), expected)


def test_infinite_threshold_and_nobody_protected_is_the_first_expert() -> None:
    model = online(tiny_mixture("dense_moa"), mu=1e30, protect=0.0)
    reference = tiny_mixture("dense_moa")
    for mixture in mixtures(reference.backbone).values():
        router = mixture.router

        def first(x: Tensor, router: nn.Module = router) -> Tensor:
            gates = nn.Module.__call__(router, x)
            return functional.one_hot(gates.argmax(dim=-1), gates.shape[-1]).to(x.dtype)

        mixture.router = Calls(first)
    torch.testing.assert_close(logits(model), logits(reference), rtol=1e-5, atol=1e-6)


class Calls(nn.Module):
    """A function as a module."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Its value."""
        return self.function(x)


def test_permuting_attention_columns_changes_who_is_protected() -> None:
    tokens = random(1, 20, 8)
    attention = (3 * random(1, 4, 20, 20, seed=1)).softmax(dim=-1)
    permuted = attention[..., random(20, seed=2).argsort()]
    marks = [
        pruning.protected(tokens, pruning.received(a), 0.2, special=2)
        for a in (attention, permuted)
    ]
    assert not torch.equal(*marks)
    # The sum over keys, which the published code takes, is 1 for every token: it knows nothing.
    torch.testing.assert_close(permuted.sum(dim=-1), attention.sum(dim=-1))
    for found, a in zip(marks, (attention, permuted), strict=True):
        scores = [tokens[0, j].abs().sum() * a[0, :, :, j].sum() / (4 * 20) for j in range(20)]
        best = sorted(range(20), key=lambda j: -scores[j])[:4]
        assert set(found[0].nonzero()[:, 0].tolist()) == {0, 1, *best}


def test_attention_received_is_the_backbones_own() -> None:
    """What is observed while it computes is the mean column of its attention maps."""
    model = tiny_mixture("dense_moa", placement="ffn")
    plain = logits(model)
    online(model, mu=0.0, protect=0.5)
    assert torch.equal(logits(model), plain)
    seen: dict[int, Tensor] = {}
    for block in range(model.backbone.depth):
        attention = pruning.attention_of(model.backbone, block)
        attention.register_forward_pre_hook(lambda m, args, b=block: seen.update({b: args[0]}))
    logits(model)
    for block, x in seen.items():
        attention = pruning.attention_of(model.backbone, block)
        with torch.no_grad():
            q, k = attention.q_proj(x), attention.k_proj(x)
        maps = torch.stack(
            [
                (q[..., s] @ k[..., s].mT / math.sqrt(24)).softmax(dim=-1)
                for s in (slice(24 * h, 24 * h + 24) for h in range(4))
            ],
            dim=1,
        )
        torch.testing.assert_close(attention.received, maps.mean(dim=(1, 2)))
        torch.testing.assert_close(attention.received.sum(dim=-1), torch.ones(len(x)))


@pytest.mark.parametrize("method", ["dense_moa", "topk_moa"])
def test_padding_is_neither_protected_nor_counted(method: str) -> None:
    twins = [tiny_classifier(PEFT.create(method), family="wav2vec2", noise=0.2) for _ in range(2)]
    compare_padded(*(online(model, mu=0.9, protect=0.25) for model in twins))
    for one, other in zip(*(mixtures(twin.backbone).values() for twin in twins), strict=True):
        assert one.router.counts.tolist() == other.router.counts.tolist()


def test_protected_tokens_keep_their_experts_in_a_model() -> None:
    model = online(tiny_mixture("dense_moa"), mu=0.9, protect=0.25)
    mixture = first_mixture(model)
    kept = []
    mixture.router.register_forward_hook(lambda m, args, out: kept.append((args[0], out)))
    logits(model)
    x, gates = kept[0]
    marks = pruning.protected(x, pruning.attention_of(model.backbone, 0).received, 0.25, 2)
    assert marks.sum(dim=1).ge(3).all() and marks[:, :2].all()  # a quarter of 12 tokens, rounded up
    assert ((gates > 0).sum(dim=-1)[marks] == 7).all()
    assert ((gates > 0).sum(dim=-1)[~marks] < 7).any()
    tokens, safe, before, after = mixture.router.counts.tolist()
    assert (tokens, before) == (gates[..., 0].numel(), gates.numel())
    assert (safe, after) == (marks.sum(), (gates > 0).sum())


# The tool


@pytest.mark.parametrize(("name", "settings"), KINDS)
@pytest.mark.parametrize("rest", [None, 4])
def test_restructured_model_loads_exactly(
    name: str, settings: dict[str, Any], rest: int | None
) -> None:
    model, fresh = (tiny_mixture(name, seed, **settings) for seed in (0, 1))
    before, size = logits(model), trained_in(model)
    made = tool(rest_bits=rest, mu=None if name == "soft_moa" else "median")
    plan = made.apply(model, tiny_data(model.backbone))
    assert json.loads(json.dumps(plan)) == plan
    made.restructure(fresh, plan)
    assert not torch.equal(logits(fresh), logits(model))
    fresh.load_state({n: t.clone() for n, t in model.state().items()})
    assert torch.equal(logits(fresh), logits(model))
    assert not torch.equal(logits(model), before)
    trained = sum(p.numel() for p in model.trainable().values())
    assert (trained == 0) == (rest is not None)
    assert trained_in(model) == size > trained
    for widths in plan["widths"].values():
        assert {2, 3} <= set(widths) and sum(widths) in (17, 18)


def test_plan_is_the_programmes_optimum() -> None:
    """The costs of one mixture, computed from the definition and searched by brute force."""
    settings = {"num_experts": 4, "layers": [0]}
    model = tiny_mixture("dense_moa", **settings).double()
    data = tiny_data(model.backbone)
    mixture = copy.deepcopy(first_mixture(model))
    entering = []
    hook = first_mixture(model).register_forward_pre_hook(lambda m, a: entering.append(a[0]))
    batch = next(data.batches(data.calibration, 10))
    with torch.no_grad():
        model(model.backbone.features.normalise(batch.features.double()))
        hook.remove()
        x = entering[0]
        gates = mixture.router(x).flatten(0, 1)
        top = functional.one_hot(gates.topk(2, dim=-1).indices, 4).sum(dim=(0, 1))
        costs = []
        for expert in range(4):
            row = []
            for bits in (1, 2, 3):
                other = copy.deepcopy(mixture)
                for n, axis in (("down", 2), ("up", 1)):
                    own = getattr(other.experts, n).data
                    kept = nearest(own.movedim(axis, -1), bits, 128).weights().double()
                    own[expert] = kept.movedim(-1, axis)[expert]
                error = (mixture(x) - other(x)).norm().item()
                row.append((top[expert] / len(gates) * gates[:, expert].mean()).item() * error**2)
            costs.append(row)
    model = model.float()
    plan = tool(avg_bits=2.25).apply(model, data)
    assert plan["widths"]["blocks.0.mhsa"] == by_force(costs, [1, 2, 3], 9, {2, 3}, True)


@pytest.mark.parametrize("placement", ["mhsa", "both"])
def test_sequential_calibration_sees_what_is_quantised_already(placement: str) -> None:
    """The last mixture is quantised for what reaches it in the compressed model."""
    stock = tiny_mixture("dense_moa", num_experts=4, placement=placement)
    name, own = list(mixtures(stock.backbone).items())[-1]
    data, equal = tiny_data(stock.backbone), {}
    for sequential in (False, True):
        model = copy.deepcopy(stock)
        plan = tool(backend="gptq", sequential=sequential).apply(model, data)
        expected = quantised_for(model, data, name, own, plan["widths"][name])
        found = mixtures(model.backbone)[name].experts.down.movedim(2, -1)
        equal[sequential] = torch.equal(found, expected)
    assert equal == {False: False, True: True}


def quantised_for(
    model: AudioClassifier, data: MixtureData, name: str, own: Mixture, widths: list[int]
) -> Tensor:
    """The weights `down` of a mixture, quantised for what reaches its site in a model."""
    usage = calibration.Usage(own.experts, hessians=True)

    def see(site: str, mixture: Mixture, x: Tensor) -> None:
        if site == name:
            usage.add(own, calibration.view(own, x, 2))

    visit(model, data, some_of(data.calibration, 128), see)
    vectors, hessian = own.experts.down.detach().movedim(2, -1), usage.hessians["down"]
    at_widths = {bits: gptq(vectors, hessian, bits, 128, "within").weights() for bits in widths}
    return torch.stack([at_widths[bits][expert] for expert, bits in enumerate(widths)])


def test_more_bits_change_less() -> None:
    before = logits(tiny_mixture("dense_moa"))
    distances = []
    for bits in (1, 2, 3, 4, 8):
        model = tiny_mixture("dense_moa")
        made = tool(bits=[bits], avg_bits=bits, force_widths=[])
        made.apply(model, tiny_data(model.backbone))
        distances.append((logits(model) - before).norm().item())
    assert distances == sorted(distances, reverse=True) and distances[-1] < 0.05 * distances[0]


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ({"name": "soft_moa"}, {"mu": "median"}, "slots"),
        ({"name": "soft_moa"}, {"mu": 0.0}, "slots"),
        ({"name": "dynmoe"}, {"mu": 0.5}, "no softmax"),
        ({"name": "adapter"}, {}, "mixture"),
        ({"name": "lora"}, {}, "mixture"),
        ({"name": "dense_moa", "num_experts": 1}, {"bits": [2], "force_widths": [], "mu": 0.1,
          "avg_bits": 2.0}, "one expert"),
        ({"name": "dense_moa", "num_experts": 1}, {}, "force_widths"),
        ({"name": "dense_moa"}, {"avg_bits": 2.95}, "avg_bits"),
        ({"name": "dense_moa"}, {"avg_bits": 1.0}, "avg_bits"),
        ({"name": "dense_moa", "block": "conformer"}, {"backend": "gptq"}, "rtn"),
    ],
)  # fmt: skip
def test_refusals(method: dict[str, Any], settings: dict[str, Any], message: str) -> None:
    model = tiny_mixture(**method)
    with pytest.raises(ConfigError, match=message):
        tool(**settings).apply(model, tiny_data(model.backbone))


def test_refused_settings_and_a_second_time() -> None:
    for settings in ({"bits": [0, 2]}, {"bits": []}, {"force_widths": [4]}, {"group_size": 256}):
        with pytest.raises(ConfigError):
            tool(**settings)
    model = tiny_mixture("dense_moa")
    tool().apply(model, tiny_data(model.backbone))
    with pytest.raises(ConfigError, match="no other tool"):
        tool().apply(model, tiny_data(model.backbone))


# Bundles


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A Dense-MoA on the embedded backbone."""
    folder = tmp_path_factory.mktemp("bundle")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOOLKIT_CACHE", str(folder / "cache"))
        yield tiny_bundle(folder, "dense_moa", reduction=48)


def test_command_line(bundle: Path) -> None:
    """Widths, pruning and all else packed; then what is left predicts."""
    options = (
        "--avg-bits",
        "2.0",
        "--mu",
        "median",
        "--rest-bits",
        "8",
        "--calibration-clips",
        "9",
    )
    small = change_bundle("compress", bundle, "mc_moe", "small", *options)
    report = json.loads((small / "report.json").read_text())
    size = {f: (f / "weights.safetensors").stat().st_size for f in (bundle, small)}
    assert (report["bytes_before"], report["bytes_after"]) == (size[bundle], size[small])
    assert size[small] < 0.3 * size[bundle]
    assert report["average_bits"] == 2
    assert 0 < report["pruned_share"] < 1 and 0.02 < report["protected_share"] < 0.3
    assert 1 <= report["active_mean"] < report["active_mean_before"] == 7
    weights = 6 * 7 * 2 * 192 * 4
    assert report["expert_bytes_before"] == 4 * weights
    scales = 6 * 7 * 2 * 4 * 2 * 2  # two groups of 96 a vector, two bytes each
    zeros = sum(b > 1 for own in report["bits_per_expert"].values() for b in own) * 2 * 4 * 2
    assert report["expert_bytes_of_scales"] == scales + zeros
    assert report["expert_bytes_after"] == weights * 2 // 8 + scales + zeros
    model = load_bundle(small).model
    assert not model.trainable()
    for mixture in mixtures(model.backbone).values():
        dtypes = {tensor.dtype for tensor in mixture.experts.state_dict().values()}
        assert dtypes == {torch.uint8, torch.float16}
        assert by_expert(mixture.experts.down, 7).shape == (7, 1, 4, 192)
    check_prediction(small)


def test_file_shrinks_by_what_the_report_says(bundle: Path) -> None:
    """Up to the header, where the packed weights' parts have a name each."""
    small = change_bundle("compress", bundle, "mc_moe", "gptq", "--calibration-clips", "5")
    report = json.loads((small / "report.json").read_text())
    parts = {n: t for n, t in load_bundle(small).model.state().items() if ".packed." in n}
    assert sum(t.nbytes for t in parts.values()) == report["expert_bytes_after"]
    saved = report["expert_bytes_before"] - report["expert_bytes_after"]
    assert 0 <= saved - (report["bytes_before"] - report["bytes_after"]) < 150 * len(parts)

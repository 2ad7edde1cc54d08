"""AdapMoE: the properties that moe_methods.md asks for, and bundles through the command line."""

import copy
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from bundles import change_bundle, check_prediction, tiny_bundle
from torch import Tensor, nn
from torch.nn import functional

from toolkit import plugins, testing
from toolkit.bundle import load_bundle
from toolkit.errors import ConfigError
from toolkit.mixtures.observe import visit
from toolkit.model import AudioClassifier
from toolkit.peft.mixture import mixtures
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

from toolkit_plugins.adapmoe import allocation, gating, sensitivity  # noqa: E402
from toolkit_plugins.adapmoe.adapmoe import AdapMoE  # noqa: E402
from toolkit_plugins.adapmoe.cache import (  # noqa: E402
    CachedExperts,
    LRUCache,
    by_count,
    prefetch_nearest,
    total_counts,
)
from toolkit_plugins.adapmoe.predictor import Predictor  # noqa: E402
from toolkit_plugins.adapmoe.simulator import Clip, Visit, measured_loads, simulate  # noqa: E402
from toolkit_plugins.adapmoe.trace import Trace, Uses  # noqa: E402

KINDS = [
    {"name": "dense_moa", "num_experts": 5},
    {"name": "dense_moa", "num_experts": 4, "block": "conformer", "placement": "both"},
    {"name": "topk_moa", "num_experts": 4, "block": "convpass", "convolution": "2d"},
]
SIX = {"name": "dense_moa", "num_experts": 6, "placement": "both"}


def tool(**settings: Any) -> AdapMoE:
    """The tool."""
    return TOOLS.create({"name": "adapmoe", **settings})


def random(*shape: int, seed: int = 0, **options: Any) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **options)


@torch.no_grad()
def logits(model: AudioClassifier) -> Tensor:
    """Of the tiny clips."""
    return model(tiny_batch(model.backbone)[0])


def gates_of(experts: int = 6) -> Tensor:
    """Gates of 40 tokens [2, 20, E]."""
    return (1.5 * random(2, 20, experts, dtype=torch.float64)).softmax(dim=-1)


# Gating


def adapted_by_loop(gates: Tensor, count: int, budget: float, value: float) -> Tensor:
    """Token by token: try the longest tail first."""
    result = torch.zeros_like(gates)
    for place in itertools.product(*map(range, gates.shape[:-1])):
        own = gates[place]
        order = own.argsort(descending=True)[:count].tolist()
        weights = [own[e].item() for e in order]
        weights = [w / sum(weights) for w in weights]
        left = count
        for begin in range(1, count):
            if sum(weights[begin:]) ** 2 * value < budget:
                left = begin
                break
        for expert, weight in zip(order[:left], weights[:left], strict=True):
            result[place][expert] = weight / sum(weights[:left]) * own.sum()
    return result


@pytest.mark.parametrize("count", [1, 2, 3, 6])
@pytest.mark.parametrize("budget", [0.0, 0.001, 0.01, 0.1, math.inf])
def test_gates_by_loop(count: int, budget: float) -> None:
    gates, value = 0.7 * gates_of(), 0.3
    found = gating.adapt(gates, count, gating.threshold_of(budget, value))
    torch.testing.assert_close(found, adapted_by_loop(gates, count, budget, value))
    torch.testing.assert_close(found.sum(dim=-1), gates.sum(dim=-1))


def test_two_experts_as_the_paper_says() -> None:
    """The second is left out where its renormalised weight is below sqrt(T / S)."""
    gates, budget, value = gates_of(), 0.02, 0.25
    found = gating.adapt(gates, 2, gating.threshold_of(budget, value))
    weights = gates.topk(2, dim=-1).values
    alpha = weights[..., 0] / weights.sum(dim=-1)
    skipped = (1 - alpha).square() * value < budget
    assert torch.equal((found > 0).sum(dim=-1) == 1, skipped)
    assert 0 < skipped.sum() < skipped.numel()


def test_activity_does_not_increase_with_the_budget() -> None:
    gates = gates_of()
    budgets = [0.0, *torch.logspace(-6, 1, 40).tolist(), math.inf]
    active = [
        (gating.adapt(gates, 4, gating.threshold_of(budget, 0.3)) > 0).sum().item()
        for budget in budgets
    ]
    assert active == sorted(active, reverse=True)
    assert (active[0], active[-1]) == (4 * 40, 40) and len(set(active)) > 20


def test_four_times_as_sensitive_halves_the_threshold() -> None:
    for budget, value in ((0.005, 46.7), (0.3, 1e-6), (1e-9, 0.02)):
        half = gating.threshold_of(budget, 4 * value)
        assert half == pytest.approx(gating.threshold_of(budget, value) / 2, rel=1e-12)
    assert gating.threshold_of(0.0, 0.0) == 0 and gating.threshold_of(1e-9, 0.0) == math.inf


@pytest.mark.parametrize("target", [1.0, 1.1, 1.5, 2.0, 2.7, 3.0, 9.0])
def test_budget_for_a_target_is_the_least(target: float) -> None:
    values = (0.1, 0.4, 2.0)
    layers = [(1.5 * random(50, 5, seed=i, dtype=torch.float64)).softmax(-1) for i in range(3)]
    costs = [gating.tails(gating.strongest(g, 3)[0]).square() * v
             for g, v in zip(layers, values, strict=True)]  # fmt: skip

    def active(budget: float) -> float:
        numbers = [
            (gating.adapt(g, 3, gating.threshold_of(budget, v)) > 0).sum().item()
            for g, v in zip(layers, values, strict=True)
        ]
        return sum(numbers) / 150

    all_costs = torch.cat([c.flatten() for c in costs])
    budget = gating.budget_for(all_costs, 150, target)
    assert active(budget) <= target
    assert active(budget) > target - 1 / 150 - 1e-9 or target > 3
    if budget:
        assert active(budget * (1 - 1e-5)) > target - 1e-9


# Sensitivity


def test_predicted_change_is_the_loss_of_a_quadratic() -> None:
    """L(y) = 1/2 sum h (y - y*)^2 with the minimum at the mixture of both experts."""
    torch.manual_seed(0)
    first, second, h = random(9, 7, dtype=torch.float64), random(9, 7, seed=1).double(), None
    h = random(9, 7, seed=2, dtype=torch.float64).exp()
    alpha = torch.linspace(0.5, 0.99, 9, dtype=torch.float64)[:, None]
    gates = torch.cat([alpha, 1 - alpha], dim=-1)
    outputs = torch.stack([first, second], dim=1)
    minimum = torch.einsum("te,ted->td", gates, outputs)

    def loss(gates: Tensor) -> Tensor:
        return 0.5 * (h * (torch.einsum("te,ted->td", gates, outputs) - minimum) ** 2).sum(dim=-1)

    change = loss(gating.adapt(gates, 2, math.inf)) - loss(gates)
    predicted = 0.5 * (1 - alpha[:, 0]).square() * sensitivity.curvature(h, first - second)
    torch.testing.assert_close(predicted, change)


@pytest.mark.parametrize("settings", KINDS)
@pytest.mark.parametrize("kind", ["fisher_delta", "fisher_out"])
def test_sensitivity_by_loops(settings: dict[str, Any], kind: str) -> None:
    """Clip by clip, by the gradient that flows into each mixture's output."""
    model = tiny_mixture(**settings)
    tool()._insert_routers(model)
    data = tiny_data(model.backbone, clips=5)
    found = sensitivity.measure(model, data, data.calibration, kind)
    totals = dict.fromkeys(found, 0.0)
    batch = next(data.batches(data.calibration, 5))
    outputs: dict[str, tuple[Tensor, Tensor]] = {}
    for site, mixture in mixtures(model.backbone).items():
        mixture.register_forward_hook(lambda m, a, out, s=site: keep(outputs, s, a[0], out))
    features = model.backbone.features.normalise(batch.features)
    for clip in range(5):
        logits = model(features[clip : clip + 1])
        functional.cross_entropy(logits, batch.labels[clip, None]).backward()
        for site, mixture in mixtures(model.backbone).items():
            x, out = outputs[site]
            experts = range(mixture.experts.num_experts)
            with torch.no_grad():
                alone = [mixture.experts.mix(x, one(e, mixture, x))[0] for e in experts]
                order = mixture.router.router(x)[0].argsort(dim=-1, descending=True)
            for token, (e1, e2) in enumerate(order[:, :2].tolist()):
                change = (alone[e1] - alone[e2])[token].square()
                factor = change if kind == "fisher_delta" else 1
                total = (out.grad[0, token].square() * factor).sum().item()
                totals[site] += total / (5 * len(order))
    assert found == pytest.approx(totals, rel=1e-3)
    assert all(value > 0 for value in found.values())


def keep(outputs: dict[str, tuple[Tensor, Tensor]], site: str, x: Tensor, out: Tensor) -> None:
    """Note a mixture's tokens and output, whose gradient is wanted."""
    out.retain_grad()
    outputs[site] = (x, out)


def one(expert: int, mixture: nn.Module, x: Tensor) -> Tensor:
    """Gates for one expert alone."""
    gates = torch.zeros(*x.shape[:2], mixture.experts.num_experts)
    gates[..., expert] = 1
    return gates


# Allocation


def paper_loads(t: int, n: int, p: float, b: float) -> float:
    """f as the paper's code has it, for one or two experts per token."""
    p2, p1 = (n - t) * (n - t - 1) / (n * (n - 1)), 2 * t * (n - t) / (n * (n - 1))
    return p * (1 - t / n) * (1 - b) + (1 - p) * (p2 * (2 * (1 - b) + b) + p1 * (1 - b))


@pytest.mark.parametrize("experts", [2, 7, 16])
@pytest.mark.parametrize(("single", "accuracy"), [(0.0, 0.0), (0.3, 0.7), (0.9, 0.4), (1.0, 1.0)])
def test_expected_loads_are_the_papers(experts: int, single: float, accuracy: float) -> None:
    active = [0.0, single, 1 - single]
    for slots in range(experts + 1):
        found = allocation.expected_loads(slots, experts, active, accuracy)
        assert found == pytest.approx(paper_loads(slots, experts, single, accuracy), abs=1e-12)
    assert allocation.expected_loads(experts, experts, active, accuracy) == 0


def test_expected_loads_by_drawing_lots() -> None:
    generator = torch.Generator().manual_seed(0)
    n, t, active, accuracy, draws = 8, 3, [0.0, 0.2, 0.5, 0.3], 0.6, 20000
    counts = torch.multinomial(torch.tensor(active), draws, replacement=True, generator=generator)
    order = torch.rand(draws, n, generator=generator).argsort(dim=1)  # a token's experts in front
    places = torch.arange(n)
    missing = ((order >= t) & (places < counts[:, None])).sum(dim=1)  # experts below t are cached
    right = torch.rand(draws, generator=generator) < accuracy
    loads = missing.double() - (right & (missing > 0)).double()
    error = 4 * loads.std().item() / math.sqrt(draws)
    expected = allocation.expected_loads(t, n, active, accuracy)
    assert loads.mean().item() == pytest.approx(expected, abs=error)


def test_allocation_is_brute_force_and_never_worse_than_uniform() -> None:
    generator = torch.Generator().manual_seed(0)
    for instance in range(60):
        layers = 1 + instance % 4
        sizes = torch.randint(2, 6, (layers,), generator=generator).tolist()
        curves = []
        for size in sizes:
            single, accuracy = torch.rand(2, generator=generator).tolist()
            active = [0.0, single, 1 - single]
            curves.append(
                [allocation.expected_loads(t, size, active, accuracy) for t in range(size + 1)]
            )
        budget = int(torch.randint(0, sum(sizes) + 3, (), generator=generator))
        found = allocation.allocate(curves, budget)
        spent = min(budget, sum(sizes))

        def loads(slots: Any, curves: list[list[float]] = curves) -> float:
            return sum(curve[t] for curve, t in zip(curves, slots, strict=True))

        choices = [c for c in itertools.product(*(range(size + 1) for size in sizes))
                   if sum(c) == spent]  # fmt: skip
        assert sum(found) == spent
        assert loads(found) == pytest.approx(min(map(loads, choices)), abs=1e-12)
        even = allocation.uniform(sizes, budget)
        assert sum(even) == spent and all(t <= size for t, size in zip(even, sizes, strict=True))
        assert loads(found) <= loads(even) + 1e-12


# The cache


def reference_trace(slots: int, requests: list[list[int]]) -> list[tuple[str, int]]:
    """Least recently used, as a list of (hit or miss, expert) from its definition."""
    resident: list[int] = []  # the least recently used first
    events = []
    for needed in requests:
        present = [e for e in needed if e in resident]
        for expert in present + [e for e in needed if e not in present]:
            events.append(("hit" if expert in resident else "miss", expert))
            if expert in resident:
                resident.remove(expert)
            elif slots and len(resident) == slots:
                resident.pop(0)
            if slots:
                resident.append(expert)
    return events


@pytest.mark.parametrize("slots", [0, 1, 2, 3, 6])
def test_lru_matches_a_reference_trace(slots: int) -> None:
    generator = torch.Generator().manual_seed(slots)
    requests = [
        sorted(torch.randperm(6, generator=generator)[: 1 + i % 4].tolist()) for i in range(200)
    ]
    cache: LRUCache[int] = LRUCache(slots)
    events: list[tuple[str, int]] = []
    for needed in requests:
        loaded: list[int] = []
        for expert, value in cache.access(needed, lambda e: loaded.append(e) or 10 * e):  # noqa: B023
            assert value == 10 * expert
            events.append(("miss" if expert in loaded else "hit", expert))
    expected = reference_trace(slots, requests)
    assert events == expected
    assert cache.counts["misses"] == sum(kind == "miss" for kind, _ in expected)
    assert cache.counts["hits"] == sum(kind == "hit" for kind, _ in expected)


def test_prefetched_experts_wait_in_a_spare_buffer_and_evict_nothing() -> None:
    """As in the released code: one expert that is used joins the cache, or else is dropped."""
    cache: LRUCache[int] = LRUCache(2)
    list(cache.access([7, 8], int))
    assert cache.prefetch([7, 1, 2], int)  # 7 is there, and there is room for one
    assert list(cache.values) == [7, 8] and list(cache.ahead) == [1]
    assert not cache.prefetch([1, 7], int) and not cache.prefetch([3], int)  # there, or no room
    list(cache.access([8, 1], int))
    assert list(cache.values) == [8, 1] and not cache.ahead
    cache.prefetch([4], int)
    list(cache.access([8, 5], int))
    assert list(cache.values) == [8, 5] and not cache.ahead
    counts = {"misses": 3, "hits": 3, "prefetched": 2, "used": 1}
    assert {name: cache.counts[name] for name in counts} == counts
    wide: LRUCache[int] = LRUCache(0, room=2)
    assert wide.prefetch([1, 2, 3], int) and list(wide.ahead) == [1, 2]
    assert [expert for expert, _ in wide.access([3, 2, 1], int)] == [2, 1, 3]
    assert wide.counts["used"] == 2 and wide.counts["misses"] == 1


def test_the_nearest_mixture_that_lacks_an_expert_is_served() -> None:
    caches: list[LRUCache[int]] = [LRUCache(1) for _ in range(3)]
    list(caches[0].access([4], int))
    wanted = ([4], [5, 6], [7])
    for expected in ([[], [5], []], [[], [5], [7]], [[], [5], [7]]):
        prefetch_nearest((cache, want, int) for cache, want in zip(caches, wanted, strict=True))
        assert [list(cache.ahead) for cache in caches] == expected


def cached(
    slots: int | None,
    prefetch: str = "gate_reuse",
    base_topk: int = 2,
    look_ahead: int = 1,
    room: int = 1,
    first_layer: bool = False,
    **settings: Any,
) -> AudioClassifier:
    """A tiny mixture of some experts per token with as many slots at every mixture."""
    model = tiny_mixture(**(settings or SIX))
    made = tool(prefetch=prefetch, base_topk=base_topk, look_ahead=look_ahead, room=room)
    slots_of = None if slots is None else dict.fromkeys(mixtures(model.backbone), slots)
    dim = model.backbone.width if first_layer else None
    made.restructure(model, {"slots": slots_of, "first_layer": dim})
    return model


@pytest.mark.parametrize("slots", [None, 2])
@pytest.mark.parametrize("method", ["dense_moa", "topk_moa"])
def test_padding_is_not_counted(method: str, slots: int | None) -> None:
    twins = [tiny_classifier(PEFT.create(method), family="wav2vec2", noise=0.2) for _ in range(2)]
    for model in twins:
        sites = list(mixtures(model.backbone))
        tool().restructure(model, {"slots": slots and dict.fromkeys(sites, slots)})
        for mixture in mixtures(model.backbone).values():
            mixture.router.threshold.fill_(0.45)
    compare_padded(*twins)
    for one, other in zip(*(mixtures(twin.backbone).values() for twin in twins), strict=True):
        assert one.router.active.tolist() == other.router.active.tolist()
        assert one.router.active.count_nonzero() > 1


@pytest.mark.parametrize("settings", [*KINDS, {**KINDS[0], "base_topk": 4}])
def test_outputs_are_the_same_bits_for_every_cache_size(settings: dict[str, Any]) -> None:
    outputs, experts = [], settings["num_experts"]
    cases = [{"slots": n} for n in range(experts + 1)]
    cases += [{"slots": 1, "prefetch": "none"}, {"slots": 1, "look_ahead": 3, "room": 2}]
    cases += [{"slots": 1, "first_layer": True}]
    for case in cases:
        model, slots = cached(**case, **settings), case["slots"]
        outputs += [logits(model), logits(model)]  # whatever is in the cache
        counts = list(mixtures(model.backbone).values())[-1].experts.cache.counts
        if slots == experts:
            assert counts["misses"] + counts["prefetched"] <= slots
    assert all(torch.equal(output, outputs[0]) for output in outputs)
    torch.testing.assert_close(outputs[0], logits(cached(None, **settings)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("slots", [0, 1, 2, 4])
def test_packed_experts_are_unpacked_into_the_cache(slots: int) -> None:
    """After MC-MoE the store holds codes; outputs still do not depend on the cache."""
    compress = TOOLS.create({"name": "mc_moe", "backend": "rtn", "mu": 0.2})
    outputs = []
    for size in (4, slots):
        model = tiny_mixture("dense_moa", num_experts=4)
        compress.apply(model, tiny_data(model.backbone))
        tool().apply(model, tiny_data(model.backbone))
        before = logits(model)
        tool_slots = dict.fromkeys(mixtures(model.backbone), size)
        tool()._insert_caches(model, tool_slots, None)
        outputs += [logits(model), logits(model)]
        torch.testing.assert_close(outputs[-1], before, rtol=1e-4, atol=1e-5)
        assert not list(first_mixture(model).experts.store.packed.parameters())
    assert all(torch.equal(output, outputs[0]) for output in outputs)


def test_padding_has_no_part_in_what_cached_experts_compute() -> None:
    """An expert that reads whole clips sees their ends."""
    method = PEFT.create({"name": "dense_moa", "num_experts": 3, "block": "conformer"})
    model = testing.tiny_classifier(method, family="wav2vec2", noise=0.2, pooling="mean").eval()
    tool()._insert_routers(model)
    tool()._insert_caches(model, dict.fromkeys(mixtures(model.backbone), 2), None)
    compare_padded(model, model)


def test_a_model_that_is_loaded_or_converted_forgets_what_was_cached() -> None:
    model = cached(3)
    logits(model)
    experts = first_mixture(model).experts
    assert experts.cache.values
    fresh = cached(3, seed=1, **SIX)
    logits(fresh)
    fresh.load_state(model.state())
    assert torch.equal(logits(fresh), logits(model))
    model.double()
    assert not experts.cache.values
    with torch.no_grad():
        out = model(tiny_batch(model.backbone)[0].double())
    torch.testing.assert_close(out.float(), logits(cached(3)), rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_store_stays_in_host_memory() -> None:
    outputs = []
    for slots in (0, 2, 5):
        model = cached(slots, **KINDS[0]).to("cuda")
        with torch.no_grad():
            features = tiny_batch(model.backbone)[0].to("cuda")
            outputs += [model(features).cpu(), model(features).cpu()]
        experts = first_mixture(model).experts
        assert experts.store.up.device.type == "cpu"
        assert all(copy.wait()["up"].is_cuda for copy in experts.cache.values.values())
    assert all(torch.equal(output, outputs[0]) for output in outputs)
    torch.testing.assert_close(outputs[0], logits(cached(2, **KINDS[0])), rtol=1e-3, atol=1e-4)


# The simulator


def test_a_simulation_by_hand() -> None:
    """Two mixtures, one slot each; loads take 2, blocks 1, experts 0.5."""
    trace = [
        Clip([], [Visit([0], [[1]]), Visit([1], [])]),
        Clip([2], [Visit([0, 2], [[1, 3]]), Visit([3], [])]),
    ]
    found = simulate(trace, [1, 1], load=2.0, block=1.0, expert=0.5)
    # 1: block to 1, load 0 to 3 (stall 2), 3.5; meanwhile 1 is fetched from 3 to 5.
    #    block to 4.5, 1 arrives at 5 (stall 0.5), 5.5.
    # 2: 2 is fetched from 5.5 to 7.5; block to 6.5, 0 is there, 7; 2 arrives at 7.5 (stall 0.5), 8.
    #    1 is there, so 3 is fetched, asked for at 6.5, from 7.5 to 9.5.
    #    block to 9, 3 arrives at 9.5 (stall 0.5), 10.
    expected = {"time": 10.0, "stalls": 3.5, "hits": 4, "misses": 1, "prefetched": 3, "used": 3}
    assert found == expected


def random_trace(
    clips: int, layers: int, experts: int, used: int = 2, precision: float = 1.0
) -> list[Clip]:
    """Independent needs, each as likely, of which the likeliest guess is right that often."""
    generator = torch.Generator().manual_seed(0)
    trace = []
    for _ in range(clips):
        orders = [torch.randperm(experts, generator=generator).tolist() for _ in range(layers)]
        right = (torch.rand(layers, generator=generator) < precision).tolist()
        guesses = [
            order[:used] if known else order[used:]
            for order, known in zip(orders, right, strict=True)
        ]
        visits = [
            Visit(sorted(order[:used]), [guess] if guess else [])
            for order, guess in zip(orders, [*guesses[1:], []], strict=True)
        ]
        trace.append(Clip(guesses[0], visits))
    return trace


def without_guesses(trace: list[Clip]) -> list[Clip]:
    """The trace of clips for which nothing is prefetched."""
    return [Clip([], [Visit(v.needed, []) for v in clip.visits]) for clip in trace]


def test_simulated_time_has_its_bounds() -> None:
    trace = random_trace(20, 4, 6)
    plain = without_guesses(trace)
    computing = 20 * 4 * (1 + 2 * 0.1)
    outcomes = {
        (slots, prefetch): simulate(trace if prefetch else plain, [slots] * 4, 0.3)
        for slots in (0, 2, 4, 6)
        for prefetch in (True, False)
    }
    for outcome in outcomes.values():
        assert outcome["time"] == pytest.approx(computing + outcome["stalls"])
        assert outcome["hits"] + outcome["misses"] == 20 * 4 * 2
    assert outcomes[6, False]["misses"] == 4 * 6  # each expert once
    assert outcomes[0, False]["misses"] == 160 and outcomes[0, True]["misses"] == 80
    misses = [outcomes[slots, False]["misses"] for slots in (0, 2, 4, 6)]
    assert misses == sorted(misses, reverse=True)
    for slots in (0, 2, 4, 6):  # right guesses
        assert outcomes[slots, True]["used"] == outcomes[slots, True]["prefetched"]
        assert outcomes[slots, True]["time"] < outcomes[slots, False]["time"]
    both = simulate(trace, [0] * 4, 0.3, room=2)  # and loads shorter than a block
    assert both["misses"] == 0 and both["stalls"] == 0
    free = simulate(plain, [2] * 4, 0.0)
    assert free["stalls"] == 0 and free["misses"] > 0


@pytest.mark.parametrize(
    ("slots", "used", "precision", "room"),
    [
        (0, 2, 0.7, 1),
        (3, 2, 0.7, 1),
        (3, 1, 0.4, 1),
        (5, 3, 1.0, 1),
        (2, 3, 1.0, 2),
        (4, 2, 0.0, 1),
    ],
)
def test_the_papers_formula_is_the_expectation_of_the_simulated_cache(
    slots: int, used: int, precision: float, room: int
) -> None:
    """Under its assumptions: independent needs, each as likely, and a guess of what is missing."""
    clips, experts = 4000, 8
    trace = random_trace(clips, 1, experts, used, precision)
    cache: LRUCache[int] = LRUCache(slots, room)
    waits = []
    for clip in trace:
        before = cache.counts["misses"]
        cache.prefetch(clip.first, int)
        list(cache.access(clip.visits[0].needed, int))
        waits.append(cache.counts["misses"] - before)
    active = [float(number == used) for number in range(used + 1)]
    expected = allocation.expected_loads(slots, experts, active, precision, room)
    error = 5 * torch.tensor(waits).double().std().item() / math.sqrt(clips)
    assert sum(waits) / clips == pytest.approx(expected, abs=error + 0.01)


def test_measured_loads_are_what_the_simulator_counts() -> None:
    trace = random_trace(30, 3, 5, precision=0.6)
    for room in (1, 2):
        curves = [measured_loads(trace, number, 5, room) for number in range(3)]
        for slots in itertools.product((0, 2, 5), repeat=3):
            found = simulate(trace, slots, 1.0, room)["misses"] / 30
            assert found == pytest.approx(sum(c[n] for c, n in zip(curves, slots, strict=True)))


@pytest.mark.parametrize(
    ("slots", "settings"),
    [
        (0, {}),
        (2, {"prefetch": "none"}),
        (3, {}),
        (1, {"room": 2}),
        (2, {"look_ahead": 3}),
        (2, {"first_layer": True}),
    ],
)
def test_the_simulator_counts_what_the_real_cache_counts(
    slots: int, settings: dict[str, Any]
) -> None:
    model, reference = cached(slots, **settings), cached(None)
    data, sites = tiny_data(model.backbone, clips=6), list(mixtures(model.backbone))
    trace = Trace(reference, sites, 2, settings.get("look_ahead", 1))
    with trace.at_entrance():
        visit(reference, data, data.calibration, trace.see)
    thresholds, predictor = dict.fromkeys(sites, 0.0), None
    if settings.get("first_layer"):
        predictor = first_mixture(model).experts.predictor
        predictor.fit(torch.cat(trace.entering), trace.first_shares(thresholds))
    run = trace.clips(thresholds, predictor, settings.get("prefetch") != "none")
    expected = simulate(run, [slots] * len(sites), 1.0, settings.get("room", 1))
    with torch.no_grad():
        for batch in data.batches(data.calibration, 1):
            model(model.backbone.features.normalise(batch.features))
    found = total_counts(mixture.experts.cache for mixture in mixtures(model.backbone).values())
    assert found == {name: expected[name] for name in found}
    assert (found["prefetched"] > 0) == (settings.get("prefetch") != "none")


def test_guesses_and_uses_by_loops() -> None:
    model = cached(None)
    data = tiny_data(model.backbone, clips=3)
    sites = list(mixtures(model.backbone))
    assert sites == ["blocks.0.mhsa", "blocks.0.ffn", "blocks.1.mhsa", "blocks.1.ffn"]
    entering: dict[str, list[Tensor]] = {site: [] for site in sites}
    for site, mixture in mixtures(model.backbone).items():
        mixture.register_forward_pre_hook(lambda m, a, s=site: entering[s].append(a[0]))
    trace = Trace(model, sites, 2)
    with trace.at_entrance():
        visit(model, data, data.calibration, trace.see)
    thresholds = dict(zip(sites, (0.0, 0.3, 0.4, math.inf), strict=True))
    accuracies, run = trace.accuracies(thresholds), trace.clips(thresholds, None, True)
    routers = {site: mixture.router.router for site, mixture in mixtures(model.backbone).items()}
    before: str | None = None
    for number, site in enumerate(sites):
        right = used = 0
        sizes, precisions = [0] * 7, []
        for clip, x in enumerate(entering[site]):
            wanted: set[int] = set()
            votes: dict[int, int] = {}
            for token in range(x.shape[1]):
                own = routers[site](x)[0, token]
                first, second = own.argsort(descending=True)[:2].tolist()
                share = (own[second] / (own[first] + own[second])).item()
                mine = [first] if share < thresholds[site] else [first, second]
                used += len(mine)
                wanted |= set(mine)
                if before is not None:
                    guess = routers[site](entering[before][clip])[0, token].topk(2).indices
                    right += sum(expert in guess.tolist() for expert in mine)
                    for expert in guess.tolist():
                        votes[expert] = votes.get(expert, 0) + 1
            assert run[clip].visits[number].needed == sorted(wanted)
            sizes[len(wanted)] += 1
            ranked = sorted(votes, key=lambda e: (-votes[e], e))
            assert run[clip].guessed(number) == ranked
            precisions.append(len(wanted & set(ranked[: len(wanted)])) / len(wanted))
        uses = Uses.of(run, number, 6)
        assert uses.shares == pytest.approx([size / 3 for size in sizes])
        assert uses.precision == pytest.approx(sum(precisions) / 3)
        assert accuracies[site] == pytest.approx(right / used)
        before = site


# The first mixture


def test_the_predictor_learns_what_is_linear_in_the_mean_token() -> None:
    tokens = random(60, 20)
    shares = (tokens @ random(20, 5, seed=1) + 3).double()
    predictor = Predictor(20, 5)
    predictor.fit(tokens[:50], shares[:50])
    unseen, truth = predictor(tokens[50:]).double(), shares[50:]
    spread = (truth - shares[:50].mean(dim=0)).square().mean()
    assert (unseen - truth).square().mean() < 0.05 * spread
    order = predictor.ranking(tokens[:1])
    assert order == predictor(tokens[:1])[0].argsort(descending=True).tolist()


def test_the_first_mixture_is_foreseen_in_front_of_the_first_block() -> None:
    """From the mean of the tokens that enter it, padding left out."""
    model = cached(2, first_layer=True)
    experts, seen = first_mixture(model).experts, []
    ranking = experts.predictor.ranking
    experts.predictor.ranking = lambda tokens: (seen.append(tokens), ranking(tokens))[1]
    stock: list[Tensor] = []
    model.backbone.tokens.module.register_forward_hook(lambda m, a, out: stock.append(out))
    logits(model)
    torch.testing.assert_close(seen[0], stock[0][:, model.backbone.prefix_tokens :].mean(dim=1))
    assert experts.cache.counts["prefetched"] == 1


def test_bundles_without_a_predictor_load() -> None:
    """Those of 0.1, whose plan does not speak of one."""
    model = tiny_mixture(**SIX)
    tool().restructure(model, {"slots": dict.fromkeys(mixtures(model.backbone), 2)})
    assert not any(isinstance(module, Predictor) for module in model.modules())
    logits(model)


def test_the_likeliest_experts_come_first() -> None:
    assert by_count(torch.tensor([[4, 1], [4, 2], [4, 1], [0, 2]])) == [4, 1, 2, 0]


# The tool


@pytest.mark.parametrize("settings", KINDS)
def test_a_model_without_budget_is_top_k_and_with_any_top_1(settings: dict[str, Any]) -> None:
    for budget, count in ((0.0, 2), (1e30, 1)):
        model = tiny_mixture(**settings)
        tool(T=budget).apply(model, tiny_data(model.backbone))
        reference = tiny_mixture(**settings)
        for mixture in mixtures(reference.backbone).values():
            mixture.router = TopK(mixture.router, count)
        torch.testing.assert_close(logits(model), logits(reference), rtol=1e-4, atol=1e-5)


class TopK(nn.Module):
    """Gates of the largest few, renormalised, by a loop."""

    def __init__(self, router: nn.Module, count: int) -> None:
        super().__init__()
        self.router, self.count = router, count

    @property
    def trained(self) -> nn.Module:
        """The router that was trained."""
        return self.router.trained

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, T, d] -> [B, T, E]."""
        gates = self.router(x, mask)
        result = torch.zeros_like(gates)
        for clip, token in itertools.product(range(x.shape[0]), range(x.shape[1])):
            best = gates[clip, token].argsort(descending=True)[: self.count]
            own = gates[clip, token, best]
            result[clip, token, best] = own / own.sum()
        return result


@pytest.mark.parametrize(
    ("settings", "slots"),
    [*((kind, 3) for kind in KINDS), (KINDS[0], None), (KINDS[0], 0), (KINDS[1], 100)],
)
def test_restructured_model_loads_exactly(settings: dict[str, Any], slots: int | None) -> None:
    made = tool(target_active=1.5, cache_slots=slots)
    model, fresh = (tiny_mixture(seed=seed, **settings) for seed in (0, 1))
    plan = made.apply(model, tiny_data(model.backbone))
    assert json.loads(json.dumps(plan)) == plan
    made.restructure(fresh, plan)
    assert not torch.equal(logits(fresh), logits(model))
    fresh.load_state({name: t.clone() for name, t in model.state().items()})
    assert torch.equal(logits(fresh), logits(model))
    report = made.report(fresh, plan).as_dict()
    assert 1 <= report["active_mean"] <= 2
    assert report["single_expert_share"] == pytest.approx(2 - report["active_mean"])
    assert report["fewer_activations"] == pytest.approx(report["single_expert_share"] / 2)
    if slots is not None:
        capacity = sum(m.num_experts for m in mixtures(model.backbone).values())
        assert sum(report["slots"].values()) == min(slots, capacity)
        loads = {name: s["expected_loads"] for name, s in report["simulation"].items()}
        assert loads["chosen"] <= loads["uniform"] + 1e-12
        assert isinstance(first_mixture(fresh).experts.predictor, Predictor)
        assert sum(report["cache"].values()) > 0
        if slots >= capacity:
            assert loads["chosen"] == 0


def test_slots_by_counting_are_never_worse_than_others_on_the_clips_that_were_counted() -> None:
    loads = {}
    for alloc in ("trace", "dp", "uniform"):
        model = tiny_mixture("dense_moa", num_experts=6, placement="both")
        plan = tool(alloc=alloc, cache_slots=9).apply(model, tiny_data(model.backbone))
        loads[alloc] = plan["calibration"]["simulation"]["chosen"]["loads"]
    assert loads["trace"] <= min(loads.values())


def test_target_is_met_on_the_calibration_clips() -> None:
    for target in (1.0, 1.25, 1.6, 2.0):
        # One block, so that its thresholds do not move the tokens that another one sees.
        model = tiny_mixture("dense_moa", num_experts=6, layers=[1])
        data = tiny_data(model.backbone)
        tool(target_active=target).apply(model, data)
        data.score(model, data.calibration)
        active = first_mixture(model).router.active.double()
        mean = (active * torch.arange(len(active))).sum() / active.sum()
        assert target - 0.02 < mean.item() <= target + 1e-9


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"name": "soft_moa"}, "Soft-MoA tokens choose none"),
        ({"name": "adapter"}, "router"),
        ({"name": "lora"}, "router"),
        ({"name": "dynmoe"}, "softmax"),
        ({"name": "dense_moa", "num_experts": 1}, "at least two experts"),
    ],
)
def test_refusals(method: dict[str, Any], message: str) -> None:
    model = tiny_mixture(**method)
    with pytest.raises(ConfigError, match=message):
        tool().apply(model, tiny_data(model.backbone))


def test_a_cached_mixture_is_refused() -> None:
    model = tiny_mixture("dense_moa")
    tool(cache_slots=4).apply(model, tiny_data(model.backbone))
    assert isinstance(first_mixture(model).experts, CachedExperts)
    with pytest.raises(ConfigError, match="not yet given a cache"):
        tool().apply(copy.deepcopy(model), tiny_data(model.backbone))


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))
    bundle = tiny_bundle(tmp_path, "topk_moa")
    options = ("--target-active", "1.5", "--cache-slots", "12", "--calibration-clips", "6")
    fast = change_bundle("compress", bundle, "adapmoe", "fast", *options)
    report = json.loads((fast / "report.json").read_text())
    assert 1.2 < report["active_mean"] < 1.8
    found = mixtures(load_bundle(bundle).model.backbone).values()
    size = sum(p.numel() for m in found for p in m.experts.parameters()) / 7
    fewer = report["active_parameters_before"] - report["active_parameters_after"]
    assert fewer == pytest.approx((2 - report["active_mean"]) * size, abs=1)
    assert report["cache"]["hits"] > 0 and report["cache"]["misses"] > 0
    assert sum(report["slots"].values()) == 12
    for site, mixture in mixtures(load_bundle(fast).model.backbone).items():
        assert mixture.router.threshold.item() == report["thresholds"][site]
        assert mixture.experts.cache.slots == report["slots"][site]
    check_prediction(fast)

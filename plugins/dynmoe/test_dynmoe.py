"""DynMoE: the contract, the mixture by hand, births and removals, exact resuming."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from toolkit import plugins, processes
from toolkit.errors import ConfigError
from toolkit.experts.base import by_expert
from toolkit.experts.bottleneck import Bottleneck
from toolkit.model import AudioClassifier
from toolkit.peft import insertion
from toolkit.peft.adapter import SingleAdapter
from toolkit.registry import PEFT
from toolkit.testing import CLASSES, check_method, tiny_backbone, tiny_batch, tiny_objective

plugins.load([Path(__file__).parent])
from toolkit_plugins.dynmoe import top_any  # noqa: E402 (there once it is loaded)
from toolkit_plugins.dynmoe.dynmoe import DynamicMixture  # noqa: E402

D, R = 12, 3


def mixture(alive: int = 3, slots: int = 5, **settings: Any) -> DynamicMixture:
    """A mixture of width 12 in float64 whose tensors are not at their start."""
    torch.manual_seed(0)
    gate = top_any.TopAnyGate(D, slots, alive, **settings)
    made = DynamicMixture(Bottleneck(slots, D, R), gate).double()
    with torch.no_grad():
        for parameter in made.experts.parameters():
            parameter.normal_(std=0.5)
        made.router.thresholds.uniform_(0, 0.1)
    return made


def tokens(clips: int = 2, number: int = 40, dim: int = D) -> Tensor:
    """Isotropic tokens in float64."""
    return torch.randn(clips, number, dim, generator=torch.Generator().manual_seed(1)).double()


def by_loop(made: DynamicMixture, x: Tensor) -> Tensor:
    """The mixture token by token and expert by expert, forward values only."""
    gate, experts = made.router, made.experts
    out = torch.zeros_like(x)
    for b, t in torch.cartesian_prod(torch.arange(len(x)), torch.arange(x.shape[1])).tolist():
        token = x[b, t]
        score = [torch.cosine_similarity(token, key, dim=0) for key in gate.keys]
        live = [e for e in range(len(score)) if gate.alive[e]]
        chosen = [e for e in live if score[e] > gate.thresholds[e]]
        if not chosen and not made.training:
            chosen = [max(live, key=lambda e: score[e])]
        for e in chosen:
            hidden = functional.gelu(experts.down[e] @ token + experts.down_bias[e])
            out[b, t] += (experts.up[e] @ hidden + experts.up_bias[e]) / len(chosen)
    return out


# The gate


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("tau", [1.0, 10.0])
def test_mixture_equals_a_loop_in_values_and_expert_gradients(training: bool, tau: float) -> None:
    found, looped = (mixture(tau=tau).train(training) for _ in range(2))
    x, upstream = tokens(), tokens()[..., torch.randperm(D)]
    out, reference = found(x), by_loop(looped, x)
    torch.testing.assert_close(out, reference)
    torch.testing.assert_close(found.experts.mix(x, found.router(x)), reference)
    (out * upstream).sum().backward()
    (reference * upstream).sum().backward()
    for name, parameter in found.experts.named_parameters():
        torch.testing.assert_close(parameter.grad, looped.experts.get_parameter(name).grad)


@pytest.mark.parametrize("gradient", ["deepspeed", "tutel"])
def test_gradient_goes_straight_through_the_sign_alone(gradient: str) -> None:
    """dL/d margin_e = u_e / K where e fires, u_e = upstream . E_e(x); nothing where it does not.

    Tutel's differentiates K too: u_e is then compared with the mean of those that fire.
    """
    made = mixture(tau=2.0, learn_tau=True, gradient=gradient).train()
    x, upstream = tokens(1, 30), tokens(1, 30).flip(1)
    (made(x) * upstream).sum().backward()
    gate = made.router
    keys, thresholds, log_tau = (
        t.detach().clone().requires_grad_() for t in (gate.keys, gate.thresholds, gate.log_tau)
    )
    cosine = functional.normalize(x, dim=-1) @ functional.normalize(keys, dim=-1).T
    tau = log_tau.exp()
    margin = torch.sigmoid(tau * cosine) - torch.sigmoid(tau * thresholds)
    fired = (cosine > thresholds) & gate.alive
    each = torch.stack(
        [made.experts.mix(x, functional.one_hot(torch.tensor(e), 5).double().expand(1, 30, 5))
         for e in range(5)], dim=2,
    ).detach()  # fmt: skip
    worth = torch.einsum("b t d, b t e d -> b t e", upstream, each)
    number = fired.sum(dim=-1, keepdim=True).clamp(min=1)
    if gradient == "tutel":
        worth = worth - (worth * fired).sum(dim=-1, keepdim=True) / number
    worth = worth / number
    (margin * worth * fired).sum().backward()
    torch.testing.assert_close(gate.keys.grad, keys.grad)
    torch.testing.assert_close(gate.thresholds.grad, thresholds.grad)
    torch.testing.assert_close(gate.log_tau.grad, log_tau.grad)
    assert torch.count_nonzero(gate.keys.grad[3:]) == 0  # dead slots


def test_a_single_expert_teaches_its_gate_only_in_the_deepspeed_code() -> None:
    """With one expert that fires, Tutel's gate is 1 whatever its score."""
    found = {}
    for gradient in ("deepspeed", "tutel"):
        made, x = mixture(alive=1, gradient=gradient).train(), tokens()
        assert (made.router.route(x).fired.sum(dim=-1) <= 1).all()
        (made(x) * tokens().flip(1)).sum().backward()
        found[gradient] = made.router.keys.grad.abs().max().item()
    assert found["deepspeed"] > 0.1 and found["tutel"] < 1e-12


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "deepspeed"),
        ({"learn_tau": True, "tau": 10}, "tutel"),
        ({"gate": "tutel"}, "tutel"),
        ({"gate": "deepspeed"}, "deepspeed"),
    ],
)
def test_tau_is_learned_with_the_gate_that_learns_it(
    settings: dict[str, Any], expected: str
) -> None:
    assert mixtures(adapted(**settings))[0].router.gradient == expected


def test_uncovered_tokens_yield_nothing_in_training_and_the_best_expert_in_evaluation() -> None:
    made = mixture(alive=2)
    x = tokens()
    made.train()
    uncovered = made.router.route(x).uncovered
    assert uncovered.any() and not uncovered.all()
    assert torch.count_nonzero(made(x)[uncovered]) == 0
    made.eval()
    fired = made.router.route(x).fired
    assert (fired.sum(dim=-1) >= 1).all() and torch.count_nonzero(fired[..., 2:]) == 0
    scores = made.router.route(x).scores[..., :2]
    assert torch.equal(fired.argmax(dim=-1)[uncovered], scores.argmax(dim=-1)[uncovered])
    made.router.fallback = False
    assert torch.count_nonzero(made(x)[uncovered]) == 0


def test_without_thresholds_it_is_the_mean_of_the_alive_experts() -> None:
    made, x = mixture(), tokens()
    with torch.no_grad():
        made.router.thresholds.fill_(-torch.inf)
    gates = made.router.alive.double().expand(2, 40, 5) / 3
    torch.testing.assert_close(made.train()(x), made.experts.mix(x, gates))
    torch.testing.assert_close(made.eval()(x), made.experts.mix(x, gates))


def test_one_expert_is_the_single_adapter() -> None:
    made, x = mixture(alive=1, slots=1).eval(), tokens()
    torch.testing.assert_close(made(x), SingleAdapter(made.experts, 1.0, False, False)(x))


# Losses and statistics


@pytest.mark.parametrize(("over", "count"), [("alive", 3), ("slots", 5)])
def test_auxiliary_loss_is_the_weighted_sum_over_mixtures(over: str, count: int) -> None:
    weights = {"w_div": 0.3, "w_simple": 0.2, "w_balance": 0.7, "w_eff": 0.5}
    model = adapted(**weights, balance_over=over).train()
    model(tiny_batch(model.backbone)[0])
    routings = [(m.router, m._routing) for m in mixtures(model)]
    expected = sum(
        0.3 * top_any.diversity(gate.keys, gate.alive)
        + 0.2 * top_any.simplicity(gate.keys)
        + 0.7 * top_any.balance(routing, count)
        + 0.5 * top_any.efficiency(routing)
        for gate, routing in routings
    )
    found = model.method.auxiliary_losses(model.backbone)
    torch.testing.assert_close(found, {"dynmoe": expected})
    copy.deepcopy(model)  # nothing of the graph is kept


def test_statistics() -> None:
    made, x = mixture(alive=3).eval(), tokens()
    routing = made.router.route(x)
    found = top_any.metrics(routing, made.router.alive)
    active = routing.fired.sum(dim=-1).flatten().int().tolist()
    assert found["active_mean"].item() == pytest.approx(sum(active) / 80)
    expected = [active.count(k) / 80 for k in range(6)]
    torch.testing.assert_close(found["active_hist"], torch.tensor(expected))
    assert found["uncovered"].item() == pytest.approx(routing.uncovered.float().mean().item())
    assert found["alive"].item() == 3 and found["load"].sum().item() == pytest.approx(1)
    assert found["usage"].sum().item() == pytest.approx(sum(active) / 80)
    usage = found["usage"]
    assert found["unused"].item() == pytest.approx((usage[:3] == 0).float().mean().item())
    model = adapted()
    model.method.record(model.backbone, on=True)
    model.eval()(tiny_batch(model.backbone)[0])
    assert model.method.statistics(model.backbone)["alive"] == 3


# In a backbone


def adapted(**settings: Any) -> AudioClassifier:
    """A tiny classifier with three experts out of five."""
    torch.manual_seed(0)
    values = {"name": "dynmoe", "n_init": 3, "n_max": 5, "reduction": 32, **settings}
    return AudioClassifier(tiny_backbone(), PEFT.create(values), CLASSES, "all")


def mixtures(model: AudioClassifier) -> list[DynamicMixture]:
    """The mixtures of a classifier."""
    return [m for m in insertion.inserted(model.backbone) if isinstance(m, DynamicMixture)]


def optimizer_of(model: AudioClassifier) -> torch.optim.Optimizer:
    """AdamW over what trains."""
    return torch.optim.AdamW(model.trainable().values(), lr=1e-2)


def train(model: AudioClassifier, optimizer: torch.optim.Optimizer, steps: range) -> None:
    """Some optimiser steps on random clips, a separate batch each."""
    model.train()
    for step in steps:
        features, labels = tiny_batch(model.backbone, seed=step)
        losses = model.method.training_losses(
            model.backbone, model, features, tiny_objective(labels)
        )
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        model.method.on_step(model.backbone, optimizer, step, 100)


def test_contract() -> None:
    check_method("dynmoe")
    check_method(
        "dynmoe",
        {
            "placement": "both", "learn_tau": True, "w_balance": 0.1, "w_eff": 0.1,
            "adapt_every": 2, "record_window": 1,
        },
    )  # fmt: skip
    check_method("dynmoe", {"gate": "tutel", "schedule": "glue", "balance_over": "slots"})


@pytest.mark.parametrize("block", ["conformer", "convpass"])
def test_other_blocks_are_born_too(block: str) -> None:
    check_method("dynmoe", {"block": block, "adapt_every": 2, "record_window": 2, "n_init": 1})


def test_parameter_count() -> None:
    d, r, slots = 96, 3, 5
    mixture = slots * (2 * d * r + r + d) + slots * d + slots
    model = adapted()
    assert model.count().method == model.backbone.depth * (mixture + 2 * d) + 2 * d


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_init": 9, "n_max": 8}, "n_max"),
        ({"adapt_every": 5, "record_window": 6}, "adapt_every"),
        ({"gate": "deepspeed", "learn_tau": True}, "only the gate of the Tutel code"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PEFT.create({"name": "dynmoe", **settings})


# Births and removals


def narrow(model: AudioClassifier, expert: int) -> None:
    """Let one expert fire on nothing, and the others on little."""
    with torch.no_grad():
        for made in mixtures(model):
            made.router.thresholds.fill_(0.15)
            made.router.thresholds[expert] = 2


def test_the_record_counts_what_happened() -> None:
    model = adapted(adapt_every=100, record_window=100)
    narrow(model, expert=1)
    seen = {}
    for made in mixtures(model):
        made.register_forward_hook(
            lambda m, args, out: seen.setdefault(m, []).append((args[0], m.router.route(args[0])))
        )
    train(model, optimizer_of(model), range(1, 4))
    for made in mixtures(model):
        counts, uncovered, total = made.record.split([5, 1, 96])
        routings = seen[made]
        assert len(routings) == 3
        expected = sum(routing.fired.detach().sum(dim=(0, 1)) for _, routing in routings)
        torch.testing.assert_close(counts, expected)
        left = torch.cat([x.detach()[routing.uncovered] for x, routing in routings])
        assert uncovered.item() == len(left) > 0
        torch.testing.assert_close(total, left.sum(dim=0), rtol=1e-4, atol=1e-3)


def test_adaptation_removes_what_never_fires_and_one_expert_is_born() -> None:
    model = adapted(adapt_every=2, record_window=2)
    narrow(model, expert=1)
    optimizer = optimizer_of(model)
    train(model, optimizer, range(1, 2))
    before = [m.router.alive.clone() for m in mixtures(model)]
    assert all(alive.tolist() == [True, True, True, False, False] for alive in before)
    records = [m.record.clone() for m in mixtures(model)]
    assert all(record[1] == 0 and record[5] > 0 for record in records)
    directions = []
    for made in mixtures(model):
        adapt = made.adapt
        made.adapt = lambda *a, m=made, f=adapt: (directions.append(m.record[6:].clone()), f(*a))
    train(model, optimizer, range(2, 3))
    features, _ = tiny_batch(model.backbone)
    for made, total in zip(mixtures(model), directions, strict=True):
        gate, experts = made.router, made.experts
        assert gate.alive.tolist() == [True, True, True, False, False]  # 1 died, and was reborn
        torch.testing.assert_close(gate.keys[1], total / total.norm())
        assert gate.keys[1].norm().item() == pytest.approx(1, abs=1e-5)
        assert gate.thresholds[1] == 0 and made.born == 1
        assert torch.count_nonzero(experts.up[1]) == 0 and torch.count_nonzero(experts.up[0]) > 0
        assert torch.count_nonzero(experts.down_bias[1]) == 0
        assert 0 < experts.down[1].abs().max() <= 96**-0.5
        assert torch.count_nonzero(made.record) == 0
        for parameter in (*experts.parameters(), gate.keys, gate.thresholds):
            state = optimizer.state[parameter]
            for name in ("exp_avg", "exp_avg_sq"):
                rows = by_expert(state[name], 5)
                assert torch.count_nonzero(rows[1]) == 0
                assert torch.count_nonzero(rows[0]) > 0
    weights = [made.experts.down[1] for made in mixtures(model)]
    assert not torch.equal(weights[0], weights[1])
    model.train()(features)
    assert all(torch.count_nonzero(m._seen[3:5]) == 0 for m in mixtures(model))  # the dead


def test_every_expert_alive_after_adaptation_has_fired_or_was_just_born() -> None:
    model = adapted(adapt_every=1, record_window=1, n_init=5)
    made = mixtures(model)[0]
    optimizer = optimizer_of(model)
    for counts, left, alive in [
        ([3, 0, 1, 0, 2], 0, [True, False, True, False, True]),
        ([3, 0, 1, 0, 0], 4, [True, True, True, False, False]),
        ([0, 0, 0, 0, 0], 9, [True, False, False, False, False]),
    ]:
        with torch.no_grad():
            made.record.copy_(torch.cat([torch.tensor([*counts, left]), torch.randn(96)]))
            made.adapt(optimizer, lambda: model.method.experts(model.backbone, 1))
        assert made.router.alive.tolist() == alive


def test_nothing_is_born_where_there_is_no_room_or_no_need() -> None:
    model = adapted(n_init=5)
    made, optimizer = mixtures(model)[0], optimizer_of(model)
    start = {name: t.clone() for name, t in made.state_dict().items()}
    with torch.no_grad():
        made.record[:6] = 1
        made.adapt(optimizer, lambda: model.method.experts(model.backbone, 1))
        made.record[:5] = 1
        made.adapt(optimizer, lambda: model.method.experts(model.backbone, 1))
    assert all(torch.equal(t, start[name]) for name, t in made.state_dict().items())


def test_only_the_window_is_recorded() -> None:
    model = adapted(adapt_every=4, record_window=2)
    optimizer = optimizer_of(model)
    empty = []
    for step in range(1, 8):
        train(model, optimizer, range(step, step + 1))
        empty.append(torch.count_nonzero(mixtures(model)[0].record).item() == 0)
    assert empty == [True, True, False, True, True, True, False]
    never = adapted(adapt_every=0)
    train(never, optimizer_of(never), range(1, 3))
    assert all(torch.count_nonzero(m.record) == 0 for m in mixtures(never))


def steps_of(schedule: str, steps_per_epoch: int, total: int) -> tuple[list[int], list[int]]:
    """The steps, from 0, that are recorded, and those after which experts come and go."""
    model = adapted(schedule=schedule)
    model.method.on_epoch_start(model.backbone, 1, steps_per_epoch)
    optimizer, made = optimizer_of(model), mixtures(model)[0]
    recorded, adapted_at, last = [], [], [-1]
    made.adapt = lambda *_: (adapted_at.append(last[0]), made.record.zero_())
    for step in range(total):
        last[0], before = step, made.record.clone()
        for each in mixtures(model):
            each._seen = torch.ones_like(each.record)
        model.method.on_step(model.backbone, optimizer, step + 1, total)
        if step in adapted_at or not torch.equal(made.record, before):
            recorded.append(step)
    return recorded, adapted_at


def test_the_released_schedules_step_by_step() -> None:
    """GLUE: from batch n // 2 on, up to and with 3 n // 4. LLaVA: forwards 300 to 600 of 900."""
    assert steps_of("glue", 8, 16) == ([4, 5, 6, 12, 13, 14], [6, 14])
    assert steps_of("glue", 7, 7) == ([3, 4, 5], [5])
    recorded, adapted_at = steps_of("llava", 8, 1600)
    assert recorded == [*range(300, 601), *range(1200, 1501)] and adapted_at == [600, 1500]


def test_a_schedule_in_epochs_must_know_them() -> None:
    model = adapted(schedule="glue")
    with pytest.raises(RuntimeError, match="on_epoch_start"):
        model.method.on_step(model.backbone, optimizer_of(model), 1, 100)


def test_processes_decide_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """One reduction per step over all mixtures; here the other process saw the same."""
    calls = []

    def total(values: Tensor) -> Tensor:
        calls.append(values.shape)
        return 2 * values

    alone, both = adapted(record_window=20), adapted(record_window=20)
    train(alone, optimizer_of(alone), range(1, 2))
    monkeypatch.setattr(processes, "total", total)
    train(both, optimizer_of(both), range(1, 2))
    assert calls == [(2, 5 + 1 + 96)]
    for one, two in zip(mixtures(alone), mixtures(both), strict=True):
        torch.testing.assert_close(2 * one.record, two.record)


def test_weights_of_the_newborn_do_not_depend_on_the_process() -> None:
    """Other random states, as processes have them: the same newborn, and the states are kept."""
    models = []
    for seed in (5, 6):
        model = adapted(adapt_every=1, record_window=1)
        narrow(model, expert=1)
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        train(model, optimizer_of(model), range(1, 2))
        assert torch.equal(torch.get_rng_state(), state)
        models.append(model)
    for one, two in zip(*(mixtures(model) for model in models), strict=True):
        assert one.born == two.born == 1
        assert torch.equal(one.experts.down, two.experts.down)


@pytest.mark.parametrize("interrupted", [3, 4, 7])
def test_resuming_is_exact(interrupted: int) -> None:
    """In the window, at an adaptation, and after one: as if never interrupted."""
    settings = {"adapt_every": 4, "record_window": 2, "learn_tau": True}
    whole = adapted(**settings)
    narrow(whole, expert=1)
    optimizer = optimizer_of(whole)
    train(whole, optimizer, range(1, interrupted + 1))
    saved = copy.deepcopy((whole.state(), optimizer.state_dict()))
    train(whole, optimizer, range(interrupted + 1, 10))
    torch.manual_seed(99)
    resumed = AudioClassifier(tiny_backbone(), whole.method, CLASSES, "all")
    resumed.load_state(saved[0])
    optimizer = optimizer_of(resumed)
    optimizer.load_state_dict(saved[1])
    train(resumed, optimizer, range(interrupted + 1, 10))
    assert sum(int(m.born) for m in mixtures(whole)) > 0
    for name, tensor in whole.state().items():
        assert torch.equal(resumed.state()[name], tensor), name

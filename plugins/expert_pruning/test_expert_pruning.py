"""Task-specific expert pruning: contract, schedule and scores by hand, export to one adapter."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from bundles import change_bundle, check_prediction, tiny_bundle
from torch import Tensor

from toolkit import plugins
from toolkit.bundle import load_bundle, save_bundle
from toolkit.errors import ConfigError
from toolkit.experts.base import by_expert
from toolkit.experts.bottleneck import Bottleneck
from toolkit.model import AudioClassifier
from toolkit.peft.adapter import Adapter, SingleAdapter
from toolkit.peft.topk import topk_mixtures
from toolkit.registry import PEFT, TOOLS
from toolkit.routing.topk import TopKRouter
from toolkit.testing import (
    CLASSES,
    check_method,
    tiny_backbone,
    tiny_batch,
    tiny_data,
    tiny_mixture,
    tiny_objective,
)

FOLDER = Path(__file__).parent
plugins.load([FOLDER, FOLDER.parent / "topk_moa"])

from toolkit_plugins.expert_pruning.expert_pruning import PrunedMixture  # noqa: E402


def model(seed: int = 0, **settings: Any) -> AudioClassifier:
    """A tiny classifier with the method, its experts not zero."""
    method = PEFT.create({"name": "expert_pruning", **settings})
    torch.manual_seed(seed)
    made = AudioClassifier(tiny_backbone(), method, CLASSES, "all")
    with torch.no_grad():
        for parameter in made.trainable().values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def optimizer_of(made: AudioClassifier, weight_decay: float = 0.1) -> torch.optim.Optimizer:
    """AdamW on all that trains."""
    return torch.optim.AdamW(made.trainable().values(), lr=1e-3, weight_decay=weight_decay)


def train(
    made: AudioClassifier, optimizer: torch.optim.Optimizer, steps: range, total: int
) -> list[list[int]]:
    """Some steps on different batches; the alive experts of each mixture after each step."""
    history = []
    made.train()
    for step in steps:
        features, labels = tiny_batch(made.backbone, clips=4, seed=step)
        losses = made.method.training_losses(made.backbone, made, features, tiny_objective(labels))
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        made.method.on_step(made.backbone, optimizer, step, total)
        history.append([int(m.router.alive.sum()) for m in topk_mixtures(made.backbone)])
    return history


def test_contract() -> None:
    check_method("expert_pruning")
    check_method("expert_pruning", {"criterion": "hit", "num_experts": 33, "windows": 3})
    check_method("expert_pruning", {"schedule": "growing", "keep": 2})


@pytest.mark.parametrize("criterion", ["alpha", "hit"])
@pytest.mark.parametrize("force_at", [0.5, 0.8, 0.0])
@pytest.mark.parametrize("schedule", ["growing", "mc_smoe"])
def test_experts_only_go_and_one_is_left_from_force_at(
    schedule: str, criterion: str, force_at: float
) -> None:
    """Property 1."""
    made = model(
        schedule=schedule, criterion=criterion, force_at=force_at, windows=4, num_experts=6
    )
    history = train(made, optimizer_of(made), range(1, 21), 20)
    force = max(1, int(20 * force_at))
    for before, after in zip([[6, 6], *history], history, strict=False):
        assert all(0 < b <= a for a, b in zip(before, after, strict=True))
    assert all(alive == [1, 1] for alive in history[force - 1 :])
    if force > 1:
        assert history[0] == [6, 6] and max(history[force - 2]) > 1
    for mixture in topk_mixtures(made.backbone):
        assert (mixture.dropped_at > 0).sum() == 5 and mixture.dropped_at.max() <= force
        assert torch.equal(mixture.dropped_at == 0, mixture.router.alive)


@pytest.mark.parametrize("criterion", ["alpha", "hit"])
def test_scores_and_decisions_by_hand(criterion: str) -> None:
    """Property 2, and the rule of every window."""
    settings = {
        "schedule": "growing", "criterion": criterion, "windows": 5, "beta": 1.5, "num_experts": 6,
    }  # fmt: skip
    made = model(**settings)
    total, force, seen = 20, 10, [[], []]
    mixtures = topk_mixtures(made.backbone)
    for mixture, inputs in zip(mixtures, seen, strict=True):
        mixture.register_forward_pre_hook(lambda m, a, i=inputs: i.append((m, a[0].detach())))
    optimizer = optimizer_of(made)
    scores = [torch.zeros(6), torch.zeros(6)]
    alive = [list(range(6)), list(range(6))]
    for step in range(1, force + 1):
        weights = [m.router.linear.weight.detach().clone() for m in mixtures]
        train(made, optimizer, range(step, step + 1), total)
        for i in range(2):
            x = seen[i][-1][1]
            rest = torch.tensor(alive[i])
            top = (x @ weights[i][rest].T).softmax(dim=-1).topk(min(2, len(rest)), dim=-1)
            shares = top.values / top.values.sum(dim=-1, keepdim=True)
            if criterion == "hit":
                shares = torch.full_like(shares, 1 / shares.shape[-1])
            now = torch.zeros(6).index_add(0, rest[top.indices.flatten()], shares.flatten())
            scores[i] += now / now.sum()
            best = max(alive[i], key=scores[i].tolist().__getitem__)
            if step == force:
                alive[i] = [best]
            elif step % 2 == 0:  # W = 5 windows of 2 steps
                bound = 1.5 * (step // 2) / 5 * scores[i][rest].mean()
                alive[i] = [e for e in alive[i] if e == best or scores[i][e] >= bound]
            torch.testing.assert_close(mixtures[i].score, scores[i])
            assert mixtures[i].router.alive.nonzero().flatten().tolist() == alive[i], step
    assert len(alive[0]) == 1


SHARES = torch.tensor([0.22, 0.19, 0.16, 0.14, 0.12, 0.10, 0.07])


@pytest.mark.parametrize(("schedule", "left"), [("growing", 3), ("mc_smoe", 7)])
def test_experts_left_before_the_forced_drop_where_all_are_used(schedule: str, left: int) -> None:
    """The reproduction keeps experts whose use is above a tenth of the mean; ours is stricter."""
    made = model(schedule=schedule)
    optimizer, seen = optimizer_of(made), torch.cat([SHARES, torch.ones(1)])
    mixtures, history = topk_mixtures(made.backbone), []
    for mixture in mixtures:
        mixture.take_seen = lambda: seen.clone()
    for step in range(1, 101):
        made.method.on_step(made.backbone, optimizer, step, 200)
        history.append([int(mixture.router.alive.sum()) for mixture in mixtures])
    assert history[98:] == [[left, left], [1, 1]]


def test_the_reproductions_rule_step_by_step() -> None:
    """Use is averaged every fourth step; an expert goes when its share of those alive is below
    beta / alive; four rounds up to half of the training, the last one leaves the minimum."""
    generator = torch.Generator().manual_seed(0)
    made = model(keep=2, beta=0.6)
    mixture = topk_mixtures(made.backbone)[0]
    optimizer, average, alive, history = optimizer_of(made), [1 / 7] * 7, list(range(7)), []
    for step in range(1, 41):
        now = torch.rand(7, generator=generator).square() * mixture.router.alive
        shares = (now / now.sum()).tolist()
        for each in topk_mixtures(made.backbone):
            each.take_seen = lambda now=now: torch.cat([now, now.sum()[None]])
        made.method.on_step(made.backbone, optimizer, step, 80)
        if step % 4 == 0:
            old = 0.0 if step == 4 else 0.6
            average = [old * a + (1 - old) * s for a, s in zip(average, shares, strict=True)]
        if step % 10 == 0:
            total = sum(average[e] for e in alive)
            above = [e for e in alive if average[e] / total >= 0.6 / len(alive)]
            if len(above) < 2 or step == 40:
                above = sorted(sorted(alive, key=lambda e: -average[e])[:2])
            alive = above
        assert mixture.router.alive.nonzero().flatten().tolist() == alive
        history.append(len(alive))
    assert history[0] == 7 and history[-1] == 2 and len(set(history)) > 2


def test_more_experts_cannot_be_kept_than_there_are() -> None:
    with pytest.raises(ConfigError, match="lower 'keep'"):
        PEFT.create({"name": "expert_pruning", "keep": 8})


def test_dropped_equals_masked() -> None:
    """Property 3, at the mixture; the dropped experts' weights do not matter."""
    torch.manual_seed(0)
    mixture = PrunedMixture(Bottleneck(5, 12, 3), TopKRouter(12, 5), "alpha")
    with torch.no_grad():
        for parameter in mixture.parameters():
            parameter.normal_(std=0.5)
    x = torch.randn(2, 30, 12)
    mixture.score.copy_(torch.tensor([5.0, 1, 4, 1, 3]))
    optimizer = torch.optim.AdamW(mixture.parameters())
    mixture.drop_below(0.5, 1, optimizer, step=3)
    assert mixture.router.alive.tolist() == [True, False, True, False, True]
    assert mixture.dropped_at.tolist() == [0, 3, 0, 3, 0]
    logits = mixture.router.linear(x)
    logits[..., [1, 3]] = -torch.inf
    values, best = logits.softmax(dim=-1).topk(2, dim=-1)
    gates = torch.zeros_like(logits).scatter(-1, best, values / values.sum(-1, keepdim=True))
    torch.testing.assert_close(mixture(x), mixture.experts.mix(x, gates))
    before = mixture(x)
    with torch.no_grad():
        mixture.experts.down[[1, 3]] = 7.0
        mixture.router.linear.weight[[1, 3]] = 7.0
    torch.testing.assert_close(mixture(x), before)


def test_the_best_expert_is_never_dropped() -> None:
    mixture = PrunedMixture(Bottleneck(3, 12, 3), TopKRouter(12, 3), "alpha")
    optimizer = torch.optim.AdamW(mixture.parameters())
    for threshold in (10.0, float("inf")):
        mixture.score.copy_(torch.tensor([1.0, 1.0, 2.0]))
        mixture.drop_below(threshold, 1, optimizer, step=1)
        assert mixture.router.alive.tolist() == [False, False, True]
    unseen = PrunedMixture(Bottleneck(3, 12, 3), TopKRouter(12, 3), "alpha")
    unseen.drop_below(float("inf"), 1, optimizer, step=1)
    assert unseen.router.alive.sum() == 1


def test_dropped_tensors_get_no_gradient_and_have_no_optimiser_state() -> None:
    """Property 5, while experts are left and when one is."""
    for experts in (6, 33):
        made = model(schedule="growing", num_experts=experts, windows=4, beta=1.6)
        optimizer = optimizer_of(made)
        for steps in (range(1, 9), range(9, 13)):
            train(made, optimizer, steps, 20)
            for mixture in topk_mixtures(made.backbone):
                dead = ~mixture.router.alive
                assert dead.any()
                owned = [*mixture.experts.parameters(), mixture.router.linear.weight]
                train(made, optimizer, range(steps[-1], steps[-1] + 1), 20)
                dead &= ~mixture.router.alive
                for parameter in owned:
                    assert torch.count_nonzero(by_expert(parameter.grad, experts)[dead]) == 0
                    for name in ("exp_avg", "exp_avg_sq"):
                        state = optimizer.state[parameter][name]
                        assert torch.count_nonzero(by_expert(state, experts)[dead]) == 0
                live = by_expert(optimizer.state[mixture.experts.down]["exp_avg"], experts)
                assert torch.count_nonzero(live[mixture.router.alive]) > 0


def test_resumed_equals_uninterrupted() -> None:
    straight = model(windows=4)
    optimizer = optimizer_of(straight)
    train(straight, optimizer, range(1, 7), 16)
    state = {n: t.clone() for n, t in straight.state().items()}
    other = model(seed=1, windows=4)
    other.load_state(state)
    again = optimizer_of(other)
    saved = optimizer.state_dict()
    again.load_state_dict(
        {
            **saved,
            "state": {k: {n: t.clone() for n, t in v.items()} for k, v in saved["state"].items()},
        }
    )
    histories = [train(m, o, range(7, 13), 16) for m, o in ((straight, optimizer), (other, again))]
    assert histories[0] == histories[1] and histories[0][-1] == [1, 1]
    for name, tensor in straight.state().items():
        assert torch.equal(tensor, other.state()[name]), name


def test_statistics_say_who_is_alive_and_when_the_others_went() -> None:
    made = model(num_experts=4)
    train(made, optimizer_of(made), range(1, 9), 12)
    made.eval()
    made.method.record(made.backbone, True)
    made(tiny_batch(made.backbone)[0])
    found = made.method.statistics(made.backbone)
    assert found["alive"] == 1 and found["active_mean"] == 1 and found["gate_entropy"] == 0
    assert sum(found["score"]) == pytest.approx(1)
    assert max(found["dropped_at"]) <= 6


# Export


def finished(**settings: Any) -> AudioClassifier:
    """Trained until one expert is left."""
    made = model(num_experts=4, **settings)
    train(made, optimizer_of(made), range(1, 4), 6)
    return made.eval()


def export(made: AudioClassifier) -> dict[str, Any]:
    """Apply the tool."""
    return TOOLS.create({"name": "single_expert"}).apply(made, tiny_data(made.backbone))


@torch.no_grad()
def logits(made: AudioClassifier) -> Tensor:
    """Of the tiny clips."""
    return made(tiny_batch(made.backbone)[0])


@pytest.mark.parametrize(
    "settings",
    [{}, {"placement": "both", "k": 1, "layers": [1]}, {"block": "conformer", "reduction": 24}],
)
def test_exported_adapter_equals_the_model(settings: dict[str, Any]) -> None:
    """Property 4; the method is `adapter` then, and a fresh one takes the weights."""
    made = finished(**settings)
    expected = logits(made)
    plan = export(made)
    torch.testing.assert_close(logits(made), expected, rtol=0, atol=1e-6)
    assert isinstance(made.method, Adapter)
    torch.manual_seed(5)
    fresh = AudioClassifier(tiny_backbone(), made.method, CLASSES, "all").eval()
    fresh.load_state({n: t.clone() for n, t in made.state().items()})
    torch.testing.assert_close(logits(fresh), expected, rtol=0, atol=1e-6)
    assert set(plan["survivors"].values()) <= set(range(4))


def test_a_mixture_of_one_expert_is_exported_too() -> None:
    """T3, for the kinds that have it."""
    for name, settings in (("dense_moa", {}), ("topk_moa", {"k": 1})):
        made = tiny_mixture(name, num_experts=1, **settings)
        expected = logits(made)
        export(made)
        torch.testing.assert_close(logits(made), expected, rtol=0, atol=1e-6)
        assert any(isinstance(m, SingleAdapter) for m in made.modules())


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("soft_moa", {"num_experts": 1}, "reads slots"),
        ("soft_moa", {}, "reads slots"),
        ("dense_moa", {}, "7 experts left"),
        ("expert_pruning", {}, "7 experts left"),
        ("lora", {}, "no mixture"),
        ("dense_moa", {"num_experts": 1, "add_twice": True}, "added twice"),
    ],
)
def test_export_refuses_with_the_reason(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        export(tiny_mixture(name, **settings))


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle of the ordinary method `adapter`, which predicts as the mixture did."""
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))
    folder = tiny_bundle(tmp_path, "expert_pruning", num_experts=8, reduction=48)
    bundle = load_bundle(folder)
    for number, mixture in enumerate(topk_mixtures(bundle.model.backbone)):
        mixture.router.alive.copy_(torch.arange(8) == number)
    origin = bundle.info.origin
    save_bundle(folder, bundle.model, bundle.classes, bundle.task, origin=origin)
    one = change_bundle("prune", folder, "single_expert", "one")
    report = json.loads((one / "report.json").read_text())
    assert report["score_before"] == report["score_after"]
    assert list(report["survivors"].values()) == list(range(6))
    d, r = 192, 4
    removed = 6 * (7 * (2 * d * r + r + d) + 8 * d)
    assert report["parameters_before"] - report["parameters_after"] == removed
    assert report["bytes_before"] - report["bytes_after"] >= 4 * removed
    exported = load_bundle(one)
    assert exported.info.peft.name == "adapter" and exported.info.tools == []
    features = torch.randn(2, 64, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(
            exported.model(features), bundle.model(features), rtol=0, atol=1e-5
        )
    check_prediction(one)

"""THOR: the contract, both passes in one batch, the losses by hand, and evaluation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, kl_divergence
from torch.nn import functional

from toolkit import plugins
from toolkit.experts.base import Experts, by_expert
from toolkit.experts.bottleneck import Bottleneck
from toolkit.experts.conformer import Conformer
from toolkit.experts.convpass import Convpass
from toolkit.model import AudioClassifier
from toolkit.peft import insertion
from toolkit.peft.adapter import SingleAdapter
from toolkit.registry import PEFT
from toolkit.task import ONE_CLASS, TASKS, Task
from toolkit.testing import CLASSES, check_method, tiny_backbone, tiny_batch, tiny_objective

plugins.load([Path(__file__).parent])
from toolkit_plugins.thor import stochastic  # noqa: E402 (once it is loaded)
from toolkit_plugins.thor.thor import Ledger, StochasticMixture  # noqa: E402

from toolkit.padding import TokenContext  # noqa: E402

NUMBER, D, R = 4, 12, 3
KINDS = {
    "bottleneck": lambda number: Bottleneck(number, D, R),
    "conformer": lambda number: Conformer(number, D, R, kernel=4),
    "convpass": lambda number: Convpass(number, D, R),
}


def noisy(module: nn.Module) -> nn.Module:
    """The module with tensors that are not at their start."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def mixture(kind: str = "bottleneck", draw: str = "batch", infer: str = "token", seed: int = 0):
    """A mixture of four experts of width 12."""
    torch.manual_seed(0)
    table = stochastic.fixed_draws(NUMBER, seed)
    make = KINDS[kind]
    made = StochasticMixture(
        noisy(make(NUMBER)), make(1), Ledger(TokenContext()), table, draw, infer
    )
    return made.eval()


def alone(experts: Experts, expert: int, x: Tensor) -> Tensor:
    """Tokens through one of the experts."""
    gates = functional.one_hot(torch.tensor(expert), experts.num_experts).to(x.dtype)
    return experts.mix(x, gates.expand(*x.shape[:2], -1))


def tokens(clips: int = 6, number: int = 7) -> Tensor:
    """Random tokens."""
    return torch.randn(clips, number, D, generator=torch.Generator().manual_seed(1))


def adapted(noise: bool = True, **settings: Any) -> AudioClassifier:
    """A tiny classifier with three experts per site."""
    torch.manual_seed(0)
    values = {"name": "thor", "num_experts": 3, "reduction": 32, **settings}
    model = AudioClassifier(tiny_backbone(), PEFT.create(values), CLASSES, "all")
    if noise:
        noisy(nn.ParameterList(model.trainable().values()))
    return model


def mixtures(model: AudioClassifier) -> list[StochasticMixture]:
    """The mixtures of a classifier."""
    return [m for m in insertion.inserted(model.backbone) if isinstance(m, StochasticMixture)]


def losses_of(
    model: AudioClassifier,
    forward: Callable[[Tensor], Tensor] | None = None,
    task: Task = ONE_CLASS,
) -> dict[str, Tensor]:
    """The named losses of one training batch."""
    features, labels = tiny_batch(model.backbone)
    return model.method.training_losses(
        model.backbone,
        forward or model.train(),
        features,
        tiny_objective(labels if task is ONE_CLASS else several_labels(labels), task),
    )


def several_labels(labels: Tensor) -> Tensor:
    """Class numbers [B] -> labels [B, C] of clips that have this class, and some the first one."""
    found = functional.one_hot(labels, CLASSES)
    found[::2, 0] = 1
    return found


def fix_draws(monkeypatch: pytest.MonkeyPatch, *draws: int) -> None:
    """Let every site draw these experts for the passes of a batch."""
    monkeypatch.setattr(stochastic, "uniform_draws", lambda *_: torch.tensor(draws))


# Losses


@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
def test_losses_of_two_passes_by_hand(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal to two passes, each through one expert everywhere; the model is called once."""
    model = adapted(alpha=5.0)
    features, labels = tiny_batch(model.backbone)
    calls = []
    fix_draws(monkeypatch, 2, 0)
    losses = losses_of(model, lambda x: calls.append(x.shape) or model.train()(x), task)
    assert calls == [(2 * len(features), *features.shape[1:])]
    passes = []
    for expert in (2, 0):
        fix_draws(monkeypatch, expert, expert)
        passes.append(model(features))
    if task is ONE_CLASS:
        expected = [functional.cross_entropy(logits, labels) for logits in passes]
    else:
        several = several_labels(labels).float()
        expected = [
            functional.binary_cross_entropy_with_logits(logits, several) for logits in passes
        ]
    torch.testing.assert_close(losses["task"], sum(expected))
    kind = Categorical if task is ONE_CLASS else Bernoulli
    p, q = (kind(logits=logits) for logits in passes)
    divergence = kl_divergence(p, q) + kl_divergence(q, p)
    torch.testing.assert_close(losses["consistency"], 5 * 0.5 * divergence.mean())
    probabilities = torch.stack([p.probs, q.probs])
    statistics = model.method.statistics(model.backbone)
    assert statistics["consistency"] == pytest.approx(0.05 * divergence.mean().item(), rel=1e-4)
    variance = probabilities.var(dim=0).mean().item()
    assert statistics["prediction_variance"] == pytest.approx(0.1 * variance, rel=1e-3)


def test_one_expert_without_dropout_is_the_task_alone() -> None:
    model = adapted(num_experts=1)
    losses = losses_of(model)
    assert losses["consistency"].item() == 0
    features, labels = tiny_batch(model.backbone)
    task = functional.cross_entropy(model(features), labels)
    assert sum(losses.values()).item() == (2 * task).item()
    dropping = adapted(num_experts=1, block="convpass", dropout=0.5)
    assert losses_of(dropping)["consistency"].item() > 0


def test_one_expert_is_the_single_adapter() -> None:
    for infer in ("token", "sample", "mean", "merge"):
        model = adapted(num_experts=1, infer=infer).eval()
        x = torch.randn(6, 5, 96)
        model(tiny_batch(model.backbone)[0])  # the ledger knows six clips
        for made in mixtures(model):
            single = SingleAdapter(made.experts, 1.0, False, False)
            torch.testing.assert_close(made(x), single(x))


def test_only_drawn_experts_get_gradients_and_from_both_passes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = adapted(num_experts=NUMBER)
    fix_draws(monkeypatch, 2, 0)
    sum(losses_of(model).values()).backward()
    together = {n: p.grad.clone() for n, p in model.trainable().items()}
    for made in mixtures(model):
        for parameter in made.experts.parameters():
            used = by_expert(parameter.grad, NUMBER).flatten(1).abs().sum(dim=1)
            assert (used[[0, 2]] > 0).all() and (used[[1, 3]] == 0).all()
    model.zero_grad()
    features, labels = tiny_batch(model.backbone)
    passes = []
    for expert in (2, 0):
        fix_draws(monkeypatch, expert, expert)
        passes.append(model(features))
    loss = sum(functional.cross_entropy(logits, labels) for logits in passes)
    (loss + ONE_CLASS.divergence(*passes)).backward()
    for name, parameter in model.trainable().items():
        torch.testing.assert_close(together[name], parameter.grad, rtol=1e-3, atol=1e-5)


# Draws


@pytest.mark.parametrize("kind", KINDS)
def test_shares_of_a_batch_through_an_expert_each(kind: str) -> None:
    experts, x = mixture(kind).experts, tokens().requires_grad_()
    draws = torch.tensor([3, 1])
    found = experts.shared_out(x, draws)
    expected = torch.cat([alone(experts, 3, x[:3]), alone(experts, 1, x[3:])])
    torch.testing.assert_close(found, expected)
    upstream = torch.randn_like(x)
    tensors = [x, *experts.parameters()]
    ours = torch.autograd.grad(found, tensors, upstream, allow_unused=True)
    theirs = torch.autograd.grad(expected, tensors, upstream, allow_unused=True)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("draw", ["batch", "sample", "token"])
def test_training_goes_through_what_was_drawn(draw: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made, x, drawn = mixture(draw=draw).train(), tokens(), []
    uniform = stochastic.uniform_draws
    monkeypatch.setattr(
        stochastic, "uniform_draws", lambda *a: drawn.append(uniform(*a)) or drawn[-1]
    )
    out = made(x)
    shape = {"batch": (2,), "sample": (6, 1), "token": (6, 7)}[draw]
    assert drawn[0].shape == shape
    experts = drawn[0].repeat_interleave(3)[:, None] if draw == "batch" else drawn[0]
    each = torch.stack([alone(made.experts, e, x) for e in range(NUMBER)])
    for b in range(6):
        for t in range(7):
            expert = experts.expand(6, 7)[b, t]
            torch.testing.assert_close(out[b, t], each[expert, b, t])
    assert torch.equal(made.draws, torch.bincount(drawn[0].flatten(), minlength=NUMBER))


def test_a_batch_that_has_no_halves_draws_once() -> None:
    made, x = mixture().train(), tokens(clips=5)
    out = made(x)
    assert made.draws.sum() == 1
    torch.testing.assert_close(out, alone(made.experts, int(made.draws.argmax()), x))


@pytest.mark.parametrize("draw", ["batch", "token"])
def test_draws_are_uniform(draw: str) -> None:
    torch.manual_seed(3)
    made, x = mixture(draw=draw).train(), tokens(clips=4, number=10)
    while made.draws.sum() < 1000:
        made(x)
    total = made.draws.sum().item()
    sigma = (total * (1 / NUMBER) * (1 - 1 / NUMBER)) ** 0.5
    assert (made.draws - total / NUMBER).abs().max() < 4 * sigma


# Evaluation


def test_every_token_goes_through_one_fixed_expert() -> None:
    made, x = mixture(infer="token"), tokens(number=9)
    each = torch.stack([alone(made.experts, e, x) for e in range(NUMBER)])
    expected = torch.stack([each[made.table[t], :, t] for t in range(9)], dim=1)
    torch.testing.assert_close(made(x), expected)
    gates = made.gates(x)
    assert ((gates == 0) | (gates == 1)).all() and (gates.sum(dim=-1) == 1).all()
    assert len(made.table[:9].unique()) > 1


@pytest.mark.parametrize("infer", ["token", "sample", "mean", "merge"])
def test_evaluation_is_reproducible_and_does_not_depend_on_the_batch(infer: str) -> None:
    model = adapted(infer=infer).eval()
    features, _ = tiny_batch(model.backbone)
    with torch.no_grad():
        whole = model(features)
        assert torch.equal(model(features), whole)
        torch.manual_seed(5)
        again = adapted(infer=infer).eval()
        assert torch.equal(again(features), whole)
        singly = torch.cat([model(clip[None]) for clip in features.flip(0)]).flip(0)
        torch.testing.assert_close(singly, whole, rtol=1e-4, atol=1e-5)
        other = adapted(infer=infer, seed=1).eval()(features)
    assert torch.equal(other, whole) is (infer in ("mean", "merge"))


def test_a_sample_goes_through_one_expert_and_clips_differ() -> None:
    model = adapted(infer="sample").eval()
    features, _ = tiny_batch(model.backbone, clips=40)
    model(features)
    for made in mixtures(model):
        gates = made.gates(torch.randn(40, 5, 96))
        assert torch.equal(gates, gates[:, :1].expand_as(gates))
        assert (gates[:, 0].sum(dim=0) > 0).all()  # each of three experts has some of 40 clips
    first, second = (m.gates(torch.randn(40, 1, 96)) for m in mixtures(model))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("kind", KINDS)
def test_mean_and_merge_by_hand(kind: str) -> None:
    x = tokens()
    made = mixture(kind, infer="mean")
    each = torch.stack([alone(made.experts, e, x) for e in range(NUMBER)])
    torch.testing.assert_close(made(x), each.mean(dim=0))
    made = mixture(kind, infer="merge")
    single = KINDS[kind](1).eval()
    with torch.no_grad():
        for name, tensor in single.state_dict().items():
            if tensor.ndim:
                parts = made.experts.state_dict()[name].chunk(NUMBER)
                tensor.copy_(sum(parts) / NUMBER)
    torch.testing.assert_close(made(x), single.mix(x))
    assert not torch.allclose(made(x), each.mean(dim=0), atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_identical_experts_evaluate_alike(kind: str) -> None:
    outs = []
    for infer in ("token", "sample", "mean", "merge"):
        made = mixture(kind, infer=infer)
        with torch.no_grad():
            for expert in range(1, NUMBER):
                for name, tensor in made.experts.of(expert).items():
                    tensor.copy_(made.experts.of(0)[name])
        made.ledger[0].keys = torch.arange(6)
        outs.append(made(tokens()))
    for out in outs[1:]:
        torch.testing.assert_close(out, outs[0])


# In a backbone


def test_contract() -> None:
    check_method("thor")
    check_method("thor", {"placement": "both", "num_experts": 4, "every": 2, "draw": "token"})
    check_method("thor", {"draw": "sample", "infer": "sample"})


def test_an_old_setting_is_read_and_left_out() -> None:
    """Bundles from before the task of the corpus decided it name `multi_label`."""
    method = PEFT.create({"name": "thor", "num_experts": 4, "multi_label": True})
    assert method.num_experts == 4 and "multi_label" not in method.as_dict()


@pytest.mark.parametrize("block", ["conformer", "convpass"])
@pytest.mark.parametrize("infer", ["token", "merge"])
def test_other_blocks(block: str, infer: str) -> None:
    check_method("thor", {"block": block, "infer": infer})


def test_experts_alternate_with_single_adapters() -> None:
    model = adapted(placement="both", every=2)
    kinds = [
        type(model.backbone.site(block, role).module.inserted)
        for block in range(2) for role in ("mhsa", "ffn")
    ]  # fmt: skip
    assert kinds == [StochasticMixture, SingleAdapter] * 2


@pytest.mark.parametrize("every", [1, 2])
def test_parameter_count(every: int) -> None:
    d, r = 96, 3
    experts = 3 + (3 if every == 1 else 1)
    count = experts * (2 * d * r + r + d) + 2 * 2 * d + 2 * d
    assert adapted(every=every).count().method == count


def test_statistics() -> None:
    model = adapted()
    losses_of(model)
    losses_of(model)
    model.method.record(model.backbone, on=True)
    model.eval()(tiny_batch(model.backbone)[0])
    found = model.method.statistics(model.backbone)
    assert sum(found["draws"]) == 2 * 2 * 2  # steps, passes, sites
    assert sum(found["load"]) == pytest.approx(1) and found["gate_entropy"] == 0
    assert found["consistency"] > 0 and found["prediction_variance"] > 0
    resumed = adapted()
    resumed.load_state({name: t.clone() for name, t in model.state().items()})
    again = resumed.method.statistics(resumed.backbone)
    assert again == {name: found[name] for name in again} and "draws" in again

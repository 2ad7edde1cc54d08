"""SEER-MoE: counts and decisions by hand, pruning against masking, fine-tuning, bundles."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from bundles import change_bundle, check_prediction, tiny_bundle
from torch import Tensor, nn
from torch.nn import functional

from toolkit import plugins
from toolkit.errors import ConfigError
from toolkit.peft.mixture import mixtures
from toolkit.peft.soft_moa import SoftMixture
from toolkit.registry import TOOLS
from toolkit.routing import dense, soft
from toolkit.routing.topk import TopKRouter
from toolkit.testing import first_mixture, tiny_batch, tiny_data, tiny_mixture

FOLDER = Path(__file__).parent
plugins.load([FOLDER, FOLDER.parent / "topk_moa"])

from toolkit_plugins.seer.counting import Count, chosen_most  # noqa: E402
from toolkit_plugins.seer.seer import Seer  # noqa: E402

KINDS: list[dict[str, Any]] = [
    {"name": "dense_moa"},
    {"name": "topk_moa", "k": 2},
    {"name": "soft_moa", "slots": 2},
]


def tool(**settings: Any) -> Seer:
    """The tool, without fine-tuning unless asked for."""
    return TOOLS.create({"name": "seer", "epochs": 0, **settings})


def tokens(seed: int = 0) -> Tensor:
    """[2, 9, 96]."""
    return torch.randn(2, 9, 96, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def masked(mixture: nn.Module, x: Tensor, kept: list[int]) -> Tensor:
    """The whole mixture, the logits of the experts that are not kept being -inf."""
    gone = torch.ones(mixture.experts.num_experts, dtype=torch.bool)
    gone[kept] = False
    if isinstance(mixture, SoftMixture):
        logits = torch.einsum("b t d, d e s -> b t e s", x, mixture.phi)
        dispatch = logits.softmax(dim=1)
        cut = logits.masked_fill(gone[:, None], -math.inf)
        combine = cut.flatten(2).softmax(dim=-1).view_as(cut)
        routing = soft.SoftRouting(dispatch, combine)
        return routing.tokens(mixture.experts(routing.slots(x)))
    logits = mixture.router.linear(x).masked_fill(gone, -math.inf)
    p = logits.softmax(dim=-1)
    if isinstance(mixture.router, TopKRouter):
        values, best = p.topk(mixture.router.k, dim=-1)
        p = torch.zeros_like(p).scatter(-1, best, values / values.sum(dim=-1, keepdim=True))
    return mixture.experts.mix(x, p)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind["name"])
@pytest.mark.parametrize("kept", [[1, 4, 6], [0, 2], [3, 5, 6, 0]])
def test_pruned_equals_masked(kind: dict[str, Any], kept: list[int]) -> None:
    """Property 1; the tensors are really smaller."""
    model = tiny_mixture(**kind)
    mixture = first_mixture(model)
    expected = masked(mixture, tokens(), kept)
    assert not torch.allclose(mixture(tokens()), expected, atol=1e-3)
    mixture.keep(kept)
    torch.testing.assert_close(mixture(tokens()), expected, rtol=1e-5, atol=1e-5)
    assert len(mixture.experts.up) == len(kept)


def test_other_kinds_of_experts_are_taken_out_whole() -> None:
    for block in ("conformer", "convpass"):
        model = tiny_mixture("dense_moa", block=block, reduction=24)
        mixture = first_mixture(model)
        expected = masked(mixture, tokens(), [5, 1])
        mixture.keep([5, 1])
        torch.testing.assert_close(mixture(tokens()), expected, rtol=1e-5, atol=1e-5)


def test_counts_by_hand_and_their_sums() -> None:
    """Property 2."""
    for kind in KINDS:
        mixture = first_mixture(tiny_mixture(**kind))
        hard, softly = Count("hard", topk=2), Count("soft", topk=2)
        hits, shares = [0] * 7, torch.zeros(7)
        for seed in (0, 1):
            with torch.no_grad():
                hard.add(mixture, tokens(seed))
                softly.add(mixture, tokens(seed))
                rows = mixture.shares(tokens(seed)).flatten(0, 1)
            for row in rows:
                shares += row
                for e in sorted(range(7), key=row.tolist().__getitem__)[-2:]:
                    hits[e] += 1
        assert hard.scores.tolist() == hits and sum(hits) == 2 * 36
        torch.testing.assert_close(softly.scores.float(), shares)
        assert softly.scores.sum().item() == pytest.approx(36, rel=1e-6)


def test_shares_of_a_top_k_mixture_are_its_whole_softmax() -> None:
    mixture = first_mixture(tiny_mixture("topk_moa"))
    expected = mixture.router.linear(tokens()).softmax(dim=-1)
    torch.testing.assert_close(mixture.shares(tokens()), expected)


# Decisions


def scores_of(rows: list[list[float]]) -> dict[str, Tensor]:
    """Sites a, b, ... with these scores."""
    return {chr(97 + i): torch.tensor(row, dtype=torch.float64) for i, row in enumerate(rows)}


def test_layers_keep_their_share_and_all_together_theirs() -> None:
    """Property 3."""
    scores = scores_of([[9.0, 8, 7, 6], [5.0, 4, 3, 2]])
    assert chosen_most(scores, "layer", 0.5, 1) == {"a": [0, 1], "b": [0, 1]}
    assert chosen_most(scores, "global", 0.5, 1) == {"a": [0, 1, 2], "b": [0]}
    assert chosen_most(scores, "global", 0.5, 2) == {"a": [0, 1], "b": [0, 1]}
    assert chosen_most(scores, "layer", 0.0, 1) == {"a": [0], "b": [0]}
    assert chosen_most(scores, "layer", 1.0, 9) == {"a": [0, 1, 2, 3], "b": [0, 1, 2, 3]}


def test_global_scope_removes_the_exact_total_and_empties_no_layer() -> None:
    generator = torch.Generator().manual_seed(0)
    for instance in range(50):
        sizes = [1 + (instance * 7 + i) % 6 for i in range(4)]
        rows = [torch.rand(n, generator=generator).mul(10**i).tolist() for i, n in enumerate(sizes)]
        ratio = (instance % 11) / 10
        kept = chosen_most(scores_of(rows), "global", ratio, 1)
        assert sum(map(len, kept.values())) == max(round(ratio * sum(sizes)), 4)
        assert all(kept.values())
        for row, numbers in zip(rows, kept.values(), strict=True):
            best = sorted(range(len(row)), key=row.__getitem__)[len(row) - len(numbers) :]
            assert numbers == sorted(best)


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_relabelling_experts_relabels_decisions(scope: str) -> None:
    """Property 4."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        scores = {site: torch.rand(6, generator=generator).double() for site in "abc"}
        orders = {site: torch.randperm(6, generator=generator) for site in "abc"}
        kept = chosen_most(scores, scope, 0.5, 1)
        renamed = chosen_most({s: v[orders[s]] for s, v in scores.items()}, scope, 0.5, 1)
        for site, numbers in renamed.items():
            assert sorted(orders[site][numbers].tolist()) == kept[site]


# Fine-tuning


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind["name"])
def test_a_step_on_the_entropy_alone_lowers_it(kind: dict[str, Any]) -> None:
    """Property 5; in every kind of mixture."""
    mixture = first_mixture(tiny_mixture(**kind))
    optimizer = torch.optim.SGD(mixture.parameters(), lr=0.1)

    def entropy() -> Tensor:
        return dense.entropy(mixture.shares(tokens())).mean()

    before = entropy()
    before.backward()
    optimizer.step()
    assert entropy() < before


@pytest.mark.parametrize("renormalise", [None, True])
def test_one_expert_per_token_is_the_most_probable_one(renormalise: bool | None) -> None:
    """Property 5, with the schedule's last k; its gate is its probability, or 1 if asked for."""
    model = tiny_mixture("topk_moa")
    settings = {"k_schedule": [[0, 2], [1, 1]], "epochs": 1, "batch_size": 4}
    plan = tool(**settings, renormalise=renormalise).apply(model, tiny_data(model.backbone))
    assert plan["k"] == 1 and plan["renormalise"] == bool(renormalise)
    mixture = first_mixture(model)
    x = tokens()
    probabilities = mixture.router.linear(x).softmax(dim=-1)
    best = functional.one_hot(probabilities.argmax(dim=-1), mixture.experts.num_experts)
    gates = best.float() if renormalise else best * probabilities
    torch.testing.assert_close(mixture(x), mixture.experts.mix(x, gates))


def test_k_falls_in_equal_parts_of_the_finetuning() -> None:
    for k, expected in ((1, [1] * 6), (2, [2, 2, 2, 1, 1, 1]), (3, [3, 3, 2, 2, 1, 1])):
        model = tiny_mixture("topk_moa", k=k)
        assert tool(epochs=2, batch_size=4).schedule(model, clips=10) == expected
        assert tool(epochs=0).schedule(model, clips=10) == [k]
    assert tool(epochs=1, batch_size=5).schedule(tiny_mixture("dense_moa"), clips=10) == [None] * 2


def test_the_router_learns_from_the_task_at_one_expert_per_token() -> None:
    """A renormalised gate is 1 there, whatever the router says, and has no gradient."""
    norms = {}
    for renormalise in (True, None):
        model = tiny_mixture("topk_moa")
        made = tool(k_schedule=[[0, 1]], keep_ratio=1.0, renormalise=renormalise)
        made.apply(model, tiny_data(model.backbone))
        features, labels = tiny_batch(model.backbone)
        functional.cross_entropy(model(features), labels).backward()
        gradients = [m.router.linear.weight.grad for m in mixtures(model.backbone).values()]
        norms[renormalise] = torch.stack([g.norm() for g in gradients]).norm().item()
    assert norms[None] > 1e4 * norms[True]


def test_a_mixture_trained_with_one_expert_keeps_its_gates() -> None:
    model = tiny_mixture("topk_moa", k=1, renormalise=True)
    features, _ = tiny_batch(model.backbone)
    with torch.no_grad():
        before = model(features)
        plan = tool(keep_ratio=1.0).apply(model, tiny_data(model.backbone))
        torch.testing.assert_close(model(features), before, rtol=0, atol=0)
    assert plan["k"] == 1 and plan["renormalise"] is None


def test_bundles_that_do_not_say_how_gates_are_made_keep_them() -> None:
    """Those of 0.1, whose gates at k = 1 were 1."""
    model = tiny_mixture("topk_moa")
    kept = {site: list(range(7)) for site in mixtures(model.backbone)}
    tool().restructure(model, {"kept": kept, "k": 1})
    router = first_mixture(model).router
    assert router.k == 1 and router.renormalise


def test_schedule_says_k_step_by_step() -> None:
    made = tool(k_schedule=[[2, 3], [5, 1]], epochs=1, batch_size=1)
    schedule = made.schedule(tiny_mixture("topk_moa"), clips=7)
    assert schedule == [None, None, 3, 3, 3, 1, 1]


def test_k_is_as_trained_until_the_schedule_begins() -> None:
    model, seen = tiny_mixture("topk_moa"), []
    mixture = first_mixture(model)
    mixture.register_forward_pre_hook(lambda m, _: seen.append((m.training, m.router.k)))
    made = tool(k_schedule=[[2, 1]], epochs=1, batch_size=4)
    plan = made.apply(model, tiny_data(model.backbone))  # 10 clips: 3 steps
    assert [k for training, k in seen if training] == [2, 2, 1]
    assert {k for training, k in seen if not training} == {2}  # the accuracy of stage 1 alone
    assert plan["k"] == mixture.router.k == 1


def test_a_schedule_that_never_begins_is_refused() -> None:
    made = tool(k_schedule=[[0, 2], [3, 1]], epochs=1, batch_size=4)
    with pytest.raises(ConfigError, match=r"at step 3, and there are 3 steps.*--epochs"):
        made.schedule(tiny_mixture("topk_moa"), clips=10)


def test_finetuning_lowers_entropy_more_with_a_larger_weight_and_is_seeded() -> None:
    found = []
    for weight in (0.0, 5.0, 5.0):
        model = tiny_mixture("dense_moa")
        settings = {"epochs": 4, "lr": 0.003, "lambda_ent": weight, "batch_size": 5}
        found.append(tool(**settings).apply(model, tiny_data(model.backbone))["found"])
        assert not model.training
    free, pressed, again = (f["entropy_by_epoch"] for f in found)
    assert len(free) == 4 and pressed[-1] < free[-1] and pressed[-1] < pressed[0]
    assert pressed == again


def test_finetuning_trains_what_the_method_trains_and_nothing_else() -> None:
    models = [tiny_mixture("topk_moa") for _ in range(2)]
    data = tiny_data(models[0].backbone)
    tool(epochs=0).apply(models[0], data)
    tool(epochs=1).apply(models[1], data)
    names = models[0].state()
    assert names.keys() == models[1].state().keys()
    changed = [n for n, t in models[1].state().items() if not torch.equal(t, names[n])]
    assert any("router" in n for n in changed) and any("experts" in n for n in changed)
    frozen = [dict(m.backbone.model.named_parameters()) for m in models]
    for name, parameter in frozen[0].items():
        if not parameter.requires_grad:
            assert torch.equal(parameter, frozen[1][name])


# The tool


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind["name"])
@pytest.mark.parametrize("count", ["hard", "soft"])
def test_plan_gives_a_fresh_model_the_shape(kind: dict[str, Any], count: str) -> None:
    model, fresh = tiny_mixture(**kind), tiny_mixture(**kind, seed=1)
    features, _ = tiny_batch(model.backbone)
    made = tool(count=count, keep_ratio=0.5)
    plan = made.apply(model, tiny_data(model.backbone))
    assert json.loads(json.dumps(plan)) == plan
    assert sum(map(len, plan["kept"].values())) == 7
    made.restructure(fresh, plan)
    fresh.load_state({name: t.clone() for name, t in model.state().items()})
    with torch.no_grad():
        assert torch.equal(fresh(features), model(features))


def test_everything_kept_changes_nothing() -> None:
    model = tiny_mixture("topk_moa")
    features, _ = tiny_batch(model.backbone)
    with torch.no_grad():
        before = model(features)
        tool(keep_ratio=1.0).apply(model, tiny_data(model.backbone))
        torch.testing.assert_close(model(features), before, rtol=0, atol=0)


def test_dead_experts_of_a_mixture_go_first() -> None:
    model = tiny_mixture("topk_moa")
    for mixture in mixtures(model.backbone).values():
        mixture.router.alive[[0, 3, 5]] = False
    plan = tool(keep_ratio=4 / 7, scope="layer").apply(model, tiny_data(model.backbone))
    assert all(numbers == [1, 2, 4, 6] for numbers in plan["kept"].values())


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("adapter", {}, "no mixture"),
        ("lora", {}, "no mixture"),
        ("dense_moa", {"k_schedule": [[0, 1]]}, "no k to lower"),
        ("soft_moa", {"k_schedule": [[0, 1]]}, "no k to lower"),
    ],
)
def test_refusals(method: str, settings: dict[str, Any], message: str) -> None:
    model = tiny_mixture(method)
    with pytest.raises(ConfigError, match=message):
        tool(**settings).apply(model, tiny_data(model.backbone))


def test_refused_schedules_and_compressed_experts() -> None:
    for schedule in ([[0, 2, 1]], [[5, 2], [0, 1]], [[0, 0]], [[0, 2], [0, 1]]):
        with pytest.raises(ConfigError, match="k_schedule"):
            tool(k_schedule=schedule)
    model = tiny_mixture("dense_moa")
    mixture = first_mixture(model)
    down = mixture.experts.down.detach()
    del mixture.experts.down
    mixture.experts.register_buffer("down", down)
    with pytest.raises(ConfigError, match="prune first"):
        tool().apply(model, tiny_data(model.backbone))


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bundle in, bundle out; the file shrinks by what the parameters say; it predicts."""
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))
    large = tiny_bundle(tmp_path, "topk_moa", num_experts=8, reduction=48)
    options = ("--keep-ratio", "0.5", "--epochs", "1", "--k-schedule", "[[0, 2], [1, 1]]")
    small = change_bundle("prune", large, "seer", "small", *options, "--calibration-clips", "10")
    report = json.loads((small / "report.json").read_text())
    assert (report["experts_before"], report["experts_after"], report["k"]) == (48, 24, 1)
    assert {"score_before", "score_pruned", "score_after"} <= report.keys()
    d, r = 192, 4
    removed = 24 * (2 * d * r + r + d + d)
    assert report["parameters_before"] - report["parameters_after"] == removed
    fewer = report["active_parameters_before"] - report["active_parameters_after"]
    assert fewer == 6 * (2 * d * r + r + d) + 24 * d  # one expert in each of six mixtures; rows
    saved = report["bytes_before"] - report["bytes_after"]
    assert 4 * removed <= saved < 4 * removed + 600  # shapes in the header; the `alive` bytes
    check_prediction(small)

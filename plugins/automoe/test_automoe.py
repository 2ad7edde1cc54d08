"""AutoMoE: supernet, costs and evolution against slow references, and the real command."""

import dataclasses
import functools
import itertools
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import image
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from toolkit import cli, plugins
from toolkit.bundle import load_bundle
from toolkit.data.corpora.synthetic import write_corpus
from toolkit.errors import ConfigError, RunError
from toolkit.experts.bottleneck import Bottleneck
from toolkit.features.batch import Batch
from toolkit.model import AudioClassifier
from toolkit.peft import insertion
from toolkit.registry import PEFT, SEARCHES
from toolkit.task import ONE_CLASS
from toolkit.testing import (
    CLASSES,
    check_method,
    tiny_backbone,
    tiny_batch,
    tiny_mixture,
    tiny_objective,
)

plugins.load([Path(__file__).parent])

from toolkit_plugins.automoe import automoe  # noqa: E402
from toolkit_plugins.automoe.automoe import inherit  # noqa: E402
from toolkit_plugins.automoe.costs import (  # noqa: E402
    ClosedForm,
    Costs,
    Predictor,
    Stopwatch,
    sizes,
    trimmed_mean,
)
from toolkit_plugins.automoe.evolution import Plan, State, evolve  # noqa: E402
from toolkit_plugins.automoe.genome import (  # noqa: E402
    ROLES,
    Gene,
    Genome,
    Space,
    from_config,
    text,
    to_config,
)
from toolkit_plugins.automoe.mixture import (  # noqa: E402
    ElasticMixture,
    FixedMixture,
    SwitchMixture,
)
from toolkit_plugins.automoe.outcome import pareto_front  # noqa: E402
from toolkit_plugins.automoe.search import Fitness  # noqa: E402

ROOT = Path(__file__).parents[2]
GENOME = (Gene("mhsa", (4, 8), 1), Gene("both", (16, 4, 4), 2))
SMALL = Space(3, frozenset({0, 2}), ("none", "mhsa", "both"), 2, (4, 8), (1, 2))


def space(depth: int = 2) -> Space:
    """The default space of a backbone of so many blocks."""
    return Space(
        depth, frozenset(range(depth)), ("none", "mhsa", "ffn", "both"), 4, (4, 8, 16, 32), (1, 2)
    )


def fixed_like(supernet: AudioClassifier, genome: Genome) -> AudioClassifier:
    """The model of one architecture, with what it inherits."""
    model = AudioClassifier(tiny_backbone(), supernet.method.fixed(genome), CLASSES, "all").eval()
    inherit(supernet, model)
    return model


def mixtures(model: AudioClassifier) -> list[SwitchMixture]:
    return [m for m in insertion.inserted(model.backbone) if isinstance(m, SwitchMixture)]


def losses(model: AudioClassifier) -> dict[str, Tensor]:
    """Of a training batch, by the method's own training step."""
    features, labels = tiny_batch(model.backbone)
    return model.train().method.training_losses(
        model.backbone, model, features, tiny_objective(labels)
    )


# Genes


def is_valid(genome: Genome, within: Space) -> bool:
    """Whether a genome obeys a space, gene by gene."""
    for block, gene in enumerate(genome):
        if gene.place == "none":
            if gene != Gene() or (block in within.blocks and "none" not in within.places):
                return False
        elif (
            block not in within.blocks
            or gene.place not in within.places
            or not 1 <= len(gene.ranks) <= within.max_experts
            or not set(gene.ranks) <= set(within.ranks)
            or gene.topk not in {min(k, len(gene.ranks)) for k in within.topk}
        ):
            return False
    return len(genome) == within.depth


@pytest.mark.parametrize("within", [space(4), SMALL])
def test_draws_mutants_and_children_are_of_the_space(within: Space) -> None:
    rng = Random(1)
    for number in range(300):
        first, second = within.random(rng), within.random(rng, number % (within.depth + 1))
        mutant, child = within.mutate(first, 0.3, rng), within.cross(first, second, rng)
        for genome in (first, second, mutant, child):
            assert is_valid(genome, within)
            assert all(gene.experts == len(gene.ranks) for gene in genome)
            assert from_config(to_config(genome)) == genome
            assert from_config(json.loads(text(genome))) == genome
        assert within.mutate(first, 0.0, rng) == first
        assert within.cross(first, first, rng) == first
        for gene, *parents in zip(child, first, second, strict=True):
            assert gene.place in {parent.place for parent in parents}
            for place, rank in enumerate(gene.ranks):
                assert rank in {p.ranks[place] for p in parents if place < p.experts}


def test_draws_are_uniform_over_the_values_of_genes() -> None:
    rng, draws = Random(2), 4000
    genes = [space(1).random(rng)[0] for _ in range(draws)]
    counts = Counter(gene.place for gene in genes)
    sigma = (draws * 0.25 * 0.75) ** 0.5
    assert all(abs(counts[place] - draws / 4) < 4 * sigma for place in ROLES)
    there = [gene for gene in genes if gene.ranks]
    numbers = Counter(gene.experts for gene in there)
    first = Counter(gene.ranks[0] for gene in there)
    sigma = (len(there) * 0.25 * 0.75) ** 0.5
    for value, rank in zip((1, 2, 3, 4), (4, 8, 16, 32), strict=True):
        assert abs(numbers[value] - len(there) / 4) < 4 * sigma
        assert abs(first[rank] - len(there) / 4) < 4 * sigma


def test_all_architectures_and_the_extremes_among_them() -> None:
    everything = list(SMALL.all())
    assert len(set(everything)) == len(everything) == (1 + 2 * (2 * 1 + 4 * 2)) ** 2
    assert all(is_valid(genome, SMALL) for genome in everything)
    one = dataclasses.replace(SMALL, depth=1, blocks=frozenset({0}))
    rng = Random(0)
    assert {one.random(rng) for _ in range(600)} == set(one.all())
    costs = ClosedForm(dim=96, tokens=10, norms=True, final_norm=True)
    by_size = sorted(everything, key=costs.trainable)
    assert (by_size[0], by_size[-1]) == (SMALL.smallest, SMALL.largest)
    assert SMALL.random(Random(0), shrunk=SMALL.depth) == SMALL.smallest


@pytest.mark.parametrize(
    ("genome", "message"),
    [
        ([{"site": "mhsa"}], "'ranks' must list"),
        ([{"site": "mhsa", "ranks": [4, 0]}], "'ranks' must list"),
        ([{"site": "none"}, {"site": "ffm", "ranks": [4]}], "block 1: 'site' must be one of"),
        ([{"site": "ffn", "ranks": [4, 4], "topk": 3}], "from 1 to the number of experts, 2"),
        ([{"site": "ffn", "rank": [4]}], "unknown key 'rank'.*ranks"),
        ([{"site": "none"}], "genes for 1 blocks, the backbone 'ast' has 2"),
    ],
)
def test_refused_genomes(genome: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PEFT.create({"name": "automoe", "genome": genome}).apply(tiny_backbone())


def test_refused_settings() -> None:
    for settings in ({"ranks": []}, {"topk": [0]}, {"places": ["none"]}):
        with pytest.raises(ConfigError, match=f"'{next(iter(settings))}' must"):
            PEFT.create({"name": "automoe", **settings})
    with pytest.raises(ConfigError, match="leave no room"):
        SEARCHES.create({"name": "automoe", "parents": 5, "population": 5})


# The method


def test_contract() -> None:
    check_method("automoe")
    check_method("automoe", {"genome": to_config(GENOME)})


def by_loop(
    x: Tensor, router: Tensor, experts: list[tuple[Tensor, ...]], k: int
) -> tuple[Tensor, Tensor]:
    """Token by token: the k likeliest experts, each weighted by its probability; and the balance
    loss E sum_e f_e P_e of Switch Transformers, equation 4."""
    rows, probabilities = [], []
    counts = torch.zeros(len(router))
    for token in x.flatten(0, 1):
        p = (router @ token).softmax(dim=0)
        probabilities.append(p)
        best = sorted(range(len(p)), key=lambda e: -p[e].item())[:k]
        row = torch.zeros_like(token)
        for e in best:
            down, down_bias, up, up_bias = experts[e]
            row = row + p[e] * (up @ functional.gelu(down @ token + down_bias) + up_bias)
            counts[e] += 1 / (k * x.shape[0] * x.shape[1])
        rows.append(row)
    balance = len(router) * (counts * torch.stack(probabilities).mean(dim=0)).sum()
    return torch.stack(rows).view_as(x), balance


@pytest.mark.parametrize("gene", [*GENOME, Gene("ffn", (4, 32, 8, 16), 4), Gene("ffn", (8,), 1)])
def test_subnet_is_a_loop_over_slices_and_nothing_else_gets_gradients(gene: Gene) -> None:
    supernet = tiny_mixture("automoe").train()
    elastic = supernet.backbone.site(0, "ffn").module.inserted
    assert isinstance(elastic, ElasticMixture)
    elastic.choose((Gene("ffn", gene.ranks, gene.topk),))
    x = torch.randn(2, 7, 96, generator=torch.Generator().manual_seed(3), requires_grad=True)
    e, weight = elastic.experts, elastic.router.linear.weight
    parts = [
        (e.down[i, :r], e.down_bias[i, :r], e.up[i, :, :r], e.up_bias[i])
        for i, r in enumerate(gene.ranks)
    ]
    expected, balance = by_loop(x, weight[: gene.experts], parts, gene.topk)
    found = elastic(x)
    ours = automoe.topk.balance(elastic.router.take_routing())
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(ours, balance)
    tensors = [x, *e.parameters(), weight]
    upstream = torch.randn_like(x)
    gradients = torch.autograd.grad((found * upstream).sum() + ours, tensors)
    references = torch.autograd.grad((expected * upstream).sum() + balance, tensors)
    for one, other in zip(gradients, references, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    outside = torch.ones(e.num_experts, e.width, dtype=torch.bool)
    for i, rank in enumerate(gene.ranks):
        outside[i, :rank] = False
    _, down, down_bias, up, up_bias, router = gradients
    assert (down[outside] == 0).all() and (down_bias[outside] == 0).all()
    assert (up.mT[outside] == 0).all()
    assert (up_bias[gene.experts :] == 0).all() and (router[gene.experts :] == 0).all()


def test_subnet_is_the_standalone_model_that_inherits_from_it() -> None:
    supernet = tiny_mixture("automoe")
    features, _ = tiny_batch(supernet.backbone)
    rng = Random(4)
    for genome in (GENOME, (Gene(), Gene()), space().largest, *(space().random(rng),) * 3):
        model = fixed_like(supernet, genome)
        with torch.no_grad(), supernet.method.subnet(supernet.backbone, genome):
            expected = supernet(features)
        torch.testing.assert_close(model(features), expected)
    largest = fixed_like(supernet, space().largest)
    torch.testing.assert_close(supernet(features), largest(features))


def test_a_training_step_of_the_supernet_is_that_of_one_drawn_subnet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    supernet = tiny_mixture("automoe")
    monkeypatch.setattr(Space, "random", lambda self, rng: GENOME)
    model = fixed_like(supernet, GENOME)
    found, expected = losses(supernet), losses(model)
    assert found.keys() == expected.keys() == {"task", "balance"}
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
        assert value.item() > 0
    sum(found.values()).backward()
    sum(expected.values()).backward()
    gradients = {name: p.grad for name, p in supernet.trainable().items()}
    for name, parameter in model.trainable().items():
        if name.startswith("blocks.") and ".norm." in name:
            stem, last = name.rsplit(".", 1)
            torch.testing.assert_close(gradients[f"{stem}.automoe.{last}"], parameter.grad)
    torch.testing.assert_close(gradients["head.weight"], model.head.weight.grad)
    elastic = supernet.backbone.site(0, "mhsa").module.inserted.experts.down.grad
    fixed = model.backbone.site(0, "mhsa").module.inserted.experts.down.grad
    torch.testing.assert_close(torch.cat([elastic[0, :4], elastic[1, :8]]), fixed)
    unused = supernet.backbone.site(0, "ffn").module.inserted
    assert all(p.grad is None for p in unused.parameters())


def test_training_draws_subnets_by_the_random_state_and_evaluation_uses_the_largest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    supernet, drawn = tiny_mixture("automoe"), []
    choose = automoe.choose
    monkeypatch.setattr(automoe, "choose", lambda b, g: (drawn.append(g), choose(b, g)))
    for _ in range(2):
        torch.manual_seed(5)
        for _ in range(4):
            losses(supernet)
    subnets, after = drawn[::2], drawn[1::2]
    assert subnets[:4] == subnets[4:] and len(set(subnets[:4])) == 4
    assert set(after) == {space().largest}


def test_one_expert_is_the_single_adapter() -> None:
    torch.manual_seed(6)
    mixture, single, x = FixedMixture(12, Gene("ffn", (5,), 1), 3), Bottleneck(1, 12, 5), None
    with torch.no_grad():
        for parameter in mixture.parameters():
            parameter.normal_()
        pack = mixture.pack()
        single.down[0], single.down_bias[0] = pack.down, pack.down_bias
        single.up[0], single.up_bias[0] = pack.up.mT, pack.up_bias[0]
        x = torch.randn(2, 4, 12)
        torch.testing.assert_close(mixture(x), single.mix(x))


def test_statistics_of_mixtures_of_unequal_numbers() -> None:
    model = tiny_mixture("automoe", genome=to_config(GENOME))
    model.method.record(model.backbone, on=True)
    model(tiny_batch(model.backbone)[0])
    found = model.method.statistics(model.backbone)
    assert len(found["load"]) == 3 and sum(found["load"]) == pytest.approx(1)
    assert found["active_mean"] == pytest.approx((1 + 2 + 2) / 3)
    assert 0 < found["gate_entropy"] < 1 and 0 <= found["unused"] < 1


# Costs


@pytest.mark.parametrize("norms", [True, False])
def test_closed_forms_against_counting(norms: bool) -> None:
    rng, backbone = Random(7), tiny_backbone()
    features, _ = tiny_batch(backbone, clips=1)
    tokens = backbone(features).shape[1]
    costs = ClosedForm(backbone.dim, tokens, norms, final_norm=True)
    frozen = flops(backbone, features)
    for genome in ((Gene(), Gene()), GENOME, space().random(rng), space().random(rng)):
        model = tiny_mixture("automoe", genome=to_config(genome), norms=norms)
        assert costs.trainable(genome) == model.count().method
        assert costs.flops(genome) == flops(model.backbone, features) - frozen
        largest = tuple(
            Gene(g.place, tuple(sorted(g.ranks)[-g.topk :]) if g.topk else (), g.topk)
            for g in genome
        )
        routers = sum(len(m.router.linear.weight) for m in mixtures(model)) * backbone.dim
        used = sum(len(g.roles) * g.topk for g in genome) * backbone.dim
        assert costs.active(genome) == costs.trainable(largest) - used + routers


def flops(model: torch.nn.Module, features: Tensor) -> int:
    """Multiplications and additions that torch counts in a forward pass."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(features)
    return counter.get_total_flops()


def test_latency_is_measured_trimmed_and_predicted() -> None:
    assert trimmed_mean([100.0, *[2.0, 4.0] * 4, -50.0]) == 3
    rng, within = Random(8), space(6)
    weights = np.array([5.0, 0.5, 0.25, 2.0])
    predictor = Predictor.sample(within, 40, 0, lambda g: float(weights @ sizes(g)))
    assert predictor.weights == pytest.approx(weights.tolist()) and predictor.samples == 40
    assert predictor.error_ms < 1e-9
    genome = within.random(rng)
    assert predictor(genome) == pytest.approx(weights @ sizes(genome))
    noise = Random(9)
    noisy = Predictor.sample(within, 200, 0, lambda g: weights @ sizes(g) + noise.gauss(0, 1))
    assert noisy.error_ms == pytest.approx((2 / np.pi) ** 0.5, rel=0.25)  # E|N(0, 1)|
    backbone = tiny_backbone()
    method = PEFT.create("automoe")
    stopwatch = Stopwatch(backbone, method, tiny_batch(backbone, clips=1)[0], passes=2)
    f, t = backbone.grid
    assert stopwatch.tokens == 2 + f * t and stopwatch.measure(GENOME) > 0
    assert not list(insertion.inserted(backbone))


def test_a_bound_on_latency_holds_for_what_was_measured() -> None:
    clock = Random(10)
    closed = ClosedForm(96, 17, True, True)
    costs = Costs(closed, {"latency_ms": 5, "trainable": 1e6}, lambda g: clock.uniform(0, 10))
    rng = Random(11)
    for genome in (space().random(rng) for _ in range(50)):
        assert costs.admits(genome) == (costs.of(genome)["latency_ms"] <= 5)
    untimed = Costs(closed, {"trainable": 1e6}, lambda g: pytest.fail("the clock was asked"))
    assert untimed.admits(GENOME) and "latency_ms" not in untimed.of(GENOME)
    with pytest.raises(RunError, match="the smallest has 192; raise the budget"):
        Costs(closed, {"trainable": 100}, lambda g: 0.0).refuse_less_than(space().smallest)


# Evolution


def searched(
    within: Space,
    admits: Callable[[Genome], bool],
    loss: Callable[[Genome], float],
    state: State | None = None,
    keep: Callable[[State], None] = lambda state: None,
    **plan: Any,
) -> State:
    """A search by default of 12 generations of 30 with 6 parents."""
    values = {"iterations": 12, "population": 30, "parents": 6, "mutation_rate": 0.3}
    full = Plan(**{**values, "max_tries": 10_000, "seed": 0, **plan})
    found = State() if state is None else state
    return evolve(within, full, admits, lambda g: {"valid_loss": loss(g)}, found, keep)


def loss_of(genome: Genome) -> float:
    """A sum of random numbers, one for each value of each gene."""
    return sum(
        number(block, gene.place) + number(block, gene.topk)
        + sum(number(block, *expert) - 0.5 for expert in enumerate(gene.ranks))
        for block, gene in enumerate(genome)
    )  # fmt: skip


@functools.cache
def number(*key: object) -> float:
    """A random number that depends on the key alone."""
    return Random(str(key)).random()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_evolution_reaches_the_exhaustive_optimum_and_keeps_to_the_budget(seed: int) -> None:
    within = Space(3, frozenset(range(3)), ("none", "mhsa", "ffn"), 2, (4, 8), (1, 2))
    costs = ClosedForm(96, 17, True, True)

    def admits(genome: Genome) -> bool:
        return costs.trainable(genome) <= 6000

    everything = list(within.all())
    best = min(filter(admits, everything), key=loss_of)
    assert loss_of(best) > min(map(loss_of, everything))  # the budget makes a difference
    state = searched(within, admits, loss_of, seed=seed)
    assert state.best == best and len(state.found) < len(everything) / 20
    assert len(state.generations) == 13
    for before, members in itertools.pairwise(state.generations):
        assert members[:6] == state.ranked(before)[:6]
    for members in state.generations:
        assert len(members) == 30 and all(map(admits, members))
    losses = [min(map(loss_of, members)) for members in state.generations]
    assert losses == sorted(losses, reverse=True) and losses[-1] == loss_of(best)


def test_a_tight_budget_is_met_where_uniform_draws_never_are() -> None:
    within, costs = space(12), ClosedForm(768, 602, True, True)

    def admits(genome: Genome) -> bool:
        return costs.trainable(genome) <= 60_000

    rng = Random(12)
    assert not any(admits(within.random(rng)) for _ in range(3000))
    state = searched(within, admits, loss_of, iterations=2, max_tries=3000)
    assert all(map(admits, state.found)) and len(state.found) > 40


def test_what_cannot_be_met_is_given_up_after_max_tries() -> None:
    asked = []
    with pytest.raises(RunError, match="in 50 tries: raise the budget"):
        searched(space(), lambda g: bool(asked.append(g)), loss_of, max_tries=50)
    assert len(asked) == 50


def test_the_same_seed_gives_the_same_trace_also_when_resumed() -> None:
    snapshots: list[str] = []

    def keep(state: State) -> None:
        snapshots.append(json.dumps(state.to_json()))

    def admits(genome: Genome) -> bool:
        return sum(gene.experts for gene in genome) <= 6

    whole = searched(space(4), admits, loss_of, keep=keep, iterations=5)
    for snapshot in snapshots[:-1]:
        evaluated = []

        def loss(genome: Genome, evaluated: list[Genome] = evaluated) -> float:
            evaluated.append(genome)
            return loss_of(genome)

        there = State.from_json(json.loads(snapshot))
        old = set(there.found)
        resumed = searched(space(4), admits, loss, there, iterations=5)
        assert resumed == whole and not old & set(evaluated)
    assert searched(space(4), admits, loss_of, iterations=5, seed=1) != whole


def test_pareto_front_by_comparing_all_pairs() -> None:
    rng, within = Random(13), space(3)
    found = {
        within.random(rng): {"valid_loss": rng.randint(0, 40), "a": rng.randint(0, 40), "b": 1.0}
        for _ in range(60)
    }

    def beats(one: dict[str, float], other: dict[str, float]) -> bool:
        return all(one[k] <= other[k] for k in one) and any(one[k] < other[k] for k in one)

    expected = [g for g, v in found.items() if not any(beats(w, v) for w in found.values())]
    assert pareto_front(State(found), ["a", "b"]) == expected
    assert 1 < len(expected) < len(found)


@pytest.mark.parametrize("windows", [1, 3])
def test_fitness_counts_every_clip_once(windows: int) -> None:
    """However many windows it has: the loss and the prediction are means over them."""
    method = automoe.AutoMoE(max_experts=2, ranks=[4])
    model = AudioClassifier(tiny_backbone(), method, CLASSES, "all").eval()
    features, labels = tiny_batch(model.backbone, windows + 1)
    labels[:windows] = labels[0]
    batch = Batch(["long"] * windows + ["short"], features, labels)
    fold: Any = SimpleNamespace(
        task=ONE_CLASS,
        valid=pd.DataFrame({"id": ["long", "short"]}),
        experiment=SimpleNamespace(device="cpu"),
        evaluation_loader=lambda clips: [batch],
    )
    genome = method.space(model.backbone).largest
    found = Fitness(model, fold, None)(genome)
    with torch.no_grad():
        logits = model.logits(features)
    losses = functional.cross_entropy(logits, labels, reduction="none")
    expected = (losses[:windows].mean() + losses[windows]) / 2
    assert found["valid_loss"] == pytest.approx(expected.item(), rel=1e-5)
    means = torch.stack([logits.softmax(1)[:windows].mean(0), logits.softmax(1)[windows]])
    right = (means.argmax(1) == labels[[0, windows]]).float().mean().item()
    assert found["valid_score"] == pytest.approx(right)


# The command

BUDGET = {"trainable": 9000, "latency_ms": 10_000}
DIES = """
import os, signal, sys
from toolkit import cli, plugins
plugins.load()
from toolkit_plugins.automoe.search import Journal
write = Journal.write
def dying(self):
    write(self)
    if len(self.state.generations) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
Journal.write = dying
cli.main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a small corpus; features are cached there too."""
    folder = tmp_path_factory.mktemp("automoe")
    write_corpus(folder / "corpus", clips_per_class=5, seconds=0.6, progress=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOOLKIT_CACHE", str(folder / "cache"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield folder


def command(place: Path, output: Path, *more: str) -> list[str]:
    """The words after `toolkit` of a tiny search."""
    budget = ",".join(f"{name}={bound}" for name, bound in BUDGET.items())
    return [
        "search", "--method", "automoe", "--budget", budget, "-o", str(output),
        str(ROOT / "plugins" / "automoe" / "automoe.yaml"),
        "--iterations", "2", "--population", "5", "--parents", "2", "--fitness-clips", "6",
        "--latency-samples", "8", "--latency-passes", "2", "--fold", "2",
        "--data_folder", str(place / "corpus"), "--backbone", "ast_tiny", "--max_length", "64",
        "--epochs", "1", "--few_shot", "1", "--noprogressbar", "true", "--device", "cpu",
        "--peft.layers", "first 2", "--peft.max_experts", "2", "--peft.ranks", "[4, 8]",
        "--augment.0.freq_mask", "3", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def search(place: Path) -> Path:
    """The folder of a finished search that was killed after its second generation."""
    folder = place / "killed"
    words = [sys.executable, "-c", DIES, *command(place, folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    killed = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (folder / "report.json").exists()
    cli.main(command(place, folder))
    return folder


def test_a_killed_search_ends_as_if_it_had_not_been(place: Path, search: Path) -> None:
    cli.main(command(place, place / "whole"))
    columns = ["genome", "generation", "trainable", "active", "flops"]
    found, expected = (
        pd.read_csv(folder / "candidates.csv") for folder in (search, place / "whole")
    )
    pd.testing.assert_frame_equal(found[columns], expected[columns])
    np.testing.assert_allclose(found["valid_loss"], expected["valid_loss"], rtol=1e-5)


def test_everything_that_was_found_is_within_the_budget(search: Path) -> None:
    table = pd.read_csv(search / "candidates.csv")
    front = pd.read_csv(search / "pareto.csv")
    report = json.loads((search / "report.json").read_text())
    for name, bound in BUDGET.items():
        assert (table[name] <= bound).all()
    assert report["evaluated"] == len(table) >= 5 and report["generations"] == 3
    assert report["valid_loss"] == table["valid_loss"].min() == front["valid_loss"].min()
    assert len(front) == report["front"] == table["on_front"].sum()
    assert (front["measured_latency_ms"] > 0).all() and report["measured_latency_ms"] > 0
    assert report["predictor_error_ms"] >= 0 and report["predictor_error_on_front_ms"] >= 0
    assert 2 not in (*report["train_folds"], report["valid_fold"])
    assert image.imread(search / "pareto.png").std() > 0


def test_the_winner_is_trained_by_the_recipe(place: Path, search: Path) -> None:
    report = json.loads((search / "report.json").read_text())
    text = (search / "winner.yaml").read_text()
    assert "train.py" in text and "--augment.0.freq_mask 3" in text
    output = place / "winner"
    words = [ROOT / "recipes" / "ESC50" / "train.py", search / "winner.yaml", "--debug"]
    words += ["--output_folder", output, "--batch_size", "5", "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((Path(f"{output}-debug") / "result.json").read_text())
    assert result["parameters"]["method"] == report["trainable"]


def test_the_winners_bundle_has_its_genome(search: Path) -> None:
    report = json.loads((search / "report.json").read_text())
    bundle = load_bundle(search / "bundle")
    assert to_config(from_config(bundle.model.method.genome)) == report["winner"]
    assert bundle.info.origin.test_fold == 2
    assert bundle.info.origin.valid_score == report["valid_score"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--mutation-rate", "0.5"], "holds another search.*mutation_rate: 0.3 there, 0.5 now"),
        (["--peft.genome", '[{"site": "none"}]'], "trains one genome"),
        (["--peft", "lora"], "trains lora|unknown setting 'peft.max_experts'"),
        (["--iteration", "3"], "unknown key 'iteration'.*settings of the search: .*iterations"),
        (["--budget", "latency=3"], "cannot be bounded.*latency_ms"),
        (["--budget", "flops=-1"], "give a number above 0"),
    ],
)
def test_refusals(
    place: Path, search: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(command(place, search, *more))
    assert stopped.value.code == 2
    error = " ".join(capsys.readouterr().err.split())
    assert re.search(message, error), error

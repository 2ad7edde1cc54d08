"""Evolutionary search under constraints; it knows genomes, and nothing of models.

Each generation keeps the best of the one before as parents and adds their mutants and crossovers
(AutoMoE, arXiv:2210.07535, after HAT, arXiv:2005.14187). Random numbers of a generation depend on
the seed and its number alone, so that a search that was interrupted goes on as if it had not been.
"""

import dataclasses
from collections.abc import Callable
from random import Random
from typing import Any

from toolkit.data.sampling import derive_seed
from toolkit.errors import RunError

from .genome import Genome, Space, from_config, to_config

NOVEL_TRIES = 20
"""Draws after which a child may be one that was evaluated before."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """How to search.

    Attributes:
        iterations: generations after the first, random one.
        population: members of a generation.
        parents: of these, kept from the one before.
        mutation_rate: probability that a value of a gene is drawn anew in a mutant.
        max_tries: draws for one member before the search is given up.
        seed: of all that is random.
    """

    iterations: int
    population: int
    parents: int
    mutation_rate: float
    max_tries: int
    seed: int


@dataclasses.dataclass
class State:
    """What a search has found so far.

    Attributes:
        found: what is known of each evaluated genome; `valid_loss` is the lower the better.
        generations: the members of each generation.
    """

    found: dict[Genome, dict[str, Any]] = dataclasses.field(default_factory=dict)
    generations: list[list[Genome]] = dataclasses.field(default_factory=list)

    def ranked(self, genomes: list[Genome]) -> list[Genome]:
        """The best first; of equals, the one that was evaluated first."""
        return sorted(dict.fromkeys(genomes), key=lambda genome: self.found[genome]["valid_loss"])

    @property
    def best(self) -> Genome:
        """The best of all that were evaluated."""
        return self.ranked(list(self.found))[0]

    def to_json(self) -> dict[str, Any]:
        """As plain values; generations refer to the evaluated by number."""
        numbers = {genome: number for number, genome in enumerate(self.found)}
        return {
            "evaluated": [{"genome": to_config(g), **v} for g, v in self.found.items()],
            "generations": [
                [numbers[genome] for genome in members] for members in self.generations
            ],
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "State":
        """Read what `to_json` writes."""
        entries = [dict(entry) for entry in values["evaluated"]]
        genomes = [from_config(entry.pop("genome")) for entry in entries]
        generations = [[genomes[number] for number in row] for row in values["generations"]]
        return cls(dict(zip(genomes, entries, strict=True)), generations)


def evolve(
    space: Space,
    plan: Plan,
    admits: Callable[[Genome], bool],
    evaluate: Callable[[Genome], dict[str, Any]],
    state: State,
    keep: Callable[[State], None],
) -> State:
    """Search, or go on with a search.

    Args:
        space: where.
        plan: how.
        admits: whether an architecture satisfies the constraints; no other is ever evaluated.
        evaluate: what there is to know of one, with its `valid_loss`; called once for each.
        state: where to go on; changed.
        keep: called with the state after every generation.

    Raises:
        RunError: no architecture that satisfies the constraints was drawn in `max_tries` tries.
    """
    while len(state.generations) <= plan.iterations:
        number = len(state.generations)
        members = _next_generation(space, plan, admits, state, number)
        for genome in members:
            if genome not in state.found:
                state.found[genome] = evaluate(genome)
        state.generations.append(members)
        keep(state)
    return state


def _next_generation(
    space: Space, plan: Plan, admits: Callable[[Genome], bool], state: State, number: int
) -> list[Genome]:
    rng = Random(derive_seed(plan.seed, number))
    seen = set(state.found)

    def drawn(propose: Callable[[int], Genome]) -> Genome:
        genome = _admitted(propose, admits, seen, plan.max_tries)
        seen.add(genome)
        return genome

    if number == 0:
        # A tight budget leaves uniform draws no chance: each refusal makes the next one smaller.
        shrinking = space.depth + 1
        return [
            drawn(lambda tried: space.random(rng, tried % shrinking))
            for _ in range(plan.population)
        ]
    parents = state.ranked(state.generations[-1])[: plan.parents]
    children = plan.population - len(parents)
    mutants = [
        drawn(lambda _: space.mutate(rng.choice(parents), plan.mutation_rate, rng))
        for _ in range(children // 2)
    ]
    crossed = [
        drawn(lambda _: space.cross(rng.choice(parents), rng.choice(parents), rng))
        for _ in range(children - children // 2)
    ]
    return [*parents, *mutants, *crossed]


def _admitted(
    propose: Callable[[int], Genome],
    admits: Callable[[Genome], bool],
    seen: set[Genome],
    max_tries: int,
) -> Genome:
    """The first proposal that satisfies the constraints, a new one if that is soon found.

    `propose` is given the number of proposals so far.
    """
    known: Genome | None = None
    for tried in range(max_tries):
        if known is not None and tried >= NOVEL_TRIES:
            break
        genome = propose(tried)
        if not admits(genome):
            continue
        if genome not in seen:
            return genome
        known = genome
    if known is None:
        raise RunError(
            f"no architecture within the budget was drawn in {max_tries} tries: raise the budget, "
            "or allow smaller ones with `--peft.ranks` and `--peft.places`"
        )
    return known

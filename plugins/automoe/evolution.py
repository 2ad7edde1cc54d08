"""Evolutionary search under constraints; it knows genomes but no models.

Each generation keeps the best of the previous one as parents and adds their mutants and crossovers
(AutoMoE, arXiv:2210.07535, after HAT, arXiv:2005.14187). The random numbers of a generation depend
only on the seed and its number, so an interrupted search continues as if it had never stopped.
"""

import dataclasses
from collections.abc import Callable
from random import Random
from typing import Any

from toolkit.data.sampling import derive_seed
from toolkit.errors import RunError

from .genome import Genome, Space, from_config, to_config

NOVEL_TRIES = 20
"""Number of draws after which a child may be one that was evaluated before."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """How to search.

    Attributes:
        iterations: number of generations after the first, random one.
        population: members per generation.
        parents: number of members kept from the previous generation.
        mutation_rate: probability that a value of a gene is drawn again in a mutant.
        max_tries: most draws for one member before the search gives up.
        seed: seed of everything random.
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
        found: what is known of each evaluated genome; lower `valid_loss` is better.
        generations: the members of each generation.
    """

    found: dict[Genome, dict[str, Any]] = dataclasses.field(default_factory=dict)
    generations: list[list[Genome]] = dataclasses.field(default_factory=list)

    def ranked(self, genomes: list[Genome]) -> list[Genome]:
        """Genomes from best to worst; of equals, the first evaluated comes first."""
        return sorted(dict.fromkeys(genomes), key=lambda genome: self.found[genome]["valid_loss"])

    @property
    def best(self) -> Genome:
        """The best of all evaluated genomes."""
        return self.ranked(list(self.found))[0]

    def to_json(self) -> dict[str, Any]:
        """The state as plain values; generations refer to genomes by number."""
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
    """Search, or continue a search.

    Args:
        space: the architectures to choose from.
        plan: how to search.
        admits: whether an architecture satisfies the constraints; no other is ever evaluated.
        evaluate: evaluates an architecture, with its `valid_loss`; called once for each.
        state: the state to continue from; changed in place.
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
        # Under a tight budget uniform draws rarely succeed: each refusal makes the next smaller.
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
    """The first proposal that satisfies the constraints, preferably one not yet seen.

    `propose` gets the number of proposals so far.
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

"""Architectures as genes: what an adapted block holds, and how genes are drawn and crossed.

The gene of a block says which sublayers have a mixture of adapters, how wide each of its experts is
(which also gives their number), and how many of them a token uses. Draws use a `random.Random`.
"""

import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import Any, Literal, get_args

from toolkit.errors import ConfigError, did_you_mean

Place = Literal["none", "mhsa", "ffn", "both"]
PLACES: tuple[Place, ...] = get_args(Place)
ROLES: dict[Place, tuple[str, ...]] = {
    "none": (),
    "mhsa": ("mhsa",),
    "ffn": ("ffn",),
    "both": ("mhsa", "ffn"),
}


@dataclasses.dataclass(frozen=True)
class Gene:
    """What one block holds; without a place the other attributes are empty.

    Attributes:
        place: the sublayers that get a mixture, each with its own weights.
        ranks: inner width of each expert.
        topk: experts that a token uses, from 1 to their number.
    """

    place: Place = "none"
    ranks: tuple[int, ...] = ()
    topk: int = 0

    @property
    def experts(self) -> int:
        """Experts of a mixture, n."""
        return len(self.ranks)

    @property
    def roles(self) -> tuple[str, ...]:
        """The sublayers that get a mixture."""
        return ROLES[self.place]

    def to_config(self) -> dict[str, Any]:
        """The gene in a configuration: `{site: mhsa, ranks: [8, 16], topk: 1}`."""
        if self.place == "none":
            return {"site": "none"}
        return {"site": self.place, "ranks": list(self.ranks), "topk": self.topk}

    @classmethod
    def from_config(cls, values: Mapping[str, Any], block: int) -> "Gene":
        """Read what `to_config` writes.

        Args:
            values: the mapping.
            block: number of the block, for messages.

        Raises:
            ConfigError: the values are not a gene.
        """
        where = f"genome, block {block}"
        for key in values:
            if key not in ("site", "ranks", "topk"):
                known = ("site", "ranks", "topk")
                raise ConfigError(f"{where}: unknown key {key!r}{did_you_mean(key, known)}")
        place = values.get("site")
        if place not in PLACES:
            raise ConfigError(f"{where}: 'site' must be one of {', '.join(PLACES)}, not {place!r}")
        if place == "none":
            return cls()
        ranks, topk = list(values.get("ranks") or []), values.get("topk", 1)
        if not ranks or not all(_is_count(rank) for rank in ranks):
            raise ConfigError(
                f"{where}: 'ranks' must list the inner width of each expert, e.g. [8, 16], "
                f"not {values.get('ranks')!r}"
            )
        if not _is_count(topk) or topk > len(ranks):
            raise ConfigError(
                f"{where}: 'topk' must be from 1 to the number of experts, {len(ranks)}, "
                f"not {topk!r}"
            )
        return cls(place, tuple(map(int, ranks)), int(topk))


Genome = tuple[Gene, ...]
"""One gene per block of a backbone."""


def to_config(genome: Genome) -> list[dict[str, Any]]:
    """A genome as plain values."""
    return [gene.to_config() for gene in genome]


def from_config(values: Sequence[Mapping[str, Any]]) -> Genome:
    """Read what `to_config` writes.

    Raises:
        ConfigError: one of the values is not a gene.
    """
    return tuple(Gene.from_config(gene, block) for block, gene in enumerate(values))


def text(genome: Genome) -> str:
    """A genome as one line for `--peft.genome`."""
    return json.dumps(to_config(genome))


@dataclasses.dataclass(frozen=True)
class Space:
    """The architectures to choose from.

    Attributes:
        depth: number of blocks of the backbone.
        blocks: numbers of the blocks that may hold mixtures.
        places, ranks, topk: possible values of the genes; a `topk` above the number of experts
            means all of them.
        max_experts: M.
    """

    depth: int
    blocks: frozenset[int]
    places: tuple[Place, ...]
    max_experts: int
    ranks: tuple[int, ...]
    topk: tuple[int, ...]

    @property
    def largest(self) -> Genome:
        """The architecture with all weights; if no place is `both`, the first of the others."""
        place = max(self.places, key=lambda place: len(ROLES[place]))
        ranks = (max(self.ranks),) * self.max_experts
        return self._everywhere(Gene(place, ranks, self._topks(self.max_experts)[-1]))

    @property
    def smallest(self) -> Genome:
        """The architecture with the fewest parameters."""
        place = min(self.places, key=lambda place: len(ROLES[place]))
        return self._everywhere(
            Gene() if place == "none" else Gene(place, (min(self.ranks),), self._topks(1)[0])
        )

    def random(self, rng: Random, shrunk: int = 0) -> Genome:
        """Draw every gene uniformly; `shrunk` random blocks get the smallest gene instead."""
        small = rng.sample(range(self.depth), shrunk)
        genome = tuple(
            self._random_gene(rng.choice(self.places), rng) if block in self.blocks else Gene()
            for block in range(self.depth)
        )
        return tuple(
            least if block in small else gene
            for block, (gene, least) in enumerate(zip(genome, self.smallest, strict=True))
        )

    def mutate(self, genome: Genome, rate: float, rng: Random) -> Genome:
        """Draw each value of each gene again with probability `rate`."""
        return tuple(
            self._mutate_gene(gene, rate, rng) if block in self.blocks else Gene()
            for block, gene in enumerate(genome)
        )

    def cross(self, first: Genome, second: Genome, rng: Random) -> Genome:
        """Take each value of each gene from either parent with equal probability."""
        return tuple(self._cross_genes(pair, rng) for pair in zip(first, second, strict=True))

    def all(self) -> Iterator[Genome]:
        """All architectures."""
        options = [
            list(self._all_genes()) if block in self.blocks else [Gene()]
            for block in range(self.depth)
        ]
        return itertools.product(*options)

    def _everywhere(self, gene: Gene) -> Genome:
        return tuple(gene if block in self.blocks else Gene() for block in range(self.depth))

    def _topks(self, experts: int) -> list[int]:
        """The possible numbers of experts per token in a mixture of `experts`."""
        return sorted({min(topk, experts) for topk in self.topk})

    def _random_gene(self, place: Place, rng: Random) -> Gene:
        if place == "none":
            return Gene()
        experts = rng.randint(1, self.max_experts)
        ranks = tuple(rng.choice(self.ranks) for _ in range(experts))
        return Gene(place, ranks, rng.choice(self._topks(experts)))

    def _mutate_gene(self, gene: Gene, rate: float, rng: Random) -> Gene:
        def changes() -> bool:
            return rng.random() < rate

        place = rng.choice(self.places) if changes() else gene.place
        if place == "none":
            return Gene()
        if gene.place == "none":
            return self._random_gene(place, rng)
        experts = rng.randint(1, self.max_experts) if changes() else gene.experts
        ranks = tuple(
            rng.choice(self.ranks) if i >= gene.experts or changes() else gene.ranks[i]
            for i in range(experts)
        )
        options = self._topks(experts)
        new = gene.topk not in options or changes()
        return Gene(place, ranks, rng.choice(options) if new else gene.topk)

    def _cross_genes(self, pair: tuple[Gene, Gene], rng: Random) -> Gene:
        place = rng.choice(pair).place
        if place == "none":
            return Gene()
        parents = [gene for gene in pair if gene.place != "none"]
        experts = rng.choice(parents).experts
        ranks = tuple(
            rng.choice([gene.ranks[i] for gene in parents if i < gene.experts])
            for i in range(experts)
        )
        options = self._topks(experts)
        topk = rng.choice(parents).topk
        return Gene(place, ranks, topk if topk in options else options[-1])

    def _all_genes(self) -> Iterator[Gene]:
        for place in self.places:
            if place == "none":
                yield Gene()
                continue
            for experts in range(1, self.max_experts + 1):
                for ranks in itertools.product(self.ranks, repeat=experts):
                    for topk in self._topks(experts):
                        yield Gene(place, ranks, topk)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1

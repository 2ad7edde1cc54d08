"""What clips do in a model with adaptive routers, for the simulator and for the slot programme."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor

from toolkit.model import AudioClassifier
from toolkit.peft.mixture import Mixture, mixtures

from .cache import by_count
from .gating import adaptive_routers, strongest, tails
from .predictor import Predictor, at_entrance
from .simulator import Clip, Visit


class Trace:
    """Which experts tokens choose, clip by clip, and which were guessed for them.

    Args:
        model: a model with adaptive routers.
        sites: the sites of its mixtures, in the order in which they run.
        count: K.
        look_ahead: number of later mixtures for which a mixture's tokens guess.

    Attributes:
        experts: E of each mixture by site.
        entering: the mean token of each clip in front of the first block, [1, d].
    """

    def __init__(
        self, model: AudioClassifier, sites: list[str], count: int, look_ahead: int = 1
    ) -> None:
        self.count, found = count, mixtures(model.backbone)
        self.experts = {site: found[site].num_experts for site in sites}
        self.entering: list[Tensor] = []
        self._backbone, self._routers = model.backbone, adaptive_routers(model)
        self._following = {
            site: sites[place + 1 : place + 1 + look_ahead] for place, site in enumerate(sites)
        }
        self._chosen: dict[str, list[tuple[Tensor, Tensor]]] = {site: [] for site in sites}
        self._guessed: dict[str, list[list[Tensor]]] = {site: [] for site in sites}

    @contextmanager
    def at_entrance(self) -> Iterator[None]:
        """While this lasts, clips that enter the first block are noted."""
        handle = at_entrance(self._backbone, self.entering.append)
        try:
            yield
        finally:
            handle.remove()

    def see(self, site: str, mixture: Mixture, x: Tensor) -> None:
        """Note one clip [1, T, d] at a mixture."""
        gates = self._routers[site].router(x, mixture.mask)
        self._chosen[site].append(strongest(gates[0], self.count))
        guessed = [self._routers[following].guess(x) for following in self._following[site]]
        self._guessed[site].append(guessed)

    def weights(self, site: str) -> Tensor:
        """The weights of the K strongest experts of all tokens [N, K]."""
        return torch.cat([weights for weights, _ in self._chosen[site]])

    def active_at_top_k(self) -> float:
        """Mean number of experts per token before any is skipped."""
        weights = torch.cat([self.weights(site) for site in self._chosen])
        return (weights > 0).sum(dim=-1).double().mean().item()

    def accuracies(self, thresholds: dict[str, float]) -> dict[str, float]:
        """Share of the experts of tokens that were guessed one mixture before; 0 at the first."""
        found = dict.fromkeys(self._chosen, 0.0)
        for before, site in itertools.pairwise(self._chosen):
            right = used = 0
            guesses = self._guessed[before]
            for (weights, experts), guess in zip(self._chosen[site], guesses, strict=True):
                keep = _kept(weights, thresholds[site])
                known = (experts[:, :, None] == guess[0][:, None]).any(dim=-1)
                right, used = right + int((known & keep).sum()), used + int(keep.sum())
            found[site] = right / used
        return found

    def first_shares(self, thresholds: dict[str, float]) -> Tensor:
        """The share of each clip's tokens that use each expert of the first mixture, [N, E]."""
        site, size = next(iter(self.experts.items()))
        rows = [
            torch.bincount(experts[_kept(weights, thresholds[site])], minlength=size) / len(weights)
            for weights, experts in self._chosen[site]
        ]
        return torch.stack(rows)

    def clips(
        self, thresholds: dict[str, float], predictor: Predictor | None, prefetch: bool
    ) -> list[Clip]:
        """The trace in the form that the simulator reads.

        Args:
            thresholds: by site.
            predictor: guesses for the first mixture.
            prefetch: whether routers guess for the next mixtures.
        """
        clips = []
        for number, tokens in enumerate(self.entering):
            visits = []
            for site, chosen in self._chosen.items():
                weights, experts = chosen[number]
                needed = experts[_kept(weights, thresholds[site])].unique().tolist()
                guessed = self._guessed[site][number] if prefetch else []
                visits.append(Visit(needed, [by_count(guess) for guess in guessed]))
            clips.append(Clip([] if predictor is None else predictor.ranking(tokens), visits))
        return clips


def _kept(weights: Tensor, threshold: float) -> Tensor:
    """Which of the K strongest experts [N, K] a token uses."""
    keep = torch.ones_like(weights, dtype=torch.bool)
    keep[:, 1:] = tails(weights) >= threshold
    return keep & (weights > 0)


class Uses(NamedTuple):
    """How clips use a mixture, as far as the paper's formula asks.

    Attributes:
        shares: of the clips that use 0, 1, ..., E experts.
        precision: probability that an expert guessed for the mixture is needed: of as many of the
            likeliest as are needed.
    """

    shares: list[float]
    precision: float

    @classmethod
    def of(cls, run: list[Clip], number: int, experts: int) -> "Uses":
        """How the clips of a trace use mixture `number`, which has so many experts."""
        needs = [clip.visits[number].needed for clip in run]
        counts = torch.bincount(torch.tensor([len(need) for need in needs]), minlength=experts + 1)
        right = [
            len(set(need) & set(clip.guessed(number)[: len(need)])) / max(len(need), 1)
            for clip, need in zip(run, needs, strict=True)
        ]
        return cls((counts / len(run)).tolist(), fmean(right))

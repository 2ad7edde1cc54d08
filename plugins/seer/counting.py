"""Heavy hitters: count how much each expert of a mixture is used, and choose the most used."""

from typing import Literal

import torch
from torch import Tensor

from toolkit.peft.mixture import Mixture


class Count:
    """Counts of one mixture.

    Args:
        kind: `hard` counts tokens that have the expert among their k; `soft` sums its shares.
        topk: k.

    Attributes:
        scores: [E], float64; sums to k times the tokens (hard) or to the tokens (soft).
    """

    def __init__(self, kind: Literal["hard", "soft"], topk: int) -> None:
        self.kind, self.topk = kind, topk
        self.scores = torch.zeros((), dtype=torch.float64)

    def add(self, mixture: Mixture, x: Tensor) -> None:
        """Count tokens [B, T, d]."""
        shares = mixture.shares(x).flatten(0, 1)
        if self.kind == "soft":
            self.scores = self.scores + shares.sum(dim=0, dtype=torch.float64)
            return
        top = shares.topk(min(self.topk, shares.shape[-1]), dim=-1).indices
        hits = torch.bincount(top.flatten(), minlength=shares.shape[-1])
        self.scores = self.scores + hits.double()


def chosen_most(
    scores: dict[str, Tensor], scope: Literal["layer", "global"], keep_ratio: float, least: int
) -> dict[str, list[int]]:
    """Choose the experts to keep: those with the largest scores.

    Of equal scores, the first in the order of mixtures and experts wins.

    Args:
        scores: of each mixture's experts, [E].
        scope: compare experts within each mixture (`layer`) or over all mixtures (`global`).
        keep_ratio: share to keep, of each mixture or of all together, rounded.
        least: experts that every mixture keeps (all, if it has no more).

    Returns:
        Numbers of the kept experts of each mixture, in rising order.
    """
    ranked = {
        site: s.sort(descending=True, stable=True).indices.tolist() for site, s in scores.items()
    }
    if scope == "layer":
        sizes = {s: max(round(keep_ratio * len(r)), min(least, len(r))) for s, r in ranked.items()}
        return {site: sorted(r[: sizes[site]]) for site, r in ranked.items()}
    kept = {site: r[:least] for site, r in ranked.items()}
    rest = [(site, e) for site, r in ranked.items() for e in r[least:]]
    rest.sort(key=lambda pair: -float(scores[pair[0]][pair[1]]))
    total = round(keep_ratio * sum(map(len, ranked.values())))
    for site, expert in rest[: max(total - sum(map(len, kept.values())), 0)]:
        kept[site].append(expert)
    return {site: sorted(numbers) for site, numbers in kept.items()}

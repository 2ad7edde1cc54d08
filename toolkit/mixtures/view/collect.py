"""Collect what a trained mixture does with one file and what its training recorded.

Shapes: T tokens, E experts, S slots per expert.
"""

import dataclasses
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from toolkit.bundle import Bundle
from toolkit.errors import ConfigError
from toolkit.mixtures.observe import watched
from toolkit.peft.mixture import Mixture
from toolkit.results import FOLD_FILE, EpochRecord, read_fold


@dataclasses.dataclass(frozen=True)
class LayerView:
    """One mixture on one window of a file.

    Attributes:
        site: where it is, e.g. `blocks.3.mhsa`.
        weights: [T, E, S] by name; as `Mixture.token_weights` gives them.
        special: number of tokens in front of the patches.
        grid: patches (f, t) behind them, frequency-major.
    """

    site: str
    weights: dict[str, Tensor]
    special: int
    grid: tuple[int, int]

    @property
    def main(self) -> str:
        """Name of the weights with which experts make up a token's output."""
        return "combine" if "combine" in self.weights else "gate"

    def load(self) -> Tensor:
        """[E], each expert's share of the output of all tokens; sums to 1."""
        total = self.weights[self.main].sum(dim=(0, 2))
        return total / total.sum().clamp(min=torch.finfo(total.dtype).tiny)

    def busiest(self, most: int) -> list[int]:
        """At most `most` experts with the largest load above 0, in the order of their numbers."""
        load = self.load()
        best = load.topk(min(most, len(load)))
        return sorted(best.indices[best.values > 0].tolist())

    def maps(self, name: str) -> Tensor:
        """[E, f, t], the weights of each expert over the patches, summed over its slots."""
        patches = self.weights[name][self.special :].sum(dim=2)
        f, t = self.grid
        return rearrange(patches, "(f t) e -> e f t", f=f, t=t)

    def on_special(self, name: str) -> float:
        """The special tokens' share of all weights."""
        weights = self.weights[name]
        return (weights[: self.special].sum() / weights.sum()).item()

    def similarity(self, experts: list[int]) -> Tensor:
        """Cosines between the slots of these experts, as weights over tokens: [n S, n S].

        Dispatch weights are compared if there are any, else gates; an expert that no token uses
        has cosine 0.
        """
        weights = self.weights["dispatch" if "dispatch" in self.weights else self.main]
        columns = functional.normalize(weights[:, experts].flatten(1), dim=0)
        return columns.T @ columns


@torch.inference_mode()
def look(bundle: Bundle, window: Tensor) -> tuple[list[LayerView], Tensor]:
    """Run one window through a bundle's model and view every mixture in it.

    Args:
        bundle: the bundle, whose model is in eval mode; it is not changed.
        window: raw log-mel frames [T, F] of the length that the backbone reads.

    Returns:
        The mixtures in the order of the blocks, and the class probabilities [C].

    Raises:
        ConfigError: there is no mixture in the model.
    """
    backbone = bundle.model.backbone
    special = backbone.prefix_tokens + backbone.prompt_tokens
    seen: list[LayerView] = []

    def see(site: str, mixture: Mixture, x: Tensor) -> None:
        weights = mixture.token_weights(x)
        owners, sizes = backbone.context.owners(x), backbone.context.sizes(x)
        if owners is not None and sizes is not None:  # each patch has its part of a merged token
            weights = {name: _unmerged(name, w, owners, sizes) for name, w in weights.items()}
        weights = {name: w[0].float().cpu() for name, w in weights.items()}
        grid = backbone.grid or (1, x.shape[1] - special)
        seen.append(LayerView(site, weights, special, grid))

    with watched(bundle.model, see):
        logits = bundle.model(backbone.features.normalise(window[None]))
    if not seen:
        raise ConfigError(
            f"'{bundle.model.method.registered_name}' is not a mixture: it has no experts to show; "
            "name the bundle of one, such as soft_moa"
        )
    return seen, bundle.probabilities(logits)[0]


def _unmerged(name: str, weights: Tensor, owners: Tensor, sizes: Tensor) -> Tensor:
    """The weights [B, K, E, S] of tokens as those of the M tokens that merged into them.

    Dispatch weights, which sum to 1 over tokens, are shared out.
    """
    if name == "dispatch":
        weights = weights / sizes[..., None, None]
    index = owners[..., None, None].expand(-1, -1, *weights.shape[2:])
    return weights.gather(1, index)


def training_record(folder: Path, test_fold: int | None) -> list[EpochRecord]:
    """The epochs of the training that made a bundle, from `fold.json`; empty without that file.

    Args:
        folder: the bundle, in the folder of a run or of one of its folds.
        test_fold: number of the fold from which the bundle comes.
    """
    for place in (folder.parent, folder.parent / f"fold-{test_fold}"):
        if (place / FOLD_FILE).is_file():
            return read_fold(place).history
    return []

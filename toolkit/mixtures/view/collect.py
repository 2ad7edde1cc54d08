"""What a trained mixture does with one file, and what its training recorded; nothing is drawn here.

Shapes: T tokens, E experts, S slots an expert.
"""

import dataclasses
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from toolkit.bundle import Bundle
from toolkit.errors import ConfigError
from toolkit.mixtures.observe import watched
from toolkit.model import AudioClassifier
from toolkit.peft import insertion
from toolkit.peft.base import Recorder
from toolkit.results import FOLD_FILE, EpochRecord, read_fold


@dataclasses.dataclass(frozen=True)
class LayerView:
    """One mixture on one window of a file.

    Attributes:
        site: where it is, e.g. `blocks.3.mhsa`.
        weights: [T, E, S] by name; see `Recorder.token_weights`.
        special: tokens in front of the patches.
        grid: patches (f, t) behind them, frequency-major.
    """

    site: str
    weights: dict[str, Tensor]
    special: int
    grid: tuple[int, int]

    @property
    def main(self) -> str:
        """The weights that say which experts make a token's output."""
        return "combine" if "combine" in self.weights else "gate"

    def load(self) -> Tensor:
        """[E], share of the output of all tokens that each expert makes; sums to 1."""
        total = self.weights[self.main].sum(dim=(0, 2))
        return total / total.sum().clamp(min=torch.finfo(total.dtype).tiny)

    def busiest(self, most: int) -> list[int]:
        """At most `most` experts, in their own order: those with the largest load that have any."""
        load = self.load()
        best = load.topk(min(most, len(load)))
        return sorted(best.indices[best.values > 0].tolist())

    def maps(self, name: str) -> Tensor:
        """[E, f, t], the weights of each expert over the patches, summed over its slots."""
        patches = self.weights[name][self.special :].sum(dim=2)
        return patches.T.unflatten(1, self.grid)

    def on_special(self, name: str) -> float:
        """Share of all weights that lies on the special tokens."""
        weights = self.weights[name]
        return (weights[: self.special].sum() / weights.sum()).item()

    def similarity(self, experts: list[int]) -> Tensor:
        """Cosines between the weights over tokens of these experts' slots, [n S, n S].

        Of the dispatch weights if there are any, else of the gates; 0 for an expert that no token
        uses.
        """
        weights = self.weights["dispatch" if "dispatch" in self.weights else self.main]
        columns = functional.normalize(weights[:, experts].flatten(1), dim=0)
        return columns.T @ columns


@torch.inference_mode()
def look(bundle: Bundle, window: Tensor) -> tuple[list[LayerView], Tensor]:
    """Run one window through a bundle's model and see every mixture of it.

    Args:
        bundle: its model is in eval mode and stays as it is.
        window: raw log-mel frames [T, F] of the length that the backbone reads.

    Returns:
        the mixtures in the order of the blocks, and the class probabilities [C].

    Raises:
        ConfigError: there is no mixture in the model.
    """
    backbone = bundle.model.backbone
    special = backbone.prefix_tokens + backbone.prompt_tokens
    seen: list[LayerView] = []

    def see(site: str, module: Recorder, x: Tensor) -> None:
        weights = {name: w[0].float().cpu() for name, w in module.token_weights(x).items()}
        if weights:
            grid = backbone.grid or (1, x.shape[1] - special)
            seen.append(LayerView(site, weights, special, grid))

    with watched(bundle.model, see, recorders(bundle.model)):
        logits = bundle.model(backbone.features.normalise(window[None]))
    if not seen:
        raise ConfigError(
            f"'{bundle.model.method.registered_name}' is not a mixture: it has no experts to show; "
            "name the bundle of one, such as soft_moa"
        )
    return seen, bundle.probabilities(logits)[0]


def recorders(model: AudioClassifier) -> list[tuple[str, Recorder]]:
    """The inserted recorders of a model, mixtures among them, with the names of their sites."""
    return [
        (model.backbone.canonical(path), wrapper.inserted)
        for path, wrapper in model.backbone.model.named_modules()
        if isinstance(wrapper, insertion.Wrapper) and isinstance(wrapper.inserted, Recorder)
    ]


def training_record(folder: Path, test_fold: int | None) -> list[EpochRecord]:
    """The epochs that made a bundle, from the `fold.json` of its fold; empty if there is none.

    Args:
        folder: the bundle, in the folder of a run or of one of its folds.
        test_fold: of the fold that the bundle comes from.
    """
    for place in (folder.parent, folder.parent / f"fold-{test_fold}"):
        if (place / FOLD_FILE).is_file():
            return read_fold(place).history
    return []

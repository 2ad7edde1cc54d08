"""What a trained mixture does with clips, read without changing it; every tool starts with that."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pandas as pd
import torch
from torch import Tensor

from toolkit.mixtures.tool import MixtureData
from toolkit.model import AudioClassifier
from toolkit.peft.mixture import Mixture, mixtures

Visitor = Callable[[str, Mixture, Tensor], None]
"""Is given a mixture's site, the mixture, and the tokens [B, T, d] that enter it."""


def some_of(clips: pd.DataFrame, count: int) -> pd.DataFrame:
    """At most `count` clips, drawn at random but the same in every run."""
    return clips.sample(min(count, len(clips)), random_state=0).sort_index()


@contextmanager
def watched(model: AudioClassifier, see: Visitor) -> Iterator[None]:
    """While this lasts, `see` is called in front of every mixture in every forward pass."""
    handles = [
        mixture.register_forward_pre_hook(
            lambda module, arguments, site=site: see(site, module, arguments[0])
        )
        for site, mixture in mixtures(model.backbone).items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def visit(model: AudioClassifier, data: MixtureData, clips: pd.DataFrame, see: Visitor) -> None:
    """Run clips through a model in eval mode and call `see` in front of every mixture.

    Clips run one by one, so that none is padded to another's length.

    Args:
        model: the classifier.
        data: makes the batches.
        clips: some of its clips.
        see: is called site by site.
    """
    model.eval()
    with watched(model, see):
        for batch in data.batches(clips, batch_size=1):
            model.logits(batch.features, batch.lengths)

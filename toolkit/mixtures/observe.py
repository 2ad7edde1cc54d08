"""What a trained mixture does on clips, read without changing it.

Apart from the tools, since each of them starts by looking. A mixture in which tokens choose experts
has a `router`: tokens [B, T, d] -> gates [B, T, E], zero for the experts that a token does not use.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pandas as pd
import torch
from torch import Tensor, nn

from toolkit.mixtures.tool import MixtureData, mixtures
from toolkit.model import AudioClassifier
from toolkit.routing.dense import DenseRouter
from toolkit.routing.topk import TopKRouter

Visitor = Callable[[str, nn.Module, Tensor], None]
"""Is given a mixture's site, the mixture, and the tokens [B, T, d] that enter it."""


def some_of(clips: pd.DataFrame, count: int) -> pd.DataFrame:
    """At most `count` clips, drawn at random but the same in every run."""
    return clips.sample(min(count, len(clips)), random_state=0).sort_index()


@contextmanager
def watched(
    model: AudioClassifier, see: Visitor, modules: Sequence[tuple[str, nn.Module]] | None = None
) -> Iterator[None]:
    """While this lasts, `see` is called at every mixture in every forward pass.

    Args:
        model: the classifier.
        see: is called before the mixture is.
        modules: what to watch, with the names of their sites; none: what `mixtures` finds.
    """
    handles = [
        mixture.register_forward_pre_hook(
            lambda module, arguments, site=site: see(site, module, arguments[0])
        )
        for site, mixture in (mixtures(model) if modules is None else modules)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def visit(model: AudioClassifier, data: MixtureData, clips: pd.DataFrame, see: Visitor) -> None:
    """Run clips through a model in eval mode, one by one, so that none is padded to another's
    length; `see` is called at every mixture, site by site."""
    model.eval()
    with watched(model, see):
        for batch in data.batches(clips, batch_size=1):
            model.logits(batch.features, batch.lengths)


def tokens_choose(mixture: nn.Module) -> bool:
    """Whether tokens choose experts in a mixture (in a soft one, experts read slots)."""
    return isinstance(getattr(mixture, "router", None), nn.Module)


def weighs_experts(mixture: nn.Module) -> bool:
    """Whether a token's gates come from a softmax, so that they say how much each expert counts."""
    router = trained(getattr(mixture, "router", None))
    return isinstance(router, DenseRouter | TopKRouter)


def trained(router: nn.Module) -> nn.Module:
    """The router that was trained, without those that tools put around it (as their `router`)."""
    while isinstance(inner := getattr(router, "router", None), nn.Module):
        router = inner
    return router

"""Frozen computation done once changes nothing that training computes, as checks."""

import torch
from torch import Tensor

from toolkit.errors import ConfigError
from toolkit.model import AudioClassifier, Pooling
from toolkit.peft.base import PeftMethod
from toolkit.reuse import FrozenPart
from toolkit.testing.require import require
from toolkit.testing.tiny import (
    tiny_batch,
    tiny_classifier,
    tiny_lengths,
    tiny_objective,
)

TOLERANCE = 1e-5
"""Of what is compared, relative to the largest value of a tensor."""


def check_reuse(method: PeftMethod, family: str = "ast", pooling: Pooling = "all") -> bool:
    """A step of training and a prediction are the same whether the frozen part is computed or read.

    Compared are the logits, the losses, the gradients and the buffers of one step on the same
    batch, and predictions from states that were computed clip by clip. If the method can be
    confined to some blocks, it is also checked in the last block alone.

    Args:
        method: to be checked.
        family: of the backbone.
        pooling: see `AudioClassifier`.

    Returns:
        whether there is a frozen part; False: the method or the backbone refuses it.
    """
    confined = _in_last_block(method)
    found = [_same(m, family, pooling) for m in (method, *([confined] if confined else []))]
    return found[-1]


def _same(method: PeftMethod, family: str, pooling: Pooling) -> bool:
    whole, resumed = (
        tiny_classifier(method, family=family, noise=0.05, pooling=pooling).eval() for _ in range(2)
    )
    try:
        part = resumed.frozen_part()
    except ConfigError:
        return False
    (features, labels), lengths = tiny_batch(whole.backbone), tiny_lengths(whole.backbone)
    states = part.collate(part.states(features, lengths))
    resumed.reuse(part)
    _compare(_step(resumed, states, lengths, labels), _step(whole, features, lengths, labels))
    _compare(
        {"prediction": _predict(resumed, _clip_by_clip(part, features, lengths), lengths)},
        {"prediction": _predict(whole, features, lengths)},
    )
    return True


def _in_last_block(method: PeftMethod) -> PeftMethod | None:
    try:
        return type(method)(**{**method.as_dict(), "layers": "last 1"})
    except ConfigError:
        return None


def _clip_by_clip(part: FrozenPart, features: Tensor, lengths: Tensor | None) -> Tensor:
    """The states of a batch, of which each clip was read alone and without other clips' padding."""
    states = []
    for number in range(len(features)):
        clip = slice(number, number + 1)
        states += part.states(features[clip], None if lengths is None else lengths[clip])
    return part.collate(states)


def _predict(model: AudioClassifier, batch: Tensor, lengths: Tensor | None) -> Tensor:
    model.eval()
    with torch.no_grad():
        logits: Tensor = model(batch, lengths)
    return logits


def _step(
    model: AudioClassifier, batch: Tensor, lengths: Tensor | None, labels: Tensor
) -> dict[str, Tensor]:
    """What one step of training computes."""
    logits: list[Tensor] = []

    def forward(batch: Tensor) -> Tensor:
        logits.append(model(batch, lengths))
        return logits[-1]

    model.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        objective = tiny_objective(labels)
        losses = model.method.training_losses(model.backbone, forward, batch, objective)
        torch.stack(list(losses.values())).sum().backward()
    gradients = {n: p.grad for n, p in model.trainable().items() if p.grad is not None}
    return {
        "logits": torch.cat(logits).detach(),
        **{f"loss '{name}'": loss.detach() for name, loss in losses.items()},
        **{f"gradient of {name}": gradient for name, gradient in gradients.items()},
        **{f"value of {name}": tensor.float() for name, tensor in model.state().items()},
    }


def _compare(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    require(found.keys() == expected.keys(), "reuse decides which tensors get a gradient")
    for name, tensor in expected.items():
        if not tensor.numel():
            continue
        off = (found[name] - tensor).abs().max().item()
        require(
            off <= TOLERANCE * max(1.0, tensor.abs().max().item()),
            f"reuse of the frozen part changes the {name} by {off:.2g}: something below the first "
            "module that trains is not found from the structure of the model",
        )

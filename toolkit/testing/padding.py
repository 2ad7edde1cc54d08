"""Padding has no part in what a method predicts, trains or records, as checks."""

import torch
from torch import Tensor

from toolkit.errors import ConfigError
from toolkit.model import AudioClassifier, Pooling
from toolkit.peft import insertion
from toolkit.peft.base import PeftMethod, Recorder
from toolkit.testing.require import require
from toolkit.testing.tiny import tiny_classifier, tiny_objective, tiny_rows


def check_padding(method: PeftMethod, family: str, pooling: Pooling = "mean") -> None:
    """Each clip alone and without padding gives the logits that it has in a padded batch."""
    model = tiny_classifier(method, family=family, noise=0.05, pooling=pooling)
    compare_padded(model, model)


def compare_padded(batched: AudioClassifier, single: AudioClassifier) -> None:
    """A padded batch gives the logits of its clips, one by one and without padding.

    Args:
        batched: reads the batch.
        single: reads the clips one by one: the same model, or a twin whose counts are compared.
    """
    rows, lengths = tiny_rows(batched.backbone)
    if lengths is None:
        raise ConfigError(f"{batched.backbone.name} pads every clip to one length")
    batched.eval(), single.eval()
    with torch.no_grad():
        together = batched.logits(rows, lengths)
        alone = [
            single.logits(clip[None, :length], torch.tensor([length]))
            for clip, length in zip(rows, lengths.tolist(), strict=True)
        ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-5)


RANDOM = ("dropout", "drop_path", "jitter", "noise")
"""Settings that draw random numbers for all tokens of a batch, padding included."""


def check_padding_in_training(method: PeftMethod, family: str) -> None:
    """Rows of padding behind a batch change nothing that training reads or keeps.

    Compared are the logits, the losses, the gradients and the buffers (running statistics) of one
    step, in double precision: where an expert is chosen, rounding could choose another. What the
    method draws per token is switched off: it depends on the size of the batch.
    """
    off = {name: 0.0 for name in method.as_dict() if name in RANDOM}
    method = type(method)(**{**method.as_dict(), **off})
    expected, found = (_training_step(method, family, padding) for padding in (0, 1))
    require(found.keys() == expected.keys(), "padding decides which tensors get a gradient")
    for name, tensor in expected.items():
        scale = max(1.0, tensor.abs().max().item()) if tensor.numel() else 1.0
        same = torch.allclose(found[name], tensor, rtol=1e-5, atol=1e-5 * scale)
        require(same, f"padding changes the {name} by {(found[name] - tensor).abs().max():.2g}")


def _training_step(method: PeftMethod, family: str, padding: int) -> dict[str, Tensor]:
    """What one step of training computes for two clips with rows of padding behind them."""
    model = tiny_classifier(method, family=family, noise=0.05, pooling="mean").double()
    model.train(not method.trains_backbone)  # whose dropout is the stock model's own
    backbone, logits = model.backbone, []
    rows, lengths = tiny_rows(backbone, clips=2)
    rows = torch.cat([rows, *[torch.zeros_like(rows)] * padding], dim=1)

    def forward(features: Tensor) -> Tensor:
        logits.append(model(features, lengths))
        return logits[-1]

    features = backbone.features.normalise(rows, lengths).double()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        losses = method.training_losses(
            backbone, forward, features, tiny_objective(torch.arange(2))
        )
        torch.stack(list(losses.values())).sum().backward()
    gradients = {n: p.grad for n, p in model.trainable().items() if p.grad is not None}
    return {
        "logits": torch.cat(logits).detach(),
        **{f"loss '{name}'": loss.detach() for name, loss in losses.items()},
        **{f"gradient of {name}": gradient for name, gradient in gradients.items()},
        **{f"value of {name}": tensor.double() for name, tensor in model.state().items()},
    }


def check_padding_in_statistics(method: PeftMethod, family: str) -> bool:
    """What mixtures record of a clip, and their losses on it, are the same with padding behind it.

    Statistics are compared in evaluation and in training.

    Returns:
        whether there is anything that records.
    """
    found = []
    for padding in (0, 1):
        model = tiny_classifier(method, family=family, noise=0.05)
        backbone = model.backbone
        if not any(isinstance(module, Recorder) for module in insertion.inserted(backbone)):
            return False
        rows, _ = tiny_rows(backbone, clips=1)
        length = torch.tensor([rows.shape[1]])
        rows = torch.cat([rows, *[torch.randn_like(rows)] * padding], dim=1)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            statistics = []
            for training in (False, True):
                method.record(backbone, True)
                model.train(training).logits(rows, length)
                statistics.append(method.statistics(backbone))
            method.record(backbone, False)
            found.append((statistics, method.auxiliary_losses(backbone)))
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-4)
    return any(found[0][0])

"""The contract that every PEFT method keeps, as checks that a test can call.

The registry's own tests run them over every method, plugins included; a plugin's test file can
run them too: `check_method("my_method")`.
"""

import functools
from collections.abc import Mapping
from typing import Any

import torch

from toolkit.errors import ConfigError
from toolkit.model import AudioClassifier
from toolkit.peft import insertion
from toolkit.peft.base import PeftMethod
from toolkit.registry import PEFT
from toolkit.testing.mixtures import check_mixtures
from toolkit.testing.require import require
from toolkit.testing.reuse import check_reuse
from toolkit.testing.tiny import (
    CLASSES,
    tiny_backbone,
    tiny_batch,
    tiny_classifier,
    tiny_lengths,
    tiny_objective,
)


def check_method(name: str, settings: Mapping[str, Any] | None = None, family: str = "ast") -> None:
    """Run every check below, and those of its mixtures, on a registered method.

    Args:
        name: of the method.
        settings: its settings where they differ from the defaults.
        family: of the small random backbone that it adapts.
    """
    method = PEFT.create({"name": name, **(settings or {})})
    check_identity(method, family)
    check_training(method, family=family)
    check_saving(method, family)
    check_merging(method, family)
    check_layers({"name": name, **(settings or {})}, family)
    check_mixtures(method, family)
    check_reuse(method, family)


def check_identity(method: PeftMethod, family: str = "ast") -> None:
    """Before any training, the adapted backbone gives the frozen one's tokens."""
    if not method.identity_at_start:
        return
    backbone = tiny_backbone(family=family)
    (features, _), lengths = tiny_batch(backbone), tiny_lengths(backbone)
    with torch.no_grad():
        expected = backbone(features, lengths)
        adapted = tiny_classifier(method, family=family).eval().backbone
        try:
            tokens = adapted(features, lengths)
        except Exception as error:
            raise insertion.named_failure(adapted, error) from error.__cause__
        torch.testing.assert_close(
            tokens,
            expected,
            rtol=0,
            atol=1e-5,
            msg=lambda text: f"training does not start at the frozen backbone: {text}",
        )


def check_training(method: PeftMethod, steps: int | None = None, family: str = "ast") -> None:
    """A few steps lower the loss, move every trainable tensor, and leave all others alone.

    Args:
        method: to be checked.
        steps: none: 6, or 24 if not every step reaches every tensor (`sparse`).
        family: of the backbone.
    """
    steps = steps or (24 if method.sparse else 6)
    torch.manual_seed(0)
    model = AudioClassifier(tiny_backbone(family=family), method, CLASSES, "all")
    (features, labels), lengths = tiny_batch(model.backbone), tiny_lengths(model.backbone)
    trainable = model.trainable()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    start = {name: p.detach().clone() for name, p in trainable.items()}
    optimizer = torch.optim.AdamW(method.parameter_groups(trainable, lr=1e-3), weight_decay=0.0)
    forward = functools.partial(model, lengths=lengths)
    history = []
    model.train()

    objective = tiny_objective(labels)
    method.on_epoch_start(model.backbone, 1, steps)

    for step in range(steps):
        losses = method.training_losses(model.backbone, forward, features, objective)
        history.append(losses["task"].item())
        total = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        method.on_step(model.backbone, optimizer, step + 1, steps)
    require(history[-1] < history[0], f"the loss did not fall: {history}")
    still = [name for name, p in trainable.items() if torch.equal(p, start[name])]
    require(not still, f"trainable tensors that did not move: {still}")
    moved = [
        name
        for name, p in model.named_parameters()
        if not p.requires_grad and not torch.equal(p, before[name])
    ]
    require(not moved, f"frozen tensors that moved: {moved}")


def check_saving(method: PeftMethod, family: str = "ast") -> None:
    """A model's state, put into a fresh model of another seed, gives the same logits exactly.

    In inference mode, in which bundles predict.
    """
    first, second = (tiny_classifier(method, seed, family, noise=0.05).eval() for seed in (0, 1))
    (features, _), lengths = tiny_batch(first.backbone), tiny_lengths(first.backbone)
    with torch.no_grad():
        expected = first(features, lengths)
        another = second(features, lengths)
        require(
            not torch.equal(another, expected),
            "models of two seeds are the same before one is loaded: nothing of it is random",
        )
        second.load_state({name: t.clone() for name, t in first.state().items()})
    with torch.inference_mode():
        loaded = second(features, lengths)
    require(torch.equal(loaded, expected), "the loaded model is another one")


def check_merging(method: PeftMethod, family: str = "ast") -> bool:
    """A method whose modules are all `Mergeable` merges exactly, and unmerging restores.

    Returns:
        whether it can be merged.
    """
    model = tiny_classifier(method, family=family, noise=0.05).eval()
    modules = list(insertion.inserted(model.backbone))
    if not modules or not all(isinstance(module, insertion.Mergeable) for module in modules):
        return False
    (features, _), lengths = tiny_batch(model.backbone), tiny_lengths(model.backbone)
    with torch.no_grad():
        expected = model(features, lengths)
        method.merge(model.backbone)
        torch.testing.assert_close(
            model(features, lengths),
            expected,
            rtol=1e-4,
            atol=1e-4,
            msg=lambda text: f"merging changes the predictions: {text}",
        )
        method.unmerge(model.backbone)
        unmerged = model(features, lengths)
    require(torch.equal(unmerged, expected), "unmerging changed the weights")
    return True


def check_layers(config: Mapping[str, Any], family: str = "ast") -> None:
    """With `layers: last 1` nothing in another block changes, unless the setting is refused."""
    try:
        method = PEFT.create({**config, "layers": "last 1"})
    except ConfigError:
        return
    model = AudioClassifier(tiny_backbone(family=family), method, CLASSES, "all")
    blocks = {name.split(".")[1] for name in model.state() if name.startswith("blocks.")}
    require(blocks <= {"1"}, f"`layers` is not respected (use self.sites): blocks {blocks}")

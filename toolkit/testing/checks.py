"""The contract that every PEFT method keeps, as checks that a test can call.

The registry's own tests run them over every method, plugins included; a plugin's test file can
run them too: `check_method("my_method")`.
"""

import functools
from collections.abc import Mapping
from typing import Any

import torch

from toolkit.errors import ConfigError
from toolkit.model import AudioClassifier, Pooling
from toolkit.peft import insertion
from toolkit.peft.base import PeftMethod, Recorder
from toolkit.registry import PEFT
from toolkit.testing.tiny import (
    CLASSES,
    tiny_backbone,
    tiny_batch,
    tiny_classifier,
    tiny_lengths,
    tiny_objective,
    tiny_rows,
)


def check_method(name: str, settings: Mapping[str, Any] | None = None, family: str = "ast") -> None:
    """Run every check below on a registered method.

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


def check_identity(method: PeftMethod, family: str = "ast") -> None:
    """Before any training, the adapted backbone gives the frozen one's tokens."""
    if not method.identity_at_start:
        return
    backbone = tiny_backbone(family=family)
    (features, _), lengths = tiny_batch(backbone), tiny_lengths(backbone)
    with torch.no_grad():
        expected = backbone(features, lengths)
        adapted = tiny_classifier(method, family=family).eval().backbone
        torch.testing.assert_close(adapted(features, lengths), expected, rtol=0, atol=1e-5)


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
    assert history[-1] < history[0], f"the loss did not fall: {history}"
    still = [name for name, p in trainable.items() if torch.equal(p, start[name])]
    assert not still, f"trainable tensors that did not move: {still}"
    moved = [
        name
        for name, p in model.named_parameters()
        if not p.requires_grad and not torch.equal(p, before[name])
    ]
    assert not moved, f"frozen tensors that moved: {moved}"


def check_saving(method: PeftMethod, family: str = "ast") -> None:
    """A model's state, put into a fresh model of another seed, gives the same logits exactly.

    In inference mode, in which bundles predict.
    """
    first, second = (tiny_classifier(method, seed, family, noise=0.05).eval() for seed in (0, 1))
    (features, _), lengths = tiny_batch(first.backbone), tiny_lengths(first.backbone)
    with torch.no_grad():
        expected = first(features, lengths)
        assert not torch.equal(second(features, lengths), expected)
        second.load_state({name: t.clone() for name, t in first.state().items()})
    with torch.inference_mode():
        assert torch.equal(second(features, lengths), expected), "the loaded model is another one"


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
        torch.testing.assert_close(model(features, lengths), expected, rtol=1e-4, atol=1e-4)
        method.unmerge(model.backbone)
        assert torch.equal(model(features, lengths), expected), "unmerging changed the weights"
    return True


def check_layers(config: Mapping[str, Any], family: str = "ast") -> None:
    """With `layers: last 1` nothing in another block changes, unless the setting is refused."""
    try:
        method = PEFT.create({**config, "layers": "last 1"})
    except ConfigError:
        return
    model = AudioClassifier(tiny_backbone(family=family), method, CLASSES, "all")
    blocks = {name.split(".")[1] for name in model.state() if name.startswith("blocks.")}
    assert blocks <= {"1"}, f"`layers` is not respected (use self.sites): blocks {blocks}"


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
    assert lengths is not None, f"{batched.backbone.name} pads every clip to one length"
    batched.eval(), single.eval()
    with torch.no_grad():
        together = batched.logits(rows, lengths)
        alone = [
            single.logits(clip[None, :length], torch.tensor([length]))
            for clip, length in zip(rows, lengths.tolist(), strict=True)
        ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-4)


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

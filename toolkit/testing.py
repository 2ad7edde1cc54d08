"""The contract that every PEFT method keeps, as checks that a test can call.

The registry's own tests run them over every method, plugins included; a plugin's test file can
run them too: `check_method("my_method")`.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

from toolkit.backbones.ast import AST, ASTBackbone
from toolkit.backbones.base import Backbone
from toolkit.errors import ConfigError
from toolkit.model import AudioClassifier
from toolkit.peft import insertion
from toolkit.peft.base import PeftMethod
from toolkit.registry import PEFT

CLASSES = 5
TINY = {
    "hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 192,
    "num_mel_bins": 32, "max_length": 64, "frequency_stride": 10, "time_stride": 10,
}  # fmt: skip


def tiny_backbone(seed: int = 0) -> ASTBackbone:
    """A random AST of width 96 with two blocks that reads 64 frames of 32 mel bins."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = ASTModel(ASTConfig(**TINY))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return AST()._wrap(model, ASTFeatureExtractor(num_mel_bins=32), 64)


def tiny_batch(backbone: Backbone, clips: int = 6, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Random normalised features [clips, T, F] and labels [clips]."""
    generator = torch.Generator().manual_seed(seed)
    spec = backbone.features
    features = torch.randn(clips, spec.max_length, spec.mel_bins, generator=generator)
    return features, torch.arange(clips) % CLASSES


def check_method(name: str, settings: Mapping[str, Any] | None = None) -> None:
    """Run every check below on a registered method.

    Args:
        name: of the method.
        settings: its settings where they differ from the defaults.
    """
    method = PEFT.create({"name": name, **(settings or {})}, "peft")
    check_identity(method)
    check_training(method)
    check_saving(method)
    check_merging(method)
    check_layers({"name": name, **(settings or {})})


def check_identity(method: PeftMethod) -> None:
    """Before any training, the adapted backbone gives the frozen one's tokens."""
    if not method.identity_at_start:
        return
    backbone = tiny_backbone()
    features, _ = tiny_batch(backbone)
    expected = backbone(features).detach()
    model = AudioClassifier(tiny_backbone(), method, CLASSES, "all").eval()
    torch.testing.assert_close(model.backbone(features), expected, rtol=0, atol=1e-5)


def check_training(method: PeftMethod, steps: int = 6) -> None:
    """A few steps lower the loss, move every trainable tensor, and leave all others alone."""
    torch.manual_seed(0)
    backbone = tiny_backbone()
    features, labels = tiny_batch(backbone)
    model = AudioClassifier(backbone, method, CLASSES, "all")
    trainable = model.trainable()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    start = {name: p.detach().clone() for name, p in trainable.items()}
    optimizer = torch.optim.AdamW(method.parameter_groups(trainable, lr=1e-3), weight_decay=0.0)
    history = []
    model.train()

    def task_loss(logits: Tensor) -> Tensor:
        return functional.cross_entropy(logits, labels)

    for step in range(steps):
        losses = method.training_losses(model.backbone, model, features, task_loss)
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


def check_saving(method: PeftMethod) -> None:
    """A model's state, put into a fresh model of another seed, gives the same logits exactly."""
    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = AudioClassifier(tiny_backbone(), method, CLASSES, "all").eval()
        with torch.no_grad():
            for parameter in model.trainable().values():
                parameter.add_(0.05 * torch.randn_like(parameter))
        models.append(model)
    features, _ = tiny_batch(models[0].backbone)
    with torch.no_grad():
        expected = models[0](features)
        assert not torch.equal(models[1](features), expected)
        models[1].load_state({name: t.clone() for name, t in models[0].state().items()})
        assert torch.equal(models[1](features), expected), "the loaded model is another one"


def check_merging(method: PeftMethod) -> None:
    """A method whose modules all have `merge_into` merges exactly, and unmerging restores."""
    torch.manual_seed(0)
    model = AudioClassifier(tiny_backbone(), method, CLASSES, "all").eval()
    modules = list(insertion.inserted(model.backbone))
    if not modules or not all(hasattr(module, "merge_into") for module in modules):
        return
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.add_(0.05 * torch.randn_like(parameter))
        features, _ = tiny_batch(model.backbone)
        expected = model(features)
        method.merge(model.backbone)
        torch.testing.assert_close(model(features), expected, rtol=1e-4, atol=1e-4)
        method.unmerge(model.backbone)
        assert torch.equal(model(features), expected), "unmerging did not restore the weights"


def check_layers(config: Mapping[str, Any]) -> None:
    """With `layers: last 1` nothing in another block changes, unless the setting is refused."""
    try:
        method = PEFT.create({**config, "layers": "last 1"}, "peft")
    except ConfigError:
        return
    model = AudioClassifier(tiny_backbone(), method, CLASSES, "all")
    blocks = {name.split(".")[1] for name in model.state() if name.startswith("blocks.")}
    assert blocks <= {"1"}, f"`layers` is not respected (use self.sites): blocks {blocks}"

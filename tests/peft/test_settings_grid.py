"""Every setting that a method accepts keeps its promise, also on a backbone with pruned weights.

One setting at a time takes every legal extreme. On weights with rows and columns of zeros the
adapted backbone must be finite and start as the frozen one, and two steps must train something.
"""

import dataclasses
import typing
from collections.abc import Iterator
from typing import Any, Literal

import pytest
import torch

from toolkit import plugins
from toolkit.backbones.base import Backbone
from toolkit.errors import ConfigError
from toolkit.model import AudioClassifier
from toolkit.peft import insertion
from toolkit.peft.adalora import Triplets
from toolkit.peft.base import PeftMethod
from toolkit.registry import PEFT
from toolkit.testing import CLASSES, tiny_backbone, tiny_batch, tiny_lengths, tiny_objective

plugins.load()
STARTS_ELSEWHERE = {
    "reference", "reference_init", "zero_positions", "residual", "init_std", "init", "add_before",
}  # fmt: skip
"""Settings that say that the adapted backbone does not start as the frozen one."""
DROPS = {"dropout", "drop_path"}
"""Settings that may drop all there is in two steps."""
LARGE = 3.0
"""What a number without an upper bound is tried with, besides its lower one."""


def legal_values(hint: Any, metadata: typing.Mapping[str, Any], default: Any) -> list[Any]:
    """Values of a setting to try, all of its type."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return list(options)
    if hint is bool:
        return [True, False]
    if hint in (int, float):
        low, high = metadata.get("minimum"), metadata.get("maximum")
        tried = [low, high, default, LARGE if hint is float else 3, 1]
        tried += [value for value in (0.0, -0.5, 0.999) if hint is float]
        return [hint(value) for value in tried if value is not None and value == hint(value)]
    if options and origin is not list:  # a union: the values of each of its types
        return [value for option in options for value in legal_values(option, metadata, default)]
    if origin is list and typing.get_origin(options[0]) is Literal:
        known = list(typing.get_args(options[0]))
        return [known, *([value] for value in known)]
    return [default]


def grid(name: str) -> Iterator[tuple[str, Any, PeftMethod]]:
    """A method with each legal value of each of its settings."""
    cls = PEFT.get(name)
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        default = getattr(cls(), field.name)
        values = ["first 1", [1]] if field.name == "layers" else []
        seen: list[Any] = []
        for value in [*values, *legal_values(hints[field.name], field.metadata, default)]:
            if value in seen and type(value) is type(seen[seen.index(value)]):
                continue
            seen.append(value)
            try:
                yield field.name, value, PEFT.create({"name": name, field.name: value})
            except ConfigError:
                continue  # a legal refusal: what is accepted is tried


def pruned(family: str) -> Backbone:
    """A tiny backbone of which every projection has rows and columns of zeros."""
    backbone = tiny_backbone(family=family)
    with torch.no_grad():
        for site in backbone.sites("both", "attn.q", "attn.v", "ffn.up", "ffn.down"):
            for parameter in site.module.parameters():
                parameter[::3] = 0
                if parameter.ndim > 1:
                    parameter[:, ::5] = 0
    backbone.fingerprint = backbone.fingerprint_now()
    return backbone


def fault_of(setting: str, method: PeftMethod, family: str) -> str | None:
    """What is wrong with a method on a pruned backbone; None: nothing."""
    torch.manual_seed(0)
    backbone, frozen = pruned(family), pruned(family)
    try:
        model = AudioClassifier(backbone, method, CLASSES, "all")
    except ConfigError:
        return None
    (features, labels), lengths = tiny_batch(backbone), tiny_lengths(backbone)
    if method.identity_at_start and setting not in STARTS_ELSEWHERE:
        with torch.no_grad():
            want, got = frozen(features, lengths), model.eval().backbone(features, lengths)
        if not torch.allclose(got, want, rtol=0, atol=1e-5):
            return f"starts {(got - want).abs().max():.2g} from the frozen backbone"
    model.train()
    before = {name: p.detach().clone() for name, p in model.trainable().items()}
    optimizer = torch.optim.SGD(method.parameter_groups(model.trainable(), 1e-3))
    method.on_epoch_start(backbone, 1, 2)
    for step in (1, 2):
        losses = method.training_losses(
            backbone, lambda x: model(x, lengths), features, tiny_objective(labels)
        )
        total = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        total.backward()
        gradients = [p.grad for p in model.trainable().values() if p.grad is not None]
        if not torch.isfinite(total) or not all(torch.isfinite(g).all() for g in gradients):
            return f"step {step} is not finite"
        optimizer.step()
        method.on_step(backbone, optimizer, step, 2)
    moved = [n for n, p in model.trainable().items() if not torch.equal(p, before[n])]
    own = [n for n in model.trainable() if f".{method.registered_name}." in n]
    if own and setting not in DROPS and not set(own) & set(moved):
        return "nothing of the method has moved"
    return None


ALWAYS = ("adalora", "dora", "dynmoe", "lora", "soft_moa", "vera")
"""The other methods are swept by `tools/test --all`."""


@pytest.mark.parametrize(
    "name",
    [n if n in ALWAYS else pytest.param(n, marks=pytest.mark.wide) for n in PEFT.names()],
)
def test_every_legal_setting_on_pruned_weights(name: str) -> None:
    faults = {
        f"{setting}={value}": fault
        for setting, value, method in grid(name)
        if (fault := fault_of(setting, method, "ast"))
    }
    assert not faults


@pytest.mark.wide
@pytest.mark.parametrize("family", ["clap", "wav2vec2", "whisper"])
@pytest.mark.parametrize("name", PEFT.names())
def test_every_legal_setting_on_other_families(name: str, family: str) -> None:
    faults = {
        f"{setting}={value}": fault
        for setting, value, method in grid(name)
        if (fault := fault_of(setting, method, family))
    }
    assert not faults


@pytest.mark.parametrize(
    ("steps", "settings"),
    [
        (20, {}),
        (20, {"warmup": 0.5, "final": 0.5}),
        (20, {"warmup": 1.0, "final": 0.0}),
        (20, {"warmup": 0.0, "final": 1.0}),
        (20, {"warmup": 0.3, "final": 0.7}),
        (20, {"warmup": 0.0, "final": 0.0, "interval": 7}),
        (3, {"warmup": 0.5, "final": 0.4}),
        (1, {"warmup": 0.5, "final": 0.5}),
        (20, {"interval": 1000}),
        (20, {"beta": 0.0}),
        (20, {"beta": 1.0}),
        (20, {"rank": 12}),
    ],
)
def test_adalora_ends_at_its_rank(steps: int, settings: dict[str, Any]) -> None:
    method = PEFT.create({"name": "adalora", "interval": 1, **settings})
    model = AudioClassifier(tiny_backbone(), method, CLASSES, "all").train()
    features, labels = tiny_batch(model.backbone)
    optimizer = torch.optim.AdamW(method.parameter_groups(model.trainable(), 1e-3))
    updates = [m for m in insertion.inserted(model.backbone) if isinstance(m, Triplets)]
    left = [12 * len(updates)]
    for step in range(1, steps + 1):
        losses = method.training_losses(model.backbone, model, features, tiny_objective(labels))
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        method.on_step(model.backbone, optimizer, step, steps)
        left.append(sum(int(update.alive.sum()) for update in updates))
    assert left[-1] == len(updates) * method.as_dict()["rank"]
    assert left == sorted(left, reverse=True)


def test_prompts_in_place_of_a_token_that_is_not_there() -> None:
    method = PEFT.create({"name": "prompt_shallow", "replace_distillation": True})
    with pytest.raises(ConfigError, match="no distillation token"):
        method.apply(tiny_backbone(family="wav2vec2"))

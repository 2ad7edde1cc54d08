"""Hooks that follow a step follow a step that was taken: a gradient scaler leaves some out."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from toolkit.model import AudioClassifier
from toolkit.peft import insertion
from toolkit.peft.adalora import AdaLoRA, Triplets
from toolkit.registry import PEFT
from toolkit.testing import tiny_batch, tiny_classifier, tiny_objective
from toolkit.training.brain import ClassificationBrain

STEPS = 12


def trained(overflows: set[int], **settings: Any) -> tuple[AudioClassifier, list[int]]:
    """AdaLoRA trained through the Brain's own step, and the steps that its hook followed."""
    method = PEFT.create({"name": "adalora", "interval": 1, **settings})
    model = tiny_classifier(method).train()
    features, labels = tiny_batch(model.backbone)
    optimizer = torch.optim.AdamW(method.parameter_groups(model.trainable(), 1e-3))
    for group in optimizer.param_groups:
        group["peak_lr"] = group["lr"]
    brain: Any = SimpleNamespace(
        model=model,
        optimizer=optimizer,
        scaler=torch.amp.GradScaler("cpu"),
        max_grad_norm=0.0,
        optimizer_step=0,
        steps_per_epoch=STEPS,
        plan=SimpleNamespace(epochs=1),
        lr_factor=lambda step: 1.0,
    )
    followed = []
    hook = method.on_step

    def on_step(backbone: Any, optimizer: Any, step: int, total: int) -> None:
        followed.append(step)
        hook(backbone, optimizer, step, total)

    method.on_step = on_step  # type: ignore[method-assign]
    for step in range(1, STEPS + 1):
        losses = method.training_losses(model.backbone, model, features, tiny_objective(labels))
        brain.scaler.scale(torch.stack(list(losses.values())).sum()).backward()
        if step in overflows:
            for parameter in model.trainable().values():
                assert parameter.grad is not None
                parameter.grad.view(-1)[0] = torch.inf
        ClassificationBrain.optimizers_step(brain)
    return model, followed


@pytest.mark.parametrize("overflows", [set(), {1}, {1, 2, 5}, {6}])
def test_only_steps_that_were_taken_are_followed(overflows: set[int]) -> None:
    model, followed = trained(overflows, final=0.5, warmup=0.1)
    assert followed == [step for step in range(1, STEPS + 1) if step not in overflows]
    updates = [m for m in insertion.inserted(model.backbone) if isinstance(m, Triplets)]
    assert all(torch.isfinite(update.importance()).all() for update in updates)
    method = model.method
    assert isinstance(method, AdaLoRA)
    left = sum(int(update.alive.sum()) for update in updates)
    assert left == method.rank * len(updates)  # also where step 6, the last pruning, is left out


def test_a_loop_of_ones_own_may_call_the_hook_after_an_overflow() -> None:
    method = PEFT.create({"name": "adalora", "interval": 1})
    model = tiny_classifier(method, noise=0.05).train()
    optimizer = torch.optim.SGD(model.trainable().values(), lr=0.0)
    updates = [m for m in insertion.inserted(model.backbone) if isinstance(m, Triplets)]
    features, labels = tiny_batch(model.backbone)
    torch.nn.functional.cross_entropy(model(features), labels).backward()
    method.on_step(model.backbone, optimizer, 1, 100)
    before = [update.importance() for update in updates]
    assert updates[0].q.grad is not None
    updates[0].q.grad[0, 0] = torch.nan
    method.on_step(model.backbone, optimizer, 2, 100)
    for update, importance in zip(updates, before, strict=True):
        assert torch.equal(update.importance(), importance)

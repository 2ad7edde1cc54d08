"""Patchout: which patches are left, with every method, off in evaluation."""

import dataclasses
import functools
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

import toolkit
from toolkit import plugins
from toolkit.errors import ConfigError
from toolkit.experts.convpass import Convpass
from toolkit.fewer_tokens.patchout import Patchout
from toolkit.model import AudioClassifier
from toolkit.padding import TokenContext
from toolkit.peft.prompt import PromptMethod
from toolkit.registry import PEFT
from toolkit.testing import tiny_backbone, tiny_batch, tiny_classifier, tiny_objective

plugins.load()
GRID, FRONT = (2, 5), 2  # of the tiny AST
KINDS = {"structured": Patchout(time=0.4, frequency=0.5), "single": Patchout(share=0.5)}
CONVOLUTIONS: list[dict[str, Any]] = [
    {"name": "adapter", "block": "conformer"},
    {"name": "adapter", "block": "convpass", "mode": "sequential"},
    {"name": "adapter", "block": "convpass", "convolution": "2d"},
    {"name": "dense_moa", "block": "convpass", "convolution": "2d"},
    {"name": "soft_moa", "slots": "tokens/experts"},
    {"name": "prompt_deep", "replace_distillation": True},
    {"name": "linear_probe", "pooling": "weighted"},
]


def named(config: dict[str, Any]) -> str:
    return ",".join(str(value) for value in config.values())


def classifier(config: dict[str, Any], **settings: Any) -> AudioClassifier:
    config = dict(config)
    pooling = config.pop("pooling", "all")
    return tiny_classifier(PEFT.create(config), noise=0.05, pooling=pooling, **settings)


def entering(model: AudioClassifier, block: int) -> list[int]:
    """Collects how many tokens enter a block in each pass."""
    seen: list[int] = []
    ffn = model.backbone.site(block, "norm.ffn").module
    ffn.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
    return seen


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("config", [*({"name": n} for n in PEFT.names()), *CONVOLUTIONS], ids=named)
def test_every_method_trains_on_fewer_tokens_and_predicts_on_all(
    config: dict[str, Any], kind: str
) -> None:
    model, stock = classifier(config), classifier(config)
    model.drop_patches(KINDS[kind])
    seen = entering(model, 1)
    features, labels = tiny_batch(model.backbone)
    method, objective = model.method, tiny_objective(labels)
    trainable = model.trainable()
    optimizer = torch.optim.AdamW(method.parameter_groups(trainable, lr=1e-3), weight_decay=0.0)
    method.on_epoch_start(model.backbone, 1, 6)
    model.train()
    history: list[float] = []
    assert model.patchout is not None
    for step in range(24 if method.sparse else 6):
        model.patchout.generator = Generator().manual_seed(0)  # the same patches in all steps
        losses = method.training_losses(model.backbone, model, features, objective)
        history.append(losses["task"].item())
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        method.on_step(model.backbone, optimizer, step + 1, 24)
    prompts = method.prompts if isinstance(method, PromptMethod) else 0
    front = model.backbone.prefix_tokens + prompts
    assert set(seen) == {front + (3 if kind == "structured" else 5)}
    assert history[-1] < history[0]
    stock.load_state({name: tensor.clone() for name, tensor in model.state().items()})
    with torch.no_grad():
        logits, expected = model.eval()(features), stock.eval()(features)
    torch.testing.assert_close(logits, expected, rtol=0, atol=0)
    assert seen[-1] == front + 10


def test_rows_and_columns_of_the_grid_are_dropped() -> None:
    dropped = Patchout(time=0.5, frequency=0.25).drawn((4, 6), FRONT, Generator().manual_seed(0))
    assert dropped.grid == (3, 3)
    tokens = torch.arange(FRONT + 24.0).expand(2, -1)[..., None]
    left = dropped(tokens)
    assert left[0, :FRONT, 0].tolist() == [0, 1]
    rows, columns = (
        (left[0, FRONT:, 0] - FRONT).long().view(3, 3).div(6, rounding_mode="floor"),
        ((left[0, FRONT:, 0] - FRONT).long().view(3, 3) % 6),
    )
    assert (rows == rows[:, :1]).all() and (rows.diff(dim=0) > 0).all()
    assert (columns == columns[:1]).all() and (columns.diff(dim=1) > 0).all()
    assert torch.equal(left[0], left[1])


def test_single_patches_are_dropped() -> None:
    draws = [Patchout(share=0.5).drawn((4, 6), FRONT, None).kept.tolist() for _ in range(40)]
    assert {len(kept) for kept in draws} == {12}
    assert all(kept == sorted(set(kept)) for kept in draws)
    assert set().union(*draws) == set(range(24))


@pytest.mark.parametrize("kind", KINDS)
def test_a_generator_decides_the_draw_and_no_other_random_number(kind: str) -> None:
    model = classifier({"name": "lora"})
    features, _ = tiny_batch(model.backbone)
    state = torch.get_rng_state()
    model.drop_patches(KINDS[kind])
    assert model.patchout is not None
    assert torch.equal(torch.get_rng_state(), state)
    model.train()
    found = []
    for seed in (1, 1, 2):
        model.patchout.generator = torch.Generator().manual_seed(seed)
        found.append(model(features))
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_a_convolution_over_the_grid_reads_the_patches_left() -> None:
    """Of rows and columns: their own smaller grid; of single patches: zeros in their places."""
    torch.manual_seed(0)
    experts = Convpass(1, 6, 3, grid=(3, 4), prefix_tokens=FRONT).double()
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter)
    experts.context = TokenContext()
    x = torch.randn(2, FRONT + 12, 6, dtype=torch.float64)
    for patchout in (Patchout(time=0.5, frequency=0.3), Patchout(share=0.5)):
        dropped = patchout.drawn((3, 4), FRONT, Generator().manual_seed(1))
        experts.context.reductions = [dropped]
        found = experts.mix(dropped(x))
        experts.context.reductions = []
        if dropped.grid is not None:
            small = Convpass(1, 6, 3, grid=dropped.grid, prefix_tokens=FRONT).double()
            small.load_state_dict(experts.state_dict())
            torch.testing.assert_close(found, small.mix(dropped(x)))
        else:
            experts.context.frames = torch.zeros(2, 12, dtype=torch.bool)
            experts.context.frames[:, dropped.kept] = True
            experts.context.front = FRONT
            expected = dropped(experts.mix(x))
            experts.context.frames = None
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["lora", "lst", "prompt_deep"])
def test_patches_may_be_dropped_further_up(name: str) -> None:
    model = classifier({"name": name})
    below, above = entering(model, 0), entering(model, 1)
    features, _ = tiny_batch(model.backbone)
    model.drop_patches(KINDS["single"])
    model.drop_patches(dataclasses.replace(KINDS["single"], block=1))
    model.train()(features)
    assert below[0] - above[0] == 5
    model.drop_patches(None)
    model(features)
    assert below[1] == above[1] == below[0]


def test_a_model_in_eval_mode_reads_all_patches_at_once() -> None:
    model = classifier({"name": "lora"}).eval()
    seen = entering(model, 0)
    model.drop_patches(KINDS["single"])
    features, _ = tiny_batch(model.backbone)
    model(features)
    model.train()(features)
    assert seen == [12, 7]


def test_a_whole_backbone_that_trains_drops_patches_too() -> None:
    model = classifier({"name": "full"})
    seen = entering(model, 0)
    model.drop_patches(Patchout(share=0.5))
    features, _ = tiny_batch(model.backbone)
    model.train()(features)
    model.eval()(features)
    assert seen == [7, 12]


def compiled(model: AudioClassifier, features: Tensor) -> list[Tensor]:
    found = []
    for seed in range(3):
        torch.manual_seed(seed)
        model.zero_grad()
        model.train()(features).square().sum().backward()
        found += [p.grad.clone() for p in model.trainable().values() if p.grad is not None]
    with torch.no_grad():
        return [*found, model.eval()(features)]


@pytest.mark.wide
@pytest.mark.parametrize("config", [CONVOLUTIONS[2], {"name": "soft_moa"}], ids=named)
def test_a_compiled_model_drops_the_same(config: dict[str, Any]) -> None:
    twins = [classifier(config) for _ in range(2)]
    for model in twins:
        model.drop_patches(KINDS["single"])
    torch._dynamo.reset()
    twins[1].compile(backend="aot_eager")
    features, _ = tiny_batch(twins[0].backbone)
    expected, found = (compiled(model, features) for model in twins)
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({}, "set one of the two kinds"),
        (0, "set one of the two kinds"),
        ({"time": 0.3, "share": 0.2}, "set one of the two kinds"),
        ({"time": 1}, "must be below 1"),
        (1.0, "must be below 1"),
        (-0.1, "must be at least 0"),
        (float("nan"), "must be"),
        ({"time": "half"}, "must be float"),
        ({"tme": 0.3}, "did you mean 'time'"),
        (True, "must be a mapping"),
        ("half", "must be a mapping"),
        ([0.3], "must be a mapping"),
    ],
)
def test_impossible_settings_are_refused(value: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Patchout.from_plain(value, "patchout")


@pytest.mark.parametrize("family", ["wav2vec2", "whisper", "clap"])
def test_backbones_without_a_grid_are_refused(family: str) -> None:
    model = tiny_classifier(PEFT.create("linear_probe"), family=family)
    with pytest.raises(ConfigError, match="has no grid of patches"):
        model.drop_patches(Patchout(share=0.5))


def test_a_share_that_drops_nothing_and_a_block_that_is_not_there_are_refused() -> None:
    model = classifier({"name": "lora"})
    with pytest.raises(ConfigError, match="drops nothing of a grid of 2 x 5"):
        model.drop_patches(Patchout(frequency=0.2))
    with pytest.raises(ConfigError, match="blocks 0 to 1"):
        model.drop_patches(Patchout(share=0.5, block=2))


def test_it_is_part_of_the_public_interface() -> None:
    model = toolkit.adapt(tiny_backbone(), "lora", 3)
    model.drop_patches(toolkit.Patchout(time=0.4))
    forward = functools.partial(model.train(), tiny_batch(model.backbone)[0])
    assert forward().shape == (6, 3)

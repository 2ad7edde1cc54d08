"""Multilinear layers against their materialised tensors, and the formulas of their ranks."""

import math
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from toolkit import plugins
from toolkit.errors import ConfigError
from toolkit.testing import LargestTensor

plugins.load([Path(__file__).parent])

from toolkit_plugins.mumoe import multilinear  # noqa: E402
from toolkit_plugins.mumoe.multilinear import (  # noqa: E402
    CPLayer,
    MultilinearBlock,
    MultilinearGates,
    MultilinearLayer,
    TensorRingLayer,
    matched_rank,
)

KINDS = [CPLayer, TensorRingLayer]
MODES = [(5,), (3, 4)]
D, OUT, R = 6, 7, 3


def materialised(layer: MultilinearLayer) -> Tensor:
    """W [N1, (N2,) d + 1, o], number after number as the paper defines it."""
    factors = [*layer.experts, layer.input, layer.output]
    if isinstance(layer, CPLayer):
        shape = [len(factor) for factor in factors]
        numbers = [
            sum(
                math.prod([factor[i, r] for factor, i in zip(factors, place, strict=True)])
                for r in range(layer.output.shape[1])
            )
            for place in product(*map(range, shape))
        ]
    else:
        factors = [*(core.transpose(0, 1) for core in layer.experts), layer.input, layer.output]
        shape = [core.shape[1] for core in factors]
        numbers = [
            torch.linalg.multi_dot([c[:, i] for c, i in zip(factors, place, strict=True)]).trace()
            for place in product(*map(range, shape))
        ]
    return torch.stack(numbers).view(shape)


def applied(weight: Tensor, x: Tensor, gates: list[Tensor]) -> Tensor:
    """y_o = sum over experts and inputs of W a x, x with a one at its end."""
    extended = torch.cat([x, torch.ones_like(x[..., :1])], dim=-1)
    if len(gates) == 1:
        return torch.einsum("nio,btn,bti->bto", weight, *gates, extended)
    return torch.einsum("nmio,btn,btm,bti->bto", weight, *gates, extended)


def random_layer(kind: type[MultilinearLayer], modes: tuple[int, ...]) -> MultilinearLayer:
    """A layer whose factors do not have their initial values."""
    torch.manual_seed(0)
    layer = kind(modes, D, OUT, R).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    return layer


def inputs(modes: tuple[int, ...]) -> tuple[Tensor, list[Tensor]]:
    """Tokens [2, 3, d] and trainable gates."""
    x = torch.randn(2, 3, D, dtype=torch.float64, requires_grad=True)
    gates = [torch.rand(2, 3, n, dtype=torch.float64, requires_grad=True) for n in modes]
    return x, gates


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("modes", MODES)
def test_factorised_equals_materialised(
    kind: type[MultilinearLayer], modes: tuple[int, ...]
) -> None:
    layer = random_layer(kind, modes)
    x, gates = inputs(modes)
    tensors = [x, *gates, *layer.parameters()]
    found, expected = layer(x, gates), applied(materialised(layer), x, gates)
    torch.testing.assert_close(found, expected)
    upstream = torch.randn_like(found)
    ours = torch.autograd.grad((found * upstream).sum(), tensors)
    theirs = torch.autograd.grad((expected * upstream).sum(), tensors)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)


def random_block(kind: str, modes: tuple[int, ...], width: int | None) -> MultilinearBlock:
    """A block with an input norm, whose tensors do not have their initial values."""
    torch.manual_seed(0)
    block = MultilinearBlock(kind, modes, D, width, R, "softmax", "layer", input_norm=True)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_()
    return block.double()


@pytest.mark.parametrize("kind", ["cp", "tr"])
@pytest.mark.parametrize("modes", MODES)
@pytest.mark.parametrize("width", [None, 4])
def test_block_of_one_or_two_layers(kind: str, modes: tuple[int, ...], width: int | None) -> None:
    """The gates read the tokens, the layers read the normalised tokens."""
    block = random_block(kind, modes, width)
    x, _ = inputs(modes)
    gates = [
        (x @ g.weight)
        .sub((x @ g.weight).mean(-1, keepdim=True))
        .div((x @ g.weight).var(-1, unbiased=False, keepdim=True).add(1e-5).sqrt())
        .softmax(-1)
        for g in block.gates
    ]
    hidden = functional.layer_norm(x, (D,), block.input_norm.weight, block.input_norm.bias)
    if width is not None:
        hidden = functional.gelu(applied(materialised(block.down), hidden, gates))
    expected = applied(materialised(block.up), hidden, gates)
    torch.testing.assert_close(block(x, block.route(x)), expected)
    count = MultilinearBlock.count(kind, modes, D, width, R, input_norm=True)
    assert count == sum(p.numel() for p in block.parameters())


@pytest.mark.parametrize("kind", ["cp", "tr"])
@pytest.mark.parametrize(("modes", "mode"), [((5,), 0), ((3, 4), 0), ((3, 4), 1)])
def test_silenced_experts_have_no_weights(kind: str, modes: tuple[int, ...], mode: int) -> None:
    block = random_block(kind, modes, 4)
    before = [materialised(layer) for layer in (block.down, block.up)]
    block.silence([0, 2], mode)
    for layer, old in zip((block.down, block.up), before, strict=True):
        expected = old.clone()
        expected.movedim(mode, 0)[[0, 2]] = 0
        torch.testing.assert_close(materialised(layer), expected)


def test_silencing_an_expert_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="3 and 4 experts, numbered from 0"):
        random_block("cp", (3, 4), None).silence([3])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("modes", [(1,), (1, 1)])
def test_one_expert_is_a_linear_map_of_limited_rank(
    kind: type[MultilinearLayer], modes: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    layer = kind(modes, 20, 22, 2).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    gates = [torch.ones(1, 9, 1, dtype=torch.float64) for _ in modes]
    x = torch.randn(1, 9, 20, dtype=torch.float64)
    bias = layer(torch.zeros_like(x), gates)
    matrix = layer(torch.eye(20, dtype=torch.float64)[None], [g[:, :1] for g in gates])
    matrix = matrix[0] - bias[0, :1]  # [d, o]
    torch.testing.assert_close(layer(x, gates), x @ matrix + bias)
    limit = 2 if kind is CPLayer else 2 * multilinear.RING
    assert torch.linalg.matrix_rank(matrix).item() == limit < 20


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("modes", [(64,), (16, 32)])
def test_start(kind: type[MultilinearLayer], modes: tuple[int, ...]) -> None:
    """Experts vary around 1, those of the second mode less; rings start with diagonal slices."""
    torch.manual_seed(0)
    layer = kind(modes, 50, 8, 40)
    for mode, factor in enumerate(layer.experts):
        diagonal = factor if kind is CPLayer else factor.diagonal(dim1=1, dim2=2)
        assert diagonal.mean().item() == pytest.approx(1.0, abs=0.3)
        assert diagonal.std().item() == pytest.approx(multilinear.SPREAD[mode], rel=0.2)
        if kind is TensorRingLayer:
            assert torch.count_nonzero(factor) == diagonal.numel()
    assert layer.input.abs().max().item() == pytest.approx(1 / math.sqrt(50), rel=0.05)
    fan = 40 if kind is CPLayer else 40 * multilinear.RING
    assert layer.output.abs().max().item() == pytest.approx(1 / math.sqrt(fan), rel=0.05)


@pytest.mark.parametrize("budget", [10_000, 54_321, 600_000])
def test_matched_ranks_are_the_papers(budget: int) -> None:
    n, d, o = 8, 30, 20
    cp = matched_rank(budget, lambda r: n * d + CPLayer.count((n,), d, o, r))
    assert cp == math.ceil((budget - n * d) / (d + 1 + o + n))
    tr = matched_rank(budget, lambda r: n * d + TensorRingLayer.count((n,), d, o, r))
    assert tr == math.ceil((budget - 16 * n - n * d) / (4 * (d + 1) + 4 * o))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("modes", MODES)
def test_counts(kind: type[MultilinearLayer], modes: tuple[int, ...]) -> None:
    layer = kind(modes, D, OUT, R)
    counted = sum(parameter.numel() for parameter in layer.parameters())
    closed = R * (sum(modes) + D + 1 + OUT)
    if kind is TensorRingLayer:
        closed = 16 * sum(modes) + R * 4 * (D + 1 + OUT)
    assert counted == kind.count(modes, D, OUT, R) == closed


@pytest.mark.parametrize("kind", KINDS)
def test_experts_of_the_second_mode_can_grow_apart(kind: type[MultilinearLayer]) -> None:
    """If they were all equal at the start, uniform gates would get no gradient."""
    torch.manual_seed(0)
    layer = kind((3, 4), D, OUT, R).double()
    x, _ = inputs((3, 4))
    gates = [torch.full((2, 3, n), 1 / n, dtype=torch.float64) for n in (3, 4)]
    for gate in gates:
        gate.requires_grad_()
    layer(x, gates).square().sum().backward()
    assert all((gate.grad.std(-1) > 1e-4).all() for gate in gates)


# Gates


@pytest.mark.parametrize("act", ["entmax15", "softmax"])
@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
@pytest.mark.parametrize("training", [True, False])
def test_gates_start_uniform_and_learn(act: str, norm: str, training: bool) -> None:
    torch.manual_seed(0)
    gates = MultilinearGates(D, 5, act, norm).train(training)
    out = gates(torch.randn(2, 7, D))
    torch.testing.assert_close(out, torch.full((2, 7, 5), 0.2))
    (out * torch.randn(2, 7, 5)).sum().backward()
    assert gates.weight.grad.norm() > 0
    with torch.no_grad():
        gates.weight.normal_()
    out = gates(torch.randn(2, 7, D))
    torch.testing.assert_close(out.sum(-1), torch.ones(2, 7))
    assert (out == 0).any() == (act == "entmax15")


def test_norms_in_front_of_the_gates() -> None:
    torch.manual_seed(0)
    x = 5 + 3 * torch.randn(4, 7, D)
    for norm, dims in (("batch", (0, 1)), ("layer", (2,))):
        gates = MultilinearGates(D, 5, "softmax", norm)
        torch.nn.init.normal_(gates.weight)
        scores = x @ gates.weight
        centred = scores - scores.mean(dims, keepdim=True)
        scaled = centred / (scores.var(dims, keepdim=True, unbiased=False) + 1e-5).sqrt()
        torch.testing.assert_close(gates(x), scaled.softmax(-1), rtol=1e-4, atol=1e-5)


def test_metrics_equal_those_of_all_experts() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 4, D)
    first, second = (MultilinearGates(D, n, "entmax15", "none") for n in (5, 3))
    for gates in (first, second):
        torch.nn.init.normal_(gates.weight)
    a, b = first(x), second(x)
    joint = torch.einsum("btn,btm->btnm", a, b).flatten(2)
    for gates, all_experts in (([a], a), ([a, b], joint)):
        found = multilinear.metrics([gate.flatten(0, 1) for gate in gates])
        flat = all_experts.flatten(0, 1)
        torch.testing.assert_close(found["load"], flat.mean(0))
        entropy = torch.distributions.Categorical(flat, validate_args=False).entropy().mean()
        assert found["gate_entropy"].item() == pytest.approx(
            entropy.item() / math.log(flat.shape[1]), abs=1e-4
        )
        assert found["active_mean"].item() == (flat > 0).sum(1).float().mean().item()


# Blocks


@pytest.mark.parametrize("kind", ["cp", "tr"])
@pytest.mark.parametrize("modes", MODES)
def test_block_by_hand(kind: str, modes: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    block = MultilinearBlock(kind, modes, D, 4, R, "entmax15", "none").double()
    x = torch.randn(2, 3, D, dtype=torch.float64)
    assert torch.count_nonzero(block(x, block.route(x))) == 0
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_()
    gates = block.route(x)
    hidden = applied(materialised(block.down), x, gates)
    expected = applied(materialised(block.up), functional.gelu(hidden), gates)
    torch.testing.assert_close(block(x, gates), expected)
    counted = sum(parameter.numel() for parameter in block.parameters())
    assert counted == MultilinearBlock.count(kind, modes, D, 4, R)


@pytest.mark.parametrize("kind", ["cp", "tr"])
@pytest.mark.parametrize("modes", [(32,), (8, 16)])
def test_the_tensor_is_never_made(kind: str, modes: tuple[int, ...]) -> None:
    dim, width = 24, 16
    block = MultilinearBlock(kind, modes, dim, width, R, "entmax15", "batch")
    with LargestTensor() as watch:
        x = torch.randn(2, 10, dim, requires_grad=True)
        block(x, block.route(x)).sum().backward()
    assert watch.numel < math.prod(modes) * dim * width / 5

"""SSAST's own files: converted weights against timm's computation, written out."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from toolkit import backbones
from toolkit.errors import BackboneError, ConfigError

WIDTH, HEADS, DEPTH, BINS, FRAMES = 128, 2, 2, 32, 64


def checkpoint(seed: int = 0, patch: tuple[int, int] = (16, 16)) -> dict[str, Tensor]:
    """Random tensors with the names and shapes of a file of SSAST-Patch, heads included."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return 0.1 * torch.randn(shape, generator=generator)

    tokens = (BINS // patch[0]) * (FRAMES // patch[1])
    shapes = {
        "cls_token": (1, 1, WIDTH), "dist_token": (1, 1, WIDTH),
        "pos_embed": (1, 2 + tokens, WIDTH),
        "patch_embed.proj.weight": (WIDTH, 1, *patch), "patch_embed.proj.bias": (WIDTH,),
        "norm.weight": (WIDTH,), "norm.bias": (WIDTH,),
        "head.weight": (10, WIDTH), "head_dist.bias": (10,),
    }  # fmt: skip
    for number in range(DEPTH):
        for part, out, inner in (
            ("attn.qkv", 3 * WIDTH, WIDTH), ("attn.proj", WIDTH, WIDTH),
            ("mlp.fc1", 4 * WIDTH, WIDTH), ("mlp.fc2", WIDTH, 4 * WIDTH),
        ):  # fmt: skip
            shapes[f"blocks.{number}.{part}.weight"] = (out, inner)
            shapes[f"blocks.{number}.{part}.bias"] = (out,)
        for part in ("norm1", "norm2"):
            shapes[f"blocks.{number}.{part}.weight"] = (WIDTH,)
            shapes[f"blocks.{number}.{part}.bias"] = (WIDTH,)
    tensors = {f"module.v.{name}": draw(*shape) for name, shape in shapes.items()}
    sizes = {"module.p_input_fdim": BINS, "module.p_input_tdim": FRAMES}
    return {
        **tensors,
        **{name: torch.tensor(size) for name, size in sizes.items()},
        "module.mask_embed": draw(1, 1, WIDTH),
        "module.cpredlayer.0.weight": draw(WIDTH, WIDTH),
    }


def reference(tensors: dict[str, Tensor], x: Tensor) -> Tensor:
    """The encoder as timm and SSAST compute it: features [B, T, F] -> tokens [B, M, d]."""
    v = {name.removeprefix("module.v."): tensor for name, tensor in tensors.items()}

    def linear(name: str, y: Tensor) -> Tensor:
        return functional.linear(y, v[f"{name}.weight"], v[f"{name}.bias"])

    def norm(name: str, y: Tensor) -> Tensor:
        return functional.layer_norm(y, (WIDTH,), v[f"{name}.weight"], v[f"{name}.bias"], 1e-6)

    image = x.mT[:, None]
    weight, bias = v["patch_embed.proj.weight"], v["patch_embed.proj.bias"]
    patches = functional.conv2d(image, weight, bias, stride=16).flatten(2).mT
    special = [v[name].expand(len(x), -1, -1) for name in ("cls_token", "dist_token")]
    y = torch.cat([*special, patches], dim=1) + v["pos_embed"]
    for number in range(DEPTH):
        block = f"blocks.{number}"
        qkv = linear(f"{block}.attn.qkv", norm(f"{block}.norm1", y))
        q, k, w = qkv.view(*y.shape[:2], 3, HEADS, 64).permute(2, 0, 3, 1, 4)
        mixed = (q @ k.mT / 8).softmax(dim=-1) @ w
        y = y + linear(f"{block}.attn.proj", mixed.transpose(1, 2).flatten(2))
        hidden = functional.gelu(linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", y)))
        y = y + linear(f"{block}.mlp.fc2", hidden)
    return norm("norm", y)


def write(tensors: dict[str, Tensor], folder: Path) -> str:
    """Write a file in the format of the authors."""
    torch.save(tensors, folder / "ssast.pth")
    return str(folder / "ssast.pth")


def test_tokens_are_those_of_the_original(tmp_path: Path) -> None:
    tensors = checkpoint()
    source = backbones.create({"name": "ssast", "source": write(tensors, tmp_path)})
    backbone = source.load(FRAMES)
    x = torch.randn(3, FRAMES, BINS, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(backbone(x), reference(tensors, x), rtol=0, atol=1e-5)
    assert (backbone.depth, backbone.dim, backbone.grid) == (DEPTH, WIDTH, (2, 4))
    assert source.spec(FRAMES) == backbone.features
    assert source.architecture(FRAMES).stock == backbone.stock


def test_another_length_and_stride(tmp_path: Path) -> None:
    file = write(checkpoint(), tmp_path)
    backbone = backbones.create({"name": "ssast", "source": file, "stride": 8}).load(40)
    assert backbone.grid == (3, 4)
    with torch.no_grad():
        assert backbone(torch.zeros(1, 40, BINS)).shape == (1, 2 + 12, WIDTH)


def test_the_first_blocks_alone(tmp_path: Path) -> None:
    tensors = checkpoint()
    settings = {"name": "ssast", "source": write(tensors, tmp_path)}
    source = backbones.create({**settings, "depth": 1})
    alone = {n: t for n, t in tensors.items() if not n.startswith("module.v.blocks.1.")}
    (tmp_path / "alone").mkdir()
    expected = backbones.create({"name": "ssast", "source": write(alone, tmp_path / "alone")})
    assert source.load(FRAMES).fingerprint == expected.load(FRAMES).fingerprint
    assert source.architecture(FRAMES).stock == source.load(FRAMES).stock
    with pytest.raises(ConfigError, match="more than the 2 blocks"):
        backbones.create({**settings, "depth": DEPTH + 1}).spec(FRAMES)


@pytest.mark.parametrize("change", ["missing", "extra"])
def test_a_file_that_is_not_whole_is_refused(change: str, tmp_path: Path) -> None:
    tensors = checkpoint()
    if change == "missing":
        del tensors["module.v.blocks.1.mlp.fc2.bias"]
    else:
        tensors["module.v.blocks.1.gate"] = torch.zeros(1)
    source = backbones.create({"name": "ssast", "source": write(tensors, tmp_path)})
    with pytest.raises(BackboneError, match="not a whole SSAST"):
        source.load(FRAMES)


def test_frames_instead_of_patches_are_refused(tmp_path: Path) -> None:
    file = write(checkpoint(patch=(32, 2)), tmp_path)
    with pytest.raises(BackboneError, match="use an SSAST-Patch checkpoint"):
        backbones.create({"name": "ssast", "source": file}).load(FRAMES)


@pytest.mark.parametrize("content", [None, b"no tensors"])
def test_what_is_no_file_of_tensors(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "ssast.pth").write_bytes(content)
    with pytest.raises(BackboneError, match="name one of SSAST"):
        backbones.create({"name": "ssast", "source": str(tmp_path / "ssast.pth")}).load(FRAMES)

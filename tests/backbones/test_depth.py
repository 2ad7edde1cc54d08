"""`backbone.depth`: the first blocks of any family, and what cannot be cut."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from toolkit import backbones, testing
from toolkit.backbones.ast import TINY
from toolkit.backbones.base import Backbone
from toolkit.bundle import load_bundle, save_bundle
from toolkit.errors import BundleError, ConfigError
from toolkit.model import AudioClassifier
from toolkit.registry import BACKBONES, PEFT
from toolkit.task import ONE_CLASS
from toolkit.testing import matrix

FAMILIES = matrix.families()
BLOCKS = 3


def stock_model(family: str, blocks: int) -> nn.Module:
    """A small random stock model; CLAP has one block in its first stage, the rest in its second."""
    source = BACKBONES.get(family)
    count: dict[str, Any] = {"num_hidden_layers": blocks}
    if family == "clap":
        count = {"depths": [1, blocks - 1]}
    values = {**source.tiny_config, **source.options}
    values.pop("encoder_layers", None)
    model: nn.Module = source.model_class(source.config_class(**{**values, **count})).eval()
    return model


def write(family: str, folder: Path) -> nn.Module:
    """A checkpoint of `BLOCKS` blocks."""
    source = BACKBONES.get(family)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = stock_model(family, BLOCKS)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)  # type: ignore[operator]
    source.extractor_class(**source.tiny_extractor).save_pretrained(folder)
    return model


def load(family: str, folder: Path, depth: int | None) -> Backbone:
    settings = {} if depth is None else {"depth": depth}
    source = backbones.create({"name": str(folder), **settings})
    assert source.registered_name == family
    return source.load(BACKBONES.get(family).tiny_length)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_blocks_are_a_stock_model_of_so_many(family: str, tmp_path: Path) -> None:
    whole, source = write(family, tmp_path), BACKBONES.get(family)
    shorter = stock_model(family, BLOCKS - 1)
    tensors = whole.state_dict()
    shorter.load_state_dict({name: tensors[name] for name in shorter.state_dict()})
    extractor = source.extractor_class(**source.tiny_extractor)
    expected = source().wrap(shorter, extractor, source.tiny_length)
    found = load(family, tmp_path, BLOCKS - 1)
    rows, lengths = testing.tiny_rows(found, clips=2)
    features = found.features.normalise(rows, lengths)
    with torch.no_grad():
        torch.testing.assert_close(
            found(features, lengths), expected(features, lengths), rtol=0, atol=0
        )
    assert found.depth == BLOCKS - 1 == expected.depth
    assert found.fingerprint == expected.fingerprint != load(family, tmp_path, None).fingerprint
    assert found.stock == expected.stock  # no tensor of the last block is kept
    assert load(family, tmp_path, BLOCKS).fingerprint == load(family, tmp_path, None).fingerprint


@pytest.mark.parametrize("family", FAMILIES)
def test_the_architecture_is_as_deep(family: str, tmp_path: Path) -> None:
    write(family, tmp_path)
    source = backbones.create({"name": str(tmp_path), "depth": BLOCKS - 1})
    length = BACKBONES.get(family).tiny_length
    assert source.architecture(length).stock == source.load(length).stock
    assert source.spec(length) == load(family, tmp_path, None).features


@pytest.mark.parametrize("family", FAMILIES)
def test_more_blocks_than_there_are(family: str, tmp_path: Path) -> None:
    write(family, tmp_path)
    source, length = backbones.create({"name": str(tmp_path), "depth": BLOCKS + 1}), 1
    for use in (source.spec, source.load, source.architecture):
        with pytest.raises(ConfigError, match=f"'depth' 4 is more than the 3 blocks of {tmp_path}"):
            use(length)


def test_stages_of_clap_cannot_be_left_out(tmp_path: Path) -> None:
    write("clap", tmp_path)
    with pytest.raises(ConfigError, match=r"depth' 1 ends before the last stage.*depth 2` or more"):
        load("clap", tmp_path, 1)


@pytest.mark.parametrize("depth", [0, -1, 1.5, "2"])
def test_what_is_no_depth(depth: Any) -> None:
    with pytest.raises(ConfigError, match="'depth' must be"):
        backbones.create({"name": "ast_tiny", "depth": depth})


def test_weighted_pooling_mixes_the_blocks_that_are_there() -> None:
    backbone = backbones.load_backbone("ast_tiny", max_length=64, depth=2)
    model = AudioClassifier(backbone, PEFT.create("linear_probe"), 3, "weighted").eval()
    assert model.layers is not None and model.layers.weights.shape == (3,)
    assert model(torch.zeros(2, 64, backbone.features.width)).shape == (2, 3)


@pytest.mark.parametrize("place", [None, str(TINY)])
def test_a_bundle_remembers_the_depth(place: str | None, tmp_path: Path) -> None:
    """Also where its backbone is named anew."""
    torch.manual_seed(0)
    backbone = backbones.load_backbone(str(TINY), max_length=64, depth=2)
    model = AudioClassifier(backbone, PEFT.create("lora"), 2, "all").eval()
    save_bundle(tmp_path / "bundle", model, ["a", "b"], ONE_CLASS)
    found = load_bundle(tmp_path / "bundle", place).model
    rows, _ = testing.tiny_rows(backbone, clips=2)
    with torch.no_grad():
        torch.testing.assert_close(found.logits(rows), model.logits(rows), rtol=0, atol=0)
    assert found.backbone.depth == 2


def test_a_bundle_of_another_depth_is_refused(tmp_path: Path) -> None:
    backbone = backbones.load_backbone("ast_tiny", max_length=64, depth=2)
    model = AudioClassifier(backbone, PEFT.create("lora"), 2, "all")
    save_bundle(tmp_path / "bundle", model, ["a", "b"], ONE_CLASS)
    with pytest.raises(BundleError, match="trained on another backbone"):
        load_bundle(tmp_path / "bundle", backbones.load_backbone("ast_tiny", max_length=64))

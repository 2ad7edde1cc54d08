"""The papers' reference code, tensor by tensor: every golden file is reproduced.

`index.json` in the golden folder says what each file holds. Files are named by the reference's
parameter names; `place_of` says where each of them is in our modules.
"""

import functools
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

from conftest import GOLDEN
from toolkit.backbones.ast import AST, ASTBackbone
from toolkit.backbones.base import Site
from toolkit.experts.base import Experts
from toolkit.experts.bottleneck import Bottleneck
from toolkit.experts.conformer import Conformer
from toolkit.experts.convpass import Convpass
from toolkit.model import AudioClassifier
from toolkit.peft import insertion
from toolkit.peft.adapter import SingleAdapter
from toolkit.peft.dense_moa import DenseMixture
from toolkit.peft.lora import LowRank
from toolkit.peft.prefix import KeysValues
from toolkit.peft.soft_moa import SoftMixture
from toolkit.registry import PEFT
from toolkit.routing import soft

TOLERANCE = {torch.float64: 1e-9, torch.float32: 5e-6}
POOLING = {"ALL": "all", "CLS": "first", "PROMPTS": "prompts", "PROMPTS+SPEECH": "prompts+patches"}
PLACEMENT = {"MHSA": "mhsa", "FFN": "ffn", "MHSA+FFN": "both"}
V5_NAMES = {
    "attention.attention.query": "attention.q_proj", "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj", "attention.output.dense": "attention.o_proj",
    "intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2", "encoder.layer": "layers",
}  # fmt: skip

Place = tuple[str, Callable[[Tensor], Tensor]]


@functools.cache
def index() -> dict[str, Any]:
    """What the golden files are; empty where there are none."""
    file = GOLDEN / "index.json"
    return json.loads(file.read_text())["goldens"] if file.is_file() else {}


def of_kind(*kinds: str) -> list[str]:
    """Names of the golden files of some kinds."""
    return sorted(n for n, entry in index().items() if entry["kind"].split(" (")[0] in kinds)


def read(golden: Path, name: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a golden file."""
    with np.load(golden / f"{name}.npz") as file:
        tensors = {key: torch.from_numpy(file[key]) for key in file.files}
    return {k: t.to(dtype) if t.is_floating_point() else t for k, t in tensors.items()}


def assert_near(found: Tensor, expected: Tensor, dtype: torch.dtype, size: float = 1.0) -> None:
    """Equal within the tolerance of a dtype, times `size` or the largest number if that is more."""
    atol = TOLERANCE[dtype] * max(size, float(expected.abs().max()))
    torch.testing.assert_close(found, expected, rtol=0, atol=atol, check_dtype=False)


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself."""
    return tensor


def part_of_experts(part: str, expert: int, width: int) -> Place:
    """Where a part of one of the reference's adapters is in our batched experts."""

    def rows(tensor: Tensor) -> Tensor:
        return tensor[expert * width : (expert + 1) * width]

    def own(tensor: Tensor) -> Tensor:
        return tensor[expert]

    def pointwise(tensor: Tensor) -> Tensor:
        return tensor[expert][..., None]

    places: dict[str, Place] = {
        "down.weight": ("down", own), "down.bias": ("down_bias", own),
        "up.weight": ("up", own), "up.bias": ("up_bias", own),
        "pointwise_in.weight": ("down", pointwise), "pointwise_in.bias": ("down_bias", own),
        "pointwise_out.weight": ("up", pointwise), "pointwise_out.bias": ("up_bias", own),
        "norm.weight": ("norm_weight", own), "norm.bias": ("norm_bias", own),
        "batchnorm.num_batches_tracked": ("batch_norm.num_batches_tracked", whole),
    }  # fmt: skip
    if part in places:
        return places[part]
    return part.replace("batchnorm", "batch_norm"), rows


def part_of_mixture(part: str, width: int) -> Place:
    """Where a part of one of the reference's mixtures is in ours."""
    expert = re.fullmatch(r"expert\.(\d+)\.(.*)", part)
    if expert:
        name, select = part_of_experts(expert[2], int(expert[1]), width)
        return f"experts.{name}", select
    known = {"slots": "phi", "slot_scale": "scale", "router.weight": "router.linear.weight",
             "router.bias": "router.linear.bias"}  # fmt: skip
    return known[part], whole


def place_of(name: str, backbone: ASTBackbone, config: dict[str, Any], method: str) -> Place:
    """Where one of the reference model's parameters is in ours: lasting name and selection."""
    if name.startswith("head."):
        return name, whole
    width = config.get("bottleneck") or round(48 / config.get("reduction_rate", 48))
    if found := re.fullmatch(r"layer\.(\d+)\.lora\.(query|key|value)\.(down|up)", name):
        return f"blocks.{found[1]}.attn.{found[2][0]}.lora.{found[3]}.weight", whole
    if found := re.fullmatch(r"layer\.(\d+)\.prefix\.(key|value)", name):
        return f"blocks.{found[1]}.mhsa.prefix.{found[2]}s", lambda t: t[None]
    if name == "prompt.shallow":
        return "embedding.prompt.tokens", whole
    if name == "prompt.deep":  # the golden model has two layers
        return "blocks.1.prompt.tokens", whole
    pattern = r"layer\.(\d+)\.(?:(ffn|mhsa)_)?(adapter|moa|router)\.(.*)"
    if found := re.fullmatch(pattern, name):
        location = found[2] or config.get("location", "FFN").lower()
        prefix = f"blocks.{found[1]}.{location}.{method}."
        if found[3] == "adapter":
            part, select = part_of_experts(found[4], 0, width)
            return f"{prefix}experts.{part}", select
        part = found[4] if found[3] == "moa" else f"router.{found[4]}"
        own, select = part_of_mixture(part, width)
        return prefix + own, select
    return backbone.canonical(v5(name)), whole


def v5(name: str) -> str:
    """A tensor name of transformers 4 as transformers 5 has it."""
    for old, new in V5_NAMES.items():
        name = name.replace(old, new)
    return name


def settings_of(config: dict[str, Any]) -> dict[str, Any]:
    """Our settings for one of the reference's configurations."""
    common = {"reference": True, "zero_positions": False}
    if "derived" in config.get("note", "").lower() and "added once" in config["note"]:
        common["add_twice"] = False
    method = config["method"]
    mixture = {"Dense-MoA": "dense_moa", "Soft-MoA": "soft_moa"}
    if method in mixture:
        own = {
            "num_experts": config["num_adapters"], "block": config["module"],
            "placement": "both" if config["type"] == "Houlsby" else PLACEMENT[config["location"]],
            "reduction": config["reduction_rate"],
        }  # fmt: skip
        if method == "Soft-MoA":
            own |= {"slots": config["num_slots"], "normalize": config["normalize"]}
        return {"name": mixture[method], **common, **own}
    if method.startswith("adapter"):
        own = {"block": config["block"], "reduction": config["reduction_rate"]}
        own |= {"kernel": config["kernel"]} if config.get("kernel") else {}
        if method == "adapter ablation":
            mode = "before" if config["side"] == "before" else "sequential"
            mode = "parallel" if (config["insertion"], mode) == ("parallel", "before") else mode
            own |= {"placement": PLACEMENT[config["location"]], "mode": mode}
            own |= {"residual": mode == "sequential"}
        else:
            placement = "both" if config["type"] == "Houlsby" else "ffn"
            own |= {"placement": placement, "mode": config["insertion"]}
            own |= {"residual": config["residual"]}
        return {"name": "adapter", **common, **own}
    if method.startswith("LoRA"):
        targets = sorted({m.strip()[-1] if m.startswith("W") else m.strip()[0]
                          for m in config.get("matrices", "query,value").split(",")})  # fmt: skip
        own = {"reduction": config["reduction_rate"], "alpha": config["alpha"], "targets": targets}
        return {"name": "lora", **common, **own}
    names = {
        "linear probe": "linear_probe", "full fine-tuning": "full", "BitFit": "bitfit",
        "shallow prompt tuning": "prompt_shallow", "deep prompt tuning": "prompt_deep",
        "prefix tuning": "prefix",
    }  # fmt: skip
    own = {key: config[key] for key in ("prompts", "tokens") if key in config}
    return {"name": names[method], **common, **own}


def golden_backbone(golden: Path, dtype: torch.dtype) -> ASTBackbone:
    """The tiny AST of all golden models."""
    config = {k: v for k, v in index()["backbone"]["config"].items() if isinstance(v, int | float)}
    model = ASTModel(ASTConfig(**{k: v for k, v in config.items() if k != "dropout"}))
    arrays = read(golden, "backbone", torch.float64)
    model.load_state_dict({v5(name.removeprefix("param/")): t for name, t in arrays.items()})
    extractor = ASTFeatureExtractor(num_mel_bins=config["num_mel_bins"])
    return AST().wrap(model.to(dtype), extractor, config["max_length"])


class Model:
    """One of the reference's models, rebuilt and loaded with a golden file's parameters."""

    def __init__(self, golden: Path, name: str, dtype: torch.dtype) -> None:
        self.entry, self.config = index()[name], index()[name]["config"]
        self.arrays = read(golden, name, dtype)
        settings = settings_of(self.config)
        backbone = golden_backbone(golden, dtype)
        pooling = POOLING[self.config.get("final_output", "ALL")]
        method = PEFT.create(settings)
        self.classifier = AudioClassifier(backbone, method, 5, pooling).to(dtype)
        self.tensors = {
            self.classifier._lasting_name(n): t
            for n, t in self.classifier.state_dict(keep_vars=True).items()
        }
        self.place = functools.partial(
            place_of, backbone=backbone, config=self.config, method=settings["name"]
        )
        with torch.no_grad():
            for kind in ("param", "buffer"):
                for own, golden_tensor in self.items(kind):
                    own.copy_(golden_tensor)

    def items(self, kind: str, of: str = "value") -> Iterator[tuple[Tensor, Tensor]]:
        """Pairs of our tensor (or its gradient) and the golden one."""
        for key, expected in self.arrays.items():
            if key.startswith(f"{kind}/"):
                name, select = self.place(key.removeprefix(f"{kind}/"))
                tensor = self.tensors[name]
                yield select(tensor.grad if of == "grad" else tensor), expected


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["64", "32"])
@pytest.mark.parametrize("name", of_kind("full model"))
def test_full_model(name: str, dtype: torch.dtype, golden: Path) -> None:
    model = Model(golden, name, dtype)
    classifier, arrays = model.classifier, model.arrays
    classifier.train(model.entry["mode"] == "train")
    inputs = read(golden, "inputs", dtype)
    encoded = []
    classifier.backbone.norm.register_forward_pre_hook(lambda _, args: encoded.append(args[0]))
    logits = classifier(inputs["input"])
    loss = functional.cross_entropy(logits, inputs["labels"])
    loss.backward()
    assert_near(logits, arrays["logits"], dtype)
    assert_near(loss, arrays["loss"], dtype)
    assert_near(encoded[0][:1], arrays["encoder_out"], dtype)
    pairs = list(model.items("grad", of="grad"))
    assert pairs
    for found, expected in pairs:
        assert_near(found, expected, dtype)
    for found, expected in model.items("buffer_after"):
        assert_near(found, expected, dtype)
    trainable = model.entry["trainable"]
    if isinstance(trainable, list):
        places = {model.place(n)[0] for n in trainable}
        assert places == classifier.trainable().keys()
        unreached = {model.place(n)[0] for n in model.entry["trainable_without_gradient"]}
        ours = {n for n, p in classifier.trainable().items() if p.grad is None}
        assert ours == unreached
    else:
        assert all(p.requires_grad for p in classifier.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["64", "32"])
@pytest.mark.parametrize("name", of_kind("training trajectory"))
def test_trajectory(name: str, dtype: torch.dtype, golden: Path) -> None:
    model = Model(golden, name, dtype)
    classifier, config = model.classifier, model.config
    groups = classifier.method.parameter_groups(classifier.trainable(), config["lr"])
    optimizer = torch.optim.AdamW(
        groups, betas=config["betas"], eps=config["eps"], weight_decay=config["weight_decay"]
    )
    for step in range(config["steps"]):
        lr = 0.5 * config["lr"] * (1 + math.cos(math.pi * step / config["T_max"]))
        for group in optimizer.param_groups:
            group["lr"] = lr
        assert lr == pytest.approx(float(model.arrays["lrs"][step]), rel=1e-6)
        batch = np.random.default_rng(100 + step).standard_normal((3, 64, 32))
        labels = np.random.default_rng(200 + step).integers(0, 5, 3)
        classifier.train()
        logits = classifier(torch.from_numpy(batch).to(dtype))
        loss = functional.cross_entropy(logits, torch.from_numpy(labels))
        assert_near(loss, model.arrays["losses"][step], dtype)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # Adam divides by a gradient's own size: single precision's rounding of a small one is seen.
    size = 1 if dtype is torch.float64 else 4
    for found, expected in model.items("param_after"):
        assert_near(found, expected, dtype, size)
    classifier.eval()
    logits = classifier(read(golden, "inputs", dtype)["input"])
    assert_near(logits, model.arrays["logits_after"], dtype)


def bare_experts(config: dict[str, Any], count: int, kind: str) -> Experts:
    """Experts as a bare golden module has them."""
    shape = (count, config["d"], config["r"])
    if kind == "bottleneck":
        return Bottleneck(*shape)
    if kind == "convpass":
        return Convpass(*shape, convolve="with its convolution" in config["module"])
    return Conformer(*shape, config["kernel"], norm="IS applied" in config["module"])


def bare_module(config: dict[str, Any]) -> nn.Module:
    """Our module for a bare golden one."""
    if "Soft-MoA" in config["module"]:
        experts = bare_experts(config, config["experts"], config["expert"])
        return SoftMixture(experts, config["slots"], config["normalize"], over_experts=True)
    if "Dense-MoA" in config["module"]:
        return DenseMixture(bare_experts(config, config["experts"], config["expert"]))
    kind = config["module"].split(" ")[0]
    return SingleAdapter(bare_experts(config, 1, kind), 1.0, False, residual=False)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["64", "32"])
@pytest.mark.parametrize("name", [n for n in of_kind("bare module") if "attention" not in n])
def test_bare_module(name: str, dtype: torch.dtype, golden: Path) -> None:
    entry, arrays = index()[name], read(golden, name, dtype)
    config = entry["config"]
    module = bare_module(config).to(dtype).train(entry["mode"] == "train")
    tensors = module.state_dict(keep_vars=True)

    def pairs(kind: str) -> Iterator[tuple[Tensor, Callable[[Tensor], Tensor], Tensor]]:
        for key, expected in arrays.items():
            if key.startswith(f"{kind}/"):
                part = key.removeprefix(f"{kind}/")
                if "MoA" in config["module"]:
                    place, select = part_of_mixture(part, config["r"])
                else:
                    place, select = part_of_experts(part, 0, config["r"])
                    place = f"experts.{place}"
                yield tensors[place], select, expected

    with torch.no_grad():
        for kind in ("param", "buffer"):
            for tensor, select, expected in pairs(kind):
                select(tensor).copy_(expected)
    x = arrays["input"].clone().requires_grad_()
    out = module(x)
    (out * arrays["upstream"]).sum().backward()
    assert_near(out, arrays["output"], dtype)
    assert_near(x.grad, arrays["grad_input"], dtype)
    for tensor, select, expected in pairs("grad"):
        assert_near(select(tensor.grad), expected, dtype)
    for tensor, select, expected in pairs("buffer_after"):
        assert_near(select(tensor), expected, dtype)
    check_inner(module, arrays, dtype)


@torch.no_grad()
def check_inner(module: nn.Module, arrays: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Dispatch, combine, slots; gates and every expert's output."""
    x = arrays["input"]
    if isinstance(module, SoftMixture):
        phi = module.phi
        if module.scale is not None:
            x, phi = soft.normalised_over_experts(x, phi, module.scale)
        routing = soft.route(x, phi)
        assert_near(routing.dispatch, arrays["dispatch"], dtype)
        assert_near(routing.combine, arrays["combine"], dtype)
        slots = routing.slots(x)
        assert_near(slots, arrays["slot_inputs"], dtype)
        assert_near(module.experts(slots), arrays["slot_outputs"], dtype)
    elif isinstance(module, DenseMixture):
        assert_near(module.router(x), arrays["router_probs"], dtype)
        count = module.experts.num_experts
        outputs = module.experts(x[:, None].expand(-1, count, -1, -1))
        assert_near(outputs.permute(0, 2, 3, 1), arrays["expert_outputs"], dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["64", "32"])
@pytest.mark.parametrize("name", [n for n in of_kind("bare module") if "attention" in n])
def test_bare_attention(name: str, dtype: torch.dtype, golden: Path) -> None:
    config, arrays = index()[name]["config"], read(golden, name, dtype)
    dim = config["d"]
    stock = ASTConfig(hidden_size=dim, num_attention_heads=config["heads"], num_hidden_layers=1)
    layer = ASTModel(stock).layers[0]
    attention = layer.attention
    attention.o_proj = nn.Identity()
    places: dict[str, Place] = {
        f"{word}.{kind}": (f"attention.{word[0]}_proj.{kind}", whole)
        for word in ("query", "key", "value")
        for kind in ("weight", "bias")
    }
    if "lora" in name:
        for word in ("query", "value"):
            site = Site(0, f"attn.{word[0]}", attention, f"{word[0]}_proj", dim, dim)
            insertion.parallel(
                site, "lora", LowRank(dim, dim, config["inner_dim"], config["scaling"])
            )
            for kind in ("weight", "bias"):
                places[f"{word}.{kind}"] = (f"attention.{word[0]}_proj.wrapped.{kind}", whole)
            for part in ("down", "up"):
                path = f"attention.{word[0]}_proj.lora.{part}.weight"
                places[f"lora.{word}.{part}"] = (path, whole)
    else:
        site = Site(0, "mhsa", layer, "attention", dim, dim)
        stub = SimpleNamespace(config=attention.config)
        backbone = SimpleNamespace(model=stub, require=lambda ability: None)
        insertion.keys_values(backbone, site, "prefix", KeysValues(config["tokens"] // 2, dim))
        places = {
            k: (p.replace("attention.", "attention.wrapped."), s) for k, (p, s) in places.items()
        }
        for word in ("key", "value"):
            places[f"prefix.{word}"] = (f"attention.prefix.{word}s", lambda t: t[None])
    layer = layer.to(dtype)
    with torch.no_grad():
        for key, (path, select) in places.items():
            select(layer.get_parameter(path)).copy_(arrays[f"param/{key}"])
    x = arrays["input"].clone().requires_grad_()
    out = layer.attention(x)[0]
    (out * arrays["upstream"]).sum().backward()
    assert_near(out, arrays["output"], dtype)
    assert_near(x.grad, arrays["grad_input"], dtype)
    gradients = [key for key in arrays if key.startswith("grad/")]
    # The keys' bias has no gradient but what is left when large numbers cancel.
    size = max(float(arrays[key].abs().max()) for key in gradients)
    for key in gradients:
        path, select = places[key.removeprefix("grad/")]
        assert_near(select(layer.get_parameter(path).grad), arrays[key], dtype, size)


def test_every_file_is_of_a_kind_that_is_tested(golden: Path) -> None:
    kinds = {entry["kind"].split(" (")[0] for entry in index().values()}
    assert kinds == {
        "backbone", "inputs", "features", "full model", "bare module", "training trajectory",
    }  # fmt: skip

"""What is specific to each method: its equation, sharing, merging and invalid settings."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from toolkit import plugins
from toolkit.backbones.ast import ASTBackbone
from toolkit.errors import ConfigError
from toolkit.model import AudioClassifier
from toolkit.peft import insertion
from toolkit.peft.adalora import Triplets
from toolkit.peft.base import chosen_blocks
from toolkit.peft.lora import norm_of_rows
from toolkit.registry import PEFT
from toolkit.testing import CLASSES, tiny_backbone, tiny_batch

plugins.load()
MERGEABLE = [
    ("lora", {"targets": ["q", "k", "v", "o", "up", "down"]}), ("rslora", {}), ("lora_plus", {}),
    ("dora", {}), ("pissa", {}), ("adalora", {}), ("vera", {}), ("ia3", {}),
    ("fact", {"kind": "tt"}), ("fact", {"kind": "tk"}), ("ssf", {}),
]  # fmt: skip
UNMERGEABLE = ["adapter", "soft_moa", "dense_moa", "prompt_deep", "prefix", "linear_probe", "lst"]


def adapted(name: str, *, noisy: bool = True, **settings: Any) -> AudioClassifier:
    """A tiny classifier with a method whose tensors do not have their initial values."""
    torch.manual_seed(0)
    method = PEFT.create({"name": name, **settings})
    model = AudioClassifier(tiny_backbone(), method, CLASSES, "all").eval()
    if noisy:
        with torch.no_grad():
            for parameter in model.trainable().values():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def tokens(model: AudioClassifier) -> Tensor:
    """The adapted backbone's tokens of some clips."""
    with torch.no_grad():
        return model.backbone(tiny_batch(model.backbone)[0])


def inserted_at(model: AudioClassifier, block: int, role: str) -> nn.Module:
    """The inserted module at a site."""
    return model.backbone.site(block, role).module.inserted


# Merging


@pytest.mark.parametrize(("name", "settings"), MERGEABLE)
def test_merged_equals_unmerged(name: str, settings: dict[str, Any]) -> None:
    model = adapted(name, **settings)
    backbone, method = model.backbone, model.method
    before = {n: t.clone() for n, t in model.state_dict().items()}
    expected = tokens(model)
    method.merge(backbone)
    assert not torch.equal(
        model.state_dict()["backbone.model.layers.0.attention.v_proj.wrapped.weight"],
        before["backbone.model.layers.0.attention.v_proj.wrapped.weight"],
    )
    torch.testing.assert_close(tokens(model), expected, rtol=1e-4, atol=1e-4)
    assert all(wrapper.merged for wrapper in insertion.wrappers(backbone))
    method.unmerge(backbone)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert torch.equal(tokens(model), expected)


@pytest.mark.parametrize("name", UNMERGEABLE)
def test_what_cannot_be_merged_says_so(name: str) -> None:
    model = adapted(name)
    expected = tokens(model)
    with pytest.raises(ConfigError, match="cannot be merged"):
        model.method.merge(model.backbone)
    assert torch.equal(tokens(model), expected)


# Which blocks


@pytest.mark.parametrize(
    ("layers", "blocks"),
    [
        ("all", [0, 1, 2, 3, 4, 5]), ("first 2", [0, 1]), ("last 3", [3, 4, 5]),
        ("every 2", [0, 2, 4]), ([1, 4], [1, 4]),
    ],
)  # fmt: skip
def test_layers(layers: str | list[int], blocks: list[int]) -> None:
    assert chosen_blocks(layers, 6) == set(blocks)


@pytest.mark.parametrize("layers", ["last", "last 0", "last 7", "some 2", "every x", [6], [-1], []])
def test_layers_that_are_not_there(layers: str | list[int]) -> None:
    with pytest.raises(ConfigError, match="layers"):
        chosen_blocks(layers, 6)


# LoRA's family


def test_lora_by_reduction_and_reference_scale() -> None:
    model = adapted("lora", reduction=12, alpha=8, reference=True, zero_positions=False)
    update = inserted_at(model, 0, "attn.q")
    assert update.down.out_features == 8
    assert update.scale == pytest.approx(8 / 12)
    with pytest.raises(ConfigError, match="'reduction'"):
        PEFT.create({"name": "lora", "reference": True})


def test_rslora_scale() -> None:
    plain, stable = adapted("lora", rank=4), adapted("rslora", rank=4)
    ratio = inserted_at(stable, 0, "attn.q").scale / inserted_at(plain, 0, "attn.q").scale
    assert ratio == pytest.approx(math.sqrt(4))


def test_lora_plus_groups() -> None:
    model = adapted("lora_plus", ratio=16)
    groups = model.method.parameter_groups(model.trainable(), lr=0.1)
    fast = {id(inserted_at(model, b, f"attn.{m}").up.weight) for b in (0, 1) for m in "qv"}
    assert [group["lr"] for group in groups] == [0.1, pytest.approx(1.6)]
    assert {id(p) for p in groups[1]["params"]} == fast
    assert sum(len(group["params"]) for group in groups) == len(model.trainable())


def test_dora_rows_have_the_learned_length() -> None:
    model = adapted("dora")
    update = inserted_at(model, 0, "attn.v")
    linear = model.backbone.site(0, "attn.v").module.wrapped
    model.method.merge(model.backbone)
    torch.testing.assert_close(norm_of_rows(linear.weight), update.magnitude)


def test_dora_length_is_outside_the_graph() -> None:
    model = adapted("dora", noisy=False)
    update = inserted_at(model, 0, "attn.q")
    linear = model.backbone.site(0, "attn.q").module.wrapped
    x, upstream = torch.randn(4, 96), torch.randn(4, 96)
    (update(x, linear) * upstream).sum().backward()
    # With the length constant and m equal to it, the gradient of B is LoRA's.
    hidden = update.scale * update.down(x)
    torch.testing.assert_close(update.up.weight.grad, upstream.T @ hidden)


def test_pissa_freezes_the_residual() -> None:
    model = adapted("pissa", noisy=False, rank=4, alpha=8)
    update = inserted_at(model, 0, "attn.q")
    weight = model.backbone.site(0, "attn.q").module.wrapped.weight
    principal = update.scale * update.up.weight @ update.down.weight
    residual = weight - principal
    singular = torch.linalg.svdvals(weight)
    torch.testing.assert_close(
        torch.linalg.svdvals(residual)[:-4], singular[4:], rtol=1e-3, atol=1e-4
    )
    torch.testing.assert_close(torch.linalg.svdvals(principal)[:4], singular[:4])
    assert torch.count_nonzero(update.delta().abs() > 1e-5) == 0


def test_vera_shares_one_storage_that_the_seed_rebuilds() -> None:
    first, second = adapted("vera", rank=8, seed=3), adapted("vera", rank=8, seed=3)
    other = adapted("vera", rank=8, seed=4)
    frozen = [inserted_at(first, b, f"attn.{m}").frozen[0] for b in (0, 1) for m in "qv"]
    assert len({a.untyped_storage().data_ptr() for a in frozen}) == 1
    assert torch.equal(frozen[0], inserted_at(second, 1, "attn.v").frozen[0])
    assert not torch.equal(frozen[0], inserted_at(other, 0, "attn.q").frozen[0])
    assert not any(name.endswith((".a", ".b")) for name in first.state())


def test_ia3_has_a_number_a_channel() -> None:
    model = adapted("ia3", final_norm=False)
    assert model.count().method == 2 * (96 + 96 + 192)


def test_adalora_budget_falls_to_its_target() -> None:
    steps = 100
    model = adapted(
        "adalora", noisy=False, initial_rank=6, rank=4, interval=5, warmup=0.2, final=0.3
    )
    method, backbone = model.method, model.backbone
    updates = [m for m in insertion.inserted(backbone) if isinstance(m, Triplets)]
    budgets = [method.budget(step, steps, len(updates)) for step in range(1, steps + 1)]
    assert budgets == sorted(budgets, reverse=True)
    assert budgets[19] == 6 * len(updates) and budgets[69] == budgets[-1] == 4 * len(updates)
    features, labels = tiny_batch(backbone)
    optimizer = torch.optim.AdamW(model.trainable().values(), lr=1e-2)
    alive = []
    for step in range(1, steps + 1):
        loss = functional.cross_entropy(model(features), labels)
        (loss + sum(method.auxiliary_losses(backbone).values())).backward()
        optimizer.step()
        method.on_step(backbone, optimizer, step, steps)
        optimizer.zero_grad()
        alive.append(sum(int(update.alive.sum()) for update in updates))
    assert alive[19] == 6 * len(updates) and alive[-1] == 4 * len(updates)
    assert alive == sorted(alive, reverse=True)
    for update in updates:
        assert torch.equal(update.values != 0, update.alive)


def test_adalora_orthogonality_by_hand() -> None:
    model = adapted("adalora", orthogonality=0.5)
    updates = [m for m in insertion.inserted(model.backbone) if isinstance(m, Triplets)]
    expected = sum(
        (torch.linalg.matrix_norm(m @ m.T - torch.eye(len(m))) ** 2).item()
        for update in updates
        for m in (update.p.T, update.q)
    )
    found = model.method.auxiliary_losses(model.backbone)["orthogonality"].item()
    assert found == pytest.approx(0.5 * expected / len(updates), rel=1e-5)


@pytest.mark.parametrize("kind", ["tt", "tk"])
def test_fact_equals_its_materialised_update(kind: str) -> None:
    model = adapted("fact", kind=kind, rank=3, scale=2.0)
    owner = inserted_at(model, 0, "attn.q").factors
    for block in range(2):
        for role in ("attn.o", "ffn.up", "ffn.down"):
            update = inserted_at(model, block, role)
            assert update.shared[0] is owner
            x = torch.randn(3, model.backbone.site(block, role).in_dim)
            torch.testing.assert_close(update(x), x @ update.delta().T, rtol=1e-4, atol=1e-5)
    assert owner.u.shape == (3, 96) and owner.v.shape == (96, 3)
    assert len(owner.cores(0, 16)) == 16  # q, k, v, o, and two and two of the feed-forward, twice


# Adapters


def test_adaptformer_reads_the_residual_stream() -> None:
    model = adapted("adaptformer")
    layer = model.backbone.model.layers[0]
    seen = []
    layer.layernorm_after.wrapped.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    adapter = inserted_at(model, 0, "ffn")
    adapter.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    tokens(model)
    assert torch.equal(seen[0], seen[1])
    x = torch.randn(2, 96)
    expected = 0.1 * adapter.up(functional.relu(adapter.down(x)))
    torch.testing.assert_close(adapter(x), expected)


def test_adapter_plus_count_and_drop_path() -> None:
    model = adapted("adapter_plus", bottleneck=8, drop_path=0.5, final_norm=False)
    assert model.count().method == 2 * (2 * 96 * 8 + 8 + 2 * 96)
    adapter = inserted_at(model, 0, "block").train()
    x = torch.randn(64, 1, 96)
    torch.manual_seed(0)
    kept = (adapter(x) != x).flatten(1).any(dim=1)
    assert 16 < kept.sum() < 48
    adapter.eval()
    branch = adapter(x) - x
    adapter.train()
    torch.manual_seed(0)
    torch.testing.assert_close((adapter(x) - x)[kept], 2 * branch[kept], rtol=1e-4, atol=1e-5)


def test_learned_scale_of_an_adapter() -> None:
    model = adapted("adapter", learn_scale=True, scale=0.5, noisy=False)
    adapter = inserted_at(model, 0, "ffn")
    assert adapter.scale.item() == 0.5 and "blocks.0.ffn.adapter.scale" in model.trainable()
    with torch.no_grad():
        adapter.experts.up.normal_()
    x = torch.randn(2, 3, 96)
    torch.testing.assert_close(adapter(x), 0.5 * adapter.experts.mix(x))


def test_before_adapter() -> None:
    model = adapted("adapter", mode="before")
    wrapper = model.backbone.site(0, "ffn").module
    x = torch.randn(2, 3, 96)
    torch.testing.assert_close(wrapper(x), wrapper.wrapped(x + wrapper.inserted.experts.mix(x)))


def test_dense_mixture_makes_no_tensor_of_all_widths() -> None:
    model = adapted("dense_moa", num_experts=5, noisy=False)
    mixture = inserted_at(model, 0, "mhsa")
    x = torch.randn(2, 7, 96)
    largest = 0

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                largest = max(largest, out.numel())
            return out

    with Watch():
        mixture(x)
    assert largest == x.numel() < 5 * x.numel()


def test_dense_mixture_of_one_is_an_adapter() -> None:
    mixture = inserted_at(adapted("dense_moa", num_experts=1), 0, "mhsa")
    x = torch.randn(2, 5, 96)
    torch.testing.assert_close(mixture(x), mixture.experts.mix(x))


def test_convpass_knows_the_backbones_grid() -> None:
    model = adapted("adapter", block="convpass", convolution="2d")
    backbone = model.backbone
    assert backbone.grid == (2, 5)
    assert tokens(model).shape == (6, 2 + 2 * 5, 96)
    with pytest.raises(ConfigError, match="slots"):
        PEFT.create({"name": "soft_moa", "block": "convpass", "convolution": "2d"})


# Prompts and prefixes


def _order(model: AudioClassifier) -> Tensor:
    """The input of the first block."""
    seen = []
    first = model.backbone.model.layers[0]
    first.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    tokens(model)
    return seen[0]


@pytest.mark.parametrize("reference", [False, True])
def test_prompts_lie_between_special_tokens_and_patches(reference: bool) -> None:
    settings = {"prompts": 3, "reference": reference, "zero_positions": False}
    plain = _order(adapted("linear_probe"))
    found = _order(adapted("prompt_shallow", **settings))
    special = 1 if reference else 2
    assert found.shape[1] == plain.shape[1] + 3 - (2 - special)
    torch.testing.assert_close(found[:, :special], plain[:, :special])
    torch.testing.assert_close(found[:, special + 3 :], plain[:, 2:])
    assert torch.equal(found[0, special : special + 3], found[1, special : special + 3])


def test_deep_prompts_are_replaced_not_added() -> None:
    model = adapted("prompt_deep", prompts=3)
    entries = []
    for layer in model.backbone.model.layers:
        inner = layer if not hasattr(layer, "wrapped") else layer.wrapped
        inner.register_forward_pre_hook(lambda _, args: entries.append(args[0]))
    tokens(model)
    assert len({entry.shape for entry in entries}) == 1
    own = model.trainable()["blocks.1.prompt.tokens"]
    assert torch.equal(entries[1][0, 2:5], own[0])


def test_pooling_with_prompts() -> None:
    for pooling, places in {
        "prompts": (2, 5),
        "prompts+patches": (2, None),
        "patches": (5, None),
    }.items():
        torch.manual_seed(0)
        method = PEFT.create({"name": "prompt_deep", "prompts": 3})
        model = AudioClassifier(tiny_backbone(), method, CLASSES, pooling).eval()
        features, _ = tiny_batch(model.backbone)
        expected = model.head(model.backbone(features)[:, places[0] : places[1]].mean(dim=1))
        torch.testing.assert_close(model(features), expected)
    with pytest.raises(ConfigError, match="prompts"):
        AudioClassifier(tiny_backbone(), PEFT.create("lora"), CLASSES, "prompts")


def test_prefix_equals_a_loop_over_heads() -> None:
    model = adapted("prefix", tokens=6)
    wrapper = model.backbone.site(0, "mhsa").module
    attention, extra = wrapper.wrapped, wrapper.inserted
    x = torch.randn(2, 7, 96)
    found = wrapper(x)[0]
    q, k, v = (getattr(attention, f"{n}_proj")(x) for n in "qkv")
    k = torch.cat([extra.keys.expand(2, -1, -1), k], dim=1)
    v = torch.cat([extra.values.expand(2, -1, -1), v], dim=1)
    heads = []
    for h in range(4):
        part = slice(24 * h, 24 * (h + 1))
        weights = (q[..., part] @ k[..., part].mT / math.sqrt(24)).softmax(dim=-1)
        heads.append(weights @ v[..., part])
    torch.testing.assert_close(found, attention.o_proj(torch.cat(heads, dim=-1)))
    assert found.shape == x.shape
    with pytest.raises(ConfigError, match="even"):
        PEFT.create({"name": "prefix", "tokens": 5})


# Side-tuning


def test_lst_keeps_no_graph_through_the_backbone() -> None:
    model = adapted("lst")
    features, labels = tiny_batch(model.backbone)
    inner = []
    for layer in model.backbone.model.layers:
        layer.register_forward_hook(lambda _, args, out: inner.append(out))
    loss = functional.cross_entropy(model.train()(features), labels)
    assert inner and not any(out.requires_grad for out in inner)
    loss.backward()
    with pytest.raises(ConfigError, match="heads"):
        adapted("lst", reduction=96)


# Quirks of the reference code


def test_reference_loses_positions() -> None:
    model = adapted("adapter", reference=True)
    table: Tensor = model.backbone.model.embeddings.position_embeddings
    assert torch.count_nonzero(table) == 0
    kept = adapted("adapter", reference=True, zero_positions=False)
    assert torch.count_nonzero(kept.backbone.model.embeddings.position_embeddings) > 0


@pytest.mark.parametrize("name", ["adapter", "soft_moa", "dense_moa", "lora"])
def test_reference_start_is_not_the_frozen_backbone(name: str) -> None:
    settings = {"reference": True, "zero_positions": False}
    settings |= {"reduction": 16} if name == "lora" else {}
    frozen = tokens(adapted("linear_probe", noisy=False))
    ours = tokens(adapted(name, noisy=False))
    theirs = tokens(adapted(name, noisy=False, **settings))
    assert torch.equal(ours, frozen) or torch.allclose(ours, frozen, atol=1e-6)
    assert not torch.allclose(theirs, frozen, atol=1e-4)


def test_a_mixture_added_twice() -> None:
    once = adapted("dense_moa", reference=True, zero_positions=False, add_twice=False)
    twice = adapted("dense_moa", reference=True, zero_positions=False)
    twice.load_state(once.state())
    assert not torch.allclose(tokens(once), tokens(twice))
    both = adapted("dense_moa", placement="both", reference=True, zero_positions=False)
    assert not any(isinstance(m, insertion.Echo) for m in both.modules())


def test_quirks_are_off_by_default_and_one_by_one() -> None:
    method = PEFT.create({"name": "soft_moa", "add_twice": True})
    assert method.is_on("add_twice") and not method.is_on("reference_init")
    method = PEFT.create({"name": "soft_moa", "reference": True, "add_twice": False})
    assert not method.is_on("add_twice") and method.is_on("reference_init")


def test_backbones_without_a_position_table_refuse_to_zero_it() -> None:
    backbone = tiny_backbone()

    class Bare(ASTBackbone):
        zero_positions = ASTBackbone.__mro__[1].zero_positions

    backbone.__class__ = Bare
    with pytest.raises(ConfigError, match="no position table"):
        PEFT.create({"name": "linear_probe", "zero_positions": True}).apply(backbone)

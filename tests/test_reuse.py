"""The line below which nothing trains, and that starting there changes nothing."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from toolkit import plugins, testing
from toolkit.backbones.base import Backbone
from toolkit.backbones.own import OwnBackbone, RoleMap
from toolkit.errors import ConfigError
from toolkit.fewer_tokens.patchout import Patchout
from toolkit.model import AudioClassifier, Pooling
from toolkit.peft import insertion
from toolkit.peft.base import PeftMethod
from toolkit.registry import PEFT
from toolkit.reuse import first_trained_block

plugins.load()
FAMILIES = testing.matrix.families()
LAST: dict[str, Any] = {"layers": "last 1"}
LINES: list[tuple[str, dict[str, Any], int | None]] = [
    ("linear_probe", {}, 2),
    ("linear_probe", {"final_norm": False}, 2),
    ("linear_probe", {"zero_positions": True}, 2),
    ("lst", {}, 2),
    ("lst", LAST, 2),
    ("adapter", {}, 0),
    ("adapter", {"layers": [0]}, 0),
    ("adapter", LAST, 1),
    ("adapter_plus", LAST, 1),
    ("adaptformer", LAST, 1),
    ("bitfit", LAST, 1),
    ("lora", LAST, 1),
    ("dora", LAST, 1),
    ("vera", LAST, 1),
    ("ia3", LAST, 1),
    ("ssf", LAST, 1),
    ("prefix", LAST, 1),
    ("soft_moa", LAST | {"add_twice": True}, 1),
    ("topk_moa", LAST | {"placement": "both"}, 1),
    ("prompt_shallow", {}, None),
    ("prompt_deep", {}, None),
    ("full", {}, None),
    ("full", LAST, None),
    ("thor", LAST, None),
]


def made(
    name: str, family: str = "ast", pooling: Pooling = "all", **settings: Any
) -> AudioClassifier:
    """A small classifier, as if trained."""
    method = PEFT.create({"name": name, **settings})
    return testing.tiny_classifier(method, family=family, noise=0.05, pooling=pooling).eval()


def batch(model: AudioClassifier) -> tuple[Tensor, Tensor | None]:
    """Features of some clips, and their lengths if they differ."""
    return testing.tiny_batch(model.backbone)[0], testing.tiny_lengths(model.backbone)


def line(model: AudioClassifier) -> int | None:
    """Where the model's line runs."""
    return first_trained_block(model.backbone, model.method)


def named(config: object) -> str:
    """A test's name."""
    return ",".join(map(str, config.values())) if isinstance(config, dict) else str(config)


# Where the line runs


@pytest.mark.parametrize(("name", "settings", "block"), LINES, ids=named)
@pytest.mark.parametrize("family", ["ast", "wav2vec2"])
def test_the_line_is_found_from_structure(
    name: str, settings: dict[str, Any], block: int | None, family: str
) -> None:
    """The final norm of wav2vec 2.0 is the last block's own, and still stands behind it."""
    if "zero_positions" in settings and family != "ast":
        pytest.skip("it has no position table")
    assert line(made(name, family, **settings)) == block


def test_weighted_pooling_leaves_the_line_where_it_is() -> None:
    assert line(made("linear_probe", pooling="weighted")) == 2
    assert line(made("lora", pooling="weighted", **LAST)) == 1


def test_whatever_else_changes_moves_the_line() -> None:
    model = made("linear_probe")
    first = model.backbone.site(0, "norm.mhsa").module.requires_grad_(True)
    assert line(model) == 0
    first.requires_grad_(False)
    model.backbone.site(1, "ffn").module.register_buffer("count", torch.zeros(()))
    assert line(model) == 1
    model.backbone.tokens.module.requires_grad_(True)
    assert line(model) is None


@pytest.mark.parametrize(
    ("name", "reason"),
    [("prompt_shallow", "changes 'embedding"), ("full", "dropout runs"), ("thor", "'embedding")],
)
def test_what_cannot_be_reused_says_why(name: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=rf"(?s){name}.*{reason}.*reuse: off"):
        made(name).frozen_part()


def test_a_module_of_your_own_says_why() -> None:
    module = nn.Module()
    module.embed = nn.Linear(4, 8)
    module.blocks = nn.ModuleList([nn.Sequential(nn.Linear(8, 8))])
    module.norm = nn.LayerNorm(8)
    parts = RoleMap(blocks="blocks", roles={"ffn": "0"}, norm="norm", embedding="embed")
    model = AudioClassifier(OwnBackbone(module, parts), PEFT.create("linear_probe"), 3, "mean")
    with pytest.raises(ConfigError, match="between its blocks is code of your own"):
        model.frozen_part()


# What is kept


def calls(module: nn.Module) -> list[None]:
    """One entry for every call of a module from now on."""
    found: list[None] = []
    module.register_forward_hook(lambda *_: found.append(None))
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_each_half_computes_its_own_blocks_and_no_other(family: str) -> None:
    model = made("lora", family, pooling="mean", **LAST)
    features, lengths = batch(model)
    lower, upper = (calls(model.backbone.site(block, "block").module) for block in (0, 1))
    part = model.frozen_part()
    states = part.collate(part.states(features, lengths))
    assert (len(lower), len(upper)) == (1, 0)
    model.reuse(part)
    model(states, lengths)
    assert (len(lower), len(upper)) == (1, 1)
    model.reuse(None)
    model(features, lengths)
    assert (len(lower), len(upper)) == (2, 2)


@pytest.mark.parametrize(
    ("name", "pooling", "runs", "rows"),
    [("linear_probe", "mean", 1, 0), ("lst", "mean", 3, 0), ("linear_probe", "weighted", 1, 2)],
)
def test_a_state_has_no_padding(name: str, pooling: Pooling, runs: int, rows: int) -> None:
    model = made(name, "wav2vec2", pooling)
    features, lengths = batch(model)
    part = model.frozen_part()
    states = part.states(features, lengths)
    mask = model.backbone.context.mask
    assert mask is not None
    assert [len(s) for s in states] == [runs * n + rows for n in mask.sum(dim=1).tolist()]
    assert {s.shape[1] for s in states} == {model.backbone.dim}
    assert part.collate(states).shape[1] == runs * mask.shape[1] + rows


def test_the_silence_that_whisper_reads_is_kept() -> None:
    model = made("linear_probe", "whisper", "mean")
    features, lengths = batch(model)
    states = model.frozen_part().states(features, lengths)
    assert {len(s) for s in states} == {features.shape[1] // 2}


def test_several_passes_over_the_clips_read_the_same_states() -> None:
    model = made("adapter", "wav2vec2", "mean", **LAST)
    features, lengths = batch(model)
    part = model.frozen_part()
    model.reuse(part)
    states = part.collate(part.states(features, lengths))
    with torch.no_grad():
        once, twice = model(states, lengths), model(torch.cat([states, states]), lengths)
    torch.testing.assert_close(twice, torch.cat([once, once]), rtol=0, atol=1e-5)


def test_a_fingerprint_says_all_that_states_depend_on() -> None:
    last = made("lora", **LAST).frozen_part().fingerprint
    assert made("adapter", **LAST).frozen_part().fingerprint == last
    others = [
        made("lora"),
        made("linear_probe"),
        made("lst"),
        made("lora", **LAST, zero_positions=True),
        made("lora", **LAST, pooling="weighted"),
    ]
    changed = made("lora", **LAST)
    with torch.no_grad():
        changed.backbone.site(0, "ffn.up").linear.weight[0, 0] += 1
    found = [model.frozen_part().fingerprint for model in [*others, changed]]
    assert len({last, *found}) == 1 + len(found)
    assert made("linear_probe", pooling="weighted").frozen_part().fingerprint not in found


def test_features_are_refused_where_states_are_read() -> None:
    model = made("lora", **LAST)
    model.reuse(model.frozen_part())
    with pytest.raises(ConfigError, match=r"`FrozenPart.collate` returns.*reuse\(None\)"):
        model(testing.tiny_batch(model.backbone)[0])


# Nothing changes


@pytest.mark.parametrize("name", PEFT.names())
@pytest.mark.parametrize("family", ["ast", "wav2vec2"])
def test_every_method_computes_the_same(name: str, family: str) -> None:
    testing.check_reuse(PEFT.create(name), family, "mean")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pooling", ["mean", "weighted"])
def test_every_family_computes_the_same(family: str, pooling: Pooling) -> None:
    for name in ("linear_probe", "bitfit", "lst"):
        check(name, family, pooling)


@pytest.mark.wide
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pooling", ["mean", "weighted", "all"])
def test_every_method_computes_the_same_on_every_family(family: str, pooling: Pooling) -> None:
    for name in PEFT.names():
        check(name, family, pooling)


def check(name: str, family: str, pooling: Pooling) -> None:
    """Compare with and without reuse where the method and the pooling are possible at all."""
    method = PEFT.create(name)
    try:
        testing.tiny_classifier(method, family=family, pooling=pooling)
    except ConfigError:
        return
    reused = testing.check_reuse(method, family, pooling)
    assert reused is (name not in ("full", "prompt_shallow", "prompt_deep", "thor"))


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_the_same_bit_for_bit(family: str) -> None:
    for name in ("linear_probe", "adapter", "lst"):
        method = PEFT.create({"name": name, **({} if name == "linear_probe" else LAST)})
        try:
            model = testing.tiny_classifier(method, family=family, noise=0.05, pooling="mean")
        except ConfigError:
            continue
        model.eval()
        features, lengths = batch(model)
        with torch.no_grad():
            expected = model(features, lengths)
            part = model.frozen_part()
            model.reuse(part)
            found = model(part.collate(part.states(features, lengths)), lengths)
        assert torch.equal(found, expected), (name, (found - expected).abs().max())


@pytest.mark.wide
def test_a_compiled_model_reads_states() -> None:
    model = made("adapter", "wav2vec2", "mean", **LAST).train()
    features, lengths = batch(model)
    part = model.frozen_part()
    model.reuse(part)
    states = part.collate(part.states(features, lengths))
    expected = model(states, lengths)
    model.compile(backend="eager")
    torch.testing.assert_close(model(states, lengths), expected)


# What breaks it is found


class Hidden(PeftMethod):
    """What the line cannot see: a tensor of the last block is used in the first one too."""

    def insert(self, backbone: Backbone) -> None:
        """Insert at the last block and reach down to the first."""
        scale = nn.Linear(backbone.dim, backbone.dim)
        insertion.parallel(backbone.site(backbone.depth - 1, "ffn"), "hidden", scale)
        backbone.site(0, "block").module.register_forward_pre_hook(
            lambda block, args: (args[0] + scale(args[0]), *args[1:])
        )


class Noisy(PeftMethod):
    """What the line cannot see: randomness below it."""

    def insert(self, backbone: Backbone) -> None:
        """Insert at the last block, and drop numbers in front of the first one in training."""
        scale = nn.Linear(backbone.dim, backbone.dim)
        insertion.parallel(backbone.site(backbone.depth - 1, "ffn"), "noisy", scale)

        def drop(block: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (functional.dropout(args[0], 0.5, scale.training), *args[1:])

        backbone.site(0, "block").module.register_forward_pre_hook(drop)


@pytest.mark.parametrize("method", [Hidden, Noisy])
def test_a_method_that_breaks_it_fails_its_contract(method: type[PeftMethod]) -> None:
    method.registered_name = method.__name__.lower()
    with pytest.raises(AssertionError, match="reuse of the frozen part changes"):
        testing.check_reuse(method(final_norm=False))


def test_a_backbone_that_breaks_it_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made("lora", "wav2vec2", "mean", **LAST)
    features, lengths = batch(model)
    part = model.frozen_part()
    part.verify(features, lengths)
    monkeypatch.setattr(type(model.backbone), "resume", Backbone.resume)  # forgets the masks
    with pytest.raises(ConfigError, match=r"computes something else when it starts at block 1"):
        part.verify(features, lengths)


def test_a_backbone_that_cannot_start_at_a_block_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Families of plugins from before there was reuse do not define `resume`."""
    model = made("lora", "wav2vec2_bert", "mean", **LAST)
    part = model.frozen_part()

    def needs_positions(*_: Any, **options: Any) -> None:
        raise TypeError("missing a required argument: 'positions'")

    monkeypatch.setattr(model.backbone.site(1, "block").module, "forward", needs_positions)
    monkeypatch.setattr(model.backbone, "forward", lambda *_: torch.zeros(2, 3, part.backbone.dim))
    monkeypatch.setattr(part, "states", lambda *_: [torch.zeros(3, part.backbone.dim).numpy()] * 2)
    with pytest.raises(ConfigError, match=r"fails when it starts at block 1 .*positions.*resume"):
        part.verify(*batch(model))


def test_a_pass_that_misses_the_block_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    part = made("linear_probe").frozen_part()
    monkeypatch.setattr(part, "block", 0)
    monkeypatch.setattr(type(part.backbone), "encode", lambda self, features, lengths: features)
    with pytest.raises(ConfigError, match="does not come to its block 0"):
        part.states(testing.tiny_batch(part.backbone)[0])


def test_patches_that_are_dropped_below_the_line_forbid_reuse() -> None:
    """Above it they are dropped from what is reused."""
    model = testing.tiny_classifier(PEFT.create({"name": "lora", "layers": "last 1"}), noise=0.1)
    model.drop_patches(Patchout(share=0.5))
    with pytest.raises(ConfigError, match=r"set `patchout.block` to 1, or use `reuse: off`"):
        model.frozen_part()
    model.drop_patches(Patchout(share=0.5, block=1))
    assert model.patchout is not None
    features, _ = testing.tiny_batch(model.backbone)
    part = model.eval().frozen_part()
    states = part.collate(part.states(features))
    found = []
    for given in (None, part):
        model.reuse(given)
        model.patchout.generator = torch.Generator().manual_seed(0)
        found.append(model.train()(features if given is None else states))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-5)


def test_tokens_that_merge_forbid_reuse() -> None:
    backbone = testing.tiny_backbone()
    model = AudioClassifier(
        backbone, PEFT.create({"name": "linear_probe"}), 3, "mean", merge_tokens=2
    )
    for part in (model.frozen_part, model.pooled_part):
        with pytest.raises(ConfigError, match="set `merge_tokens` to null"):
            part()

"""Token merging: the matching, exact where tokens are equal, every method, bundles, refusals."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor
from torch.nn import functional

import toolkit
from toolkit import plugins
from toolkit.backbones.ast import ASTTiny
from toolkit.backbones.base import unwrapped
from toolkit.bundle import Bundle, load_bundle, save_bundle
from toolkit.errors import ConfigError
from toolkit.fewer_tokens.patchout import Patchout
from toolkit.mixtures.view.collect import look
from toolkit.model import AudioClassifier
from toolkit.padding import TokenContext
from toolkit.peft import insertion
from toolkit.peft.mixture import mixtures
from toolkit.reductions import Merged, matched
from toolkit.registry import PEFT
from toolkit.testing import tiny_backbone, tiny_batch, tiny_classifier, tiny_objective

plugins.load()
VARIANTS: list[dict[str, Any]] = [
    {"name": "lst", "layers": "last 1"},
    {"name": "linear_probe", "pooling": "weighted"},
    {"name": "linear_probe", "pooling": "mean"},
    {"name": "linear_probe", "pooling": "cls"},
    {"name": "prompt_deep", "pooling": "prompts+patches"},
    {"name": "soft_moa", "placement": "both", "slots": 3, "normalize": True},
    {"name": "soft_moa", "block": "conformer"},
    {"name": "dense_moa", "placement": "both"},
    {"name": "topk_moa", "placement": "both"},
    {"name": "thor", "infer": "mean", "placement": "both"},
]
WEIGHED = ("soft_moa", "dense_moa", "topk_moa", "expert_pruning", "automoe", "thor")
"""Methods whose statistics count a token as the patches that it stands for."""
UNEQUAL = {
    "thor": "a token's expert depends on its place",
    "lst": "the side network attends to each token once",
}
"""Methods under which merging equal tokens changes something -> why."""


def named(config: dict[str, Any]) -> str:
    return ",".join(str(value) for value in config.values())


def classifier(config: dict[str, Any], merge_tokens: int | None = None) -> AudioClassifier:
    config = dict(config)
    pooling = config.pop("pooling", "all")
    method = PEFT.create(config)
    return tiny_classifier(method, noise=0.05, pooling=pooling, merge_tokens=merge_tokens)


def striped(model: AudioClassifier) -> Tensor:
    """Features whose patches are equal in each row of the grid, without positions."""
    unwrapped(model.backbone.tokens.module).get_parameter("position_embeddings").data.zero_()
    generator = Generator().manual_seed(3)
    bands = torch.randn(4, 1, model.backbone.features.width, generator=generator)
    return bands.expand(-1, model.backbone.features.rows, -1)


def merges(model: AudioClassifier) -> list[Merged]:
    found = model.backbone.context.reductions
    return [reduction for reduction in found if isinstance(reduction, Merged)]


# The matching


def by_hand(
    keys: Tensor, tokens: Tensor, sizes: Tensor, count: int, front: int
) -> tuple[Tensor, Tensor]:
    """The merged tokens and sizes of one clip, link by link."""
    first = list(range(front, len(keys), 2))
    second = list(range(front + 1, len(keys), 2))
    links = []
    for a in first:
        strengths = [functional.cosine_similarity(keys[a], keys[b], dim=0).item() for b in second]
        links.append((max(strengths), a, second[strengths.index(max(strengths))]))
    members = {number: [number] for number in range(len(keys))}
    for _, a, b in sorted(links, reverse=True)[:count]:
        members[b] += members.pop(a)
    made, counts = [], []
    for number in sorted(members):
        group = members[number]
        made.append((tokens[group] * sizes[group, None]).sum(0) / sizes[group].sum())
        counts.append(sizes[group].sum())
    return torch.stack(made), torch.stack(counts)


@pytest.mark.parametrize(
    ("tokens", "count", "front"), [(12, 3, 2), (12, 5, 2), (9, 4, 0), (8, 1, 3)]
)
def test_matching_is_that_of_the_paper(tokens: int, count: int, front: int) -> None:
    generator = Generator().manual_seed(tokens)
    keys = torch.randn(3, tokens, 6, generator=generator)
    values = torch.randn(3, tokens, 4, generator=generator, dtype=torch.float64)
    sizes = torch.randint(1, 5, (3, tokens), generator=generator).double()
    sizes[:, :front] = 1
    merged = matched(keys, count, front, sizes)
    found = merged(values)
    assert (merged.before, merged.after) == (tokens, tokens - count)
    for clip in range(3):
        made, counts = by_hand(keys[clip], values[clip], sizes[clip], count, front)
        torch.testing.assert_close(found[clip], made)
        torch.testing.assert_close(merged.sizes[clip], counts)
    assert torch.equal(found[:, :front], values[:, :front])
    assert torch.equal(merged.sizes.sum(dim=1), sizes.sum(dim=1))


def test_a_context_follows_what_has_merged() -> None:
    generator = Generator().manual_seed(0)
    context = TokenContext()
    context.begin(2)
    x = [torch.randn(2, 12, 5, generator=generator)]
    for _ in range(2):
        merged = matched(x[-1], 3, 2, context.sizes(x[-1]))
        context.reductions.append(merged)
        x.append(merged(x[-1]))
    assert [tokens.shape[1] for tokens in x] == [12, 9, 6]
    for begin in range(3):
        for end in range(begin, 3):
            torch.testing.assert_close(context.followed(x[begin], x[end].shape[1]), x[end])
    assert context.owners(x[0]) is None and context.sizes(x[0]) is None
    for tokens in x[1:]:
        owners, sizes = context.owners(tokens), context.sizes(tokens)
        assert owners is not None and sizes is not None
        counted = torch.stack([row.bincount(minlength=tokens.shape[1]) for row in owners])
        torch.testing.assert_close(counted.float(), sizes)


# In a backbone


def test_a_pass_is_that_of_the_paper() -> None:
    """Written out: merging behind the attention, by the mean of the keys over the heads."""
    model = classifier({"name": "linear_probe"}, merge_tokens=3)
    backbone = model.eval().backbone
    features, _ = tiny_batch(backbone)
    with torch.no_grad():
        found = backbone(features)
        for clip in range(len(features)):
            torch.testing.assert_close(
                found[clip], written_out(backbone.model, features[clip], 3), rtol=1e-4, atol=1e-4
            )
    assert found.shape[1] == 12 - 3 - 3


def written_out(ast: Any, features: Tensor, count: int) -> Tensor:
    """The tokens of one clip."""
    x = ast.embeddings(features[None])[0]
    sizes = torch.ones(len(x))
    heads = ast.config.num_attention_heads
    for layer in map(unwrapped, ast.layers):
        normed = layer.layernorm_before(x)
        attention = layer.attention
        q, k, v = (
            projection(normed).unflatten(-1, (heads, -1)).transpose(0, 1)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        logits = q @ k.mT / q.shape[-1] ** 0.5 + sizes.log()
        mixed = (logits.softmax(dim=-1) @ v).transpose(0, 1).flatten(1)
        x = x + attention.o_proj(mixed)
        x, sizes = by_hand(k.mean(dim=0), x, sizes, count, 2)
        x = x + layer.mlp(layer.layernorm_after(x))
    return ast.layernorm(x)


def test_at_most_half_of_the_patches_merge() -> None:
    model = classifier({"name": "linear_probe"}, merge_tokens=5)
    features, _ = tiny_batch(model.backbone)
    assert model.eval().backbone(features).shape[1] == 2 + 3  # 10 patches, then 5, then 3
    assert model.pool(model.backbone(features)).shape == (6, 96)


@pytest.mark.parametrize(
    "config",
    [
        *({"name": n} for n in PEFT.names() if n not in UNEQUAL),
        *(config for config in VARIANTS if config["name"] != "lst"),
    ],
    ids=named,
)
def test_merging_equal_tokens_changes_nothing(config: dict[str, Any]) -> None:
    """Attention, mixtures, statistics and pooling count a token as the patches it stands for."""
    whole, merging = classifier(config).eval(), classifier(config, merge_tokens=2).eval()
    features = striped(whole)
    assert torch.equal(striped(merging), features)
    found = []
    for model in (whole, merging):
        model.method.record(model.backbone, on=True)
        with torch.no_grad():
            found.append((model(features), model.method.statistics(model.backbone)))
    assert len(merges(merging)) == 2
    (expected, counted), (logits, statistics) = found
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-4)
    for key in {"load", "importance"} & counted.keys() if config["name"] in WEIGHED else ():
        assert statistics[key] == pytest.approx(counted[key], rel=1e-3, abs=1e-5), key


@pytest.mark.parametrize("config", [*({"name": n} for n in PEFT.names()), *VARIANTS], ids=named)
def test_every_method_trains_saves_and_merges_into_weights(config: dict[str, Any]) -> None:
    model, other = classifier(config, merge_tokens=2), classifier(config, merge_tokens=2)
    features, labels = tiny_batch(model.backbone)
    method, objective = model.method, tiny_objective(labels)
    optimizer = torch.optim.AdamW(
        method.parameter_groups(model.trainable(), lr=1e-3), weight_decay=0.0
    )
    method.on_epoch_start(model.backbone, 1, 3)
    history = []
    for step in range(24 if method.sparse else 6):
        losses = method.training_losses(model.backbone, model.train(), features, objective)
        history.append(losses["task"].item())
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        method.on_step(model.backbone, optimizer, step + 1, 24)
    assert history[-1] < history[0]
    assert model.state().keys() == classifier(config).state().keys()
    other.load_state({name: tensor.clone() for name, tensor in model.state().items()})
    with torch.inference_mode():
        expected = model.eval()(features)
        assert torch.equal(other.eval()(features), expected)
    modules = list(insertion.inserted(model.backbone))
    if modules and all(isinstance(module, insertion.Mergeable) for module in modules):
        method.merge(model.backbone)
        with torch.no_grad():
            torch.testing.assert_close(model(features), expected, rtol=1e-3, atol=1e-3)


def test_a_copy_merges_and_drops_its_own_tokens() -> None:
    model = classifier({"name": "lora"}, merge_tokens=1)
    model.drop_patches(Patchout(share=0.5))
    features, _ = tiny_batch(model.backbone)
    twin = copy.deepcopy(model).train()
    twin(features).sum().backward()
    assert [merge.before for merge in merges(twin)] == [7, 6] and not merges(model)
    with torch.no_grad():
        assert torch.equal(twin.eval()(features), model.eval()(features))


def test_after_patchout_the_rest_merges() -> None:
    model = classifier({"name": "lst"}, merge_tokens=1)
    model.drop_patches(Patchout(share=0.5))
    features, _ = tiny_batch(model.backbone)
    model.train()(features).sum().backward()
    assert [merge.before for merge in merges(model)] == [7, 6]
    with pytest.raises(ConfigError, match="before tokens merge"):
        model.drop_patches(Patchout(share=0.5, block=1))


def test_in_low_precision() -> None:
    model = classifier({"name": "prefix"}, merge_tokens=3)
    features, _ = tiny_batch(model.backbone)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model.train()(features)
        logits.float().square().sum().backward()
    assert torch.isfinite(logits).all()


@pytest.mark.wide
@pytest.mark.parametrize("name", ["lora", "soft_moa", "lst"])
def test_a_compiled_model_merges_the_same(name: str) -> None:
    twins = [classifier({"name": name}, merge_tokens=2) for _ in range(2)]
    torch._dynamo.reset()
    twins[1].compile(backend="aot_eager")
    features, _ = tiny_batch(twins[0].backbone)
    found = []
    for model in twins:
        logits = model.train()(features)
        logits.square().sum().backward()
        found.append([logits, *(p.grad for p in model.trainable().values())])
    for got, want in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


# What it is used with


def test_a_bundle_remembers_it(tmp_path: Path) -> None:
    method = PEFT.create("lora")
    model = AudioClassifier(ASTTiny().load(64), method, 2, "mean", merge_tokens=4).eval()
    features, _ = tiny_batch(tiny_backbone())
    features = torch.nn.functional.pad(features, (0, 128 - features.shape[-1]))
    save_bundle(tmp_path / "bundle", model, ["dog", "rain"], "one_class")
    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.info.merge_tokens == bundle.model.merge_tokens == 4
    with torch.no_grad():
        assert torch.equal(bundle.model(features), model(features))
    assert len(merges(bundle.model)) == bundle.model.backbone.depth


@pytest.mark.parametrize("name", ["soft_moa", "dense_moa", "topk_moa"])
def test_views_show_every_patch(name: str) -> None:
    model = classifier({"name": name}, merge_tokens=2).eval()
    spec = model.backbone.features
    window = tiny_batch(model.backbone, clips=1)[0][0] * 2 * spec.std + spec.mean
    info: Any = None
    bundle = Bundle(model, None, list("abcde"), tiny_objective(torch.zeros(1).long()).task, info)
    views, _ = look(bundle, window)
    assert len(views) == len(mixtures(model.backbone))
    for layer in views:
        for kind, weights in layer.weights.items():
            assert weights.shape[0] == 12
            assert layer.maps(kind).shape[1:] == (2, 5)
        if "dispatch" in layer.weights:
            sums = layer.weights["dispatch"].sum(dim=0)
            torch.testing.assert_close(sums, torch.ones_like(sums))


# What is refused


@pytest.mark.parametrize("family", ["wav2vec2", "whisper", "clap"])
def test_backbones_that_need_every_token_are_refused(family: str) -> None:
    with pytest.raises(ConfigError, match="need every token in its place"):
        tiny_classifier(PEFT.create("lora"), family=family, merge_tokens=2)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"name": "adapter", "block": "conformer"}, "under a conformer adapter"),
        ({"name": "adapter", "block": "convpass"}, "under a convpass adapter"),
        ({"name": "dense_moa", "block": "convpass", "convolution": "2d"}, "under a convpass"),
        ({"name": "soft_moa", "add_twice": True}, "set `add_twice` to false"),
    ],
    ids=str,
)
def test_methods_that_need_every_token_are_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        classifier(config, merge_tokens=2)


@pytest.mark.parametrize("count", [0, -1, True, 1.5, "2"])
def test_impossible_numbers_are_refused(count: Any) -> None:
    with pytest.raises(ConfigError, match="a whole number above 0"):
        toolkit.adapt(tiny_backbone(), "lora", 3, merge_tokens=count)


def test_more_than_half_of_the_patches_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"more than half of the 10 patches .* use at most 5"):
        toolkit.adapt(tiny_backbone(), "lora", 3, merge_tokens=6)

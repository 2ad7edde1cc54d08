"""Soft MoE as its paper has it (2308.00951): `soft_moa` with normalised routing, slots and noise.

tests/routing/test_soft.py checks the properties of the plain mixture; here they are checked with
these options, at the method itself, and the options do what they say.
"""

import math
from typing import Any

import pytest
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from toolkit.counting import count_on_ast_base
from toolkit.errors import ConfigError
from toolkit.model import AudioClassifier
from toolkit.peft import insertion
from toolkit.peft.soft_moa import SoftMixture, initialise
from toolkit.registry import PEFT
from toolkit.routing import soft
from toolkit.testing import CLASSES, check_method, tiny_backbone, tiny_batch

NORMALISED = {"normalize": True, "slots": 4, "num_experts": 3}


def adapted(*, moved: bool = True, **settings: Any) -> AudioClassifier:
    """A tiny classifier, by default with experts that do not return zero."""
    torch.manual_seed(0)
    method = PEFT.create({"name": "soft_moa", "placement": "ffn", **settings})
    model = AudioClassifier(tiny_backbone(), method, CLASSES, "all").eval()
    if moved:
        with torch.no_grad():
            for mixture in mixtures(model):
                mixture.experts.up.normal_()
    return model


def mixtures(model: AudioClassifier) -> list[SoftMixture]:
    """The inserted mixtures."""
    return [m for m in insertion.inserted(model.backbone) if isinstance(m, SoftMixture)]


def mixture(**settings: Any) -> SoftMixture:
    """One of them, in float64."""
    return mixtures(adapted(**settings))[0].double()


def tokens(count: int = 9, clips: int = 2) -> Tensor:
    """[clips, count, d]."""
    return torch.randn(clips, count, 96, dtype=torch.float64)


def routing(module: SoftMixture, x: Tensor, mask: Tensor | None = None) -> soft.SoftRouting:
    """The routing with the parameters of the module."""
    noise = module.noise if module.training else 0.0
    return soft.route(x, module.phi, scale=module.scale, mask=mask, noise_std=noise)


@pytest.mark.parametrize(
    "settings",
    [
        NORMALISED,
        {**NORMALISED, "noise": 1.0, "placement": "both"},
        {"slots": 20, "num_experts": 2, "noise": 0.1},
    ],
)
def test_contract(settings: dict[str, Any]) -> None:
    check_method("soft_moa", settings)


def test_normalised_mixture_by_hand() -> None:
    """Against loops over clips, slots and cosines."""
    module, x = mixture(**NORMALISED), tokens()
    with torch.no_grad():
        module.scale.fill_(3.0)
    expected = torch.zeros_like(x)
    for b in range(len(x)):
        logits = torch.empty(9, 3, 4, dtype=torch.float64)
        for t in range(9):
            for e in range(3):
                for s in range(4):
                    phi = module.phi[:, e, s]
                    logits[t, e, s] = 3 * (x[b, t] @ phi) / (x[b, t].norm() * phi.norm())
        for e in range(3):
            for s in range(4):
                slot = (logits[:, e, s].exp() / logits[:, e, s].exp().sum()) @ x[b]
                hidden = module.experts.down[e] @ slot + module.experts.down_bias[e]
                out = module.experts.up[e] @ functional.gelu(hidden) + module.experts.up_bias[e]
                share = logits[:, e, s].exp() / logits.exp().sum((1, 2))
                expected[b] += share[:, None] * out
    torch.testing.assert_close(module(x), expected)


@pytest.mark.parametrize("noise", [0.0, 2.0])
@pytest.mark.parametrize("masked", [False, True])
def test_dispatch_and_combine_are_distributions(noise: float, masked: bool) -> None:
    module, x = mixture(**NORMALISED, noise=noise).train(), tokens()
    mask = torch.arange(9).expand(2, 9) < torch.tensor([[9], [4]]) if masked else None
    found = routing(module, x, mask)
    one = torch.ones((), dtype=torch.float64)
    torch.testing.assert_close(found.dispatch.sum(1), one.expand(2, 3, 4))
    torch.testing.assert_close(found.combine.sum((2, 3)), one.expand(2, 9))
    assert (found.dispatch >= 0).all() and (found.combine > 0).all()
    if masked:
        assert torch.count_nonzero(found.dispatch[1, 4:]) == 0


@pytest.mark.parametrize("slots", [1, 3, 12])
def test_order_of_tokens_does_not_matter(slots: int) -> None:
    module, x = mixture(**NORMALISED | {"slots": slots}), tokens()
    order = torch.randperm(9)
    torch.testing.assert_close(module(x)[:, order], module(x[:, order]))


def test_more_slots_than_tokens() -> None:
    module, x = mixture(**NORMALISED | {"slots": 7}), tokens(count=2)
    assert module(x).shape == x.shape
    single = tokens(count=1)  # every slot is the token, and experts answer alike in all their slots
    answers = module.experts(single[:, None].expand(2, 3, 1, 96))[:, :, 0]
    shares = routing(module, single).combine.sum(-1)
    torch.testing.assert_close(module(single), torch.einsum("bte,bed->btd", shares, answers))


@pytest.mark.parametrize("normalize", [False, True])
def test_one_slot_in_all_gives_every_token_the_same(normalize: bool) -> None:
    """So a mixture with one adapter differs from that adapter."""
    module, x = mixture(normalize=normalize, num_experts=1, slots=1), tokens()
    out = module(x)
    torch.testing.assert_close(out, out[:, :1].expand_as(out))
    assert not torch.allclose(out, module.experts.mix(x))
    two = mixture(normalize=normalize, num_experts=1, slots=2)(x)
    assert not torch.allclose(two, two[:, :1].expand_as(two))


def test_clips_do_not_touch_each_other_through_the_backbone() -> None:
    model = adapted(**NORMALISED)
    features, _ = tiny_batch(model.backbone)
    changed = features.clone()
    changed[1] += torch.randn_like(changed[1])
    with torch.no_grad():
        before, after = model(features), model(changed)
        alone = model(features[2:3])
    others = [0, 2, 3, 4, 5]
    torch.testing.assert_close(before[others], after[others])
    assert not torch.allclose(before[1], after[1])
    torch.testing.assert_close(before[2:3], alone)


def test_padding_cannot_change_real_tokens_or_their_gradients() -> None:
    module = mixture(**NORMALISED)
    x, padding = tokens(count=5), 1e3 * tokens(count=3)
    padded = torch.cat([x, padding], dim=1).requires_grad_()
    mask = torch.arange(8).expand(2, 8) < 5
    out = module(padded, mask)
    torch.testing.assert_close(out[:, :5], module(x))
    (grad,) = torch.autograd.grad(out[:, :5].square().sum(), padded)
    assert torch.count_nonzero(grad[:, 5:]) == 0 and (grad[:, :5] != 0).any()
    everything = torch.ones(2, 8, dtype=torch.bool)
    torch.testing.assert_close(module(padded, everything), module(padded))


def test_gradients_at_the_start_and_after_it() -> None:
    torch.manual_seed(0)
    module = mixtures(adapted(**NORMALISED, moved=False))[0].double()
    x, target = tokens(), tokens()
    (module(x) * target).sum().backward()
    assert (module.experts.up.grad.flatten(1).norm(dim=1) > 0).all()
    for waiting in (module.phi, module.scale, module.experts.down):
        assert torch.count_nonzero(waiting.grad) == 0
    with torch.no_grad():
        module.experts.up.normal_()
    module.zero_grad()
    (module(x) * target).sum().backward()
    slots = rearrange(module.phi.grad, "d e s -> (e s) d")
    assert (slots.norm(dim=1) > 0).all() and module.scale.grad != 0
    for weights in ("dispatch", "combine"):  # either of them alone reaches the slot embeddings
        phi = module.phi.detach().requires_grad_()
        found = getattr(soft.route(x, phi, scale=module.scale.detach()), weights)
        assert torch.autograd.grad((found * torch.randn_like(found)).sum(), phi)[0].norm() > 0


def test_normalised_logits_ignore_lengths_and_experts_see_them() -> None:
    module, x = mixture(**NORMALISED), tokens()
    seen = []
    module.experts.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    module(x), module(10 * x)
    torch.testing.assert_close(seen[1], 10 * seen[0])
    near, far = routing(module, x), routing(module, 10 * x)
    torch.testing.assert_close(near.dispatch, far.dispatch)
    torch.testing.assert_close(near.combine, far.combine)
    with torch.no_grad():
        module.phi.mul_(torch.rand(3, 4, dtype=torch.float64) + 0.5)  # each slot's own length
    torch.testing.assert_close(near.dispatch, routing(module, x).dispatch)
    plain = mixture(**NORMALISED | {"normalize": False})
    assert not torch.allclose(routing(plain, x).dispatch, routing(plain, 10 * x).dispatch)


def test_the_scale_sharpens() -> None:
    module, x = mixture(**NORMALISED), tokens()
    sharpness = []
    for scale in (0.0, 1.0, 10.0, 1000.0):
        with torch.no_grad():
            module.scale.fill_(scale)
        sharpness.append(soft.metrics(routing(module, x))["dispatch_entropy"].item())
    assert sharpness[0] == pytest.approx(1.0) and sharpness[-1] < 0.05
    assert sharpness == sorted(sharpness, reverse=True)


def test_start_of_router_and_scale() -> None:
    module = mixtures(adapted(normalize=True, num_experts=7, slots=20))[0]
    assert module.scale.item() == 1.0
    assert module.phi.std().item() == pytest.approx(1 / math.sqrt(96), rel=0.03)
    assert mixtures(adapted())[0].scale is None


def test_noise_has_the_size_it_says_and_only_in_training() -> None:
    """Of the logits: log-ratios of combine weights are differences of two of them."""
    module, x = mixture(**NORMALISED, noise=0.7), tokens(count=400)
    clean = routing(module, x).combine.log()
    module.train()
    noisy = routing(module, x).combine.log()
    drawn = noisy - clean
    drawn = (drawn - drawn[:, :, :1, :1])[:, :, 1:]  # [B, T, 2, S], one logit less another
    assert drawn.std().item() == pytest.approx(0.7 * math.sqrt(2), rel=0.05)
    assert drawn.mean().item() == pytest.approx(0.0, abs=0.05)
    assert not torch.equal(module(x), module(x))
    assert torch.equal(module.eval()(x), module(x))


@pytest.mark.parametrize("slots", [1, 4, 84])
def test_parameter_count_on_ast_base(slots: int) -> None:
    """Slots cost the router's d numbers each; 84 is the papers' p = T / n for 588 patches."""
    d, width, experts, blocks = 768, 6, 7, 12
    config = {"name": "soft_moa", "normalize": True, "slots": slots}
    adapter = 2 * d * width + width + d
    mixture = experts * (adapter + d * slots) + 1
    assert count_on_ast_base(config).method == blocks * (mixture + 2 * d) + 2 * d


def test_statistics_with_these_options() -> None:
    model = adapted(**NORMALISED)
    method, backbone = model.method, model.backbone
    method.record(backbone, on=True)
    model(tiny_batch(backbone)[0])
    found = method.statistics(backbone)
    assert len(found["load"]) == 3 and sum(found["load"]) == pytest.approx(1.0)
    for name in ("combine_entropy", "dispatch_entropy", "slot_similarity"):
        assert 0 < found[name] <= 1 + 1e-6


@pytest.mark.parametrize(
    ("start", "std"),
    [
        ("lecun", 1 / math.sqrt(96)),
        ("soft_moe", 1 / math.sqrt(96 * 7)),
        ("xavier", math.sqrt(2 / (20 * (96 + 7)))),
        (None, 1 / math.sqrt(96)),
    ],
)
def test_starts_of_the_slots_by_name(start: str | None, std: float) -> None:
    for module in mixtures(adapted(phi_init=start, num_experts=7, slots=20)):
        assert module.phi.std().item() == pytest.approx(std, rel=0.03)
        assert module.phi.mean().item() == pytest.approx(0, abs=4 * std / math.sqrt(96 * 140))
        bound = 2 * std / 0.8796 if start == "soft_moe" else math.inf
        assert module.phi.abs().max() <= bound


def test_a_start_by_name_and_the_one_of_the_reference() -> None:
    reference = {"reference": True, "zero_positions": False, "num_experts": 7, "slots": 20}
    theirs = math.sqrt(2 / (20 * (96 + 7)))
    assert mixtures(adapted(**reference))[0].phi.std().item() == pytest.approx(theirs, rel=0.03)
    ours = mixtures(adapted(**reference, phi_init="lecun"))[0].phi.std().item()
    assert ours == pytest.approx(1 / math.sqrt(96), rel=0.03)


def test_combine_entropy_at_the_start_is_that_of_each_paper() -> None:
    """For normalised tokens of AST-base: .82 (ours), .97 (2308.00951's code), .71 (the papers')."""
    torch.manual_seed(0)
    x = functional.layer_norm(torch.randn(1, 2000, 768), (768,))
    for start, entropy in (("lecun", 0.82), ("soft_moe", 0.97), ("xavier", 0.71)):
        phi = torch.empty(768, 7, 1)
        initialise(phi, start)
        found = soft.metrics(soft.route(x, phi))["combine_entropy"].item()
        assert found == pytest.approx(entropy, abs=0.03)


@pytest.mark.parametrize(("experts", "slots"), [(1, 12), (3, 4), (5, 2), (7, 2), (50, 1)])
def test_as_many_slots_as_tokens(experts: int, slots: int) -> None:
    """2308.00951's rule; a tiny AST has 12 tokens."""
    model = adapted(slots="tokens/experts", num_experts=experts)
    assert {m.phi.shape for m in mixtures(model)} == {(96, experts, slots)}


def test_slots_cannot_follow_a_number_of_tokens_that_differs() -> None:
    method = PEFT.create({"name": "soft_moa", "slots": "tokens/experts"})
    with pytest.raises(ConfigError, match="the same number of tokens"):
        AudioClassifier(tiny_backbone(family="wav2vec2"), method, CLASSES, "all")

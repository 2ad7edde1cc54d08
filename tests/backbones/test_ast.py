"""AST: cutting position embeddings, complete and broken checkpoints, stable parameter names."""

import json
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification, ASTModel

from toolkit import backbones
from toolkit.backbones import hub
from toolkit.backbones.ast import AST, HUB_ID, ROLES, ASTBackbone, ASTTiny, resample_positions
from toolkit.errors import BackboneError, ConfigError, UnknownName

TINY = {
    "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96,
    "num_mel_bins": 32, "max_length": 64, "frequency_stride": 10, "time_stride": 10,
}  # fmt: skip

OLD_NAMES = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
    "layernorm_before": "layernorm_before",
    "layernorm_after": "layernorm_after",
}
"""Parts of a block: transformers 5 -> transformers 4."""

CONFIG = {
    "model_type": "audio-spectrogram-transformer", "architectures": ["ASTModel"], **TINY,
    "patch_size": 16, "hidden_act": "gelu", "layer_norm_eps": 1e-12, "qkv_bias": True,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.02,
}  # fmt: skip


def random_model(stock: type = ASTModel, seed: int = 0, **settings: int) -> nn.Module:
    """A stock model in which every tensor is random."""
    torch.manual_seed(seed)
    model = stock(ASTConfig(**{**TINY, **settings})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def write_checkpoint(folder: Path, tensors: dict[str, Tensor], **config: object) -> Path:
    """A checkpoint that is written without transformers."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    whole = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def old_name(name: str) -> str:
    """The name that transformers 4 gives a tensor of `ASTModel`."""
    head, *rest = name.split(".", 2)
    if head != "layers":
        return name
    number, path = rest
    part, kind = path.rsplit(".", 1)
    return f"encoder.layer.{number}.{OLD_NAMES[part]}.{kind}"


def features(clips: int = 2, frames: int = 64, bins: int = 32, seed: int = 1) -> Tensor:
    """Random input [B, T, F]."""
    return torch.randn(clips, frames, bins, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def tokens(model: nn.Module, x: Tensor) -> Tensor:
    """Last hidden states of a stock model or a backbone."""
    found = model(x)
    return found if isinstance(found, Tensor) else found.last_hidden_state


# Positions


def axis_weights(have: int, want: int) -> NDArray[np.float64]:
    """[want, have]: the centre cut, or linear interpolation with half-pixel centres."""
    weights = np.zeros((want, have))
    for i in range(want):
        if want <= have:
            weights[i, have // 2 - want // 2 + i] = 1
            continue
        place = min(max((i + 0.5) * have / want - 0.5, 0), have - 1)
        below = int(place)
        weights[i, below] += 1 - (place - below)
        weights[i, min(below + 1, have - 1)] += place - below
    return weights


GRIDS = [
    ((12, 101), (12, t)) for t in (1, 2, 7, 9, 12, 39, 49, 50, 75, 100, 101, 102, 140, 202)
] + [
    ((12, 101), (8, 31)), ((12, 101), (8, 64)), ((12, 101), (9, 130)), ((12, 101), (20, 101)),
    ((12, 101), (20, 40)), ((12, 101), (20, 150)), ((8, 64), (12, 49)), ((2, 5), (3, 4)),
    ((1, 1), (3, 7)), ((5, 6), (5, 6)),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new"), GRIDS)
def test_positions_against_another_implementation(
    old: tuple[int, int], new: tuple[int, int]
) -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(1, 2 + old[0] * old[1], 3, generator=generator, dtype=torch.float64)
    found = resample_positions(table, old, new)
    assert found.shape == (1, 2 + new[0] * new[1], 3)
    assert torch.equal(found[:, :2], table[:, :2])
    grid = table[0, 2:].reshape(*old, 3)
    expected = np.einsum(
        "af,bt,ftd->abd", axis_weights(old[0], new[0]), axis_weights(old[1], new[1]), grid
    )
    np.testing.assert_allclose(found[0, 2:].reshape(*new, 3), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("columns", [1, 2, 9, 12, 39, 49, 50, 100, 101])
def test_the_cut_is_that_of_the_authors(columns: int) -> None:
    """Of 101 columns, T from 50 - T // 2 on are kept, and all rows of mel bins."""
    numbers = torch.arange(12)[:, None] * 1000 + torch.arange(101)[None]
    table = torch.cat([torch.tensor([-1, -2]), numbers.flatten()])[None, :, None].float()
    found = resample_positions(table, (12, 101), (12, columns))[0, :, 0]
    assert found[:2].tolist() == [-1, -2]
    start = 50 - columns // 2
    assert torch.equal(found[2:].reshape(12, columns), numbers[:, start : start + columns].float())


@pytest.mark.parametrize(
    ("stride", "lengths"),
    [
        (10, {1024: 1214, 512: 602, 500: 590, 400: 470, 128: 146, 100: 110}),
        (12, {1024: 852, 512: 422, 500: 412, 400: 332, 128: 102, 100: 82}),
        (14, {1024: 659, 512: 326, 500: 317, 400: 254, 128: 83, 100: 65}),
        (16, {1024: 514, 512: 258, 500: 250, 400: 202, 128: 66, 100: 50}),
    ],
)
def test_any_length_and_stride_of_the_published_model(
    stride: int, lengths: dict[int, int], tmp_path: Path
) -> None:
    wide = {"num_mel_bins": 128, "max_length": 1024, "hidden_size": 8, "num_attention_heads": 2}
    model = random_model(num_hidden_layers=1, intermediate_size=8, **wide)
    model.save_pretrained(tmp_path)
    table = model.embeddings.position_embeddings.detach()
    old = (12, 101)
    for length, count in lengths.items():
        backbone = AST(source=str(tmp_path), stride=stride).load(length)
        spec = backbone.features
        assert (spec.max_length, spec.mel_bins, spec.sample_rate) == (length, 128, 16000)
        found = tokens(backbone, features(1, length, 128))
        assert found.shape == (1, count, 8) and found.isfinite().all()
        new = ((128 - 16) // stride + 1, (length - 16) // stride + 1)
        position = backbone.model.embeddings.position_embeddings
        assert position.requires_grad and position.shape == (1, count, 8)
        torch.testing.assert_close(position.detach(), resample_positions(table, old, new))


def test_the_checkpoints_own_geometry_is_left_alone(tmp_path: Path) -> None:
    model = random_model(frequency_stride=8, time_stride=12)
    model.save_pretrained(tmp_path)
    backbone = AST(source=str(tmp_path)).load(64)
    assert torch.equal(
        backbone.model.embeddings.position_embeddings, model.embeddings.position_embeddings
    )
    torch.testing.assert_close(tokens(backbone, features()), tokens(model, features()))


def test_a_shorter_input_keeps_the_tokens_of_its_place(tmp_path: Path) -> None:
    """The embeddings of a short clip equal those of the long model for the same columns."""
    model = random_model(max_length=164)  # 15 columns
    model.save_pretrained(tmp_path)
    backbone = AST(source=str(tmp_path)).load(64)  # 5 columns: 7 - 2 ... 9
    x = features(1, 164)
    with torch.no_grad():
        long = model.embeddings(x)[:, 2:].unflatten(1, (2, 15))
        short = backbone.model.embeddings(x[:, 50:114])[:, 2:].unflatten(1, (2, 5))
    torch.testing.assert_close(short, long[:, :, 5:10])


@pytest.mark.parametrize("length", [1, 15])
def test_less_than_a_patch_is_refused(length: int, tmp_path: Path) -> None:
    random_model().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=f"max_length {length} is shorter than one patch of 16"):
        AST(source=str(tmp_path)).load(length)


# Whole checkpoints


@pytest.mark.parametrize("stock", [ASTModel, ASTForAudioClassification])
@pytest.mark.parametrize("seed", [0, 1])
def test_saved_by_transformers(stock: type, seed: int, tmp_path: Path) -> None:
    model = random_model(stock, seed)
    model.save_pretrained(tmp_path)
    encoder = getattr(model, "audio_spectrogram_transformer", model)
    backbone = AST(source=str(tmp_path)).load(64)
    expected = encoder.state_dict()
    found = backbone.model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    torch.testing.assert_close(
        tokens(backbone, features()), tokens(encoder, features()), rtol=0, atol=1e-5
    )
    assert not backbone.model.training


@pytest.mark.parametrize("names", ["old", "new"])
@pytest.mark.parametrize("classifier", [False, True])
def test_names_of_both_versions_written_by_hand(
    names: str, classifier: bool, tmp_path: Path
) -> None:
    model = random_model()
    state = {(old_name(n) if names == "old" else n): t for n, t in model.state_dict().items()}
    architecture = "ASTModel"
    if classifier:
        architecture = "ASTForAudioClassification"
        state = {f"audio_spectrogram_transformer.{name}": t for name, t in state.items()}
        for part, shape in {"layernorm": (48,), "dense": (7, 48)}.items():
            state[f"classifier.{part}.weight"] = torch.randn(shape)
            state[f"classifier.{part}.bias"] = torch.randn(shape[:1])
    write_checkpoint(tmp_path, state, architectures=[architecture])
    backbone = AST(source=str(tmp_path)).load(64)
    torch.testing.assert_close(
        tokens(backbone, features()), tokens(model, features()), rtol=0, atol=1e-5
    )
    assert backbone.fingerprint == wrap(model).fingerprint


def test_the_old_names_are_those_of_version_4(golden: Path) -> None:
    with np.load(golden / "backbone.npz") as arrays:
        assert {old_name(name) for name in random_model().state_dict()} == set(arrays)


def test_a_checkpoint_of_version_4_computes_what_it_did_there(golden: Path, tmp_path: Path) -> None:
    """Logits of the official code on transformers 4.28.1, in float64."""
    with np.load(golden / "backbone.npz") as arrays:
        state = {name: torch.from_numpy(array).float() for name, array in arrays.items()}
    backbone = AST(source=str(write_checkpoint(tmp_path, state))).load(64)
    with np.load(golden / "inputs.npz") as arrays:
        x = torch.from_numpy(arrays["input"]).float()
    reached: list[Tensor] = []
    backbone.norm.register_forward_pre_hook(lambda _, inputs: reached.append(inputs[0]))
    pooled = tokens(backbone, x).mean(dim=1).numpy()
    with np.load(golden / "linear_ALL.npz") as arrays:
        weight, bias = arrays["param/head.weight"], arrays["param/head.bias"]
        np.testing.assert_allclose(reached[0][:1], arrays["encoder_out"], rtol=0, atol=1e-4)
        np.testing.assert_allclose(pooled @ weight.T + bias, arrays["logits"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_on_disk_is_float32_in_memory(dtype: torch.dtype, tmp_path: Path) -> None:
    model = random_model().to(dtype)
    model.save_pretrained(tmp_path)
    backbone = AST(source=str(tmp_path)).load(64)
    assert {p.dtype for p in backbone.parameters()} == {torch.float32}
    expected = tokens(model.float(), features())
    torch.testing.assert_close(tokens(backbone, features()), expected, rtol=0, atol=1e-5)


# Broken checkpoints

FC1 = "encoder.layer.1.intermediate.dense.weight"


def broken(tmp_path: Path, change: Callable[[dict[str, Tensor]], object]) -> str:
    """The error message for a modified checkpoint."""
    state = {old_name(name): tensor for name, tensor in random_model().state_dict().items()}
    change(state)
    with pytest.raises(BackboneError) as caught:
        AST(source=str(write_checkpoint(tmp_path, state))).load(64)
    assert str(tmp_path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (FC1, "layers.1.mlp.fc1.weight"),
        ("encoder.layer.0.attention.attention.key.bias", "layers.0.attention.k_proj.bias"),
        ("embeddings.cls_token", "embeddings.cls_token"),
        ("embeddings.position_embeddings", "embeddings.position_embeddings"),
        ("layernorm.bias", "layernorm.bias"),
    ],
)
def test_a_missing_tensor_is_named(old: str, new: str, tmp_path: Path) -> None:
    assert new in broken(tmp_path, lambda state: state.pop(old))


@pytest.mark.parametrize(
    "name", ["adapter.weight", "encoder.layer.7.output.dense.weight", "embeddings.extra"]
)
def test_an_extra_tensor_is_named(name: str, tmp_path: Path) -> None:
    message = broken(tmp_path, lambda state: state.update({name: torch.zeros(3)}))
    assert name.removeprefix("encoder.layer.7.output.dense") in message


def test_all_that_is_wrong_is_named_together(tmp_path: Path) -> None:
    def change(state: dict[str, Tensor]) -> None:
        del state[FC1], state["layernorm.bias"]
        state.update({"extra.one": torch.zeros(1), "extra.two": torch.zeros(1)})

    message = broken(tmp_path, change)
    for name in ("layers.1.mlp.fc1.weight", "layernorm.bias", "extra.one", "extra.two"):
        assert name in message


@pytest.mark.parametrize(
    ("old", "new", "shape"),
    [
        (FC1, "layers.1.mlp.fc1.weight", (95, 48)),
        ("embeddings.position_embeddings", "embeddings.position_embeddings", (1, 13, 48)),
        ("layernorm.weight", "layernorm.weight", (47,)),
    ],
)
def test_a_tensor_of_another_shape_is_named(
    old: str, new: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    assert new in broken(tmp_path, lambda state: state.update({old: torch.zeros(shape)}))


@pytest.mark.parametrize("keep", [0, 4, 300, 0.5, 0.999])
def test_a_file_that_ends_early(keep: float, tmp_path: Path) -> None:
    random_model().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    body = file.read_bytes()
    file.write_bytes(body[: keep if isinstance(keep, int) else int(keep * len(body))])
    with pytest.raises(BackboneError, match=str(tmp_path)):
        AST(source=str(tmp_path)).load(64)


def test_no_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(BackboneError, match=r"model\.safetensors") as caught:
        AST(source=str(tmp_path)).load(64)
    assert "--backbone ast_tiny" in str(caught.value) and "--backbone PATH" in str(caught.value)


# Statistics of the features


def test_statistics_of_the_checkpoint_are_used(tmp_path: Path) -> None:
    random_model().save_pretrained(tmp_path)
    extractor = ASTFeatureExtractor(mean=-6.845978, std=5.5654526, num_mel_bins=32, max_length=64)
    extractor.save_pretrained(tmp_path)
    assert (tmp_path / "preprocessor_config.json").is_file()
    spec = AST(source=str(tmp_path)).load(40).features
    assert (spec.mean, spec.std) == (-6.845978, 5.5654526)
    assert (spec.kind, spec.sample_rate, spec.mel_bins, spec.max_length) == ("fbank", 16000, 32, 40)
    x = torch.tensor([[[-6.845978, 4.2849272]]])
    torch.testing.assert_close(spec.normalise(x), torch.tensor([[[0.0, 1.0]]]))


def test_statistics_written_by_hand(tmp_path: Path) -> None:
    random_model().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"mean": 1.5, "std": 2.5}')
    spec = AST(source=str(tmp_path)).load(64).features
    assert (spec.mean, spec.std) == (1.5, 2.5)


def test_without_statistics_those_of_audioset_stand(tmp_path: Path) -> None:
    random_model().save_pretrained(tmp_path)
    spec = AST(source=str(tmp_path)).load(64).features
    assert (spec.mean, spec.std) == (-4.2677393, 4.5689974)


def test_statistics_that_cannot_be_read_are_not_replaced_in_silence(tmp_path: Path) -> None:
    random_model().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"mean": -6.8, "std"')
    with pytest.raises(BackboneError, match=r"preprocessor_config\.json"):
        AST(source=str(tmp_path)).load(64)


# Which backbone


def test_a_folder_is_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model()
    model.save_pretrained(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    for name in (str(tmp_path / "mine"), "./mine", "mine"):
        source = backbones.create({"name": name})
        assert type(source) is AST and source.source == name
        torch.testing.assert_close(tokens(source.load(64), features()), tokens(model, features()))


def test_settings_come_along(tmp_path: Path) -> None:
    random_model().save_pretrained(tmp_path)
    backbone = backbones.create({"name": str(tmp_path), "stride": 16}).load(48)
    assert tokens(backbone, features(1, 48)).shape == (1, 2 + 2 * 3, 48)
    with pytest.raises(ConfigError, match="'stride' must be at least 1"):
        backbones.create({"name": str(tmp_path), "stride": 0})


@pytest.mark.parametrize("family", ["bert", "no-such-family"])
def test_an_unknown_family(family: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    with pytest.raises(BackboneError, match=family) as caught:
        backbones.create({"name": str(tmp_path)})
    assert "audio-spectrogram-transformer" in str(caught.value)


@pytest.mark.parametrize("content", [None, "", "{", "[1]", "{}", '{"hidden_size": 48}'])
def test_a_folder_that_is_no_checkpoint(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(BackboneError, match=str(tmp_path)):
        backbones.create({"name": str(tmp_path)})


def test_an_unknown_name() -> None:
    with pytest.raises(UnknownName, match="did you mean 'ast_tiny'"):
        backbones.create({"name": "ast_tinny"})


@pytest.mark.parametrize("offline", ["by setting", "by nature"])
def test_the_hub_without_internet_is_given_up_at_once(
    offline: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.hub_is_reachable.cache_clear()
    if offline == "by nature":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(hub, "getproxies", dict)

        def refuse(address: tuple[str, int], timeout: float) -> None:
            assert address == ("huggingface.co", 443) and timeout <= 5
            raise socket.gaierror("Temporary failure in name resolution")

        monkeypatch.setattr(socket, "create_connection", refuse)
    try:
        for name in (HUB_ID, "facebook/wav2vec2-base", "./no/such/folder"):
            with pytest.raises(BackboneError) as caught:
                backbones.create({"name": name})
            message = str(caught.value)
            assert name in message
            assert "--backbone ast_tiny" in message and "--backbone PATH" in message
        with pytest.raises(BackboneError) as caught:
            backbones.create({"name": "ast"}).load(1024)
        message = str(caught.value)
        assert HUB_ID in message
        assert "--backbone ast_tiny" in message and "--backbone PATH" in message
    finally:
        hub.hub_is_reachable.cache_clear()


def test_the_embedded_one_is_the_same_every_time() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = backbones.create({"name": "ast_tiny"}).load(100)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    second = ASTTiny().load(100)
    assert first.fingerprint == second.fingerprint and first.dim == 192
    x = features(1, 100, 128)
    assert torch.equal(tokens(first, x), tokens(second, x))
    assert tokens(first, x).std() > 0.1


def test_the_architecture_alone(tmp_path: Path) -> None:
    random_model().save_pretrained(tmp_path)
    for source in (AST(source=str(tmp_path)), ASTTiny(), AST(source=str(tmp_path), stride=16)):
        shell, whole = source.architecture(48), source.load(48)
        assert all(p.is_meta for p in shell.parameters())
        shapes = {name: p.shape for name, p in shell.named_parameters()}
        assert shapes == {name: p.shape for name, p in whole.named_parameters()}
        assert shell.stock == whole.stock
    base = AST().architecture(1024)  # without a download
    assert sum(p.numel() for p in base.parameters()) == 86_187_264
    assert (base.depth, base.dim, base.features.max_length) == (12, 768, 1024)


# Names and fingerprints


def wrap(model: ASTModel) -> ASTBackbone:
    """A backbone around a stock model."""
    return AST().wrap(model, ASTFeatureExtractor(num_mel_bins=32), 64)


def test_every_tensor_has_a_lasting_name() -> None:
    backbone = wrap(random_model())
    names = {name: backbone.canonical(name) for name in backbone.model.state_dict()}
    assert len(set(names.values())) == len(names) and set(names.values()) == backbone.stock
    assert names["layers.0.attention.q_proj.weight"] == "blocks.0.attn.q.weight"
    assert names["layers.1.attention.k_proj.bias"] == "blocks.1.attn.k.bias"
    assert names["layers.1.attention.v_proj.bias"] == "blocks.1.attn.v.bias"
    assert names["layers.1.attention.o_proj.weight"] == "blocks.1.attn.o.weight"
    assert names["layers.0.mlp.fc1.weight"] == "blocks.0.ffn.up.weight"
    assert names["layers.0.mlp.fc2.bias"] == "blocks.0.ffn.down.bias"
    assert names["layers.0.layernorm_before.weight"] == "blocks.0.norm.mhsa.weight"
    assert names["layers.1.layernorm_after.bias"] == "blocks.1.norm.ffn.bias"
    assert names["layernorm.weight"] == "norm.weight"
    assert names["embeddings.cls_token"] == "embedding.cls_token"
    assert not any("layers." in name for name in names.values())


def test_names_do_not_depend_on_wrappers() -> None:
    canonical = wrap(random_model()).canonical
    wrapped = "layers.1.attention.wrapped.q_proj.wrapped.weight"
    assert canonical(wrapped) == "blocks.1.attn.q.weight"
    assert canonical("layers.1.mlp.wrapped.wrapped.fc2.bias") == "blocks.1.ffn.down.bias"
    assert canonical("layers.0.attention.adapter.down") == "blocks.0.mhsa.adapter.down"
    assert canonical("layers.0.mlp.fc1.lora.a") == "blocks.0.ffn.up.lora.a"


def test_sites_are_where_they_say() -> None:
    backbone = wrap(random_model())
    assert (backbone.depth, backbone.dim, backbone.prefix_tokens) == (2, 48, 2)
    for number, block in enumerate(backbone.model.layers):
        for role, path in ROLES.items():
            site = backbone.site(number, role)
            assert site.module is block.get_submodule(path)
            assert site.name == f"blocks.{number}.{role}"
        assert backbone.site(number, "block").module is block
        up, down = backbone.site(number, "ffn.up"), backbone.site(number, "ffn.down")
        assert (up.in_dim, up.out_dim, down.in_dim, down.out_dim) == (48, 96, 96, 48)
    assert [s.name for s in backbone.sites("both")] == [
        "blocks.0.mhsa", "blocks.0.ffn", "blocks.1.mhsa", "blocks.1.ffn",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match=r"no role 'conv'.*attn\.q"):
        backbone.site(0, "conv")


def test_the_fingerprint_knows_every_weight() -> None:
    model = random_model()
    fingerprints = {wrap(model).fingerprint}
    assert wrap(random_model()).fingerprint in fingerprints
    state = model.state_dict()
    for tensor in state.values():
        place = tensor.view(-1)[-1:]
        before = place.clone()
        place.mul_(1.001)
        fingerprints.add(wrap(model).fingerprint)
        place.copy_(before)
    assert len(fingerprints) == 1 + len(state)
    assert wrap(model).fingerprint == wrap(random_model()).fingerprint


def test_the_fingerprint_knows_type_geometry_and_not_the_place(tmp_path: Path) -> None:
    model = random_model()
    original = wrap(model).fingerprint
    for name in ("one", "two"):
        model.save_pretrained(tmp_path / name)
        assert AST(source=str(tmp_path / name)).load(64).fingerprint == original
    assert AST(source=str(tmp_path / "one")).load(48).fingerprint != original
    assert wrap(random_model().half()).fingerprint != original
    file = tmp_path / "two" / "model.safetensors"
    swapped = load_file(file)
    first, second = (f"encoder.layer.{n}.layernorm_before.weight" for n in (0, 1))
    swapped[first], swapped[second] = swapped[second], swapped[first]
    save_file(swapped, file, metadata={"format": "pt"})
    assert AST(source=str(tmp_path / "two")).load(64).fingerprint != original

"""The public API, in plain PyTorch, in transformers' Trainer and in Lightning."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import toolkit
from toolkit.errors import BackboneError, ConfigError, DataError, UnknownName
from toolkit.model import AudioClassifier
from toolkit.registry import PEFT
from toolkit.testing import tiny_backbone

CLASSES = ["low", "high"]
RATE = 16_000
LENGTH = 64  # frames of 10 ms


@pytest.fixture(scope="module")
def clips() -> list[tuple[np.ndarray, int]]:
    """Eight tones of 0.6 s, four low and four high ones."""
    time = np.arange(int(0.6 * RATE)) / RATE
    pitches = [300, 2000, 320, 2100, 340, 2200, 360, 2300]
    return [(0.3 * np.sin(2 * np.pi * p * time).astype(np.float32), RATE) for p in pitches]


@pytest.fixture
def model() -> toolkit.AudioClassifier:
    torch.manual_seed(0)
    backbone = toolkit.load_backbone("ast_tiny", max_length=LENGTH)
    return toolkit.adapt(backbone, "soft_moa", 2, num_experts=3, reduction=24)


def batch(model: toolkit.AudioClassifier, clips: list[tuple[np.ndarray, int]]) -> TensorDataset:
    rows, lengths = toolkit.read_clips(clips, model.backbone)
    assert lengths is None  # AST pads with silence
    return TensorDataset(rows, torch.arange(len(clips)) % 2)


def right(model: toolkit.AudioClassifier, data: TensorDataset) -> float:
    rows, labels = data.tensors
    with torch.no_grad():
        return (model.eval().logits(rows).argmax(dim=-1) == labels).float().mean().item()


def test_every_public_name_can_be_imported_and_is_documented() -> None:
    for name in toolkit.__all__:
        thing = getattr(toolkit, name)
        assert name == "__version__" or (thing.__doc__ or "").strip(), name
    assert set(toolkit.__all__) <= set(dir(toolkit))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = toolkit.nothing


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, toolkit; toolkit.list_registered('peft'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_is_registered() -> None:
    assert "soft_moa" in toolkit.list_registered("peft", "soft*")
    text = str(toolkit.describe("peft", "lora"))
    assert text.startswith("lora: ") and "rank = " in text and "arXiv" in text
    with pytest.raises(UnknownName, match="did you mean 'peft'"):
        toolkit.list_registered("pef")
    with pytest.raises(UnknownName, match="did you mean 'lora'"):
        toolkit.describe("peft", "lroa")


def test_plain_loop(
    model: toolkit.AudioClassifier, clips: list[tuple[np.ndarray, int]], tmp_path: Path
) -> None:
    frozen = {n: t.clone() for n, t in model.backbone.named_parameters() if not t.requires_grad}
    data = batch(model, clips)
    optimizer = torch.optim.AdamW(model.trainable().values(), lr=0.01)
    model.train()
    for _ in range(12):
        for rows, labels in DataLoader(data, batch_size=4):
            loss = model.loss(rows, labels, task="one_class")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert right(model, data) == 1
    assert all(
        torch.equal(t, frozen[n]) for n, t in model.backbone.named_parameters() if n in frozen
    )

    toolkit.save_bundle(tmp_path / "bundle", model, CLASSES, "one_class")
    bundle = toolkit.load_bundle(tmp_path / "bundle")
    soundfile.write(tmp_path / "tone.wav", clips[1][0], RATE)
    of_file, of_array = toolkit.predict(bundle, [tmp_path / "tone.wav", clips[1]])
    assert (of_file.label, of_array.label) == ("high", "high")
    assert of_file.path == str(tmp_path / "tone.wav") and of_array.path == "clip 2"
    torch.testing.assert_close(of_file.probabilities, of_array.probabilities, atol=1e-3, rtol=0)
    assert of_file.top(2)[0][0] == "high"

    vectors = toolkit.embed(bundle, clips)
    with torch.no_grad():
        expected = bundle.model.head(vectors).softmax(dim=-1)
    found = torch.stack([p.probabilities for p in toolkit.predict(bundle, clips)])
    torch.testing.assert_close(expected, found)
    bare = toolkit.embed(toolkit.load_backbone("ast_tiny", max_length=LENGTH), clips)
    assert bare.shape == vectors.shape == (8, model.backbone.dim) and not torch.equal(bare, vectors)
    assert toolkit.embed(bundle, []).shape == (0, model.backbone.dim)


def test_without_a_head_the_model_returns_vectors(clips: list[tuple[np.ndarray, int]]) -> None:
    model = toolkit.adapt(toolkit.load_backbone("ast_tiny", max_length=LENGTH), "lora", rank=4)
    rows, _ = toolkit.read_clips(clips, model.backbone)
    assert model.logits(rows).shape == (8, model.backbone.dim)
    assert model.count().head == 0 and model.count().method > 0


def test_rows_are_refused_where_normalised_features_are_read() -> None:
    """Even of a clip that is nearly silent, which `logits` and `loss` take nevertheless."""
    refuses, first, second = (
        AudioClassifier(tiny_backbone(family="wav2vec2"), PEFT.create("lora"), 2, "mean")
        for _ in range(3)
    )
    rows = 1e-5 * torch.randn(2, refuses.backbone.features.rows, 1)
    with pytest.raises(ConfigError, match="these are rows as they are read from audio"):
        refuses(rows)
    assert first.logits(rows).isfinite().all()
    assert second.loss(rows, torch.tensor([0, 1]), task="one_class").isfinite()


class ForTrainer(nn.Module):
    """What transformers' Trainer requires: keyword arguments in, loss and logits out."""

    def __init__(self, model: toolkit.AudioClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, rows: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {
            "loss": self.model.loss(rows, labels, task="one_class"),
            "logits": self.model.logits(rows),
        }


def test_in_transformers_trainer(
    model: toolkit.AudioClassifier, clips: list[tuple[np.ndarray, int]], tmp_path: Path
) -> None:
    pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate")
    from transformers import Trainer, TrainingArguments

    data = batch(model, clips)
    arguments = TrainingArguments(
        output_dir=str(tmp_path), num_train_epochs=12, per_device_train_batch_size=4,
        learning_rate=0.01, save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True,
        remove_unused_columns=False, logging_strategy="no",
    )  # fmt: skip
    rows = [{"rows": r, "labels": label} for r, label in data]
    Trainer(model=ForTrainer(model), args=arguments, train_dataset=rows).train()
    assert right(model, data) == 1


def test_in_lightning(
    model: toolkit.AudioClassifier, clips: list[tuple[np.ndarray, int]], tmp_path: Path
) -> None:
    lightning = pytest.importorskip("lightning", reason="Lightning is not installed")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
            return self.model.loss(*batch, task="one_class")

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.model.trainable().values(), lr=0.01)

    data = batch(model, clips)
    trainer = lightning.Trainer(
        max_epochs=12, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(Module(), DataLoader(data, batch_size=4))
    assert right(model, data) == 1


class Attention(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.query(x), self.key(x), self.value(x)
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v))


class Block(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.attention, self.before = Attention(dim), nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.between = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.before(x))
        return x + self.mlp(self.between(x))


class Encoder(nn.Module):
    """A transformer that this toolkit does not know."""

    def __init__(self, width: int = 5, dim: int = 64) -> None:
        super().__init__()
        self.embed = nn.Linear(width, dim)
        self.stack = nn.ModuleList(Block(dim) for _ in range(3))
        self.last = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.stack:
            x = block(x)
        return self.last(x)


PARTS = toolkit.RoleMap(
    blocks="stack",
    roles={
        "attn.q": "attention.query", "attn.k": "attention.key", "attn.v": "attention.value",
        "attn.o": "attention.out", "ffn.up": "mlp.0", "ffn.down": "mlp.2",
        "mhsa": "attention", "ffn": "mlp", "norm.mhsa": "before", "norm.ffn": "between",
    },
    norm="last",
    embedding="embed",
)  # fmt: skip


@pytest.mark.parametrize("method", toolkit.list_registered("peft"))
def test_own_module_takes_every_method_or_says_why_not(method: str) -> None:
    """Starts at the frozen module where the method says so and trains, or gives a clear error."""
    torch.manual_seed(0)
    module, x = Encoder(), torch.randn(4, 9, 5)
    with torch.no_grad():
        expected = module(x).mean(dim=1)
    needs_width = {"reduction": 8} if "reduction" in _settings(method) else {}
    try:
        model = toolkit.adapt(module, method, roles=PARTS, **needs_width)
    except ConfigError as error:
        assert len(str(error)) > 20
        assert method in REFUSED, f"{method}: {error}"
        return
    assert method not in REFUSED
    if type(model.method).identity_at_start:
        torch.testing.assert_close(model.eval()(x), expected)
    loss = model.train()(x).square().mean()
    loss.backward()
    trained = model.trainable()
    assert trained and any(p.grad is not None for p in trained.values())


REFUSED: set[str] = {"prefix"}
"""Methods that need what a map of roles does not tell."""


def _settings(method: str) -> list[str]:
    return [setting.name for setting in toolkit.describe("peft", method).settings]


def test_own_module_is_saved_and_loaded_with_the_module(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Encoder()
    weights = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    model = toolkit.adapt(module, "lora", 2, roles=PARTS, rank=2)
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.add_(torch.randn_like(parameter))
    toolkit.save_bundle(tmp_path / "bundle", model, CLASSES, "one_class")
    fresh = Encoder()
    fresh.load_state_dict(weights)
    x = torch.randn(3, 7, 5)
    loaded = toolkit.load_bundle(tmp_path / "bundle", backbone=fresh, roles=PARTS)
    torch.testing.assert_close(loaded.model(x), model.eval()(x))
    with pytest.raises(toolkit.ToolkitError, match="a module of your own"):
        toolkit.load_bundle(tmp_path / "bundle")
    with pytest.raises(toolkit.ToolkitError, match="another backbone"):
        toolkit.load_bundle(tmp_path / "bundle", backbone=Encoder(), roles=PARTS)


def test_wrong_maps_of_roles_are_refused() -> None:
    with pytest.raises(ConfigError, match="RoleMap"):
        toolkit.adapt(Encoder(), "lora")
    with pytest.raises(BackboneError, match="not a list of blocks"):
        toolkit.adapt(Encoder(), "lora", roles=toolkit.RoleMap("last", {}, "last", "embed"))
    with pytest.raises(BackboneError, match="unknown roles attention"):
        wrong = toolkit.RoleMap("stack", {"attention": "attention"}, "last", "embed")
        toolkit.adapt(Encoder(), "lora", roles=wrong)
    with pytest.raises(BackboneError, match=r"no part 'stack\.0\.attention\.nothing'"):
        wrong = toolkit.RoleMap("stack", {"attn.q": "attention.nothing"}, "last", "embed")
        toolkit.adapt(Encoder(), "lora", roles=wrong)
    with pytest.raises(ConfigError, match="has no role"):
        few = toolkit.RoleMap("stack", {"ffn": "mlp"}, "last", "embed")
        toolkit.adapt(Encoder(), "lora", roles=few)


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        ((np.zeros((0,), np.float32), RATE), "is not a clip"),
        ((np.zeros((2, 3, 4), np.float32), RATE), "is not a clip"),
        ((np.zeros((16000, 2), np.float32), RATE), "more channels than samples"),
        ((np.full(16000, np.nan, np.float32), RATE), "not finite"),
        ((np.zeros(16000, np.float32), 0), "0 Hz"),
        ((np.zeros(16000, np.int16), RATE), "clip 1: .* divide by 32768"),
        ((np.zeros(16000, np.float32), "fast"), "'fast' is not a sample rate"),
        ((np.zeros(16000, np.float32), True), "True is not a sample rate"),
    ],
)
def test_arrays_that_are_no_clips_are_refused(clip: tuple[np.ndarray, int], message: str) -> None:
    backbone = toolkit.load_backbone("ast_tiny", max_length=LENGTH)
    with pytest.raises(DataError, match=message):
        toolkit.read_clips([clip], backbone)


@pytest.mark.parametrize("rate", [np.int64(8000), np.float32(8000), 8000.0])
def test_a_rate_may_be_a_number_of_numpy(rate: object) -> None:
    backbone = toolkit.load_backbone("ast_tiny", max_length=LENGTH)
    sound = np.linspace(-1, 1, 8000, dtype=np.float32)
    (expected, _), (rows, _) = (toolkit.read_clips([(sound, r)], backbone) for r in (8000, rate))
    assert torch.equal(rows, expected)


def test_no_clips_are_refused_and_an_own_module_reads_no_files() -> None:
    with pytest.raises(DataError, match="no clips"):
        toolkit.read_clips([], toolkit.load_backbone("ast_tiny", max_length=LENGTH))
    own = toolkit.adapt(Encoder(), "lora", roles=PARTS, rank=2).backbone
    for use in (toolkit.read_clips, lambda clips, backbone: toolkit.embed(backbone, clips)):
        with pytest.raises(BackboneError, match="make the input yourself"):
            use(["dog.wav"], own)


def test_a_backbone_is_adapted_once(tmp_path: Path) -> None:
    backbone = toolkit.load_backbone("ast_tiny", max_length=LENGTH)
    model = toolkit.adapt(backbone, "lora", 2, rank=2)
    with pytest.raises(ConfigError, match="already adapted by 'lora'"):
        toolkit.adapt(backbone, "adapter", 2)
    module = Encoder()
    toolkit.adapt(module, "lora", 2, roles=PARTS, rank=2)
    with pytest.raises(ConfigError, match="already adapted"):
        toolkit.adapt(module, "lora", 2, roles=PARTS, rank=2)
    toolkit.save_bundle(tmp_path / "bundle", model, CLASSES, "one_class")
    with pytest.raises(toolkit.ToolkitError, match="load a fresh one"):
        toolkit.load_bundle(tmp_path / "bundle", backbone=backbone)
    other = toolkit.load_backbone("ast_tiny", max_length=2 * LENGTH)
    with pytest.raises(toolkit.ToolkitError, match=f"`max_length={LENGTH}`"):
        toolkit.load_bundle(tmp_path / "bundle", backbone=other)
    fresh = toolkit.load_backbone("ast_tiny", max_length=LENGTH)
    assert toolkit.load_bundle(tmp_path / "bundle", backbone=fresh).classes == CLASSES


def test_a_refused_call_leaves_the_backbone_as_it_was() -> None:
    backbone = toolkit.load_backbone("ast_tiny", max_length=LENGTH)
    for wrong in ({"layers": "last 99"}, {"targets": ["nothing"]}):
        with pytest.raises(ConfigError):
            toolkit.adapt(backbone, "lora", 2, **wrong)
    assert toolkit.adapt(backbone, "lora", 2, rank=2).count().method > 0


def test_files_of_others_are_never_replaced(model: toolkit.AudioClassifier, tmp_path: Path) -> None:
    precious = tmp_path / "project" / "precious.txt"
    precious.parent.mkdir()
    precious.write_text("mine")
    for place in (precious, precious.parent):
        with pytest.raises(toolkit.ToolkitError, match="name another folder"):
            toolkit.save_bundle(place, model, CLASSES, "one_class")
    assert precious.read_text() == "mine" and list(precious.parent.iterdir()) == [precious]
    (tmp_path / "empty").mkdir()
    toolkit.save_bundle(tmp_path / "empty", model, CLASSES, "one_class")
    toolkit.save_bundle(tmp_path / "empty", model, CLASSES, "one_class")  # a bundle is replaced


@pytest.mark.parametrize(
    ("labels", "task"),
    [
        (torch.tensor([0, 2]), "one_class"),
        (torch.tensor([0.0, 1.0]), "one_class"),
        (torch.eye(2), "one_class"),
        (torch.tensor([0, 1]), "several_classes"),
        (torch.zeros(2, 3), "several_classes"),
    ],
)
def test_labels_of_another_task_are_refused(
    model: toolkit.AudioClassifier, clips: list[tuple[np.ndarray, int]], labels: Tensor, task: str
) -> None:
    rows, _ = toolkit.read_clips(clips[:2], model.backbone)
    with pytest.raises(ConfigError, match="labels are"):
        model.loss(rows, labels, task=task)  # type: ignore[arg-type]


def test_one_clip_is_told_from_several(clips: list[tuple[np.ndarray, int]]) -> None:
    backbone = toolkit.load_backbone("ast_tiny", max_length=LENGTH)
    for single in ("dog.wav", Path("dog.wav"), clips[0]):
        with pytest.raises(DataError, match="give a list"):
            toolkit.read_clips(single, backbone)  # type: ignore[arg-type]
    for wrong in (clips[0][0], (clips[0][0],), (clips[0][0], "16000")):
        with pytest.raises(DataError, match="rate"):
            toolkit.read_clips([wrong], backbone)  # type: ignore[list-item]
    halved = torch.from_numpy(clips[0][0]).bfloat16()
    rows, _ = toolkit.read_clips([(halved, RATE)], backbone)
    assert torch.isfinite(rows).all()


def test_own_modules_of_other_forms() -> None:
    class Wrapped(Encoder):
        def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
            return {"last_hidden_state": super().forward(x)}

    x = torch.randn(2, 9, 5)
    assert toolkit.adapt(Wrapped(), "lora", roles=PARTS, rank=2)(x).shape == (2, 64)

    class Pooled(Encoder):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).mean(dim=1)

    with pytest.raises(BackboneError, match=r"must return tokens \[B, M, 64\]"):
        toolkit.adapt(Pooled(), "lora", roles=PARTS, rank=2)(x)
    with pytest.raises(BackboneError, match="float"):
        toolkit.adapt(Encoder().bfloat16(), "lora", roles=PARTS, rank=2)
    unbiased = Encoder()
    unbiased.last = nn.RMSNorm(64)
    parts = dataclasses.replace(PARTS, dim=64)
    assert toolkit.adapt(unbiased, "bitfit", roles=parts).count().method > 0
    with pytest.raises(ConfigError, match="load one"):
        toolkit.adapt("ast_tiny", "lora", 2)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="is not a method"):
        toolkit.adapt(Encoder(), object(), 2, roles=PARTS)  # type: ignore[arg-type]


def test_wrong_words_are_refused(model: toolkit.AudioClassifier, tmp_path: Path) -> None:
    fresh = toolkit.load_backbone("ast_tiny", max_length=LENGTH)
    with pytest.raises(ConfigError, match="no pooling 'max'"):
        toolkit.adapt(fresh, "lora", 2, pooling="max")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="did you mean 'one_class'"):
        toolkit.save_bundle(tmp_path / "bundle", model, CLASSES, "one")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="2 classes and 3 names"):
        toolkit.save_bundle(tmp_path / "bundle", model, [*CLASSES, "more"], "one_class")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("task", ["one_class", "several_classes"])
def test_predicting_and_embedding_leave_the_model_as_it_was(
    task: str, clips: list[tuple[np.ndarray, int]], tmp_path: Path
) -> None:
    backbone = toolkit.load_backbone("ast_tiny", max_length=LENGTH)
    model = toolkit.adapt(backbone, "adapter", 2, pooling="weighted", block="convpass", dropout=0.5)
    with torch.no_grad():
        model.head.weight.mul_(20)
        for parameter in model.trainable().values():
            parameter.add_(0.05 * torch.randn_like(parameter))
    toolkit.save_bundle(tmp_path / "bundle", model, CLASSES, task)
    bundle = toolkit.load_bundle(tmp_path / "bundle")
    bundle.model.train()
    vectors, again = toolkit.embed(bundle, clips), toolkit.embed(bundle, clips)
    first, second = list(toolkit.predict(bundle, clips)), list(toolkit.predict(bundle, clips))
    assert bundle.model.training
    assert torch.equal(vectors, again)  # no dropout
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.probabilities, other.probabilities)
        wanted = [one.label] if task == "one_class" else [
            name for name, p in zip(CLASSES, one.probabilities, strict=True) if p >= 0.5
        ]  # fmt: skip
        assert one.labels == wanted

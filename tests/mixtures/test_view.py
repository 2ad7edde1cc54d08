"""`toolkit experts`: weights that explain a mixture's output, pictures of them, and one page."""

import base64
import re
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from bundles import unsaved_bundle
from torch import Tensor

from toolkit import plugins
from toolkit.backbones.ast import ASTTiny
from toolkit.bundle import Bundle, Origin, save_bundle
from toolkit.cli import main
from toolkit.errors import ConfigError
from toolkit.features.fbank import Fbank
from toolkit.mixtures.view import figures, page
from toolkit.mixtures.view.collect import LayerView, look, training_record
from toolkit.mixtures.view.page import show_experts
from toolkit.model import AudioClassifier
from toolkit.parameters import ParameterCount
from toolkit.peft.mixture import Mixture, mixtures
from toolkit.registry import PEFT
from toolkit.results import EpochRecord, FoldResult, Statistics, write_fold
from toolkit.task import ONE_CLASS, SEVERAL_CLASSES, Task
from toolkit.testing import tiny_backbone, tiny_batch, tiny_classifier, tiny_mixture

plugins.load()
LENGTH = 64


def epoch_with(number: int, statistics: Statistics) -> EpochRecord:
    """The record of an epoch of which only the statistics matter."""
    return EpochRecord(
        epoch=number, lr=0.1, train_loss=1.0, valid_loss=1.0, valid_score=0.5, metric="accuracy",
        train_seconds=1.0, valid_seconds=1.0, auxiliary={}, statistics=statistics,
    )  # fmt: skip


HISTORY = [
    epoch_with(e, {"load": [0.5 - e / 10, 0.5 + e / 10], "gate_entropy": 1 / e, "n": 9.0})
    for e in (1, 2, 3)
]


def leave_record(folder: Path) -> None:
    """Write the `fold.json` of a fold that was trained for the epochs of `HISTORY`."""
    folder.mkdir(parents=True)
    result = FoldResult(
        test_fold=3, valid_fold=1, train_folds=[2], metric="accuracy", score=0.5, valid_score=0.5,
        best_epoch=1, metrics={"accuracy": 0.5}, per_class=[0.5], confusion=[[1]],
        parameters=ParameterCount(1, 1, 3), peak_memory_bytes=1, training_clips=1, history=HISTORY,
    )  # fmt: skip
    write_fold(folder, result)


def bundle_of(model: AudioClassifier, task: Task = ONE_CLASS) -> Bundle:
    """A bundle that exists in memory only."""
    return unsaved_bundle(model, task, Fbank())


def window(model: AudioClassifier) -> Tensor:
    """Raw frames [T, F] of a random clip."""
    spec = model.backbone.features
    return tiny_batch(model.backbone, clips=1)[0][0] * 2 * spec.std + spec.mean


def view(special: int = 2, grid: tuple[int, int] = (2, 3), slots: int = 1) -> LayerView:
    """A layer of three experts with random gates."""
    weights = torch.rand(special + grid[0] * grid[1], 3, slots, generator=torch.manual_seed(0))
    return LayerView("blocks.0.mhsa", {"gate": weights}, special, grid)


def saved(
    folder: Path, name: str = "soft_moa", classes: tuple[str, ...] = ("dog", "<rain>")
) -> Path:
    """A bundle with a mixture in one block, whose tensors do not have their initial values."""
    torch.manual_seed(0)
    source, method = ASTTiny(), PEFT.create({"name": name, "layers": [1]})
    model = AudioClassifier(source.load(LENGTH), method, len(classes), "all").eval()
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return save_bundle(folder, model, list(classes), ONE_CLASS, origin=Origin(test_fold=3))


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """Noise of 0.9 s: a full window of 0.64 s and a padded one."""
    file = tmp_path / "a & b.wav"
    noise = np.random.default_rng(0).standard_normal(14_400)
    soundfile.write(file, 0.1 * noise, 16_000)
    return file


# What is seen


@pytest.mark.parametrize("name", PEFT.names())
def test_every_mixture_can_be_seen_and_nothing_else(name: str) -> None:
    model = tiny_mixture(name)
    if not mixtures(model.backbone):
        with pytest.raises(ConfigError, match=f"'{name}' is not a mixture"):
            look(bundle_of(model), window(model))
        return
    views, _ = look(bundle_of(model), window(model))
    sites = list(mixtures(model.backbone))
    assert [layer.site for layer in views] == sites and sites[0].startswith("blocks.0.")
    f, t = model.backbone.grid
    for layer in views:
        assert layer.weights.keys() in ({"gate"}, {"dispatch", "combine"})
        for weights in layer.weights.values():
            assert weights.shape[0] == 2 + f * t and weights.ndim == 3
            assert (weights >= 0).all() and weights.sum() > 0
        assert layer.load().sum().item() == pytest.approx(1, abs=1e-5)
        if "dispatch" in layer.weights:
            sums = layer.weights["dispatch"].sum(dim=0)
            torch.testing.assert_close(sums, torch.ones_like(sums))


def seen_in_a_pass(model: AudioClassifier) -> list[tuple[Mixture, Tensor, Tensor, dict]]:
    """For every mixture: itself, its input, its output, and its weights in that pass."""
    found = []
    for module in mixtures(model.backbone).values():
        module.register_forward_hook(
            lambda m, args, out: found.append((m, args[0], out, m.token_weights(args[0])))
        )
    with torch.no_grad():
        model(tiny_batch(model.backbone)[0])
    return found


@pytest.mark.parametrize("name", ["dense_moa", "dynmoe", "thor"])
def test_gates_explain_the_output(name: str) -> None:
    for module, x, out, weights in seen_in_a_pass(tiny_mixture(name)):
        torch.testing.assert_close(module.experts.mix(x, weights["gate"][..., 0]), out)


def test_dispatch_and_combine_explain_the_output() -> None:
    for module, x, out, weights in seen_in_a_pass(tiny_mixture("soft_moa", slots=3)):
        slots = torch.einsum("btes,btd->besd", weights["dispatch"], x)
        mixed = torch.einsum("btes,besd->btd", weights["combine"], module.experts(slots))
        torch.testing.assert_close(mixed, out)


def test_gates_of_a_pool_explain_the_output() -> None:
    model = tiny_mixture("peer", n_keys=5, heads=3, topk=4)
    for module, x, out, weights in seen_in_a_pass(model):
        pool = module.shared[0]
        hidden = torch.nn.functional.gelu(torch.einsum("nrd,btd->btnr", pool.down, x))
        expected = torch.einsum("btn,btnr,nrd->btd", weights["gate"][..., 0], hidden, pool.up)
        torch.testing.assert_close(expected, out, rtol=1e-3, atol=1e-4)
        assert weights["gate"].sum(dim=(2, 3)).flatten().tolist() == pytest.approx([3.0] * 72)


@pytest.mark.parametrize("hierarchy", [1, 3])
def test_gates_of_factorised_experts_are_products(hierarchy: int) -> None:
    model = tiny_mixture("mumoe", num_experts=4, hierarchy=hierarchy)
    for module, x, _, weights in seen_in_a_pass(model):
        first, *second = module.block.route(x)
        for n in range(4):
            for m in range(hierarchy):
                expected = first[..., n] * second[0][..., m] if second else first[..., n]
                found = weights["gate"][..., n * hierarchy + m, 0]
                torch.testing.assert_close(found, expected)


def test_looking_changes_nothing() -> None:
    model = tiny_mixture("soft_moa")
    raw = window(model)
    with torch.no_grad():
        expected = model(model.backbone.features.normalise(raw[None])).softmax(-1)[0]
    _, found = look(bundle_of(model), raw)
    torch.testing.assert_close(found, expected)
    assert not any(module._forward_pre_hooks for module in mixtures(model.backbone).values())


# What is made of it


def test_patches_lie_where_the_backbone_has_them() -> None:
    layer = view(special=2, grid=(2, 3), slots=2)
    maps, gate = layer.maps("gate"), layer.weights["gate"]
    for expert in range(3):
        for row in range(2):
            for column in range(3):
                token = gate[2 + 3 * row + column, expert]
                assert maps[expert, row, column] == pytest.approx(token.sum().item())


def test_load_by_hand() -> None:
    gate = torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.25, 0.75, 0.0]])[..., None]
    layer = LayerView("x", {"gate": gate}, special=1, grid=(1, 2))
    assert layer.load().tolist() == pytest.approx([0.25, 0.75, 0])
    assert layer.busiest(1) == [1] and layer.busiest(9) == [0, 1]  # 2 is never used
    assert layer.on_special("gate") == pytest.approx(1 / 3)


def test_similarity_by_hand() -> None:
    layer = view(slots=2)
    found = layer.similarity([0, 2])
    columns = [layer.weights["gate"][:, e, s] for e in (0, 2) for s in (0, 1)]
    for i, one in enumerate(columns):
        for j, other in enumerate(columns):
            expected = torch.cosine_similarity(one, other, dim=0).item()
            assert found[i, j].item() == pytest.approx(expected, abs=1e-6)
    soft = LayerView(
        "x", {"dispatch": torch.eye(3)[..., None], "combine": torch.ones(3, 3, 1)}, 0, (1, 3)
    )
    assert torch.equal(soft.similarity([0, 1, 2]), torch.eye(3))  # of what slots read


def test_a_layers_picture_shows_its_maps() -> None:
    layer, frames = view(), torch.randn(40, 16)
    frames[30:] = torch.nan
    axes = figures.draw_layer(layer, frames, most=2).axes
    panels = [axis for axis in axes if axis.get_title().startswith("expert")]
    assert len(panels) == 2
    maps, load = layer.maps("gate"), layer.load()
    for axis, expert in zip(panels, layer.busiest(2), strict=True):
        assert axis.get_title() == f"expert {expert}, {100 * load[expert]:.0f} %"
        sound, weights = axis.images
        np.testing.assert_allclose(weights.get_array(), maps[expert].numpy())
        assert weights.get_extent() == sound.get_extent() == [0, 0.4, 0, 16]
        assert weights.origin == sound.origin == "lower"  # band 0 below
        assert np.ma.getmaskarray(np.ma.masked_invalid(sound.get_array()))[:, 30:].all()
        assert weights.norm.vmin <= weights.get_array().min()
    assert {axis.images[1].norm.vmax for axis in panels} == {maps[layer.busiest(2)].max().item()}


def test_training_curves_are_the_record() -> None:
    left, right = figures.draw_training(HISTORY).axes
    assert [line.get_ydata().tolist() for line in left.lines] == [
        [record.statistics["load"][expert] for record in HISTORY] for expert in (0, 1)
    ]
    assert left.get_legend_handles_labels()[1] == ["expert 0", "expert 1"]
    (line,) = right.lines  # `n` is neither an entropy nor a similarity
    assert line.get_xydata().tolist() == [[1, 1], [2, 1 / 2], [3, 1 / 3]]
    pool = [epoch_with(1, {"gate_entropy": 0.5})]  # PEER has no load by expert
    (only,) = figures.draw_training(pool).axes
    assert only.lines[0].get_xydata().tolist() == [[1, 0.5]]
    assert figures.draw_training([]) is None
    assert figures.draw_training([epoch_with(1, {"n": 9.0})]) is None


@pytest.mark.parametrize("place", ["fold-3/bundle", "bundle"])
def test_the_record_is_found_beside_the_bundle(place: str, tmp_path: Path) -> None:
    assert training_record(tmp_path / place, 3) == []
    leave_record(tmp_path / "fold-3")
    assert training_record(tmp_path / place, 3) == HISTORY


# The command


def pictures_in(page: str) -> dict[str, bytes]:
    """Name -> content of every picture in a page, all of which must be embedded."""
    found = re.findall(r"<img alt='([^']*)' src='data:image/png;base64,([^']*)'>", page)
    assert len(found) == page.count("<img") and "src='http" not in page and "<script" not in page
    return {unescape(name): base64.b64decode(data) for name, data in found}


def test_the_command_writes_pictures_and_one_page(
    tmp_path: Path, recording: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    bundle = saved(tmp_path / "run" / "bundle")
    leave_record(tmp_path / "run" / "fold-3")
    main(["experts", str(bundle), str(recording)])
    folder = tmp_path / "experts-a & b"
    assert capsys.readouterr().out == "wrote experts-a & b/index.html and its pictures\n"
    files = {file.stem: file.read_bytes() for file in folder.glob("*.png")}
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert files.keys() == {"blocks.1.mhsa", "similarity", "training"}
    assert pictures_in(page) == files
    assert all(content.startswith(b"\x89PNG") for content in files.values())
    assert "a &amp; b.wav, window 1 of 2" in page and "&lt;rain&gt;" in page
    assert "dispatch:" in page and "combine:" in page


def test_another_window_of_a_gated_mixture_without_a_record(
    tmp_path: Path, recording: Path
) -> None:
    bundle = saved(tmp_path / "bundle", "dense_moa")
    page = show_experts(bundle, recording, tmp_path / "out", most=2, window=2).read_text()
    assert "window 2 of 2" in page and "No record of the training" in page
    assert pictures_in(page).keys() == {"blocks.1.mhsa", "similarity"}
    with pytest.raises(ConfigError, match="windows 1 to 2, not 3"):
        show_experts(bundle, recording, tmp_path / "none", window=3)
    with pytest.raises(ConfigError, match="one or more"):
        show_experts(bundle, recording, tmp_path / "none", most=0)
    assert not (tmp_path / "none").exists()


def test_a_bundle_without_a_mixture_is_refused(
    tmp_path: Path, recording: Path, capsys: Any
) -> None:
    bundle = saved(tmp_path / "bundle", "lora")
    with pytest.raises(SystemExit) as stopped:
        main(["experts", str(bundle), str(recording), "-o", str(tmp_path / "out")])
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("error: 'lora' is not a mixture: it has no experts to show")
    assert not (tmp_path / "out").exists()


def test_a_bundle_that_reads_no_spectrogram_is_refused(
    recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_classifier(PEFT.create("soft_moa"), family="wav2vec2")
    monkeypatch.setattr(page, "load_bundle", lambda *_: bundle_of(model))
    with pytest.raises(ConfigError, match="which 'wav2vec2' does not read"):
        page.show_experts(tmp_path / "bundle", recording, tmp_path / "out")


def test_classes_of_several_a_clip_have_probabilities_of_their_own() -> None:
    model = tiny_mixture("soft_moa")
    frames = window(model)
    with torch.no_grad():
        logits = model(model.backbone.features.normalise(frames[None]))[0]
    for task, expected in (
        (SEVERAL_CLASSES, logits.sigmoid()),
        (ONE_CLASS, logits.softmax(dim=-1)),
    ):
        torch.testing.assert_close(look(bundle_of(model, task), frames)[1], expected)


def test_looking_needs_no_more_than_a_backbone_with_tokens() -> None:
    """Without a grid of patches, tokens are drawn as one row."""
    model = tiny_mixture("dense_moa")
    patches = tiny_backbone().grid

    class Sequence(type(model.backbone)):
        grid = None

    model.backbone.__class__ = Sequence
    views, _ = look(bundle_of(model), window(model))
    assert views[0].grid == (1, patches[0] * patches[1])
    assert views[0].maps("gate").shape == (7, *views[0].grid)

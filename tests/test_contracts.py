"""The contracts find what is wrong, say it in a sentence, and let pass what is right."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Generator, Tensor, nn

from toolkit import plugins, testing
from toolkit.backbones.base import Backbone
from toolkit.cli.main import main
from toolkit.data.augment import Mixup, SpecAugment, augmented
from toolkit.data.corpora.miniature import write_tones
from toolkit.data.manifest import Corpus, Manifest
from toolkit.errors import ConfigError, PluginError
from toolkit.features.fbank import Fbank
from toolkit.peft.base import PeftMethod, insertion
from toolkit.peft.dense_moa import DenseMixture, DenseMoA
from toolkit.registry import CORPORA, PEFT, PIPELINES, REGISTRIES
from toolkit.scaffold import KINDS, new_plugin
from toolkit.testing import matrix

plugins.load()


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Leave the registries as they were."""
    before = {key: registry.snapshot() for key, registry in REGISTRIES.items()}
    yield
    for key, registry in REGISTRIES.items():
        registry.restore(before[key])


# ---------------------------------------------------------------- methods


class Width(nn.Module):
    """Tokens [..., d] -> zeros of another width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.bias = width, nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.bias * x.new_zeros(*x.shape[:-1], self.width)


def test_a_method_that_inserts_nothing_is_refused() -> None:
    @PEFT.register("idle")
    class Idle(PeftMethod):
        """Does nothing."""

        def insert(self, backbone: Backbone) -> None:
            """Forgotten."""

    words = "the method 'idle' inserts nothing and trains nothing of the backbone 'ast'"
    with pytest.raises(ConfigError, match=words):
        testing.check_method("idle")
    with pytest.raises(ConfigError, match=words):
        Idle().apply(testing.tiny_backbone())
    assert matrix.cell("idle", "ast").verdict == "impossible"


def test_a_method_without_insert_is_named() -> None:
    @PEFT.register("empty")
    class Empty(PeftMethod):
        """Has no insert."""

    words = rf"the PEFT method 'empty' at {__file__}:\d+ does not define insert\(\)"
    with pytest.raises(PluginError, match=words):
        PEFT.create("empty")


def test_what_is_no_method_is_named() -> None:
    @PEFT.register("module")
    class Module(nn.Module):
        """No method."""

    words = r"'module' at .* is registered as a PEFT method and is none: write `class Module\(Peft"
    with pytest.raises(PluginError, match=words):
        PEFT.create("module")


@pytest.mark.parametrize("width", [1, 48, 97])
def test_a_wrong_width_names_method_and_site(width: int) -> None:
    @PEFT.register("narrow")
    class Narrow(PeftMethod):
        """Returns tokens of another width."""

        def insert(self, backbone: Backbone) -> None:
            """In parallel to the second feed-forward."""
            insertion.parallel(backbone.site(1, "ffn"), "narrow", Width(width))

    model = testing.tiny_classifier(PEFT.create("narrow"))
    words = (
        rf"the method 'narrow' fails at blocks\.1\.ffn: its module returns tokens of width {width}"
    )
    with pytest.raises(ConfigError, match=words):
        model(testing.tiny_batch(model.backbone)[0])


def test_a_failure_inside_a_module_names_method_and_site() -> None:
    @PEFT.register("wrong_input")
    class WrongInput(PeftMethod):
        """Reads tokens of another width."""

        def insert(self, backbone: Backbone) -> None:
            """Behind the first attention."""
            insertion.after(backbone.site(0, "mhsa"), "wrong_input", nn.Linear(7, 96))

    model = testing.tiny_classifier(PEFT.create("wrong_input"))
    with pytest.raises(RuntimeError) as caught:
        model(testing.tiny_batch(model.backbone)[0])
    assert caught.value.__notes__ == ["the method 'wrong_input' fails at blocks.0.mhsa"]
    found = matrix.cell("wrong_input", "ast")
    assert found.verdict == "broken" and "blocks.0.mhsa" in found.reason


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (AssertionError(), "AssertionError (test_contracts.py, line"),
        (KeyError("rank"), "KeyError: 'rank' (test_contracts.py, line"),
        (RuntimeError("sizes differ\nmore"), "RuntimeError: sizes differ (test_contracts.py, line"),
        (AssertionError("it does not\nmore"), "it does not"),
    ],
)
def test_every_verdict_has_a_reason(error: Exception, reason: str) -> None:
    @PEFT.register("raising")
    class Raising(PeftMethod):
        """Raises in `insert`."""

        def insert(self, backbone: Backbone) -> None:
            """Raise."""
            raise error

    found = matrix.cell("raising", "ast")
    assert found.verdict == "broken" and found.reason.startswith(reason)


class Logits(DenseMixture):
    """A mixture that gives its router's logits for gates."""

    def gates(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.router.linear(x)


class Halved(DenseMixture):
    """A mixture that tells the shares of half its experts."""

    def shares(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.gates(x, mask)[..., ::2]


class Silent(DenseMixture):
    """A mixture that records nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return self.experts.mix(x, self.gates(x))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Logits, "negative for some token: give gates, not logits"),
        (Halved, "has the shape"),
        (Silent, "records nothing: append to `records`"),
    ],
)
def test_mixtures_that_do_not_answer(kind: type[DenseMixture], words: str) -> None:
    @PEFT.register("answering")
    class Answering(DenseMoA):
        """A dense mixture of another kind."""

        def mixture(self, backbone: Backbone, site: Any) -> DenseMixture:
            """Of that kind."""
            return kind(self.experts(backbone, self.num_experts, site.out_dim))

    with pytest.raises(AssertionError, match=words):
        testing.check_mixtures(PEFT.create("answering"))


@pytest.mark.parametrize("name", PEFT.names())
def test_every_mixture_answers(name: str) -> None:
    testing.check_mixtures(PEFT.create(name))


# ---------------------------------------------------------------- augmentations


@pytest.mark.parametrize("augmentation", [SpecAugment(8, 20), Mixup(0.5), Mixup(0.5, 0.5)])
def test_augmentations_keep_their_contract(augmentation: Any) -> None:
    testing.check_augmentation(augmentation)


class Alone:
    """Returns one tensor."""

    def __call__(self, features: Tensor, targets: Tensor, generator: Generator) -> Any:
        return features


class Shorter(Alone):
    """Returns fewer frames."""

    def __call__(self, features: Tensor, targets: Tensor, generator: Generator) -> Any:
        return features[:, 1:], targets


class InPlace(Alone):
    """Changes what it is given."""

    def __call__(self, features: Tensor, targets: Tensor, generator: Generator) -> Any:
        features.zero_()
        return features, targets


class Global(Alone):
    """Draws from torch's own generator."""

    def __call__(self, features: Tensor, targets: Tensor, generator: Generator) -> Any:
        return features + torch.randn_like(features), targets


class Doubled(Alone):
    """Returns targets that are no probabilities."""

    def __call__(self, features: Tensor, targets: Tensor, generator: Generator) -> Any:
        return features, 2 * targets


class Nothing(Alone):
    """Forgets to return."""

    def __call__(self, features: Tensor, targets: Tensor, generator: Generator) -> Any:
        return None


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (InPlace, "changes its input"),
        (Global, "must draw from its generator"),
        (Doubled, "targets sum to"),
    ],
)
def test_augmentations_that_break_it(kind: type[Alone], words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        testing.check_augmentation(kind())


@pytest.mark.parametrize("clips", [1, 2, 5])
@pytest.mark.parametrize("kind", [Alone, Shorter, Nothing])
def test_an_augmentation_that_returns_something_else_is_named(
    kind: type[Alone], clips: int
) -> None:
    """Also for two clips, whose one tensor could be taken apart into two."""
    with pytest.raises(ConfigError, match=f"the augmentation {kind.__name__} must return features"):
        augmented([kind()], torch.zeros(clips, 4, 3), torch.eye(clips), Generator())


# ---------------------------------------------------------------- corpora, pipelines, backbones


def table(folder: Path, folds: list[int]) -> Manifest:
    """Tones of two classes in these folds."""
    files = [folder / f"{number}.wav" for number in range(len(folds))]
    write_tones({file: number % 2 for number, file in enumerate(files)})
    clips = pd.DataFrame(
        {
            "id": [file.name for file in files],
            "path": [str(file) for file in files],
            "label": np.arange(len(files)) % 2,
            "fold": folds,
        }
    )
    return Manifest("tones", clips, ["even", "odd"])


def test_a_corpus_that_reads_what_is_not_there() -> None:
    @CORPORA.register("blind")
    class Blind(Corpus):
        """Looks at no folder."""

        def manifest(self, folder: Path) -> Manifest:
            """Always the same."""
            folder.mkdir(parents=True, exist_ok=True)
            return table(folder, [1, 1, 2, 2, 3, 3])

    with pytest.raises(AssertionError, match="must be refused with a DataError"):
        testing.check_corpus("blind")


def test_a_corpus_that_leaves_a_class_without_training_clips(tmp_path: Path) -> None:
    @CORPORA.register("uneven")
    class Uneven(Corpus):
        """Each class has a fold of its own, nearly."""

        def manifest(self, folder: Path) -> Manifest:
            """Two classes in three folds."""
            if not folder.is_dir():
                return CORPORA.create("crema_d").manifest(folder)
            return table(folder, [1, 2, 3, 2, 1, 2])

    with pytest.raises(AssertionError, match="no clip to train on when fold 1 is tested: odd"):
        testing.check_corpus("uneven", tmp_path)


@pytest.mark.parametrize("name", ["crema_d", "iemocap", "fsd50k", "urbansound8k"])
def test_corpora_of_the_library_keep_it(name: str) -> None:
    testing.check_corpus(name)


@pytest.mark.parametrize("name", ["fbank", "waveform"])
def test_pipelines_of_the_library_keep_it(name: str) -> None:
    testing.check_pipeline(name)


def test_a_pipeline_of_another_width() -> None:
    @PIPELINES.register("half")
    class Half(Fbank):
        """Every other band."""

        def rows(self, waveform: Tensor, spec: Any) -> Tensor:
            """Too narrow."""
            return super().rows(waveform, spec)[:, ::2]

    with pytest.raises(ConfigError, match="the pipeline 'half' makes rows of shape"):
        testing.check_pipeline("half")


@pytest.mark.parametrize("family", ["ast", "wav2vec2"])
def test_backbones_of_the_library_keep_it(family: str) -> None:
    testing.check_backbone(family, methods="l[io]*")


# ---------------------------------------------------------------- plugins outside the repository


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_plugin_of_any_kind_keeps_its_contract(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Written, then checked through the command, with its own tests left out (next test)."""
    name = f"fresh_{kind}"
    files = new_plugin(name, tmp_path, kind)
    assert all(file.is_file() for file in files)
    monkeypatch.setattr("toolkit.cli.plugin._tests_pass", lambda folder: True)
    try:
        main(["check-plugin", str(tmp_path / name)])
    finally:
        sys.modules.pop(f"toolkit_plugins.{name}.{name}", None)
    out = capsys.readouterr().out
    assert kind == "augmentation" or f"'{name}': keeps its contract" in out


def test_a_plugin_that_breaks_its_contract(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module, *_ = new_plugin("lazy_method", tmp_path)
    text = module.read_text()
    module.write_text(text.replace("insertion.after(", "print if site else ("))
    monkeypatch.setattr("toolkit.cli.plugin._tests_pass", lambda folder: True)
    with pytest.raises(SystemExit) as ended:
        main(["check-plugin", str(tmp_path / "lazy_method")])
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert "PEFT method 'lazy_method': the method 'lazy_method' inserts nothing" in out
    assert "error: checks have failed of PEFT method 'lazy_method'" in err.replace("\n", " ")


def test_its_own_tests_are_run(tmp_path: Path) -> None:
    from toolkit.cli.plugin import _tests_pass

    folder = tmp_path / "mine"
    folder.mkdir()
    assert _tests_pass(folder)
    (folder / "test_mine.py").write_text("def test_it():\n    assert 1 + 1 == 2\n")
    assert _tests_pass(folder)
    (folder / "test_mine.py").write_text("def test_it():\n    assert 1 + 1 == 3\n")
    assert not _tests_pass(folder)


# ---------------------------------------------------------------- rows and features


@pytest.mark.parametrize("family", ["ast", "wav2vec2", "wavlm", "whisper", "clap", "wav2vec2_bert"])
def test_rows_given_as_features_are_refused(family: str) -> None:
    model = testing.tiny_classifier(PEFT.create("lora"), family=family, pooling="mean").eval()
    spec = model.backbone.features
    rows, lengths = testing.tiny_rows(model.backbone)
    if spec.kind == "fbank":
        rows = 4.5 * rows.clamp(-2.5, 2.5) - 4.3  # log-mel values as they are
        rows[:, -1] = -15.9  # silence
    else:
        rows = 0.1 * rows.clamp(-3, 3)
    with pytest.raises(ConfigError, match=r"call `model\.logits\(rows, lengths\)`"):
        model(rows, lengths)
    fresh = testing.tiny_classifier(PEFT.create("lora"), family=family, pooling="mean").eval()
    with torch.no_grad():
        right = fresh(spec.normalise(rows, lengths), lengths)
        assert torch.equal(fresh.logits(rows, lengths), right)

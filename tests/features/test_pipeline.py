"""Data pipelines: chosen by the backbone's kind of rows, replaced by a plugin, kept in bundles."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from recipe import TRAIN
from torch import Tensor
from transformers import ASTModel

from toolkit import config
from toolkit.bundle import load_bundle
from toolkit.data.synthetic.corpus import write_corpus
from toolkit.errors import BundleError, ConfigError, UnknownName
from toolkit.features.cache import Segment
from toolkit.features.fbank import Fbank
from toolkit.features.pipeline import pipeline_for
from toolkit.features.spec import FbankSpec, FeatureSpec, WaveformSpec
from toolkit.features.waveform import Waveform
from toolkit.inference.predict import predict
from toolkit.registry import REGISTRIES
from toolkit.settings import NamedSettings
from toolkit.training.experiment import Experiment
from toolkit.training.folds import cross_validate

FBANK = FbankSpec(sample_rate=16000, max_length=20, mel_bins=16, mean=0.0, std=1.0)
SAMPLES = WaveformSpec(sample_rate=16000, max_length=20)
PCEN = '''
"""Per-channel energy normalisation (Wang et al., arXiv:1607.05666)."""

import torch
from torch import Tensor

from toolkit.features.fbank import Fbank
from toolkit.features.spec import FeatureSpec
from toolkit.registry import PIPELINES
from toolkit.settings import setting


@PIPELINES.register("pcen", paper="arXiv:1607.05666")
class PCEN(Fbank):
    """Log-mel frames whose energy is divided by a running mean of it."""

    smoothing: float = setting(0.1, "weight of the newest frame", minimum=0, maximum=1)

    def rows(self, waveform: Tensor, spec: FeatureSpec) -> Tensor:
        """Frames [T, F] less the logarithm of their running mean."""
        energy = super().rows(waveform, spec).exp()
        mean, means = energy[0], []
        for frame in energy:
            mean = torch.lerp(mean, frame, self.smoothing)
            means.append(mean)
        return (energy / torch.stack(means)).log()
'''


class Gain(Fbank):
    """Log-mel frames of a louder clip."""

    registered_name = "gain"
    decibels: float = 6.0

    def rows(self, waveform: Tensor, spec: FeatureSpec) -> Tensor:
        """The frames [T, F] of the waveform, `decibels` louder."""
        return super().rows(waveform * 10 ** (self.decibels / 20), spec)


class Narrow(Fbank):
    """Returns too few columns."""

    registered_name = "narrow"

    def rows(self, waveform: Tensor, spec: FeatureSpec) -> Tensor:
        """All columns but one."""
        return super().rows(waveform, spec)[:, 1:]


@pytest.fixture
def clip(tmp_path: Path) -> str:
    """A file of noise."""
    path = tmp_path / "clip.wav"
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(4000), 16000)
    return str(path)


@pytest.fixture
def pcen(tmp_path: Path) -> Iterator[Path]:
    """The folder of a plugin with its own pipeline, which is unregistered after the test."""
    folder = tmp_path / "pcen"
    folder.mkdir()
    (folder / "pcen.py").write_text(PCEN)
    before = {kind: registry.snapshot() for kind, registry in REGISTRIES.items()}
    yield folder
    for kind, registry in REGISTRIES.items():
        registry.restore(before[kind])


def test_the_default_is_what_the_spec_asks_for() -> None:
    assert type(pipeline_for(FBANK)) is Fbank
    assert type(pipeline_for(SAMPLES)) is Waveform
    assert type(pipeline_for(SAMPLES, {"name": "waveform"})) is Waveform


def test_another_kind_is_refused_and_the_right_ones_are_named() -> None:
    with pytest.raises(ConfigError, match=r"--pipeline waveform.*available: waveform"):
        pipeline_for(SAMPLES, {"name": "fbank"})
    with pytest.raises(ConfigError, match=r"--pipeline fbank.*available: .*fbank"):
        pipeline_for(FBANK, {"name": "waveform"})
    with pytest.raises(UnknownName, match="did you mean 'fbank'"):
        pipeline_for(FBANK, {"name": "fbnak"})


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], None),
        (["--pipeline", "waveform"], {"name": "waveform"}),
        (["--pipeline.name", "waveform"], {"name": "waveform"}),
        (["--pipeline", "gain", "--pipeline.decibels", "3"], {"name": "gain", "decibels": 3}),
        (["--pipeline", "gain", "--pipeline", "null"], None),
    ],
)
def test_the_command_line_names_a_pipeline_or_none(words: list[str], expected: object) -> None:
    command = config.parse_command_line(["hparams/softmoa.yaml", *words])
    assert config.load(command, TRAIN.parent).values["pipeline"] == expected


def test_rows_of_another_width_are_refused(clip: str) -> None:
    with pytest.raises(ConfigError, match=r"\[T, 16\].*correct its `rows`"):
        Narrow().read(Segment(clip), FBANK)


def test_each_pipeline_and_each_setting_has_a_cache_of_its_own(clip: str, tmp_path: Path) -> None:
    clips = pd.DataFrame({"id": ["a"], "path": [clip], "label": [0], "fold": [1]})
    pipelines = [Fbank(), Gain(), Gain(decibels=3.0)]
    caches = [pipeline.cache(clips, FBANK, tmp_path / "cache") for pipeline in pipelines]
    assert len({cache.folder for cache in caches}) == 3
    for pipeline, cache in zip(pipelines, caches, strict=True):
        expected = pipeline.read(Segment(clip), FBANK)
        torch.testing.assert_close(torch.tensor(cache[0]), expected, rtol=0, atol=0)
    assert (caches[1][0] > caches[0][0]).all()
    again = Gain(decibels=3.0).cache(clips, FBANK, tmp_path / "cache", build=False)
    assert again.folder == caches[2].folder


def test_a_plugin_s_pipeline_trains_predicts_and_is_remembered(
    pcen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run over two folds: weights read once; the bundle predicts as the model in memory did."""
    read = []
    from_pretrained = ASTModel.from_pretrained.__func__

    def counted(cls: type, *arguments: object, **options: object) -> object:
        read.append(cls)
        return from_pretrained(cls, *arguments, **options)

    monkeypatch.setattr(ASTModel, "from_pretrained", classmethod(counted))
    monkeypatch.setattr("toolkit.backbones.base._READ", {})  # as in a process of its own
    monkeypatch.chdir(tmp_path)
    before = {kind: registry.snapshot() for kind, registry in REGISTRIES.items()}
    corpus = write_corpus(tmp_path / "corpus", clips_per_class=5, seconds=0.6, progress=False)
    words = f"""hparams/softmoa.yaml --plugins {pcen} --data_folder {corpus} --backbone ast_tiny
        --max_length 64 --epochs 1 --batch_size 8 --noprogressbar true --folds 1,2
        --output_folder out --pipeline pcen --pipeline.smoothing 0.2"""
    experiment = Experiment.from_command_line(str(TRAIN), words.split())
    assert experiment.spec.kind == "fbank" and read == []
    cross_validate(experiment)
    assert len(read) == 1

    folder = tmp_path / "out" / "fold-1" / "bundle"
    bundle = load_bundle(folder)
    assert bundle.info.pipeline == NamedSettings("pcen", {"smoothing": 0.2})
    recorded = pd.read_csv(tmp_path / "out" / "fold-1" / "predictions.csv").set_index("id")
    manifest = experiment.manifest()
    clips = manifest.of_folds([1]).set_index("id").loc[recorded.index]
    found = torch.stack([p.probabilities for p in predict(bundle, clips["path"])])
    expected = torch.tensor(recorded[[f"p_{name}" for name in bundle.classes]].to_numpy())
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)

    for kind, registry in REGISTRIES.items():
        registry.restore(before[kind])
    with pytest.raises(BundleError, match=r"data pipeline 'pcen'.*--plugins"):
        load_bundle(folder)


def test_a_bundle_without_a_record_means_the_default(tmp_path: Path) -> None:
    """Bundles written before pipelines were recorded."""
    from bundles import rewrite_bundle, tiny_bundle

    bundle = tiny_bundle(tmp_path, "bitfit")
    assert load_bundle(bundle).info.pipeline == NamedSettings("fbank", {})
    rewrite_bundle(bundle, {"format": 1}, without=["pipeline"])
    assert type(load_bundle(bundle).pipeline) is Fbank

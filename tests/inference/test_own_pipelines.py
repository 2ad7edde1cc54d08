"""A plugin's data pipeline with every backbone: in training, in the bundle, in prediction."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from toolkit import backbones, plugins
from toolkit.bundle import load_bundle, save_bundle
from toolkit.features.audio import LOUDEST
from toolkit.features.batch import padded
from toolkit.features.fbank import Fbank
from toolkit.features.pipeline import Pipeline, pipeline_for
from toolkit.features.spec import FeatureSpec
from toolkit.features.waveform import Waveform
from toolkit.inference.predict import predict
from toolkit.model import AudioClassifier
from toolkit.registry import BACKBONES, PEFT, PIPELINES
from toolkit.settings import setting
from toolkit.testing import matrix

plugins.load()


class Tilted(Waveform):
    """Samples that grow along the clip."""

    slope: float = setting(1.0, "growth over a second")

    def rows(self, waveform: Tensor, spec: FeatureSpec) -> Tensor:
        """The samples [S, 1], louder and louder."""
        return waveform[:, None] * (1 + self.slope * torch.arange(len(waveform))[:, None] / 16000)


class Reversed(Fbank):
    """Frames in the order of their end."""

    def rows(self, waveform: Tensor, spec: FeatureSpec) -> Tensor:
        """The frames [T, F] from the last to the first."""
        return super().rows(waveform, spec).flip(0)


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """Both pipelines, until the test ends."""
    before = PIPELINES.snapshot()
    PIPELINES.register("tilted", paper="a test")(Tilted)
    PIPELINES.register("reversed", paper="a test")(Reversed)
    yield
    PIPELINES.restore(before)


@pytest.mark.parametrize("family", matrix.families())
def test_it_is_kept_and_used(family: str, tmp_path: Path) -> None:
    """What `predict` finds is what the model in memory finds of the pipeline's rows."""
    source = BACKBONES.get(family)
    config = source.config_class(**{**source.tiny_config, **source.options})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        source.model_class(config).save_pretrained(tmp_path / "stock")
    source.extractor_class(**source.tiny_extractor).save_pretrained(tmp_path / "stock")
    backbone = backbones.create({"name": str(tmp_path / "stock")}).load(source.tiny_length)
    spec = backbone.features
    name = {"fbank": "reversed", "waveform": "tilted"}[spec.kind]
    pipeline: Pipeline = PIPELINES.create(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AudioClassifier(backbone, PEFT.create("linear_probe"), 3, "all").eval()
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    save_bundle(tmp_path / "bundle", model, list("abc"), "one_class", pipeline=pipeline)
    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.info.pipeline.name == name and type(bundle.pipeline) is type(pipeline)

    sound = np.random.default_rng(0).normal(0, 0.1, 2 * spec.sample_rate).astype(np.float32)
    sound = sound[: max(spec.max_length * spec.sample_rate // 100, 1)]
    [found] = predict(bundle, [(sound, spec.sample_rate)])
    rows = [p.rows(torch.from_numpy(sound), spec) for p in (pipeline, pipeline_for(spec))]
    with torch.no_grad():
        own, default = (model.logits(*padded([r.numpy()], spec)).softmax(-1)[0] for r in rows)
    torch.testing.assert_close(found.probabilities, own, rtol=0, atol=1e-5)
    off, gap = (found.probabilities - own).abs().max(), (default - own).abs().max()
    assert gap > 10 * off and gap > 0


@pytest.mark.parametrize("family", matrix.families())
def test_what_a_backbone_reads_of_accepted_sounds_is_finite(family: str) -> None:
    """From silence to the loudest samples that are not refused."""
    spec = BACKBONES.get(family).tiny().features
    sound = np.sign(np.random.default_rng(0).normal(size=spec.sample_rate)).astype(np.float32)
    for scale in (0.0, 1e-38, 1e-20, 1.0, 2.0**15, LOUDEST):
        waveform = torch.from_numpy(sound * np.float32(scale))
        rows, lengths = padded([pipeline_for(spec).rows(waveform, spec).numpy()], spec)
        assert spec.normalise(rows, lengths).isfinite().all(), scale

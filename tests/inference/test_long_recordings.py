"""Recordings of any length: read and computed window by window, as if they were whole."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from bundles import tiny_bundle
from numpy.typing import NDArray
from torch import Tensor

from toolkit.bundle import load_bundle
from toolkit.errors import ConfigError, DataError
from toolkit.features.cache import Segment
from toolkit.features.fbank import Fbank
from toolkit.features.pipeline import Pipeline, Reach
from toolkit.features.spec import FbankSpec, FeatureSpec, WaveformSpec
from toolkit.features.waveform import Waveform
from toolkit.features.windows import split_windows
from toolkit.inference.clips import windows_of
from toolkit.inference.embed import embed
from toolkit.inference.predict import predict, predict_each

FBANK = FbankSpec(sample_rate=16000, max_length=50, mel_bins=16, mean=0.0, std=1.0)
SAMPLES = WaveformSpec(sample_rate=16000, max_length=50)


class Centred(Fbank):
    """Log-mel frames less their mean over the clip: no row is made of its own samples alone."""

    registered_name = "centred"

    def rows(self, waveform: Tensor, spec: FeatureSpec) -> Tensor:
        """Frames [T, F] whose mean over the clip is zero."""
        frames = super().rows(waveform, spec)
        return frames - frames.mean(dim=0)


class Apart(Fbank):
    """One sample of every five hundred: between the rows lie samples that none is made of."""

    registered_name = "apart"

    def rows(self, waveform: Tensor, spec: FeatureSpec) -> Tensor:
        """The samples [T], once per column."""
        return waveform[::500, None].expand(-1, spec.width)

    def reach(self, spec: FeatureSpec) -> Reach:
        """A row is one sample."""
        return Reach(hop=500, window=1)


class Kindless(Pipeline):
    """Does not say what it makes."""

    registered_name = "kindless"

    def rows(self, waveform: Tensor, spec: FeatureSpec) -> Tensor:
        """The samples as they are."""
        return waveform[:, None]


def noise(samples: int) -> NDArray[np.float32]:
    """The same noise every time, [samples]."""
    return np.random.default_rng(0).normal(0, 0.1, samples).astype(np.float32)


@pytest.mark.parametrize("samples", [1, 399, 400, 8000, 8240, 8241, 9000, 16240, 80000, 100_001])
@pytest.mark.parametrize("block", [160, 7777, 200_000])
@pytest.mark.parametrize(
    ("pipeline", "spec"),
    [(Fbank(), FBANK), (Waveform(), SAMPLES), (Centred(), FBANK), (Apart(), FBANK)],
)
def test_windows_are_those_of_the_whole(
    pipeline: Pipeline, spec: FeatureSpec, block: int, samples: int
) -> None:
    sound = noise(samples)
    blocks = (sound[begin : begin + block] for begin in range(0, samples, block))
    found = list(pipeline.windows(blocks, spec, "clip"))
    expected = split_windows(pipeline.rows(torch.from_numpy(sound), spec), spec.rows)
    assert [len(window) for window in found] == [len(window) for window in expected]
    torch.testing.assert_close(torch.cat(found), torch.cat(expected), rtol=0, atol=1e-5)


def test_a_window_is_ready_before_the_rest_is_read() -> None:
    read = []

    def blocks() -> Iterator[NDArray[np.float32]]:
        for number in range(100):
            read.append(number)
            yield noise(1600)

    windows = Fbank().windows(blocks(), FBANK, "clip")
    assert len(next(windows)) == 50 and len(read) == 6
    next(windows)
    assert len(read) == 11


def test_rows_that_are_overridden_have_no_reach_of_before() -> None:
    assert Fbank().reach(FBANK) == Reach(hop=160, window=400)
    assert Centred().reach(FBANK) is None


def test_files_and_arrays_have_the_same_windows(tmp_path: Path) -> None:
    path, sound = tmp_path / "clip.wav", noise(60_000)
    soundfile.write(path, sound, 22050, subtype="FLOAT")
    of_file, of_array = (
        torch.cat(list(windows_of(clip, 1, Fbank(), FBANK))) for clip in (path, (sound, 22050))
    )
    torch.testing.assert_close(of_file, of_array, rtol=0, atol=1e-5)


def test_a_pipeline_without_a_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match=r'does not say which kind.*kind = "waveform"'):
        Kindless().require(SAMPLES)


class Broken(Waveform):
    """Divides by zero."""

    registered_name = "broken"

    def rows(self, waveform: Tensor, spec: FeatureSpec) -> Tensor:
        """Not a number."""
        return waveform[:, None] / 0 * 0


def test_features_that_are_not_finite_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "clip.wav"
    soundfile.write(path, noise(4000), 16000)
    with pytest.raises(DataError, match=r"clip.wav: the pipeline 'broken' makes features"):
        Broken().read(Segment(str(path)), SAMPLES)


@pytest.mark.parametrize("scale", [2.0**31, 2.0**15, 1e-30, 0.0])
@pytest.mark.parametrize(("pipeline", "spec"), [(Fbank(), FBANK), (Waveform(), SAMPLES)])
def test_features_of_all_that_is_accepted_are_finite(
    pipeline: Pipeline, spec: FeatureSpec, scale: float, tmp_path: Path
) -> None:
    path = tmp_path / "clip.wav"
    sound = scale * np.sign(noise(4000))
    soundfile.write(path, sound, 16000, subtype="DOUBLE")
    rows = pipeline.read(Segment(str(path)), spec)
    assert spec.normalise(rows[None], torch.tensor([len(rows)])).isfinite().all()


def test_predictions_and_embeddings_of_a_long_file(tmp_path: Path) -> None:
    bundle = load_bundle(tiny_bundle(tmp_path, "linear_probe"))
    path, sound = tmp_path / "long.wav", noise(16000 * 7)
    soundfile.write(path, sound, 16000, subtype="FLOAT")
    of_file, of_array = predict(bundle, [path, (sound, 16000)])
    assert len(of_file.windows) == 11  # of 64 frames
    torch.testing.assert_close(of_file.windows, of_array.windows, rtol=0, atol=1e-6)
    first, second = embed(bundle, [path, (sound, 16000)])
    torch.testing.assert_close(first, second, rtol=0, atol=1e-5)


def test_what_is_not_a_number_is_refused(tmp_path: Path) -> None:
    bundle = load_bundle(tiny_bundle(tmp_path, "linear_probe"))
    with torch.no_grad():
        next(bundle.model.head.parameters()).fill_(torch.nan)
    with pytest.raises(DataError, match="clip 1: the model gives probabilities"):
        next(predict(bundle, [(noise(16000), 16000)]))
    with pytest.raises(ConfigError, match="device 'nonsense'"):
        predict(bundle, [], device="nonsense")


def test_each_clip_is_a_prediction_or_its_error(tmp_path: Path) -> None:
    bundle = load_bundle(tiny_bundle(tmp_path, "linear_probe"))
    good = (noise(16000), 16000)
    found = list(predict_each(bundle, [good, (noise(5), 100), good, tmp_path / "none.wav"]))
    assert [isinstance(each, DataError) for each in found] == [False, True, False, True]
    assert "clip 2: a sample rate of 100 Hz" in str(found[1])
    assert found[2].path == "clip 3"

"""Log-mel features equal Kaldi's, AST's extractor's and the recorded ones."""

import math
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchaudio.compliance import kaldi
from transformers import ASTFeatureExtractor

from toolkit.features.audio import read_audio
from toolkit.features.batch import Batch, collate
from toolkit.features.cache import Segment
from toolkit.features.dataset import clip_dataset
from toolkit.features.fbank import Fbank
from toolkit.features.log_mel import log_mel, num_frames
from toolkit.features.spec import FbankSpec

SILENCE = math.log(torch.finfo(torch.float32).eps)
AST_SPEC = FbankSpec(16000, 200, 128, mean=-4.2677393, std=4.5689974)


def _kaldi(waveform: Tensor, rate: int, mel_bins: int) -> Tensor:
    """Frames [T, F] of one waveform from Kaldi, called in the way of AST's feature extractor."""
    with warnings.catch_warnings():  # the lowest mel filter is empty
        warnings.simplefilter("ignore")
        return kaldi.fbank(
            waveform[None],
            sample_frequency=rate,
            window_type="hanning",
            num_mel_bins=mel_bins,
            dither=0.0,
        )


def _noise(*shape: int, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=60, deadline=None)
@given(
    rate=st.sampled_from([8000, 11025, 16000, 22050, 32000, 44100, 48000]) | st.integers(4000, 5e4),
    mel_bins=st.sampled_from([4, 23, 40, 64, 80, 128]),
    seconds=st.floats(0.025, 0.8),
    amplitude=st.sampled_from([1.0, 0.1, 1e-3, 1e-5]),
    seed=st.integers(0, 1000),
)
def test_equals_kaldi(
    rate: int, mel_bins: int, seconds: float, amplitude: float, seed: int
) -> None:
    samples = max(math.ceil(rate * seconds), int(0.025 * rate))
    waveform = amplitude * _noise(samples, seed=seed) + 0.01
    found = log_mel(waveform[None], rate, mel_bins)[0]
    expected = _kaldi(waveform, rate, mel_bins)
    assert found.shape == expected.shape == (num_frames(samples, rate), mel_bins)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["tone", "chirp", "click", "constant", "square"])
def test_equals_kaldi_on_sparse_spectra(kind: str) -> None:
    time = torch.arange(16000) / 16000
    waveform = {
        "tone": 0.5 * torch.sin(2 * torch.pi * 440 * time),
        "chirp": 0.5 * torch.sin(2 * torch.pi * (100 + 3000 * time) * time),
        "click": (torch.arange(16000) == 5000).float(),
        "constant": torch.full((16000,), 0.3),
        "square": torch.sin(2 * torch.pi * 200 * time).sign(),
    }[kind]
    found = log_mel(waveform[None], 16000, 128)[0]
    torch.testing.assert_close(found, _kaldi(waveform, 16000, 128), rtol=0, atol=1e-4)


@given(samples=st.integers(0, 3000), rate=st.sampled_from([8000, 11025, 16000, 44100]))
@settings(max_examples=60, deadline=None)
def test_number_of_frames(samples: int, rate: int) -> None:
    frames = log_mel(torch.zeros(1, samples), rate, 23).shape[1]
    assert frames == num_frames(samples, rate) >= 1


@pytest.mark.parametrize("samples", [400, 401, 559, 560, 8000, 32239, 32240, 32400, 40000])
def test_equals_the_extractor_of_ast(samples: int) -> None:
    """Including padding and cutting: 32240 samples are exactly 200 frames."""
    waveform = _noise(samples)
    extractor = ASTFeatureExtractor(max_length=AST_SPEC.max_length)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = extractor(waveform.numpy(), sampling_rate=16000, return_tensors="pt")
    rows = log_mel(waveform[None], 16000, 128)[0].numpy()
    batch = collate(AST_SPEC)([{"id": "a", "features": rows, "label": 1}])
    found = AST_SPEC.normalise(batch.features)
    torch.testing.assert_close(found, expected["input_values"], rtol=0, atol=1e-3)
    if num_frames(samples, 16000) < AST_SPEC.max_length:
        assert found[0, -1].eq(found[0, -1, 0]).all()
        assert found[0, -1, 0].item() == pytest.approx(0.46703, abs=1e-4)


def test_equals_the_recorded_values(golden: Path) -> None:
    recorded = {
        name: torch.from_numpy(array) for name, array in np.load(golden / "fbank.npz").items()
    }
    raw = log_mel(recorded["waveform"][None], 16000, 128)
    torch.testing.assert_close(raw[0], recorded["fbank_raw"], rtol=0, atol=1e-4)
    for frames in (100, 200):
        spec = FbankSpec(16000, frames, 128, AST_SPEC.mean, AST_SPEC.std)
        example = {"id": "a", "features": raw[0].numpy(), "label": 0}
        found = spec.normalise(collate(spec)([example]).features)[0]
        torch.testing.assert_close(found, recorded[f"features_{frames}"], rtol=0, atol=1e-4)
    silence = log_mel(torch.zeros(1, 560), 16000, 128)
    torch.testing.assert_close(silence[0], recorded["fbank_silence"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("samples", [0, 1, 2, 100, 399])
def test_a_clip_shorter_than_a_window_is_padded(samples: int) -> None:
    waveform = _noise(1, samples)
    padded = torch.zeros(1, 400)
    padded[:, :samples] = waveform
    found = log_mel(waveform, 16000, 128)
    assert found.shape == (1, 1, 128) and found.isfinite().all()
    torch.testing.assert_close(found[0], _kaldi(padded[0], 16000, 128), rtol=0, atol=1e-4)


@pytest.mark.parametrize("rate", [8000, 16000, 48000])
def test_silence_is_finite(rate: int) -> None:
    found = log_mel(torch.zeros(2, rate), rate, 128)
    torch.testing.assert_close(found, torch.full_like(found, SILENCE))


def test_full_scale_is_finite() -> None:
    square = torch.ones(1, 16000)
    square[:, ::2] = -1
    assert log_mel(square, 16000, 128).isfinite().all()


@pytest.mark.parametrize("samples", [300, 400, 7777])
def test_a_batch_equals_its_clips_one_by_one(samples: int) -> None:
    waveforms = _noise(5, samples)
    together = log_mel(waveforms, 16000, 64)
    alone = torch.cat([log_mel(w[None], 16000, 64) for w in waveforms])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_the_waveform_is_left_alone() -> None:
    waveform = _noise(1, 5000)
    before = waveform.clone()
    log_mel(waveform, 16000, 128)
    assert torch.equal(waveform, before)


def test_a_file_is_resampled_to_the_rate_of_the_features(tmp_path: Path) -> None:
    path = tmp_path / "clip.wav"
    soundfile.write(path, _noise(22050, 2).numpy(), 22050)
    found = Fbank().read(Segment(str(path)), AST_SPEC)
    waveform = torch.from_numpy(read_audio(path, 16000))
    torch.testing.assert_close(found, _kaldi(waveform, 16000, 128), rtol=0, atol=1e-4)


def test_real_speech_equals_kaldi(real_data: Path) -> None:
    files = sorted((real_data / "spoken-digits").glob("*/*.wav"))[::150]
    assert len(files) >= 10
    for path in files:
        waveform = torch.from_numpy(read_audio(path, 16000))
        expected = _kaldi(waveform, 16000, 128)
        torch.testing.assert_close(
            Fbank().read(Segment(str(path)), AST_SPEC), expected, rtol=0, atol=1e-4
        )


# The pipeline: cache, data set and batches


@pytest.fixture
def clips(tmp_path: Path) -> pd.DataFrame:
    """Four clips of 0.01 s to 3 s."""
    rows = []
    for number, seconds in enumerate([0.01, 0.5, 2.0, 3.0]):
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, _noise(int(16000 * seconds), seed=number).numpy(), 16000)
        rows.append({"id": f"clip {number}", "path": str(path), "label": number % 2, "fold": 1})
    return pd.DataFrame(rows)


def test_batches_hold_the_features_of_the_files(clips: pd.DataFrame, cache_folder: Path) -> None:
    pipeline = Fbank()
    cache = pipeline.cache(clips, AST_SPEC, cache_folder)
    rows = pd.Series(range(len(clips)), index=clips["id"])
    some = clips.iloc[[3, 0, 1]]
    dataset = clip_dataset(some, rows, cache)
    batch = collate(AST_SPEC)([dataset[i] for i in range(len(dataset))])
    assert isinstance(batch, Batch) and len(batch) == 3
    assert batch.ids == ["clip 3", "clip 0", "clip 1"] and batch.labels.tolist() == [1, 0, 1]
    assert batch.features.shape == (3, 200, 128) and batch.features.dtype == torch.float32
    for features, path in zip(batch.features, some["path"], strict=True):
        expected = Fbank().read(Segment(str(path)), AST_SPEC)[:200]
        torch.testing.assert_close(features[: len(expected)], expected, rtol=0, atol=1e-6)
        assert (features[len(expected) :] == 0).all()


def test_length_and_statistics_share_a_cache(clips: pd.DataFrame, cache_folder: Path) -> None:
    first = Fbank().cache(clips, AST_SPEC, cache_folder)
    longer = FbankSpec(16000, 1024, 128, mean=1.0, std=2.0)
    assert Fbank().cache(clips, longer, cache_folder).folder == first.folder
    others = [
        FbankSpec(16000, 200, 64, AST_SPEC.mean, AST_SPEC.std),
        FbankSpec(8000, 200, 128, AST_SPEC.mean, AST_SPEC.std),
    ]
    folders = {Fbank().cache(clips, spec, cache_folder).folder for spec in [AST_SPEC, *others]}
    assert len(folders) == 3


def test_normalisation_is_that_of_ast() -> None:
    features = torch.tensor([[[AST_SPEC.mean, AST_SPEC.mean + 2 * AST_SPEC.std, SILENCE]]])
    expected = torch.tensor([[[0.0, 1.0, -1.2776]]])
    torch.testing.assert_close(AST_SPEC.normalise(features), expected, rtol=0, atol=1e-4)

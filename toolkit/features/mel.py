"""The features of Whisper, CLAP and Wav2Vec2-BERT, computed from batches of waveforms in torch.

Each equals the stock feature extractor of its family, but takes a whole batch on any device. AST's
features are in `log_mel`; the pipeline `fbank` computes them before batching, to cache them.
"""

import functools
from typing import Literal

import torch
from torch import Tensor

from toolkit.padding import real

Padding = Literal["repeatpad", "repeat", "pad"]
VARIANCE_FLOOR = 1e-7
POWER_FLOOR = 1e-10
KALDI_FLOOR = torch.finfo(torch.float32).eps
PREEMPHASIS = 0.97
INT16 = 2.0**15


def unit_variance(rows: Tensor, lengths: Tensor | None, unbiased: bool = False) -> Tensor:
    """Normalise every column of a clip to zero mean and unit variance over its real rows.

    Args:
        rows: [B, T, F].
        lengths: real rows of each clip [B]; None: all.
        unbiased: divide by one less than the number of rows to get the variance.

    Returns:
        the same shape; padding is zero.
    """
    if lengths is None:
        lengths = torch.full((len(rows),), rows.shape[1], device=rows.device)
    mask, count = real(lengths, rows.shape[1])[..., None], lengths[:, None, None]
    centred = (rows - (rows * mask).sum(dim=1, keepdim=True) / count) * mask
    variance = centred.square().sum(dim=1, keepdim=True) / (count - int(unbiased))
    return centred / (variance + VARIANCE_FLOOR).sqrt()


def whisper(waveforms: Tensor, mel_bins: int) -> Tensor:
    """Compute Whisper's log-mel frames at 16 kHz, as `WhisperFeatureExtractor` does.

    Args:
        waveforms: [B, S], padded with zeros to the length that the model reads.
        mel_bins: 80, or 128 for large-v3.

    Returns:
        [B, S / 160, mel_bins], clipped to at least each clip's maximum minus 8.
    """
    power = _spectrogram(waveforms, window=400, hop=160)[..., :-1]
    filters = _filters(201, mel_bins, 0.0, 8000.0, 16000, "slaney", "slaney", waveforms.device)
    frames = (power.mT @ filters).clamp(min=POWER_FLOOR).log10()
    frames = torch.maximum(frames, frames.amax(dim=(1, 2), keepdim=True) - 8)
    return (frames + 4) / 4


def clap(
    waveforms: Tensor,
    lengths: Tensor | None,
    samples: int,
    mel_bins: int,
    *,
    slaney: bool,
    band: tuple[float, float] = (0.0, 14_000.0),
    padding: Padding = "repeatpad",
) -> Tensor:
    """Compute CLAP's log-mel frames in dB at 48 kHz, as `ClapFeatureExtractor` does.

    Args:
        waveforms: [B, S], S at most `samples`.
        lengths: real samples of each [B]; None: all.
        samples: length that the model reads.
        mel_bins: F.
        slaney: use the filters of checkpoints without fusion; otherwise of those with fusion.
        band: Hz between which the filters lie.
        padding: how a shorter clip is brought to that length: `repeatpad` repeats it as often as
            it fits and pads the rest with zeros, `repeat` repeats it to the end, `pad` pads.

    Returns:
        [B, 1 + samples / 480, mel_bins].
    """
    if lengths is None:
        lengths = torch.full((len(waveforms),), waveforms.shape[1], device=waveforms.device)
    lengths = lengths[:, None].clamp(min=1)
    places = torch.arange(samples, device=waveforms.device)
    whole = samples // lengths * lengths
    ends = {"repeatpad": whole, "repeat": torch.full_like(whole, samples), "pad": lengths}
    filled = waveforms.gather(1, places % lengths) * (places < ends[padding])
    scale = ("slaney", "slaney") if slaney else (None, "htk")
    filters = _filters(513, mel_bins, *band, 48000, *scale, waveforms.device)
    power = _spectrogram(filled, window=1024, hop=480)
    return 10 * (power.mT @ filters).clamp(min=POWER_FLOOR).log10()


def wav2vec2_bert(waveforms: Tensor, mel_bins: int) -> Tensor:
    """Compute log-mel frames with a Povey window, as `SeamlessM4TFeatureExtractor` does.

    The frames are not normalised, and those of padding equal those of silence.

    Args:
        waveforms: [B, S] in [-1, 1], S at least 400.
        mel_bins: F.

    Returns:
        [B, 1 + (S - 400) // 160, mel_bins].
    """
    frames = INT16 * waveforms.unfold(-1, 400, 160)
    frames = frames - frames.mean(dim=-1, keepdim=True)
    before = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
    window = torch.hann_window(400, periodic=False, device=waveforms.device) ** 0.85
    spectrum: Tensor = torch.fft.rfft((frames - PREEMPHASIS * before) * window, n=512)
    filters = _filters(257, mel_bins, 20.0, 8000.0, 16000, None, "kaldi", waveforms.device)
    return (spectrum.abs().square() @ filters).clamp(min=KALDI_FLOOR).log()


def _spectrogram(waveforms: Tensor, window: int, hop: int) -> Tensor:
    """Power [B, window / 2 + 1, 1 + S / hop] of Hann windows centred on multiples of `hop`."""
    hann = torch.hann_window(window, device=waveforms.device)
    spectrum = torch.stft(waveforms, window, hop, window=hann, return_complex=True)
    return spectrum.abs().square()


@functools.lru_cache(maxsize=8)
def _filters(
    bins: int,
    mel_bins: int,
    low: float,
    high: float,
    sample_rate: int,
    norm: str | None,
    scale: str,
    device: torch.device,
) -> Tensor:
    """Triangular filters [bins, mel_bins]."""
    from transformers.audio_utils import mel_filter_bank  # transformers is slow to import

    bank = mel_filter_bank(
        num_frequency_bins=bins,
        num_mel_filters=mel_bins,
        min_frequency=low,
        max_frequency=high,
        sampling_rate=sample_rate,
        norm=norm,
        mel_scale=scale,
        triangularize_in_mel_space=scale == "kaldi",
    )
    return torch.from_numpy(bank).float().to(device)

"""Building blocks of synthetic sounds.

Every signal is a float64 array of shape [samples], its amplitudes in arbitrary units. Frequencies
are in Hz and durations in seconds.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Signal = NDArray[np.float64]


def sample_count(seconds: float, sample_rate: int) -> int:
    """Number of samples in a duration, at least 1."""
    return max(1, round(seconds * sample_rate))


def time_axis(samples: int, sample_rate: int) -> Signal:
    """Time of each sample in seconds, shape [samples]."""
    return np.arange(samples) / sample_rate


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """A random number whose logarithm is uniform: how pitches and tempi are spread."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def decibels(value: float) -> float:
    """Amplitude ratio of a level in dB."""
    return float(10 ** (value / 20))


def wander(
    rng: np.random.Generator, samples: int, low: float, high: float, knots: int = 5
) -> Signal:
    """A slow random curve between `low` and `high`, shape [samples]."""
    places = np.linspace(0, samples - 1, knots)
    return np.interp(np.arange(samples), places, rng.uniform(low, high, knots))


def rms(signal: Signal) -> float:
    """Root mean square, never zero."""
    return float(np.sqrt(np.mean(signal**2)) + 1e-12)


def loudest(signal: Signal, sample_rate: int) -> float:
    """Root mean square of the loudest 30 ms: the level of a click as of a continuous sound."""
    frame = min(len(signal), sample_count(0.03, sample_rate))
    frames = signal[: len(signal) // frame * frame].reshape(-1, frame)
    return float(np.sqrt((frames**2).mean(axis=1).max()) + 1e-12)


def equalise(signal: Signal, sample_rate: int, gain: Callable[[Signal], Signal]) -> Signal:
    """Filter by a zero-phase gain, a function of frequency in Hz."""
    length = 1 << (len(signal) + sample_count(0.02, sample_rate) - 1).bit_length()
    return shape_spectrum(signal, sample_rate, gain, length)


def shape_spectrum(
    signal: Signal, sample_rate: int, gain: Callable[[Signal], Signal], length: int
) -> Signal:
    """Multiply the spectrum by a gain, a function of frequency in Hz.

    The filter is circular over `length` samples: what rings past the end comes back at the start
    unless `length` leaves room for it.
    """
    spectrum = np.fft.rfft(signal, length)
    frequencies = np.asarray(np.fft.rfftfreq(length, 1 / sample_rate), dtype=np.float64)
    return np.fft.irfft(spectrum * gain(frequencies), length)[: len(signal)]


def convolve(signal: Signal, response: Signal, length: int) -> Signal:
    """Convolve with an impulse response and keep the first `len(signal)` samples.

    `length` is the size of the transform, at least `len(signal) + len(response) - 1`.
    """
    product = np.fft.rfft(signal, length) * np.fft.rfft(response, length)
    return np.fft.irfft(product, length)[: len(signal)]


def noise(
    rng: np.random.Generator, samples: int, sample_rate: int, decibels_per_octave: float = 0.0
) -> Signal:
    """Coloured noise of unit root mean square: 0 dB per octave is white, -3 pink, -6 brown."""
    exponent = decibels_per_octave / (20 * np.log10(2))
    signal = equalise(
        rng.standard_normal(samples), sample_rate, lambda f: np.maximum(f, 40.0) ** float(exponent)
    )
    return signal / rms(signal)


def peaks(
    centres: Sequence[float], widths: Sequence[float], floor: float = 0.02
) -> Callable[[Signal], Signal]:
    """Gain with a resonance of a given width (Hz) at each centre (Hz), over a floor."""

    def gain(frequencies: Signal) -> Signal:
        total = np.full_like(frequencies, floor)
        for centre, width in zip(centres, widths, strict=True):
            total += 1 / (1 + ((frequencies - centre) / (0.5 * width)) ** 2)
        return total

    return gain


def harmonics(pitch: Signal, amplitudes: Sequence[float], sample_rate: int) -> Signal:
    """Sum over k of amplitudes[k - 1] * sin(k * phase), the phase following `pitch` (Hz).

    Harmonics that would pass 90 % of the Nyquist frequency are left out.
    """
    allowed = max(1, int(0.45 * sample_rate / np.max(pitch)))
    rotation = np.exp(2j * np.pi * np.cumsum(pitch) / sample_rate)
    total = np.zeros(len(pitch), dtype=complex)
    for amplitude in reversed(amplitudes[:allowed]):  # Horner's rule: one product per harmonic
        total += amplitude
        total *= rotation
    return total.imag


def struck(
    rng: np.random.Generator,
    frequencies: Iterable[float],
    decays: Iterable[float],
    gains: Iterable[float],
    seconds: float,
    sample_rate: int,
) -> Signal:
    """Decaying sinusoids with random phases; a decay is the time to fall by 60 dB."""
    when = time_axis(sample_count(seconds, sample_rate), sample_rate)
    total = np.zeros(len(when))
    for frequency, decay, gain in zip(frequencies, decays, gains, strict=True):
        if frequency < 0.45 * sample_rate:
            phase = 2 * np.pi * frequency * when + rng.uniform(0, 2 * np.pi)
            total += gain * np.exp(-6.9 * when / decay) * np.sin(phase)
    return total


def bump(samples: int, attack: float, power: float = 1.0) -> Signal:
    """Envelope from 0 to 1 and back; `attack` is the part of the time spent rising."""
    place = (np.arange(samples) + 0.5) / samples
    rise, fall = place / attack, (1 - place) / (1 - attack)
    return np.sin(0.5 * np.pi * np.minimum(rise, fall)) ** power


def add(track: Signal, event: Signal, start: float, sample_rate: int) -> None:
    """Add an event into a track in place, from `start` seconds; what exceeds the track is cut."""
    first = round(start * sample_rate)
    event = event[max(0, -first) : max(0, len(track) - first)]
    first = max(0, first)
    track[first : first + len(event)] += event

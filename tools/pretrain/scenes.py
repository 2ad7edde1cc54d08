"""Procedural sound scenes: an endless, seeded source of sounds whose targets are known.

A scene is one to three events of different families at random onsets and levels, over a
background, in a room, with a spectral tilt and a gain. `scene(seed)` is a pure function.
"""

# mypy: disable-error-code="no-any-return"
# numpy types `**` as Any.

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toolkit.data.synthetic.signals import (
    Signal,
    convolve,
    log_uniform,
    peaks,
    shape_spectrum,
    time_axis,
)

RATE = 16_000
Maker = Callable[[np.random.Generator, int], Signal]
FAMILIES: dict[str, Maker] = {}


@dataclass
class Scene:
    """Audio [n] at 16 kHz, and which families sound in it [families]."""

    audio: NDArray[np.float32]
    present: NDArray[np.float32]


def family(maker: Maker) -> Maker:
    """Register a maker of sounds under its function's name."""
    FAMILIES[maker.__name__] = maker
    return maker


def scene(seed: int, seconds: float = 5.12) -> Scene:
    """The scene of that seed."""
    rng = np.random.default_rng(seed)
    n = int(seconds * RATE)
    names = rng.choice(list(FAMILIES), size=rng.choice([1, 2, 3], p=[0.6, 0.3, 0.1]), replace=False)
    audio = np.zeros(n)
    for name in names:
        onset = 0 if rng.random() < 0.4 else int(rng.uniform(0, 0.7) * n)
        event = FAMILIES[str(name)](rng, n - onset)[: n - onset]
        event = event / max(np.abs(event).max(), 1e-6) * 10 ** rng.uniform(-0.6, 0)
        audio[onset : onset + len(event)] += event
    room = float(rng.choice([0, rng.uniform(0.1, 1.2)]))
    if room:
        audio = _reverberate(audio, room, rng)
    audio = _shape(audio, rng.uniform(-4, 2), rng)
    audio = audio / max(np.abs(audio).max(), 1e-6)
    background = noise(rng, n, rng.uniform(-8, 0), 30, 8000)
    background /= np.abs(background).max()
    audio = (audio + background * 10 ** rng.uniform(-4, -1)) * 10 ** rng.uniform(-1.5, 0) * 0.9
    present = np.isin(list(FAMILIES), names).astype(np.float32)
    return Scene(audio.astype(np.float32), present)


def noise(rng: np.random.Generator, n: int, slope: float, low: float, high: float) -> Signal:
    """Noise [n] whose spectrum falls by `slope` dB per octave between two frequencies (Hz)."""

    def gain(f: Signal) -> Signal:
        band = 1 / (1 + (low / np.maximum(f, 1)) ** 4) / (1 + (f / high) ** 6)
        return np.maximum(f, 20.0) ** (slope / 6.02) * band

    return shape_spectrum(rng.standard_normal(n), RATE, gain, n)


def _shape(audio: Signal, slope: float, rng: np.random.Generator) -> Signal:
    """Tilt the spectrum by `slope` dB per octave around 1 kHz; cut the highs one time in five."""
    cutoff = rng.uniform(2000, 6000) if rng.random() < 0.2 else np.inf

    def gain(f: Signal) -> Signal:
        return (np.maximum(f, 50.0) / 1000) ** (slope / 6.02) / (1 + (f / cutoff) ** 12)

    return shape_spectrum(audio, RATE, gain, len(audio))


def _reverberate(audio: Signal, seconds: float, rng: np.random.Generator) -> Signal:
    """Add the tail of a room whose sound falls by 60 dB in `seconds`."""
    n = int(seconds * RATE)
    tail = rng.standard_normal(n) * 10 ** (-3 * np.arange(n) / n)
    wet = convolve(audio, tail, len(audio) + n)
    return audio + rng.uniform(0.1, 0.7) * wet * np.abs(audio).max() / max(np.abs(wet).max(), 1e-9)


def _time(n: int) -> Signal:
    return time_axis(n, RATE)


def _drift(rng: np.random.Generator, n: int, rate: float) -> Signal:
    """A smooth random curve [n] of mean 0 and about unit size, changing `rate` times per second."""
    knots = rng.standard_normal(max(3, int(n / RATE * rate) + 3))
    return np.interp(np.linspace(0, len(knots) - 1, n), np.arange(len(knots)), knots)


def _decay(n: int, seconds: float, attack: float = 0.002) -> Signal:
    t = _time(n)
    return np.minimum(t / attack, 1) * np.exp(-t / seconds)


def _phase(frequency: Signal) -> Signal:
    return 2 * np.pi * np.cumsum(frequency) / RATE


def _harmonics(frequency: Signal, rng: np.random.Generator, count: int, fall: float) -> Signal:
    """Partials of a gliding pitch [n] (Hz), amplitudes falling as k ** -fall, below 7.5 kHz."""
    phase, total = _phase(frequency), np.zeros(len(frequency))
    for k in range(1, count + 1):
        if k * frequency.mean() > 7500:
            break
        total += np.sin(k * phase + rng.uniform(0, 6.28)) * k**-fall * rng.uniform(0.4, 1)
    return total


def _repeat(
    rng: np.random.Generator, n: int, event: Maker, rate: float, jitter: float, size: float
) -> Signal:
    """Fresh copies of an event, `rate` per second, with jittered times and levels."""
    total, at = np.zeros(n), rng.uniform(0, 1 / rate)
    while at * RATE < n:
        start = int(at * RATE)
        piece = event(rng, min(int(size * RATE), n - start))
        total[start : start + len(piece)] += piece * 10 ** rng.normal(0, 0.15)
        at += max(0.01, (1 + jitter * rng.normal()) / rate)
    return total


def _modes(
    rng: np.random.Generator, n: int, low: float, high: float, ring: float, count: int
) -> Signal:
    """A struck object: decaying partials at inharmonic frequencies."""
    t, total = _time(n), np.zeros(n)
    for f in np.exp(rng.uniform(np.log(low), np.log(high), count)):
        total += np.sin(2 * np.pi * f * t) * np.exp(-t / (ring * rng.uniform(0.3, 1.5)))
    return total * np.minimum(t / 0.001, 1)


@family
def wind(rng: np.random.Generator, n: int) -> Signal:
    """Slowly swelling low noise with a wandering resonance."""
    swell = np.exp(0.7 * _drift(rng, n, rng.uniform(0.3, 2)))
    whistle = np.sin(_phase(rng.uniform(200, 900) * np.exp(0.2 * _drift(rng, n, 2))))
    base = noise(rng, n, rng.uniform(-9, -4), 40, 2500)
    return swell * (base / base.std() + rng.uniform(0, 0.4) * whistle * swell)


@family
def downpour(rng: np.random.Generator, n: int) -> Signal:
    """Broad steady noise with many tiny drops."""
    base = noise(rng, n, rng.uniform(-3, 1), rng.uniform(200, 900), 8000)
    drops = np.zeros(n)
    places = rng.integers(0, n, int(n / RATE * rng.uniform(50, 900)))
    drops[places] = rng.exponential(1, len(places))
    kernel = _modes(rng, 160, 1500, 6000, 0.002, 4)
    return base / base.std() + rng.uniform(0.5, 3) * np.convolve(drops, kernel)[:n]


@family
def swash(rng: np.random.Generator, n: int) -> Signal:
    """Noise that rises and ebbs in periods of seconds, brighter as it rises."""
    period = rng.uniform(1.5, 6)
    rise = (0.5 + 0.5 * np.sin(2 * np.pi * _time(n) / period + rng.uniform(0, 6.28))) ** 2
    dark, bright = noise(rng, n, -7, 60, 3000), noise(rng, n, -1, 600, 8000)
    return rise * (dark / dark.std() + rise * bright / bright.std()) + 0.1 * dark / dark.std()


@family
def embers(rng: np.random.Generator, n: int) -> Signal:
    """Irregular snaps and pops over a soft roar."""
    snap = _repeat(
        rng,
        n,
        lambda r, m: (
            noise(r, max(m, 64), r.uniform(-3, 3), r.uniform(200, 2500), 8000)[:m]
            * _decay(m, r.uniform(0.002, 0.02), 0.0005)
        ),
        rng.uniform(4, 30),
        1.0,
        0.06,
    )
    roar = noise(rng, n, -6, 40, 1500)
    return snap / max(snap.std(), 1e-6) + rng.uniform(0.05, 0.5) * roar / roar.std()


@family
def motor(rng: np.random.Generator, n: int) -> Signal:
    """A pulse train of firing strokes, coloured by a body, with noise on each stroke."""
    rate = rng.uniform(15, 110) * np.exp(0.15 * _drift(rng, n, rng.uniform(0.2, 2)))
    strokes = _harmonics(rate, rng, 40, rng.uniform(0.3, 1.2))
    hiss = noise(rng, n, rng.uniform(-6, 0), 100, 6000)
    return strokes + rng.uniform(0.1, 1.5) * hiss / hiss.std() * np.maximum(0, np.sin(_phase(rate)))


@family
def rasp(rng: np.random.Generator, n: int) -> Signal:
    """A revving, buzzing tool: bright harmonics, abrupt changes of speed and of load."""
    steps = np.repeat(rng.uniform(0.6, 1.4, 12), -(-n // 12))[:n]
    smooth = np.convolve(np.pad(steps, 1200, "edge"), np.ones(2400) / 2400, "same")[1200:-1200]
    rate = rng.uniform(60, 220) * smooth[:n]
    buzz = np.tanh(3 * _harmonics(rate, rng, 60, rng.uniform(0, 0.6)))
    return buzz * (0.3 + smooth[:n]) + 0.3 * noise(rng, n, 0, 800, 8000)


@family
def rotor(rng: np.random.Generator, n: int) -> Signal:
    """Low thuds eight to twenty-five times per second over a whine and air noise."""
    rate = np.full(n, rng.uniform(8, 25))
    chop = np.maximum(0, np.sin(_phase(rate))) ** rng.uniform(2, 8)
    air = noise(rng, n, rng.uniform(-7, -3), 30, 3000)
    whine = _harmonics(np.full(n, rng.uniform(300, 1500)), rng, 3, 1)
    return (0.2 + chop) * air / air.std() + rng.uniform(0, 0.3) * whine


@family
def ticking(rng: np.random.Generator, n: int) -> Signal:
    """A regular mechanism: two alternating clicks."""
    ring, low = rng.uniform(0.002, 0.02), rng.uniform(800, 3000)
    seed = int(rng.integers(1 << 30))

    def click(r: np.random.Generator, m: int) -> Signal:
        return _modes(np.random.default_rng(seed + int(r.random() < 0.5)), m, low, 7000, ring, 6)

    return _repeat(rng, n, click, rng.uniform(1, 9), 0.01, 0.1)


@family
def bell(rng: np.random.Generator, n: int) -> Signal:
    """Struck metal that rings for long."""
    low, ring = rng.uniform(200, 1500), rng.uniform(0.3, 2.5)
    return _repeat(
        rng, n, lambda r, m: _modes(r, m, low, 6 * low, ring, 7), rng.uniform(0.3, 2.5), 0.2, 3.0
    )


@family
def knocking(rng: np.random.Generator, n: int) -> Signal:
    """Dull blows on wood, in groups."""
    low = rng.uniform(80, 500)
    return _repeat(
        rng, n, lambda r, m: _modes(r, m, low, 8 * low, 0.03, 8), rng.uniform(1, 8), 0.3, 0.3
    )


@family
def steps(rng: np.random.Generator, n: int) -> Signal:
    """Footfalls: a thud and a scuff, about twice per second."""

    def footfall(r: np.random.Generator, m: int) -> Signal:
        scuff = noise(r, max(m, 64), -2, 500, 6000)[:m] * _decay(m, r.uniform(0.02, 0.08), 0.01)
        return _modes(r, m, 60, 400, 0.03, 4) + r.uniform(0.5, 8) * scuff

    return _repeat(rng, n, footfall, rng.uniform(1.2, 3.5), 0.08, 0.3)


@family
def bark(rng: np.random.Generator, n: int) -> Signal:
    """Short harsh calls whose pitch rises and falls, from a throat with two resonances."""
    pitch, formants = rng.uniform(150, 900), rng.uniform(500, 2500, 2)

    def call(r: np.random.Generator, m: int) -> Signal:
        arc = np.sin(np.linspace(0, np.pi, m)) if m > 1 else np.ones(m)
        voice = _harmonics(pitch * (0.7 + 0.5 * arc), r, 25, 0.3) + 0.8 * r.standard_normal(m)
        return _throat(voice, formants) * arc**0.7

    return _repeat(rng, n, call, rng.uniform(0.6, 4), 0.3, rng.uniform(0.1, 0.4))


@family
def crow(rng: np.random.Generator, n: int) -> Signal:
    """A long strained call of several syllables."""
    pitch, formants = rng.uniform(400, 1100), rng.uniform(900, 3500, 3)

    def call(r: np.random.Generator, m: int) -> Signal:
        curve = np.interp(np.linspace(0, 5, m), range(6), [0.8, 1, 0.9, 1.3, 1.2, 0.7])
        loud = np.interp(np.linspace(0, 7, m), range(8), [0, 1, 0.2, 1, 0.3, 1, 0.8, 0])
        return _throat(_harmonics(pitch * curve, r, 15, 0.2), formants) * loud

    return _repeat(rng, n, call, rng.uniform(0.2, 0.5), 0.2, rng.uniform(0.8, 2))


@family
def wail(rng: np.random.Generator, n: int) -> Signal:
    """Repeated voiced cries with a falling pitch, vibrato and breath between."""
    pitch, formants = rng.uniform(250, 600), np.array([1000, 2800, 3800]) * rng.uniform(0.7, 1.2)

    def cry(r: np.random.Generator, m: int) -> Signal:
        t = _time(m)
        curve = pitch * (1.1 - 0.3 * t / max(t[-1], 0.01)) * (1 + 0.03 * np.sin(2 * np.pi * 6 * t))
        return (
            _throat(_harmonics(curve, r, 20, 0.5), formants)
            * np.sin(np.linspace(0, np.pi, m)) ** 0.5
        )

    return _repeat(rng, n, cry, rng.uniform(0.5, 1.3), 0.2, rng.uniform(0.5, 1.4))


@family
def sneeze(rng: np.random.Generator, n: int) -> Signal:
    """An indrawn breath, then a burst of noise through a throat."""

    def burst(r: np.random.Generator, m: int) -> Signal:
        t = np.linspace(0, 1, m)
        breath = np.exp(-(((t - 0.25) / 0.12) ** 2)) * 0.15
        blast = np.where(t > 0.5, np.exp(-(t - 0.5) * r.uniform(6, 20)), 0)
        voiced = _harmonics(np.full(m, r.uniform(150, 400)), r, 10, 0.8) * blast * 0.3
        return _throat(r.standard_normal(m) * (breath + blast) + voiced, r.uniform(700, 4000, 3))

    return _repeat(rng, n, burst, rng.uniform(0.2, 0.8), 0.3, rng.uniform(0.6, 1.3))


def _throat(source: Signal, formants: Signal) -> Signal:
    """Colour a source by resonances (Hz)."""
    widths = 2 * (0.08 * formants + 50)
    resonances = peaks(list(formants), list(widths), floor=0.0)
    return shape_spectrum(source, RATE, lambda f: 0.05 + resonances(f), len(source))


@family
def birdsong(rng: np.random.Generator, n: int) -> Signal:
    """Whistled chirps that sweep and trill."""
    centre, span, trill = rng.uniform(1800, 5500), rng.uniform(0.05, 0.5), rng.uniform(5, 40)

    def chirp(r: np.random.Generator, m: int) -> Signal:
        t = np.linspace(0, 1, m)
        curve = centre * (1 + span * (r.choice([-1, 1]) * t + 0.3 * np.sin(trill * t)))
        return np.sin(_phase(np.minimum(curve, 7500))) * np.sin(np.pi * t)

    return _repeat(rng, n, chirp, rng.uniform(1, 10), 0.5, rng.uniform(0.05, 0.4))


@family
def crickets(rng: np.random.Generator, n: int) -> Signal:
    """A high tone in fast pulses, in groups."""
    t, pulse = _time(n), rng.uniform(15, 60)
    gate = np.maximum(0, np.sin(2 * np.pi * pulse * t)) * (
        np.sin(2 * np.pi * t * rng.uniform(0.5, 4)) > -0.3
    )
    return np.sin(2 * np.pi * rng.uniform(2500, 6500) * t) * gate


@family
def bubbling(rng: np.random.Generator, n: int) -> Signal:
    """Rising blips of many sizes: water running or boiling."""

    def blip(r: np.random.Generator, m: int) -> Signal:
        f = log_uniform(r, 250, 3000)
        return np.sin(_phase(f * (1 + 3 * _time(m)))) * _decay(m, r.uniform(0.005, 0.04))

    return _repeat(rng, n, blip, rng.uniform(8, 80), 0.8, 0.12) + 0.02 * noise(rng, n, 0, 500, 7000)


@family
def siren(rng: np.random.Generator, n: int) -> Signal:
    """A loud tone that sweeps or alternates."""
    t, low = _time(n), rng.uniform(300, 900)
    cycle = np.sin(2 * np.pi * t * rng.uniform(0.2, 4))
    cycle = np.sign(cycle) if rng.random() < 0.4 else cycle
    return _harmonics(low * (1.4 + 0.4 * cycle), rng, 8, 0.7)


@family
def beeps(rng: np.random.Generator, n: int) -> Signal:
    """Plain electronic tones in a pattern."""
    tones = rng.uniform(300, 3500, 3)

    def beep(r: np.random.Generator, m: int) -> Signal:
        tone = np.sin(2 * np.pi * r.choice(tones) * _time(m))
        return np.sign(tone) * 0.6 if seed % 2 else tone

    seed = int(rng.integers(100))
    return _repeat(rng, n, beep, rng.uniform(1, 8), 0.02, rng.uniform(0.05, 0.3))


@family
def hum(rng: np.random.Generator, n: int) -> Signal:
    """Mains and machines: steady low harmonics."""
    return _harmonics(
        np.full(n, rng.choice([50.0, 60.0, 100.0, 120.0])), rng, 20, rng.uniform(0.5, 2)
    )


@family
def explosion(rng: np.random.Generator, n: int) -> Signal:
    """A crack and a long rumble."""

    def blast(r: np.random.Generator, m: int) -> Signal:
        rumble = noise(r, max(m, 64), r.uniform(-9, -3), 20, r.uniform(500, 4000))[:m]
        crack = r.standard_normal(m) * _decay(m, r.uniform(0.005, 0.05), 0.0005)
        return (
            rumble / max(rumble.std(), 1e-9) * _decay(m, r.uniform(0.1, 0.9))
            + r.uniform(0, 2) * crack
        )

    return _repeat(rng, n, blast, rng.uniform(0.2, 5), 0.5, 2.5)


@family
def whoosh(rng: np.random.Generator, n: int) -> Signal:
    """Something passes fast: noise whose band rises and falls."""

    def passing(r: np.random.Generator, m: int) -> Signal:
        arc = np.sin(np.linspace(0, np.pi, m)) ** 2
        dark = noise(r, max(m, 64), -6, 100, 1500)[:m]
        bright = noise(r, max(m, 64), -1, 1000, 7000)[:m]
        return arc * dark / max(dark.std(), 1e-9) + arc**3 * bright / max(bright.std(), 1e-9)

    return _repeat(rng, n, passing, rng.uniform(0.4, 3), 0.3, rng.uniform(0.2, 1.2))


@family
def pluck(rng: np.random.Generator, n: int) -> Signal:
    """Notes of a plucked or struck string, in a scale."""
    base, ring = rng.uniform(80, 500), rng.uniform(0.1, 1)

    def note(r: np.random.Generator, m: int) -> Signal:
        f = base * 2 ** (r.choice([0, 2, 4, 7, 9, 12]) / 12)
        return _harmonics(np.full(m, f), r, 15, 1) * _decay(m, ring)

    return _repeat(rng, n, note, rng.uniform(1, 6), 0.05, 1.5)


@family
def drums(rng: np.random.Generator, n: int) -> Signal:
    """Beats of a skin and of a rattle, in time."""

    def beat(r: np.random.Generator, m: int) -> Signal:
        skin = np.sin(_phase(r.uniform(50, 250) * (1 + 2 * np.exp(-_time(m) / 0.02)))) * _decay(
            m, 0.12
        )
        rattle = r.standard_normal(m) * _decay(m, r.uniform(0.02, 0.15))
        return skin * r.choice([0, 1]) + rattle * r.uniform(0, 0.8)

    return _repeat(rng, n, beat, rng.uniform(2, 8), 0.03, 0.4)


@family
def babble(rng: np.random.Generator, n: int) -> Signal:
    """Speech-like syllables of no language: voiced and noisy sounds through moving formants."""
    pitch = rng.uniform(90, 280)

    def syllable(r: np.random.Generator, m: int) -> Signal:
        voice = _harmonics(pitch * np.exp(0.15 * _drift(r, m, 4)), r, 30, 0.7)
        formants = np.array([r.uniform(300, 900), r.uniform(900, 2400), r.uniform(2400, 3400)])
        hiss = r.standard_normal(m) * (np.arange(m) < r.uniform(0, 0.4) * m)
        return (_throat(voice, formants) + 0.5 * hiss) * np.sin(np.linspace(0, np.pi, m)) ** 0.5

    return _repeat(rng, n, syllable, rng.uniform(2.5, 6), 0.2, rng.uniform(0.12, 0.3))


@family
def jingle(rng: np.random.Generator, n: int) -> Signal:
    """Keys, coins or glass: many small high impacts at once."""
    low = rng.uniform(1500, 3500)
    return _repeat(
        rng, n, lambda r, m: _modes(r, m, low, 7500, 0.05, 4), rng.uniform(6, 30), 0.8, 0.25
    )

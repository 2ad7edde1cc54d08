"""The ten classes, one synthesiser each: from (generator, seconds, sample rate) to [samples].

Ranges overlap between classes on purpose: what tells them apart is the shape of the event, not
where its energy lies.
"""

from collections.abc import Callable, Sequence

import numpy as np

from toolkit.data.synthetic.signals import (
    Signal,
    add,
    bump,
    decibels,
    equalise,
    harmonics,
    log_uniform,
    noise,
    peaks,
    rms,
    sample_count,
    struck,
    time_axis,
    wander,
)

Synthesiser = Callable[[np.random.Generator, float, int], Signal]


def siren(rng: np.random.Generator, seconds: float, sample_rate: int) -> Signal:
    """A loud tone that sweeps: wail, yelp, two-tone, or one long rise and fall."""
    samples = sample_count(seconds, sample_rate)
    when = time_axis(samples, sample_rate)
    kind = rng.choice(["wail", "yelp", "two_tone", "rise"])
    rate = {"wail": (0.3, 1.0), "yelp": (2.0, 5.5), "two_tone": (0.6, 2.2), "rise": (0.2, 0.5)}
    cycle = when * log_uniform(rng, *rate[kind]) + rng.uniform()
    if kind == "two_tone":
        swing = np.tanh(8 * np.sin(2 * np.pi * cycle))
    elif kind == "yelp":
        swing = 2 * np.abs(2 * (cycle % 1) - 1) - 1
    else:
        swing = np.sin(2 * np.pi * cycle)
    depth = rng.uniform(0.25, 0.4) if kind == "two_tone" else rng.uniform(0.3, 1.0)
    drift = wander(rng, samples, -0.04, 0.04)  # Doppler shift of a passing car
    pitch = log_uniform(rng, 550, 1500) * 2 ** (0.5 * depth * swing + drift)
    slope = rng.uniform(0.6, 2.5)
    amplitudes = [rng.uniform(0.3, 1.0) / k**slope for k in range(1, 13)]
    return harmonics(pitch, amplitudes, sample_rate) * wander(rng, samples, 0.4, 1.0)


def rain(rng: np.random.Generator, seconds: float, sample_rate: int) -> Signal:
    """A bed of noise with many separate drops, from drizzle on a roof to a downpour."""
    samples = sample_count(seconds, sample_rate)
    bed = noise(rng, samples, sample_rate, rng.uniform(-3, 1))
    bed *= wander(rng, samples, 0.6, 1.0, knots=8)
    drops = np.zeros(samples)
    centre, spread = log_uniform(rng, 1800, 6000), rng.uniform(0.2, 0.8)
    for _ in range(int(seconds * log_uniform(rng, 25, 250))):
        frequency = centre * 2 ** rng.normal(0, spread)
        decay = rng.uniform(0.004, 0.03)
        drop = struck(rng, [frequency], [decay], [rng.exponential()], decay, sample_rate)
        add(drops, drop, rng.uniform(0, seconds), sample_rate)
    return bed * decibels(rng.uniform(-14, 4)) + drops / rms(drops)


def clock_tick(rng: np.random.Generator, seconds: float, sample_rate: int) -> Signal:
    """Even, dry clicks; often tick and tock differ, often the escapement clicks twice."""
    track = np.zeros(sample_count(seconds, sample_rate))
    period = 1 / log_uniform(rng, 1.8, 7.0)
    modes = int(rng.integers(3, 7))
    centre = log_uniform(rng, 1800, 4500)
    tick_and_tock = []
    for _ in range(2):
        frequencies = centre * 2 ** rng.uniform(-1, 1, modes)
        decays = rng.uniform(0.006, 0.05, modes)
        click = struck(rng, frequencies, decays, rng.uniform(0.2, 1, modes), 0.05, sample_rate)
        tick_and_tock.append(click * decibels(rng.uniform(-9, 0)))
    if rng.uniform() < 0.3:
        tick_and_tock[1] = tick_and_tock[0]
    echo, echo_gain = rng.uniform(0.012, 0.045), rng.choice([0.0, rng.uniform(0.2, 0.8)])
    start = rng.uniform(0, min(period, 0.5 * seconds))
    for number in range(int((seconds - start) / period) + 1):
        when = start + number * period + rng.normal(0, 0.0015)
        click = tick_and_tock[number % 2] * rng.uniform(0.8, 1.0)
        add(track, click, when, sample_rate)
        add(track, click * echo_gain, when + echo, sample_rate)
    return track


def chirping_birds(rng: np.random.Generator, seconds: float, sample_rate: int) -> Signal:
    """Phrases of short whistled syllables, each with a fast glide or a trill."""
    track = np.zeros(sample_count(seconds, sample_rate))
    centre = log_uniform(rng, 2000, 5500)
    motifs = [_bird_syllable(rng, centre, sample_rate) for _ in range(rng.integers(1, 4))]
    gap = log_uniform(rng, 0.02, 0.25)
    when = rng.uniform(0, 0.3) * seconds
    while when < seconds:
        motif = motifs[rng.integers(len(motifs))]
        for _ in range(rng.integers(1, 6)):
            add(track, motif * decibels(rng.uniform(-8, 0)), when, sample_rate)
            when += len(motif) / sample_rate + gap * rng.uniform(0.7, 1.3)
        when += rng.choice([0.0, rng.uniform(0.1, 0.7)])
    return track


def _bird_syllable(rng: np.random.Generator, centre: float, sample_rate: int) -> Signal:
    samples = sample_count(log_uniform(rng, 0.03, 0.22), sample_rate)
    place = np.linspace(0, 1, samples)
    glide = rng.uniform(-0.7, 0.7) * (place - 0.5) + rng.uniform(-0.5, 0.5) * np.sin(np.pi * place)
    trill = rng.choice([0.0, rng.uniform(0.05, 0.2)]) * np.sin(
        2 * np.pi * rng.uniform(25, 70) * place * samples / sample_rate
    )
    pitch = np.minimum(centre * 2 ** (rng.normal(0, 0.25) + glide + trill), 0.42 * sample_rate)
    amplitudes = [1.0, rng.uniform(0, 0.3), rng.uniform(0, 0.1)]
    return harmonics(pitch, amplitudes, sample_rate) * bump(samples, rng.uniform(0.1, 0.7))


def dog(rng: np.random.Generator, seconds: float, sample_rate: int) -> Signal:
    """Barks: short rough voiced bursts with a rising and falling pitch, in ones and groups."""
    track = np.zeros(sample_count(seconds, sample_rate))
    voice = log_uniform(rng, 280, 700)
    length = log_uniform(rng, 0.07, 0.28)
    throat = [voice * rng.uniform(1.5, 2.5), rng.uniform(1200, 2600)]
    roughness = rng.uniform(0.2, 0.7)
    when = rng.uniform(0, 0.4) * seconds
    for _ in range(rng.integers(1, 8)):
        bark = _bark(rng, voice, length * rng.uniform(0.8, 1.2), throat, roughness, sample_rate)
        add(track, bark * decibels(rng.uniform(-6, 0)), when, sample_rate)
        when += len(bark) / sample_rate + log_uniform(rng, 0.05, 0.6)
    return track


def _bark(
    rng: np.random.Generator,
    voice: float,
    length: float,
    throat: Sequence[float],
    roughness: float,
    sample_rate: int,
) -> Signal:
    samples = sample_count(length, sample_rate)
    arch = bump(samples, rng.uniform(0.15, 0.4))
    jitter = roughness * 0.2 * wander(rng, samples, -1, 1, knots=max(4, int(length * 150)))
    pitch = voice * 2 ** (rng.uniform(0.2, 0.8) * arch - 0.3 + jitter)
    tone = harmonics(pitch, [1 / k**0.5 for k in range(1, 25)], sample_rate)
    breath = roughness * noise(rng, samples, sample_rate, -3)
    burst = equalise(tone / rms(tone) + breath, sample_rate, peaks(throat, [voice * 0.8, 700], 0.1))
    return burst / rms(burst) * bump(samples, rng.uniform(0.05, 0.25), rng.uniform(0.7, 2))


def engine(rng: np.random.Generator, seconds: float, sample_rate: int) -> Signal:
    """Firing pulses of a motor that idles or revs, through an exhaust, with mechanical noise."""
    samples = sample_count(seconds, sample_rate)
    cylinders = int(rng.choice([1, 2, 3, 4, 6]))
    cycle = log_uniform(rng, 8, 35) * 2 ** wander(rng, samples, 0, rng.uniform(0.05, 1.0))
    slope = rng.uniform(0.2, 0.9)
    uneven = rng.uniform(0.05, 0.6)
    amplitudes = [
        (1.0 if k % cylinders == 0 else uneven * rng.uniform()) / k**slope * (1 - k / 100) ** 2
        for k in range(1, 100)
    ]
    pulses = harmonics(cycle, amplitudes, sample_rate)
    pulses /= rms(pulses)
    hiss = noise(rng, samples, sample_rate, rng.uniform(-6, 0))
    hiss *= 0.3 + np.maximum(pulses, 0)  # gas and valves are loud when a cylinder fires
    pipe = [log_uniform(rng, 60, 300), log_uniform(rng, 250, 1500)]
    mixed = pulses + hiss * decibels(rng.uniform(-20, 0))
    return equalise(mixed, sample_rate, peaks(pipe, [250, 800], rng.uniform(0.05, 0.4)))


def church_bells(rng: np.random.Generator, seconds: float, sample_rate: int) -> Signal:
    """One to three bells, struck a few times, ringing on with inharmonic partials."""
    track = np.zeros(sample_count(seconds, sample_rate))
    ratios = np.array([0.5, 1.0, 1.2, 1.5, 2.0, 2.5, 2.67, 3.0, 4.0, 5.3])
    nominal = log_uniform(rng, 250, 1000)
    ring = log_uniform(rng, 1.2, 6.0)
    brightness = rng.uniform(0.1, 1.2)
    bells = []
    for _ in range(rng.integers(1, 4)):
        partials = nominal * ratios * 2 ** rng.normal(0, 0.02, len(ratios))
        decays = ring / ratios ** rng.uniform(0.5, 1.1)
        gains = rng.uniform(0.2, 1.0, len(ratios)) / ratios**brightness
        bells.append(struck(rng, partials, decays, gains, min(seconds, ring), sample_rate))
        nominal *= 2 ** (rng.choice([-7, -5, -4, -3, 2, 3, 4, 5, 7]) / 12)
    when, gap = rng.uniform(0, 0.3) * seconds, log_uniform(rng, 0.2, 1.5)
    while when < seconds:
        bell = bells[rng.integers(len(bells))]
        add(track, bell * decibels(rng.uniform(-8, 0)), when, sample_rate)
        when += gap * rng.uniform(0.85, 1.15)
    return track


def door_wood_knock(rng: np.random.Generator, seconds: float, sample_rate: int) -> Signal:
    """Groups of two to six knuckle knocks on a panel: dull, uneven, then a pause."""
    track = np.zeros(sample_count(seconds, sample_rate))
    modes = int(rng.integers(4, 9))
    panel = log_uniform(rng, 90, 350) * 2 ** rng.uniform(0, 2.2, modes)
    decays = rng.uniform(0.03, 0.14, modes)
    gap = log_uniform(rng, 0.09, 0.35)
    knuckle = decibels(rng.uniform(-28, -12))
    when = rng.uniform(0, 0.3) * seconds
    while when < seconds:
        swing = rng.uniform(-0.25, 0.25)
        for number in range(rng.integers(2, 7)):
            knock = struck(rng, panel, decays, rng.uniform(0.3, 1, modes), 0.14, sample_rate)
            attack = noise(rng, sample_count(0.006, sample_rate), sample_rate, -3)
            knock[: len(attack)] += knuckle * attack
            add(track, knock * decibels(rng.uniform(-7, 0)), when, sample_rate)
            when += gap * (1 + swing * (-1) ** number) * rng.uniform(0.85, 1.15)
        when += rng.uniform(0.3, 1.2)
    return track


def crickets(rng: np.random.Generator, seconds: float, sample_rate: int) -> Signal:
    """Two to six insects, each a steady high tone cut into fast pulses and slower chirps."""
    samples = sample_count(seconds, sample_rate)
    when = time_axis(samples, sample_rate)
    track = np.zeros(samples)
    centre = log_uniform(rng, 3000, 6500)
    for _ in range(rng.integers(2, 7)):
        carrier = np.full(samples, min(centre * 2 ** rng.normal(0, 0.1), 0.42 * sample_rate))
        tone = harmonics(carrier, [1.0, rng.uniform(0, 0.25)], sample_rate)
        pulses = np.maximum(np.sin(2 * np.pi * log_uniform(rng, 12, 32) * when), 0)
        duty = rng.choice([1.0, rng.uniform(0.3, 0.8)])
        chirp = (when * log_uniform(rng, 0.8, 5.0) + rng.uniform(0, 0.8 * duty)) % 1
        gate = np.clip((duty - chirp) * 30, 0, 1) if duty < 1 else 1.0
        track += tone * pulses ** rng.uniform(0.7, 2) * gate * decibels(rng.uniform(-12, 0))
    return track


# First two resonances (Hz) of the vowels i, e, a, o, u and schwa in an adult voice.
VOWELS = np.array([[300, 2300], [480, 1900], [750, 1250], [500, 900], [330, 800], [500, 1500]])


def babble(rng: np.random.Generator, seconds: float, sample_rate: int) -> Signal:
    """One to four voices that speak nonsense syllables: vowels with consonants of noise."""
    track = np.zeros(sample_count(seconds, sample_rate))
    for _ in range(rng.integers(1, 5)):
        track += _voice(rng, seconds, sample_rate) * decibels(rng.uniform(-10, 0))
    return track


def _voice(rng: np.random.Generator, seconds: float, sample_rate: int) -> Signal:
    track = np.zeros(sample_count(seconds, sample_rate))
    pitch, tract = log_uniform(rng, 85, 320), rng.uniform(0.9, 1.25)
    pace, slope = log_uniform(rng, 0.1, 0.28), rng.uniform(0.8, 1.5)
    when = rng.uniform(-0.1, 0.3)
    while when < seconds:
        length = pace * rng.uniform(0.6, 1.5)
        add(track, _vowel(rng, pitch, tract, length, slope, sample_rate), when, sample_rate)
        if rng.uniform() < 0.5:
            hiss = noise(
                rng, sample_count(length * rng.uniform(0.2, 0.6), sample_rate), sample_rate
            )
            place = rng.uniform(2000, 6500)
            hiss = equalise(hiss, sample_rate, peaks([place], [1500])) * bump(len(hiss), 0.4)
            add(track, hiss * rng.uniform(0.2, 0.9), when + 0.8 * length, sample_rate)
        when += length + rng.choice([0.0, rng.uniform(0, 0.4)], p=[0.75, 0.25])
    return track


def _vowel(
    rng: np.random.Generator,
    pitch: float,
    tract: float,
    length: float,
    slope: float,
    sample_rate: int,
) -> Signal:
    samples = sample_count(length, sample_rate)
    contour = pitch * 2 ** (rng.normal(0, 0.12) + wander(rng, samples, -0.15, 0.15, knots=3))
    source = harmonics(contour, [1 / k**slope for k in range(1, 41)], sample_rate)
    start, end = VOWELS[rng.choice(len(VOWELS), 2)] * tract  # a diphthong: one vowel to another
    third = 2600 * tract
    first = equalise(source, sample_rate, peaks([*start, third], [90, 130, 200], 0.01))
    last = equalise(source, sample_rate, peaks([*end, third], [90, 130, 200], 0.01))
    blend = np.linspace(0, 1, samples)
    mouth = first * (1 - blend) + last * blend
    return mouth / rms(mouth) * bump(samples, rng.uniform(0.1, 0.4), rng.uniform(0.5, 1.2))


CLASSES: dict[str, Synthesiser] = {
    "dog": dog,
    "rain": rain,
    "crickets": crickets,
    "chirping_birds": chirping_birds,
    "door_wood_knock": door_wood_knock,
    "clock_tick": clock_tick,
    "siren": siren,
    "engine": engine,
    "church_bells": church_bells,
    "babble": babble,
}

# ESC-50's own numbers where it has the class, so they are not 0..9; babble takes the next free one.
TARGETS: dict[str, int] = {
    "dog": 0,
    "rain": 10,
    "crickets": 13,
    "chirping_birds": 14,
    "door_wood_knock": 30,
    "clock_tick": 38,
    "siren": 42,
    "engine": 44,
    "church_bells": 46,
    "babble": 50,
}

# Classes that a listener could take for one another; their quiet events are the distractors.
NEIGHBOURS: dict[str, tuple[str, ...]] = {
    "dog": ("babble", "door_wood_knock", "siren"),
    "rain": ("engine", "crickets", "clock_tick"),
    "crickets": ("chirping_birds", "rain", "clock_tick"),
    "chirping_birds": ("crickets", "siren", "church_bells"),
    "door_wood_knock": ("clock_tick", "dog", "engine"),
    "clock_tick": ("door_wood_knock", "rain", "crickets"),
    "siren": ("church_bells", "chirping_birds", "babble"),
    "engine": ("rain", "babble", "door_wood_knock"),
    "church_bells": ("siren", "clock_tick", "babble"),
    "babble": ("dog", "engine", "church_bells"),
}

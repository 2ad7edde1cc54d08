"""What the pool is made of: jobs in a fixed order, and the clips that each of them makes.

A job is a recording, a procedural scene, a mixture of two recordings, or some synthetic speech.
Clips last at most 5.12 s. Everything random depends on the job alone, not on who runs it.
"""

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import soxr
from numpy.typing import NDArray

from . import scenes, sources, speech

RATE, SOUND_RATE = 16_000, 44_100
SECONDS = 5.12
SPEECH_KINDS = ("speech", "word", "sentence")
# Names in the paths of recordings that tell what is heard: the labels of the held-out probe.
HEARD = {
    "explosion": "explo|boom|blast",
    "shot": "gun|shot|rifle|pistol",
    "step": "footstep|walk",
    "engine": "engine|motor|drive|truck|train|rotor",
    "blade": "sword|axe|blade|clank",
    "arrow": "bow|arrow",
    "water": "water|splash|rain|wave|ocean|river",
    "wind": "wind|ambien",
    "button": "click|button|menu|beep",
    "dog": "dog|wolf|bark",
    "livestock": "sheep|cow|goat|pig[^e]|horse|cattle",
    "bird": "bird|chicken|duck|rooster|crow|gull|eagle",
    "dying": "die|death|pain|hurt|groan",
    "drum": "drum|kick|snare|hihat",
    "fire": "flame|fire_|burn|torch",
    "wood": "chop|saw[^a-z]|wood",
    "glass": "glass|break|crash",
    "bell": "bell|gong|chime|clock",
}
SPELLING = (
    "alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india", "juliet",
    "kilo", "lima", "mike", "november", "oscar", "papa", "quebec", "romeo", "sierra", "tango",
    "uniform", "victor", "whiskey", "x-ray", "yankee", "zulu",
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One step of building the pool.

    Attributes:
        kind: "file", "mixture", "scene", or which synthetic speech.
        seed: of what is random in it; unused for files.
        recordings: one of a file, two of a mixture.
    """

    kind: str
    seed: int = 0
    recordings: tuple[sources.Recording, ...] = ()


@dataclass
class Clip:
    """Audio [n] at `rate` and what is known of it."""

    audio: NDArray[Any]
    rate: int
    kind: str  # "sound", "music", "speech", "word", "sentence", "scene", "mixture"
    name: str
    word: int = -1
    label: str = ""
    held_out: bool = False
    phonemes: list[tuple[float, str]] = field(default_factory=list)
    present: list[int] = field(default_factory=list)


def digest(text: str) -> int:
    """A number that depends on the text alone."""
    return zlib.crc32(text.encode())


def jobs(folder: Path, scale: float) -> list[Job]:
    """All jobs of a pool, in a fixed shuffled order.

    The words that the probes need come first, so that a pool that was cut short still has them.
    """
    limit = {"speech": int(1200 * scale), "sound": int(2000 * scale), "music": int(40 * scale)}
    counts: dict[tuple[str, str], int] = {}
    files: list[Job] = []
    listed = sources.recordings(folder) if folder.is_dir() else []
    for item in sorted(listed, key=lambda r: digest(str(r.path.relative_to(folder)))):
        key = (item.package, item.kind)
        counts[key] = counts.get(key, 0) + 1
        if counts[key] <= limit[item.kind] or item.spelled:
            files.append(Job("file", recordings=(item,)))
    sounds = [job.recordings[0] for job in files if job.recordings[0].kind == "sound"]
    made = [Job("scene", seed) for seed in range(int(4000 * scale))]
    made += [Job("words", seed) for seed in range(int(300 * scale))]
    made += [Job("flite", seed) for seed in range(int(60 * scale))]
    made += [Job("sentence", seed) for seed in range(int(3500 * scale))]
    made += [Job("spelling", seed) for seed in range(8)]
    for seed in range(int(3500 * scale) if len(sounds) > 1 else 0):
        pair = np.random.default_rng(seed).choice(len(sounds), 2, replace=False)
        made.append(Job("mixture", seed, tuple(sounds[i] for i in pair)))
    everything = files + made
    order = np.random.default_rng(0).permutation(len(everything))
    return sorted((everything[i] for i in order), key=lambda job: not _for_the_word_probe(job))


def _for_the_word_probe(job: Job) -> bool:
    return job.kind == "spelling" or (job.kind == "file" and job.recordings[0].spelled)


def clips(job: Job, root: Path) -> Iterator[Clip]:
    """The clips that one job makes; `root` is the folder of the recordings."""
    if job.kind == "file":
        yield from _from_file(job.recordings[0], root)
    elif job.kind == "scene":
        scene = scenes.scene(job.seed)
        present = np.flatnonzero(scene.present).tolist()
        yield Clip(scene.audio, RATE, "scene", f"scene {job.seed}", present=present)
    elif job.kind == "mixture":
        yield from _mixture(job.seed, job.recordings, root)
    else:
        yield from _synthetic_speech(job.kind, job.seed)


def _from_file(item: sources.Recording, root: Path) -> Iterator[Clip]:
    name = item.path.relative_to(root).as_posix()
    try:
        audio, rate = sources.decode(item.path, seconds=60)
    except sources.UNREADABLE:
        return
    if len(audio) < 0.1 * rate or np.abs(audio).max() < 1e-3:
        return
    word, label, held_out = -1, "", False
    if item.spelled and item.path.stem[0].isalpha():
        word, held_out = ord(item.path.stem[0].lower()) - ord("a"), True
    elif item.kind == "sound":
        label = _heard(item.path.name)
        stem = re.sub(r"[\d_\- ]+", "", item.path.stem.lower())
        held_out = bool(label) and digest(item.package + stem) % 2 == 0
    size = int(SECONDS * rate)
    rng = np.random.default_rng(digest(name))
    count = min(-(-len(audio) // size), 4 if item.kind != "music" else 3)
    for number in range(count):
        start = number * size if count * size >= len(audio) else rng.integers(0, len(audio) - size)
        piece = audio[start : start + size]
        if len(piece) >= 0.1 * rate and np.abs(piece).max() > 1e-3:
            yield Clip(piece, rate, item.kind, f"{name}@{number}", word, label, held_out)


def _heard(name: str) -> str:
    """The one label whose pattern the file's name matches, or nothing."""
    found = [label for label, pattern in HEARD.items() if re.search(pattern, name.lower())]
    return found[0] if len(found) == 1 else ""


def _mixture(number: int, pair: tuple[sources.Recording, ...], root: Path) -> Iterator[Clip]:
    """Two recordings at once, each a little faster or slower, at a random difference of level."""
    rng = np.random.default_rng(number)
    mixed = np.zeros(int(SECONDS * SOUND_RATE), np.float32)
    for item in pair:
        found = list(_from_file(item, root))
        if not found or any(clip.held_out for clip in found):
            return
        clip = found[rng.integers(len(found))]
        audio = soxr.resample(clip.audio, clip.rate, SOUND_RATE * rng.uniform(0.8, 1.25), "LQ")
        audio = audio[: len(mixed)] / np.abs(audio).max() * 10 ** rng.uniform(-0.7, 0)
        start = rng.integers(0, len(mixed) - len(audio) + 1)
        mixed[start : start + len(audio)] += audio
    yield Clip(0.5 * mixed / np.abs(mixed).max(), SOUND_RATE, "mixture", f"mixture {number}")


@cache
def _espeak() -> speech.Espeak:
    return speech.Espeak()


def _synthetic_speech(kind: str, seed: int) -> Iterator[Clip]:
    rng = np.random.default_rng([digest(kind), seed])
    accents = speech.ACCENTS
    if kind == "sentence":
        language = rng.choice(accents if rng.random() < 0.5 else speech.LANGUAGES)
        words = [str(w) for w in rng.choice(speech.WORDS, rng.integers(4, 9))]
        said = [(-1, _espeak().say(words, str(language), rng))]
    elif kind == "words":
        chosen = rng.choice(len(speech.WORDS), 50, replace=False)
        said = [
            (int(w), _espeak().say([speech.WORDS[w]], str(rng.choice(accents)), rng))
            for w in chosen
        ]
    elif kind == "flite":
        chosen = rng.choice(len(speech.WORDS), 50, replace=False)
        said = [(int(w), speech.say_with_flite(speech.WORDS[w], rng)) for w in chosen]
    else:  # spelling words, for the probe alone
        said = [
            (i, _espeak().say([w], str(rng.choice(accents)), rng)) for i, w in enumerate(SPELLING)
        ]
        said += [(i, speech.say_with_flite(w, rng)) for i, w in enumerate(SPELLING)]
    for number, (word, utterance) in enumerate(said):
        if not len(utterance.audio) or np.abs(utterance.audio).max() < 1e-3:
            continue
        u = speech.trim(utterance)
        what = "sentence" if kind == "sentence" else "word"
        audio = u.audio[: int(SECONDS * u.rate)]
        yield Clip(
            audio, u.rate, what, f"{kind} {seed}.{number} {u.voice}", word, "",
            kind == "spelling", u.phonemes,
        )  # fmt: skip

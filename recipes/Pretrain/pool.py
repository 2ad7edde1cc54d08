"""The pool: every clip's log-mel frames and its targets, computed once, memory-mapped after.

    python recipes/Pretrain/pool.py build SOURCES POOL [--workers 2] [--scale 1.0]

Clips last at most 5.12 s: 512 frames of 10 ms, 32 columns of 160 ms (a patch), 64 halves of 80 ms.
A shard is a folder with flat arrays and `clips.jsonl`, a line a clip; it is written by one worker.
"""

import argparse
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import scenes
import soundfile
import sources
import soxr
import speech
import torch
from tqdm import tqdm

from toolkit.features.log_mel import log_mel

RATE, SOUND_RATE = 16_000, 44_100
SECONDS, COLUMN = 5.12, 16
WIDTHS = {"frames": 128, "sound": 512, "speech": 384, "word": 96}
IGNORE = 255
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
SPELLING = [
    "alpha",
    "bravo",
    "charlie",
    "delta",
    "echo",
    "foxtrot",
    "golf",
    "hotel",
    "india",
    "juliet",
    "kilo",
    "lima",
    "mike",
    "november",
    "oscar",
    "papa",
    "quebec",
    "romeo",
    "sierra",
    "tango",
    "uniform",
    "victor",
    "whiskey",
    "x-ray",
    "yankee",
    "zulu",
]


@dataclass
class Clip:
    """Audio [n] at `rate` and what is known of it."""

    audio: np.ndarray
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


def jobs(folder: Path, scale: float) -> list[tuple[str, object]]:
    """All that the pool is made of, in a fixed shuffled order."""
    limit = {"speech": int(1200 * scale), "sound": int(2000 * scale), "music": int(40 * scale)}
    counts: dict[tuple[str, str], int] = {}
    files: list[tuple[str, object]] = []
    listed = sources.recordings(folder) if folder.is_dir() else []
    for item in sorted(listed, key=lambda r: digest(str(r.path.relative_to(folder)))):
        key = (item.package, item.kind)
        counts[key] = counts.get(key, 0) + 1
        if counts[key] <= limit[item.kind] or "phonetic" in item.path.parts:
            files.append(("file", item))
    sounding = [job for job in files if job[1].kind == "sound"]
    made: list[tuple[str, object]] = [("scene", i) for i in range(int(4000 * scale))]
    made += [("words", i) for i in range(int(300 * scale))]
    made += [("flite", i) for i in range(int(60 * scale))]
    made += [("sentence", i) for i in range(int(3500 * scale))]
    made += [("spelling", i) for i in range(8)]
    for i in range(int(3500 * scale) if len(sounding) > 1 else 0):
        rng = np.random.default_rng(i)
        pair = rng.choice(len(sounding), 2, replace=False)
        made.append(("mixture", (i, [sounding[p][1] for p in pair])))
    everything = files + made
    order = np.random.default_rng(0).permutation(len(everything))
    mixed = [everything[i] for i in order]
    return sorted(mixed, key=lambda job: not _for_the_word_probe(job))


def _for_the_word_probe(job: tuple[str, object]) -> bool:
    """The probes' words come first, so that a pool that was cut short still has them."""
    return job[0] == "spelling" or (job[0] == "file" and "phonetic" in job[1].path.parts)


def clips(job: tuple[str, object], root: Path) -> Iterator[Clip]:
    """The clips that one job makes."""
    kind, what = job
    if kind == "file":
        yield from _from_file(what, root)
    elif kind == "scene":
        made = scenes.scene(what)
        present = np.flatnonzero(made.present).tolist()
        yield Clip(made.audio, RATE, "scene", f"scene {what}", present=present)
    elif kind == "mixture":
        yield from _mixture(*what, root)
    else:
        yield from _synthetic_speech(kind, what)


def _from_file(item: sources.Recording, root: Path) -> Iterator[Clip]:
    name = item.path.relative_to(root).as_posix()
    try:
        audio, rate = sources.decode(item.path, seconds=60)
    except (soundfile.LibsndfileError, ValueError):
        return
    if len(audio) < 0.1 * rate or np.abs(audio).max() < 1e-3:
        return
    word, label, held_out = -1, "", False
    if "phonetic" in item.path.parts and item.path.stem[0].isalpha():
        word, held_out = SPELLING.index(SPELLING[ord(item.path.stem[0]) - ord("a")]), True
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


def _mixture(number: int, pair: list[sources.Recording], root: Path) -> Iterator[Clip]:
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


_espeak: speech.Espeak | None = None


def _synthetic_speech(kind: str, seed: int) -> Iterator[Clip]:
    global _espeak
    _espeak = _espeak or speech.Espeak()
    rng = np.random.default_rng([digest(kind), seed])
    accents = speech.ACCENTS
    if kind == "sentence":
        language = rng.choice(accents if rng.random() < 0.5 else speech.LANGUAGES)
        words = [str(w) for w in rng.choice(speech.WORDS, rng.integers(4, 9))]
        said = [(-1, _espeak.say(words, str(language), rng))]
    elif kind == "words":
        chosen = rng.choice(len(speech.WORDS), 50, replace=False)
        said = [
            (int(w), _espeak.say([speech.WORDS[w]], str(rng.choice(accents)), rng)) for w in chosen
        ]
    elif kind == "flite":
        chosen = rng.choice(len(speech.WORDS), 50, replace=False)
        said = [(int(w), speech.say_with_flite(speech.WORDS[w], rng)) for w in chosen]
    else:  # spelling words, for the probe alone
        said = [
            (i, _espeak.say([w], str(rng.choice(accents)), rng)) for i, w in enumerate(SPELLING)
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


def build(folder: Path, target: Path, workers: int, scale: float) -> None:
    """Make the pool: `workers` processes, each of which writes one shard."""
    target.mkdir(parents=True, exist_ok=True)
    context = get_context("spawn")
    with context.Pool(workers) as pool:
        arguments = [(folder, target, worker, workers, scale) for worker in range(workers)]
        for count in pool.imap_unordered(_build_shard, arguments):
            print(f"shard finished: {count} clips", flush=True)


def _build_shard(arguments: tuple[Path, Path, int, int, float]) -> int:
    folder, target, worker, workers, scale = arguments
    import teacher

    torch.set_num_threads(1)
    teachers = (teacher.SoundTeacher(), teacher.SpeechTeacher(), teacher.WordTeacher(batch=8))
    shard = target / f"{worker:02d}"
    shard.mkdir(exist_ok=True)
    streams = {name: (shard / f"{name}.f16").open("wb") for name in WIDTHS}
    phonemes = (shard / "phonemes.jsonl").open("w")
    todo = jobs(folder, scale)[worker::workers]
    count = 0
    with (shard / "clips.jsonl").open("w") as index:
        for job in tqdm(todo, desc=f"shard {worker}", position=worker, mininterval=5):
            for clip in clips(job, folder):
                arrays = describe(clip, teachers)
                for name, values in arrays.items():
                    values.astype(np.float16).tofile(streams[name])
                index.write(json.dumps(_entry(clip, arrays)) + "\n")
                phonemes.write(
                    json.dumps([[round(float(t), 3), p] for t, p in clip.phonemes]) + "\n"
                )
                count += 1
            if count % 20 == 0:
                for stream in (*streams.values(), phonemes, index):
                    stream.flush()
    for stream in streams.values():
        stream.close()
    phonemes.close()
    return count


def describe(clip: Clip, teachers: tuple) -> dict[str, np.ndarray]:
    """Frames [t, 128] and the teachers' targets a column or half a column; no words for sounds."""
    sound, heard, word = teachers
    audio = clip.audio.astype(np.float32)
    low = soxr.resample(audio, clip.rate, RATE)[: int(SECONDS * RATE)]
    low = np.pad(low, (0, max(0, 400 - len(low))))
    frames = log_mel(torch.from_numpy(low)[None], RATE, 128)[0]
    columns = -(-len(frames) // COLUMN)
    size = columns * COLUMN * 160
    padded = np.pad(low, (0, max(0, size - len(low))))[:size]
    high = audio if clip.rate == SOUND_RATE else soxr.resample(audio, clip.rate, SOUND_RATE, "MQ")
    high = np.pad(high, (0, max(0, SOUND_RATE // 2 - len(high))))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=_fast_bf16()):
        coarse = sound(torch.from_numpy(high)[None])[0].float()  # [t', 512]
        fine = heard(torch.from_numpy(padded)[None])[0].float()  # [8 columns, 384]
    at = (torch.arange(columns) + 0.5) * COLUMN * 0.01 / (8192 / SOUND_RATE) - 0.5
    at = at.clamp(0, len(coarse) - 1)
    below = at.floor().long()
    share = (at - below)[:, None]
    above = (below + 1).clamp(max=len(coarse) - 1)
    result = {
        "frames": frames.numpy(),
        "sound": ((1 - share) * coarse[below] + share * coarse[above]).numpy(),
        "speech": fine.unflatten(0, (2 * columns, 4)).mean(dim=1).numpy(),
    }
    if clip.kind in ("speech", "word", "sentence"):
        result["word"] = word(padded)
    return result


def _fast_bf16() -> bool:
    return torch.cpu._is_avx512_bf16_supported()


def _entry(clip: Clip, arrays: dict[str, np.ndarray]) -> dict[str, object]:
    return {
        "frames": len(arrays["frames"]),
        "kind": clip.kind,
        "name": clip.name,
        "word": clip.word,
        "label": clip.label,
        "held_out": clip.held_out,
        "present": clip.present,
        "spoken": "word" in arrays,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("action", choices=["build"])
    parser.add_argument("sources", type=Path)
    parser.add_argument("pool", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--scale", type=float, default=1.0)
    arguments = parser.parse_args()
    build(arguments.sources, arguments.pool, arguments.workers, arguments.scale)


if __name__ == "__main__":
    main()

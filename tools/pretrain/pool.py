"""Building the pool: every clip's log-mel frames and its targets, computed once.

Frames last 10 ms. Targets are given per column of 160 ms, the width of a patch, or per half column.
A shard is a folder that one worker writes: a flat array of float16 for each entry of `WIDTHS`, and
`clips.jsonl` and `phonemes.jsonl` with one line per clip. `store` reads it, even unfinished.
"""

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import soxr
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from toolkit.features.log_mel import log_mel
from toolkit.own_folders import Kind, claimed

from .clips import RATE, SECONDS, SOUND_RATE, SPEECH_KINDS, Clip, clips, jobs
from .teacher import SoundTeacher, SpeechTeacher, WordTeacher

COLUMN = 16  # frames
SOUND_STEP = 8192 / SOUND_RATE  # seconds between the sound teacher's features
POOL = Kind("pool", known_by=(("*/clips.jsonl",),))
WIDTHS = {"frames": 128, "sound": 512, "speech": 384, "word": 96}


@dataclass(frozen=True)
class Teachers:
    """The models whose outputs are the targets.

    Attributes:
        sound: audio [1, n] at 44.1 kHz -> features [1, t, 512], one every `SOUND_STEP` seconds.
        speech: audio [1, n] at 16 kHz -> features [1, n // 320, 384].
        word: audio [n] at 16 kHz -> features [n // 1280, 96].
    """

    sound: Callable[[Tensor], Tensor]
    speech: Callable[[Tensor], Tensor]
    word: Callable[[NDArray[np.float32]], NDArray[np.float32]]

    @classmethod
    def load(cls) -> "Teachers":
        """The teachers from the packages that ship them."""
        return cls(SoundTeacher(), SpeechTeacher(), WordTeacher())


def build(folder: Path, target: Path, workers: int, scale: float) -> None:
    """Build the pool in `workers` processes, each of which writes one shard."""
    tasks = [(folder, target, worker, workers, scale) for worker in range(workers)]
    with claimed(target, POOL), get_context("spawn").Pool(workers) as processes:
        for count in processes.imap_unordered(_build_in_process, tasks):
            print(f"shard finished: {count} clips", flush=True)


def _build_in_process(task: tuple[Path, Path, int, int, float]) -> int:
    torch.set_num_threads(1)
    return build_shard(*task, Teachers.load())


def build_shard(
    folder: Path, target: Path, worker: int, workers: int, scale: float, teachers: Teachers
) -> int:
    """Do every `workers`-th job, write its clips to the shard `worker`, return their number."""
    shard = target / f"{worker:02d}"
    shard.mkdir(parents=True, exist_ok=True)
    count = 0
    with ExitStack() as stack:
        streams = {name: stack.enter_context((shard / f"{name}.f16").open("wb")) for name in WIDTHS}
        phonemes = stack.enter_context((shard / "phonemes.jsonl").open("w"))
        index = stack.enter_context((shard / "clips.jsonl").open("w"))
        todo = jobs(folder, scale)[worker::workers]
        for job in tqdm(todo, desc=f"shard {worker}", position=worker, mininterval=5):
            for clip in clips(job, folder):
                arrays = describe(clip, teachers)
                for name, values in arrays.items():
                    values.astype(np.float16).tofile(streams[name])
                index.write(json.dumps(_entry(clip, arrays)) + "\n")
                starts = [[round(float(t), 3), phoneme] for t, phoneme in clip.phonemes]
                phonemes.write(json.dumps(starts) + "\n")
                count += 1
            if count % 20 == 0:
                for stream in (*streams.values(), phonemes, index):
                    stream.flush()
    return count


def describe(clip: Clip, teachers: Teachers) -> dict[str, NDArray[np.float32]]:
    """The frames [t, 128] of a clip and its targets; "word" only for speech.

    Returns:
        by name of `WIDTHS`: C = ceil(t / 16) rows for "sound", 2 C for "speech" and "word".
    """
    audio = clip.audio.astype(np.float32)
    low = soxr.resample(audio, clip.rate, RATE)[: int(SECONDS * RATE)]
    low = np.pad(low, (0, max(0, 400 - len(low))))
    frames = log_mel(torch.from_numpy(low)[None], RATE, WIDTHS["frames"])[0]
    columns = -(-len(frames) // COLUMN)
    size = columns * COLUMN * 160
    padded = np.pad(low, (0, max(0, size - len(low))))[:size]
    high = audio if clip.rate == SOUND_RATE else soxr.resample(audio, clip.rate, SOUND_RATE, "MQ")
    high = np.pad(high, (0, max(0, SOUND_RATE // 2 - len(high))))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=fast_bf16()):
        coarse = teachers.sound(torch.from_numpy(high)[None])[0].float()  # [t', 512]
        fine = teachers.speech(torch.from_numpy(padded)[None])[0].float()  # [8 C, 384]
    result = {
        "frames": frames.numpy(),
        "sound": _at_columns(coarse, columns).numpy(),
        "speech": fine.unflatten(0, (2 * columns, 4)).mean(dim=1).numpy(),
    }
    if clip.kind in SPEECH_KINDS:
        result["word"] = teachers.word(padded)
    return result


def _at_columns(coarse: Tensor, columns: int) -> Tensor:
    """Features every `SOUND_STEP` [t', d], interpolated at the middle of every column [C, d]."""
    at = (torch.arange(columns) + 0.5) * COLUMN * 0.01 / SOUND_STEP - 0.5
    at = at.clamp(0, len(coarse) - 1)
    below = at.floor().long()
    above = (below + 1).clamp(max=len(coarse) - 1)
    share = (at - below)[:, None]
    return (1 - share) * coarse[below] + share * coarse[above]


def fast_bf16() -> bool:
    """Whether this processor computes in bfloat16 itself."""
    return torch.cpu._is_avx512_bf16_supported()


def _entry(clip: Clip, arrays: dict[str, NDArray[np.float32]]) -> dict[str, object]:
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

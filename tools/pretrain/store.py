"""Reading the pool: memory-mapped clips, the statistics of their targets, crops into batches."""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from toolkit.errors import DataError

from .clips import SPEECH_KINDS
from .pool import COLUMN, WIDTHS
from .scenes import FAMILIES
from .views import normalise

IGNORE = 255  # in place of a phoneme: unknown
PHONEMES = 96
HALF = 0.08  # seconds

PhonemeStarts = list[tuple[float, str]]


@dataclass
class StoredClip:
    """One clip of the pool: its line of `clips.jsonl`, and where its rows are.

    Attributes:
        frames: its length.
        kind, name, word, label, held_out, present: as in `clips.Clip`.
        spoken: whether it has targets of the word teacher.
        shard: number of its shard.
        at: its first row in every array of the shard.
        phonemes: of each half column [2 C]; `IGNORE` where none is known.
    """

    frames: int
    kind: str
    name: str
    word: int
    label: str
    held_out: bool
    present: list[int]
    spoken: bool
    shard: int
    at: dict[str, int]
    phonemes: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8))

    @property
    def columns(self) -> int:
        """Columns, the last of which may be incomplete."""
        return -(-self.frames // COLUMN)

    @property
    def rows(self) -> dict[str, int]:
        """Its number of rows in every array of the shard."""
        halves = 2 * self.columns
        return {
            "frames": self.frames,
            "sound": self.columns,
            "speech": halves,
            "word": halves if self.spoken else 0,
        }


@dataclass
class Batch:
    """B crops of T frames, C = T / 16 columns; raw log-mel, not normalised.

    `frames` [B, T, 128], `length` [B] frames before the padding, `speech_like` [B],
    `sound` [B, C, 512], `speech` [B, 2 C, 384], `word` [B, 2 C, 96] with `spoken` [B],
    `phonemes` [B, 2 C] (`IGNORE`: unknown), `word_id` [B] (-1: none),
    `families` [B, n] (-1: unknown).
    """

    frames: Tensor
    length: Tensor
    speech_like: Tensor
    sound: Tensor
    speech: Tensor
    word: Tensor
    spoken: Tensor
    phonemes: Tensor
    word_id: Tensor
    families: Tensor


class Store:
    """All clips of a pool folder, also of one that is still being built.

    Raises:
        DataError: there is no clip.
    """

    families = len(FAMILIES)

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.maps: list[dict[str, NDArray[np.float16]]] = []
        self.clips: list[StoredClip] = []
        starts: list[PhonemeStarts] = []
        shards = sorted(p for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
        for number, shard in enumerate(shards):
            self.maps.append({n: _rows(shard / f"{n}.f16", width) for n, width in WIDTHS.items()})
            self._read_index(number, shard, starts)
        if not self.clips:
            raise DataError(
                f"{folder}: holds no clips; build the pool with `python -m tools.pretrain build`"
            )
        self.phoneme_ids = self._phoneme_ids(starts)
        for clip, known in zip(self.clips, starts, strict=True):
            clip.phonemes = self._phonemes(known, clip.columns)
        self.by_kind: dict[str, NDArray[np.int64]] = {}
        for kind in sorted({clip.kind for clip in self.clips}):
            self.by_kind[kind] = np.array(
                [i for i, c in enumerate(self.clips) if c.kind == kind and not c.held_out],
                np.int64,
            )

    def _read_index(self, number: int, shard: Path, starts: list[PhonemeStarts]) -> None:
        """Read a shard's lines up to the first clip that is not completely written."""
        at = dict.fromkeys(WIDTHS, 0)
        with (shard / "clips.jsonl").open() as index, (shard / "phonemes.jsonl").open() as phonemes:
            for line, known in zip(index, phonemes, strict=False):
                if not (line.endswith("\n") and known.endswith("\n")):
                    break
                clip = StoredClip(**json.loads(line), shard=number, at=dict(at))
                at = {name: first + clip.rows[name] for name, first in at.items()}
                if any(end > len(self.maps[number][name]) for name, end in at.items()):
                    break
                self.clips.append(clip)
                starts.append(json.loads(known))

    def _phoneme_ids(self, starts: list[PhonemeStarts]) -> dict[str, int]:
        """Numbers of the most common phonemes; kept, so that a growing pool keeps its numbers."""
        kept = self.folder / "phonemes.json"
        if not kept.exists():
            named = (p for known in starts for _, p in known if not p.startswith("("))
            common = [p for p, _ in Counter(named).most_common(PHONEMES)]
            kept.write_text(json.dumps(common))
        return {phoneme: i for i, phoneme in enumerate(json.loads(kept.read_text()))}

    def _phonemes(self, starts: PhonemeStarts, columns: int) -> NDArray[np.uint8]:
        """The phoneme at the middle of each half column [2 C]; `IGNORE` where none is known."""
        labels = np.full(2 * columns, IGNORE, np.uint8)
        times = [t for t, _ in starts]
        for half in range(2 * columns if starts else 0):
            where = int(np.searchsorted(times, (half + 0.5) * HALF)) - 1
            if 0 <= where < len(starts) - 1:
                labels[half] = self.phoneme_ids.get(starts[where][1], IGNORE)
        return labels

    def read(self, index: int, name: str, start: int, size: int) -> NDArray[np.float32]:
        """`size` rows of a clip's array `name` from row `start`, float32 [size, width]."""
        clip = self.clips[index]
        base = clip.at[name] + start
        return self.maps[clip.shard][name][base : base + size].astype(np.float32)

    def crop(self, indices: NDArray[np.int64], length: int, rng: np.random.Generator) -> Batch:
        """A crop of `length` frames of each clip.

        A shorter clip stands at the beginning of its crop, three times in ten at a random column.
        """
        b, columns = len(indices), length // COLUMN
        batch = Batch(
            frames=torch.full((b, length, 128), float("nan")),
            length=torch.zeros(b, dtype=torch.long),
            speech_like=torch.zeros(b, dtype=torch.bool),
            sound=torch.zeros(b, columns, 512),
            speech=torch.zeros(b, 2 * columns, 384),
            word=torch.zeros(b, 2 * columns, 96),
            spoken=torch.zeros(b, dtype=torch.bool),
            phonemes=torch.full((b, 2 * columns), IGNORE, dtype=torch.long),
            word_id=torch.full((b,), -1, dtype=torch.long),
            families=torch.full((b, self.families), -1.0),
        )
        for row, index in enumerate(indices.tolist()):
            self._place(batch, row, index, columns, rng)
        return batch

    def _place(
        self, batch: Batch, row: int, index: int, columns: int, rng: np.random.Generator
    ) -> None:
        clip = self.clips[index]
        have = clip.columns
        start = int(rng.integers(0, max(1, have - columns + 1)))
        # Whole columns, since targets belong to columns. What precedes the clip is padding, too.
        offset = int(rng.integers(0, columns - have + 1)) if have < columns else 0
        offset = offset if rng.random() < 0.3 else 0
        count = min(have, columns)
        frames = self.read(
            index, "frames", start * COLUMN, min(count * COLUMN, clip.frames - start * COLUMN)
        )
        first = offset * COLUMN
        batch.frames[row, first : first + len(frames)] = torch.from_numpy(frames)
        batch.length[row] = len(frames)
        batch.sound[row, offset : offset + count] = self._tensor(index, "sound", start, count)
        halves = slice(2 * offset, 2 * (offset + count))
        batch.speech[row, halves] = self._tensor(index, "speech", 2 * start, 2 * count)
        if clip.spoken:
            batch.word[row, halves] = self._tensor(index, "word", 2 * start, 2 * count)
        batch.spoken[row] = clip.spoken
        batch.speech_like[row] = clip.kind in SPEECH_KINDS
        labels = clip.phonemes[2 * start : 2 * (start + count)]
        batch.phonemes[row, halves] = torch.from_numpy(labels.astype(np.int64))
        if clip.kind == "word" and have <= columns:
            batch.word_id[row] = clip.word
        if clip.kind == "scene":
            batch.families[row] = 0.0
            batch.families[row, clip.present] = 1.0

    def _tensor(self, index: int, name: str, start: int, size: int) -> Tensor:
        return torch.from_numpy(self.read(index, name, start, size))

    def statistics(self, columns: int = 6000) -> dict[str, Tensor]:
        """Mean and standard deviation of every target, and patches for the first layer's start."""
        rng = np.random.default_rng(0)
        found: dict[str, list[NDArray[np.float32]]] = {name: [] for name in WIDTHS}
        allowed = np.concatenate(list(self.by_kind.values()))
        for index in rng.choice(allowed, columns):
            clip = self.clips[index]
            column = int(rng.integers(clip.columns))
            for name in ("sound", "speech", "word"):
                if name != "word" or clip.spoken:
                    row = column if name == "sound" else 2 * column
                    found[name].append(self.read(index, name, row, 1)[0])
            if clip.frames >= COLUMN:
                start = int(rng.integers(clip.frames - COLUMN + 1))
                found["frames"].append(self.read(index, "frames", start, COLUMN))
        result = {}
        for name in ("sound", "speech", "word"):
            values = np.stack(found[name])
            result[f"{name}_mean"] = torch.from_numpy(values.mean(0))
            result[f"{name}_std"] = torch.from_numpy(values.std(0) + 0.05 * values.std())
        patches = normalise(torch.from_numpy(np.stack(found["frames"])))  # [n, 16, 128]
        result["patches"] = patches.unflatten(2, (8, 16)).permute(0, 2, 3, 1).reshape(-1, 256)
        return result


def _rows(path: Path, width: int) -> NDArray[np.float16]:
    """A shard's array, without a last row that is only half written, [n, width]."""
    count = path.stat().st_size // (2 * width)
    if not count:
        return np.zeros((0, width), np.float16)
    return np.memmap(path, np.float16, "r", shape=(count, width))

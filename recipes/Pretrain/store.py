"""Reading the pool: memory-mapped clips, the statistics of their targets, crops into batches."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pool import COLUMN, IGNORE, WIDTHS
from torch import Tensor

MEAN, STD = -4.2677393, 4.5689974  # AudioSet's, as in AST's feature extractor
PHONEMES = 96
HALF = 0.08  # seconds
SPEECH_KINDS = ("speech", "word", "sentence")


@dataclass
class Batch:
    """B crops of T frames, C = T / 16 columns; raw log-mel, not normalised.

    `frames` [B, T, 128], `length` [B] frames before the padding, `speech_like` [B],
    `sound` [B, C, 512], `speech` [B, 2 C, 384], `word` [B, 2 C, 96] with `spoken` [B],
    `phonemes` [B, 2 C] (255: unknown), `word_id` [B] (-1: none), `families` [B, n] (-1: unknown).
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
    """All clips of a pool folder."""

    def __init__(self, folder: Path, families: int = 27) -> None:
        self.folder, self.families = folder, families
        self.maps: list[dict[str, np.memmap]] = []
        self.clips: list[dict] = []
        spoken_sounds: list[list] = []
        for number, shard in enumerate(sorted(p for p in folder.iterdir() if p.is_dir())):
            self.maps.append({n: _rows(shard / f"{n}.f16", width) for n, width in WIDTHS.items()})
            self._read_index(number, shard, spoken_sounds)
        if not self.clips:
            raise SystemExit(f"the pool {folder} holds no clips: build one with pool.py")
        self.phoneme_ids = self._phoneme_ids(spoken_sounds)
        for clip, sounds in zip(self.clips, spoken_sounds, strict=True):
            clip["phonemes"] = self._phonemes(sounds, clip["columns"])
        self.by_kind: dict[str, np.ndarray] = {}
        for kind in {c["kind"] for c in self.clips}:
            self.by_kind[kind] = np.array(
                [i for i, c in enumerate(self.clips) if c["kind"] == kind and not c["held_out"]]
            )

    def _read_index(self, number: int, shard: Path, spoken_sounds: list[list]) -> None:
        at = dict.fromkeys(WIDTHS, 0)
        with (shard / "clips.jsonl").open() as index, (shard / "phonemes.jsonl").open() as sounds:
            for line, heard in zip(index, sounds, strict=False):
                if not (line.endswith("\n") and heard.endswith("\n")):
                    break
                clip = json.loads(line)
                columns = -(-clip["frames"] // COLUMN)
                sizes = {"frames": clip["frames"], "sound": columns, "speech": 2 * columns}
                sizes["word"] = 2 * columns if clip["spoken"] else 0
                if any(at[n] + s > len(self.maps[number][n]) for n, s in sizes.items()):
                    break
                clip.update(shard=number, columns=columns, at=dict(at))
                self.clips.append(clip)
                spoken_sounds.append(json.loads(heard))
                for name, size in sizes.items():
                    at[name] += size

    def _phoneme_ids(self, spoken_sounds: list[list]) -> dict[str, int]:
        """The commonest phonemes by number; kept, so that a pool that grows keeps its numbers."""
        kept = self.folder / "phonemes.json"
        if not kept.exists():
            named = (p for sounds in spoken_sounds for _, p in sounds if not p.startswith("("))
            common = [p for p, _ in Counter(named).most_common(PHONEMES)]
            kept.write_text(json.dumps(common))
        return {phoneme: i for i, phoneme in enumerate(json.loads(kept.read_text()))}

    def _phonemes(self, sounds: list, columns: int) -> np.ndarray:
        """The phoneme at the middle of each half column [2 C]; 255 where none is known."""
        labels = np.full(2 * columns, IGNORE, np.uint8)
        starts = [t for t, _ in sounds]
        for half in range(2 * columns if sounds else 0):
            where = int(np.searchsorted(starts, (half + 0.5) * HALF)) - 1
            if 0 <= where < len(sounds) - 1:
                labels[half] = self.phoneme_ids.get(sounds[where][1], IGNORE)
        return labels

    def read(self, index: int, name: str, start: int, size: int) -> np.ndarray:
        """Rows `start` to `start + size` of one array of a clip, float32."""
        clip = self.clips[index]
        base = clip["at"][name] + start
        return self.maps[clip["shard"]][name][base : base + size].astype(np.float32)

    def crop(self, indices: np.ndarray, length: int, rng: np.random.Generator) -> Batch:
        """A crop of `length` frames of each clip; a shorter clip is placed at random and padded."""
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
        have = clip["columns"]
        start = int(rng.integers(0, max(1, have - columns + 1)))
        # Whole columns only: the targets are theirs. What lies before the clip is padding, too.
        offset = int(rng.integers(0, columns - have + 1)) if have < columns else 0
        offset = offset if rng.random() < 0.3 else 0
        count = min(have, columns)
        frames = self.read(
            index, "frames", start * COLUMN, min(count * COLUMN, clip["frames"] - start * COLUMN)
        )
        first = offset * COLUMN
        batch.frames[row, first : first + len(frames)] = torch.from_numpy(frames)
        batch.length[row] = len(frames)
        batch.sound[row, offset : offset + count] = self._tensor(index, "sound", start, count)
        halves = slice(2 * offset, 2 * (offset + count))
        batch.speech[row, halves] = self._tensor(index, "speech", 2 * start, 2 * count)
        if clip["spoken"]:
            batch.word[row, halves] = self._tensor(index, "word", 2 * start, 2 * count)
        batch.spoken[row] = clip["spoken"]
        batch.speech_like[row] = clip["kind"] in SPEECH_KINDS
        labels = clip["phonemes"][2 * start : 2 * (start + count)]
        batch.phonemes[row, halves] = torch.from_numpy(labels.astype(np.int64))
        if clip["kind"] == "word" and have <= columns:
            batch.word_id[row] = clip["word"]
        if clip["kind"] == "scene":
            batch.families[row] = 0.0
            batch.families[row, clip["present"]] = 1.0

    def _tensor(self, index: int, name: str, start: int, size: int) -> Tensor:
        return torch.from_numpy(self.read(index, name, start, size))

    def statistics(self, columns: int = 6000) -> dict[str, Tensor]:
        """Mean and standard deviation of every target, and patches for the first layer's start."""
        rng = np.random.default_rng(0)
        found: dict[str, list[np.ndarray]] = {name: [] for name in WIDTHS}
        allowed = np.concatenate(list(self.by_kind.values()))
        for index in rng.choice(allowed, columns):
            clip = self.clips[index]
            column = int(rng.integers(clip["columns"]))
            for name in ("sound", "speech", "word"):
                if name != "word" or clip["spoken"]:
                    row = column if name == "sound" else 2 * column
                    found[name].append(self.read(index, name, row, 1)[0])
            if clip["frames"] >= COLUMN:
                start = int(rng.integers(clip["frames"] - COLUMN + 1))
                found["frames"].append(self.read(index, "frames", start, COLUMN))
        result = {}
        for name in ("sound", "speech", "word"):
            values = np.stack(found[name])
            result[f"{name}_mean"] = torch.from_numpy(values.mean(0))
            result[f"{name}_std"] = torch.from_numpy(values.std(0) + 0.05 * values.std())
        patches = (np.stack(found["frames"]) - MEAN) / (2 * STD)  # [n, 16, 128]
        patches = patches.reshape(-1, COLUMN, 8, 16).transpose(0, 2, 3, 1)
        result["patches"] = torch.from_numpy(patches.reshape(-1, 256).astype(np.float32))
        return result


def _rows(path: Path, width: int) -> np.memmap | np.ndarray:
    """A shard's array as its whole rows [n, width]: the last may be half written."""
    count = path.stat().st_size // (2 * width)
    if not count:
        return np.zeros((0, width), np.float16)
    return np.memmap(path, np.float16, "r", shape=(count, width))

#!/usr/bin/env python
"""Measure feature extraction: first computation, the cache, and memory.

    python tools/bench_features.py [--clips 400] [--rounds 5] [--large 10000]

Prints the clips per second when features are computed into the cache, and when transformers' AST
feature extractor processes the same files. Both times include decoding with soundfile and
resampling with soxr, ours also hashing the files and writing the cache; rounds are interleaved.
Then prints the clips per second read from the cache by the loader that training uses, and the
memory needed for both with 1,000 and with `--large` clips. The clips are noise written to a
temporary folder (5 s, 44.1 kHz WAV).
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import soundfile
import soxr
import torch
from speechbrain.dataio.dataloader import SaveableDataLoader
from transformers import ASTFeatureExtractor

from toolkit.backbones.ast import ASTTiny
from toolkit.data.sampling import TrainingBatches
from toolkit.features.batch import collate
from toolkit.features.dataset import clip_dataset
from toolkit.features.fbank import Fbank

MAX_LENGTH = 500


def write_clips(folder: Path, count: int, rate: int) -> pd.DataFrame:
    """Write distinct clips of 5 s and return their table."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    noise = rng.normal(size=10 * rate).astype(np.float32) * 0.1
    paths = []
    for index in range(count):
        start = rng.integers(5 * rate)
        paths.append(str(folder / f"{index}.wav"))
        soundfile.write(paths[-1], noise[start : start + 5 * rate], rate, subtype="PCM_16")
    labels = np.arange(count) % 10
    return pd.DataFrame({"id": paths, "path": paths, "label": labels, "fold": 1})


def loader(clips: pd.DataFrame, root: Path, build: bool) -> SaveableDataLoader:
    """The loader that training uses."""
    spec = ASTTiny().spec(MAX_LENGTH)
    cache = Fbank().cache(clips, spec, root, build=build)
    rows = pd.Series(range(len(clips)), index=clips["id"])
    dataset = clip_dataset(clips, rows, cache)
    batches = TrainingBatches(len(clips), 32, seed=0)
    return SaveableDataLoader(dataset, batch_sampler=batches, collate_fn=collate(spec))


def timed(function: Callable[[], object]) -> float:
    """Seconds that one call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def first_computation(clips: pd.DataFrame, root: Path, rounds: int) -> tuple[float, float]:
    """Median clips per second when filling the cache, and with transformers' extractor."""
    extractor = ASTFeatureExtractor(max_length=MAX_LENGTH)  # type: ignore[no-untyped-call]
    spec = ASTTiny().architecture(MAX_LENGTH).features

    def extract() -> None:
        for path in clips["path"]:
            samples, rate = soundfile.read(path, dtype="float32")
            waveform = soxr.resample(samples, rate, 16000)
            extractor(waveform, sampling_rate=16000, return_tensors="pt")

    ours, theirs = [], []
    for number in range(rounds + 1):  # the first round is a warm-up
        seconds = timed(partial(Fbank().cache, clips, spec, root / str(number)))
        ours.append(len(clips) / seconds)
        theirs.append(len(clips) / timed(extract))
    ratio = [a / b for a, b in zip(ours[1:], theirs[1:], strict=True)]
    print(f"ratio in each round: {', '.join(f'{r:.2f}' for r in ratio)}")
    return statistics.median(ours[1:]), statistics.median(theirs[1:])


def cached_epochs(clips: pd.DataFrame, root: Path, rounds: int) -> float:
    """Median clips per second read from the cache by the training loader."""
    batches = loader(clips, root, build=True)

    def epoch() -> None:
        for batch in batches:
            assert len(batch)

    rates = [len(clips) / timed(epoch) for _ in range(rounds + 1)]
    return statistics.median(rates[1:])


def memory(folder: Path, count: int) -> None:
    """Build a cache, read one epoch and print the memory used as JSON; runs in its own process."""
    torch.set_num_threads(1)
    clips = write_clips(folder / "audio", count, 16000)
    before = resident()
    batches = loader(clips, folder / "cache", build=True)
    built = resident()
    peak = 0.0
    for batch in batches:
        assert len(batch)
        peak = max(peak, resident())
    print(json.dumps({"start": before, "built": built, "epoch": peak}))


def resident() -> float:
    """Current resident memory of this process in MiB."""
    return psutil.Process().memory_info().rss / 2**20


def main() -> None:
    """Run all measurements and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clips", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--large", type=int, default=10_000)
    parser.add_argument("--memory", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        memory(options.folder, options.memory)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        clips = write_clips(folder / "audio", options.clips, 44100)
        ours, theirs = first_computation(clips, folder / "caches", options.rounds)
        cached = cached_epochs(clips, folder / "cache", options.rounds)
    rows = {}
    for count in (1000, options.large):
        with tempfile.TemporaryDirectory() as scratch:
            command = [sys.executable, __file__, "--memory", str(count), "--folder", scratch]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            rows[count] = json.loads(output.splitlines()[-1])
    print(f"first computation     {ours:8.0f} clips/s")
    print(f"AST feature extractor {theirs:8.0f} clips/s   ratio {ours / theirs:.2f} (target: 1.8)")
    print(f"from the cache        {cached:8.0f} clips/s   (target: 3000)")
    for count, row in rows.items():
        text = "   ".join(f"{name} {value:.0f} MiB" for name, value in row.items())
        print(f"resident memory, {count:>6} clips: {text}")


if __name__ == "__main__":
    main()

#!/usr/bin/env python
"""Measure how soon a command does its work, and how fast many files are predicted.

    python tools/bench_startup.py [--rounds 5] [--files 500] [--minutes 20] [--backbone ast_tiny]

Four things, with interleaved rounds and medians:

- from the command `toolkit predict` on one file to its end, beside `import torch, transformers`
  (bar: one second more);
- from the command of a recipe to its first training batch, with the features in the cache (bar:
  8 s);
- predictions of many files of 5 s per second, beside the model alone on batches of rows that are
  in memory (bar: 0.9 of it), and by how much a tenth of the files, and then all of them, raise the
  peak of memory;
- the same for a recording of a tenth of `--minutes`, and then of `--minutes`.

Files are noise in a temporary folder (44.1 kHz WAV); the bundle is an untrained linear probe.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import torch

import toolkit
from toolkit.bundle import Bundle
from toolkit.inference.clips import read_clips
from toolkit.system import peak_memory

ROOT = Path(__file__).resolve().parents[1]
RATE, SECONDS, BATCH = 44_100, 5, 16
FIRST_BATCH = """
import os, runpy, sys
from toolkit.training.brain import ClassificationBrain
ClassificationBrain.fit_batch = lambda *arguments: os._exit(0)
recipe = sys.argv[1]
sys.argv = sys.argv[1:]
runpy.run_path(recipe, run_name="__main__")
"""
"""Runs a recipe up to its first batch."""


def write_noise(file: Path, seconds: float, seed: int = 0) -> None:
    """Write a sound, in pieces."""
    rng = np.random.default_rng(seed)
    with soundfile.SoundFile(file, "w", RATE, 1, "PCM_16") as sound:
        for _ in range(round(seconds)):
            sound.write(rng.normal(size=RATE).astype(np.float32) * 0.1)


def make_bundle(folder: Path, backbone: str) -> Path:
    """An untrained linear probe."""
    frozen = toolkit.load_backbone(backbone, max_length=100 * SECONDS)
    model = toolkit.adapt(frozen, "linear_probe", num_classes=50)
    classes = [str(number) for number in range(50)]
    toolkit.save_bundle(folder, model.eval(), classes, "one_class")
    return folder


def timed(function: Callable[[], object]) -> float:
    """Seconds that one call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def run(*words: object) -> None:
    """Run Python in a new process, quietly."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, *map(str, words)]
    subprocess.run(command, check=True, env=environment, capture_output=True)


def commands(bundle: Path, scratch: Path, rounds: int) -> None:
    """Print how soon commands end or begin to train."""
    file, recipe = scratch / "one.wav", ROOT / "recipes" / "ESC50" / "train.py"
    write_noise(file, SECONDS)
    train = [FIRST_BATCH, recipe, "hparams/linear.yaml", "--cache_folder", scratch / "cache"]
    train += ["--overwrite", "True", "--noprogressbar", "True", "--output_folder", scratch / "run"]
    run("-c", *train)  # fills the cache
    base, predict, first = [], [], []
    for _ in range(rounds):
        base.append(timed(lambda: run("-c", "import torch, transformers")))
        predict.append(timed(lambda: run("-m", "toolkit", "predict", bundle, file)))
        first.append(timed(lambda: run("-c", *train)))
    more = statistics.median(p - b for p, b in zip(predict, base, strict=True))
    print(f"import torch, transformers  {statistics.median(base):6.2f} s")
    print(f"toolkit predict, one file   {statistics.median(predict):6.2f} s   (+{more:.2f} s)")
    print(f"train.py to its first batch {statistics.median(first):6.2f} s")


def throughput(bundle: Bundle, scratch: Path, files: int, rounds: int) -> None:
    """Print how fast many files are predicted, and the memory that it takes."""
    paths = [scratch / f"{number}.wav" for number in range(files)]
    for number, path in enumerate(paths):
        write_noise(path, SECONDS, number)
    rows, lengths = read_clips(paths[:BATCH], bundle.model.backbone)
    batches = -(-files // BATCH)

    @torch.inference_mode()
    def model_alone() -> None:
        for _ in range(batches):
            bundle.model.logits(rows, lengths)

    few = added_memory(lambda: predict_all(bundle, paths[: files // 10]))
    all_of_them = added_memory(lambda: predict_all(bundle, paths))
    ours, theirs = [], []
    for _ in range(rounds):
        theirs.append(batches * BATCH / timed(model_alone))
        ours.append(files / timed(lambda: predict_all(bundle, paths)))
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    print(f"the model alone             {statistics.median(theirs):6.0f} clips/s")
    print(f"{files} files of {SECONDS} s {statistics.median(ours):13.0f} clips/s ({ratio:.2f})")
    print(f"memory: {files // 10} files +{few:.0f} MiB, {files} files +{all_of_them:.0f} MiB")


def long_recording(bundle: Bundle, scratch: Path, minutes: float) -> None:
    """Print the memory that a long recording takes."""
    found = []
    for length in (minutes / 10, minutes):
        path = scratch / "long.wav"
        write_noise(path, 60 * length)
        found.append((length, added_memory(lambda: predict_all(bundle, [path]))))  # noqa: B023
    print("memory: " + ", ".join(f"{length:g} minutes +{mib:.0f} MiB" for length, mib in found))


def predict_all(bundle: Bundle, paths: list[Path]) -> None:
    """Predict, and keep nothing."""
    for prediction in toolkit.predict(bundle, paths, batch_size=BATCH):
        assert prediction.label


def added_memory(function: Callable[[], object]) -> float:
    """MiB by which a call raises the peak of this process."""
    before = peak_memory()
    function()
    return (peak_memory() - before) / 2**20


def main() -> None:
    """Measure everything."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--files", type=int, default=500)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--backbone", default="ast_tiny")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        place = make_bundle(scratch / "bundle", options.backbone)
        commands(place, scratch, options.rounds)
        bundle = toolkit.load_bundle(place)
        throughput(bundle, scratch, options.files, options.rounds)
        long_recording(bundle, scratch, options.minutes)


if __name__ == "__main__":
    main()

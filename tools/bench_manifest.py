#!/usr/bin/env python
"""Measure start-up, an epoch from the cache, and memory with 1,000 and with 100,000 clips.

    python tools/bench_manifest.py [--clips 100000] [--files 100]

The corpus is a generated `clips.csv` for recipes/YourSounds with ten classes, whose clips are spans
of 0.2 s from a few WAV files. A separate process runs the recipe's code up to the first training
batch (start-up: imports, table, leak checks, features), then reads one epoch from the training
loader without a model. It runs twice: the first run computes the features, and the second one,
which is the one reported, finds them in the cache. The memory reported is the resident memory at
the first batch and its maximum during the epoch.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import soundfile

from toolkit.training.experiment import Experiment
from toolkit.training.folds import Fold, Job
from toolkit.training.output import OutputFolder

RECIPE = Path(__file__).resolve().parent.parent / "recipes" / "YourSounds" / "train.py"
RATE, SPAN, CLASSES, SMALL = 16000, 0.2, 10, 1000


def write_corpus(folder: Path, clips: int, files: int) -> None:
    """Write files of noise and a table of `clips` spans of them.

    Eight files in ten are for training, one for validation and one for testing; every part has
    clips of every class.
    """
    folder.mkdir(parents=True)
    spans = -(-clips // files)
    rng = np.random.default_rng(0)
    tables = []
    for number in range(files):
        noise = rng.normal(size=round(spans * SPAN * RATE)).astype(np.float32) * 0.1
        soundfile.write(folder / f"{number}.wav", noise, RATE, subtype="PCM_16")
        start = (np.arange(spans) * SPAN).round(3)
        tables.append(
            pd.DataFrame(
                {
                    "path": f"{number}.wav",
                    "label": [f"class {n % CLASSES}" for n in range(spans)],
                    "split": {8: "valid", 9: "test"}.get(number % 10, "train"),
                    "start": start,
                    "stop": (start + SPAN).round(3),
                }
            )
        )
    pd.concat(tables).iloc[:clips].to_csv(folder / "clips.csv", index=False)


def look(arguments: list[str], began: float) -> None:
    """Start as the recipe does, read one epoch and print JSON; runs in its own process."""
    experiment = Experiment.from_command_line(str(RECIPE), arguments)
    with OutputFolder(experiment.output_folder, experiment.configuration, fresh=True) as output:
        manifest = experiment.manifest()
        job = Job.of(experiment, manifest, output)
    fold = Fold(job, job.splits[0])
    loader = fold.evaluation_loader(fold.train)
    next(iter(loader))
    startup, first = time.time() - began, resident()
    start, peak, clips = time.perf_counter(), first, 0
    for number, batch in enumerate(loader):
        clips += len(batch)
        if number % 100 == 0:
            peak = max(peak, resident())
    seconds = time.perf_counter() - start
    print(
        json.dumps(
            {
                "clips": len(manifest.clips),
                "startup_seconds": startup,
                "clips_per_second": clips / seconds,
                "first_batch_mib": first,
                "epoch_mib": max(peak, resident()),
            }
        )
    )


def resident() -> float:
    """Memory of this process now that no other has, MiB: without pages of files (the cache's)."""
    memory = psutil.Process().memory_info()
    return (memory.rss - memory.shared) / 2**20


def measured(folder: Path, cache: Path) -> dict[str, float]:
    """What `look` measures in a fresh process."""
    arguments = ["hparams/linear.yaml", "--data_folder", str(folder), "--backbone", "ast_tiny"]
    arguments += ["--max_length", "32", "--cache_folder", str(cache)]
    arguments += ["--output_folder", str(cache / "output")]
    began = repr(time.time())
    command = [sys.executable, __file__, "--look", began, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Write both corpora, measure each of them twice and print the table."""
    if sys.argv[1:2] == ["--look"]:
        look(sys.argv[3:], float(sys.argv[2]))
        return
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clips", type=int, default=100_000)
    parser.add_argument("--files", type=int, default=100)
    options = parser.parse_args()
    print(f"{'clips':>8} {'first start':>12} {'start-up':>9} {'cached clips/s':>15} "
          f"{'MiB at start':>13} {'in an epoch':>13}")  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        for clips in (SMALL, options.clips):
            folder, cache = Path(scratch) / str(clips), Path(scratch) / f"cache-{clips}"
            write_corpus(folder, clips, options.files)
            computing, found = measured(folder, cache), measured(folder, cache)
            print(f"{found['clips']:8,} {computing['startup_seconds']:10.1f} s "
                  f"{found['startup_seconds']:7.1f} s {found['clips_per_second']:15,.0f} "
                  f"{found['first_batch_mib']:13,.0f} {found['epoch_mib']:13,.0f}",
                  flush=True)  # fmt: skip


if __name__ == "__main__":
    main()

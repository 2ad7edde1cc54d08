#!/usr/bin/env python
"""Measure a whole job, from the first decoded clip to the last test prediction, beside
Hugging Face's Trainer.

    python tools/bench_job.py --data ../shared/data/ESC-50 [--backbone ast_tiny | base]
                              [--jobs trainer,lora,...] [--clips N] [--epochs 5] [--rounds 2]
                              [--seconds 3000] [--output docs/results/speed/jobs.csv]

LoRA of rank 6 on queries and values is trained on three official folds of ESC-50, the epoch is
chosen on the fourth and tested on the fifth, without augmentation, with the same backbone, clips,
epochs, batch size and schedule. `trainer` is PEFT's LoRA on transformers' Trainer as its example
for audio classification reads clips (features whenever a clip is read), `trainer_once` the same
with features computed once; they need `pip install peft accelerate`. All others are commands of
the recipe, from an empty cache, with the options in `JOBS`. Each job runs in its own process;
rounds are interleaved (A B C A B C ...). Every finished job is a line of the output, so the same
command continues where `--seconds` or an interruption ended it.

`base` is the architecture of AST-base with random weights: its times mean something, its accuracies
do not. `--clips` takes the first clips of every class in every fold, for a short job.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

import toolkit
from toolkit.data.manifest import Manifest
from toolkit.data.splits import selected
from toolkit.errors import ToolkitError
from toolkit.registry import CORPORA
from toolkit.results import read_run
from toolkit.training.experiment import main

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "recipes" / "ESC50" / "train.py"
FRAMES, BATCH, LR, SEED, FOLD = 500, 16, 0.005, 1, 1
DEPTH = {"ast_tiny": 6, "base": 12}
LAST_3 = ["--peft.layers", "last 3"]
JOBS: dict[str, list[str]] = {
    "lora": ["--reuse", "off"],
    "lora, patchout": ["--reuse", "off", "--patchout", "0.5"],
    "lora, last 3 blocks": ["--reuse", "off", *LAST_3],
    "lora, last 3 blocks, reuse": ["--reuse", "auto", *LAST_3],
    "lora, last 3 blocks, reuse, patchout": [
        "--reuse", "auto", *LAST_3, "--patchout.share", "0.5", "--patchout.block", "FIRST",
    ],
}  # fmt: skip
"""Name of a job -> further options of the command; FIRST is the first block that trains."""
RIVALS = {"trainer": "each_epoch", "trainer_once": "once"}
COLUMNS = ["backbone", "clips", "epochs", "job", "round", "seconds", "accuracy"]


def backbone_folder(name: str, folder: Path) -> Path:
    """The backbone that all jobs load, saved at the length of the clips."""
    if name == "ast_tiny":
        toolkit.load_backbone("ast_tiny", max_length=FRAMES).model.save_pretrained(folder)
    else:
        torch.manual_seed(SEED)
        ASTModel(ASTConfig(max_length=FRAMES)).save_pretrained(folder)
    ASTFeatureExtractor(max_length=FRAMES).save_pretrained(folder)
    return folder


def subset(data: Path, clips: int | None, folder: Path) -> Path:
    """A copy of ESC-50's layout with the first clips of every class in every fold."""
    if clips is None:
        return data
    table = pd.read_csv(data / "meta" / "esc50.csv")
    table = table.groupby(["fold", "target"]).head(clips)
    (folder / "meta").mkdir(parents=True)
    table.to_csv(folder / "meta" / "esc50.csv", index=False)
    (folder / "audio").symlink_to((data / "audio").resolve())
    return folder


def rival(job: str, manifest: Manifest, backbone: Path, epochs: int, folder: Path) -> float:
    """Run the Trainer's job in a process of its own; its test accuracy."""
    [split] = selected(manifest.splits, [FOLD])
    parts = {"train": split.train, "valid": [split.valid], "test": [split.test]}
    clips = {part: manifest.of_folds(folds) for part, folds in parts.items()}
    rows = {
        part: list(zip(table["path"], table["label"].tolist(), strict=True))
        for part, table in clips.items()
    }
    request = {
        "backbone": str(backbone), "classes": len(manifest.classes), "epochs": epochs,
        "batch_size": BATCH, "lr": LR, "seed": SEED, "features": RIVALS[job],
        "output": str(folder / "trainer"),
        **rows,
    }  # fmt: skip
    file = folder / "job.json"
    file.write_text(json.dumps(request))
    _run([str(ROOT / "tools" / "trainer_job.py"), str(file)])
    return float(json.loads(file.with_suffix(".result").read_text())["accuracy"])


def ours(job: str, data: Path, backbone: Path, depth: int, epochs: int, folder: Path) -> float:
    """Run the recipe's command from an empty cache; the test accuracy."""
    options = {
        "data_folder": data, "backbone": backbone, "max_length": FRAMES, "epochs": epochs,
        "batch_size": BATCH, "lr": LR, "seed": SEED, "folds": FOLD, "augment": "[]",
        "cache_folder": folder / "cache", "output_folder": folder / "run", "noprogressbar": "true",
    }  # fmt: skip
    words = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    further = [word.replace("FIRST", str(depth - 3)) for word in JOBS[job]]
    _run([str(RECIPE), "hparams/lora.yaml", *words, *further])
    return read_run(folder / "run").score.mean


def _run(command: Sequence[str]) -> None:
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    if done.returncode:
        raise ToolkitError(f"{command[0]} failed: {(done.stdout + done.stderr).strip()[-600:]}")


def measured(arguments: argparse.Namespace) -> None:
    """Run what is not yet in the output, and write a line after each job."""
    names = arguments.jobs.split(",") if arguments.jobs else [*RIVALS, *JOBS]
    unknown = [name for name in names if name not in {**RIVALS, **JOBS}]
    if unknown:
        raise ToolkitError(f"no such job: {unknown[0]} (known: {', '.join([*RIVALS, *JOBS])})")
    output, begin = Path(arguments.output), time.monotonic()
    output.parent.mkdir(parents=True, exist_ok=True)
    table = pd.read_csv(output) if output.is_file() else pd.DataFrame(columns=COLUMNS)
    size = arguments.clips or 0
    with tempfile.TemporaryDirectory() as place:
        backbone = backbone_folder(arguments.backbone, Path(place, "backbone"))
        data = subset(Path(arguments.data), arguments.clips, Path(place, "data"))
        manifest = CORPORA.create("esc50").manifest(data)
        for number in range(arguments.rounds):
            for name in names:
                key = (arguments.backbone, size, arguments.epochs, name, number)
                if key in set(table[COLUMNS[:5]].itertuples(index=False, name=None)):
                    continue
                if time.monotonic() - begin > arguments.seconds:
                    print("time is up: the same command continues")
                    return
                with tempfile.TemporaryDirectory() as work:
                    started = time.perf_counter()
                    if name in RIVALS:
                        score = rival(name, manifest, backbone, arguments.epochs, Path(work))
                    else:
                        depth = DEPTH[arguments.backbone]
                        score = ours(name, data, backbone, depth, arguments.epochs, Path(work))
                    seconds = time.perf_counter() - started
                table.loc[len(table)] = [*key, round(seconds, 1), round(score, 4)]
                table.to_csv(output, index=False)
                print(f"{name}: {seconds:.0f} s, accuracy {100 * score:.1f} %", flush=True)
    wanted = table[(table.backbone == arguments.backbone) & (table.clips == size)]
    times = wanted[wanted.epochs == arguments.epochs].groupby("job").seconds.median()
    first = times.get("trainer", times.iloc[0])
    for name in (name for name in names if name in times):
        print(f"{name:40} {times[name]:8.1f} s  {times[name] / first:5.2f}")


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="folder of ESC-50")
    parser.add_argument("--backbone", choices=["ast_tiny", "base"], default="ast_tiny")
    parser.add_argument("--jobs", default="", help="some of the jobs; default: all")
    parser.add_argument("--clips", type=int, help="clips per class and fold; default: all")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=3000, help="start no job after this")
    parser.add_argument("--output", default="docs/results/speed/jobs.csv")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main(lambda arguments: measured(parsed(arguments)))

#!/usr/bin/env python
"""Measure a training step of each method: seconds a clip and peak memory.

    python tools/bench_step.py [METHOD[:setting=value,...] ...] [--rounds 3] [--batch 4]

Without methods: every registered one, and Soft-MoA with 1, 7 and 15 experts. The backbone has
AST-base's architecture (500 frames, 50 classes) with random weights, saved to a temporary folder
and loaded as any local checkpoint. Every measurement has a process of its own; rounds are
interleaved (A B C A B C ...), and medians and ratios to the first method are printed.
`--backbone ast_tiny` measures the embedded backbone instead.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict

import torch
from torch.nn import functional
from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

from toolkit import backbones, plugins
from toolkit.model import AudioClassifier
from toolkit.registry import PEFT, parse_spec

FRAMES, CLASSES = 500, 50


def measure(spec: str, backbone: str, batch: int, steps: int) -> dict[str, float]:
    """In this process: one step to warm up, then the fastest of `steps`."""
    torch.manual_seed(0)
    source = backbones.create({"name": backbone})
    model = AudioClassifier(
        source.load(FRAMES), PEFT.create(parse_spec(spec), "peft"), CLASSES, "all"
    )
    optimizer = torch.optim.AdamW(model.method.parameter_groups(model.trainable(), lr=1e-3))
    bins = model.backbone.features.mel_bins
    features, labels = torch.randn(batch, FRAMES, bins), torch.arange(batch) % CLASSES
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model.train()
    seconds = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        functional.cross_entropy(model(features), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    return {
        "seconds": min(seconds[1:]) / batch,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "loaded": loaded / 2**20,
        "trained": model.count().method,
    }


def main() -> None:
    """Measure in interleaved rounds and print a table."""
    plugins.load()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("methods", nargs="*")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--backbone", default="")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        found = measure(options.methods[0], options.backbone, options.batch, options.steps)
        print(json.dumps(found))
        return
    specs = options.methods or [
        *(f"soft_moa:num_experts={n}" for n in (1, 7, 15)),
        *(name for name in PEFT.names() if name != "soft_moa"),
    ]
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        backbone = options.backbone or folder
        if not options.backbone:
            ASTModel(ASTConfig()).save_pretrained(folder)
            ASTFeatureExtractor().save_pretrained(folder)
        for number in range(options.rounds):
            for spec in specs:
                print(f"round {number + 1}/{options.rounds}: {spec}", file=sys.stderr)
                command = [sys.executable, __file__, spec, "--child", "--backbone", backbone]
                command += ["--batch", str(options.batch), "--steps", str(options.steps)]
                run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                found[spec].append(json.loads(run.stdout.splitlines()[-1]))
    print("| method | parameters trained | s a clip | ratio | peak GiB |")
    print("|---|---|---|---|---|")
    for spec in specs:
        pairs = zip(found[spec], found[specs[0]], strict=True)
        ratio = statistics.median(a["seconds"] / b["seconds"] for a, b in pairs)
        seconds = statistics.median(row["seconds"] for row in found[spec])
        peak = statistics.median(row["peak"] for row in found[spec])
        trained = int(found[spec][0]["trained"])
        print(f"| {spec} | {trained:,} | {seconds:.3f} | {ratio:.2f} | {peak:.2f} |")


if __name__ == "__main__":
    main()

#!/usr/bin/env python
"""Measure how the time of a training step grows with the experts of a mixture: 4, 16 and 64.

    python tools/bench_experts.py [METHOD ...] [--rounds 5] [--batch 8]

The backbone is the embedded small AST (width 192, six blocks), with a mixture at every attention
layer and experts of inner width 8. A step is the training step of the method itself (THOR's has two
passes), with its losses, backward pass and optimiser step. Rounds are interleaved: each round
measures every method with every number of experts once and keeps the fastest of `--steps` steps.
The table shows medians over the rounds, and medians of the ratios to four experts within a round.
"""

import argparse
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

from toolkit import backbones, plugins
from toolkit.errors import did_you_mean
from toolkit.features.spec import FbankSpec
from toolkit.model import AudioClassifier
from toolkit.registry import PEFT
from toolkit.task import ONE_CLASS, BatchObjective

EXPERTS = (4, 16, 64)
FRAMES, CLASSES, DEPTH, WIDTH, REDUCTION = 248, 10, 6, 8, 24
SIZED = {"placement": "mhsa", "reduction": REDUCTION}
MIXTURES: dict[str, Callable[[int], dict[str, Any]]] = {
    "dense_moa": lambda n: {"name": "dense_moa", "num_experts": n, **SIZED},
    "soft_moa": lambda n: {"name": "soft_moa", "num_experts": n, **SIZED},
    "softmoe_norm": lambda n: {
        "name": "soft_moa", "num_experts": n, "normalize": True, "slots": 4, **SIZED,
    },
    "topk_moa": lambda n: {"name": "topk_moa", "num_experts": n, "k": 2, **SIZED},
    "dynmoe": lambda n: {"name": "dynmoe", "n_init": n, "n_max": n, "adapt_every": 0, **SIZED},
    "thor": lambda n: {"name": "thor", "num_experts": n, **SIZED},
    "mumoe": lambda n: {
        "name": "mumoe", "num_experts": n, "placement": "mhsa", "bottleneck": WIDTH,
    },
    "peer": lambda n: {
        "name": "peer", "n_keys": round(n**0.5), "heads": 4, "topk": 4, "placement": "mhsa",
    },
    "automoe": lambda n: {
        "name": "automoe",
        "genome": [{"site": "mhsa", "ranks": [WIDTH] * n, "topk": 2}] * DEPTH,
    },
}  # fmt: skip
"""Settings of each method for a number of experts; `softmoe_norm` is as in its recipe."""


def measure(config: dict[str, Any], batch: int, steps: int) -> float:
    """Seconds per training step: the fastest of `steps` steps after one warm-up step."""
    torch.manual_seed(0)
    backbone = backbones.create({"name": "ast_tiny"}).load(FRAMES)
    model = AudioClassifier(backbone, PEFT.create(config), CLASSES, "all").train()
    method = model.method
    optimizer = torch.optim.AdamW(method.parameter_groups(model.trainable(), lr=1e-3))
    assert isinstance(backbone.features, FbankSpec)
    features = torch.randn(batch, FRAMES, backbone.features.mel_bins)
    labels = torch.arange(batch) % CLASSES

    objective = BatchObjective(ONE_CLASS, ONE_CLASS.targets(labels, CLASSES))

    seconds = []
    for step in range(steps + 1):
        start = time.perf_counter()
        losses = method.training_losses(backbone, model, features, objective)
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        method.on_step(backbone, optimizer, step + 1, steps + 1)
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def main() -> None:
    """Measure in interleaved rounds and print a table."""
    plugins.load()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("methods", nargs="*", help=f"any of {', '.join(MIXTURES)} (default: all)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3)
    options = parser.parse_args()
    for name in options.methods:
        if name not in MIXTURES:
            parser.error(f"'{name}' is not one of the mixtures{did_you_mean(name, MIXTURES)}")
    names = options.methods or list(MIXTURES)
    found: dict[tuple[str, int], list[float]] = defaultdict(list)
    for number in range(options.rounds):
        for name in names:
            print(f"round {number + 1}/{options.rounds}: {name}", file=sys.stderr)
            for experts in EXPERTS:
                seconds = measure(MIXTURES[name](experts), options.batch, options.steps)
                found[name, experts].append(seconds)
    few, *more = EXPERTS
    print(f"| ms per step of {options.batch} clips |" + "".join(f" {n} experts |" for n in EXPERTS)
          + "".join(f" {n} to {few} |" for n in more))  # fmt: skip
    print("|---|" + "---|" * (len(EXPERTS) + len(more)))
    for name in names:
        medians = [f"{1000 * statistics.median(found[name, n]):.0f}" for n in EXPERTS]
        ratios = [f"{_median_ratio(found[name, n], found[name, few]):.2f}" for n in more]
        print(f"| {' | '.join([name, *medians, *ratios])} |")


def _median_ratio(above: list[float], below: list[float]) -> float:
    """Median over rounds of the ratio of two measurements."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


if __name__ == "__main__":
    main()

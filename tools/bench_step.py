#!/usr/bin/env python
"""Measure training steps: seconds per clip, peak memory, and speed relative to the floor.

    python tools/bench_step.py [METHOD[:setting=value,...] ...] [--rounds 3] [--batch 4]
    python tools/bench_step.py --papers       the papers' methods beside other implementations

By default, every registered method is measured, and Soft-MoA with 1, 7 and 15 experts. Two further
names are accepted: `hf_lora` (LoRA from Hugging Face PEFT on the stock model; `pip install peft`)
and `loop:METHOD` (a mixture whose experts run one after the other). The backbone has the
architecture of AST-base (500 frames, 50 classes) with random weights, saved to a temporary folder
and loaded like any local checkpoint; `--backbone ast_tiny` measures the embedded backbone instead.
Every measurement runs in its own process, rounds are interleaved (A B C A B C ...), and medians and
the ratios to the first method and to the floor are printed. The floor is the time of the matrix
products that every method on a frozen backbone needs, at the speed of this machine.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict

import torch
from rivals import HuggingFaceLoRA, floor_seconds, loop_over_experts
from torch import nn
from torch.nn import functional
from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

from toolkit import backbones, plugins
from toolkit.config import parse_spec
from toolkit.features.spec import FbankSpec
from toolkit.model import AudioClassifier
from toolkit.registry import PEFT
from toolkit.system import peak_memory

FRAMES, CLASSES = 500, 50
FLOOR = "floor"
PAPERS = [
    "lora", "hf_lora", "adapter", "soft_moa:num_experts=7", "loop:soft_moa:num_experts=7",
    "dense_moa:num_experts=7", "dense_moa:num_experts=15", "loop:dense_moa:num_experts=7",
]  # fmt: skip


def build(spec: str, backbone: str) -> nn.Module:
    """The classifier for a method, or another implementation to compare it with."""
    if spec == "hf_lora":
        return HuggingFaceLoRA(backbone, FRAMES, CLASSES)
    looped = spec.startswith("loop:")
    method = PEFT.create(parse_spec(spec.removeprefix("loop:"), PEFT))
    frozen = backbones.create({"name": backbone}).load(FRAMES)
    model = AudioClassifier(frozen, method, CLASSES, "all")
    return loop_over_experts(model) if looped else model


def measure(spec: str, backbone: str, batch: int, steps: int) -> dict[str, float]:
    """Measure in this process: the fastest of `steps` steps after one warm-up step."""
    torch.manual_seed(0)
    frozen = backbones.create({"name": backbone}).architecture(FRAMES)
    if spec == FLOOR:
        assert frozen.grid is not None
        tokens = frozen.prefix_tokens + frozen.grid[0] * frozen.grid[1]
        seconds = floor_seconds(frozen.model.config, tokens, batch)
        return {"seconds": seconds / batch, "peak": 0.0, "trained": 0}
    model = build(spec, backbone)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters)
    assert isinstance(frozen.features, FbankSpec)
    features = torch.randn(batch, FRAMES, frozen.features.mel_bins)
    labels = torch.arange(batch) % CLASSES
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
        "peak": peak_memory() / 2**30,
        "trained": sum(p.numel() for p in parameters)
        - sum(p.numel() for p in model.get_submodule("head").parameters()),
    }


def main() -> None:
    """Measure in interleaved rounds and print a table."""
    plugins.load()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("methods", nargs="*")
    parser.add_argument("--papers", action="store_true", help=f"measure {', '.join(PAPERS)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--backbone", default="")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        measured = measure(options.methods[0], options.backbone, options.batch, options.steps)
        print(json.dumps(measured))
        return
    specs = options.methods or (PAPERS if options.papers else _everything())
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        backbone = options.backbone or folder
        if not options.backbone:
            ASTModel(ASTConfig()).save_pretrained(folder)
            ASTFeatureExtractor().save_pretrained(folder)  # type: ignore[no-untyped-call]
        for number in range(options.rounds):
            for spec in (FLOOR, *specs):
                print(f"round {number + 1}/{options.rounds}: {spec}", file=sys.stderr)
                command = [sys.executable, __file__, spec, "--child", "--backbone", backbone]
                command += ["--batch", str(options.batch), "--steps", str(options.steps)]
                run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                found[spec].append(json.loads(run.stdout.splitlines()[-1]))
    print("| method | parameters trained | s per clip | vs. the first | vs. the floor | peak GiB |")
    print("|---|---|---|---|---|---|")
    for spec in (FLOOR, *specs):
        seconds = statistics.median(row["seconds"] for row in found[spec])
        first = _median_ratio(found[spec], found[specs[0]])
        floor = _median_ratio(found[FLOOR], found[spec])
        peak = statistics.median(row["peak"] for row in found[spec])
        trained = int(found[spec][0]["trained"])
        print(f"| {spec} | {trained:,} | {seconds:.3f} | {first:.2f} | {floor:.0%} | {peak:.2f} |")


def _everything() -> list[str]:
    soft = [f"soft_moa:num_experts={n}" for n in (1, 7, 15)]
    return [*soft, *(name for name in PEFT.names() if name != "soft_moa")]


def _median_ratio(above: list[dict[str, float]], below: list[dict[str, float]]) -> float:
    """Median over rounds of the ratio of two methods' times."""
    return statistics.median(a["seconds"] / b["seconds"] for a, b in zip(above, below, strict=True))


if __name__ == "__main__":
    main()

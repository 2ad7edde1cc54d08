#!/usr/bin/env python
"""Measure training steps: seconds per clip, peak memory, and speed relative to the floor.

    python tools/bench_step.py [METHOD[:setting=value,...][@condition+...] ...] [--rounds 3]
    python tools/bench_step.py --papers       the papers' methods beside other implementations
    python tools/bench_step.py --speed        LoRA under every condition, beside Hugging Face PEFT
    python tools/bench_step.py --speed --device cuda --batch 32

By default, every registered method is measured, and Soft-MoA with 1, 7 and 15 experts. Two further
names are accepted: `hf_lora` (LoRA from Hugging Face PEFT on the stock model; `pip install peft`)
and `loop:METHOD` (a mixture whose experts run one after the other).

Conditions stand behind an `@`, joined by `+`: `bf16`, `compile`, `int8` (weights of the backbone)
and `depth=K` (its first K blocks), as in `lora@bf16+depth=6`.

The backbone has the architecture of AST-base (500 frames, 50 classes) with random weights, saved to
a temporary folder and loaded like any local checkpoint; `--backbone ast_tiny` measures the embedded
backbone instead. Every measurement runs in its own process, rounds are interleaved (A B C A B C
...), and medians and the ratios to the first method and to the floor are printed. The floor is the
time of the matrix products in float32 that every method on a frozen backbone needs, at the speed of
this machine.
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from typing import Any

import torch
from rivals import HuggingFaceLoRA, floor_seconds, loop_over_experts, wait
from torch import nn
from torch.nn import functional
from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

from toolkit import backbones, plugins
from toolkit.backbones.base import Backbone
from toolkit.config import parse_spec
from toolkit.errors import ConfigError
from toolkit.features.spec import FbankSpec
from toolkit.model import AudioClassifier
from toolkit.registry import PEFT
from toolkit.system import peak_memory

FRAMES, CLASSES = 500, 50
FLOOR, WARM_UP = "floor", 2
PAPERS = [
    "lora", "hf_lora", "adapter", "soft_moa:num_experts=7", "loop:soft_moa:num_experts=7",
    "dense_moa:num_experts=7", "dense_moa:num_experts=15", "loop:dense_moa:num_experts=7",
]  # fmt: skip


SPEED = [
    "lora", "lora@bf16", "lora@compile", "lora@bf16+compile", "lora@int8", "lora@depth=6",
    "hf_lora", "hf_lora@bf16", "hf_lora@bf16+compile",
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Conditions:
    """How a method is measured: what stands behind the `@` of a row.

    Attributes:
        bf16: compute in bfloat16 where autocast does.
        compile: with `torch.compile`.
        int8: the backbone's frozen weights in int8.
        depth: blocks of the backbone; 0: all.
    """

    bf16: bool = False
    compile: bool = False
    int8: bool = False
    depth: int = 0

    @classmethod
    def of(cls, text: str) -> "Conditions":
        """Read `bf16+depth=6`.

        Raises:
            ConfigError: no such condition.
        """
        known = {field.name: field.type for field in dataclasses.fields(cls)}
        values: dict[str, Any] = {}
        for part in text.split("+") if text else ():
            name, _, value = part.partition("=")
            if name not in known or (known[name] is int) != value.isdigit():
                wanted = ", ".join(f"{n}=N" if kind is int else n for n, kind in known.items())
                raise ConfigError(f"there is no condition '{part}' (known: {wanted})")
            values[name] = int(value) if value else True
        return cls(**values)

    def backbone(self, name: str) -> Backbone:
        """The frozen backbone of a name or folder under these conditions."""
        settings = {"weights": "int8" if self.int8 else "float32", "depth": self.depth or None}
        return backbones.create({"name": name, **settings}).load(FRAMES)


def build(method: str, backbone: str, conditions: Conditions) -> nn.Module:
    """The classifier for a method, or another implementation to compare it with."""
    if method == "hf_lora":
        if conditions.int8 or conditions.depth:
            raise ConfigError("hf_lora is measured on the whole backbone in float32 or bf16")
        return HuggingFaceLoRA(backbone, FRAMES, CLASSES)
    looped = method.startswith("loop:")
    made = PEFT.create(parse_spec(method.removeprefix("loop:"), PEFT))
    model = AudioClassifier(conditions.backbone(backbone), made, CLASSES, "all")
    return loop_over_experts(model) if looped else model


def measure(spec: str, backbone: str, batch: int, steps: int, device: str) -> dict[str, float]:
    """Measure in this process: the fastest of `steps` steps after two warm-up steps."""
    torch.manual_seed(0)
    frozen = backbones.create({"name": backbone}).architecture(FRAMES)
    if spec == FLOOR:
        assert frozen.grid is not None
        tokens = frozen.prefix_tokens + frozen.grid[0] * frozen.grid[1]
        seconds = floor_seconds(frozen.model.config, tokens, batch, device)
        return {"seconds": seconds / batch, "first": 0.0, "peak": 0.0, "trained": 0}
    method, _, text = spec.partition("@")
    conditions = Conditions.of(text)
    model = build(method, backbone, conditions).to(device)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters)
    assert isinstance(frozen.features, FbankSpec)
    features = torch.randn(batch, FRAMES, frozen.features.mel_bins, device=device)
    labels = torch.arange(batch, device=device) % CLASSES
    model.train()
    if conditions.compile:
        model.compile()
    kind = torch.device(device).type
    seconds = []
    for _ in range(steps + WARM_UP):
        start = time.perf_counter()
        with torch.autocast(kind, torch.bfloat16, enabled=conditions.bf16):
            loss = functional.cross_entropy(model(features), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        wait(device)
        seconds.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated(device) if kind == "cuda" else peak_memory()
    return {
        "seconds": min(seconds[WARM_UP:]) / batch,
        "first": seconds[0],
        "peak": peak / 2**30,
        "trained": sum(p.numel() for p in parameters)
        - sum(p.numel() for p in model.get_submodule("head").parameters()),
    }


def main() -> None:
    """Measure in interleaved rounds and print a table."""
    plugins.load()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("methods", nargs="*")
    parser.add_argument("--papers", action="store_true", help=f"measure {', '.join(PAPERS)}")
    parser.add_argument("--speed", action="store_true", help=f"measure {', '.join(SPEED)}")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--backbone", default="")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        spec, backbone, device = options.methods[0], options.backbone, options.device
        print(json.dumps(measure(spec, backbone, options.batch, options.steps, device)))
        return
    preset = PAPERS if options.papers else SPEED if options.speed else _everything()
    specs = options.methods or preset
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
                command += ["--device", options.device]
                run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                found[spec].append(json.loads(run.stdout.splitlines()[-1]))
    print(
        "| method | parameters trained | s per clip | vs. the first | vs. the floor | peak GiB "
        "| s of the first step |"
    )
    print("|---|---|---|---|---|---|---|")
    for spec in (FLOOR, *specs):
        seconds = statistics.median(row["seconds"] for row in found[spec])
        first = _median_ratio(found[spec], found[specs[0]])
        floor = _median_ratio(found[FLOOR], found[spec])
        peak = statistics.median(row["peak"] for row in found[spec])
        trained = int(found[spec][0]["trained"])
        begin = statistics.median(row["first"] for row in found[spec])
        print(
            f"| {spec} | {trained:,} | {seconds:.4f} | {first:.2f} | {floor:.0%} | {peak:.2f} "
            f"| {begin:.1f} |"
        )


def _everything() -> list[str]:
    soft = [f"soft_moa:num_experts={n}" for n in (1, 7, 15)]
    return [*soft, *(name for name in PEFT.names() if name != "soft_moa")]


def _median_ratio(above: list[dict[str, float]], below: list[dict[str, float]]) -> float:
    """Median over rounds of the ratio of two methods' times."""
    return statistics.median(a["seconds"] / b["seconds"] for a, b in zip(above, below, strict=True))


if __name__ == "__main__":
    main()

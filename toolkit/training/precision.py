"""`precision: auto`: bfloat16 where the machine multiplies it natively and faster, else float32."""

import dataclasses
import hashlib
import json
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from toolkit import system
from toolkit.features.cache_folder import disk_errors
from toolkit.files import write_atomically

AUTO = "auto"
OPTIONS = ("precision", "eval_precision")
"""The options that may be `auto`."""

SECONDS = 0.2
LEAST_SPEEDUP = 1.2
"""A product that bfloat16 speeds up by less than this gains nothing in a training step, whose norms
and softmaxes stay in float32."""

ROWS, WIDTH, INNER = 512, 768, 3072
"""Of the product that is timed: tokens through the feed-forward's first projection in AST-base."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """A precision, and why it was chosen.

    Attributes:
        name: `bf16` or `fp32`.
        reason: completes "precision bf16: ...".
    """

    name: str
    reason: str


def fastest(device: str, root: Path) -> Choice:
    """The fastest precision that trains without a loss scale on a device.

    Args:
        device: as torch names it.
        root: folder of the caches, which remember what was measured on this machine.
    """
    name = processor(device)
    if not is_native(device):
        return Choice("fp32", f"bf16 is not native to this {name}")
    speedup = _remembered(device, name, root)
    said = f"on this {name}, products in bf16 are {speedup:.1f} times as fast as in fp32"
    return Choice("bf16" if speedup >= LEAST_SPEEDUP else "fp32", said)


def processor(device: str) -> str:
    """The name of what computes on a device."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return system.processor()


def is_native(device: str) -> bool:
    """Whether torch computes in bfloat16 on a device with instructions made for it."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return (
        kind == "cpu"
        and torch.backends.mkldnn.is_available()
        and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


def measured_speedup(device: str) -> float:
    """How many times as fast as in float32 a frozen projection is in bfloat16, casts included."""
    x = torch.randn(ROWS, WIDTH, device=device)
    weight = torch.randn(INNER, WIDTH, device=device)
    for low in (False, True):
        _seconds(x, weight, low)
    ratios: list[float] = []
    begin = time.perf_counter()
    while not ratios or time.perf_counter() - begin < SECONDS:
        ratios.append(_seconds(x, weight, low=False) / _seconds(x, weight, low=True))
    return statistics.median(ratios)


@torch.no_grad()
def _seconds(x: Tensor, weight: Tensor, low: bool) -> float:
    start = time.perf_counter()
    with torch.autocast(x.device.type, torch.bfloat16, enabled=low):
        functional.linear(x, weight)
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return time.perf_counter() - start


def _remembered(device: str, name: str, root: Path) -> float:
    """What was measured on this kind of processor with this torch; measured once."""
    key = json.dumps([name, torch.__version__, ROWS, WIDTH, INNER])
    file = root / "precision" / hashlib.blake2b(key.encode(), digest_size=6).hexdigest()
    try:
        return float(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        speedup = measured_speedup(device)
    with disk_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, f"{speedup:.3f}")
    return speedup

"""The training loop of both kinds of pretraining: optimisers, schedule, checkpoints, probes."""

import json
import math
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from tqdm import tqdm

from .pool import fast_bf16

Encoder = TypeVar("Encoder", bound=nn.Module)
Item = TypeVar("Item")


class Run(ABC, Generic[Encoder, Item]):
    """One pretraining run: the encoder, its objective, their optimisers, and a folder for them.

    Args:
        student: the encoder; its exponential moving average is what is probed and exported.
        objective: holds the heads.
        values: the configuration.
    """

    def __init__(self, student: Encoder, objective: nn.Module, values: Mapping[str, Any]) -> None:
        self.values, self.student, self.objective = values, student, objective
        self.folder = Path(values["output_folder"])
        self.folder.mkdir(parents=True, exist_ok=True)
        self.average = deepcopy(student).requires_grad_(False)
        self.optimisers = optimisers(student, objective, values)
        self.step, self.seconds = 0, 0.0
        self.low_precision = values["precision"] == "bf16" or (
            values["precision"] == "auto" and fast_bf16()
        )
        self._resume()

    @abstractmethod
    def data(self) -> IterableDataset[Item]:
        """Batches from the current step on."""

    @abstractmethod
    def losses(self, batch: Item) -> dict[str, Tensor]:
        """The losses of a batch by name; "total" is what is minimised."""

    @abstractmethod
    def probe(self) -> dict[str, float]:
        """Evaluate the averaged weights on held-out data."""

    @abstractmethod
    def export(self) -> None:
        """Write the averaged weights in the format in which they are used."""

    def train(self) -> None:
        """Train until the last step, or for `piece_hours`."""
        v = self.values
        loader = DataLoader(
            self.data(), batch_size=None, num_workers=1, prefetch_factor=6,
            multiprocessing_context="fork",
        )  # fmt: skip
        batches = iter(loader)
        bar = tqdm(total=v["steps"], initial=self.step, mininterval=5, disable=v["noprogressbar"])
        begun = probed = shown = time.monotonic()
        waited = 0.0
        recent: dict[str, float] = {}
        while self.step < v["steps"] and time.monotonic() - begun < 3600 * v["piece_hours"]:
            before = time.monotonic()
            batch = next(batches)
            waited += time.monotonic() - before
            if self.step == round((1 - v["fall"]) * v["steps"]):
                self.save()
                shutil.copy(self.checkpoint, self.folder / "plateau.pt")  # for a longer run later
            for name, value in self._update(batch).items():
                recent[name] = 0.98 * recent.get(name, float(value)) + 0.02 * float(value)
            self.seconds += time.monotonic() - before
            bar.update()
            now = time.monotonic()
            if now - shown > 20:
                shown = now
                bar.set_postfix(loss=f"{recent['total']:.3f}", wait=f"{waited / (now - begun):.1%}")
            if now - probed > 60 * v["probe_minutes"] or self.step == v["steps"]:
                self._report(recent, waited / (now - begun))
                probed = time.monotonic()
        self.save()

    def _update(self, batch: Item) -> dict[str, Tensor]:
        v = self.values
        scale = schedule(self.step, v["steps"], v["warmup"], v["fall"])
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["base"] * scale
        with torch.autocast("cpu", torch.bfloat16, enabled=self.low_precision):
            losses = self.losses(batch)
        losses["total"].backward()
        nn.utils.clip_grad_norm_(self.student.parameters(), 5.0)
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.step += 1
        decay = min(v["average"], (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for kept, new in zip(self.average.parameters(), self.student.parameters(), strict=True):
                kept.lerp_(new, 1 - decay)
        return {name: loss.detach() for name, loss in losses.items()}

    def _report(self, recent: Mapping[str, float], waiting: float) -> None:
        """Probe, save, and add a line to `train_log.jsonl`."""
        self.save()
        line: dict[str, object] = {
            "step": self.step,
            "minutes": round(self.seconds / 60, 1),
            "wait": round(waiting, 3),
        }
        line |= {name: round(value, 4) for name, value in self.probe().items()}
        line["losses"] = {name: round(value, 4) for name, value in recent.items()}
        with (self.folder / "train_log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")
        print("\n" + json.dumps(line), flush=True)

    @property
    def checkpoint(self) -> Path:
        """The file that a run resumes from."""
        return self.folder / "checkpoint.pt"

    def save(self) -> None:
        """Write the checkpoint, completely or not at all, and export the averaged weights."""
        state = {
            "student": self.student.state_dict(),
            "average": self.average.state_dict(),
            "objective": self.objective.state_dict(),
            "optimisers": [o.state_dict() for o in self.optimisers],
            "step": self.step,
            "seconds": self.seconds,
        }
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.checkpoint)
        self.export()

    def _resume(self) -> None:
        if not self.checkpoint.exists():
            return
        state = torch.load(self.checkpoint, weights_only=True)
        self.student.load_state_dict(state["student"])
        self.average.load_state_dict(state["average"])
        self.objective.load_state_dict(state["objective"])
        for optimiser, kept in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(kept)
        self.step, self.seconds = state["step"], state["seconds"]
        print(f"{self.checkpoint}: resuming from step {self.step}", flush=True)


def optimisers(
    student: nn.Module, objective: nn.Module, values: Mapping[str, Any]
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the encoder's layers, AdamW for everything else."""
    named = [(n, p) for n, p in student.named_parameters() if p.requires_grad]
    matrices = [p for n, p in named if ".layers." in n and p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for _, p in named if id(p) not in chosen]
    heads = [p for p in objective.parameters() if p.requires_grad]
    made: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            [{"params": others, "weight_decay": 0.0}, {"params": heads, "weight_decay": 0.01}],
            lr=values["adamw_lr"], betas=(0.9, 0.98),
        )
    ]  # fmt: skip
    if matrices:
        made.insert(
            0,
            torch.optim.Muon(
                matrices, lr=values["muon_lr"], momentum=0.95, weight_decay=values["decay"]
            ),
        )
    for optimiser in made:
        for group in optimiser.param_groups:
            group["base"] = group["lr"]
    return made


def schedule(step: int, steps: int, warmup: int, fall: float) -> float:
    """A linear warm-up, a plateau, and a linear fall over the last share of the steps."""
    left = max(0.0, (steps - step) / max(1, math.ceil(fall * steps)))
    return min(1.0, (step + 1) / warmup, left)

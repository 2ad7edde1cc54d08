#!/usr/bin/env python
"""Pretrain the small AST, or continue any fbank backbone on a folder of sounds.

    python recipes/Pretrain/sources.py fetch SOURCES           free recordings from Debian packages
    python recipes/Pretrain/sources.py check SOURCES FOLDER    none of them in an evaluation set?
    python recipes/Pretrain/pool.py build SOURCES POOL         features and teachers' targets, once
    python recipes/Pretrain/train.py hparams/ast_tiny.yaml --pool POOL

    python recipes/Pretrain/train.py hparams/own_sounds.yaml --data_folder FOLDER
    python recipes/Pretrain/train.py hparams/own_sounds.yaml --smoke true     a minute, no download

Every key of the configuration can be set on the command line. A piece ends after `piece_hours`,
at the last step or when it is interrupted; start it again and it goes on from its checkpoint.
While it runs it probes itself every `probe_minutes` on clips that it never learns from, and
writes weights that can be used.
"""

import sys
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from feeding import Feeder
from loop import Run
from objectives import Distillation
from pool import COLUMN
from probe import HeldOut
from safetensors.torch import save_file
from selfsupervised import OBJECTIVES, Sounds
from speech import WORDS
from store import Batch, Store
from student import Student
from teacher import SoundTeacher
from torch import Tensor
from torch.utils.data import IterableDataset
from transformers import ASTConfig

from toolkit import backbones, config

HERE = Path(__file__).parent
SMOKE = {"steps": 6, "batch": 4, "max_length": 128, "warmup": 2, "probe_minutes": 10}


class Distil(Run):
    """A student from nothing, taught by the pool's targets."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        store = Store(Path(values["pool"]))
        statistics = store.statistics()
        student = Student(ASTConfig(**values["model"]))
        student.start_from_patches(statistics.pop("patches"))
        objective = Distillation(
            student.model.config.hidden_size, statistics, SoundTeacher().heads, len(WORDS),
            store.families, values["weights"],
        )  # fmt: skip
        self.held_out = HeldOut(store)
        super().__init__(student, objective, values)

    def data(self) -> IterableDataset:
        """See `Run.data`."""
        v = self.values
        return Feeder(
            Path(v["pool"]), v["seed"], self.step, v["steps"], self.frames, v["short_share"]
        )

    def frames(self, step: int) -> int:
        """Frames in a step's batch: more while part of the patches is dropped."""
        share = self.values["keep_bands"] / self.student.bands if self.drops(step) else 1
        return int(self.values["batch_frames"] / share)

    def drops(self, step: int) -> bool:
        """Whether patches are dropped at this step: until the rate begins to fall."""
        v = self.values
        return v["keep_bands"] < self.student.bands and step < (1 - v["fall"]) * v["steps"]

    def losses(self, batch: tuple[int, Batch, Tensor]) -> dict[str, Tensor]:
        """See `Run.losses`."""
        _, targets, frames = batch
        generator = torch.Generator().manual_seed(self.step)
        columns = frames.shape[1] // COLUMN
        room, shift, bands = (self.student.columns - columns) // 2, 0, None
        if room > 1 and torch.rand(1, generator=generator) < self.values["shift_share"]:
            shift = int(torch.randint(-room, room, (1,), generator=generator))
        if self.drops(self.step):
            bands = self.student.some_bands(columns, self.values["keep_bands"], generator)
        return self.objective(self.student, frames, targets, shift, bands)

    def probe(self) -> dict[str, float]:
        """See `Run.probe`."""
        return self.held_out(self.average)

    def export(self) -> None:
        """The stock ASTModel's weights as float16 safetensors, and its configuration."""
        model = deepcopy(self.average).bake()
        weights = {k: v.half().contiguous() for k, v in model.state_dict().items()}
        partial = self.folder / "partial.safetensors"
        save_file(weights, partial, metadata={"format": "pt"})
        partial.replace(self.folder / f"{self.values['name']}.safetensors")
        model.config.save_pretrained(self.folder)


class OwnSounds(Run):
    """A registered backbone, begun or continued on a folder of sounds."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        if values["smoke"]:
            values = {**values, **SMOKE}
        backbone = backbones.create(values["backbone"]).load(values["max_length"])
        objective = OBJECTIVES[values["objective"]](backbone)
        super().__init__(backbone.train(), objective, values)

    def data(self) -> IterableDataset:
        """See `Run.data`."""
        v = self.values
        folder = None if v["data_folder"] is None else Path(v["data_folder"])
        spec = self.student.features
        return Sounds(folder, spec, v["batch"], v["seed"], self.step, v["steps"])

    def losses(self, batch: Tensor) -> dict[str, Tensor]:
        """See `Run.losses`."""
        generator = torch.Generator().manual_seed(self.step)
        return {"total": self.objective(self.student, batch, generator)}

    @torch.no_grad()
    def probe(self) -> dict[str, float]:
        """The loss on recordings that were held out."""
        sounds, losses = self.data(), []
        for number in range(4):
            generator = torch.Generator().manual_seed(number)
            batch = sounds.batch(number, held_out=True)
            losses.append(float(self.objective(self.average, batch, generator)))
        return {"held_out_loss": sum(losses) / len(losses)}

    def export(self) -> None:
        """A folder that `--backbone FOLDER` reads."""
        self.average.model.save_pretrained(self.folder / "backbone")


def main(arguments: list[str]) -> None:
    """Pretrain as the command line says."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(__doc__)
        return
    settings = config.load(config.parse_command_line(arguments), HERE)
    torch.set_num_threads(settings.values["threads"])
    torch.manual_seed(settings.values["seed"])
    run = (OwnSounds if "objective" in settings.values else Distil)(settings.values)
    (run.folder / "hyperparams.yaml").write_text(settings.text)
    run.train()


if __name__ == "__main__":
    main(sys.argv[1:])

"""The two kinds of pretraining run: a student taught by the pool, a backbone on own sounds."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import ASTConfig

from toolkit import backbones, config
from toolkit.backbones.base import Backbone
from toolkit.errors import ConfigError
from toolkit.features.spec import FbankSpec
from toolkit.files import write_atomically
from toolkit.own_folders import Kind, claimed

from .feeding import Feeder
from .loop import Run
from .objectives import Distillation
from .pool import COLUMN
from .probe import HeldOut
from .selfsupervised import OBJECTIVES, Sounds
from .speech import WORDS
from .store import Batch, Store
from .student import Student
from .teacher import SoundTeacher

HERE = Path(__file__).parent
PRETRAINING = Kind(
    "pretraining run",
    known_by=(("hyperparams.yaml", "checkpoint.pt"),),
    remedy="choose another folder with `--output_folder`",
)
SMOKE = {"steps": 6, "batch": 4, "max_length": 128, "warmup": 2, "probe_minutes": 10}


class Distil(Run[Student, tuple[Batch, Tensor]]):
    """A student with random weights, taught by the pool's targets."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.store = Store(Path(values["pool"]))
        statistics = self.store.statistics()
        student = Student(ASTConfig(**values["model"]))
        student.start_from_patches(statistics.pop("patches"))
        objective = Distillation(
            student.model.config.hidden_size, statistics, SoundTeacher().heads, len(WORDS),
            self.store.families, values["weights"],
        )  # fmt: skip
        self.held_out = HeldOut(self.store)
        super().__init__(student, objective, values)

    def data(self) -> Feeder:
        """Crops of the pool's clips."""
        v = self.values
        return Feeder(self.store, v["seed"], self.step, v["steps"], self.frames, v["short_share"])

    def frames(self, step: int) -> int:
        """Frames in a step's batch: more while some of the patches are dropped."""
        share = self.values["keep_bands"] / self.student.bands if self.drops(step) else 1
        return int(self.values["batch_frames"] / share)

    def drops(self, step: int) -> bool:
        """Whether patches are dropped at this step: until the learning rate begins to fall."""
        v = self.values
        return bool(v["keep_bands"] < self.student.bands and step < (1 - v["fall"]) * v["steps"])

    def losses(self, batch: tuple[Batch, Tensor]) -> dict[str, Tensor]:
        """The distillation's losses, crops shifted and patches dropped as the step demands."""
        targets, frames = batch
        generator = torch.Generator().manual_seed(self.step)
        columns = frames.shape[1] // COLUMN
        room, shift, bands = (self.student.columns - columns) // 2, 0, None
        if room > 1 and torch.rand(1, generator=generator) < self.values["shift_share"]:
            shift = int(torch.randint(-room, room, (1,), generator=generator))
        if self.drops(self.step):
            bands = self.student.some_bands(columns, self.values["keep_bands"], generator)
        losses: dict[str, Tensor] = self.objective(self.student, frames, targets, shift, bands)
        return losses

    def probe(self) -> dict[str, float]:
        """Accuracies of linear probes on held-out clips."""
        return self.held_out(self.average)

    def export(self) -> None:
        """Write the stock ASTModel's weights as float16 safetensors, and its configuration."""
        model = deepcopy(self.average).bake()
        weights = {k: v.half().contiguous() for k, v in model.state_dict().items()}
        partial = self.folder / "partial.safetensors"
        save_file(weights, partial, metadata={"format": "pt"})
        partial.replace(self.folder / f"{self.values['name']}.safetensors")
        model.config.save_pretrained(self.folder)


class OwnSounds(Run[Backbone, Tensor]):
    """A registered backbone, continued on a folder of sounds."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        if values["smoke"]:
            values = {**values, **SMOKE}
        backbone = backbones.create(values["backbone"]).load(values["max_length"])
        if not isinstance(backbone.features, FbankSpec):
            raise ConfigError(
                f"the backbone reads {backbone.features.kind} rows; pretraining needs one that "
                "reads fbank rows, such as `--backbone ast_tiny`"
            )
        self.spec = backbone.features
        objective = OBJECTIVES[values["objective"]](backbone)
        super().__init__(backbone.train(), objective, values)

    def data(self) -> Sounds:
        """Pairs of crops of the folder's recordings."""
        v = self.values
        folder = None if v["data_folder"] is None else Path(v["data_folder"])
        return Sounds(folder, self.spec, v["batch"], v["seed"], self.step, v["steps"])

    def losses(self, batch: Tensor) -> dict[str, Tensor]:
        """The loss of the chosen objective."""
        generator = torch.Generator().manual_seed(self.step)
        return {"total": self.objective(self.student, batch, generator)}

    @torch.no_grad()
    def probe(self) -> dict[str, float]:
        """The loss on held-out recordings."""
        sounds, losses = self.data(), []
        for number in range(4):
            generator = torch.Generator().manual_seed(number)
            batch = sounds.batch(number, held_out=True)
            losses.append(float(self.objective(self.average, batch, generator)))
        return {"held_out_loss": sum(losses) / len(losses)}

    def export(self) -> None:
        """Write a folder that `--backbone FOLDER` reads."""
        model: Any = self.average.model
        model.save_pretrained(self.folder / "backbone")


def train(arguments: Sequence[str]) -> None:
    """Pretrain as a configuration and the options after it say."""
    settings = config.load(config.parse_command_line(arguments), HERE)
    torch.set_num_threads(settings.values["threads"])
    torch.manual_seed(settings.values["seed"])
    kind = OwnSounds if "objective" in settings.values else Distil
    with claimed(Path(settings.values["output_folder"]), PRETRAINING):
        run: Run[Any, Any] = kind(settings.values)
        write_atomically(run.folder / "hyperparams.yaml", settings.text)
        run.train()

"""ClassificationBrain: how one fold is trained and evaluated, in one process or in several."""

import dataclasses
import functools
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import speechbrain as sb
import torch
from safetensors.torch import load_file
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from speechbrain.utils.distributed import ddp_all_reduce
from torch import Tensor
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from toolkit import processes, system
from toolkit.backbones.quantised import is_quantised
from toolkit.data.augment import Augmentation, augmented
from toolkit.data.sampling import TrainingBatches, derive_seed
from toolkit.errors import RunError
from toolkit.features.batch import Batch
from toolkit.features.windows import over_clips
from toolkit.model import AudioClassifier
from toolkit.results import EpochRecord, read_history, write_history
from toolkit.reuse import FrozenPart, PooledPart
from toolkit.task import BatchObjective, Task
from toolkit.training.batch_norm import join_batch_norms
from toolkit.training.checkpoints import AtomicCheckpointer, validation_score
from toolkit.training.progress import Progress

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TrainingPlan:
    """How to train, as the configuration says.

    Attributes:
        epochs: passes over the training clips.
        lr: peak learning rate.
        optimizer: makes an optimiser from parameter groups.
        warmup_epochs: how long the learning rate rises linearly before its cosine decay to 0.
        label_smoothing: share of each target that is spread over the classes, 0 to 1.
        augment: applied to training batches, in this order.
        seed: of this fold.
        task: whether a clip has exactly one class or any number.
        class_weights: [C], the weight of each class in the loss; None: all equal.
    """

    epochs: int
    lr: float
    optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
    warmup_epochs: float
    label_smoothing: float
    augment: list[Augmentation]
    seed: int
    task: Task
    class_weights: Tensor | None = None


@register_checkpoint_hooks
class History:
    """One record per epoch, kept in every checkpoint so that a resumed run has all of them."""

    def __init__(self) -> None:
        self.epochs: list[EpochRecord] = []

    @mark_as_saver
    def save(self, path: Path) -> None:
        """Write the records as JSON."""
        write_history(Path(path), self.epochs)

    @mark_as_loader
    def load(self, path: Path, end_of_epoch: bool) -> None:
        """Read them back."""
        self.epochs = read_history(Path(path))


class ClassificationBrain(sb.Brain):
    """Trains a classifier and evaluates it; every clip counts once with any number of processes.

    Augmentation and patchout are drawn from (seed, epoch, step), every other random number of a
    step (dropout, a router's noise) from (seed, epoch, step, rank), and the learning rate is a
    function of the step, so an interrupted run continues exactly where it stopped.

    Args:
        model: the classifier.
        plan: how to train.
        run_opts: SpeechBrain's run options (device, precision, accumulation, ...).
        checkpointer: keeps the checkpoints; None keeps none.
        progress: shows how far the job is.
        log: called with the record of every epoch, also with those of an earlier, interrupted run.
        title: how the progress bar names this training.
    """

    def __init__(
        self,
        model: AudioClassifier,
        plan: TrainingPlan,
        run_opts: dict[str, Any],
        checkpointer: AtomicCheckpointer | None,
        progress: Progress,
        log: Callable[[EpochRecord], None],
        title: str,
    ) -> None:
        super().__init__({"model": model}, run_opts=run_opts, checkpointer=checkpointer)
        self.model, self.plan = model, plan
        self.progress, self.log, self.title = progress, log, title
        distributed = self.distributed_launch
        self.rank = torch.distributed.get_rank() if distributed else 0
        self.world_size = torch.distributed.get_world_size() if distributed else 1
        self.history = History()
        self.epoch_counter = sb.utils.epoch_loop.EpochCounter(plan.epochs)
        self.epoch = 0
        self.stage_start = 0.0
        self.train_seconds = 0.0
        self.batches: TrainingBatches  # once training starts
        self.auxiliary: dict[str, float] = {}
        self.rows: list[dict[str, Any]] = []
        self.predictions = pd.DataFrame()
        if checkpointer is not None:
            checkpointer.add_model(model)
            checkpointer.add_recoverable("history", self.history)
            checkpointer.add_recoverable("epoch", self.epoch_counter)

    # Forward and loss

    def read(self, part: FrozenPart | PooledPart) -> None:
        """Read states of this frozen part in place of features; they are augmented already.

        Args:
            part: of the model.
        """
        self.model.reuse(part)
        self.plan = dataclasses.replace(self.plan, augment=[])

    def _prepare(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Normalised features [B, T, F] or states, and targets [B, C] (probabilities), on the
        device."""
        batch = batch.to(self.device)
        features = batch.features
        if not self.model.reads_states:
            features = self.model.backbone.features.normalise(features, batch.lengths)
        targets = self.plan.task.targets(batch.labels, self.model.num_classes)
        return features, targets

    def training_loss(self, batch: Batch) -> Tensor:
        """The sum of the method's losses for an augmented batch.

        Every loss but the task's is also added up by name, for the record of the epoch.
        """
        features, targets = self._prepare(batch)
        features, targets = self._augmented(features, targets)
        plan, method, backbone = self.plan, self.model.method, self.model.backbone
        if self.model.patchout is not None:  # all processes drop the same patches
            drawn = derive_seed(plan.seed, self.epoch, self.step, 0, 1)
            self.model.patchout.generator = torch.Generator().manual_seed(drawn)
        objective = BatchObjective(plan.task, targets, plan.label_smoothing, plan.class_weights)
        forward = functools.partial(self.modules.model, lengths=batch.lengths)
        losses = method.training_losses(backbone, forward, features, objective)
        for name, value in losses.items():
            if name != "task":
                self.auxiliary[name] = self.auxiliary.get(name, 0.0) + float(value.detach())
        return torch.stack(list(losses.values())).sum()

    def _augmented(self, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Augment the batch of the whole job, and return this process's clips of it.

        What an augmentation draws, and with which clip it mixes another, thus does not depend on
        the number of processes.
        """
        if not self.plan.augment:
            return features, targets
        clips = self.batches.sizes[self.step - 1]
        frames = processes.largest(features.shape[1], features.device)
        padding = (0, 0, 0, frames - features.shape[1])
        features = processes.gather(functional.pad(features, padding), clips)
        targets = processes.gather(targets, clips)
        seed = derive_seed(self.plan.seed, self.epoch, self.step, 0)
        generator = torch.Generator().manual_seed(seed)
        features, targets = augmented(self.plan.augment, features, targets, generator)
        return processes.own(features), processes.own(targets)

    def compute_forward(self, batch: Batch, stage: sb.Stage) -> tuple[Tensor, Tensor]:
        """Evaluate a batch: logits [B, C] and targets [B, C].

        Without DDP around the model, which would wait for processes that have no clip left.
        """
        features, targets = self._prepare(batch)
        return self.model(features, batch.lengths).float(), targets

    def compute_objectives(
        self, predictions: tuple[Tensor, Tensor], batch: Batch, stage: sb.Stage
    ) -> Tensor:
        """The mean loss of the task in evaluation; the prediction for each clip is kept."""
        logits, targets = predictions
        losses = self.plan.task.losses(logits, targets)
        self._remember(batch, self.plan.task.probabilities(logits), losses)
        return losses.mean()

    def _remember(self, batch: Batch, probabilities: Tensor, losses: Tensor) -> None:
        truths = self.plan.task.truths(batch.labels)
        rows = zip(batch.ids, truths, probabilities.tolist(), losses.tolist(), strict=True)
        self.rows += [
            {"id": name, "truth": truth, "probabilities": p, "loss": loss}
            for name, truth, p, loss in rows
        ]

    # Training

    def train_on(self, loader: Any, batches: TrainingBatches, valid_loader: Any) -> None:
        """Train for the planned epochs, starting from the latest checkpoint if there is one.

        Args:
            loader: yields the part of each of `batches` that belongs to this process.
            batches: the training batches.
            valid_loader: yields the validation clips that belong to this process.
        """
        self.batches = self.train_sampler = batches
        if self.checkpointer is not None:
            self.checkpointer.add_recoverable("dataloader-TRAIN", loader)
        self.fit(self.epoch_counter, loader, valid_loader, progressbar=False)

    def _compile(self) -> None:
        if self.compile:
            self.model.compile()

    def _wrap_distributed(self) -> None:
        if self.distributed_launch:
            on_gpu = self.device_type == "cuda"
            join_batch_norms(self.model)
            own = [  # all processes read the same weights in int8
                name
                for name, parameter in self.model.named_parameters()
                if parameter.numel() == 0 or is_quantised(parameter)
            ]
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self.model, own)
            self.modules["model"] = DistributedDataParallel(
                self.model,
                device_ids=[torch.device(self.device)] if on_gpu else None,
                find_unused_parameters=self.model.method.sparse,
            )

    def init_optimizers(self) -> None:
        """Make one optimiser over the parameter groups of the method."""
        groups = self.model.method.parameter_groups(self.model.trainable(), self.plan.lr)
        self.optimizer = self.plan.optimizer(groups)
        for group in self.optimizer.param_groups:
            group["peak_lr"] = group["lr"]
        self.optimizers_dict = {"optimizer": self.optimizer}
        if self.checkpointer is not None:
            self.checkpointer.add_recoverable("optimizer", self.optimizer)

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps per epoch; the last one accumulates the remaining batches."""
        factor: int = self.grad_accumulation_factor
        return math.ceil(len(self.batches) / factor)

    def lr_factor(self, step: int) -> float:
        """The learning rate at optimiser step `step` (from 0), as a share of its peak."""
        total = self.plan.epochs * self.steps_per_epoch
        warmup = self.plan.warmup_epochs * self.steps_per_epoch
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))

    def fit_batch(self, batch: Batch) -> Tensor:
        """Run forward and backward, and an optimiser step when a group of batches is complete."""
        factor = self.grad_accumulation_factor
        group = (self.step - 1) // factor
        should_step = self.step % factor == 0 or self.step == len(self.batches)
        seed = derive_seed(self.plan.seed, self.epoch, self.step, self.rank)
        torch.manual_seed(seed)
        with self.no_sync(not should_step):
            with self.training_ctx:
                loss = self.training_loss(batch)
            self._refuse_nonfinite(loss, batch)
            # DDP averages over processes; all clips of the group should weigh the same.
            clips = sum(self.batches.sizes[group * factor : (group + 1) * factor])
            weight = len(batch) * self.world_size / clips
            self.scaler.scale(loss * weight).backward()
        if should_step:
            self.optimizers_step()
        self.progress.update(f"loss {self.avg_train_loss:.3f}")
        detached: Tensor = loss.detach().cpu()
        return detached

    def _refuse_nonfinite(self, loss: Tensor, batch: Batch) -> None:
        if not torch.isfinite(loss):
            raise RunError(
                f"the loss became {loss.item()} in epoch {self.epoch}, batch {self.step} (clips "
                f"{', '.join(batch.ids[:3])}, ...): lower the learning rate with `--lr`, clip "
                "gradients with `--max_grad_norm 1`, or use `--precision fp32`"
            )

    def optimizers_step(self) -> None:
        """Unscale the gradients, clip them over all parameters, and step."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * self.lr_factor(self.optimizer_step)
        self.scaler.unscale_(self.optimizer)
        if self.max_grad_norm > 0:
            parameters = [p for g in self.optimizer.param_groups for p in g["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        taken = self.scaler.get_scale() >= scale  # it falls where gradients have overflowed
        self.optimizer_step += 1
        total = self.plan.epochs * self.steps_per_epoch
        method, backbone = self.model.method, self.model.backbone
        if taken:
            method.on_step(backbone, self.optimizer, self.optimizer_step, total)
        self.optimizer.zero_grad(set_to_none=True)

    def _should_save_intra_epoch_ckpt(self, last_ckpt_time: float, steps_since_ckpt: int) -> bool:
        between_steps: bool = self.step % self.grad_accumulation_factor == 0
        # Every process must ask, because rank 0 decides and tells the others.
        due: bool = super()._should_save_intra_epoch_ckpt(last_ckpt_time, steps_since_ckpt)
        return due and between_steps

    def on_fit_start(self) -> None:
        """Recover the latest checkpoint, then show and log the epochs that it holds."""
        super().on_fit_start()
        for record in self.history.epochs:
            self.log(record)
        if self.history.epochs or self.step:
            done = f"after epoch {len(self.history.epochs)}, batch {self.step}"
            self.progress.line(f"{self.title}: continuing {done}")

    # Stages

    def on_stage_start(self, stage: sb.Stage, epoch: int | None = None) -> None:
        """Start the clock; during validation the method records its statistics."""
        self.stage_start = time.perf_counter()
        self.rows = []
        if stage == sb.Stage.TRAIN and epoch is not None:
            self.epoch, self.auxiliary = epoch, {}
            self.model.method.on_epoch_start(self.model.backbone, epoch, self.steps_per_epoch)
            self.progress.describe(f"{self.title}, epoch {epoch}/{self.plan.epochs}")
        if stage == sb.Stage.VALID:
            self._share_buffers()
            self.model.method.record(self.model.backbone, on=True)

    def _share_buffers(self) -> None:
        """Give all processes the first one's buffers, as DDP does before each training batch."""
        if self.distributed_launch:
            for buffer in self.model.buffers():
                torch.distributed.broadcast(buffer, src=0)

    def evaluate_batch(self, batch: Batch, stage: sb.Stage) -> Tensor:
        """Evaluate one batch and move the progress bar."""
        loss: Tensor = super().evaluate_batch(batch, stage)
        self.progress.update()
        return loss

    def on_stage_end(self, stage: sb.Stage, stage_loss: float, epoch: int | None = None) -> None:
        """After training keep its loss; after evaluation gather the predictions of all processes.

        After validation the epoch is recorded and a checkpoint is saved.
        """
        seconds = time.perf_counter() - self.stage_start
        if stage == sb.Stage.TRAIN and epoch is not None:
            self.train_seconds, self.train_loss = seconds, self._over_processes(stage_loss)
            self.model.method.on_epoch(self.model.backbone, self.optimizer, epoch)
            return
        self.predictions = self._gather()
        self._refuse_nonfinite_predictions()
        if stage == sb.Stage.VALID and epoch is not None:
            self._end_epoch(epoch, seconds)

    def _refuse_nonfinite_predictions(self) -> None:
        table = self.predictions
        finite = np.isfinite(np.stack(table["probabilities"].to_list())).all(axis=1)
        wrong = table["id"][~(finite & np.isfinite(table["loss"]))].tolist()
        if wrong:
            raise RunError(
                f"the predictions for {len(wrong)} of {len(table)} clips are not numbers in epoch "
                f"{self.epoch} ({', '.join(wrong[:3])}{', ...' if wrong[3:] else ''}): lower the "
                "learning rate with `--lr`, clip gradients with `--max_grad_norm 1`, or use "
                "`--eval_precision fp32`; if it is always these clips, look at their files"
            )

    def _over_processes(self, value: float) -> float:
        """The mean over all processes."""
        total = torch.tensor(value, device=self.device)
        return float(ddp_all_reduce(total, torch.distributed.ReduceOp.SUM)) / self.world_size

    def _gather(self) -> pd.DataFrame:
        """The predictions of all processes, one per clip: id, truth, prediction, probabilities,
        loss."""
        rows = self.rows
        if self.distributed_launch:
            shares: list[Any] = [None] * self.world_size
            torch.distributed.all_gather_object(shares, self.rows)
            rows = [row for share in shares for row in share]
        table = pd.DataFrame(over_clips(rows)).sort_values("id", ignore_index=True)
        probabilities = table["probabilities"].tolist()
        predictions: list[Any] = list(self.plan.task.predictions(probabilities))
        return table.assign(prediction=predictions)

    def _statistics(self) -> dict[str, float | list[float]]:
        """The method's statistics, averaged over the processes that had clips to validate."""
        here = self.model.method.statistics(self.model.backbone)
        if not self.distributed_launch:
            return here
        shares: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(shares, (len(self.rows), here))
        used = [(clips, values) for clips, values in shares if clips]
        clips = [number for number, _ in used]
        return {
            key: np.average([values[key] for _, values in used], axis=0, weights=clips).tolist()
            for key in here
        }

    def _end_epoch(self, epoch: int, valid_seconds: float) -> None:
        method, backbone = self.model.method, self.model.backbone
        record = EpochRecord(
            epoch=epoch,
            lr=max(group["lr"] for group in self.optimizer.param_groups),
            train_loss=self.train_loss,
            valid_loss=float(self.predictions["loss"].mean()),
            valid_score=self.plan.task.score(self.predictions),
            metric=self.plan.task.metric,
            train_seconds=self.train_seconds,
            valid_seconds=valid_seconds,
            auxiliary={k: v / len(self.batches) for k, v in self.auxiliary.items()},
            statistics=self._statistics(),
        )
        method.record(backbone, on=False)
        self.history.epochs.append(record)
        self.log(record)
        self.progress.line(
            f"{self.title}  epoch {epoch:>2}/{self.plan.epochs}  "
            f"loss {record.train_loss:.3f}  valid loss {record.valid_loss:.3f}  "
            f"valid {record.metric} {100 * record.valid_score:5.1f} %  "
            f"{record.train_seconds:.1f} s"
        )
        if self.checkpointer is not None:
            self.checkpointer.save_and_keep_only(
                meta={
                    "valid_score": record.valid_score,
                    "valid_loss": record.valid_loss,
                    "epoch": record.epoch,
                },
                importance_keys=[validation_score],
                verbosity=logging.DEBUG,
            )

    def on_evaluate_start(self, max_key: str | None = None, min_key: str | None = None) -> None:
        """Load the weights of the epoch that validation preferred."""
        best = self.checkpointer.best() if self.checkpointer is not None else None
        if best is None:
            raise RunError(
                "there is no trained checkpoint to evaluate: train first (without `--test_only`)"
            )
        self.model.load_state(load_file(best.paramfiles["model"]))
        self.best_epoch = int(best.meta["epoch"])
        if not self.history.epochs:
            self.history.load(best.paramfiles["history"], end_of_epoch=True)

    def predict(self, loader: Any) -> pd.DataFrame:
        """Predict with the weights of the best epoch; a table with one row per clip."""
        self.evaluate(loader, progressbar=False)
        return self.predictions

    def peak_memory(self) -> int:
        """The largest memory so far in bytes, of the GPU or of this process."""
        if self.device_type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return system.peak_memory()

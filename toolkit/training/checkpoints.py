"""SpeechBrain's Checkpointer, made safe against being killed, and small.

SpeechBrain writes the meta file of a checkpoint first, so a checkpoint that was cut short looks
complete. Here it is written under a name that the Checkpointer does not list, and renamed at the
end. Only the part of the model that training changes is kept.
"""

import math
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from speechbrain.utils.checkpoints import Checkpoint, Checkpointer
from speechbrain.utils.distributed import ddp_barrier, if_main_process, main_process_only

from toolkit.errors import RunError
from toolkit.model import AudioClassifier
from toolkit.own_folders import Kind, remove

UNFINISHED = "unfinished"
CHECKPOINT = Kind("checkpoint", holds=("CKPT.yaml", "*.ckpt", ".*.ckpt.*"), known_by=((),))
"""SpeechBrain makes it without a mark: it is recognised by its files alone."""


class AtomicCheckpointer(Checkpointer):
    """Checkpoints that are complete or not there at all.

    Args:
        folder: where they are kept; unfinished ones of a killed run are removed.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        if if_main_process():
            for left_over in folder.glob(f"{UNFINISHED}*"):
                remove(left_over, CHECKPOINT)
        ddp_barrier()

    def add_model(self, model: AudioClassifier) -> None:
        """Save and restore the tensors of a model that training changes."""
        self.add_recoverable("model", model, _load_model, main_process_only(_save_model))

    def save_checkpoint(self, *args: Any, **kwargs: Any) -> Checkpoint | None:
        """Save a checkpoint under a temporary name and rename it once it is complete."""
        try:
            saved = super().save_checkpoint(*args, **kwargs)
        except (RuntimeError, SafetensorError) as error:  # of torch and safetensors on a full disk
            raise RunError(
                f"no checkpoint can be written to {self.checkpoints_dir} "
                f"({str(error).splitlines()[0]}): free some space there, and start the same "
                "command again, which continues from the checkpoint before"
            ) from error
        ddp_barrier()
        if saved is not None:
            final = saved.path.with_name(saved.path.name.removeprefix(UNFINISHED))
            saved.path.rename(final)
            saved = saved._replace(path=final)
        ddp_barrier()
        return saved

    def best(self) -> Checkpoint | None:
        """The checkpoint of the epoch that validation prefers; None if no epoch was completed."""
        return self.find_checkpoint(
            importance_key=validation_score,
            ckpt_predicate=lambda checkpoint: _score(checkpoint) is not None,
        )

    def _new_checkpoint_dirpath(self) -> Path:
        path: Path = super()._new_checkpoint_dirpath()
        return path.with_name(UNFINISHED + path.name)


def validation_score(checkpoint: Checkpoint) -> tuple[float, float]:
    """What the best epoch is chosen by: the validation score, then the lower validation loss."""
    score = _score(checkpoint)
    loss = float(checkpoint.meta.get("valid_loss", math.inf))
    return -1.0 if score is None else score, -loss


def _score(checkpoint: Checkpoint) -> float | None:
    """The validation score of a checkpoint at the end of an epoch; None within an epoch.

    Checkpoints from before results had a `score` call it `valid_accuracy`.
    """
    meta: dict[str, float] = checkpoint.meta
    return meta.get("valid_score", meta.get("valid_accuracy"))


def _save_model(model: AudioClassifier, path: Path) -> None:
    save_file({name: t.contiguous() for name, t in model.state().items()}, path)


def _load_model(model: AudioClassifier, path: Path, end_of_epoch: bool) -> None:
    model.load_state(load_file(path))

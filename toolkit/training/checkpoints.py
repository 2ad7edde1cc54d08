"""SpeechBrain's Checkpointer, made safe against being killed, and small.

SpeechBrain writes the meta file of a checkpoint first, so a checkpoint that was cut short looks
complete. Here it is written under a name that the Checkpointer does not list, and renamed at the
end. Only the part of the model that training changes is kept. Each checkpoint has checksums of its
files, which are compared before it is used.
"""

import hashlib
import json
import math
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from speechbrain.utils.checkpoints import Checkpoint, Checkpointer, yaml
from speechbrain.utils.distributed import ddp_barrier, if_main_process, main_process_only

from toolkit.errors import RunError, first_line
from toolkit.files import write_atomically
from toolkit.model import AudioClassifier
from toolkit.own_folders import Kind, remove

UNFINISHED = "unfinished"
CHECKPOINT = Kind("checkpoint", holds=("CKPT.yaml", "*.ckpt", "checksums.json"), known_by=((),))
"""SpeechBrain makes it without a mark: it is recognised by its files alone."""
CHECKSUMS = "checksums.json"
UNREADABLE = (
    OSError, ValueError, RuntimeError, EOFError, KeyError, SafetensorError, UnpicklingError,
)  # fmt: skip
"""What loading a damaged file of a checkpoint raises."""


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
                f"({first_line(error)}): free some space there, and start the same "
                "command again, which continues from the checkpoint before"
            ) from error
        ddp_barrier()
        if saved is not None:
            write_atomically(saved.path / CHECKSUMS, json.dumps(_checksums(saved.path)))
            final = saved.path.with_name(saved.path.name.removeprefix(UNFINISHED))
            saved.path.rename(final)
            saved = saved._replace(path=final)
        ddp_barrier()
        return saved

    def load_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Load a checkpoint that is as it was saved.

        Raises:
            RunError: it is damaged.
        """
        _require_whole(checkpoint.path)
        try:
            super().load_checkpoint(checkpoint)
        except UNREADABLE as error:  # of version 0.1, without checksums
            raise _damaged(checkpoint.path, repr(error)[:80]) from None

    def best(self) -> Checkpoint | None:
        """The checkpoint of the epoch that validation prefers; None if no epoch was completed.

        Raises:
            RunError: it is damaged.
        """
        found: Checkpoint | None = self.find_checkpoint(
            importance_key=validation_score,
            ckpt_predicate=lambda checkpoint: _score(checkpoint) is not None,
        )
        if found is not None:
            _require_whole(found.path)
        return found

    @staticmethod
    def _construct_checkpoint_objects(checkpoint_dirs: list[Path]) -> list[Checkpoint]:
        found: list[Checkpoint] = []
        for folder in checkpoint_dirs:
            try:
                found += Checkpointer._construct_checkpoint_objects([folder])
            except (yaml.YAMLError, ValueError) as error:
                raise _damaged(folder, f"CKPT.yaml: {first_line(error)}") from None
            meta = found[-1].meta
            if not isinstance(meta, dict) or not {"unixtime", "end-of-epoch"} <= meta.keys():
                raise _damaged(folder, "CKPT.yaml")
        return found

    def _new_checkpoint_dirpath(self) -> Path:
        path: Path = super()._new_checkpoint_dirpath()
        return path.with_name(UNFINISHED + path.name)


def _checksums(folder: Path) -> dict[str, str]:
    """File name -> hash of its content, of all files of a checkpoint."""
    found = {}
    for file in sorted(folder.iterdir()):
        if file.name != CHECKSUMS:
            with open(file, "rb") as stream:
                found[file.name] = hashlib.file_digest(stream, hashlib.blake2b).hexdigest()[:16]
    return found


def _require_whole(folder: Path) -> None:
    """Compare the files of a checkpoint with its checksums; one of version 0.1 has none."""
    file = folder / CHECKSUMS
    if not file.is_file():
        return
    try:
        expected = dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise _damaged(folder, CHECKSUMS) from None
    found = _checksums(folder)
    changed = sorted(name for name in expected | found if expected.get(name) != found.get(name))
    if changed:
        raise _damaged(folder, ", ".join(changed))


def _damaged(folder: Path, what: str) -> RunError:
    return RunError(
        f"the checkpoint {folder} is damaged ({what}): delete that folder and start the run again, "
        "which continues from an earlier checkpoint, or trains this fold again"
    )


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

"""Bundles: what was learned, small and reusable.

A bundle is a folder with `bundle.json` (settings, task, class names, the backbone's name and
fingerprint) and `weights.safetensors` (what training changed, by lasting names). Nothing in it is
executed.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from toolkit import __version__, backbones
from toolkit.backbones.base import BackboneSource, FeatureSpec
from toolkit.errors import BundleError
from toolkit.files import new_folder
from toolkit.model import AudioClassifier
from toolkit.registry import PEFT, TOOLS
from toolkit.task import ONE_CLASS, SEVERAL_CLASSES, TASKS, Task

FORMAT = 1
DESCRIPTION, WEIGHTS = "bundle.json", "weights.safetensors"


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A loaded bundle.

    Attributes:
        model: the classifier, in eval mode.
        classes: class names in the order of the logits.
        task: whether a clip has exactly one of them or any number.
        info: everything in `bundle.json`.
    """

    model: AudioClassifier
    classes: list[str]
    task: Task
    info: dict[str, Any]

    @property
    def features(self) -> FeatureSpec:
        """What the model reads."""
        return self.model.backbone.features

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits [B, C] -> [B, C]; they sum to 1 unless a clip may have several classes."""
        return self.task.probabilities(logits)


def save_bundle(
    folder: Path,
    model: AudioClassifier,
    source: BackboneSource,
    classes: list[str],
    task: Task,
    origin: dict[str, Any],
    tools: Sequence[dict[str, Any]] = (),
) -> Path:
    """Write a bundle; one that is there is replaced when the new one is whole.

    Args:
        folder: where.
        model: what was trained.
        source: the settings that its backbone was loaded with.
        classes: class names in the order of the logits.
        task: whether a clip has exactly one of them or any number.
        origin: where it comes from (corpus, fold, seed, ...), for whoever reads the file.
        tools: what tools changed in the trained mixture, in order; each is `{"tool": {"name": ...,
            setting: value}, "plan": ...}`.
    """
    weights = save({name: t.cpu().contiguous() for name, t in model.state().items()})
    info = {
        "format": FORMAT,
        "toolkit": __version__,
        "peft": {"name": model.method.registered_name, **model.method.as_dict()},
        "backbone": {"name": source.registered_name, **source.as_dict()},
        "fingerprint": model.backbone.fingerprint,
        "features": dataclasses.asdict(model.backbone.features),
        "pooling": model.pooling,
        "task": task.name,
        "classes": classes,
        "origin": origin,
        "tools": list(tools),
        "weights_hash": _hash(weights),
    }
    with new_folder(folder) as made:
        (made / WEIGHTS).write_bytes(weights)
        (made / DESCRIPTION).write_text(json.dumps(info, indent=2), encoding="utf-8")
    return folder


def load_bundle(folder: str | Path, backbone: str | None = None) -> Bundle:
    """Rebuild the classifier of a bundle.

    Args:
        folder: the bundle.
        backbone: where to find its backbone if it is no longer where it was: a registered name,
            a folder or a hub id.

    Raises:
        BundleError: no bundle, a damaged one, or another backbone than it was trained on.
        BackboneError: the backbone cannot be loaded.
    """
    folder = Path(folder)
    info, weights = _read(folder)
    source = backbones.create({"name": backbone} if backbone else info["backbone"])
    frozen = source.load(info["features"]["max_length"])
    if frozen.fingerprint != info["fingerprint"]:
        raise BundleError(
            f"{folder} was trained on another backbone: {info['backbone']['name']} with the "
            f"fingerprint {info['fingerprint']}, not {source.registered_name} with "
            f"{frozen.fingerprint}; name the right one with `--backbone`"
        )
    method = PEFT.create(info["peft"])
    model = AudioClassifier(frozen, method, len(info["classes"]), info["pooling"])
    for change in info["tools"]:
        TOOLS.create(change["tool"]).restructure(model, change["plan"])
    model.load_state(weights)
    return Bundle(model.eval(), info["classes"], _task(folder, info), info)


def _task(folder: Path, info: dict[str, Any]) -> Task:
    if "task" not in info:  # of before bundles named it
        return SEVERAL_CLASSES if info["origin"].get("multi_label") else ONE_CLASS
    if info["task"] not in TASKS:
        raise BundleError(
            f"{folder} was trained for the task {info['task']!r}, which this toolkit does not know "
            f"(known: {', '.join(TASKS)}); use the version that wrote it ({info['toolkit']})"
        )
    return TASKS[info["task"]]


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        info = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        weights = (folder / WEIGHTS).read_bytes()
    except OSError as error:
        raise BundleError(
            f"{folder} is not a bundle ({error.strerror}: {Path(error.filename).name}); name the "
            "folder 'bundle' of a finished run"
        ) from None
    except ValueError as error:
        raise BundleError(f"{folder / DESCRIPTION} is damaged: {error}") from None
    if info.get("format") != FORMAT:
        raise BundleError(
            f"{folder} has the format {info.get('format')!r}, this toolkit reads {FORMAT}; use the "
            f"version that wrote it ({info.get('toolkit')})"
        )
    if _hash(weights) != info.get("weights_hash"):
        raise BundleError(f"{folder / WEIGHTS} is damaged: its content is not what was saved")
    try:
        return info, load(weights)
    except SafetensorError as error:
        raise BundleError(f"{folder / WEIGHTS} is damaged: {error}") from None


def _hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()

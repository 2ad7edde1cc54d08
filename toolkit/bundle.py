"""Bundles: what was learned, small and reusable.

A bundle is a folder with `bundle.json` (settings, task, class names, the backbone's name and
fingerprint) and `weights.safetensors` (what training changed, by lasting names). Nothing in it is
executed.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from toolkit import __version__, backbones
from toolkit.backbones.base import Backbone
from toolkit.backbones.own import OwnBackbone, RoleMap
from toolkit.errors import BundleError, ConfigError, UnknownName
from toolkit.features.pipeline import Pipeline, pipeline_for
from toolkit.features.spec import FeatureSpec
from toolkit.files import new_folder
from toolkit.model import AudioClassifier
from toolkit.own_folders import Kind, require_replaceable
from toolkit.registry import PEFT, TOOLS
from toolkit.settings import Settings
from toolkit.task import ONE_CLASS, SEVERAL_CLASSES, TASKS, Task, TaskName, task_named

FORMAT = 1
DESCRIPTION, WEIGHTS, TOOL_REPORT = "bundle.json", "weights.safetensors", "report.json"
BUNDLE = Kind(
    "bundle",
    holds=(DESCRIPTION, WEIGHTS, TOOL_REPORT),
    known_by=((DESCRIPTION,),),
    marked=False,
)
"""The folder of a bundle; a tool that makes one leaves its report there too."""


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A loaded bundle.

    Attributes:
        model: the classifier, in eval mode.
        pipeline: makes the rows that the model was trained on; None for a module of your own,
            whose input is not made from audio files.
        classes: class names in the order of the logits.
        task: whether a clip has exactly one of them or any number.
        info: everything in `bundle.json`.
    """

    model: AudioClassifier
    pipeline: Pipeline | None
    classes: list[str]
    task: Task
    info: dict[str, Any]

    @property
    def features(self) -> FeatureSpec:
        """What the model reads."""
        return self.model.backbone.features

    @property
    def reader(self) -> Pipeline:
        """The pipeline, for those who need rows of audio files.

        Raises:
            BundleError: a module of your own, whose input is not made from audio files.
        """
        if self.pipeline is None:
            raise BundleError(
                "this bundle is of a module of your own, which does not say how audio becomes its "
                "input: make the input yourself and call `bundle.model` with it"
            )
        return self.pipeline

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits [B, C] -> [B, C]; they sum to 1 unless a clip may have several classes."""
        return self.task.probabilities(logits)


def save_bundle(
    folder: str | Path,
    model: AudioClassifier,
    classes: Sequence[str],
    task: Task | TaskName,
    *,
    pipeline: Pipeline | None = None,
    origin: Mapping[str, Any] | None = None,
    tools: Sequence[dict[str, Any]] = (),
) -> Path:
    """Write a bundle; one that is there is replaced when the new one is whole.

    Args:
        folder: where.
        model: what was trained.
        classes: class names in the order of the logits.
        task: `"one_class"`, or `"several_classes"` if a clip may have any number of them.
        pipeline: what made the rows that it was trained on; None: the backbone's own.
        origin: where it comes from (corpus, fold, seed, ...), for whoever reads the file.
        tools: what tools changed in the trained mixture, in order; each is `{"tool": {"name": ...,
            setting: value}, "plan": ...}`.

    Returns:
        the folder.

    Raises:
        PlaceError: something else than a bundle is there.
        ConfigError: not one name per logit, no such task, or a pipeline of another kind of rows.
    """
    folder, backbone, outputs = Path(folder).resolve(), model.backbone, model.num_classes
    if not outputs:
        raise ConfigError(
            "a model without a head names no classes: adapt with `num_classes`, or save "
            "`model.state()` yourself"
        )
    require_replaceable(folder, BUNDLE)
    if len(set(classes)) != len(classes):
        raise ConfigError("two classes have the same name: give every class its own")
    if len(classes) != outputs:
        raise ConfigError(
            f"the model has {outputs} classes and {len(classes)} names were given: give one name "
            "per class, in the order of the logits"
        )
    asked = task_named(task) if isinstance(task, str) else task
    source = backbone.source
    if source is None and pipeline is not None:
        raise ConfigError(
            "a pipeline makes rows of audio files, and the input of a module of your own is not "
            "made from these: leave `pipeline` out"
        )
    if pipeline is not None:
        pipeline.require(backbone.features)
    elif source is not None:
        pipeline = pipeline_for(backbone.features)
    weights = save({name: t.cpu().contiguous() for name, t in model.state().items()})
    info = {
        "format": FORMAT,
        "toolkit": __version__,
        "peft": _named(model.method),
        "backbone": None if source is None else _named(source),
        "fingerprint": backbone.fingerprint,
        "features": dataclasses.asdict(backbone.features),
        "pipeline": None if pipeline is None else _named(pipeline),
        "pooling": model.pooling,
        "task": asked.name,
        "classes": list(classes),
        "origin": dict(origin or {}),
        "tools": list(tools),
        "weights_hash": _hash(weights),
    }
    with new_folder(folder, BUNDLE) as made:
        (made / WEIGHTS).write_bytes(weights)
        (made / DESCRIPTION).write_text(json.dumps(info, indent=2), encoding="utf-8")
    return folder


def load_bundle(
    folder: str | Path,
    backbone: str | nn.Module | None = None,
    *,
    roles: RoleMap | None = None,
) -> Bundle:
    """Rebuild the classifier of a bundle.

    Args:
        folder: the bundle.
        backbone: where to find its backbone if it is no longer where it was: a registered name,
            a folder or a hub id. For a bundle of a module of your own, that module, not adapted.
        roles: where the parts of a module of your own are.

    Raises:
        BundleError: no bundle, a damaged one, or another backbone than it was trained on.
        BackboneError: the backbone cannot be loaded.
    """
    folder = Path(folder)
    info, weights = _read(folder)
    frozen = _frozen(folder, info, backbone, roles)
    if frozen.fingerprint != info["fingerprint"]:
        trained_on = (info["backbone"] or {"name": "a module of your own"})["name"]
        raise BundleError(
            f"{folder} was trained on another backbone: {trained_on} with the fingerprint "
            f"{info['fingerprint']}, not {frozen.name} with {frozen.fingerprint}; name the right "
            "one (`--backbone`, or `backbone` in Python)"
        )
    pipeline = None if info["backbone"] is None else _pipeline_of(folder, info, frozen.features)
    method = PEFT.create(info["peft"])
    model = AudioClassifier(frozen, method, len(info["classes"]), info["pooling"])
    for change in info["tools"]:
        TOOLS.create(change["tool"]).restructure(model, change["plan"])
    model.load_state(weights)
    return Bundle(model.eval(), pipeline, info["classes"], _task(folder, info), info)


def _frozen(
    folder: Path, info: dict[str, Any], backbone: str | nn.Module | None, roles: RoleMap | None
) -> Backbone:
    """The backbone of a bundle, as it was before training."""
    if isinstance(backbone, nn.Module):
        if isinstance(backbone, Backbone):
            _require_stock(folder, info, backbone)
            return backbone
        if roles is None:
            raise BundleError(
                f"{type(backbone).__name__} is not a backbone of this toolkit: give the RoleMap "
                "that it was adapted with as `roles`"
            )
        return OwnBackbone(backbone, roles)
    if backbone is None and info["backbone"] is None:
        raise BundleError(
            f"{folder} was trained on a module of your own: give it to `load_bundle` as "
            "`backbone`, with its `roles`"
        )
    source = backbones.create({"name": backbone} if backbone else info["backbone"])
    return source.load(info["features"]["max_length"])


def _require_stock(folder: Path, info: dict[str, Any], backbone: Backbone) -> None:
    """Refuse a backbone that is not as it was loaded, or that reads another length."""
    if backbone.adapted_by is not None or backbone.fingerprint_now() != backbone.fingerprint:
        raise BundleError(
            f"the backbone given for {folder} has been adapted or trained: load a fresh one"
        )
    wanted = info["features"]["max_length"]
    if backbone.features.max_length != wanted:
        raise BundleError(
            f"the backbone given for {folder} reads {backbone.features.max_length} frames, and the "
            f"bundle was trained with {wanted}: load it with `max_length={wanted}`"
        )


def _named(thing: Settings) -> dict[str, Any]:
    return {"name": thing.registered_name, **thing.as_dict()}


def _task(folder: Path, info: dict[str, Any]) -> Task:
    if "task" not in info:  # of before bundles named it
        return SEVERAL_CLASSES if info["origin"].get("multi_label") else ONE_CLASS
    if info["task"] not in TASKS:
        raise BundleError(
            f"{folder} was trained for the task {info['task']!r}, which this toolkit does not know "
            f"(known: {', '.join(TASKS)}); use the version that wrote it ({info['toolkit']})"
        )
    return TASKS[info["task"]]


def _pipeline_of(folder: Path, info: dict[str, Any], spec: FeatureSpec) -> Pipeline:
    """The recorded pipeline; a bundle older than the record was trained with the default one."""
    try:
        return pipeline_for(spec, info.get("pipeline"))
    except UnknownName:
        raise BundleError(
            f"{folder} was trained with the data pipeline '{info['pipeline']['name']}', which is "
            "not registered here: name the folder of its plugin with `--plugins DIR`"
        ) from None


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

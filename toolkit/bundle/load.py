"""Loading a bundle: the classifier that was saved, or an error that says why not."""

import dataclasses
import logging
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from toolkit import backbones
from toolkit.backbones.base import Backbone
from toolkit.backbones.own import OwnBackbone, RoleMap
from toolkit.backbones.weights import not_finite
from toolkit.bundle.info import (
    WEIGHTS,
    BundleInfo,
    ToolChange,
    damaged,
    hash_of,
    not_a_bundle,
    read_info,
)
from toolkit.errors import BundleError, UnknownName, first_line, listed, listing
from toolkit.features.pipeline import Pipeline, pipeline_for
from toolkit.features.spec import FeatureSpec
from toolkit.features.windows import Windows
from toolkit.model import AudioClassifier
from toolkit.registry import PEFT, TOOLS
from toolkit.source_code import source_digest
from toolkit.task import Task, task_named

logger = logging.getLogger(__name__)

LARGEST_MODEL, SPARE = 100, 10_000_000
"""How many times more numbers than its file of weights a model may have before a tool shrinks it,
and how many besides."""

TOO_LARGE = (MemoryError, OverflowError, RuntimeError, TypeError)
"""What torch raises for sizes that it cannot count."""

MISSING = object()
NOT_A_PLAN = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What a tool raises when it is given the plan of another model."""


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A loaded bundle.

    Attributes:
        model: the classifier, in eval mode.
        pipeline: makes the rows that the model was trained on; None for a module of your own,
            whose input is not made from audio files.
        classes: class names in the order of the logits.
        task: whether a clip has exactly one of them or any number.
        info: everything else in `bundle.json`.
    """

    model: AudioClassifier
    pipeline: Pipeline | None
    classes: list[str]
    task: Task
    info: BundleInfo

    @property
    def windows(self) -> Windows:
        """Which windows of a clip count that is longer than the model reads."""
        return self.info.windows

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
    info = read_info(folder)
    weights = _weights(folder, info)
    frozen = _frozen(folder, info, backbone, roles)
    _require_same_features(folder, info, frozen)
    _require_same_backbone(folder, info, frozen)
    pipeline = None if info.backbone is None else _pipeline(folder, info, frozen.features)
    _require_size(folder, info, frozen, sum(tensor.numel() for tensor in weights.values()))
    method = PEFT.create(info.peft.as_dict())
    model = AudioClassifier(
        frozen, method, len(info.classes), info.pooling, merge_tokens=info.merge_tokens
    )
    for change in info.tools:
        _restructure(folder, model, change)
    model.load_state(weights)
    if info.origin.method_source not in (None, source_digest(type(method))):
        logger.warning(
            "the source of the method '%s' has changed since %s was trained: its predictions may "
            "be others; train it again, or use the source of that time",
            info.peft.name, folder,
        )  # fmt: skip
    return Bundle(model.eval(), pipeline, info.classes, task_named(info.task), info)


def _require_same_features(folder: Path, info: BundleInfo, frozen: Backbone) -> None:
    """Refuse a backbone that reads other features than those that the model was trained on.

    A feature that an old bundle does not name has the value that it had before it could be set,
    which is its default.
    """
    spec = frozen.features
    now, before = dataclasses.asdict(spec), dict(info.features)
    if info.format == 1:
        unnamed = [f for f in dataclasses.fields(spec) if f.name not in before]
        old = {f.name: f.default for f in unnamed if f.default is not dataclasses.MISSING}
        frozen.features = dataclasses.replace(spec, **old)
        now, before = now | old, old | before
    changed = [
        f"{key}: {before.get(key, 'not set')} in the bundle, {now.get(key, 'not set')} here"
        for key in sorted(now.keys() | before)
        if before.get(key, MISSING) != now.get(key, MISSING)
    ]
    if changed:
        raise BundleError(
            f"{folder} was trained on another backbone, or on '{frozen.name}' before its features "
            f"were changed:\n{listing(changed)}\nname the right one (`--backbone`, or `backbone` "
            "in Python), or put back what its preprocessor_config.json said"
        )


def _require_same_backbone(folder: Path, info: BundleInfo, frozen: Backbone) -> None:
    found = frozen.weights_fingerprint() if info.format == 1 else frozen.fingerprint
    if found != info.fingerprint:
        trained_on = "a module of your own" if info.backbone is None else info.backbone.name
        raise BundleError(
            f"{folder} was trained on another backbone: {trained_on} with the fingerprint "
            f"{info.fingerprint}, not {frozen.name} with {found}; name the right one "
            "(`--backbone`, or `backbone` in Python)"
        )


def _require_size(folder: Path, info: BundleInfo, frozen: Backbone, stored: int) -> None:
    """Refuse settings of a model far larger than its weights, before it takes memory."""
    try:
        with torch.device("meta"):
            method = PEFT.create(info.peft.as_dict())
            classes = len(info.classes)
            empty = AudioClassifier(frozen.without_weights(), method, classes, info.pooling)
    except TOO_LARGE as error:
        raise BundleError(
            f"{folder} holds settings of '{info.peft.name}' that cannot be used "
            f"({first_line(error)}): make the bundle again"
        ) from None
    asked = sum(tensor.numel() for tensor in empty.state().values())
    if asked > LARGEST_MODEL * stored + SPARE:
        raise BundleError(
            f"{folder} describes a model with {asked:,} trained numbers, and its weights hold "
            f"{stored:,}: use the settings that they were trained with"
        )


def _restructure(folder: Path, model: AudioClassifier, change: ToolChange) -> None:
    """Give the model the shape that a tool left."""
    tool = TOOLS.create(change.tool.as_dict())
    try:
        tool.restructure(model, change.plan)
    except NOT_A_PLAN as error:
        raise BundleError(
            f"{folder} holds a plan of the tool '{change.tool.name}' that does not fit its model "
            f"({type(error).__name__}: {first_line(error)}): make the bundle again"
        ) from None


def _frozen(
    folder: Path, info: BundleInfo, backbone: str | nn.Module | None, roles: RoleMap | None
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
    if backbone is not None:
        return _elsewhere(info, backbone)
    if info.backbone is None:
        raise BundleError(
            f"{folder} was trained on a module of your own: give it to `load_bundle` as "
            "`backbone`, with its `roles`"
        )
    return backbones.create(info.backbone.as_dict()).load(info.max_length)


def _elsewhere(info: BundleInfo, name: str) -> Backbone:
    """The backbone of a name, a folder or a hub id, with the settings of the recorded one but for
    its source."""
    known = backbones.create({"name": name}).as_dict()
    recorded = {} if info.backbone is None else info.backbone.settings
    settings = {k: v for k, v in recorded.items() if k in known and k != "source"}
    return backbones.load_backbone(name, info.max_length, **settings)


def _require_stock(folder: Path, info: BundleInfo, backbone: Backbone) -> None:
    """Refuse a backbone that is not as it was loaded, or that reads another length."""
    if backbone.adapted_by is not None or backbone.fingerprint_now() != backbone.fingerprint:
        raise BundleError(
            f"the backbone given for {folder} has been adapted or trained: load a fresh one"
        )
    if backbone.features.max_length != info.max_length:
        raise BundleError(
            f"the backbone given for {folder} reads {backbone.features.max_length} frames, and the "
            f"bundle was trained with {info.max_length}: load it with "
            f"`max_length={info.max_length}`"
        )


def _pipeline(folder: Path, info: BundleInfo, spec: FeatureSpec) -> Pipeline:
    """The recorded pipeline; a bundle older than the record was trained with the default one."""
    if info.pipeline is None:
        return pipeline_for(spec)
    try:
        return pipeline_for(spec, info.pipeline.as_dict())
    except UnknownName:
        raise BundleError(
            f"{folder} was trained with the data pipeline '{info.pipeline.name}', which is "
            "not registered here: name the folder of its plugin with `--plugins DIR`"
        ) from None


def _weights(folder: Path, info: BundleInfo) -> dict[str, Tensor]:
    try:
        content = (folder / WEIGHTS).read_bytes()
    except OSError as error:
        raise not_a_bundle(folder, error) from None
    if hash_of(content) != info.weights_hash:
        raise damaged(folder / WEIGHTS, "its content is not what was saved")
    try:
        tensors = load(content)
    except (SafetensorError, KeyError, ValueError) as error:
        raise damaged(folder / WEIGHTS, first_line(error)) from None
    odd = not_finite(tensors)
    if odd:
        raise BundleError(
            f"{folder / WEIGHTS} holds values that are not finite numbers, in {listed(odd, 3)}: "
            "the training diverged; train again with a smaller `--lr`"
        )
    return tensors

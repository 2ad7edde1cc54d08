"""Bundles: what was learned, small and reusable.

A bundle is a folder with `bundle.json` (settings, labels, the backbone's name and fingerprint)
and `weights.safetensors` (what training changed, by lasting names). Nothing in it is executed.
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
from toolkit.errors import BundleError, UnknownName
from toolkit.features.pipeline import Pipeline, pipeline_for
from toolkit.files import new_folder
from toolkit.model import AudioClassifier
from toolkit.registry import PEFT, TOOLS

FORMAT = 1
DESCRIPTION, WEIGHTS = "bundle.json", "weights.safetensors"


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A loaded bundle.

    Attributes:
        model: the classifier, in eval mode.
        pipeline: makes the rows that the model was trained on.
        classes: class names in the order of the logits.
        info: everything in `bundle.json`.
    """

    model: AudioClassifier
    pipeline: Pipeline
    classes: list[str]
    info: dict[str, Any]

    @property
    def features(self) -> FeatureSpec:
        """What the model reads."""
        return self.model.backbone.features

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits [B, C] -> [B, C]: they sum to 1, unless a clip may have several classes."""
        many = self.info["origin"].get("multi_label", False)
        return logits.sigmoid() if many else logits.softmax(dim=-1)


def save_bundle(
    folder: Path,
    model: AudioClassifier,
    source: BackboneSource,
    pipeline: Pipeline,
    classes: list[str],
    origin: dict[str, Any],
    tools: Sequence[dict[str, Any]] = (),
) -> Path:
    """Write a bundle; one that is there is replaced when the new one is whole.

    Args:
        folder: where.
        model: what was trained.
        source: the settings that its backbone was loaded with.
        pipeline: what made the rows that it was trained on.
        classes: class names in the order of the logits.
        origin: where it comes from (corpus, fold, seed, ...), for the reader.
        tools: what tools changed in the trained mixture, in order, each `{"tool": {"name": ...,
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
        "pipeline": {"name": pipeline.registered_name, **pipeline.as_dict()},
        "pooling": model.pooling,
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
        backbone: where its backbone is to be had now, if not where it was: a registered name, a
            folder or a hub id.

    Raises:
        BundleError: no bundle, a damaged one, or another backbone than it was trained on.
        BackboneError: the backbone cannot be had.
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
    pipeline = _pipeline_of(folder, info, frozen.features)
    method = PEFT.create(info["peft"])
    model = AudioClassifier(frozen, method, len(info["classes"]), info["pooling"])
    for change in info["tools"]:
        TOOLS.create(change["tool"]).restructure(model, change["plan"])
    model.load_state(weights)
    return Bundle(model.eval(), pipeline, info["classes"], info)


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

"""Writing a bundle."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save

from toolkit import __version__
from toolkit.bundle.info import (
    BUNDLE,
    DESCRIPTION,
    FORMAT,
    WEIGHTS,
    BundleInfo,
    Origin,
    ToolChange,
    check_classes,
    hash_of,
)
from toolkit.errors import ConfigError
from toolkit.features.pipeline import Pipeline, pipeline_for
from toolkit.features.windows import Windows
from toolkit.files import new_folder
from toolkit.model import AudioClassifier
from toolkit.own_folders import require_replaceable
from toolkit.source_code import source_digest
from toolkit.task import Task, TaskName, task_named
from toolkit.typed_json import ShapeError, write_json


def save_bundle(
    folder: str | Path,
    model: AudioClassifier,
    classes: Sequence[str],
    task: Task | TaskName,
    *,
    pipeline: Pipeline | None = None,
    origin: Origin | None = None,
    tools: Sequence[ToolChange] = (),
    windows: Windows = "average",
) -> Path:
    """Write a bundle; one that is there is replaced when the new one is whole.

    Args:
        folder: where.
        model: what was trained.
        classes: class names in the order of the logits.
        task: `"one_class"`, or `"several_classes"` if a clip may have any number of them.
        pipeline: what made the rows that it was trained on; None: the backbone's own.
        origin: where it comes from (corpus, fold, seed, ...).
        tools: what tools changed in the trained mixture, in order.
        windows: which windows of a clip count that is longer than the backbone reads.

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
    try:
        check_classes(classes)
    except ShapeError as error:
        raise ConfigError(f"{error}: give every class its own name") from None
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
    info = BundleInfo(
        format=FORMAT,
        toolkit=__version__,
        peft=model.method.named(),
        backbone=None if source is None else source.named(),
        fingerprint=backbone.fingerprint,
        features=dataclasses.asdict(backbone.features),
        pooling=model.pooling,
        task=asked.name,
        classes=list(classes),
        weights_hash=hash_of(weights),
        origin=_with_source(origin or Origin(), model),
        pipeline=None if pipeline is None else pipeline.named(),
        tools=list(tools),
        windows=windows,
        merge_tokens=model.merge_tokens,
    )
    with new_folder(folder, BUNDLE) as made:
        (made / WEIGHTS).write_bytes(weights)
        write_json(made / DESCRIPTION, info, indent=2)
    return folder


def _with_source(origin: Origin, model: AudioClassifier) -> Origin:
    """The origin with the source of the method, unless it has one."""
    source = origin.method_source or source_digest(type(model.method))
    return dataclasses.replace(origin, method_source=source)

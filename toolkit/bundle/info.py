"""What `bundle.json` says, as dataclasses."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from toolkit.errors import BundleError
from toolkit.features.windows import Windows
from toolkit.model import Pooling
from toolkit.settings import NamedSettings
from toolkit.task import ONE_CLASS, SEVERAL_CLASSES, TaskName
from toolkit.typed_json import Scalar, ShapeError, from_plain

FORMAT = 1
DESCRIPTION, WEIGHTS = "bundle.json", "weights.safetensors"


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a bundle comes from; None: not known.

    Attributes:
        recipe, corpus: names.
        seed: of the run.
        test_fold: the fold on which it was tested.
        metric: name of the score.
        valid_score: of the best epoch.
        best_epoch: the epoch whose weights these are, from 1.
        search: the search that found the architecture, and where its weights are from.
        method_source: digest of the method's source code.
    """

    recipe: str | None = None
    corpus: str | None = None
    seed: int | None = None
    test_fold: int | None = None
    metric: str | None = None
    valid_score: float | None = None
    best_epoch: int | None = None
    search: str | None = None
    method_source: str | None = None


@dataclasses.dataclass(frozen=True)
class ToolChange:
    """A change that a tool made to a trained mixture.

    Attributes:
        tool: the tool.
        plan: what its `apply` returned, from which its `restructure` makes the same shape.
    """

    tool: NamedSettings
    plan: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class BundleInfo:
    """Everything that `bundle.json` says.

    Attributes:
        format: of the file.
        toolkit: the version that wrote it.
        peft: the method.
        backbone: where the backbone was loaded from; None: it is a module of the user's own.
        fingerprint: of the backbone.
        features: what the backbone reads: the fields of its `FeatureSpec`.
        pooling: of the classifier.
        task: the name of the task.
        classes: class names in the order of the logits.
        weights_hash: of the file of weights.
        origin: where the bundle comes from.
        pipeline: what made the rows that it was trained on; None: the default of the backbone, or
            the user's own code where the backbone is.
        tools: what tools changed in the trained mixture, in order.
        windows: which windows of a clip count that is longer than the backbone reads.
    """

    format: int
    toolkit: str
    peft: NamedSettings
    backbone: NamedSettings | None
    fingerprint: str
    features: dict[str, Scalar]
    pooling: Pooling
    task: TaskName
    classes: list[str]
    weights_hash: str
    origin: Origin = Origin()
    pipeline: NamedSettings | None = None
    tools: list[ToolChange] = dataclasses.field(default_factory=list)
    windows: Windows = "average"

    @property
    def max_length(self) -> int:
        """Frames of 10 ms that the backbone reads.

        Raises:
            BundleError: `features` does not say.
        """
        length = self.features.get("max_length")
        if type(length) is not int:
            raise BundleError(
                f"'features.max_length' should be a number of frames, not {length!r}; make the "
                "bundle again"
            )
        return length


def read_info(folder: Path) -> BundleInfo:
    """Read `bundle.json`, also one of before bundles named their task.

    Raises:
        BundleError: it is missing or damaged, or of another format.
    """
    file = folder / DESCRIPTION
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise not_a_bundle(folder, error) from None
    except ValueError as error:
        raise BundleError(f"{file} is damaged: {error}") from None
    if isinstance(values, dict) and values.get("format") != FORMAT:
        raise BundleError(
            f"{folder} has the format {values.get('format')!r}, this toolkit reads {FORMAT}; use "
            f"the version that wrote it ({values.get('toolkit')})"
        )
    try:
        return from_plain(BundleInfo, _with_task(values))
    except ShapeError as error:
        raise BundleError(
            f"{file} cannot be used: {error}; make the bundle again, or use the version that wrote "
            f"it ({values.get('toolkit') if isinstance(values, dict) else 'unknown'})"
        ) from None


def not_a_bundle(folder: Path, error: OSError) -> BundleError:
    """The error of a folder in which a file of a bundle cannot be read."""
    return BundleError(
        f"{folder} is not a bundle ({error.strerror}: {Path(error.filename).name}); name the "
        "folder 'bundle' of a finished run"
    )


def hash_of(content: bytes) -> str:
    """The hash by which a file of weights is recognised."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _with_task(values: Any) -> Any:
    """The parsed file with the task, which early bundles said in `origin`."""
    if not isinstance(values, dict) or "task" in values:
        return values
    origin = values.get("origin")
    several = isinstance(origin, dict) and origin.get("multi_label")
    return values | {"task": (SEVERAL_CLASSES if several else ONE_CLASS).name}

"""What `bundle.json` says, as dataclasses."""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from toolkit.errors import BundleError, listed
from toolkit.features.windows import Windows
from toolkit.model import Pooling
from toolkit.own_folders import Kind
from toolkit.settings import NamedSettings
from toolkit.task import ONE_CLASS, SEVERAL_CLASSES, TaskName
from toolkit.typed_json import CHECKSUM, Scalar, ShapeError, checksum, from_plain, read_object

FORMAT = 2
"""Format 1 had no checksum, and its fingerprint covered the backbone's weights alone."""

DESCRIPTION, WEIGHTS, TOOL_REPORT = "bundle.json", "weights.safetensors", "report.json"
BUNDLE = Kind(
    "bundle",
    holds=(DESCRIPTION, WEIGHTS, TOOL_REPORT),
    known_by=((DESCRIPTION,),),
    marked=False,
)
"""The folder of a bundle; a tool that makes one leaves its report there too."""
LARGEST = 64 * 2**20
"""Bytes of `bundle.json` that are read at most."""


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
        merge_tokens: tokens that merge into others in every block; None: none does.
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
    merge_tokens: int | None = None

    def __post_init__(self) -> None:
        check_classes(self.classes)
        if type(self.features.get("max_length")) is not int:
            raise ShapeError("features.max_length should be a number of frames")
        if self.merge_tokens is not None and self.merge_tokens < 1:
            raise ShapeError(f"merge_tokens should be above 0, not {self.merge_tokens}")

    @property
    def max_length(self) -> int:
        """Frames of 10 ms that the backbone reads."""
        length = self.features["max_length"]
        assert isinstance(length, int)  # checked when it was made
        return length


def check_classes(classes: Sequence[str]) -> None:
    """Refuse class names that cannot tell classes apart.

    Raises:
        ShapeError: there is none, or one is empty or is there twice.
    """
    if not classes:
        raise ShapeError("classes should be a list of at least one name")
    if "" in classes:
        raise ShapeError("classes should have no empty name")
    twice = sorted(name for name, count in Counter(classes).items() if count > 1)
    if twice:
        raise ShapeError(f"two classes have the same name: {listed(twice)}")


def read_info(folder: Path) -> BundleInfo:
    """Read `bundle.json`, also of format 1 and from before bundles named their task.

    Raises:
        BundleError: it is missing, damaged or of another format.
    """
    file = folder / DESCRIPTION
    values = _parsed(folder, file)
    version = values.get("toolkit")
    if values.get("format") not in (1, FORMAT):
        raise BundleError(
            f"{folder} has the format {values.get('format')!r:.60}, this toolkit reads 1 and "
            f"{FORMAT}; use the version that wrote it ({version!r:.60})"
        )
    if values["format"] == FORMAT and values.pop(CHECKSUM, None) != checksum(values):
        raise damaged(file, "its content is not what was saved")
    try:
        return from_plain(BundleInfo, _with_task(values))
    except ShapeError as error:
        raise BundleError(
            f"{file} cannot be used: {error}; make the bundle again, or use the version that wrote "
            f"it ({version!r:.60})"
        ) from None


def _parsed(folder: Path, file: Path) -> dict[str, Any]:
    try:
        if file.exists() and not file.is_file():
            raise BundleError(f"{folder} is not a bundle ({DESCRIPTION} there is not a file)")
        return read_object(file, LARGEST)
    except OSError as error:
        raise not_a_bundle(folder, error) from None
    except ShapeError as error:
        raise damaged(file, str(error)) from None


def damaged(file: Path, reason: str) -> BundleError:
    """The error of a file of a bundle that is not as it was saved."""
    return BundleError(f"{file} is damaged: {reason}; copy the bundle again, or make it again")


def not_a_bundle(folder: Path, error: OSError) -> BundleError:
    """The error of a folder in which a file of a bundle cannot be read."""
    return BundleError(
        f"{folder} is not a bundle ({error.strerror}: {Path(error.filename or folder).name}); name "
        "the folder 'bundle' of a finished run"
    )


def hash_of(content: bytes) -> str:
    """The hash by which a file of weights is recognised."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _with_task(values: dict[str, Any]) -> dict[str, Any]:
    """The parsed file with the task, which early bundles said in `origin`."""
    if "task" in values or values["format"] == FORMAT:
        return values
    origin = values.get("origin")
    several = origin.get("multi_label", False) if isinstance(origin, dict) else False
    if not isinstance(several, bool):
        raise ShapeError(f"origin.multi_label should be bool, not {several!r:.60}")
    return values | {"task": (SEVERAL_CLASSES if several else ONE_CLASS).name}

"""The contract of tools on a trained mixture: a bundle goes in, a bundle and a report come out."""

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol, runtime_checkable

import pandas as pd
import torch
from torch import Tensor, nn

from toolkit.bundle import (
    BUNDLE,
    TOOL_REPORT,
    WEIGHTS,
    Bundle,
    ToolChange,
    load_bundle,
    save_bundle,
)
from toolkit.data.manifest import Corpus
from toolkit.errors import BundleError, PlaceError
from toolkit.features.batch import Batch, collate
from toolkit.features.cache import default_cache_folder
from toolkit.features.dataset import clip_dataset
from toolkit.features.windows import over_clips, with_windows
from toolkit.files import write_atomically
from toolkit.model import AudioClassifier
from toolkit.own_folders import require_replaceable
from toolkit.peft.mixture import mixtures
from toolkit.settings import Settings
from toolkit.task import BatchObjective, Task, task_of


@dataclasses.dataclass(frozen=True)
class Found:
    """What a tool reports on a model that it has changed.

    Attributes:
        active_mean: experts that a token uses, averaged over mixtures; None: the tool does not
            count them, and `run_tool` does.
        parameters_before, parameters_after: trained parameters; None: the tool takes none out.
        details: what else there is to report, by name.
    """

    active_mean: float | None = None
    parameters_before: int | None = None
    parameters_after: int | None = None
    details: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def parameters_removed(self) -> int:
        """Trained parameters that the tool took out."""
        return (self.parameters_before or 0) - (self.parameters_after or 0)

    def as_dict(self) -> dict[str, Any]:
        """What is not None by name, the details beside the rest."""
        values = dataclasses.asdict(self)
        details: dict[str, Any] = values.pop("details")
        return {name: value for name, value in values.items() if value is not None} | details


@runtime_checkable
class Packing(Protocol):
    """A module in which a tool keeps trained parameters in another form."""

    def packed_parameters(self) -> int:
        """Number of trained parameters that it keeps so."""


class MixtureTool(Settings, ABC):
    """A change to a trained mixture of adapters."""

    @abstractmethod
    def apply(self, model: AudioClassifier, data: "MixtureData") -> dict[str, Any]:
        """Change a model in place.

        Args:
            model: as trained, in eval mode.
            data: clips to calibrate on (training folds) and to measure on (the test fold).

        Returns:
            The plan: plain values from which `restructure` gives a fresh model the same shape.
            A tool may also turn the model into one of another method: it then sets `model.method`,
            and the bundle is an ordinary one of that method, which needs no tool to load.

        Raises:
            ConfigError: this tool cannot work on this mixture; the message says why.
        """

    @abstractmethod
    def restructure(self, model: AudioClassifier, plan: dict[str, Any]) -> None:
        """Give a freshly built model the modules that `apply` left; weights are loaded later."""

    def report(self, model: AudioClassifier, plan: dict[str, Any]) -> Found:
        """What the report says beyond the scores and sizes that every tool's report has.

        Args:
            model: as loaded from the changed bundle, after it was measured on the test fold.
            plan: what `apply` returned.
        """
        return Found()


@dataclasses.dataclass(frozen=True)
class MixtureData:
    """Clips for a tool, in the split that a bundle was trained with.

    Attributes:
        calibration: clips of the training folds.
        test: clips of the test fold.
        classes: class names in the order of the labels.
        task: the bundle's.
    """

    calibration: pd.DataFrame
    test: pd.DataFrame
    classes: list[str]
    task: Task
    _windows: Callable[[pd.DataFrame], pd.DataFrame]
    _dataset: Callable[[pd.DataFrame], Sequence[dict[str, Any]]]
    _collate: Callable[[list[dict[str, Any]]], Batch]

    @classmethod
    def of(cls, bundle: Bundle, corpus: Corpus, folder: Path) -> "MixtureData":
        """Read the corpus on which a bundle was trained.

        Args:
            bundle: a loaded bundle.
            corpus: the corpus.
            folder: where its recordings are.

        Raises:
            BundleError: the bundle was trained on other classes or for another task, or does not
                say its fold.
        """
        manifest = corpus.manifest(folder)
        if manifest.classes != bundle.classes:
            raise BundleError(
                f"the bundle knows {bundle.classes}, the corpus has {manifest.classes}: name the "
                "corpus on which it was trained"
            )
        asked = task_of(manifest)
        if asked.name != bundle.task.name:
            raise BundleError(
                f"the bundle was trained for the task {bundle.task.name!r}, the corpus asks for "
                f"{asked.name!r}: name the corpus on which it was trained"
            )
        fold = bundle.info.origin.test_fold
        splits = {split.test: split for split in manifest.splits}
        if fold is None or fold not in splits:
            raise BundleError("the bundle does not say which fold it was tested on")
        spec = bundle.features
        cache = bundle.reader.cache(manifest.clips, spec, default_cache_folder())
        rows = pd.Series(range(len(manifest.clips)), index=manifest.clips["id"])
        return cls(
            calibration=manifest.of_folds(splits[fold].train),
            test=manifest.of_folds([fold]),
            classes=manifest.classes,
            task=bundle.task,
            _windows=lambda clips: with_windows(
                clips, cache.lengths[rows[clips["id"]].to_numpy()], spec.rows, bundle.windows
            ),
            _dataset=lambda clips: clip_dataset(clips, rows, cache),
            _collate=collate(spec),
        )

    def batches(self, clips: pd.DataFrame, batch_size: int = 16) -> Iterator[Batch]:
        """Yield batches of raw features on the CPU, in the order of the clips."""
        dataset = self._dataset(clips)
        for begin in range(0, len(dataset), batch_size):
            end = min(begin + batch_size, len(dataset))
            yield self._collate([dataset[i] for i in range(begin, end)])

    @torch.no_grad()
    def score(self, model: AudioClassifier, clips: pd.DataFrame) -> float:
        """The score of a model on some clips, by the task's metric; that of a run, window by
        window where a clip is longer than the backbone reads."""
        model.eval()
        windows: list[dict[str, Any]] = []
        for batch in self.batches(self._windows(clips)):
            logits = model.logits(batch.features, batch.lengths)
            truths = self.task.truths(batch.labels)
            probabilities = self.task.probabilities(logits).tolist()
            windows += [
                {"id": name, "truth": truth, "probabilities": values}
                for name, truth, values in zip(batch.ids, truths, probabilities, strict=True)
            ]
        found = over_clips(windows)
        truths, predicted = ([one[key] for one in found] for key in ("truth", "probabilities"))
        return self.task.score(self.task.table(truths, predicted))

    def objective(self, labels: Tensor) -> BatchObjective:
        """What the predictions for a batch with these labels are judged by."""
        return BatchObjective(self.task, self.task.targets(labels, len(self.classes)))


@dataclasses.dataclass(frozen=True)
class ToolReport:
    """What a tool did to a bundle; each number before and after.

    Attributes:
        tool: its registered name.
        settings: its settings.
        test_fold: the fold on which the bundle was tested, and is again.
        test_clips: clips in that fold.
        metric: name of the score.
        score_before, score_after: on the test fold.
        bytes_before, bytes_after: of the bundle's weights.
        active_parameters_before, active_parameters_after: parameters that a token uses, of those
            trained outside the head.
        found: what else there is to report, with the experts per token of the changed model.
    """

    tool: str
    settings: dict[str, Any]
    test_fold: int
    test_clips: int
    metric: str
    score_before: float
    score_after: float
    bytes_before: int
    bytes_after: int
    active_parameters_before: int
    active_parameters_after: int
    found: Found

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values by name, what the tool found beside the rest."""
        values = dataclasses.asdict(self)
        del values["found"]
        return values | self.found.as_dict()


def run_tool(
    tool: MixtureTool, bundle_folder: Path, corpus: Corpus, data_folder: Path, output: Path
) -> ToolReport:
    """Apply a tool to a bundle, write the changed bundle, and report.

    Args:
        tool: the tool.
        bundle_folder: the bundle; it stays as it is.
        corpus: the corpus that it was trained on.
        data_folder: where its recordings are.
        output: the folder of the changed bundle and of `report.json`.

    Raises:
        PlaceError: `output` is the bundle itself, or a folder that is not a bundle.
    """
    if output.resolve() == bundle_folder.resolve():
        raise PlaceError(f"{output} is the bundle that is to stay as it is: name another folder")
    require_replaceable(output, BUNDLE)
    bundle = load_bundle(bundle_folder)
    data = MixtureData.of(bundle, corpus, data_folder)
    before = data.score(bundle.model, data.test)
    sizes = expert_sizes(bundle.model)
    trained = sum(trained_in(m) for m in bundle.model.children() if m is not bundle.model.head)
    active = active_parameters(bundle.model, trained, sizes, experts_used(bundle.model, data))
    method = bundle.model.method
    plan = tool.apply(bundle.model, data)
    changes: list[ToolChange] = []
    if bundle.model.method is method:
        changes = [*bundle.info.tools, ToolChange(tool.named(), plan)]
    save_bundle(
        output,
        bundle.model,
        bundle.classes,
        bundle.task,
        pipeline=bundle.pipeline,
        origin=bundle.info.origin,
        windows=bundle.windows,
        tools=changes,
    )
    changed = load_bundle(output)
    after = data.score(changed.model, data.test)
    found = tool.report(changed.model, plan)
    if found.active_mean is None:
        used = experts_used(changed.model, data)
        found = dataclasses.replace(found, active_mean=fmean(used.values()) if used else None)
    else:
        used = dict.fromkeys(sizes, found.active_mean)
    left = trained - found.parameters_removed
    fold = bundle.info.origin.test_fold
    assert fold is not None  # `MixtureData.of` refuses a bundle without it
    report = ToolReport(
        tool=tool.registered_name,
        settings=tool.as_dict(),
        test_fold=fold,
        test_clips=len(data.test),
        metric=data.task.metric,
        score_before=before,
        score_after=after,
        bytes_before=(bundle_folder / WEIGHTS).stat().st_size,
        bytes_after=(output / WEIGHTS).stat().st_size,
        active_parameters_before=active,
        active_parameters_after=active_parameters(changed.model, left, sizes, used),
        found=found,
    )
    write_atomically(output / TOOL_REPORT, json.dumps(report.as_dict(), indent=2))
    return report


def experts_used(model: AudioClassifier, data: MixtureData) -> dict[str, float]:
    """Experts that a token of the test clips uses, on average, by site."""
    model.method.record(model.backbone, True)
    data.score(model, data.test)
    found = mixtures(model.backbone)
    used = {site: mixture.experts_per_token() for site, mixture in found.items()}
    model.method.record(model.backbone, False)
    return used


def trained_in(module: nn.Module) -> int:
    """Trained parameters in a module, with those that a tool has packed."""
    packed = sum(m.packed_parameters() for m in module.modules() if isinstance(m, Packing))
    return packed + sum(p.numel() for p in module.parameters() if p.requires_grad)


def expert_sizes(model: AudioClassifier) -> dict[str, float]:
    """Parameters of one expert by site; no tool changes how many an expert has."""
    return {
        site: trained_in(mixture.experts) / mixture.num_experts
        for site, mixture in mixtures(model.backbone).items()
    }


def active_parameters(
    model: AudioClassifier, trained: int, sizes: dict[str, float], used: dict[str, float]
) -> int:
    """Trained parameters outside the head without the experts that a token does not use.

    Args:
        model: with mixtures.
        trained: parameters outside the head.
        sizes: parameters of one expert by site.
        used: experts that a token uses by site.
    """
    found = mixtures(model.backbone)
    return round(trained - sum((m.num_experts - used[s]) * sizes[s] for s, m in found.items()))

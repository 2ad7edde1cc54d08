"""The contract of tools on a trained mixture: a bundle goes in, a bundle and a report come out."""

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from toolkit.bundle import WEIGHTS, Bundle, load_bundle, save_bundle
from toolkit.data.manifest import Corpus
from toolkit.errors import BundleError
from toolkit.features.batch import Batch, collate
from toolkit.features.cache import default_cache_folder
from toolkit.features.dataset import clip_dataset
from toolkit.model import AudioClassifier
from toolkit.peft import insertion
from toolkit.settings import Settings
from toolkit.task import BatchObjective, Label, Task, task_of

__all__ = ["MixtureData", "MixtureTool", "mixtures", "run_tool"]


class MixtureTool(Settings, ABC):
    """A change to a trained mixture of adapters."""

    @abstractmethod
    def apply(self, model: AudioClassifier, data: "MixtureData") -> dict[str, Any]:
        """Change a model in place.

        Args:
            model: as trained, in eval mode.
            data: clips to calibrate on (training folds) and to measure on (the test fold).

        Returns:
            the plan: plain values from which `restructure` gives a fresh model the same shape.
            A tool may also turn the model into one of another method: it then sets `model.method`,
            and the bundle is an ordinary one of that method, for which no tool is needed.

        Raises:
            ConfigError: this tool cannot work on this mixture; the message says why.
        """

    @abstractmethod
    def restructure(self, model: AudioClassifier, plan: dict[str, Any]) -> None:
        """Give a freshly built model the modules that `apply` left; weights are loaded later."""

    def report(self, model: AudioClassifier, plan: dict[str, Any]) -> dict[str, Any]:
        """What else the report shall say, such as active experts."""
        return {}


@dataclasses.dataclass(frozen=True)
class MixtureData:
    """Clips for a tool, in the split that a bundle was trained with.

    Attributes:
        calibration: clips of the training folds.
        test: clips of the test fold.
        classes: class names in the order of the labels.
        task: of the corpus.
    """

    calibration: pd.DataFrame
    test: pd.DataFrame
    classes: list[str]
    task: Task
    _dataset: Any
    _collate: Any

    @classmethod
    def of(cls, bundle: Bundle, corpus: Corpus, folder: Path) -> "MixtureData":
        """Read a corpus for a bundle.

        Raises:
            BundleError: the bundle was trained on other classes or does not say its fold.
        """
        manifest = corpus.manifest(folder)
        if manifest.classes != bundle.classes:
            raise BundleError(
                f"the bundle knows {bundle.classes}, the corpus has {manifest.classes}: name the "
                "corpus that it was trained on"
            )
        fold = bundle.info["origin"].get("test_fold")
        splits = {split.test: split for split in manifest.splits}
        if fold not in splits:
            raise BundleError("the bundle does not say which fold it was tested on")
        spec = bundle.features
        cache = bundle.pipeline.cache(manifest.clips, spec, default_cache_folder())
        rows = pd.Series(range(len(manifest.clips)), index=manifest.clips["id"])
        return cls(
            calibration=manifest.of_folds(splits[fold].train),
            test=manifest.of_folds([fold]),
            classes=manifest.classes,
            task=task_of(manifest),
            _dataset=lambda clips: clip_dataset(clips, rows, cache),
            _collate=collate(spec),
        )

    def batches(self, clips: pd.DataFrame, batch_size: int = 16) -> Iterator[Batch]:
        """Batches of raw features in the clips' order."""
        dataset = self._dataset(clips)
        for begin in range(0, len(dataset), batch_size):
            end = min(begin + batch_size, len(dataset))
            yield self._collate([dataset[i] for i in range(begin, end)])

    @torch.no_grad()
    def score(self, model: AudioClassifier, clips: pd.DataFrame) -> float:
        """The score of a model on some clips, by the task's metric."""
        model.eval()
        truths: list[Label] = []
        probabilities: list[list[float]] = []
        for batch in self.batches(clips):
            logits = model.logits(batch.features, batch.lengths)
            truths += self.task.truths(batch.labels)
            probabilities += self.task.probabilities(logits).tolist()
        return self.task.score(self.task.table(truths, probabilities))

    def objective(self, labels: Tensor) -> BatchObjective:
        """What the predictions for a batch with these labels are judged by."""
        return BatchObjective(self.task, self.task.targets(labels, len(self.classes)))


def mixtures(model: AudioClassifier) -> list[tuple[str, Any]]:
    """The inserted mixtures of a model with the names of their sites, e.g. `blocks.0.mhsa`."""
    found = []
    for path, module in model.backbone.model.named_modules():
        if isinstance(module, insertion.Wrapper) and hasattr(module.inserted, "experts"):
            found.append((model.backbone.canonical(path), module.inserted))
    return found


def experts_used(model: AudioClassifier, data: MixtureData) -> dict[str, float]:
    """Experts that a token of the test clips uses, by site; without those that use all."""
    model.method.record(model.backbone, True)
    data.score(model, data.test)
    used = {
        site: torch.stack([record["active_mean"] for record in mixture.records]).mean().item()
        for site, mixture in mixtures(model)
        if any("active_mean" in record for record in getattr(mixture, "records", ()))
    }
    model.method.record(model.backbone, False)
    return used


def trained_in(module: nn.Module) -> int:
    """Trained parameters in a module; of those that a tool has packed (a property in the place of
    each, its name in `packed`), as many as there were."""
    plain = sum(p.numel() for p in module.parameters() if p.requires_grad)
    packed = [(owner, name) for owner in module.modules() for name in getattr(owner, "packed", ())]
    return plain + sum(getattr(owner, name).numel() for owner, name in packed)


def expert_sizes(model: AudioClassifier) -> dict[str, float]:
    """Parameters of one expert of each mixture; no tool changes how many an expert has."""
    return {
        site: trained_in(mixture.experts) / mixture.experts.num_experts
        for site, mixture in mixtures(model)
    }


def active_parameters(
    model: AudioClassifier, trained: int, sizes: dict[str, float], used: dict[str, float]
) -> int:
    """Trained parameters outside the head without the experts that a token does not use.

    Args:
        model: with mixtures.
        trained: parameters outside the head.
        sizes: see `expert_sizes`.
        used: see `experts_used`.
    """
    experts = {site: mixture.experts.num_experts for site, mixture in mixtures(model)}
    return round(trained - sum((experts[site] - n) * sizes[site] for site, n in used.items()))


def run_tool(
    tool: MixtureTool, bundle_folder: Path, corpus: Corpus, data_folder: Path, output: Path
) -> dict[str, Any]:
    """Apply a tool to a bundle, write the changed bundle, and report.

    Returns:
        score on the test fold, bytes of the weights and parameters that a token uses (of those
        trained outside the head), each before and after, and what the tool adds; also written to
        `report.json` in the new bundle's folder.
    """
    bundle = load_bundle(bundle_folder)
    data = MixtureData.of(bundle, corpus, data_folder)
    before = data.score(bundle.model, data.test)
    sizes = expert_sizes(bundle.model)
    trained = sum(trained_in(m) for m in bundle.model.children() if m is not bundle.model.head)
    active = active_parameters(bundle.model, trained, sizes, experts_used(bundle.model, data))
    method = bundle.model.method
    plan = tool.apply(bundle.model, data)
    changes: Sequence[dict[str, Any]] = []
    if bundle.model.method is method:
        change = {"tool": {"name": tool.registered_name, **tool.as_dict()}, "plan": plan}
        changes = [*bundle.info["tools"], change]
    origin = bundle.info["origin"]
    save_bundle(
        output,
        bundle.model,
        bundle.classes,
        bundle.task,
        pipeline=bundle.pipeline,
        origin=origin,
        tools=changes,
    )
    changed = load_bundle(output)
    after = data.score(changed.model, data.test)
    found = tool.report(changed.model, plan)
    if "active_mean" in found:
        used = dict.fromkeys(sizes, found["active_mean"])
    else:
        used = experts_used(changed.model, data)
    lost = found.get("parameters_before", 0) - found.get("parameters_after", 0)
    report = {
        "tool": tool.registered_name,
        "settings": tool.as_dict(),
        "test_fold": bundle.info["origin"]["test_fold"],
        "test_clips": len(data.test),
        "metric": data.task.metric,
        "score_before": before,
        "score_after": after,
        "bytes_before": (bundle_folder / WEIGHTS).stat().st_size,
        "bytes_after": (output / WEIGHTS).stat().st_size,
        "active_parameters_before": active,
        "active_parameters_after": active_parameters(changed.model, trained - lost, sizes, used),
        **found,
    }
    (output / "report.json").write_text(json.dumps(report, indent=2), encoding="utf-8")
    return report

#!/usr/bin/env python
"""Measure the accuracy that compressing and pruning a trained mixture costs.

    python tools/benchmark.py tools/studies/mixtures.yaml --data ../shared/data
    python tools/bench_compression.py results/studies/mixtures --data ../shared/data
                                      [--text docs/results/compression.md] [--folds 1,2,3,4,5]

MC-MoE, SEER and AdapMoE are applied fold by fold to the mixtures that the study trained, with the
settings in `CURVES` and in the same way as `toolkit compress` and `toolkit prune`: each tool
calibrates on the training folds, and accuracy is measured on the test fold before and after.
Results are kept in the study's folder (`compression/`), so that an interrupted run resumes and a
finished one is only drawn again. Writes a page with a table and two plots (accuracy against file
size and against active experts), and the results per fold as CSV.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure

from toolkit import plugins
from toolkit.bundle import WEIGHTS, load_bundle
from toolkit.data.manifest import Corpus
from toolkit.errors import ConfigError
from toolkit.files import write_atomically
from toolkit.mixtures.tool import MixtureData, run_tool
from toolkit.peft.mixture import mixtures
from toolkit.registry import CORPORA, TOOLS
from toolkit.study.plan import Cell
from toolkit.study.records import read_record
from toolkit.study.report.plots import save_small
from toolkit.study.spec import COPY, Study
from toolkit.training.experiment import main

EXPERTS = 7
METHODS = ["densemoa", "topk_moa", "softmoa"]
"""Methods of the study that the tools can be applied to."""

CHOOSING = ["densemoa", "topk_moa"]
"""Those in which tokens choose experts, so that the number of experts per token can be reduced."""

CONTROL = "without any expert"
"""The control, which shows how much the experts contribute at all."""

CURVES: dict[str, tuple[list[str], list[dict[str, Any]]]] = {
    CONTROL: (METHODS, [{"name": "none"}]),
    "MC-MoE": (
        METHODS,
        [{"name": "mc_moe", "avg_bits": bits} for bits in (2.5, 2.0, 1.6)],
    ),
    "MC-MoE, all else at 4 bits": (
        METHODS,
        [{"name": "mc_moe", "avg_bits": bits, "rest_bits": 4} for bits in (2.5, 2.0, 1.6)],
    ),
    "SEER": (
        METHODS,
        [{"name": "seer", "keep_ratio": kept, "k_schedule": []} for kept in (0.75, 0.5, 0.25)],
    ),
    "AdapMoE": (
        CHOOSING,
        [{"name": "adapmoe", "target_active": active} for active in (1.75, 1.5, 1.25, 1.1)],
    ),
    "MC-MoE at 2.5 bits, online pruning": (
        CHOOSING,
        [{"name": "mc_moe", "avg_bits": 2.5, "mu": mu} for mu in (0.5, "median", 0.95)],
    ),
}
"""Name of a curve -> the mixtures it is drawn for, and the settings of the tool at its points."""

SMALLER = ["MC-MoE", "MC-MoE, all else at 4 bits", "SEER"]
SPARSER = ["SEER", "AdapMoE", "MC-MoE at 2.5 bits, online pruning"]


def points(study: Study, folder: Path, data: Path, folds: list[int]) -> pd.DataFrame:
    """One row per curve, mixture, setting and fold; each result is also kept as a file."""
    rows = []
    for curve, (methods, settings) in CURVES.items():
        for method in methods:
            for values in settings:
                setting = ", ".join(f"{k} {v}" for k, v in values.items() if k != "name")
                for fold in folds:
                    report = applied(study, folder, data, method, fold, values)
                    rows.append(
                        {
                            "curve": curve,
                            "mixture": method,
                            "setting": setting,
                            "fold": fold,
                            "before": 100 * report["score_before"],
                            "accuracy": 100 * report["score_after"],
                            "bytes": report["bytes_after"] / report["bytes_before"],
                            "active": report["active_mean"],
                        }
                    )
                print(
                    f"{curve:36} {method:10} {setting:28} {rows[-1]['accuracy']:.1f} %", flush=True
                )
    return pd.DataFrame(rows)


def applied(
    study: Study, folder: Path, data: Path, method: str, fold: int, values: dict[str, Any]
) -> dict[str, Any]:
    """The report of a tool applied to the mixture of one fold, computed unless it is on disk."""
    corpus, spec = next(iter(study.corpora.items()))
    cell = Cell(corpus, method, study.backbones[0], None, study.seeds[0], fold)
    trained = folder / "runs" / cell.name
    record = read_record(trained)
    if record is None or not record.done:
        raise FileNotFoundError(
            f"{cell.name} has not been trained: run tools/benchmark.py with this study first"
        )
    setting = "-".join(f"{key}={value}" for key, value in values.items())
    output = folder / "compression" / method / f"fold-{fold}" / setting
    if not (output / "report.json").is_file():
        bundle = trained / "train" / "bundle"
        registered = CORPORA.create({"name": "esc50", "esc10": True})
        assert spec.data_folder is not None
        place = data / spec.data_folder
        if values["name"] == "none":
            return without_experts(bundle, registered, place)
        tool = TOOLS.create(values, values["name"])
        run_tool(tool, bundle, registered, place, output)
        (output / WEIGHTS).unlink()  # only the reports are needed, not a hundred models
    report: dict[str, Any] = json.loads((output / "report.json").read_text(encoding="utf-8"))
    if "active_mean" not in report:
        raise ConfigError(f"{output} was written by an older version: delete it and run again")
    return report


def without_experts(folder: Path, corpus: Corpus, place: Path) -> dict[str, Any]:
    """The report of a tool that silences all experts and leaves the trained norms and head."""
    bundle = load_bundle(folder)
    data = MixtureData.of(bundle, corpus, place)
    before = data.score(bundle.model, data.test)
    with torch.no_grad():
        for mixture in mixtures(bundle.model.backbone).values():
            mixture.experts.up.zero_()
            mixture.experts.up_bias.zero_()
    after = data.score(bundle.model, data.test)
    found = {"score_before": before, "score_after": after, "active_mean": 0.0}
    return found | {"bytes_before": 1, "bytes_after": 1}


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over folds, and mean and standard deviation of the change from the trained mixture."""
    rows = rows.assign(change=rows["accuracy"] - rows["before"])
    keys = ["curve", "mixture", "setting"]
    found = rows.groupby(keys, sort=False).agg(
        before=("before", "mean"),
        accuracy=("accuracy", "mean"),
        change=("change", "mean"),
        spread=("change", "std"),
        bytes=("bytes", "mean"),
        active=("active", "mean"),
    )
    return found.reset_index()


def draw(points: pd.DataFrame, curves: list[str], x: str, label: str) -> Figure:
    """One panel per mixture: accuracy against `x`, starting from the mixture as trained."""
    methods = [m for m in METHODS if m in set(points[points["curve"].isin(curves)]["mixture"])]
    figure = Figure(figsize=(3.6 * len(methods), 3.6), layout="constrained")
    panels = figure.subplots(1, len(methods), sharey=True, squeeze=False)[0]
    for axes, method in zip(panels, methods, strict=True):
        own = points[points["mixture"] == method]
        for curve in curves:
            part = own[own["curve"] == curve].sort_values(x)
            axes.plot(part[x], part["accuracy"], marker="o", ms=4, lw=1.2, label=curve)
        axes.axhline(own["before"].iloc[0], color="0.55", lw=1, ls="--", label="as trained")
        silent = own[own["curve"] == CONTROL]["accuracy"].iloc[0]
        axes.axhline(silent, color="0.55", lw=1, ls=":", label=CONTROL)
        axes.set_title(method)
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("test accuracy %, mean over folds")
    panels[0].legend(fontsize=7)
    return figure


def text(found: pd.DataFrame, study: Study, folds: list[int], pictures: dict[str, str]) -> str:
    """The page in Markdown: an explanation, the table, and the plots (title -> relative path)."""
    lines = [
        "# What compressing and pruning a trained mixture costs",
        "",
        f"The mixtures of `tools/studies/{study.study}.yaml` (ESC-10, `{study.backbones[0]}`, seed "
        f"{study.seeds[0]}, {EXPERTS} experts per layer), modified by MC-MoE, SEER and AdapMoE. "
        f"Means over {len(folds)} test folds; the change is paired by fold, with its standard "
        "deviation over folds. File size is that of the weights relative to the original; active "
        "experts are those used per token. Each tool calibrates on the training folds only; SEER "
        "also fine-tunes there for 2 epochs. A test fold has 80 clips, so one clip is 1.25 points. "
        'The control "without any expert" keeps only the norms and the head that were trained '
        "together with the experts: where it is as good, the experts learned little, and the "
        "curves show little.",
        "",
        "| tool | mixture | setting | before % | after % | change | file size | active experts |",
        "| --- | --- | --- | --: | --: | --: | --: | --: |",
    ]
    for row in found.to_dict("records"):
        lines.append(
            f"| {row['curve']} | {row['mixture']} | {row['setting']} | {row['before']:.1f} | "
            f"{row['accuracy']:.1f} | {row['change']:+.1f} ± {row['spread']:.1f} | "
            f"{row['bytes']:.0%} | {row['active']:.2f} |"
        )
    lines += [
        "",
        *(f"![{title}]({path})\n" for title, path in pictures.items()),
        "Generated by `tools/bench_compression.py` from the tools' reports: do not edit.",
    ]
    return "\n".join(lines) + "\n"


def run(arguments: Sequence[str]) -> None:
    """Compute what is missing, then write the table and the plots."""
    options = parser().parse_args(arguments)
    plugins.load([])
    study = Study.read(options.study / COPY)
    rows = points(study, options.study.resolve(), options.data.resolve(), options.folds)
    found = table(rows)
    options.text.parent.mkdir(parents=True, exist_ok=True)
    folder = options.text.with_suffix("")
    smaller = draw(found, SMALLER, "bytes", "file size relative to the original")
    sparser = draw(found, SPARSER, "active", "experts used per token")
    files = {
        "Accuracy against file size": save_small(smaller, folder, "bytes"),
        "Accuracy against active experts": save_small(sparser, folder, "active"),
    }
    pictures = {title: f"{folder.name}/{file.name}" for title, file in files.items()}
    rows.to_csv(options.study / "compression" / "points.csv", index=False)
    write_atomically(options.text, text(found, study, options.folds, pictures))
    print(f"wrote {options.text}")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("study", type=Path, help="folder with the study's results")
    made.add_argument("--data", type=Path, default=Path("data"), help="folder with the corpora")
    made.add_argument(
        "--folds", type=lambda text: [int(n) for n in text.split(",")], default=[1, 2, 3, 4, 5]
    )
    made.add_argument("--text", type=Path, default=Path("docs/results/compression.md"))
    return made


if __name__ == "__main__":
    main(run)

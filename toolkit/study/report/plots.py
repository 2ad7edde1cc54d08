"""Pictures that compare methods, ready for a paper, as PNG and SVG."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
import pandas as pd
from adjustText import adjust_text
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from toolkit.files import errors_name
from toolkit.literal_text import literal
from toolkit.own_folders import remove_files
from toolkit.study.report.load import metric_name
from toolkit.study.report.tables import Ranking

matplotlib.use("Agg")

DPI = 200
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "toolkit",  # the same picture gives the same file
    "svg.fonttype": "none",  # text stays text instead of a path per letter
    "font.sans-serif": ["DejaVu Sans", "Verdana"],  # equally wide; any sans-serif if neither exists
}
MOST_SVG_BYTES = 60_000
"""Larger pictures are kept as PNG in a repository."""

ATTRIBUTE = re.compile(r' (?:d|x|y|transform)="[^"]*"')
FRACTION = re.compile(r"-?\d+\.\d{3,}")
GREY = "0.55"
MARKED = "tab:red"


def save(
    figure: Figure, folder: Path, name: str, kinds: Sequence[Literal["png", "svg"]] = ("png", "svg")
) -> None:
    """Write a picture as `name.png` and `name.svg`, or as one of them."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind in kinds:
        file = folder / f"{name}.{kind}"
        metadata = {"Date": None} if kind == "svg" else {}
        with matplotlib.rc_context(STYLE), errors_name(file):
            figure.savefig(file, dpi=DPI, bbox_inches="tight", metadata=metadata)
        if kind == "svg":
            file.write_text(_rounded(file.read_text(encoding="utf-8")), encoding="utf-8")


def save_small(figure: Figure, folder: Path, name: str) -> Path:
    """Write a picture for a repository: as SVG, or as PNG if the SVG would be too large.

    Returns:
        the file.
    """
    save(figure, folder, name)
    vector, pixels = folder / f"{name}.svg", folder / f"{name}.png"
    small = vector.stat().st_size <= MOST_SVG_BYTES
    remove_files(folder, (pixels if small else vector).name)
    return vector if small else pixels


def _rounded(svg: str) -> str:
    """The same SVG with coordinates rounded to hundredths of a point."""
    return ATTRIBUTE.sub(lambda found: FRACTION.sub(_hundredths, found[0]), svg)


def _hundredths(number: re.Match[str]) -> str:
    return f"{float(number[0]):.2f}".rstrip("0").rstrip(".")


def draw_intervals(table: pd.DataFrame, baseline: str | None) -> Figure:
    """Mean score of each method with its interval, best on top.

    Args:
        table: methods of one group, see `tables.methods`.
        baseline: drawn in another colour.
    """
    table = table.sort_values("score", ignore_index=True)
    figure = Figure(figsize=(6, 1.2 + 0.24 * len(table)), layout="constrained")
    axes = figure.subplots()
    colours = [MARKED if method == baseline else "tab:blue" for method in table["method"]]
    axes.hlines(table.index, table["low"], table["high"], colors=colours, lw=2)
    axes.scatter(table["score"], table.index, c=colours, s=24, zorder=2)
    axes.set_yticks(table.index, map(literal, table["method"]), fontsize=8)
    axes.set_ylim(-1, len(table))
    metric = metric_name(table["metric"])
    axes.set_xlabel(f"test {metric} %, mean and 95 % interval over folds and seeds")
    axes.grid(axis="x", alpha=0.3)
    return figure


def draw_pareto(table: pd.DataFrame, x: str, label: str) -> Figure:
    """Score against a cost, with the Pareto front marked.

    Args:
        table: methods of one group.
        x: the column of the cost; lower is better.
        label: the label of its axis.
    """
    table = table.dropna(subset=[x, "score"])
    figure = Figure(figsize=(6.5, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.scatter(table[x], table["score"], s=18, color=GREY)
    front = pareto_front(table, x)
    axes.plot(front[x], front["score"], color=MARKED, marker="o", ms=4, lw=1, zorder=2)
    if (table[x] > 0).all() and table[x].max() > 20 * table[x].min():
        set_log_scale(axes)
    axes.set_xlabel(label)
    axes.set_ylabel(f"test {metric_name(table['metric'])} %")
    axes.grid(alpha=0.3)
    _name_points(figure, axes, table, x, set(front["method"]))
    return figure


def set_log_scale(axes: Axes) -> None:
    """Make the x axis logarithmic, with plain numbers such as 10,000 at its decades."""
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.10g}"))


def _name_points(
    figure: Figure, axes: Axes, table: pd.DataFrame, x: str, on_front: set[str]
) -> None:
    """Write the name of every method beside its point without overlaps."""
    names = [
        axes.text(
            row[x], row["score"], literal(row["method"]),
            fontsize=7 if row["method"] in on_front else 5.5,
            color="black" if row["method"] in on_front else "0.35",
        )
        for _, row in table.iterrows()
    ]  # fmt: skip
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()  # texts have no size before
    adjust_text(
        names, x=table[x].to_list(), y=table["score"].to_list(), ax=axes, min_arrow_len=4,
        iter_lim=500,  # instead of a time limit, so that the same picture gives the same file
        arrowprops={"arrowstyle": "-", "color": GREY, "lw": 0.4},
    )  # fmt: skip


def pareto_front(table: pd.DataFrame, x: str) -> pd.DataFrame:
    """The rows with a higher score than every row of equal or lower cost, cheapest first."""
    ordered = table.sort_values([x, "score"], ascending=[True, False])
    best = ordered["score"].astype(float).cummax().shift(fill_value=-np.inf)
    return ordered[ordered["score"] > best]


def draw_recalls(recalls: pd.DataFrame, baseline: str | None) -> Figure:
    """Recall of every method per class, or its difference from the baseline's.

    Args:
        recalls: [methods, classes] in %.
        baseline: its row is subtracted if there is one.
    """
    relative = baseline in recalls.index
    values = recalls - recalls.loc[baseline] if relative else recalls
    limit = max(1.0, float(np.abs(values.to_numpy()).max()))
    size = (3 + 0.32 * len(values.columns), 2.5 + 0.26 * len(values))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    cmap, low = ("RdBu", -limit) if relative else ("Blues", 0.0)
    image = axes.imshow(values, cmap=cmap, vmin=low, vmax=limit, aspect="auto")
    unit = f"recall minus recall of {literal(str(baseline))}, % points" if relative else "recall %"
    figure.colorbar(image, ax=axes, label=unit)
    names = [literal(name.replace("_", " ")) for name in values.columns]
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axes.set_yticks(range(len(values)), map(literal, values.index), fontsize=7)
    return figure


def draw_ranks(ranking: Ranking, groups: Sequence[tuple[int, int]]) -> Figure:
    """Critical-difference diagram: methods at their average ranks, with bars over those that do not
    differ.

    Args:
        ranking: what to draw.
        groups: see `statistics.cliques`.
    """
    average, count = ranking.ranks.average, len(ranking.methods)
    half = (count + 1) // 2
    figure = Figure(figsize=(7, 1.4 + 0.22 * half + 0.1 * len(groups)))  # names are outside it
    axes = figure.subplots()
    low = math.floor(average.min())
    high = math.ceil(max(average.max(), low + ranking.ranks.critical_difference))
    top = 0.5 * (len(groups) + 1)
    for level, (first, last) in enumerate(groups, 1):
        ends = [average[first] - 0.01 * (high - low), average[last] + 0.01 * (high - low)]
        axes.plot(ends, [-0.5 * level] * 2, color="black", lw=3, solid_capstyle="butt")
    for position, (method, value) in enumerate(zip(ranking.methods, average, strict=True)):
        left = position < half
        row = position if left else count - 1 - position
        height, edge = -top - row, low if left else high
        axes.plot([value, value, edge], [0, height, height], color=GREY, lw=0.8)
        axes.annotate(
            f"{literal(method)} {value:.1f}", (edge, height), xytext=(-4 if left else 4, 0),
            textcoords="offset points", ha="right" if left else "left", va="center", fontsize=7,
        )  # fmt: skip
    _scale(axes, low, high, ranking.ranks.critical_difference)
    return figure


def _scale(axes: Axes, low: int, high: int, difference: float) -> None:
    """Draw the axis of ranks, and the critical difference above it."""
    axes.plot([low, high], [0, 0], color="black", lw=1)
    for tick in range(low, high + 1, math.ceil((high - low) / 12)):
        axes.plot([tick, tick], [0, 0.2], color="black", lw=1)
        axes.text(tick, 0.3, str(tick), ha="center", fontsize=7)
    axes.plot([low, low + difference], [1.4, 1.4], color="black", lw=2)
    axes.text(low, 1.6, f"critical difference {difference:.2f}", fontsize=7)
    axes.set_axis_off()

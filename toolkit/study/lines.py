"""Pictures of how accuracy grows: over epochs, clips a class, parameters, and swept settings."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from toolkit.study.results import ALL_SHOTS, Results
from toolkit.study.statistics import t_interval

MOST_LINES = 10
"""More lines in one picture cannot be told apart."""


def draw_epochs(results: Results, methods: list[str], group: tuple[str, ...]) -> Figure:
    """Mean validation accuracy over the epochs.

    Args:
        results: of the study.
        methods: those to draw, at most `MOST_LINES`.
        group: corpus, backbone, shots.
    """
    figure, axes = _new("epoch", "validation accuracy %")
    for method in methods[:MOST_LINES]:
        curve = mean_curve(results, (*group, method), "valid_accuracy")
        axes.plot(range(1, len(curve) + 1), [100 * value for value in curve], label=method, lw=1.2)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize=7)
    return figure


def mean_curve(results: Results, key: tuple[str, ...], name: str) -> list[float]:
    """A curve (see `outcome.CURVES`) of a method, averaged over its folds and seeds."""
    curves = results.curves[key]
    length = min(len(curve[name]) for curve in curves)
    return [sum(curve[name][i] for curve in curves) / len(curves) for i in range(length)]


def draw_few_shot(folds: pd.DataFrame) -> Figure:
    """Accuracy against clips a class, a line a method; all clips stand at the right end.

    Args:
        folds: of one corpus and backbone, see `Results.folds`.
    """
    figure, axes = _new("training clips of each class", "test accuracy %")
    numbers = sorted(int(s) for s in folds["shots"].unique() if s != ALL_SHOTS)
    places = {str(number): float(number) for number in numbers}
    if (folds["shots"] == ALL_SHOTS).any():
        places[ALL_SHOTS] = 2.0 * numbers[-1]
    for method, rows in folds.groupby("method", sort=False):
        _line(axes, rows.assign(x=rows["shots"].map(places)), str(method))
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(places.values()), list(places))
    axes.minorticks_off()
    axes.legend(fontsize=7)
    return figure


def draw_scaling(folds: pd.DataFrame) -> Figure:
    """Accuracy against trained parameters, a line a series.

    Args:
        folds: of one corpus, backbone and number of clips a class.
    """
    figure, axes = _new("parameters trained outside the head", "test accuracy %")
    for series, rows in folds.groupby("series", sort=False):
        _line(axes, rows.assign(x=rows["trained"]), str(series))
    axes.set_xscale("log")
    axes.legend(fontsize=7)
    return figure


def draw_sweep(folds: pd.DataFrame, factor: str) -> Figure:
    """Accuracy against one swept setting, a line for each series and combination of the others.

    Args:
        folds: of the methods that sweep it, with the columns `value`, its value, and `others`,
            the others as text.
        factor: the setting's name.
    """
    figure, axes = _new(factor, "test accuracy %")
    numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in folds["value"])
    words = [str(value).lower() for value in folds["value"]]
    places = {word: place for place, word in enumerate(dict.fromkeys(words))}
    x = folds["value"].astype(float) if numeric else [places[word] for word in words]
    for (series, others), rows in folds.assign(x=x).groupby(["series", "others"], sort=False):
        _line(axes, rows, f"{series} {others}".strip())
    if numeric:
        axes.set_xticks(sorted(set(x)))
    else:
        axes.set_xticks(list(places.values()), list(places))
        axes.margins(x=0.3)
    axes.legend(fontsize=7)
    return figure


def _new(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    return figure, axes


def _line(axes: Axes, rows: pd.DataFrame, label: str) -> None:
    """Means at each `x` of the rows, with their intervals over folds and seeds."""
    points = [(x, t_interval(part["accuracy"].to_numpy())) for x, part in rows.groupby("x")]
    x = [place for place, _ in points]
    mean = [interval.mean for _, interval in points]
    [line] = axes.plot(x, mean, marker="o", ms=3.5, lw=1.2, label=label)
    low, high = [i.low for _, i in points], [i.high for _, i in points]
    axes.fill_between(x, low, high, alpha=0.12, color=line.get_color(), lw=0)

"""Curves of scores: over epochs, clips per class, trained parameters and swept settings."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation

from toolkit.literal_text import literal
from toolkit.study.report.load import ALL_SHOTS, Results, grouped, metric_name
from toolkit.study.report.plots import set_log_scale
from toolkit.study.report.statistics import t_interval

MOST_LINES = 10
"""More lines in one picture would be hard to tell apart."""

BESIDE = 2.5  # points between lines with values at the same x


def draw_epochs(
    results: Results, methods: list[str], group: tuple[str, ...], metric: str
) -> Figure:
    """Mean validation score over the epochs.

    Args:
        results: of the study.
        methods: those to draw; only the first `MOST_LINES` are.
        group: corpus, backbone, shots.
        metric: name of the score.
    """
    figure, axes = _new("epoch", f"validation {metric} %")
    for method in methods[:MOST_LINES]:
        curve = mean_curve(results, (*group, method), "valid_score")
        axes.plot(
            range(1, len(curve) + 1), [100 * v for v in curve], ".-", label=literal(method), lw=1.2
        )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize=7)
    return figure


def mean_curve(results: Results, key: tuple[str, ...], name: str) -> list[float]:
    """A curve of a method (a field of `records.Curves`), averaged over its folds and seeds."""
    curves: list[list[float]] = [getattr(curves, name) for curves in results.curves[key]]
    length = min(len(curve) for curve in curves)
    return [sum(curve[i] for curve in curves) / len(curves) for i in range(length)]


def draw_few_shot(folds: pd.DataFrame) -> Figure:
    """Score against training clips per class, one line per method; "all" is at the right end.

    Args:
        folds: of one corpus and backbone, see `Results.folds`.
    """
    figure, axes = _new("training clips of each class", _score(folds))
    numbers = sorted(int(s) for s in folds["shots"].unique() if s != ALL_SHOTS)
    places = {str(number): float(number) for number in numbers}
    if (folds["shots"] == ALL_SHOTS).any():
        places[ALL_SHOTS] = 2.0 * numbers[-1]
    _lines(axes, folds.assign(x=folds["shots"].map(places)), ["method"])
    _doubling(axes, places)
    return figure


def draw_scaling(folds: pd.DataFrame) -> Figure:
    """Score against trained parameters, one line per series and combination of `others`.

    Args:
        folds: of one corpus, backbone and number of clips per class, with the column `others`: the
            swept settings except the first, as text.
    """
    figure, axes = _new("parameters trained outside the head", _score(folds))
    set_log_scale(axes)
    _lines(axes, folds.assign(x=folds["trained"]), ["series", "others"], beside=0)
    return figure


def draw_sweep(folds: pd.DataFrame, factor: str) -> Figure:
    """Score against one swept setting, one line per series and combination of the others.

    Args:
        folds: of the methods that sweep it, with the columns `value` (of this setting) and
            `others` (the other settings as text).
        factor: the setting's name.
    """
    figure, axes = _new(literal(factor), _score(folds))
    numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in folds["value"])
    words = [str(value).lower() for value in folds["value"]]
    order = dict.fromkeys(words)
    places = {word: float(word) if numeric else place for place, word in enumerate(order)}
    _lines(axes, folds.assign(x=[places[word] for word in words]), ["series", "others"])
    if numeric and min(places.values()) > 0 and max(places.values()) > 8 * min(places.values()):
        _doubling(axes, places)
    else:
        axes.set_xticks(list(places.values()), map(literal, places))
    if not numeric:
        axes.margins(x=0.3)
    return figure


def _score(folds: pd.DataFrame) -> str:
    return f"test {metric_name(folds['metric'])} %"


def _new(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    return figure, axes


def _doubling(axes: Axes, places: dict[str, float]) -> None:
    """Use a base-2 logarithmic axis with a named tick at each value."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(places.values()), list(places))
    axes.minorticks_off()


def _lines(axes: Axes, folds: pd.DataFrame, by: list[str], beside: float = BESIDE) -> None:
    """Draw the mean and its interval over folds and seeds at each `x`, one line per value of `by`.

    Lines are shifted by `beside` points so that intervals at the same `x` do not overlap.
    """
    groups = list(grouped(folds, by))
    for number, (key, rows) in enumerate(groups):
        places = sorted(float(x) for x in rows["x"].unique())
        points = {
            x: t_interval(rows["score"][rows["x"] == x].to_numpy()).within(0, 100) for x in places
        }
        mean = [interval.mean for interval in points.values()]
        below = [interval.mean - interval.low for interval in points.values()]
        above = [interval.high - interval.mean for interval in points.values()]
        aside = beside * (number - (len(groups) - 1) / 2) / 72
        shift = ScaledTranslation(aside, 0, axes.figure.dpi_scale_trans)
        axes.errorbar(
            list(points), mean, (below, above), marker="o", ms=3.5, lw=1.2, elinewidth=0.6,
            label=literal(" ".join(key).strip()), transform=axes.transData + shift,
        )  # fmt: skip
        for x, interval in points.items():  # shifted lines do not set the limits of the axes
            axes.update_datalim([(x, interval.low), (x, interval.high)])
    axes.autoscale_view()
    axes.figure.legend(loc="outside upper center", ncols=3, fontsize=7, frameon=False)

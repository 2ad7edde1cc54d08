"""What a report says: its tables with a sentence each, and its pictures. Renderers come after."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from toolkit.study.records import Timing
from toolkit.study.report import columns, curves, plots, statistics, tables
from toolkit.study.report.columns import Column
from toolkit.study.report.load import ALL_SHOTS, GROUP, Results
from toolkit.study.report.published import beside_measured


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of the report.

    Attributes:
        key: its name in the page.
        title: above it.
        columns: in their order.
        rows: at least these columns.
        note: how it was made, and what it does not show.
    """

    key: str
    title: str
    columns: list[Column]
    rows: pd.DataFrame
    note: str


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture of the report; `name` is its file's, without suffix."""

    name: str
    title: str
    figure: Figure


def all_tables(results: Results) -> list[Table]:
    """The tables that have rows."""
    methods = tables.methods(results)
    published = {name: variant.published for name, variant in results.variants.items()}
    found = [
        Table("methods", "Methods", columns.COLUMNS, methods, _about_methods(results)),
        Table(
            "comparisons", f"Against {results.study.baseline}, clip by clip",
            columns.COMPARISONS, tables.comparisons(results), ABOUT_COMPARISONS,
        ),
        Table("factors", "What a setting does", columns.FACTORS, tables.factors(results),
              ABOUT_FACTORS),
        Table("published", "Published and measured", columns.PUBLISHED,
              beside_measured(methods, published), ABOUT_PUBLISHED),
        _ranks(results),
        Table("failures", "What failed", columns.FAILURES, failures(results), ABOUT_FAILURES),
    ]  # fmt: skip
    return [
        dataclasses.replace(table, columns=columns.present(table.rows, table.columns))
        for table in found
        if len(table.rows)
    ]


def _about_methods(results: Results) -> str:
    return (
        "Mean test accuracy over folds and seeds; the epoch of each run was chosen on its "
        "validation fold. The interval is Student's over these values: folds share training clips "
        "and seeds share test clips, so it is too narrow rather than too wide, and it says nothing "
        f"about other corpora or backbones. {_about_timings(results)}"
    )


def _about_timings(results: Results) -> str:
    steps = {record.step: record for record in results.done}
    timings = [t for t in map(results.timing, steps.values()) if t is not None]
    if not timings:
        return (
            "Seconds and memory are those of the runs, which may have shared the machine: compare "
            "them with care, or take timings with `tools/benchmark.py STUDY --timings`."
        )
    machine = timings[0].machine
    hosts = {(t.machine["host"], t.machine["processor"], t.rounds[0]["device"]) for t in timings}
    rounds = min(len(timing.rounds) for timing in timings)
    where = f"{timings[0].rounds[0]['device']}, {machine['processor']}, {machine['cores']} cores"
    rest = len(steps) - len(timings)
    return (
        f"Speeds, seconds, memory and operations are medians of {rounds} interleaved rounds in "
        f"processes of their own ({where}; load {machine['load_before']:.1f} before), on "
        "features in memory: they do not show reading and decoding."
        + _about_spread(timings) * (rounds > 1)
        + (f" {len(hosts)} machines were used: their times do not compare." * (len(hosts) > 1))
        + (f" {rest} configurations have none: theirs are from their runs." * (rest > 0))
    )


def _about_spread(timings: list[Timing]) -> str:
    trained, alone = (
        100 * np.median([timing.spread(key) for timing in timings])
        for key in ("samples_per_second", "latency_seconds")
    )
    return (
        f" From round to round one and the same configuration differed by {trained:.0f} % in "
        f"training speed and {alone:.0f} % in latency (range, median over the configurations): "
        "smaller differences between methods are not told apart."
    )


ABOUT_COMPARISONS = (
    "Every clip is tested once a seed; a difference is the mean over the seeds that both methods "
    "have. Interval: 10,000 bootstrap resamples of clips. p: exact McNemar test on the clips that "
    "one of the two gets right in more seeds, then Holm's correction over the methods. Neither "
    "covers what other training clips would change, and clips of one recording are counted as if "
    "they were independent."
)

ABOUT_FACTORS = (
    "Runs that differ in this setting alone, in pairs of the same fold and seed. The t-interval "
    "treats pairs as independent, which those of one fold are not quite, and is not corrected for "
    "the number of rows."
)

ABOUT_PUBLISHED = (
    "Published numbers stand in toolkit/study/published.csv with their sources. They were reached "
    "with the reference code, which picks other epochs and loses the position table (see the "
    "recipe's README), so that a difference is not an error of either."
)

ABOUT_FAILURES = (
    "These runs are in no other table; running the study again tries them again. A method that "
    "fails in some folds has its mean over the others."
)


def failures(results: Results) -> pd.DataFrame:
    """The runs that failed: their folders, reasons, attempts and last lines of output."""
    rows = [
        {"run": r.cell.name, "reason": r.reason, "attempts": r.attempts, "log": r.log}
        for r in results.failed
    ]
    return pd.DataFrame(rows, columns=["run", "reason", "attempts", "log"])


def _ranks(results: Results) -> Table:
    rows, notes = [], []
    for ranking in tables.rankings(results):
        shared = {"backbone": ranking.backbone, "shots": ranking.shots}
        pairs = zip(ranking.methods, ranking.ranks.average, strict=True)
        rows += [{"method": method, "rank": value, **shared} for method, value in pairs]
        notes.append(
            f"Over {ranking.ranks.blocks} {ranking.blocks}: Friedman p = "
            f"{ranking.ranks.p_value:.2g}; methods whose ranks differ by less than "
            f"{ranking.ranks.critical_difference:.2f} are not told apart (Nemenyi, 95 %)."
        )
        if ranking.blocks == "folds":
            notes.append(
                "Folds of one corpus share training clips: this ranks the methods on this corpus "
                "and cannot say how they rank on another."
            )
    frame = pd.DataFrame(rows, columns=["method", "backbone", "shots", "rank"])
    return Table("ranks", "Average ranks", columns.RANKS, frame, " ".join(notes))


def all_pictures(results: Results, methods: pd.DataFrame) -> list[Picture]:
    """The pictures that there is something for, group by group."""
    found: list[Picture] = []
    baseline = results.study.baseline
    recalls = dict(tables.recalls(results))
    for group, table in methods.groupby(GROUP, sort=False):
        name, title = _name(group), _title(group)
        best = table.sort_values("accuracy", ascending=False)["method"].tolist()
        found += [
            Picture(f"accuracy-{name}", f"Accuracy, {title}",
                    plots.draw_intervals(table, baseline)),
            Picture(f"pareto-{name}", f"Accuracy and size, {title}",
                    plots.draw_pareto(table, "trained", "parameters trained outside the head")),
            Picture(f"epochs-{name}", f"The best methods over the epochs, {title}",
                    curves.draw_epochs(results, best, group)),
        ]  # fmt: skip
        if group in recalls:  # only where a clip has exactly one class
            drawn = plots.draw_recalls(recalls[group].loc[best], baseline)
            found.append(Picture(f"classes-{name}", f"Classes, {title}", drawn))
        if table["latency_ms"].notna().any():
            drawn = plots.draw_pareto(table, "latency_ms", "ms for one clip alone")
            found.append(Picture(f"latency-{name}", f"Accuracy and latency, {title}", drawn))
    return [*found, *_rank_pictures(results), *_line_pictures(results)]


def _rank_pictures(results: Results) -> list[Picture]:
    found = []
    for ranking in tables.rankings(results):
        difference = ranking.ranks.critical_difference
        groups = statistics.cliques(ranking.ranks.average, difference)
        title = _title((ranking.backbone, ranking.shots))
        drawn = plots.draw_ranks(ranking, groups)
        name = _name((ranking.backbone, ranking.shots))
        found.append(
            Picture(f"ranks-{name}", f"Average ranks over {ranking.blocks}, {title}", drawn)
        )
    return found


def _line_pictures(results: Results) -> list[Picture]:
    """Few-shot curves, scaling curves, and one picture a swept setting."""
    found = []
    folds = results.folds
    for group, rows in folds.groupby(["corpus", "backbone"], sort=False):
        if (rows["shots"] != ALL_SHOTS).any() and rows["shots"].nunique() > 1:
            drawn = curves.draw_few_shot(rows)
            found.append(Picture(f"few-shot-{_name(group)}", f"Few-shot, {_title(group)}", drawn))
    swept = folds[[bool(results.variants[m].factors) for m in folds["method"]]]
    for group, rows in swept.groupby(GROUP, sort=False):
        name, title = _name(group), _title(group)
        if rows.groupby("series")["trained"].nunique().max() > 1:
            settings = [results.variants[method].factors for method in rows["method"]]
            others = [_others(values, next(iter(values))) for values in settings]
            drawn = curves.draw_scaling(rows.assign(others=others))
            found.append(Picture(f"scaling-{name}", f"Accuracy and parameters, {title}", drawn))
        for factor in dict.fromkeys(
            key for m in rows["method"].unique() for key in results.variants[m].factors
        ):
            drawn = curves.draw_sweep(_with_factor(results, rows, factor), factor)
            short = factor.rpartition(".")[2]
            found.append(Picture(f"sweep-{short}-{name}", f"Accuracy and {short}, {title}", drawn))
    return found


def _with_factor(results: Results, folds: pd.DataFrame, factor: str) -> pd.DataFrame:
    """The folds of the methods that sweep a setting, with its `value` and all `others`."""
    settings = [results.variants[method].factors for method in folds["method"]]
    chosen = folds[[factor in values for values in settings]]
    own = [values for values in settings if factor in values]
    others = [_others(values, factor) for values in own]
    return chosen.assign(value=[values[factor] for values in own], others=others)


def _others(factors: Mapping[str, Any], factor: str) -> str:
    """Swept settings but one, as text."""
    rest = {key: value for key, value in factors.items() if key != factor}
    return ", ".join(f"{key.rpartition('.')[2]}={value}".lower() for key, value in rest.items())


def _name(group: tuple[str, ...]) -> str:
    """A group as a part of a file's name; that all clips are used goes without saying."""
    words = [word for word in group if word != ALL_SHOTS]
    return "-".join(f"{w}-shot" if w.isdigit() else w.rpartition("/")[2] for w in words)


def _title(group: tuple[str, ...]) -> str:
    words = [word for word in group if word != ALL_SHOTS]
    return ", ".join(f"{w} clips a class" if w.isdigit() else w for w in words)

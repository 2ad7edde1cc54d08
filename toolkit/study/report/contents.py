"""The content of a report: its tables, their notes and its pictures, before rendering."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from toolkit.study.records import Timing
from toolkit.study.report import columns, curves, plots, statistics, tables
from toolkit.study.report.columns import Column
from toolkit.study.report.load import ALL_SHOTS, GROUP, Results, grouped, metric_name
from toolkit.study.report.published import beside_measured


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of the report.

    Attributes:
        key: its name in the page.
        title: its heading.
        columns: those to show, in this order.
        rows: the data, with at least these columns.
        note: how it was computed, and what it does not show.
    """

    key: str
    title: str
    columns: list[Column]
    rows: pd.DataFrame
    note: str


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture of the report; `name` is the name of its file without the suffix."""

    name: str
    title: str
    figure: Figure


def all_tables(results: Results) -> list[Table]:
    """All tables that have rows."""
    methods = tables.methods(results)
    published = {name: method.published for name, method in results.methods.items()}
    found = [
        Table("methods", "Methods", columns.COLUMNS, methods, _about_methods(results)),
        Table(
            "comparisons", f"Compared with {results.study.baseline}, clip by clip",
            columns.COMPARISONS, tables.comparisons(results), ABOUT_COMPARISONS,
        ),
        Table("factors", "Effect of each setting", columns.FACTORS, tables.factors(results),
              ABOUT_FACTORS),
        Table("published", "Published and measured scores", columns.PUBLISHED,
              beside_measured(methods, published), ABOUT_PUBLISHED),
        _ranks(results),
        Table("failures", "Failed runs", columns.FAILURES, failures(results), ABOUT_FAILURES),
    ]  # fmt: skip
    return [
        dataclasses.replace(
            table,
            columns=columns.named(columns.present(table.rows, table.columns), results.metric),
        )
        for table in found
        if len(table.rows)
    ]


def _about_methods(results: Results) -> str:
    return (
        f"Mean test {results.metric} over folds and seeds; each run is tested at the epoch that "
        "was best on its validation fold. CI is Student's t-interval over these values, if there "
        "are at least three, and within 0 and 100 %: since folds share training clips and seeds "
        "share test clips, it is rather too narrow than too wide, and it says nothing about other "
        f"corpora or backbones. {_about_timings(results)}"
    )


def _about_timings(results: Results) -> str:
    steps = {record.step: record for record in results.done}
    timings = [t for t in map(results.timing, steps.values()) if t is not None]
    if not timings:
        return (
            "Seconds and memory come from the runs themselves, which may have shared the machine: "
            "compare them with care, or measure with `toolkit study time STUDY`."
        )
    machine = timings[0].machine
    hosts = {(t.machine.host, t.machine.processor, t.rounds[0].device) for t in timings}
    rounds = min(len(timing.rounds) for timing in timings)
    where = f"{timings[0].rounds[0].device}, {machine.processor}, {machine.cores} cores"
    rest = len(steps) - len(timings)
    return (
        f"Speeds, seconds, memory and operations are medians of {rounds} interleaved rounds, each "
        f"in its own process ({where}; load {machine.load_before:.1f} before), with features "
        "in memory: reading and decoding files is not included."
        + _about_spread(timings) * (rounds > 1)
        + (
            f" {len(hosts)} machines were used: times from different machines "
            "cannot be compared." * (len(hosts) > 1)
        )
        + (
            f" {rest} configurations were not timed: their figures come from their runs."
            * (rest > 0)
        )
    )


def _about_spread(timings: list[Timing]) -> str:
    trained, alone = (
        100 * np.median([timing.spread(key) for timing in timings])
        for key in ("samples_per_second", "latency_seconds")
    )
    return (
        f" Between rounds, the same configuration differed by {trained:.0f} % in training speed "
        f"and {alone:.0f} % in latency (range, median over the configurations): smaller "
        "differences between methods are within measurement error."
    )


ABOUT_COMPARISONS = (
    "Every clip is tested once per seed; a difference is the mean over the seeds that both methods "
    "have. CI: 10,000 bootstrap resamples of the clips. p: McNemar's exact test on the clips that "
    "one of the two methods gets right in more seeds, then Holm's correction over the methods. "
    "Neither covers what other training clips would change, and clips cut from the same recording "
    "are treated as independent."
)

ABOUT_FACTORS = (
    "Pairs of runs with the same fold and seed that differ only in this setting. The t-interval "
    "treats the pairs as independent, which pairs of the same fold are not quite, and it is not "
    "corrected for the number of rows."
)

ABOUT_PUBLISHED = (
    "Published numbers and their sources are in toolkit/study/report/published.csv. They were "
    "obtained with the reference code, which tests other epochs and loses the position table (see "
    "the recipe's README), so a difference does not mean that either number is wrong."
)

ABOUT_FAILURES = (
    "These runs appear in no other table; running the study again retries them. If a method failed "
    "in some folds, its mean is over the other folds."
)


def failures(results: Results) -> pd.DataFrame:
    """The failed runs: folder, reason, number of attempts and last lines of output."""
    rows = [
        {"run": r.cell.name, "reason": r.reason, "attempts": r.attempts, "log": r.log}
        for r in results.failed
    ]
    return pd.DataFrame(rows, columns=["run", "reason", "attempts", "log"])


def _ranks(results: Results) -> Table:
    rows, notes = [], []
    rankings = tables.rankings(results)
    for ranking in rankings:
        shared = {
            "corpus": ", ".join(ranking.corpora), "backbone": ranking.backbone,
            "shots": ranking.shots,
        }  # fmt: skip
        pairs = zip(ranking.methods, ranking.ranks.average, strict=True)
        rows += [{"method": method, "rank": value, **shared} for method, value in pairs]
        group = f"{_title(_group_of(results, ranking))}, over" if rankings[1:] else "Over"
        notes.append(
            f"{group} {ranking.ranks.blocks} {ranking.blocks}: Friedman p = "
            f"{ranking.ranks.p_value:.2g}; methods whose ranks differ by less than "
            f"{ranking.ranks.critical_difference:.2f} cannot be told apart (Nemenyi, 95 %)."
        )
    if any(ranking.blocks == "folds" for ranking in rankings):
        notes.append(
            "Folds of one corpus share training clips: ranks over folds hold for that corpus and "
            "do not show how the methods rank on another."
        )
    frame = pd.DataFrame(rows, columns=[column.key for column in columns.RANKS])
    return Table("ranks", "Average ranks", columns.RANKS, frame, " ".join(notes))


def all_pictures(results: Results, methods: pd.DataFrame) -> list[Picture]:
    """All pictures for which there is data, group by group."""
    found: list[Picture] = []
    baseline = results.study.baseline
    recalls = dict(tables.recalls(results))
    for group, table in grouped(methods, GROUP):
        name, title = _name(group), _title(group)
        metric = metric_name(table["metric"])
        best = table.sort_values("score", ascending=False)["method"].tolist()
        found += [
            Picture(f"{metric}-{name}", f"{_heading(metric)}, {title}",
                    plots.draw_intervals(table, baseline)),
            Picture(f"pareto-{name}", f"{_heading(metric)} against trained parameters, {title}",
                    plots.draw_pareto(table, "trained", "parameters trained outside the head")),
            Picture(f"epochs-{name}", f"Best methods over the epochs, {title}",
                    curves.draw_epochs(results, best, group, metric)),
        ]  # fmt: skip
        if group in recalls:
            drawn = plots.draw_recalls(recalls[group].loc[best], baseline)
            found.append(Picture(f"classes-{name}", f"Recall per class, {title}", drawn))
        if table["latency_ms"].notna().any():
            drawn = plots.draw_pareto(table, "latency_ms", "latency of a single clip, ms")
            found.append(
                Picture(f"latency-{name}", f"{_heading(metric)} against latency, {title}", drawn)
            )
    return [*found, *_rank_pictures(results), *_line_pictures(results)]


def _rank_pictures(results: Results) -> list[Picture]:
    found = []
    for ranking in tables.rankings(results):
        difference = ranking.ranks.critical_difference
        groups = statistics.cliques(ranking.ranks.average, difference)
        group = _group_of(results, ranking)
        title, name = _title(group), _name(group)
        drawn = plots.draw_ranks(ranking, groups)
        found.append(
            Picture(f"ranks-{name}", f"Average ranks over {ranking.blocks}, {title}", drawn)
        )
    return found


def _group_of(results: Results, ranking: tables.Ranking) -> tuple[str, ...]:
    """Backbone and shots of a ranking, and its corpus if it is one of several."""
    several = len({cell.corpus for cell in results.cells}) > 1
    corpus = ranking.corpora if several and ranking.blocks == "folds" else []
    return (*corpus, ranking.backbone, ranking.shots)


def _line_pictures(results: Results) -> list[Picture]:
    """Few-shot curves, scaling curves, and one picture per swept setting."""
    found = []
    folds = results.folds
    for group, rows in grouped(folds, ["corpus", "backbone"]):
        if (rows["shots"] != ALL_SHOTS).any() and rows["shots"].nunique() > 1:
            drawn = curves.draw_few_shot(rows)
            found.append(Picture(f"few-shot-{_name(group)}", f"Few-shot, {_title(group)}", drawn))
    swept = folds[[bool(results.methods[m].factors) for m in folds["method"]]]
    for group, rows in grouped(swept, GROUP):
        name, title = _name(group), _title(group)
        if rows.groupby("series")["trained"].nunique().max() > 1:
            settings = [results.methods[method].factors for method in rows["method"]]
            others = [_others(values, next(iter(values))) for values in settings]
            drawn = curves.draw_scaling(rows.assign(others=others))
            found.append(Picture(f"scaling-{name}", f"Scaling, {title}", drawn))
        for factor in dict.fromkeys(
            key for m in rows["method"].unique() for key in results.methods[m].factors
        ):
            drawn = curves.draw_sweep(_with_factor(results, rows, factor), factor)
            short = factor.rpartition(".")[2]
            about = f"{_heading(metric_name(rows['metric']))} against {short}, {title}"
            found.append(Picture(f"sweep-{short}-{name}", about, drawn))
    return found


def _with_factor(results: Results, folds: pd.DataFrame, factor: str) -> pd.DataFrame:
    """The folds of the methods that sweep a setting, with columns `value` and `others`."""
    settings = [results.methods[method].factors for method in folds["method"]]
    chosen = folds[[factor in values for values in settings]]
    own = [values for values in settings if factor in values]
    others = [_others(values, factor) for values in own]
    return chosen.assign(value=[values[factor] for values in own], others=others)


def _others(factors: Mapping[str, Any], factor: str) -> str:
    """All swept settings except one, as text."""
    rest = {key: value for key, value in factors.items() if key != factor}
    return ", ".join(f"{key.rpartition('.')[2]}={value}".lower() for key, value in rest.items())


def _name(group: tuple[str, ...]) -> str:
    """A group as part of a file name; "all" clips is left out."""
    words = [word for word in group if word != ALL_SHOTS]
    return "-".join(f"{w}-shot" if w.isdigit() else w.rpartition("/")[2] for w in words)


def _heading(metric: str) -> str:
    """The metric as the first word of a title: "Accuracy", but "mAP"."""
    return metric.capitalize() if metric.islower() else metric


def _title(group: tuple[str, ...]) -> str:
    words = [word for word in group if word != ALL_SHOTS]
    return ", ".join(_clips(word) if word.isdigit() else word for word in words)


def _clips(shots: str) -> str:
    return f"{shots} {'clip' if shots == '1' else 'clips'} per class"

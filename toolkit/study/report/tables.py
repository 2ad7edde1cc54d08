"""The tables of a report: methods, differences from the baseline, classes, ranks, factors."""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from toolkit.study.records import Record, Timing
from toolkit.study.report import statistics
from toolkit.study.report.columns import COLUMNS
from toolkit.study.report.load import ALL_SHOTS, GROUP, METHOD, Results, grouped, identity
from toolkit.study.report.statistics import Ranks

FEWEST_CORPORA = 3  # for ranks over corpora; with fewer, over folds


def methods(results: Results) -> pd.DataFrame:
    """A row for each method of each group, with the columns of `columns.COLUMNS`."""
    planned = Counter(tuple(identity(cell).values()) for cell in results.cells)
    records = {tuple(identity(record.cell).values()): record for record in results.done}
    rows = []
    for key, folds in grouped(results.folds, METHOD):
        found = len(folds.drop_duplicates(["seed", "fold"]))
        row = {"runs": f"{found}/{max(found, planned[key])}", **_of_folds(folds)}
        row |= _of_timing(results.timing(records[key]), records[key], row)
        rows.append(dict(zip(METHOD, key, strict=True)) | row)
    table = pd.DataFrame(rows, columns=[column.key for column in COLUMNS])
    return _best_first(table, "score")


def _of_folds(folds: pd.DataFrame) -> dict[str, Any]:
    """The columns that come from the runs themselves."""
    interval = statistics.t_interval(folds["score"].to_numpy()).within(0, 100)
    first = folds.iloc[0]
    return {
        "metric": first["metric"],
        "score": interval.mean,
        "sd": folds["score"].std(),
        "low": interval.low,
        "high": interval.high,
        "uar": folds["uar"].mean(),
        "trained": first["trained"],
        "share": first["share"],
        "stored": first["stored"],
        "active": folds["active"].mean(),
        "entropy": folds["entropy"].mean(),
        "busiest": 100 * folds["busiest"].mean(),
        "budget": 100 * first["trained"] / first["target"] if first["target"] else None,
        "bundle_kib": folds["bundle_bytes"].mean() / 1024,
        "epochs": folds["epochs"].mean(),
        "epoch_seconds": folds["epoch_seconds"].median(),
        "best_seconds": folds["best_epoch"].mean(),  # epochs, until their time is known
        "seconds_to_95": folds["epoch_to_95"].mean(),
        "peak_mib": folds["peak_memory"].max() / 2**20,
    }


def _of_timing(timing: Timing | None, record: Record, row: dict[str, Any]) -> dict[str, Any]:
    """The columns that come from timings; without them, from runs that shared the machine."""
    found = {}
    seconds = row["epoch_seconds"]
    if timing is not None:
        seconds = timing.epoch_seconds(record.cell.shots)
        found = {
            "samples_per_second": timing.median("samples_per_second"),
            "peak_mib": _scaled(timing.median("peak_memory_bytes"), 2**-20),
            "latency_ms": _scaled(timing.median("latency_seconds"), 1e3),
            "throughput": timing.median("throughput"),
            "merged_latency_ms": _scaled(timing.median("merged_latency_seconds"), 1e3),
            "merged_throughput": timing.median("merged_throughput"),
            "gflops": _scaled(timing.median("flops"), 1e-9),
            "merged_gflops": _scaled(timing.median("merged_flops"), 1e-9),
        }
    found["epoch_seconds"] = seconds
    for key in ("best_seconds", "seconds_to_95"):
        found[key] = seconds * row[key]
    return found


def _best_first(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Sort by group, with few clips per class before many and all, then by a column."""

    def place(values: pd.Series) -> pd.Series:
        if values.name != "shots":
            return values
        return values.map(lambda shots: np.inf if shots == ALL_SHOTS else int(shots))

    return table.sort_values([*GROUP, column], ascending=[True] * 3 + [False], key=place)


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else factor * value


def comparisons(results: Results) -> pd.DataFrame:
    """Compare each method with the baseline clip by clip, on the seeds that both have.

    Columns: `GROUP`, `method`, `clips`, `difference` of accuracy in % with its bootstrap interval
    `low` and `high`, clips that the method gets right more often (`better`) or less (`worse`),
    McNemar's `p`, and `p_holm`, corrected for all methods of the group.
    """
    baseline, rows = results.study.baseline, []
    for group, table in grouped(results.predictions, GROUP):
        right = table.set_index(["seed", "id"]).groupby("method", sort=False)["right"]
        answers = {str(method): values.astype(float) for method, values in right}
        if baseline not in answers:
            continue
        base = answers.pop(baseline)
        found = []
        for method, values in answers.items():
            difference = (values - base).dropna().groupby("id").mean().to_numpy()
            if len(difference):
                found.append({"method": method, **_paired(difference)})
        if found:
            adjusted = statistics.holm(np.array([row["p"] for row in found]))
            for row, p_holm in zip(found, adjusted, strict=True):
                rows.append(dict(zip(GROUP, group, strict=True)) | row | {"p_holm": float(p_holm)})
    columns = ["clips", "difference", "low", "high", "better", "worse", "p", "p_holm"]
    table = pd.DataFrame(rows, columns=[*METHOD, *columns])
    return _best_first(table, "difference")


def _paired(difference: np.ndarray) -> dict[str, float]:
    interval = statistics.bootstrap_interval(difference)
    return {
        "clips": len(difference),
        "difference": 100 * interval.mean,
        "low": 100 * interval.low,
        "high": 100 * interval.high,
        "better": int((difference > 0).sum()),
        "worse": int((difference < 0).sum()),
        "p": statistics.mcnemar(difference),
    }


def recalls(results: Results) -> Iterator[tuple[tuple[str, ...], pd.DataFrame]]:
    """The recall in % of each method for each class, group by group: [methods, classes]."""
    tables: dict[tuple[str, ...], dict[str, pd.Series]] = {}
    for (*parts, method), (classes, counts) in results.confusions().items():
        matrix = np.array(counts, dtype=float)
        shares = 100 * matrix.diagonal() / np.maximum(matrix.sum(axis=1), 1)
        tables.setdefault(tuple(parts), {})[method] = pd.Series(shares, classes)
    for group, series in tables.items():
        yield group, pd.DataFrame(series).T


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Average ranks of the methods of a study.

    Attributes:
        backbone, shots: of which runs.
        corpora: the corpora that were ranked over, or the one whose folds were.
        blocks: `corpora`, or `folds` of one corpus.
        methods: in the order of their average ranks.
        ranks: theirs.
    """

    backbone: str
    shots: str
    corpora: list[str]
    blocks: str
    methods: list[str]
    ranks: Ranks


def rankings(results: Results) -> list[Ranking]:
    """Average ranks over corpora, each of which counts once; with fewer than three corpora, over
    the folds of each, since a corpus with more folds would count more. Only methods that have a
    score in every block are ranked."""
    found = []
    for (backbone, shots), table in grouped(results.folds, ["backbone", "shots"]):
        corpora = [str(corpus) for corpus in table["corpus"].unique()]
        if len(corpora) >= FEWEST_CORPORA:
            parts = [("corpora", "corpus", corpora, table)]
        else:
            parts = [("folds", "fold", [corpus], part) for (corpus,), part in
                     grouped(table, ["corpus"])]  # fmt: skip
        for blocks, column, of, part in parts:
            scores = part.pivot_table(index=column, columns="method", values="score")
            scores = scores.dropna(axis="columns")
            if len(scores) < 2 or len(scores.columns) < 3:
                continue
            ranks = statistics.rank(scores.to_numpy())
            order = np.argsort(ranks.average, kind="stable")
            names = [str(scores.columns[i]) for i in order]
            ordered = dataclasses.replace(ranks, average=ranks.average[order])
            found.append(Ranking(backbone, shots, of, blocks, names, ordered))
    return found


def factors(results: Results) -> pd.DataFrame:
    """The effect of each swept setting that has two values, with everything else equal.

    Columns: `GROUP`, `series`, `factor`, `first`, `second`, `pairs` of runs, the mean score of
    each (`at_first`, `at_second`) and the `difference` in % with its t-interval `low`, `high`.
    """
    rows = []
    for (*group, series), folds in grouped(results.folds, [*GROUP, "series"]):
        levels = {m: results.methods[m].factors for m in folds["method"].unique()}
        for factor in next(iter(levels.values())):
            values = list(dict.fromkeys(str(f[factor]).lower() for f in levels.values()))
            if len(values) == 2:
                table = _paired_runs(folds, levels, factor)[values].dropna()
                if len(table):
                    row = dict(zip([*GROUP, "series"], [*group, series], strict=True))
                    rows.append(row | _effect(factor, values, table))
    columns = ["factor", "first", "second", "pairs", "at_first", "at_second"]
    return pd.DataFrame(rows, columns=[*GROUP, "series", *columns, "difference", "low", "high"])


def _paired_runs(
    folds: pd.DataFrame, levels: Mapping[str, Mapping[str, Any]], factor: str
) -> pd.DataFrame:
    """Scores: a row per combination of the other settings, seed and fold; a column per value."""
    of = [levels[method] for method in folds["method"]]
    table = folds.assign(
        level=[str(values[factor]).lower() for values in of],
        others=[str({k: v for k, v in values.items() if k != factor}) for values in of],
    )
    return table.pivot_table(index=["others", "seed", "fold"], columns="level", values="score")


def _effect(factor: str, values: list[str], table: pd.DataFrame) -> dict[str, Any]:
    differences = (table[values[1]] - table[values[0]]).to_numpy()
    interval = statistics.t_interval(differences).within(-100, 100)
    return {
        "factor": factor.removeprefix("peft."),
        "first": values[0],
        "second": values[1],
        "pairs": len(table),
        "at_first": table[values[0]].mean(),
        "at_second": table[values[1]].mean(),
        "difference": interval.mean,
        "low": interval.low,
        "high": interval.high,
    }

"""The columns of the report's tables: their meaning, their unit and which end is better."""

import dataclasses
from decimal import Decimal
from typing import Any, Literal

import pandas as pd


@dataclasses.dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        key: its name in the data.
        title: its heading, with the unit.
        about: its meaning, in a sentence.
        digits: decimal places; None for text.
        better: which end is better, if either is.
        short: whether the shorter table of the Markdown report has it.
    """

    key: str
    title: str
    about: str
    digits: int | None = None
    better: Literal["high", "low"] | None = None
    short: bool = False

    def text(self, value: Any) -> str:
        """Format a cell, as the HTML page does; empty if there is no value."""
        if value is None or pd.isna(value):
            return ""
        return str(value) if self.digits is None else f"{Decimal(str(value)):,.{self.digits}f}"


ORIGIN = ("corpus", "backbone", "shots", "metric")

COLUMNS = [
    Column("method", "method", "name in the study", short=True),
    Column("corpus", "corpus", "the corpus of clips", short=True),
    Column("backbone", "backbone", "the frozen encoder", short=True),
    Column("shots", "clips per class", "training clips per class", short=True),
    Column("runs", "runs", "finished runs (folds x seeds) out of those planned", short=True),
    Column("metric", "metric", "what the score is", short=True),
    Column("score", "{metric} %", "mean test {metric}", 1, "high", short=True),
    Column("sd", "sd", "standard deviation over folds and seeds", 1, short=True),
    Column("low", "95 % CI low", "lower end of the t-interval of the mean; empty for fewer than "
           "three values", 1, short=True),
    Column("high", "95 % CI high", "upper end of the interval", 1, short=True),
    Column("uar", "UAR %", "unweighted average recall: the mean recall over classes", 1, "high"),
    Column("trained", "trained", "parameters trained outside the head", 0, "low", short=True),
    Column("share", "share %", "relative to the backbone's parameters", 2, "low", short=True),
    Column("stored", "stored", "values stored in the bundle, including the head", 0, "low"),
    Column("active", "active", "trained parameters used per token", 0, "low", short=True),
    Column("entropy", "routing entropy", "entropy of a token's weights over experts or slots; "
           "1 is uniform", 2, short=True),
    Column("busiest", "busiest expert %", "share of all routing weight that goes to "
           "the busiest expert, mean over layers", 1, short=True),
    Column("budget", "% of budget", "trained parameters relative to the budget", 1, short=True),
    Column("bundle_kib", "bundle KiB", "size of the saved bundle", 0, "low"),
    Column("epochs", "epochs", "passes over the training clips", 0),
    Column("epoch_seconds", "s/epoch", "training seconds per epoch", 2, "low"),
    Column("best_seconds", "s to best", "training seconds until the epoch that was kept", 1, "low"),
    Column("seconds_to_95", "s to 95 %", "training seconds until 95 % of the last epoch's "
           "validation {metric} is reached", 1, "low"),
    Column("samples_per_second", "training clips/s", "training speed", 1, "high", short=True),
    Column("peak_mib", "peak MiB", "peak memory in training: resident, or of the GPU", 0, "low",
           short=True),
    Column("latency_ms", "ms/clip", "latency of a single clip", 2, "low", short=True),
    Column("throughput", "clips/s", "prediction speed in batches", 1, "high"),
    Column("merged_latency_ms", "ms/clip merged", "latency after merging", 2, "low"),
    Column("merged_throughput", "clips/s merged", "prediction speed after merging", 1, "high"),
    Column("gflops", "GFLOP/clip", "operations per prediction", 3, "low", short=True),
    Column("merged_gflops", "GFLOP merged", "operations per prediction after merging", 3, "low"),
]  # fmt: skip


def of(*keys: str) -> list[Column]:
    """Some of `COLUMNS`."""
    known = {column.key: column for column in COLUMNS}
    return [known[key] for key in keys]


def named(columns: list[Column], metric: str) -> list[Column]:
    """The columns with the name of the metric in their titles and explanations."""
    return [
        dataclasses.replace(
            column,
            title=column.title.replace("{metric}", metric),
            about=column.about.replace("{metric}", metric),
        )
        for column in columns
    ]


GROUPED = of("method", "corpus", "backbone", "shots")

COMPARISONS = [
    *GROUPED,
    Column(
        "difference", "difference", "accuracy minus the baseline's, in percentage points", 1, "high"
    ),
    Column("low", "95 % CI low", "lower end of its bootstrap interval over clips", 1),
    Column("high", "95 % CI high", "upper end of the interval", 1),
    Column("better", "clips better", "clips that the method gets right in more seeds", 0, "high"),
    Column("worse", "clips worse", "clips that the baseline gets right in more seeds", 0, "low"),
    Column("p", "p", "McNemar's exact test on these clips", 4),
    Column("p_holm", "p, Holm", "corrected for all comparisons of the group", 4),
]

FACTORS = [
    Column("series", "method", "the configuration that is varied"),
    *of("corpus", "backbone", "shots"),
    Column("factor", "setting", "the setting that is varied"),
    Column("first", "from", "its first value"),
    Column("second", "to", "its second value"),
    Column("pairs", "pairs", "pairs of runs that differ only in this setting", 0),
    Column("at_first", "% at first", "mean {metric} at the first value", 1),
    Column("at_second", "% at second", "mean {metric} at the second value", 1),
    Column("difference", "difference", "second minus first, in percentage points", 1),
    Column("low", "95 % CI low", "lower end of its t-interval over pairs", 1),
    Column("high", "95 % CI high", "upper end of the interval", 1),
]

PUBLISHED = [
    *GROUPED,
    Column("score", "measured %", "mean test {metric} here", 1),
    Column("score_published", "published %", "as printed in the source", 1),
    Column("difference", "difference", "measured minus published", 1),
    Column("low", "95 % CI low", "lower end of the interval of the measured mean", 1),
    Column("high", "95 % CI high", "upper end of the interval", 1),
    Column("trained", "trained", "parameters trained outside the head, here", 0),
    Column("parameters", "published", "parameters that the source gives", 0),
    Column("source", "source", "where the number comes from"),
    Column("evidence", "evidence", "`paper`: read in the paper; `secondary`: quoted by others"),
]

RANKS = [
    *of("method", "corpus", "backbone", "shots"),
    Column("rank", "average rank", "1 is best", 2, "low"),
]

FAILURES = [
    Column("run", "run", "the folder of the run"),
    Column("reason", "reason", "why it failed"),
    Column("attempts", "attempts", "number of attempts", 0),
]


def present(table: pd.DataFrame, columns: list[Column]) -> list[Column]:
    """Leave out empty columns, and those that only say where a row comes from and never vary."""
    constant = {key for key in ORIGIN if key in table and table[key].nunique() < 2}
    return [
        column
        for column in columns
        if column.key not in constant and table[column.key].notna().any()
    ]

"""The columns of the table of methods: what each is, in which unit, and which end is better."""

import dataclasses
from decimal import Decimal
from typing import Literal

import pandas as pd


@dataclasses.dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        key: in the data.
        title: with its unit.
        about: what it is, in a sentence.
        digits: behind the point; None: a text.
        better: which end is better, if one is.
        short: whether it is in the short table of the Markdown report.
    """

    key: str
    title: str
    about: str
    digits: int | None = None
    better: Literal["high", "low"] | None = None
    short: bool = False

    def text(self, value: object) -> str:
        """A cell as it is read; empty where there is no value. The page writes it alike."""
        if value is None or pd.isna(value):
            return ""
        return str(value) if self.digits is None else f"{Decimal(str(value)):,.{self.digits}f}"


COLUMNS = [
    Column("method", "method", "name in the study", short=True),
    Column("corpus", "corpus", "what was classified", short=True),
    Column("backbone", "backbone", "the frozen encoder", short=True),
    Column("shots", "clips a class", "training clips of each class", short=True),
    Column("runs", "runs", "folds x seeds that are done, of those planned", short=True),
    Column("accuracy", "accuracy %", "mean test accuracy", 1, "high", short=True),
    Column("sd", "sd", "standard deviation over folds and seeds", 1, short=True),
    Column("low", "95 % from", "lower end of the t-interval of the mean", 1, short=True),
    Column("high", "95 % to", "upper end of it", 1, short=True),
    Column("uar", "UAR %", "unweighted average recall: the mean over classes", 1, "high"),
    Column("trained", "trained", "parameters trained outside the head", 0, "low", short=True),
    Column("share", "share %", "of the backbone's parameters", 2, "low", short=True),
    Column("stored", "stored", "numbers in the bundle, the head's too", 0, "low"),
    Column("active", "active", "trained parameters that one token uses", 0, "low",
           short=True),
    Column("entropy", "routing entropy", "of a token's weights over experts or slots; 1 is "
           "uniform", 2, short=True),
    Column("busiest", "busiest expert %", "share of all weights, mean over layers", 1,
           short=True),
    Column("budget", "of budget %", "trained parameters, of those allowed", 1, short=True),
    Column("bundle_kib", "bundle KiB", "size of what is kept of the training", 0, "low"),
    Column("epochs", "epochs", "passes over the training clips", 0),
    Column("epoch_seconds", "s/epoch", "seconds that an epoch trains", 2, "low"),
    Column("best_seconds", "s to best", "training seconds to the epoch that was kept", 1, "low"),
    Column("seconds_to_95", "s to 95 %", "training seconds to 95 % of the last epoch's validation "
           "accuracy", 1, "low"),
    Column("samples_per_second", "clips/s trained", "training speed", 1, "high", short=True),
    Column("peak_mib", "peak MiB", "memory at most in training: resident, or of the GPU", 0, "low",
           short=True),
    Column("latency_ms", "ms/clip", "time of one clip alone", 2, "low", short=True),
    Column("throughput", "clips/s", "prediction speed in batches", 1, "high"),
    Column("merged_latency_ms", "ms/clip merged", "the same, folded into the backbone", 2, "low"),
    Column("merged_throughput", "clips/s merged", "the same, folded into the backbone", 1, "high"),
    Column("gflops", "GFLOP/clip", "operations of one prediction", 3, "low", short=True),
    Column("merged_gflops", "GFLOP merged", "the same, folded into the backbone", 3, "low"),
]  # fmt: skip


def of(*keys: str) -> list[Column]:
    """Some of `COLUMNS`."""
    known = {column.key: column for column in COLUMNS}
    return [known[key] for key in keys]


GROUPED = of("method", "corpus", "backbone", "shots")

COMPARISONS = [
    *GROUPED,
    Column("difference", "difference", "accuracy more than the baseline's, in %", 1, "high"),
    Column("low", "95 % from", "lower end of its bootstrap interval over clips", 1),
    Column("high", "95 % to", "upper end of it", 1),
    Column("better", "clips better", "that the method gets right in more seeds", 0, "high"),
    Column("worse", "clips worse", "that the baseline gets right in more seeds", 0, "low"),
    Column("p", "p", "McNemar's exact test on these clips", 4),
    Column("p_holm", "p, Holm", "corrected for all comparisons of the table's group", 4),
]

FACTORS = [
    Column("series", "method", "the configuration that is varied"),
    *of("corpus", "backbone", "shots"),
    Column("factor", "setting", "what is varied"),
    Column("first", "from", "its first value"),
    Column("second", "to", "its second value"),
    Column("pairs", "pairs", "pairs of runs that differ in it alone", 0),
    Column("at_first", "% at first", "mean accuracy at the first value", 1),
    Column("at_second", "% at second", "mean accuracy at the second value", 1),
    Column("difference", "difference", "second minus first, in %", 1),
    Column("low", "95 % from", "lower end of its t-interval over pairs", 1),
    Column("high", "95 % to", "upper end of it", 1),
]

PUBLISHED = [
    *GROUPED,
    Column("accuracy", "measured %", "mean test accuracy here", 1),
    Column("accuracy_published", "published %", "as the source prints it", 1),
    Column("difference", "difference", "measured minus published", 1),
    Column("low", "95 % from", "lower end of the interval of the measured mean", 1),
    Column("high", "95 % to", "upper end of it", 1),
    Column("trained", "trained", "parameters trained outside the head, here", 0),
    Column("parameters", "published", "parameters that the source gives", 0),
    Column("source", "source", "where the number was found"),
    Column("evidence", "evidence", "`paper`: read there; `secondary`: through somebody else"),
]

RANKS = [
    *of("method", "backbone", "shots"),
    Column("rank", "average rank", "1 is best", 2, "low"),
]

FAILURES = [
    Column("run", "run", "its folder"),
    Column("reason", "reason", "why it failed"),
    Column("attempts", "attempts", "how often it was tried", 0),
]


def present(table: pd.DataFrame, columns: list[Column]) -> list[Column]:
    """The columns that hold something; of those that name the group, only what differs."""
    constant = {
        key for key in ("corpus", "backbone", "shots") if key in table and table[key].nunique() < 2
    }
    return [
        column
        for column in columns
        if column.key not in constant and table[column.key].notna().any()
    ]

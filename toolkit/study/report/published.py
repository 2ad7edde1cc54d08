"""Published numbers beside measured ones. The numbers are data: `published.csv`, with sources."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from toolkit.study.report.load import GROUP, METHOD

FILE = Path(__file__).with_name("published.csv")


def read_published() -> pd.DataFrame:
    """All published numbers: corpus, backbone, shots, method, parameters, score (accuracy in %),
    std, source, and evidence (`paper`: read in the paper; `secondary`: quoted by others)."""
    table = pd.read_csv(FILE, dtype={"shots": str, "std": float})
    return table.astype({"score": float})


def beside_measured(methods: pd.DataFrame, names: Mapping[str, str]) -> pd.DataFrame:
    """A row for each measured method that has been published for the same corpus, backbone and
    number of clips per class; `difference` is measured minus published, in %.

    Args:
        methods: see `tables.methods`.
        names: the study's name of a method -> its name in `published.csv`.
    """
    wanted = [*METHOD, "score", "low", "high", "trained"]
    measured = methods[wanted].assign(published=methods["method"].map(names))
    numbers = read_published().rename(columns={"method": "published"})
    same = [*GROUP, "published"]
    found = measured.merge(numbers, on=same, suffixes=("", "_published"))
    return found.assign(difference=found["score"] - found["score_published"])

"""`report.csv`: everything that a report says of each method, in one row."""

import pandas as pd

from toolkit.study.report import tables
from toolkit.study.report.columns import COLUMNS, present
from toolkit.study.report.load import METHOD, Results, identity
from toolkit.training.volatile import VOLATILE

OF_CELL = {"seed", "few_shot", "data_folder"}
"""Keys of a configuration that say which run of a method it is, or where it ran."""

COMPARED = ["difference", "difference_low", "difference_high", "better", "worse", "p", "p_holm"]


def sheet(results: Results) -> pd.DataFrame:
    """A row for each method of each group.

    Columns: those of the table of methods; the difference from the baseline, with the columns of
    the comparisons; `rank` and `ranked_over`; and the settings in which the methods differ, by
    their names in a configuration.
    """
    methods = tables.methods(results)
    shown = [c.key for c in present(methods, COLUMNS) if c.key not in METHOD]
    comparisons = tables.comparisons(results).rename(
        columns={"low": "difference_low", "high": "difference_high"}
    )
    found = methods[[*METHOD, *shown]]
    settings = _settings(results).drop(columns=shown, errors="ignore")  # such as `epochs`
    for other in (comparisons[[*METHOD, *COMPARED]], _ranks(results), settings):
        found = found.merge(other, on=METHOD, how="left")
    empty = [key for key in found.columns if found[key].isna().all()]
    return found.drop(columns=empty)


def _ranks(results: Results) -> pd.DataFrame:
    rows = []
    for ranking in tables.rankings(results):
        ranked_over = f"{ranking.ranks.blocks} {ranking.blocks}"
        for corpus in ranking.corpora:
            for method, rank in zip(ranking.methods, ranking.ranks.average, strict=True):
                key = (corpus, ranking.backbone, ranking.shots, method)
                values = {"rank": rank, "ranked_over": ranked_over}
                rows.append(dict(zip(METHOD, key, strict=True)) | values)
    return pd.DataFrame(rows, columns=[*METHOD, "rank", "ranked_over"])


def _settings(results: Results) -> pd.DataFrame:
    """The keys of the configuration that are not the same in all rows."""
    rows = {
        tuple(identity(record.cell).values()): {
            key: value
            for key, value in record.found().configuration.items()
            if key.split(".")[0] not in {*VOLATILE, *OF_CELL}
        }
        for record in results.done
    }
    named = [{**dict(zip(METHOD, row, strict=True)), **rows[row]} for row in rows]
    table = pd.DataFrame(named)
    constant = [
        key for key in table.columns if key not in METHOD and table[key].map(str).nunique() < 2
    ]
    return table.drop(columns=constant)

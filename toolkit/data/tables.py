"""Reading the metadata tables of corpora; an error lists everything that is wrong with a table."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from toolkit.data.manifest import refuse
from toolkit.errors import DataError, did_you_mean


def read_csv(path: Path, columns: Sequence[str], corpus: str) -> pd.DataFrame:
    """A CSV file with a header line, every cell as text.

    Args:
        path: the file.
        columns: the columns that it must have, with a value in every line.
        corpus: the name of the corpus, for messages.

    Raises:
        DataError: no such file, no CSV, missing columns, empty cells.
    """
    if not path.is_file():
        raise DataError(
            f"{path} is missing: name the folder that holds {corpus} with `--data_folder`"
        )
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (ValueError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a CSV file: {error}") from None
    refuse(
        str(path),
        [
            f"column '{column}' is missing{did_you_mean(column, table.columns)}"
            for column in columns
            if column not in table.columns
        ],
    )
    incomplete = (table[list(columns)] == "").any(axis=1)
    refuse(str(path), [f"line {i + 2} has an empty cell" for i in table.index[incomplete]])
    return table

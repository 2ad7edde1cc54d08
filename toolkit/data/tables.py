"""Reading the tables of corpora; an error lists everything that is wrong with a table.

A cell stays what the file says: text in CSV; text, numbers, lists and null in JSONL. Nothing is
guessed from other rows, so that a whole number next to an empty cell stays whole.
"""

import csv
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from toolkit.data.manifest import refuse
from toolkit.errors import DataError, did_you_mean

CSV_ENCODING = "utf-8-sig"  # with or without a byte-order mark


class Row(NamedTuple):
    """A row of a table: the number of its line, and its cells by column."""

    line: int
    cells: dict[str, Any]


def read_csv(path: Path, columns: Sequence[str], corpus: str) -> pd.DataFrame:
    """A CSV file with a header line, every cell as text.

    Args:
        path: the file.
        columns: the columns that it must have, with a value in every line.
        corpus: the name of the corpus, for messages.

    Raises:
        DataError: no such file, no CSV, missing columns, no rows, empty cells.
    """
    if not path.is_file():
        raise DataError(
            f"{path} is missing: name the folder that holds {corpus} with `--data_folder`"
        )
    header, rows = _csv(path)
    refuse(
        str(path),
        [
            f"column '{column}' is missing{did_you_mean(column, header)}"
            for column in columns
            if column not in header
        ],
    )
    refuse(
        str(path),
        [
            f"line {row.line} has an empty cell"
            for row in rows
            if any(not row.cells[column].strip() for column in columns)
        ],
    )
    return pd.DataFrame([row.cells for row in rows], columns=header, dtype=object)


def read_rows(path: Path) -> list[Row]:
    """The rows of a CSV file with a header line, or of a file of one JSON object per line.

    Raises:
        DataError: neither, a row of another length than the header, or no rows.
    """
    if path.suffix.lower() == ".jsonl":
        rows = _jsonl(path)
    else:
        _, rows = _csv(path)
    if not rows:
        raise DataError(f"{path} has no rows: add one per clip")
    return rows


def _csv(path: Path) -> tuple[list[str], list[Row]]:
    """The header and the rows."""
    try:
        with open(path, encoding=CSV_ENCODING, newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            rows = [(reader.line_num, cells) for cells in reader if cells]
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a CSV file: {error}") from None
    if not header:
        raise DataError(f"{path} is not a CSV file: it is empty, without a header line")
    problems = [
        f"column '{name}' is there {n} times" for name, n in Counter(header).items() if n > 1
    ]
    problems += [
        f"line {line} has {len(cells)} cells, and the header has {len(header)}"
        for line, cells in rows
        if len(cells) != len(header)
    ]
    refuse(str(path), problems)
    return header, [Row(line, dict(zip(header, cells, strict=True))) for line, cells in rows]


def _jsonl(path: Path) -> list[Row]:
    rows, problems = [], []
    try:
        text = path.read_text(encoding=CSV_ENCODING)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a table: {error}; write it as CSV or JSONL") from None
    for number, line in enumerate(text.split("\n"), start=1):  # U+2028 does not end a line
        if not line.strip():
            continue
        try:
            cells = json.loads(line, parse_constant=_no_number, object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            problems.append(f"line {number} is not JSON: {error}")
            continue
        if isinstance(cells, dict):
            rows.append(Row(number, cells))
        else:
            problems.append(f'line {number} is not an object, such as {{"path": ...}}')
    refuse(f"{path} is not a table", problems)
    return rows


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is not a value")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    if twice:
        raise ValueError(f"{twice[0]!r} is there twice")
    return dict(pairs)


Parse = Callable[[Any], Any]
"""Turns a cell into its value; raises `ValueError` with what a cell should be."""


def parsed(rows: Sequence[Row], column: str, parse: Parse, problems: list[str]) -> list[Any]:
    """The values of a column; None where a cell is missing or wrong.

    Args:
        rows: of the table.
        column: its name.
        parse: is given the cells, None for a missing one.
        problems: gets a message for every wrong cell.
    """
    values = []
    for row in rows:
        try:
            values.append(parse(row.cells.get(column)))
        except ValueError as error:
            values.append(None)
            cell = row.cells.get(column)
            wrong = "is missing" if cell in (None, "") else f"{cell!r} {error}"
            problems.append(f"line {row.line}: the {column} {wrong}")
    return values


def name(cell: object) -> str:
    """A name: text, or a whole number, which stays whole."""
    if isinstance(cell, int | float) and not isinstance(cell, bool) and cell == cell // 1:
        cell = str(int(cell))
    if not isinstance(cell, str) or not cell.strip():
        raise ValueError("is not text or a whole number")
    return cell.strip()


def optional_name(cell: object) -> str | None:
    """A name, or None for an empty cell."""
    return None if cell in (None, "") else name(cell)


def names(cell: object) -> tuple[str, ...]:
    """Any number of names: a list of them, or text with semicolons between them."""
    if isinstance(cell, str):
        cell = [part for part in cell.split(";") if part.strip()]
    if not isinstance(cell, list):
        raise ValueError("is not a list of names, or text with semicolons between them")
    return tuple(dict.fromkeys(map(name, cell)))


def whole_number(least: int, most: int) -> Callable[[object], int]:
    """Parses whole numbers between two."""

    def parse(cell: object) -> int:
        value = _number(cell)
        if not (least <= value <= most and value.is_integer()):
            raise ValueError(f"is not a whole number from {least} to {most}")
        return int(value)

    return parse


def seconds(cell: object) -> float:
    """A number of seconds; NaN for an empty cell."""
    if cell in (None, ""):
        return float("nan")
    value = _number(cell)
    if not abs(value) < float("inf"):
        raise ValueError("is not a number of seconds")
    return value


def _number(cell: object) -> float:
    """The number that a cell holds; NaN: none, such as `1_0`, which Python would read as 10."""
    text = str(cell)
    try:
        return float("nan" if isinstance(cell, bool) or "_" in text else text)
    except ValueError:
        return float("nan")

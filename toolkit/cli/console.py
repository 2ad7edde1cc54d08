"""Output of the commands: tables on a terminal, plain lines for other programs."""

import sys
from collections.abc import Callable, Iterable, Sequence


def print_table(
    rows: Iterable[Sequence[str]],
    plain: Callable[..., str],
    columns: Sequence[str],
    *,
    title: str = "",
    heading: str = "",
) -> None:
    """Print a table: drawn with `rich` on a terminal, one line per row anywhere else.

    Args:
        rows: the cells, one sequence per row.
        plain: called with the cells of a row; returns its plain text.
        columns: the headings of the columns. The first column is never wrapped.
        title: printed above the table on a terminal.
        heading: the plain line printed above the rows; the title if empty.
    """
    if sys.stdout.isatty():
        _draw(rows, columns, title)
        return
    if heading or title:
        print(heading or title)
    for row in rows:
        print(plain(*row))


def _draw(rows: Iterable[Sequence[str]], columns: Sequence[str], title: str) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left", box=SIMPLE_HEAD)
    for number, column in enumerate(columns):
        table.add_column(column, no_wrap=number == 0, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)

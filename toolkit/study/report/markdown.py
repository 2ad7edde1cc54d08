"""The report as Markdown, for a README: the same tables with fewer columns, and the pictures."""

from collections.abc import Iterable

from toolkit.study.report.html import summary
from toolkit.study.report.load import Results
from toolkit.study.report.sections import Table


def render(results: Results, tables: list[Table], pictures: Iterable[tuple[str, str]]) -> str:
    """The text.

    Args:
        results: of the study.
        tables: what it shows; of the methods, the columns that are marked as short.
        pictures: titles and paths from where the text lies.
    """
    study = results.study
    parts = [f"# {study.study}", study.question, study.conclusion, summary(results), study.limits]
    for table in tables:
        parts += [f"## {table.title}", markdown_table(table), table.note]
    parts += [f"## {title}\n\n![{title}]({path})" for title, path in pictures]
    parts.append("Made by `toolkit report` from the `result.json` files of the study; not edited.")
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def markdown_table(table: Table) -> str:
    """A table in Markdown."""
    columns = [c for c in table.columns if c.short or table.key != "methods"]
    lines = [
        [column.title for column in columns],
        ["---" if column.digits is None else "--:" for column in columns],
    ]
    for row in table.rows.to_dict("records"):
        lines.append([column.text(row[column.key]).replace("|", "\\|") for column in columns])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

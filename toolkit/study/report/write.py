"""`toolkit report STUDY`: everything that a study found, as HTML, Markdown, CSV and pictures."""

from collections.abc import Iterator
from pathlib import Path

from toolkit.errors import ConfigError
from toolkit.files import write_atomically
from toolkit.study.report import html, markdown, plots
from toolkit.study.report.load import Results
from toolkit.study.report.sections import all_pictures, all_tables


def write_report(results: Results, folder: Path, text: Path | None = None) -> Iterator[Path]:
    """Write report.html, report.md, report.csv and figures/*.png, *.svg.

    Args:
        results: of the study.
        folder: where.
        text: write the Markdown here too, with its pictures as SVG in a folder of the same name,
            such as recipes/ESC50/RESULTS.md.

    Yields:
        the files as they are written.

    Raises:
        ConfigError: no run is done.
    """
    if not results.done:
        raise ConfigError(
            f"no run of '{results.study.study}' is done ({len(results.failed)} failed): see "
            f"output.log in the folders below {results.folder / 'runs'}"
        )
    tables = all_tables(results)
    pictures = all_pictures(results, tables[0].rows)
    folder.mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        plots.save(picture.figure, folder / "figures", picture.name)
        yield folder / "figures" / f"{picture.name}.png"
    drawn = [(p.title, folder / "figures" / f"{p.name}.svg") for p in pictures]
    yield _write(folder / "report.html", html.render(results, tables, drawn))
    keys = [column.key for column in tables[0].columns]
    yield _write(folder / "report.csv", tables[0].rows[keys].to_csv(index=False))
    named = [(p.title, f"figures/{p.name}.png") for p in pictures]
    yield _write(folder / "report.md", markdown.render(results, tables, named))
    if text is not None:
        place = text.with_suffix("")
        for picture in pictures:
            plots.save(picture.figure, place, picture.name, ["svg"])
        named = [(p.title, f"{place.name}/{p.name}.svg") for p in pictures]
        text.parent.mkdir(parents=True, exist_ok=True)
        yield _write(text, markdown.render(results, tables, named))


def _write(file: Path, text: str) -> Path:
    write_atomically(file, text)
    return file

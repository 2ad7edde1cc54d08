"""`toolkit study report STUDY`: the results of a study as HTML, Markdown, CSV and pictures."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from toolkit.errors import ConfigError
from toolkit.files import write_atomically
from toolkit.own_folders import Kind, claimed, require_new
from toolkit.study.report import html, markdown, plots
from toolkit.study.report.contents import all_pictures, all_tables
from toolkit.study.report.load import Results
from toolkit.study.report.sheet import sheet

REPORT = Kind(
    "report of a study",
    known_by=(("report.html", "report.csv"),),
    remedy="choose another folder with `--output`",
)
PICTURES = Kind("folder of pictures", remedy="choose another file with `--text`")


def write_report(results: Results, folder: Path, text: Path | None = None) -> Iterator[Path]:
    """Write report.html, report.md, report.csv and figures/*.png, *.svg.

    Args:
        results: of the study.
        folder: where to write them.
        text: write the Markdown here too, such as to docs/results/esc10.md, with small pictures
            for a repository in a folder of the same name (docs/results/esc10/).

    Yields:
        each file once it is written.

    Raises:
        ConfigError: no run has finished.
        PlaceError: something that is not a report is there.
    """
    if not results.done:
        raise ConfigError(
            f"no run of '{results.study.study}' has finished ({len(results.failed)} failed): see "
            f"output.log in the folders below {results.folder / 'runs'}"
        )
    pictured = PICTURES
    if text is not None and markdown.is_ours(text):  # so are the pictures that belong to it
        pictured = dataclasses.replace(PICTURES, known_by=((),))
    elif text is not None:
        require_new(text)
    tables = all_tables(results)
    pictures = all_pictures(results, tables[0].rows)
    with claimed(folder, REPORT):
        for picture in pictures:
            plots.save(picture.figure, folder / "figures", picture.name)
            yield folder / "figures" / f"{picture.name}.png"
        drawn = [(p.title, folder / "figures" / f"{p.name}.svg") for p in pictures]
        yield _write(folder / "report.html", html.render(results, tables, drawn))
        yield _write(folder / "report.csv", sheet(results).to_csv(index=False))
        named = [(p.title, f"figures/{p.name}.png") for p in pictures]
        yield _write(folder / "report.md", markdown.render(results, tables, named))
    if text is not None:
        place = text.with_suffix("")
        with claimed(place, pictured):
            small = [(p.title, plots.save_small(p.figure, place, p.name)) for p in pictures]
        named = [(title, f"{place.name}/{file.name}") for title, file in small]
        yield _write(text, markdown.render(results, tables, named))


def _write(file: Path, text: str) -> Path:
    write_atomically(file, text)
    return file

"""The report as one self-contained HTML page: data as JSON, and plain JavaScript that shows it."""

import base64
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from toolkit.study.records import Record
from toolkit.study.report.contents import Table
from toolkit.study.report.curves import mean_curve
from toolkit.study.report.load import METHOD, Results

FOLDER = Path(__file__).with_name("templates")
SCRIPTS = ("elements.js", "table.js", "plot.js", "heat.js", "main.js")
CURVES = ("valid_score", "valid_loss", "train_loss")


def render(results: Results, tables: list[Table], pictures: Iterable[tuple[str, Path]]) -> str:
    """Render the page.

    Args:
        results: of the study.
        tables: what it shows.
        pictures: titles and SVG files.
    """
    title = f"{results.study.study}: PEFT methods side by side"
    parts = {
        "title": title,
        "style": _read("style.css"),
        "script": "\n".join(map(_read, SCRIPTS)),
        "data": _as_json(page_data(results, tables, pictures)),
    }
    page = _read("page.html")
    for name, text in parts.items():
        page = page.replace(f"{{{{{name}}}}}", text)
    return page


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _as_json(data: Any) -> str:
    """JSON text that cannot close the script element that contains it."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def page_data(
    results: Results, tables: list[Table], pictures: Iterable[tuple[str, Path]]
) -> dict[str, Any]:
    """All data that the page shows."""
    study = results.study
    order = [tuple(row) for row in tables[0].rows[METHOD].itertuples(index=False)]
    confusions = results.confusions()
    shared, own = _settings(list(results.records.values()))
    return {
        "study": study.study,
        "question": study.question,
        "limits": study.limits,
        "conclusion": study.conclusion,
        "summary": summary(results),
        "baseline": study.baseline,
        "metric": results.metric,
        "tables": [_table(table) for table in tables],
        "curves": [_labelled(key, _curves(results, key)) for key in order],
        "confusions": [
            _labelled(key, dict(zip(("classes", "counts"), confusions[key], strict=True)))
            for key in order
            if key in confusions
        ],
        "pictures": [{"title": title, "source": _embedded(file)} for title, file in pictures],
        "shared": shared,
        "runs": own,
    }


def summary(results: Results) -> str:
    """How many runs finished, and with which versions of the toolkit."""
    missing = len(results.cells) - len(results.records)
    versions = sorted({f"{o.toolkit} ({o.commit})" for o in (r.found() for r in results.done)})
    return (
        f"{len(results.done)} runs finished, {len(results.failed)} failed, {missing} still to run. "
        f"Toolkit {', '.join(versions) or 'unknown'}."
    )


def _table(table: Table) -> dict[str, Any]:
    columns = [
        {key: getattr(column, key) for key in ("key", "title", "about", "digits", "better")}
        for column in table.columns
    ]
    kept = [column.key for column in table.columns]
    kept += [key for key in METHOD if key in table.rows and key not in kept]
    rows = [{k: _plain(v) for k, v in row.items()} for row in table.rows[kept].to_dict("records")]
    return {
        "key": table.key, "title": table.title, "note": table.note,
        "columns": columns, "rows": rows,
    }  # fmt: skip


def _plain(value: Any) -> Any:
    """A cell as a value for JSON: NaN becomes None, and floats are rounded to six digits."""
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def _labelled(key: tuple[str, ...], values: dict[str, Any]) -> dict[str, Any]:
    return dict(zip(METHOD, key, strict=True)) | values


def _curves(results: Results, key: tuple[str, ...]) -> dict[str, list[float]]:
    return {name: [round(v, 4) for v in mean_curve(results, key, name)] for name in CURVES}


def _embedded(file: Path) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(file.read_bytes()).decode()


def _settings(records: list[Record]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The settings that all runs share, and for each run those that differ."""
    described = [_described(record) for record in records]
    full = [values for values in described if values]
    shared = {
        key: value
        for key, value in (full[0] if full else {}).items()
        if all(other.get(key) == value for other in full)
    }
    runs = [
        {
            "name": record.cell.name,
            "command": " ".join(record.command),
            "own": {k: v for k, v in values.items() if k not in shared}
            | {"status": record.status, "reason": record.reason, "seconds": record.seconds},
            "log": record.log,
        }
        for record, values in zip(records, described, strict=True)
    ]
    return shared, runs


def _described(record: Record) -> dict[str, Any]:
    """The exact settings and versions of a run that is done."""
    outcome = record.outcome
    if outcome is None:
        return {}
    return {
        **outcome.configuration,
        **{f"peft.{key}": value for key, value in outcome.peft.as_dict().items()},
        "toolkit": outcome.toolkit, "commit": outcome.commit, "python": outcome.python,
        "device": outcome.device,
        **outcome.packages,
        "host": record.host, "engine": record.engine, "threads": record.threads,
    }  # fmt: skip

"""Classify audio files with a bundle: `toolkit predict`."""

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.cli.console import print_table
from toolkit.cli.parser import Commands, at_least
from toolkit.errors import DataError, listing

if TYPE_CHECKING:
    from toolkit.inference.predict import Prediction


def add(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add the command `predict`."""
    command = commands.add_parser("predict", parents=[common], help="classify files with a bundle")
    command.add_argument("bundle", help="the folder 'bundle' of a run")
    command.add_argument(
        "files", nargs="+", metavar="FILE", help="audio, a folder of it, or /dev/stdin"
    )
    command.add_argument("--top", type=at_least(1), default=3, help="classes per file (default: 3)")
    command.add_argument("--windows", action="store_true", help="one row per window of long files")
    command.add_argument("--json", action="store_true", help="per file a line of JSON, all classes")
    command.add_argument("--backbone", help="the bundle's backbone, if it has moved")
    command.add_argument("--device", default="cpu")
    command.set_defaults(run=predict)


def predict(options: argparse.Namespace) -> None:
    """`toolkit predict BUNDLE FILE...`; files that cannot be read are told at the end."""
    from toolkit.bundle import load_bundle
    from toolkit.device import require_device
    from toolkit.inference.predict import predict_each

    require_device(options.device)
    files = _files(options.files)
    bundle = load_bundle(options.bundle, options.backbone)
    problems: list[str] = []

    def found() -> Iterator["Prediction"]:
        for result in predict_each(bundle, files, options.device):
            if isinstance(result, DataError):
                problems.append(str(result))
            else:
                yield result

    if options.json:
        for prediction in found():
            print(json.dumps(_as_json(prediction), allow_nan=False), flush=True)
    else:
        places = range(1, min(options.top, len(bundle.classes)) + 1)
        print_table(
            (row for p in found() for row in _rows(p, options.top, options.windows)),
            lambda name, *best: f"{name}   {'   '.join(best)}",
            ("file", *(f"{place}." for place in places)),
        )
    if problems:
        raise DataError(
            f"{len(problems)} of {len(files)} files cannot be classified:\n{listing(problems)}"
        )


def _files(names: list[str]) -> list[str]:
    """The files that are named, and in place of a folder the audio files in it and below."""
    from toolkit.features.audio_file import SUFFIXES, sounds_below

    files = []
    for name in names:
        if os.path.isdir(name):
            below = sounds_below(Path(name))
            if not below:
                raise DataError(f"{name}: holds no audio files ({', '.join(SUFFIXES)})")
            files += [str(path) for path in below]
        else:
            files.append(name)
    return files


def _rows(prediction: "Prediction", top: int, windows: bool) -> Iterator[tuple[str, ...]]:
    """The name of a file, or of each of its windows, and its most probable classes."""
    parts = list(prediction.windows) if windows else [prediction.probabilities]
    for number, part in enumerate(parts, start=1):
        label = f"  window {number}" if windows else ""
        best = prediction.top(top, part)
        cells = (f"{_printable(name)} {100 * share:.1f} %" for name, share in best)
        yield f"{_printable(prediction.path)}{label}", *cells


def _printable(name: str) -> str:
    """A name on one line: bytes that are not text, and control characters, as escapes."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in name
    )


def _as_json(prediction: "Prediction") -> dict[str, Any]:
    return {
        "file": prediction.path,
        "prediction": prediction.label,
        "probabilities": dict(
            zip(prediction.classes, prediction.probabilities.tolist(), strict=True)
        ),
        "windows": prediction.windows.tolist(),
    }

"""Classify audio files with a bundle: `toolkit predict`."""

import argparse
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from toolkit.cli.console import print_table
from toolkit.cli.parser import Commands, at_least

if TYPE_CHECKING:
    from toolkit.inference.predict import Prediction


def add(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add the command `predict`."""
    command = commands.add_parser("predict", parents=[common], help="classify files with a bundle")
    command.add_argument("bundle", help="the folder 'bundle' of a run")
    command.add_argument("files", nargs="+", metavar="FILE")
    command.add_argument("--top", type=at_least(1), default=3, help="classes per file (default: 3)")
    command.add_argument("--windows", action="store_true", help="one row per window of long files")
    command.add_argument("--json", action="store_true", help="all probabilities as JSON")
    command.add_argument("--backbone", help="the bundle's backbone, if it has moved")
    command.add_argument("--device", default="cpu")
    command.set_defaults(run=predict)


def predict(options: argparse.Namespace) -> None:
    """`toolkit predict BUNDLE FILE...`."""
    from toolkit.bundle import load_bundle
    from toolkit.device import require_device
    from toolkit.inference.predict import predict as predictions

    require_device(options.device)
    bundle = load_bundle(options.bundle, options.backbone)
    found = predictions(bundle, options.files, options.device)
    if options.json:
        for prediction in found:
            print(json.dumps(_as_json(prediction)))
        return
    print_table(
        (row for p in found for row in _rows(p, options.top, options.windows)),
        lambda name, *best: f"{name}   {'   '.join(best)}",
        ("file", *(f"{place}." for place in range(1, min(options.top, len(bundle.classes)) + 1))),
    )


def _rows(prediction: "Prediction", top: int, windows: bool) -> Iterator[tuple[str, ...]]:
    """The name of a file, or of each of its windows, and its most probable classes."""
    rows = [("", prediction.probabilities)]
    if windows:
        rows = [(f"  window {i + 1}", p) for i, p in enumerate(prediction.windows)]
    for label, probabilities in rows:
        best = prediction.top(top, probabilities)
        cells = (f"{name} {100 * share:.1f} %" for name, share in best)
        yield f"{prediction.path}{label}", *cells


def _as_json(prediction: "Prediction") -> dict[str, Any]:
    return {
        "file": prediction.path,
        "prediction": prediction.label,
        "probabilities": dict(
            zip(prediction.classes, prediction.probabilities.tolist(), strict=True)
        ),
        "windows": prediction.windows.tolist(),
    }

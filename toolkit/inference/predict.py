"""Prediction with a bundle: files -> labels and probabilities, long files in windows."""

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from toolkit.bundle import Bundle
from toolkit.features.batch import padded
from toolkit.features.cache import Segment
from toolkit.model import AudioClassifier


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a file is.

    Attributes:
        path: the file.
        probabilities: [C], the mean over its windows.
        windows: [W, C], one row a window.
    """

    path: str
    probabilities: Tensor
    windows: Tensor

    def top(
        self, classes: list[str], count: int, probabilities: Tensor | None = None
    ) -> list[tuple[str, float]]:
        """The most probable classes, of the file or of one window's `probabilities`."""
        chosen = self.probabilities if probabilities is None else probabilities
        values, indices = chosen.topk(min(count, len(classes)))
        return [(classes[i], p) for i, p in zip(indices.tolist(), values.tolist(), strict=True)]


@torch.inference_mode()
def predict(
    bundle: Bundle, paths: Iterable[str | Path], device: str = "cpu", batch_size: int = 16
) -> Iterator[Prediction]:
    """Classify files; one longer than the backbone reads is cut into windows, the last one padded.

    Raises:
        DataError: a file cannot be read.
    """
    model, spec = bundle.model.to(device), bundle.features
    for path in paths:
        rows = bundle.pipeline.read(Segment(str(path)), spec)
        windows = split_windows(rows, spec.rows)
        chunks = [windows[i : i + batch_size] for i in range(0, len(windows), batch_size)]
        logits = torch.cat([_logits(model, chunk, device) for chunk in chunks])
        probabilities = bundle.probabilities(logits)
        yield Prediction(str(path), probabilities.mean(dim=0), probabilities)


def _logits(model: AudioClassifier, windows: list[Tensor], device: str) -> Tensor:
    """[W, C]."""
    rows, lengths = padded([window.numpy() for window in windows], model.backbone.features)
    lengths = None if lengths is None else lengths.to(device)
    return model.logits(rows.to(device), lengths).cpu()


def split_windows(rows: Tensor, length: int) -> list[Tensor]:
    """Rows [T, F] -> windows [length, F], and a last shorter one if it is not a sliver.

    A rest shorter than a tenth of a window is left out (unless it is all there is): it would weigh
    as much as a full one and is mostly padding.
    """
    windows = list(rows.split(length))
    if len(windows) > 1 and len(windows[-1]) < length / 10:
        windows.pop()
    return windows

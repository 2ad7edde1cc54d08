"""Prediction with a bundle: files -> labels and probabilities, long files in windows."""

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from toolkit.bundle import Bundle
from toolkit.data.pipelines import fbank_of_file


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
    model = bundle.model.to(device)
    for path in paths:
        windows = split_windows(fbank_of_file(path, bundle.features), bundle.features.max_length)
        inputs = bundle.features.normalise(windows)
        chunks = [model(chunk.to(device)).softmax(-1).cpu() for chunk in inputs.split(batch_size)]
        probabilities = torch.cat(chunks)
        yield Prediction(str(path), probabilities.mean(dim=0), probabilities)


def split_windows(frames: Tensor, length: int) -> Tensor:
    """Frames [T, F] -> [W, length, F]: full windows, and a last padded one if it is not a sliver.

    A rest shorter than a tenth of a window is left out (unless it is all there is): it would weigh
    as much as a full one and is mostly padding.
    """
    windows = list(frames.split(length))
    if len(windows) > 1 and len(windows[-1]) < length / 10:
        windows.pop()
    windows[-1] = functional.pad(windows[-1], (0, 0, 0, length - len(windows[-1])))
    return torch.stack(windows)

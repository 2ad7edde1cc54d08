"""Prediction with a bundle: clips -> labels and probabilities, long clips in windows."""

import dataclasses
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from toolkit.bundle import Bundle
from toolkit.inference.clips import Clip, name_of, rows_of
from toolkit.inference.windows import in_windows


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a clip is.

    Attributes:
        path: the file; `clip 3` for the third clip if it was an array.
        classes: C names, in the order of the probabilities.
        probabilities: [C], the mean over its windows.
        windows: [W, C], one row per window.
    """

    path: str
    classes: list[str]
    probabilities: Tensor
    windows: Tensor

    @property
    def label(self) -> str:
        """The most probable class."""
        return self.classes[int(self.probabilities.argmax())]

    def top(self, count: int, probabilities: Tensor | None = None) -> list[tuple[str, float]]:
        """The most probable classes with their probabilities, the most probable first.

        Args:
            count: how many.
            probabilities: [C], of one of the windows; None: of the whole clip.
        """
        chosen = self.probabilities if probabilities is None else probabilities
        values, indices = chosen.topk(min(count, len(self.classes)))
        return [
            (self.classes[i], p) for i, p in zip(indices.tolist(), values.tolist(), strict=True)
        ]


@torch.inference_mode()
def predict(
    bundle: Bundle, clips: Iterable[Clip], device: str = "cpu", batch_size: int = 16
) -> Iterator[Prediction]:
    """Classify clips; one that is longer than the backbone reads is cut into windows.

    Args:
        bundle: from `load_bundle`.
        clips: files, or pairs of samples ([S] or [channels, S], in [-1, 1]) and rate in Hz.
        device: where to compute.
        batch_size: windows computed at once.

    Yields:
        a prediction per clip, in the order of the clips.

    Raises:
        DataError: a file that cannot be read, or an array that is not sound.
    """
    model, pipeline, spec = bundle.model.to(device), bundle.reader, bundle.features
    for number, clip in enumerate(clips, start=1):
        logits = in_windows(rows_of(clip, pipeline, spec), spec, model.logits, device, batch_size)
        probabilities = bundle.probabilities(logits)
        yield Prediction(
            name_of(clip, number), bundle.classes, probabilities.mean(dim=0), probabilities
        )

"""Prediction with a bundle: clips -> labels and probabilities, long clips in windows."""

import dataclasses
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from toolkit.bundle import Bundle
from toolkit.device import require_device
from toolkit.errors import BundleError, DataError
from toolkit.features.pipeline import Pipeline
from toolkit.inference.clips import Clip, several
from toolkit.inference.windows import evaluating, in_windows


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a clip is.

    Attributes:
        path: the file; `clip 3` for the third clip if it was an array.
        classes: C names, in the order of the probabilities.
        labels: the classes that it has: the most probable one, or, where a clip may have several
            classes, those with a probability of at least one half.
        probabilities: [C], the mean over its windows.
        windows: [W, C], one row per window.
    """

    path: str
    classes: list[str]
    labels: list[str]
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


def predict(
    bundle: Bundle, clips: Iterable[Clip], device: str = "cpu", batch_size: int = 16
) -> Iterator[Prediction]:
    """Classify clips; one that is longer than the backbone reads is cut into windows, of which
    those count that counted when the bundle was tested (`Bundle.windows`).

    Clips are read ahead, and short ones are computed together: the first prediction comes when a
    batch is full (four of them where clips keep their lengths, so that similar ones share a batch),
    or the clips end.

    Args:
        bundle: from `load_bundle`.
        clips: files, or pairs of samples ([S] or [channels, S], in [-1, 1]) and rate in Hz.
        device: where to compute.
        batch_size: windows computed at once.

    Returns:
        an iterator over one prediction per clip, in the order of the clips.

    Raises:
        BundleError: the bundle is of a module of your own, whose input is not made from audio.
        ConfigError: the device is not there.
        DataError: a file that cannot be read, or an array that is not sound (when it is its turn).
    """
    return map(_or_raise, predict_each(bundle, clips, device, batch_size))


def _or_raise(found: Prediction | DataError) -> Prediction:
    if isinstance(found, DataError):
        raise found
    return found


def predict_each(
    bundle: Bundle, clips: Iterable[Clip], device: str = "cpu", batch_size: int = 16
) -> Iterator[Prediction | DataError]:
    """As `predict`, but goes on after a clip that cannot be read, in whose place the error is."""
    if not isinstance(bundle, Bundle):
        raise BundleError(
            f"`predict` needs a bundle, not {type(bundle).__name__}: save the model with "
            "`save_bundle` and load it with `load_bundle`"
        )
    require_device(device)
    return _predictions(bundle, bundle.reader, several(clips), device, batch_size)


@torch.inference_mode()
def _predictions(
    bundle: Bundle, pipeline: Pipeline, clips: Iterable[Clip], device: str, batch_size: int
) -> Iterator[Prediction | DataError]:
    model = bundle.model

    def compute(rows: Tensor, lengths: Tensor | None) -> Tensor:
        with evaluating(model, device):
            return model.logits(rows, lengths)

    for clip in in_windows(
        clips, pipeline, bundle.features, compute, device, batch_size, bundle.windows
    ):
        yield clip.error or _prediction(bundle, clip.name, clip.results)


def _prediction(bundle: Bundle, name: str, logits: Tensor) -> Prediction | DataError:
    windows = bundle.probabilities(logits)
    if not bool(windows.isfinite().all()):
        return DataError(f"{name}: the model gives probabilities that are not numbers")
    mean = windows.mean(dim=0)
    [found] = bundle.task.predictions([mean.tolist()])
    labels = [bundle.classes[i] for i in (found if isinstance(found, tuple) else (found,))]
    return Prediction(name, bundle.classes, labels, mean, windows)

"""Prediction with a bundle: clips -> labels and probabilities, long clips in windows."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from toolkit.bundle import Bundle
from toolkit.device import require_device
from toolkit.errors import BundleError, DataError
from toolkit.inference.clips import Clip, name_of, several, windows_of
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


def predict_each(
    bundle: Bundle, clips: Iterable[Clip], device: str = "cpu", batch_size: int = 16
) -> Iterator[Prediction | DataError]:
    """As `predict`, but goes on after a clip that cannot be read, in whose place the error is."""
    compute = _prediction(bundle, device, batch_size)

    def attempt(number: int, clip: Clip) -> Prediction | DataError:
        try:
            return compute(number, clip)
        except DataError as error:
            return error

    return itertools.starmap(attempt, enumerate(several(clips), start=1))


def predict(
    bundle: Bundle, clips: Iterable[Clip], device: str = "cpu", batch_size: int = 16
) -> Iterator[Prediction]:
    """Classify clips; one that is longer than the backbone reads is cut into windows, of which
    those count that counted when the bundle was tested (`Bundle.windows`).

    Args:
        bundle: from `load_bundle`.
        clips: files, or pairs of samples ([S] or [channels, S], in [-1, 1]) and rate in Hz.
        device: where to compute.
        batch_size: windows computed at once.

    Returns:
        an iterator over one prediction per clip, in the order of the clips; each is computed when
        it is asked for.

    Raises:
        BundleError: the bundle is of a module of your own, whose input is not made from audio.
        ConfigError: the device is not there.
        DataError: a file that cannot be read, or an array that is not sound (when it is its turn).
    """
    return itertools.starmap(
        _prediction(bundle, device, batch_size), enumerate(several(clips), start=1)
    )


def _prediction(bundle: Bundle, device: str, batch_size: int) -> Callable[[int, Clip], Prediction]:
    """What predicts a clip, given its number; raises what `predict` raises."""
    if not isinstance(bundle, Bundle):
        raise BundleError(
            f"`predict` needs a bundle, not {type(bundle).__name__}: save the model with "
            "`save_bundle` and load it with `load_bundle`"
        )
    require_device(device)
    pipeline, spec, classes = bundle.reader, bundle.features, bundle.classes

    @torch.inference_mode()
    def compute(number: int, clip: Clip) -> Prediction:
        cut, name = windows_of(clip, number, pipeline, spec), name_of(clip, number)
        with evaluating(bundle.model, device):
            logits = in_windows(cut, spec, bundle.model.logits, device, batch_size, bundle.windows)
        windows = bundle.probabilities(logits)
        if not bool(windows.isfinite().all()):
            raise DataError(f"{name}: the model gives probabilities that are not numbers")
        mean = windows.mean(dim=0)
        [found] = bundle.task.predictions([mean.tolist()])
        labels = [classes[i] for i in (found if isinstance(found, tuple) else (found,))]
        return Prediction(name, classes, labels, mean, windows)

    return compute

"""Windows of clips: read ahead, and computed in batches that several short clips share."""

import dataclasses
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from toolkit.device import require_device
from toolkit.errors import DataError
from toolkit.features.batch import padded
from toolkit.features.pipeline import Pipeline
from toolkit.features.spec import FeatureSpec
from toolkit.features.windows import Windows
from toolkit.inference.clips import Clip, name_of, windows_of
from toolkit.inference.read_ahead import read_ahead

Compute = Callable[[Tensor, Tensor | None], Tensor]
"""Rows [W, T, F] and the real rows per window [W] (None: all) -> a result per window [W, ...]."""

SORTED = 4
"""Batches among which windows of different lengths are sorted, so that little is padded."""


@contextmanager
def evaluating(model: nn.Module, device: str) -> Iterator[None]:
    """Put a model on a device and in eval mode; afterwards it has the mode that it had."""
    require_device(device)
    training = model.training
    model.to(device).eval()
    try:
        yield
    finally:
        model.train(training)


@dataclasses.dataclass
class Computed:
    """What is computed of a clip.

    Attributes:
        name: of the clip.
        error: why it cannot be read.
    """

    name: str
    error: DataError | None = None
    _windows: list["_Window"] = dataclasses.field(default_factory=list)
    _is_read: bool = False

    @property
    def results(self) -> Tensor:
        """[W, ...], one row per window, on the CPU.

        Raises:
            DataError: the clip cannot be read.
        """
        if self.error is not None:
            raise self.error
        return torch.stack([window.result for window in self._windows])

    @property
    def _is_ready(self) -> bool:
        return self.error is not None or (self._is_read and all(w.is_done for w in self._windows))


class _Window:
    """A window of a clip: its rows [T, F], and then what is computed of them."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows
        self.is_done = False

    def done(self, result: Tensor) -> None:
        self.result, self.is_done = result, True
        del self.rows


def in_windows(
    clips: Iterable[Clip],
    pipeline: Pipeline,
    spec: FeatureSpec,
    compute: Compute,
    device: str,
    batch_size: int,
    counting: Windows = "average",
) -> Iterator[Computed]:
    """What `compute` finds in each window of some clips, in their order.

    Args:
        clips: taken as they are needed, some ahead.
        pipeline: makes rows of them.
        spec: what the backbone reads.
        compute: is given batches of windows on `device`.
        device: where to compute.
        batch_size: windows per batch.
        counting: all windows of a clip, or only the first.
    """
    clips_so_far: deque[Computed] = deque()  # those that were not yielded yet

    def cut() -> Iterator[Iterator[Tensor]]:
        for number, clip in enumerate(clips, start=1):
            clips_so_far.append(Computed(name_of(clip, number)))
            windows = windows_of(clip, number, pipeline, spec)
            yield itertools.islice(windows, 1) if counting == "first" else windows

    def ready() -> Iterator[Computed]:
        while clips_so_far and clips_so_far[0]._is_ready:
            yield clips_so_far.popleft()

    together = batch_size * (SORTED if spec.variable else 1)
    waiting: list[_Window] = []
    for piece in read_ahead(cut(), batch_size):
        clip = next(clip for clip in clips_so_far if not clip._is_read)
        windows = [_Window(rows) for rows in piece.items]
        clip._windows += windows
        clip._is_read, clip.error = piece.last, piece.error
        waiting += windows
        while len(waiting) >= together:
            _compute(waiting[:together], spec, compute, device, batch_size)
            del waiting[:together]
        yield from ready()
    _compute(waiting, spec, compute, device, batch_size)
    yield from ready()


def _compute(
    windows: list[_Window], spec: FeatureSpec, compute: Compute, device: str, batch_size: int
) -> None:
    """Compute some windows in batches, those of similar lengths together."""
    if spec.variable:
        windows = sorted(windows, key=lambda window: len(window.rows))
    for begin in range(0, len(windows), batch_size):
        batch = windows[begin : begin + batch_size]
        rows, lengths = padded([window.rows.numpy() for window in batch], spec)
        lengths = None if lengths is None else lengths.to(device)
        for window, result in zip(batch, compute(rows.to(device), lengths).cpu(), strict=True):
            window.done(result)

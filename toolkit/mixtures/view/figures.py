"""The pictures of a mixture, one function each, drawn without a display."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from toolkit.features.log_mel import SHIFT_SECONDS
from toolkit.mixtures.view.collect import LayerView
from toolkit.results import EpochRecord

MEANING = {
    "gate": "weight of the expert for a token",
    "combine": "weight of the expert's slots for a token",
    "dispatch": "weight of a token in the expert's slots",
}


def draw_layer(view: LayerView, frames: Tensor, most: int) -> Figure:
    """Draw the weights of the busiest experts over the spectrogram, one row per kind of weights.

    Every patch takes an equal part of the picture, although AST's patches overlap a little.

    Args:
        view: the mixture.
        frames: raw log-mel frames [T, F]; NaN where the window is padded.
        most: how many experts to draw at most.
    """
    experts = view.busiest(most)
    load = view.load()
    rows, columns = len(view.weights), len(experts) + 1
    figure = Figure(figsize=(2.1 * columns + 1, 1.7 * rows + 0.5), dpi=80, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for axes, name in zip(grid, view.weights, strict=True):
        maps = view.maps(name)[experts].numpy()
        scale = Normalize(maps.min(), max(maps.max(), maps.min() + 1e-12))
        _spectrogram(axes[0], frames)
        axes[0].set_title(f"{name}: spectrogram", fontsize=8)
        for axis, expert, weights in zip(axes[1:], experts, maps, strict=True):
            extent = _spectrogram(axis, frames)
            image = axis.imshow(
                weights, origin="lower", aspect="auto", extent=extent, cmap="plasma", norm=scale,
                alpha=0.15 + 0.7 * scale(weights).filled(),
            )  # fmt: skip
            share = f", {100 * load[expert]:.0f} %" if name == view.main else ""
            axis.set_title(f"expert {expert}{share}", fontsize=8)
        figure.colorbar(image, ax=axes.tolist(), pad=0.01).ax.tick_params(labelsize=7)
    for axis in grid[-1]:
        axis.set_xlabel("s", fontsize=7)
    figure.suptitle(view.site, fontsize=9)
    return figure


def draw_similarity(views: list[LayerView], most: int) -> Figure:
    """Draw the cosines between the slots of the busiest experts, one panel per layer."""
    columns = min(len(views), 6)
    rows = -(-len(views) // columns)
    figure = Figure(figsize=(1.9 * columns + 1, 2 * rows + 0.3), dpi=80, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in grid[len(views) :]:
        axis.set_visible(False)
    for axis, view in zip(grid, views, strict=False):  # the last row may have empty panels
        experts = view.busiest(most)
        image = axis.imshow(view.similarity(experts).numpy(), vmin=0, vmax=1, cmap="viridis")
        slots = view.weights[view.main].shape[2]
        places = [slots * (i + 0.5) - 0.5 for i in range(len(experts))]
        axis.set_xticks(places, experts, fontsize=6)
        axis.set_yticks(places, experts, fontsize=6)
        axis.set_title(view.site, fontsize=8)
    figure.colorbar(image, ax=grid.tolist(), pad=0.01).ax.tick_params(labelsize=7)
    return figure


def draw_training(history: list[EpochRecord]) -> Figure | None:
    """Draw expert load, entropies and slot similarity on the validation fold after each epoch.

    Args:
        history: one record per epoch.

    Returns:
        the figure, or None if no such statistics were recorded.
    """
    epochs = [record.epoch for record in history]
    series = {
        name: np.array([record.statistics[name] for record in history])
        for name in (history[0].statistics if history else ())
        if name == "load" or name.endswith(("entropy", "similarity"))
    }
    if not series:
        return None
    load = series.pop("load", None)
    panels = (load is not None) + bool(series)
    figure = Figure(figsize=(4.5 * panels, 3.2), dpi=80, layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    if load is not None:
        axes[0].plot(epochs, load, marker=".", label=[f"expert {e}" for e in range(load.shape[1])])
        axes[0].set(title="load per expert, mean over layers", ylim=(0, None))
    if series:
        axes[-1].plot(
            epochs, np.stack(list(series.values()), axis=1), marker=".",
            label=[name.replace("_", " ") for name in series],
        )  # fmt: skip
        axes[-1].set(title="entropy: 1 is uniform; similarity: 1 is identical", ylim=(0, 1.05))
    for axis in axes:
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(axis.lines) <= 10:
            axis.legend(fontsize=7)
    return figure


def _spectrogram(axis: Axes, frames: Tensor) -> tuple[float, float, float, float]:
    """Draw log-mel frames [T, F] over seconds and mel bands and return their extent."""
    extent = (0.0, len(frames) * SHIFT_SECONDS, 0.0, float(frames.shape[1]))
    axis.set_facecolor("lightgrey")
    axis.imshow(frames.T.numpy(), origin="lower", aspect="auto", extent=extent, cmap="gray")
    axis.tick_params(labelsize=6)
    return extent

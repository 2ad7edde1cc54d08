"""The picture of a confusion matrix."""

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from toolkit.literal_text import literal

matplotlib.use("Agg")

MOST_COUNTED = 20
"""Classes up to which the cells show their counts."""


def draw_confusion(matrix: npt.NDArray[np.int_], classes: list[str]) -> Figure:
    """Draw counts [C, C], rows being true classes, coloured by their share of the true class."""
    size = 3 + 0.28 * len(classes)
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    axes = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    figure.colorbar(image, ax=axes, label="share of the true class")
    names = [literal(name.replace("_", " ")) for name in classes]
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if len(classes) <= MOST_COUNTED:
        for (row, column), count in np.ndenumerate(matrix):
            if count:
                colour = "white" if shares[row, column] > 0.5 else "black"
                axes.text(
                    column, row, str(count), ha="center", va="center", color=colour, fontsize=8
                )
    return figure

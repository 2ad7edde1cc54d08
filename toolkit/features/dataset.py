"""A SpeechBrain data set over cached features."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.data_pipeline import provides, takes

from toolkit.features.cache import FeatureCache


def clip_dataset(clips: pd.DataFrame, rows: pd.Series, cache: FeatureCache) -> DynamicItemDataset:
    """A data set of some clips; its examples have `id`, `features` [T, F] and `label`.

    Args:
        clips: the clips, from a manifest.
        rows: id -> position of the clip's features in `cache`.
        cache: features of these clips, and perhaps of others.
    """

    @takes("row")  # type: ignore[untyped-decorator]
    @provides("features")  # type: ignore[untyped-decorator]
    def features(row: int) -> NDArray[np.float32]:
        return cache[row]

    places = dict(zip(rows.index, rows, strict=True))
    data = {
        name: {"row": int(places[name]), "label": label}
        for name, label in zip(clips["id"], clips["label"], strict=True)
    }
    return DynamicItemDataset(data, [features], ["id", "features", "label"])

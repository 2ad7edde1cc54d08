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

    @takes("row")
    @provides("features")
    def features(row: int) -> NDArray[np.float32]:
        return cache[row]

    data = {
        clip.id: {"row": int(rows[clip.id]), "label": clip.label} for clip in clips.itertuples()
    }
    return DynamicItemDataset(data, [features], ["id", "features", "label"])

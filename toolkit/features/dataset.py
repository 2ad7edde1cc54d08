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
        clips: the clips, from a manifest, or windows of them, from `with_windows`.
        rows: id -> position of the clip's features in `cache`.
        cache: features of these clips, and perhaps of others.
    """

    @takes("row", "begin", "end")  # type: ignore[untyped-decorator]
    @provides("features")  # type: ignore[untyped-decorator]
    def features(row: int, begin: int, end: int | None) -> NDArray[np.float32]:
        return cache[row][begin:end]

    places = dict(zip(rows.index, rows, strict=True))
    if "begin" not in clips:
        clips = clips.assign(begin=0, end=None)
    parts = zip(clips["id"], clips["label"], clips["begin"], clips["end"], strict=True)
    data = {
        str(number): {
            "clip": clip, "row": int(places[clip]), "begin": begin, "end": end, "label": label
        }
        for number, (clip, label, begin, end) in enumerate(parts)
    }  # fmt: skip
    keys = {"id": "clip", "features": "features", "label": "label"}
    return DynamicItemDataset(data, [features], keys)

"""Frozen computation done once: what a fold reads in place of features.

The states of clips, which `FrozenPart` computes, are kept on disk like features, and are shared by
methods, learning rates, folds, seeds and runs. Training with augmentation draws from several views
of each clip, each augmented with a seed of its own.
"""

import contextlib
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.data_pipeline import provides, takes
from speechbrain.utils.distributed import ddp_barrier, ddp_broadcast, if_main_process
from torch import Tensor
from tqdm import tqdm

from toolkit import __version__, processes
from toolkit.data.augment import Augmentation, augmented
from toolkit.data.sampling import derive_seed
from toolkit.features.batch import Batch, padded
from toolkit.features.cache import FeatureCache
from toolkit.features.mapped_rows import Rows
from toolkit.features.state_store import StateStore
from toolkit.model import AudioClassifier
from toolkit.reuse import FrozenPart, PooledPart
from toolkit.settings import Settings
from toolkit.source_code import definition_of, source_digest
from toolkit.training.experiment import Experiment


class Reading(NamedTuple):
    """How clips are read.

    Attributes:
        precision: of the computation, as the run options name it.
        views: how many augmented views there are of each clip; 0: the clip as it is.
    """

    precision: str
    views: int = 0


class Window(NamedTuple):
    """What one state is computed from.

    Attributes:
        row: position of the clip in the cache of features.
        begin, end: its rows.
        view: number of its augmented view; None: as it is.
    """

    row: int
    begin: int
    end: int
    view: int | None


class States:
    """The states of a run's clips at the line of one model; computed where they are not on disk.

    Args:
        experiment: what runs.
        model: of the fold, on its device.
        part: what of it is frozen.
        cache: features of all clips.
        rows: id of a clip -> its position in `cache`.
        stores: those that the folds of a run share, which are verified once.

    Attributes:
        training, evaluation: how clips are read in either.

    Raises:
        ConfigError: the model computes something else from a state than from features.
    """

    def __init__(
        self,
        experiment: Experiment,
        model: AudioClassifier,
        part: FrozenPart | PooledPart,
        cache: FeatureCache,
        rows: pd.Series,
        stores: dict[str, StateStore],
    ) -> None:
        options, run = experiment.options, experiment.run_opts()
        self.experiment, self.model, self.part = experiment, model, part
        self.cache, self.spec = cache, experiment.spec
        self.rows = dict(zip(rows.index, rows.tolist(), strict=True))
        views = 0 if isinstance(options.reuse, str) else options.reuse
        self.training = Reading(run["precision"], views)
        self.evaluation = Reading(run["eval_precision"])
        self._stores = stores
        longest = int(cache.lengths.argmax())
        window = Window(longest, 0, min(int(cache.lengths[longest]), self.spec.rows), None)
        features, lengths = self._features([window], self.evaluation)
        part.verify(features, lengths)
        (self._sample,) = part.states(features, lengths)
        self._bytes_per_row = self._sample.nbytes / (window.end if self.spec.variable else 1)
        self._settings = {
            "part": part.fingerprint,
            "features": str(self.spec),
            "rows": experiment.pipeline.row_settings(self.spec),
            "versions": [__version__, version("transformers")],
            "plugins": of_plugins(experiment.source, experiment.method, model.backbone),
        }

    def size(self, tables: Iterable[tuple[pd.DataFrame, Reading]]) -> int:
        """About how many bytes are still to be computed.

        Args:
            tables: windows, from `with_windows`, and how they will be read.
        """
        size = 0.0
        seen: set[tuple[Reading, str]] = set()
        for table, reading in tables:
            store = self._store(reading)
            for key, window in self._windows(table, reading):
                if (reading, key) not in seen and key not in store:
                    seen.add((reading, key))
                    rows = window.end - window.begin if self.spec.variable else 1
                    size += rows * self._bytes_per_row
        return round(size)

    def ensure(self, table: pd.DataFrame, reading: Reading) -> None:
        """Compute what is missing of some windows; every process of the job does its share."""
        store, windows = self._store(reading), dict(self._windows(table, reading))
        main = if_main_process()
        with store.computing() if main else contextlib.nullcontext():
            missing: list[str] = ddp_broadcast(store.missing(windows) if main else None)
            missing.sort(key=lambda key: windows[key].end - windows[key].begin)
            share = missing[processes.rank() :: processes.number()]
            self._compute({key: windows[key] for key in share}, reading, store)
            ddp_barrier()
        store.refresh()

    def dataset(self, table: pd.DataFrame, reading: Reading) -> DynamicItemDataset:
        """A data set of windows; where there are views, those of a window follow each other.

        Its examples have `id`, `features` (the state), `label`, and `rows` of the window.
        """
        self.ensure(table, reading)
        store = self._store(reading)

        @takes("key")
        @provides("features")
        def state(key: str) -> Rows:
            return np.array(store[key])  # a tensor of it may be written to

        repeated = table.iloc[np.repeat(np.arange(len(table)), max(reading.views, 1))]
        windows = self._windows(table, reading)
        parts = zip(repeated["id"], repeated["label"], windows, strict=True)
        data = {
            str(number): {"clip": clip, "label": label, "key": key, "rows": own.end - own.begin}
            for number, (clip, label, (key, own)) in enumerate(parts)
        }
        keys = {"id": "clip", "features": "features", "label": "label", "rows": "rows"}
        return DynamicItemDataset(data, [state], keys)

    def collate(self, examples: list[dict[str, Any]]) -> Batch:
        """Put examples of `dataset` into a batch, whose features are the states."""
        return Batch(
            [example["id"] for example in examples],
            self.part.collate([example["features"] for example in examples]),
            torch.from_numpy(np.array([example["label"] for example in examples])),
            torch.tensor([e["rows"] for e in examples]) if self.spec.variable else None,
        )

    def _store(self, reading: Reading) -> StateStore:
        augment = described(self.experiment) if reading.views else None
        settings = {**self._settings, "precision": reading.precision, "augment": augment}
        key = json.dumps(settings, sort_keys=True)
        if key not in self._stores:
            root, width = self.experiment.cache_folder, self._sample.shape[1]
            self._stores[key] = StateStore(root, settings, width)
        return self._stores[key]

    def _windows(self, table: pd.DataFrame, reading: Reading) -> Iterator[tuple[str, Window]]:
        """The key and the place of every state of a table."""
        views = range(reading.views) if reading.views else (None,)
        parts = zip(table["id"], table["begin"], table["end"], strict=True)
        for (clip, begin, end), view in itertools.product(parts, views):
            row = self.rows[clip]
            key = f"{self.cache.keys[row]}:{begin}:{end}"
            yield key if view is None else f"{key}:{view}", Window(row, int(begin), int(end), view)

    def _compute(self, missing: dict[str, Window], reading: Reading, store: StateStore) -> None:
        hidden = not if_main_process() or self.experiment.options.noprogressbar or None
        self.model.eval()
        with (
            tqdm(total=len(missing), desc="frozen part", unit="clip", disable=hidden) as bar,
            self._in_precision(reading),
        ):
            for batch in self._batches(missing, reading):
                windows = [missing[key] for key in batch]
                states = self.part.states(*self._features(windows, reading))
                store.add(dict(zip(batch, states, strict=True)))
                bar.update(len(batch))

    def _in_precision(self, reading: Reading) -> torch.autocast:
        kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
        return torch.autocast(
            torch.device(self.experiment.device).type,
            dtype=kinds.get(reading.precision),
            enabled=reading.precision in kinds,
        )

    def _batches(self, missing: dict[str, Window], reading: Reading) -> Iterator[list[str]]:
        """Windows that are computed together; what augmentation draws must not depend on others."""
        keys, size = list(missing), self.experiment.options.batch_size
        groups: Iterable[list[str]] = [keys]
        if reading.views and self.spec.variable:
            alike = itertools.groupby(keys, lambda key: missing[key].end - missing[key].begin)
            groups = (list(group) for _, group in alike)
        for group in groups:
            yield from (group[i : i + size] for i in range(0, len(group), size))

    def _features(
        self, windows: Sequence[Window], reading: Reading
    ) -> tuple[Tensor, Tensor | None]:
        """Normalised features on the device, augmented where views are asked for, and lengths."""
        clips = [self.cache[window.row][window.begin : window.end] for window in windows]
        rows, lengths = padded(clips, self.spec)
        device = self.experiment.device
        rows, lengths = rows.to(device), None if lengths is None else lengths.to(device)
        features = self.spec.normalise(rows, lengths)
        if not reading.views:
            return features, lengths
        augment = self.experiment.configuration.values["augment"]
        views = [
            _view(augment, clip, self._seed(window))
            for clip, window in zip(features.split(1), windows, strict=True)
        ]
        return torch.cat(views), lengths

    def _seed(self, window: Window) -> int:
        """Of what augmentation draws for a view: of the content of the clip, not of its place."""
        name = f"{self.cache.keys[window.row]}:{window.begin}"
        digest = hashlib.blake2b(name.encode(), digest_size=7).digest()
        return derive_seed(int.from_bytes(digest), window.view or 0)


def described(experiment: Experiment) -> dict[str, Any]:
    """What views depend on besides the clip: the augmentation as it is configured, and its source
    if it is not the library's own."""
    configuration = experiment.configuration
    return {
        **{key: value for key, value in configuration.flat.items() if key.startswith("augment")},
        "plugins": of_plugins(*configuration.values["augment"]),
    }


def of_plugins(*parts: object) -> list[str]:
    """What is known of those parts that are not the library's own: their settings and source."""
    known = ((part, definition_of(part)) for part in parts)
    return [
        f"{part if isinstance(part, Settings) else kind.__name__} {source_digest(kind)}"
        for part, kind in known
        if not kind.__module__.startswith("toolkit.")
    ]


def _view(augment: Sequence[Augmentation], clip: Tensor, seed: int) -> Tensor:
    changed, _ = augmented(augment, clip, clip.new_zeros(1, 1), _generator(seed))
    return changed


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)

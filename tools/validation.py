"""What benchmarks of accuracy share: short trainings on ESC-50, scored on its validation folds.

The embedded small AST is trained on a few clips per class of the three training folds, and scored
on the whole validation fold after the last epoch; test folds are not read. Every finished training
is a line of a CSV file, so that the same command continues where it was interrupted.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import toolkit
from toolkit import config
from toolkit.data.augment import SpecAugment
from toolkit.data.few_shot import few_shot
from toolkit.data.manifest import Manifest
from toolkit.features.batch import Batch, collate
from toolkit.features.cache import FeatureCache, default_cache_folder
from toolkit.features.pipeline import pipeline_for
from toolkit.model import AudioClassifier
from toolkit.training.experiment import EMBEDDED

FRAMES, BATCH = 248, 16
RECIPE = Path(__file__).parent.parent / "recipes" / "ESC50"


def schedule(method: str) -> dict[str, Any]:
    """Epochs, batch size and learning rate of a method's file in the embedded demonstration."""
    command = config.parse_command_line([f"hparams/{method}.yaml"])
    values = config.load(command, RECIPE, layers=[EMBEDDED]).values
    return {key: values[key] for key in ("epochs", "batch_size", "lr")}


class Validation:
    """The features of all clips, and how to train and score on them."""

    def __init__(self, manifest: Manifest, epochs: int, per_class: int) -> None:
        self.manifest, self.epochs, self.per_class = manifest, epochs, per_class
        self.spec = self.backbone().features
        self.collate = collate(self.spec)
        self.rows = {name: row for row, name in enumerate(manifest.clips["id"])}
        self.cache: FeatureCache = pipeline_for(self.spec).cache(
            manifest.clips, self.spec, default_cache_folder()
        )

    @staticmethod
    def backbone() -> Any:
        """A fresh copy of the embedded small AST."""
        return toolkit.load_backbone("ast_tiny", max_length=FRAMES)

    def clips(self, fold: int, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The training clips, and those of the validation fold."""
        (split,) = [s for s in self.manifest.splits if s.valid == fold]
        train = self.manifest.of_folds(list(split.train))
        return (
            few_shot(train, self.per_class, seed, self.manifest.classes),
            self.manifest.of_folds([fold]),
        )

    def fit(
        self,
        model: AudioClassifier,
        train: pd.DataFrame,
        seed: int,
        lr: float,
        augment: SpecAugment | None = None,
    ) -> None:
        """AdamW as in the recipe, with a cosine decay to zero."""
        optimizer = torch.optim.AdamW(
            model.method.parameter_groups(model.trainable(), lr),
            betas=(0.9, 0.98),
            eps=1e-6,
            weight_decay=0.1,
        )
        steps = self.epochs * -(-len(train) // BATCH)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        order, drawn = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
        model.train()
        for _ in range(self.epochs):
            for batch in self.batches(train.iloc[order.permutation(len(train))]):
                rows = batch.features
                if augment is not None:
                    rows, _ = augment(rows, batch.labels, drawn)
                loss = model.loss(rows, batch.labels, task="one_class")
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                decay.step()

    def score(self, model: AudioClassifier, clips: pd.DataFrame) -> tuple[float, float]:
        """The accuracy and the mean loss on some clips."""
        model.eval()
        with torch.inference_mode():
            scored = [(model.logits(b.features), b.labels) for b in self.batches(clips)]
        logits, labels = (torch.cat(part) for part in zip(*scored, strict=True))
        loss = torch.nn.functional.cross_entropy(logits, labels)
        return (logits.argmax(dim=1) == labels).float().mean().item(), loss.item()

    def batches(self, clips: pd.DataFrame) -> Iterator[Batch]:
        """The clips in their order."""
        examples = [
            {"id": clip.id, "features": self.cache[self.rows[clip.id]], "label": clip.label}
            for clip in clips.itertuples()
        ]
        for first in range(0, len(examples), BATCH):
            yield self.collate(examples[first : first + BATCH])


def train_missing(
    file: Path,
    keys: Sequence[str],
    planned: Sequence[tuple[Any, ...]],
    train: Callable[..., tuple[float, float]],
    seconds: float | None,
) -> pd.DataFrame | None:
    """Train what a CSV file lacks, and write a line for each training as it is finished.

    Args:
        file: the file.
        keys: columns that say which training it was.
        planned: their values, in the order of training.
        train: called with these values; returns accuracy and loss.
        seconds: no training is started after this time; None: all are.

    Returns:
        the planned lines; None if some are still missing.
    """
    began = time.monotonic()
    file.parent.mkdir(parents=True, exist_ok=True)
    columns = [*keys, "accuracy", "loss"]
    runs = pd.read_csv(file) if file.is_file() else pd.DataFrame(columns=columns)
    done = set(runs[list(keys)].itertuples(index=False, name=None))
    missing = [key for key in planned if key not in done]
    for position, key in enumerate(missing):
        if seconds is not None and time.monotonic() - began > seconds:
            print(f"{len(missing) - position} trainings are left: run the same command again")
            return None
        line = pd.DataFrame([[*key, *train(*key)]], columns=columns).round(5)
        line.to_csv(file, mode="a", header=not file.is_file(), index=False)
        print(line.to_string(index=False, header=False), flush=True)
    return pd.read_csv(file).set_index(list(keys)).loc[list(planned)].reset_index()


def numbers(text: str) -> list[int]:
    """`1,3` -> `[1, 3]`."""
    return [int(number) for number in text.split(",")]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a comparison on validation folds."""
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--folds", type=numbers, help="validation folds; default: all")
    parser.add_argument("--seeds", type=numbers, default=[1, 2])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--per_class", type=int, default=8)
    parser.add_argument("--seconds", type=float, help="start no further training after this time")

"""Frozen linear probes: encoder, last layer norm, pooling, one linear layer, AdamW.

The same head as the toolkit's: no standardised features, no joined layers.
"""

import re

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .clips import HEARD, SPELLING
from .store import Store
from .student import Student
from .views import normalise


@torch.no_grad()
def embed(student: Student, frames: Tensor, batch: int = 32) -> dict[str, Tensor]:
    """Normalised frames [N, T, F] -> pooled tokens [N, d] by name of pooling ("mean", "cls")."""
    student.eval()
    found: dict[str, list[Tensor]] = {"mean": [], "cls": []}
    for part in frames.split(batch):
        tokens = student(part).float()
        found["mean"].append(tokens[:, 2:].mean(dim=1))
        found["cls"].append(tokens[:, :2].mean(dim=1))
    student.train()
    return {name: torch.cat(parts) for name, parts in found.items()}


def fit(
    x: Tensor, y: Tensor, classes: int, steps: int = 400, rate: float = 1e-2, decay: float = 1e-2
) -> nn.Linear:
    """A linear layer trained by AdamW on whole batches, the rate falling along a half cosine."""
    torch.manual_seed(0)
    head = nn.Linear(x.shape[1], classes)
    optimiser = torch.optim.AdamW(head.parameters(), lr=rate, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        optimiser.zero_grad()
        nn.functional.cross_entropy(head(x), y).backward()
        optimiser.step()
        schedule.step()
    return head


def cross_validate(x: Tensor, y: Tensor, groups: NDArray[np.int64], folds: int = 5) -> float:
    """Accuracy over folds that never split a group."""
    classes, correct = int(y.max()) + 1, 0
    for fold in range(folds):
        test = torch.from_numpy(groups % folds == fold)
        head = fit(x[~test], y[~test], classes)
        with torch.no_grad():
            correct += int((head(x[test]).argmax(dim=1) == y[test]).sum())
    return correct / len(y)


class HeldOut:
    """Probes on clips that are held out from training; each needs at least 50 of them.

    - `sounds`: the kind of sound, labelled by the file names of real recordings; cross-validation
      over groups of recordings whose names differ only in a number.
    - `words`: the 26 words of the spelling alphabet, trained on synthetic voices, tested on real
      speakers.
    - `speakers`: the same words, trained on all real speakers but one, tested on that one.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        held_out = [(i, c) for i, c in enumerate(store.clips) if c.held_out]
        names = list(HEARD)
        sounds = [(i, c) for i, c in held_out if c.label in names]
        self.sounds = [i for i, _ in sounds]
        self.sound_labels = torch.tensor([names.index(c.label) for _, c in sounds])
        stems = [re.sub(r"[\d_ .-]*\.\w+@\d+$", "", c.name) for _, c in sounds]
        groups = np.unique(stems, return_inverse=True)[1]
        order = np.random.default_rng(0).permutation(groups.max(initial=-1) + 1)
        self.sound_groups = order[groups]
        words = list({c.name: (i, c) for i, c in held_out if c.word >= 0}.values())
        self.words = [i for i, _ in words]
        self.word_labels = torch.tensor([c.word for _, c in words])
        self.synthetic = torch.tensor([c.name.startswith("spelling") for _, c in words])
        self.speakers = np.unique([c.name.split("/")[0] for _, c in words], return_inverse=True)[1]

    def __call__(self, student: Student) -> dict[str, float]:
        """Accuracies by name of probe and pooling."""
        results = {}
        if len(self.sounds) >= 50:
            pooled = embed(student, self._frames(self.sounds, 512))
            for name in ("mean", "cls"):
                results[f"sounds/{name}"] = cross_validate(
                    pooled[name], self.sound_labels, self.sound_groups
                )
        if len(self.words) >= 50:
            pooled = embed(student, self._frames(self.words, 128))
            for name in ("mean", "cls"):
                results[f"words/{name}"] = self._across(pooled[name])
                results[f"speakers/{name}"] = self._one_left_out(pooled[name])
        return results

    def _frames(self, indices: list[int], length: int) -> Tensor:
        frames = torch.full((len(indices), length, 128), float("nan"))
        for row, index in enumerate(indices):
            count = min(length, self.store.clips[index].frames)
            frames[row, :count] = torch.from_numpy(self.store.read(index, "frames", 0, count))
        return normalise(frames)

    def _across(self, x: Tensor) -> float:
        head = fit(x[self.synthetic], self.word_labels[self.synthetic], len(SPELLING))
        with torch.no_grad():
            found = head(x[~self.synthetic]).argmax(dim=1)
        return float((found == self.word_labels[~self.synthetic]).float().mean())

    def _one_left_out(self, x: Tensor) -> float:
        real = ~self.synthetic
        right, total = 0, 0
        for speaker in np.unique(self.speakers[real.numpy()]):
            test = real & torch.from_numpy(self.speakers == speaker)
            train = real & ~test
            head = fit(x[train], self.word_labels[train], len(SPELLING))
            with torch.no_grad():
                right += int((head(x[test]).argmax(1) == self.word_labels[test]).sum())
            total += int(test.sum())
        return right / max(total, 1)

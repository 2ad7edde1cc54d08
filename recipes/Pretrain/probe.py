"""Frozen linear probes: encoder, last layer norm, pooling, one linear layer, AdamW.

The same head as the toolkit's: no standardised features, no joined layers.
"""

import re

import numpy as np
import torch
from pool import HEARD
from store import Store
from torch import Tensor, nn
from views import normalise

POOLINGS = ("mean", "cls", "all")


@torch.no_grad()
def embed(student: nn.Module, frames: Tensor, batch: int = 32) -> dict[str, Tensor]:
    """Normalised frames [N, T, F] -> pooled tokens [N, d] by name of pooling."""
    student.eval()
    found: dict[str, list[Tensor]] = {name: [] for name in POOLINGS}
    for part in frames.split(batch):
        tokens = student(part).float()
        found["mean"].append(tokens[:, 2:].mean(dim=1))
        found["cls"].append(tokens[:, :2].mean(dim=1))
        found["all"].append(tokens.mean(dim=1))
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


def cross_validate(x: Tensor, y: Tensor, groups: np.ndarray, folds: int = 5) -> float:
    """Accuracy over folds that never part a group."""
    classes, correct = int(y.max()) + 1, 0
    for fold in range(folds):
        test = torch.from_numpy(groups % folds == fold)
        head = fit(x[~test], y[~test], classes)
        with torch.no_grad():
            correct += int((head(x[test]).argmax(dim=1) == y[test]).sum())
    return correct / len(y)


class HeldOut:
    """Two probes on clips that were never trained on.

    `sounds`: what is heard, from the names of real recordings, folds by name within a package.
    `words`: the 26 words of the spelling alphabet, learned from synthetic voices and heard from
    real speakers, and learned from all real speakers but one and heard from that one.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        clips = list(enumerate(store.clips))
        names = list(HEARD)
        sounds = [(i, c) for i, c in clips if c["held_out"] and c["label"] in names]
        self.sounds = [i for i, _ in sounds]
        self.sound_labels = torch.tensor([names.index(c["label"]) for _, c in sounds])
        stems = [re.sub(r"[\d_ .-]*\.\w+@\d+$", "", c["name"]) for _, c in sounds]
        self.sound_groups = np.unique(stems, return_inverse=True)[1]
        order = np.random.default_rng(0).permutation(self.sound_groups.max() + 1 if sounds else 0)
        self.sound_groups = order[self.sound_groups] if sounds else self.sound_groups
        words = [(i, c) for i, c in clips if c["held_out"] and c["word"] >= 0]
        words = list({c["name"]: (i, c) for i, c in words}.values())
        self.words = [i for i, _ in words]
        self.word_labels = torch.tensor([c["word"] for _, c in words])
        self.synthetic = torch.tensor([c["name"].startswith("spelling") for _, c in words])
        self.speakers = np.unique([c["name"].split("/")[0] for _, c in words], return_inverse=True)[
            1
        ]

    def __call__(self, student: nn.Module) -> dict[str, float]:
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
            count = min(length, self.store.clips[index]["frames"])
            frames[row, :count] = torch.from_numpy(self.store.read(index, "frames", 0, count))
        return normalise(frames)

    def _across(self, x: Tensor) -> float:
        head = fit(x[self.synthetic], self.word_labels[self.synthetic], 26)
        with torch.no_grad():
            found = head(x[~self.synthetic]).argmax(dim=1)
        return float((found == self.word_labels[~self.synthetic]).float().mean())

    def _one_left_out(self, x: Tensor) -> float:
        real = ~self.synthetic
        right, total = 0, 0
        for speaker in np.unique(self.speakers[real.numpy()]):
            test = real & torch.from_numpy(self.speakers == speaker)
            train = real & ~test
            head = fit(x[train], self.word_labels[train], 26)
            with torch.no_grad():
                right += int((head(x[test]).argmax(1) == self.word_labels[test]).sum())
            total += int(test.sum())
        return right / max(total, 1)

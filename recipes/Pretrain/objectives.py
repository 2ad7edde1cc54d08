"""What the student is asked: everything through one linear layer on its normalised, pooled tokens.

Columns (the mean over frequency of one time column) predict what the teachers hear there; the mean
over all patches predicts what they hear in the crop, which word was said, which families sound.
The mean over patches, after the last layer norm, is exactly what a linear probe reads later.
"""

from collections.abc import Mapping

import torch
from store import IGNORE, PHONEMES, Batch
from student import Student
from torch import Tensor, nn
from torch.nn import functional

CATEGORY_SETS = 4  # the teacher's large label sets of sound-effect categories come first


class Distillation(nn.Module):
    """Heads and losses of supervised and distilled targets."""

    def __init__(
        self,
        dim: int,
        statistics: Mapping[str, Tensor],
        category_heads: nn.ModuleList,
        words: int,
        families: int,
        weights: Mapping[str, float],
    ) -> None:
        super().__init__()
        self.weights = dict(weights)
        self.category_heads = category_heads[:CATEGORY_SETS].requires_grad_(False)
        for name in ("sound", "speech", "word"):
            for moment in ("mean", "std"):
                self.register_buffer(f"{name}_{moment}", statistics[f"{name}_{moment}"].float())
        self.column = nn.Linear(dim, 512 + 2 * (384 + 96 + PHONEMES))
        categories = [head[-1].out_features for head in self.category_heads]
        self.splits = [512, 512, 384, 96, 96, words, families, *categories]
        self.clip = nn.Linear(dim, sum(self.splits))
        self.special = nn.Linear(dim, sum(self.splits))

    def forward(
        self,
        student: Student,
        frames: Tensor,
        batch: Batch,
        shift: int = 0,
        bands: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The loss of each objective by name; "total" is their weighted sum."""
        tokens = student(frames, shift, bands).float()
        columns = tokens[:, 2:].unflatten(1, (-1, batch.sound.shape[1])).mean(dim=1)  # [B, c, d]
        targets = self.targets(batch)
        losses = self._columns(columns, batch, targets)
        for name, loss in self._clip(self.clip(tokens[:, 2:].mean(dim=1)), batch, targets).items():
            losses[name] = loss
        special = self._clip(self.special(tokens[:, :2].mean(dim=1)), batch, targets)
        weighted = [self.weights[name] * loss for name, loss in losses.items()]
        aside = [self.weights[name] * loss for name, loss in special.items()]
        losses["total"] = sum(weighted) + self.weights["special"] * sum(aside)
        return losses

    @torch.no_grad()
    def targets(self, batch: Batch) -> dict[str, Tensor]:
        """Standardised targets of the columns and of the crop, and where they hold."""
        columns = batch.sound.shape[1]
        heard = batch.sound.abs().sum(dim=2) > 0  # [B, C]
        halves = heard.repeat_interleave(2, dim=1)
        share = heard.float() / heard.sum(dim=1, keepdim=True).clamp(min=1)
        half_share = halves.float() / halves.sum(dim=1, keepdim=True).clamp(min=1)
        greatest = batch.sound.masked_fill(~heard[:, :, None], 0).amax(dim=1)
        sound, speech, word = (
            self._standard(n, getattr(batch, n)) for n in ("sound", "speech", "word")
        )
        return {
            "heard": heard,
            "halves": halves,
            "sound": sound,
            "speech": speech,
            "word": word,
            "greatest": (greatest - self.sound_mean) / (2 * self.sound_std),
            "sound_mean": 1.5 * torch.einsum("bc,bcd->bd", share, sound),
            "speech_mean": 2 * torch.einsum("bc,bcd->bd", half_share, speech),
            "word_mean": 1.5 * torch.einsum("bc,bcd->bd", half_share, word),
            "word_greatest": word.masked_fill(~halves[:, :, None], -4).amax(dim=1) / 1.5,
            "categories": [head(greatest).softmax(dim=1) for head in self.category_heads],
            "columns": torch.tensor(columns),
        }

    def _standard(self, name: str, values: Tensor) -> Tensor:
        mean, std = getattr(self, f"{name}_mean"), getattr(self, f"{name}_std")
        return ((values - mean) / std).clamp(-5, 5)

    def _columns(self, columns: Tensor, batch: Batch, targets: dict) -> dict[str, Tensor]:
        sizes = [512, 2 * 384, 2 * 96, 2 * PHONEMES]
        sound, speech, word, phonemes = self.column(columns).split(sizes, dim=2)
        speech, word, phonemes = (
            x.unflatten(2, (2, -1)).flatten(1, 2) for x in (speech, word, phonemes)
        )
        spoken = targets["halves"] & batch.spoken[:, None]
        return {
            "column_sound": _squared(sound, targets["sound"], targets["heard"]),
            "column_speech": _squared(speech, targets["speech"], targets["halves"]),
            "column_word": _squared(word, targets["word"], spoken),
            "phonemes": _cross_entropy(phonemes.flatten(0, 1), batch.phonemes.flatten(), IGNORE),
        }

    def _clip(self, predicted: Tensor, batch: Batch, targets: dict) -> dict[str, Tensor]:
        greatest, mean, speech, word, word_greatest, word_id, families, *categories = (
            predicted.split(self.splits, dim=1)
        )
        everything = torch.ones_like(batch.spoken)
        known = batch.families[:, 0] >= 0
        agreement = [
            -(target * logits.log_softmax(dim=1)).sum(dim=1)
            + (target * target.clamp(min=1e-8).log()).sum(dim=1)
            for logits, target in zip(categories, targets["categories"], strict=True)
        ]
        return {
            "clip_sound": _squared(greatest, targets["greatest"], everything)
            + _squared(mean, targets["sound_mean"], everything),
            "clip_speech": _squared(speech, targets["speech_mean"], everything),
            "clip_word": _squared(word, targets["word_mean"], batch.spoken)
            + _squared(word_greatest, targets["word_greatest"], batch.spoken),
            "categories": torch.stack(agreement).mean(),
            "word_id": _cross_entropy(word_id, batch.word_id, -1),
            "families": functional.binary_cross_entropy_with_logits(
                families[known], batch.families[known]
            )
            if known.any()
            else predicted.sum() * 0,
        }


def _squared(predicted: Tensor, target: Tensor, where: Tensor) -> Tensor:
    """Mean squared error over the places that `where` names; 0 where it names none."""
    error = (predicted - target).square().mean(dim=-1)
    return (error * where).sum() / where.sum().clamp(min=1)


def _cross_entropy(logits: Tensor, target: Tensor, ignore: int) -> Tensor:
    """Cross-entropy over the known targets; 0 where none is known."""
    loss = functional.cross_entropy(logits, target, ignore_index=ignore, reduction="sum")
    return loss / (target != ignore).sum().clamp(min=1)

"""The losses of the student: one linear layer on its pooled tokens predicts each target.

The mean over the frequencies of a time column predicts what the teachers hear there. The mean over
all patches predicts what they hear in the whole crop, which word was said and which families sound;
after the last layer norm it is exactly what a linear probe reads later.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from .pool import WIDTHS
from .store import IGNORE, PHONEMES, Batch
from .student import Student

CATEGORY_SETS = 4  # the teacher's large label sets of sound-effect categories come first


@dataclass
class Targets:
    """Standardised targets of a batch of B crops of C columns, and where they hold.

    `heard` [B, C] and `halves` [B, 2 C] are true where the crop is not padding; `sound`
    [B, C, 512], `speech` [B, 2 C, 384], `word` [B, 2 C, 96] are the teachers' features there;
    `greatest`, `sound_mean`, `speech_mean`, `word_mean`, `word_greatest` [B, d] summarise them over
    the crop; `categories` are the sound teacher's probabilities for each label set [B, classes].
    """

    heard: Tensor
    halves: Tensor
    sound: Tensor
    speech: Tensor
    word: Tensor
    greatest: Tensor
    sound_mean: Tensor
    speech_mean: Tensor
    word_mean: Tensor
    word_greatest: Tensor
    categories: list[Tensor]


class Distillation(nn.Module):
    """Heads and losses of supervised and distilled targets.

    Args:
        dim: width of the student's tokens.
        statistics: mean and standard deviation of every target, of `Store.statistics`.
        category_heads: the sound teacher's classifiers, `SoundTeacher.heads`.
        words: number of known words.
        families: number of families of procedural scenes.
        weights: of each loss by its name; "special" weighs the losses of the special tokens.
    """

    sound_mean: Tensor
    sound_std: Tensor

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
        self.category_heads = nn.ModuleList(list(category_heads)[:CATEGORY_SETS])
        self.category_heads.requires_grad_(False)
        for name in ("sound", "speech", "word"):
            for moment in ("mean", "std"):
                self.register_buffer(f"{name}_{moment}", statistics[f"{name}_{moment}"].float())
        sound, speech, word = (WIDTHS[name] for name in ("sound", "speech", "word"))
        self.column_splits = [sound, 2 * speech, 2 * word, 2 * PHONEMES]
        self.column = nn.Linear(dim, sum(self.column_splits))
        with torch.no_grad():
            categories = [head(torch.zeros(1, sound)).shape[1] for head in self.category_heads]
        self.splits = [sound, sound, speech, word, word, words, families, *categories]
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
        losses |= self._clip(self.clip(tokens[:, 2:].mean(dim=1)), batch, targets)
        special = self._clip(self.special(tokens[:, :2].mean(dim=1)), batch, targets)
        total = self._weighted(losses) + self.weights["special"] * self._weighted(special)
        return losses | {"total": total}

    def _weighted(self, losses: Mapping[str, Tensor]) -> Tensor:
        weighted = [self.weights[name] * loss for name, loss in losses.items()]
        return torch.stack(weighted).sum()

    @torch.no_grad()
    def targets(self, batch: Batch) -> Targets:
        """Standardise the targets and summarise them over each crop.

        The factors bring the summaries, which vary less than their parts, to about unit variance.
        """
        heard = batch.sound.abs().sum(dim=2) > 0  # [B, C]
        halves = heard.repeat_interleave(2, dim=1)
        share = heard.float() / heard.sum(dim=1, keepdim=True).clamp(min=1)
        half_share = halves.float() / halves.sum(dim=1, keepdim=True).clamp(min=1)
        greatest = batch.sound.masked_fill(~heard[:, :, None], 0).amax(dim=1)
        sound, speech, word = (
            self._standard(n, getattr(batch, n)) for n in ("sound", "speech", "word")
        )
        return Targets(
            heard=heard,
            halves=halves,
            sound=sound,
            speech=speech,
            word=word,
            greatest=(greatest - self.sound_mean) / (2 * self.sound_std),
            sound_mean=1.5 * torch.einsum("bc,bcd->bd", share, sound),
            speech_mean=2 * torch.einsum("bc,bcd->bd", half_share, speech),
            word_mean=1.5 * torch.einsum("bc,bcd->bd", half_share, word),
            word_greatest=word.masked_fill(~halves[:, :, None], -4).amax(dim=1) / 1.5,
            categories=[head(greatest).softmax(dim=1) for head in self.category_heads],
        )

    def _standard(self, name: str, values: Tensor) -> Tensor:
        mean, std = getattr(self, f"{name}_mean"), getattr(self, f"{name}_std")
        standard: Tensor = ((values - mean) / std).clamp(-5, 5)
        return standard

    def _columns(self, columns: Tensor, batch: Batch, targets: Targets) -> dict[str, Tensor]:
        sound, speech, word, phonemes = self.column(columns).split(self.column_splits, dim=2)
        speech, word, phonemes = (
            x.unflatten(2, (2, -1)).flatten(1, 2) for x in (speech, word, phonemes)
        )
        spoken = targets.halves & batch.spoken[:, None]
        return {
            "column_sound": _squared(sound, targets.sound, targets.heard),
            "column_speech": _squared(speech, targets.speech, targets.halves),
            "column_word": _squared(word, targets.word, spoken),
            "phonemes": _cross_entropy(phonemes.flatten(0, 1), batch.phonemes.flatten(), IGNORE),
        }

    def _clip(self, predicted: Tensor, batch: Batch, targets: Targets) -> dict[str, Tensor]:
        greatest, mean, speech, word, word_greatest, word_id, families, *categories = (
            predicted.split(self.splits, dim=1)
        )
        everything = torch.ones_like(batch.spoken)
        divergence = [
            _divergence(logits, target)
            for logits, target in zip(categories, targets.categories, strict=True)
        ]
        return {
            "clip_sound": _squared(greatest, targets.greatest, everything)
            + _squared(mean, targets.sound_mean, everything),
            "clip_speech": _squared(speech, targets.speech_mean, everything),
            "clip_word": _squared(word, targets.word_mean, batch.spoken)
            + _squared(word_greatest, targets.word_greatest, batch.spoken),
            "categories": torch.stack(divergence).mean(),
            "word_id": _cross_entropy(word_id, batch.word_id, -1),
            "families": _presence(families, batch.families),
        }


def _squared(predicted: Tensor, target: Tensor, where: Tensor) -> Tensor:
    """Mean squared error where `where` is true; 0 if it is true nowhere."""
    error = (predicted - target).square().mean(dim=-1)
    return (error * where).sum() / where.sum().clamp(min=1)


def _cross_entropy(logits: Tensor, target: Tensor, ignore: int) -> Tensor:
    """Mean cross-entropy over the targets that are not `ignore`; 0 if there are none."""
    loss = functional.cross_entropy(logits, target, ignore_index=ignore, reduction="sum")
    return loss / (target != ignore).sum().clamp(min=1)


def _divergence(logits: Tensor, target: Tensor) -> Tensor:
    """Kullback-Leibler divergence of each prediction from its target [B, n] -> [B]."""
    cross_entropy = -(target * logits.log_softmax(dim=1)).sum(dim=1)
    return cross_entropy + (target * target.clamp(min=1e-8).log()).sum(dim=1)


def _presence(logits: Tensor, target: Tensor) -> Tensor:
    """Mean binary cross-entropy over the rows whose target is known, not -1; 0 if none is."""
    known = target[:, 0] >= 0
    loss = functional.binary_cross_entropy_with_logits(
        logits[known], target[known], reduction="sum"
    )
    return loss / max(1, target[known].numel())

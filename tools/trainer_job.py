"""The job of `bench_job.py` as Hugging Face users write it: PEFT's LoRA on transformers' Trainer.

    python tools/trainer_job.py JOB.json

It knows nothing of the toolkit. `JOB.json` says what to do (the fields of `Job` here); the result
is written as JSON beside it. With `features: each_epoch`, features are computed whenever a clip is
read, as transformers' example for audio classification does (`set_transform`); with `once`, all of
them are computed before training and kept in memory.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soundfile
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.data import Dataset
from transformers import (
    ASTFeatureExtractor,
    ASTForAudioClassification,
    EvalPrediction,
    Trainer,
    TrainingArguments,
)


@dataclasses.dataclass(frozen=True)
class Job:
    """What is trained.

    Attributes:
        backbone: folder written by `save_pretrained`, of the wanted length.
        train, valid, test: path and class number of each clip.
        classes: C.
        epochs, batch_size, lr, seed: as they are called.
        features: when they are computed.
        output: folder for checkpoints.
    """

    backbone: str
    train: list[tuple[str, int]]
    valid: list[tuple[str, int]]
    test: list[tuple[str, int]]
    classes: int
    epochs: int
    batch_size: int
    lr: float
    seed: int
    features: Literal["each_epoch", "once"]
    output: str


class Clips(Dataset[dict[str, Any]]):
    """Clips as the model reads them."""

    def __init__(
        self, clips: Sequence[tuple[str, int]], extractor: ASTFeatureExtractor, keep: bool
    ) -> None:
        self.clips, self.extractor = clips, extractor
        self.kept = [self._read(path) for path, _ in clips] if keep else None

    def _read(self, path: str) -> torch.Tensor:
        wave, rate = soundfile.read(path, dtype="float32")
        features: torch.Tensor = self.extractor(wave, sampling_rate=rate, return_tensors="pt")[
            "input_values"
        ][0]
        return features

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path, label = self.clips[index]
        features = self._read(path) if self.kept is None else self.kept[index]
        return {"input_values": features, "labels": label}


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Share of the clips whose likeliest class is the right one."""
    return {
        "accuracy": float((np.argmax(prediction.predictions, 1) == prediction.label_ids).mean())
    }


def work(job: Job) -> float:
    """Train, choose the epoch on the validation clips, and return the test accuracy."""
    extractor = ASTFeatureExtractor.from_pretrained(job.backbone)
    model = ASTForAudioClassification.from_pretrained(job.backbone, num_labels=job.classes)
    lora = LoraConfig(
        r=6, lora_alpha=0.75, target_modules=["q_proj", "v_proj"],
        modules_to_save=["classifier", "audio_spectrogram_transformer.layernorm"],
    )  # fmt: skip
    model = get_peft_model(model, lora)
    keep = job.features == "once"
    train, valid, test = (Clips(c, extractor, keep) for c in (job.train, job.valid, job.test))
    arguments = TrainingArguments(
        job.output, num_train_epochs=job.epochs, per_device_train_batch_size=job.batch_size,
        per_device_eval_batch_size=job.batch_size, learning_rate=job.lr, seed=job.seed,
        lr_scheduler_type="cosine", weight_decay=0.1, adam_beta2=0.98, adam_epsilon=1e-6,
        eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True,
        save_total_limit=1, metric_for_best_model="accuracy", report_to=[], disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    )  # fmt: skip
    trainer = Trainer(
        model, arguments, train_dataset=train, eval_dataset=valid, compute_metrics=accuracy
    )
    trainer.train()
    return float(trainer.evaluate(test, metric_key_prefix="test")["test_accuracy"])


if __name__ == "__main__":
    file = Path(sys.argv[1])
    score = work(Job(**json.loads(file.read_text())))
    file.with_suffix(".result").write_text(json.dumps({"accuracy": score}))

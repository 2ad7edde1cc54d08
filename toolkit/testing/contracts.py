"""The contracts of a backbone, a corpus, a pipeline and an augmentation, as checks."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from toolkit.data.augment import Augmentation, augmented
from toolkit.data.manifest import Manifest, class_matrix, headers
from toolkit.errors import DataError
from toolkit.features.pipeline import pipeline_for
from toolkit.registry import BACKBONES, CORPORA, PEFT, PIPELINES
from toolkit.testing import matrix
from toolkit.testing.checks import check_saving, check_training
from toolkit.testing.padding import check_padding
from toolkit.testing.require import require
from toolkit.testing.reuse import check_reuse
from toolkit.testing.tiny import tiny_backbone, tiny_batch, tiny_lengths

CLASSES = 4


def check_backbone(name: str, methods: str = "*") -> None:
    """A family's small backbone encodes, pads, trains and saves, and no method breaks on it.

    A method may be refused with a reason.

    Args:
        name: of the registered family.
        methods: pattern of the methods to try.
    """
    BACKBONES.get(name)
    require("model_type" in BACKBONES.peek(name).metadata, "register it with `model_type`")
    backbone, again = tiny_backbone(family=name), tiny_backbone(family=name)
    require(backbone.fingerprint == again.fingerprint, "`tiny` must always give the same weights")
    (features, _), lengths = tiny_batch(backbone), tiny_lengths(backbone)
    with torch.no_grad():
        tokens = backbone(features, lengths)
    require(tokens.ndim == 3, f"`encode` must return [B, M, d], not {list(tokens.shape)}")
    require(tokens.shape[-1] == backbone.dim, f"tokens have {tokens.shape[-1]} of {backbone.dim}")
    require(torch.isfinite(tokens).all(), "the tokens are not finite")
    check_training(PEFT.create("linear_probe"), family=name)
    check_saving(PEFT.create("linear_probe"), name)
    for method in ("linear_probe", "bitfit"):
        check_reuse(PEFT.create(method), name)
    if backbone.features.variable:
        check_padding(PEFT.create("linear_probe"), name)
    cells = list(matrix.cells(PEFT.names(methods), [name]))
    broken = [f"{cell.method}: {cell.reason}" for cell in cells if cell.verdict == "broken"]
    require(not broken, f"methods that break on it: {'; '.join(broken)}")


def check_corpus(
    name: str, folder: Path | None = None, settings: Mapping[str, Any] | None = None
) -> Manifest:
    """A corpus reads a folder into the same table each time, with clips to train and to test on.

    Args:
        name: of the registered corpus.
        folder: where it lies; None: a miniature that the corpus's `embed` writes.
        settings: of the corpus, where they differ from the defaults.

    Returns:
        the table.
    """
    corpus = CORPORA.create({"name": name, **(settings or {})})
    with tempfile.TemporaryDirectory() as scratch:
        try:
            corpus.manifest(Path(scratch) / "nothing")
        except DataError:
            pass
        else:
            raise AssertionError("a folder that is not there must be refused with a DataError")
        if folder is None:
            folder = Path(scratch) / "miniature"
            corpus.embed(folder)
        manifest, again = corpus.manifest(folder), corpus.manifest(folder)
        require(manifest.clips.astype(str).equals(again.clips.astype(str)), "the table changes")
        found = headers(manifest.clips["path"]).values()
        wrong = [problem for problem in found if isinstance(problem, str)]
        require(not wrong, f"clips that cannot be read: {wrong[:3]}")
    for split in manifest.splits:
        parts = {*split.train, split.valid, split.test}
        require(len(parts) == len(split.train) + 2, f"the round {split} uses a fold twice")
        require(parts <= set(manifest.folds), f"the round {split} names a fold that is not there")
        train = class_matrix(manifest.of_folds(list(split.train))["label"], len(manifest.classes))
        missing = [manifest.classes[place] for place in np.flatnonzero(train.sum(axis=0) == 0)]
        names = ", ".join(missing)
        require(not missing, f"no clip to train on when fold {split.test} is tested: {names}")
    return manifest


def check_pipeline(name: str, settings: Mapping[str, Any] | None = None) -> None:
    """A pipeline makes finite rows of the backbone's width, the same each time.

    It is tried with every small backbone that reads its kind of rows.

    Args:
        name: of the registered pipeline.
        settings: of the pipeline, where they differ from the defaults.
    """
    kind = PIPELINES.get(name).kind
    fitting = [b for f in matrix.families() if (b := tiny_backbone(family=f)).features.kind == kind]
    require(fitting, f"no backbone reads rows of the kind {kind!r}")
    for backbone in fitting:
        spec = backbone.features
        pipeline = pipeline_for(spec, {"name": name, **(settings or {})})
        waveform = 0.1 * torch.randn(spec.sample_rate // 2, generator=Generator().manual_seed(0))
        rows, again = (
            pipeline.checked_rows(waveform.clone(), spec, "half a second of noise")
            for _ in range(2)
        )
        require(len(rows), "half a second of sound gives no rows")
        require(torch.isfinite(rows).all(), "the rows are not finite")
        require(torch.equal(rows, again), "the rows of the same sound change")


def check_augmentation(augmentation: Augmentation) -> None:
    """An augmentation returns features and targets of the same shapes, drawn from its generator.

    It neither changes what it is given nor touches torch's own random numbers, and targets stay
    probabilities.
    """
    for clips in (1, 2, 5):
        features = torch.randn(clips, 60, 32, generator=Generator().manual_seed(clips))
        targets = torch.eye(CLASSES)[torch.arange(clips) % CLASSES]
        kept, state = (features.clone(), targets.clone()), torch.get_rng_state()
        first, again = (_apply(augmentation, features, targets) for _ in range(2))
        name = type(augmentation).__name__
        require(torch.equal(features, kept[0]), f"{name} changes its input: work on a copy")
        require(torch.equal(targets, kept[1]), f"{name} changes its targets: work on a copy")
        require(torch.equal(torch.get_rng_state(), state), f"{name} must draw from its generator")
        for one, two in zip(first, again, strict=True):
            require(torch.equal(one, two), f"{name} must depend on its generator alone")
            require(torch.isfinite(one).all(), f"{name} returns numbers that are not finite")
            require(one.dtype == torch.float32, f"{name} returns {one.dtype}")
        sums = first[1].sum(dim=1)
        require((first[1] >= 0).all(), f"{name} returns targets below 0")
        require(
            torch.allclose(sums, torch.ones(clips), atol=1e-5), f"{name}: targets sum to {sums}"
        )


def _apply(augmentation: Augmentation, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    return augmented([augmentation], features, targets, Generator().manual_seed(7))

"""SpecAugment and mixup: what they draw, what they do not change, and reproducibility by seed."""

import pytest
import torch
from torch import Generator, Tensor
from torch.nn import functional

from toolkit.data.augment import Augmentation, Mixup, SpecAugment

BATCH, FRAMES, BINS, CLASSES = 6, 50, 32, 4


def _seeded(seed: int) -> Generator:
    return torch.Generator().manual_seed(seed)


def _batch(clips: int = BATCH, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Positive features [B, T, F], so that a masked 0 is recognised, and one-hot targets."""
    generator = _seeded(seed)
    features = 1 + torch.rand(clips, FRAMES, BINS, generator=generator)
    labels = torch.randint(CLASSES, (clips,), generator=generator)
    return features, functional.one_hot(labels, CLASSES).float()


AUGMENTATIONS: list[Augmentation] = [
    SpecAugment(8, 10),
    SpecAugment(0, 0),
    SpecAugment(1000, 1000),
    Mixup(),
    Mixup(0.1),
    Mixup(5.0, probability=0.5),
]


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
@pytest.mark.parametrize("clips", [1, 2, BATCH])
def test_what_every_augmentation_keeps(augmentation: Augmentation, clips: int) -> None:
    features, targets = _batch(clips)
    before = features.clone(), targets.clone()
    found, labels = augmentation(features, targets, _seeded(1))
    assert found.shape == features.shape and found.dtype == features.dtype
    assert labels.shape == targets.shape and found.isfinite().all()
    assert (labels >= 0).all()
    torch.testing.assert_close(labels.sum(dim=1), torch.ones(clips))
    assert torch.equal(features, before[0]) and torch.equal(targets, before[1])


@pytest.mark.parametrize("augmentation", [SpecAugment(8, 10), Mixup(), Mixup(1.0, 0.5)])
def test_the_generator_decides_alone(augmentation: Augmentation) -> None:
    batch = _batch()
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = [augmentation(*batch, _seeded(seed)) for seed in range(8)]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    second = [augmentation(*batch, _seeded(seed)) for seed in range(8)]
    for (x, y), (same_x, same_y) in zip(first, second, strict=True):
        assert torch.equal(x, same_x) and torch.equal(y, same_y)
    assert len({x.sum().item() for x, _ in first}) > 1


# SpecAugment


def _spans(masked: Tensor) -> list[tuple[int, int]]:
    """First place and width of the one span of true values in each row, (-1, 0) for none."""
    spans = []
    for row in masked:
        places = row.nonzero().flatten().tolist()
        start = places[0] if places else -1
        assert places == list(range(start, start + len(places)))
        spans.append((start, len(places)))
    return spans


def test_one_band_and_one_span_in_every_clip() -> None:
    features, targets = _batch(2000)
    found, labels = SpecAugment(8, 10, value=-7.0)(features, targets, _seeded(0))
    assert torch.equal(labels, targets)
    masked = found == -7.0
    assert torch.equal(found[~masked], features[~masked])
    bands, spans = masked.all(dim=1), masked.all(dim=2)  # [B, F], [B, T]
    assert torch.equal(masked, bands[:, None, :] | spans[:, :, None])
    for rows, limit, size in ((bands, 8, BINS), (spans, 10, FRAMES)):
        starts, widths = zip(*_spans(rows), strict=True)
        assert set(widths) == set(range(limit))  # uniform in 0 ... limit - 1
        counts = torch.bincount(torch.tensor(widths)) / len(widths)
        torch.testing.assert_close(counts, torch.full_like(counts, 1 / limit), rtol=0.3, atol=0)
        ends = [s + w for s, w in zip(starts, widths, strict=True) if w]
        assert min(s for s in starts if s >= 0) == 0 and max(ends) >= size - 2 and max(ends) <= size
        narrow = torch.tensor([s for s, w in zip(starts, widths, strict=True) if w == 1]).float()
        assert narrow.mean().item() == pytest.approx((size - 2) / 2, rel=0.2)


def test_clips_are_masked_differently() -> None:
    features = torch.ones(64, FRAMES, BINS)
    found, _ = SpecAugment(20, 30)(features, torch.ones(64, 1), _seeded(0))
    assert len({clip.flatten().tolist().__repr__() for clip in found}) > 60


@pytest.mark.parametrize(("freq", "time"), [(0, 10), (8, 0), (0, 0)])
def test_a_width_of_zero_masks_nothing(freq: int, time: int) -> None:
    features, targets = _batch(500)
    found, _ = SpecAugment(freq, time)(features, targets, _seeded(0))
    masked = found == 0
    assert bool(masked.all(dim=1).any()) == (freq > 0)
    assert bool(masked.all(dim=2).any()) == (time > 0)


def test_wide_masks_never_take_a_whole_clip() -> None:
    features, targets = _batch(500)
    found, _ = SpecAugment(10_000, 0)(features, targets, _seeded(0))
    kept = (found != 0).any(dim=1).sum(dim=1)
    assert kept.min() >= 1 and kept.min() < 3 and kept.max() == BINS
    found, _ = SpecAugment(0, 10_000)(features, targets, _seeded(0))
    assert (found != 0).any(dim=2).sum(dim=1).min() >= 1


def test_the_defaults_mask_the_share_that_they_promise() -> None:
    """Widths below 24 of 128 and 80 of 500: 9 % and 8 % on average."""
    features = torch.ones(400, 500, 128)
    found, _ = SpecAugment()(features, torch.ones(400, 1), _seeded(0))
    masked = found == 0
    assert masked.all(dim=1).float().mean().item() == pytest.approx(11.5 / 128, rel=0.1)
    assert masked.all(dim=2).float().mean().item() == pytest.approx(39.5 / 500, rel=0.1)


# Mixup


def test_mixed_clips_lie_between_two_clips_of_the_batch() -> None:
    features, _ = _batch()
    targets = torch.eye(BATCH)  # every clip a class: the target tells who was mixed, and how much
    for seed in range(20):
        found, weights = Mixup(0.5)(features, targets, _seeded(seed))
        torch.testing.assert_close(weights.sum(dim=1), torch.ones(BATCH))
        assert ((weights > 0).sum(dim=1) <= 2).all()
        torch.testing.assert_close(found, torch.einsum("ij,jtf->itf", weights, features))
        partners = weights - weights.diagonal().diag()  # what was mixed in: once from each clip
        assert ((partners > 0).sum(dim=0) <= 1).all()


def test_features_stay_within_their_range() -> None:
    features, targets = _batch()
    found, _ = Mixup(1.0)(features, targets, _seeded(3))
    assert (found <= features.amax(dim=0) + 1e-6).all()
    assert (found >= features.amin(dim=0) - 1e-6).all()


@pytest.mark.parametrize("alpha", [0.2, 0.5, 1.0, 4.0])
def test_weights_follow_the_beta_distribution(alpha: float) -> None:
    clips = 4000
    _, weights = Mixup(alpha)(torch.zeros(clips, 1, 1), torch.eye(clips), _seeded(0))
    own = weights.diagonal()
    assert own.mean().item() == pytest.approx(0.5, abs=0.03)
    assert own.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)
    assert len(own.unique()) > clips / 2  # a weight of its own for every clip


def test_equal_clips_and_labels_stay_as_they_are() -> None:
    features = torch.randn(1, FRAMES, BINS).expand(BATCH, -1, -1)
    targets = functional.one_hot(torch.full((BATCH,), 2), CLASSES).float()
    found, labels = Mixup()(features, targets, _seeded(0))
    torch.testing.assert_close(found, features)
    torch.testing.assert_close(labels, targets)


def test_a_single_clip_stays_as_it_is() -> None:
    features, targets = _batch(1)
    found, labels = Mixup()(features, targets, _seeded(0))
    torch.testing.assert_close(found, features)
    assert torch.equal(labels, targets)


def test_a_tiny_alpha_gives_finite_weights() -> None:
    features, targets = _batch(200)
    found, labels = Mixup(1e-3)(features, targets, _seeded(0))
    assert found.isfinite().all() and labels.isfinite().all()


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_the_share_of_batches(probability: float) -> None:
    features, targets = _batch()
    mixup, generator = Mixup(1.0, probability), _seeded(0)
    mixed = [not torch.equal(mixup(features, targets, generator)[0], features) for _ in range(500)]
    assert sum(mixed) / 500 == pytest.approx(probability, abs=0.06)
    if probability in (0.0, 1.0):
        assert all(mixed) == any(mixed) == bool(probability)


def test_one_after_the_other() -> None:
    features, targets = _batch()
    generator = _seeded(0)
    x, y = Mixup()(*SpecAugment(8, 10)(features, targets, generator), generator)
    assert x.isfinite().all() and x.shape == features.shape
    torch.testing.assert_close(y.sum(dim=1), torch.ones(BATCH))
    assert (x <= features.amax(dim=0) + 1e-6).all() and (x >= 0).all()

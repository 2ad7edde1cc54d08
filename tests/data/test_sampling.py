"""Batches for any number of processes, seeds, folds, and metrics against brute force."""

import itertools
import math
import statistics

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from toolkit.data.sampling import TrainingBatches, derive_seed, evaluation_batches
from toolkit.data.splits import Split, cross_validation, selected
from toolkit.errors import ConfigError
from toolkit.metrics import Spread, accuracy, confusion_matrix, per_class_accuracy


def _epoch(batches: TrainingBatches, epoch: int) -> list[list[int]]:
    batches.set_epoch(epoch)
    return list(batches)


# Training


@settings(max_examples=200, deadline=None)
@given(
    clips=st.integers(1, 120),
    batch_size=st.integers(1, 130),
    world_size=st.integers(1, 6),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 50),
)
def test_processes_share_the_batches_of_one(
    clips: int, batch_size: int, world_size: int, seed: int, epoch: int
) -> None:
    assume(min(clips, batch_size) >= world_size)
    ranks = [
        TrainingBatches(clips, batch_size, seed, rank, world_size) for rank in range(world_size)
    ]
    shares = [_epoch(rank, epoch) for rank in ranks]
    alone = TrainingBatches(clips, batch_size, seed)
    order = list(itertools.chain(*_epoch(alone, epoch)))
    assert sorted(order) == list(range(clips))  # every clip once
    for rank, share in zip(ranks, shares, strict=True):
        assert len(rank) == len(share) == len(rank.sizes)
        assert all(share)  # nobody is without a clip
    together = []
    for number, parts in enumerate(zip(*shares, strict=True)):
        batch = list(itertools.chain(*parts))
        assert len(batch) == ranks[0].sizes[number]
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        together.append(set(batch))
        assert together[-1] == set(order[: len(batch)])  # the same order, cut the same way
        order = order[len(batch) :]
    assert not order
    if clips % batch_size == 0 or clips % batch_size >= world_size:
        assert together == [set(batch) for batch in _epoch(alone, epoch)]


@settings(max_examples=100, deadline=None)
@given(clips=st.integers(1, 200), batch_size=st.integers(1, 64))
def test_sizes_of_batches(clips: int, batch_size: int) -> None:
    batches = TrainingBatches(clips, batch_size, seed=0)
    assert len(batches) == math.ceil(clips / batch_size)
    assert [len(batch) for batch in batches] == batches.sizes
    assert all(size == batch_size for size in batches.sizes[:-1])


@pytest.mark.parametrize(
    ("clips", "world_size", "sizes"),
    [
        (16, 4, [8, 8]),
        (17, 1, [8, 8, 1]),
        (17, 2, [8, 9]),
        (19, 4, [8, 11]),
        (20, 4, [8, 8, 4]),
        (9, 2, [9]),
        (3, 3, [3]),
    ],
)
def test_a_tail_smaller_than_the_processes_joins_the_batch_before(
    clips: int, world_size: int, sizes: list[int]
) -> None:
    batches = TrainingBatches(clips, 8, 0, 0, world_size)
    assert batches.sizes == sizes and len(batches) == len(sizes)


@pytest.mark.parametrize(("clips", "batch_size"), [(100, 3), (3, 100), (0, 8)])
def test_batches_too_small_for_the_processes_are_refused(clips: int, batch_size: int) -> None:
    with pytest.raises(ConfigError, match="--batch_size"):
        TrainingBatches(clips, batch_size, 0, 0, 4)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {
        (seed, epoch): tuple(itertools.chain(*_epoch(TrainingBatches(40, 7, seed), epoch)))
        for seed in range(5)
        for epoch in range(5)
    }
    assert len(set(orders.values())) == 25
    again = TrainingBatches(40, 7, 3)
    assert tuple(itertools.chain(*_epoch(again, 4))) == orders[3, 4]
    assert tuple(itertools.chain(*again)) == orders[3, 4]  # until the next epoch


def test_the_batch_size_changes_no_order() -> None:
    orders = {tuple(itertools.chain(*TrainingBatches(50, size, 1))) for size in (1, 7, 50, 99)}
    assert len(orders) == 1


def test_orders_are_shuffled_evenly() -> None:
    """Every clip is the first one about equally often."""
    batches = TrainingBatches(5, 5, seed=0)
    first = np.bincount([_epoch(batches, epoch)[0][0] for epoch in range(1000)], minlength=5)
    assert first.min() > 150 and first.max() < 250


# Evaluation


@settings(max_examples=200, deadline=None)
@given(clips=st.integers(0, 100), batch_size=st.integers(1, 40), world_size=st.integers(1, 7))
def test_evaluation_counts_every_clip_once(clips: int, batch_size: int, world_size: int) -> None:
    shares = [evaluation_batches(clips, batch_size, r, world_size) for r in range(world_size)]
    counted = [clip for share in shares for batch in share for clip in batch]
    assert sorted(counted) == list(range(clips))
    assert all(1 <= len(batch) <= batch_size for share in shares for batch in share)
    loads = [sum(map(len, share)) for share in shares]
    assert max(loads) - min(loads) <= 1


def test_evaluation_alone_keeps_the_order() -> None:
    assert evaluation_batches(7, 3) == [[0, 1, 2], [3, 4, 5], [6]]


# Seeds


def test_seeds_do_not_collide_on_a_grid() -> None:
    """Tuples (seed, fold, epoch, step, rank) and shorter ones."""
    parts = set(itertools.product(range(6), range(1, 11), range(1, 21), range(60), range(2)))
    for count in range(1, 5):
        parts |= set(itertools.product(range(12), repeat=count))
    assert len({derive_seed(*part) for part in parts}) == len(parts) > 160_000


def test_order_and_number_of_parts_matter() -> None:
    assert derive_seed(1, 2) != derive_seed(2, 1)
    assert len({derive_seed(*[0] * n) for n in range(1, 10)}) == 9


@given(st.lists(st.integers(0, 2**63), min_size=1, max_size=5))
def test_seeds_fit_a_generator(parts: list[int]) -> None:
    seed = derive_seed(*parts)
    assert 0 <= seed < 2**63 and seed == derive_seed(*parts)


def test_seeds_are_the_same_on_every_machine() -> None:
    """The published first value of splitmix64 for the seed 0, without the lowest bit."""
    assert derive_seed(0) == 0xE220A8397B1DCDAF >> 1


def test_neighbouring_parts_differ_in_half_of_the_bits() -> None:
    changed = [(derive_seed(10, n) ^ derive_seed(10, n + 1)).bit_count() for n in range(300)]
    assert statistics.mean(changed) == pytest.approx(31.5, abs=1)


# Splits


@pytest.mark.parametrize("folds", [[1, 2, 3, 4, 5], [1, 2, 3], [2, 5, 9, 11], list(range(1, 11))])
def test_each_fold_is_tested_once_and_the_next_validates(folds: list[int]) -> None:
    splits = cross_validation(folds)
    assert [split.test for split in splits] == folds
    assert [split.valid for split in splits] == [*folds[1:], folds[0]]
    for split in splits:
        assert sorted([*split.train, split.valid, split.test]) == folds


def test_esc50_trains_on_three_folds() -> None:
    assert cross_validation([1, 2, 3, 4, 5])[4] == Split(train=(2, 3, 4), valid=1, test=5)


@pytest.mark.parametrize("folds", [[], [1], [1, 2]])
def test_too_few_folds(folds: list[int]) -> None:
    with pytest.raises(ConfigError, match="three folds"):
        cross_validation(folds)


@pytest.mark.parametrize(
    ("wanted", "tests"),
    [
        ("all", [1, 2, 3, 4, 5]),
        (2, [2]),
        ("2", [2]),
        ("1,3", [1, 3]),
        (" 3 , 1 ", [1, 3]),
        ([5, 1], [1, 5]),
        (["4"], [4]),
        ("2,2", [2]),
    ],
)
def test_wanted_folds(wanted: str | int | list[int], tests: list[int]) -> None:
    splits = cross_validation([1, 2, 3, 4, 5])
    chosen = selected(splits, wanted)
    assert [split.test for split in chosen] == tests
    assert all(split in splits for split in chosen)


@pytest.mark.parametrize(
    "wanted", ["", "6", 0, -1, "1;2", "1,,2", "1-3", "one", "ALL", [], [1, 7], "²", "1.0", [1.5]]
)
def test_folds_that_are_not_there(wanted: object) -> None:
    with pytest.raises(ConfigError) as caught:
        selected(cross_validation([1, 2, 3, 4, 5]), wanted)
    assert "1, 2, 3, 4, 5" in str(caught.value) and repr(wanted) in str(caught.value)


# Metrics


@settings(max_examples=100, deadline=None)
@given(data=st.data(), classes=st.integers(1, 8))
def test_metrics_against_counting(data: st.DataObject, classes: int) -> None:
    label = st.integers(0, classes - 1)
    pairs = data.draw(st.lists(st.tuples(label, label), min_size=1, max_size=60))
    truth, prediction = (np.array(column) for column in zip(*pairs, strict=True))
    matrix = confusion_matrix(truth, prediction, classes)
    assert matrix.shape == (classes, classes)
    for i in range(classes):
        for j in range(classes):
            assert matrix[i, j] == pairs.count((i, j))
    hits = [t == p for t, p in pairs]
    table = pd.DataFrame({"truth": truth, "prediction": prediction})
    assert accuracy(table) == pytest.approx(sum(hits) / len(hits))
    assert matrix.trace() / matrix.sum() == pytest.approx(accuracy(table))
    for i, share in enumerate(per_class_accuracy(matrix)):
        own = [p == i for t, p in pairs if t == i]
        assert share == (pytest.approx(sum(own) / len(own)) if own else None)


def test_rows_are_true_classes() -> None:
    assert confusion_matrix(np.array([0, 0, 1]), np.array([2, 2, 1]), 3).tolist() == [
        [0, 0, 2],
        [0, 1, 0],
        [0, 0, 0],
    ]


def test_without_clips() -> None:
    assert math.isnan(accuracy(pd.DataFrame({"truth": [], "prediction": []})))
    empty = confusion_matrix(np.array([], int), np.array([], int), 2)
    assert empty.tolist() == [[0, 0], [0, 0]] and per_class_accuracy(empty) == [None, None]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_spread(values: list[float]) -> None:
    spread = Spread.of(values)
    assert spread.mean == pytest.approx(statistics.mean(values), abs=1e-12)
    if len(values) == 1:
        assert spread.std is None
    else:
        assert spread.std == pytest.approx(statistics.stdev(values), abs=1e-9)


def test_spread_in_words() -> None:
    assert Spread.of([0.8, 0.9]).percent() == "85.0 ± 7.1 %"
    assert Spread.of([0.875]).percent() == "87.5 %"

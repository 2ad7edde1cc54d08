"""One class or several: losses, metrics and weights against loops, and in a recipe."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recipe import ROOT
from torch.distributions import Bernoulli, Categorical, kl_divergence

from toolkit.bundle import load_bundle
from toolkit.data.balance import balanced_class_weights, balanced_clip_weights
from toolkit.data.corpora.miniature import write_tones
from toolkit.data.few_shot import few_shot
from toolkit.data.sampling import TrainingBatches
from toolkit.features.audio import read_audio
from toolkit.features.cache import Segment, segments_of
from toolkit.metrics import average_precision, average_recall
from toolkit.results import RunResult, read_fold, read_run
from toolkit.task import ONE_CLASS, SEVERAL_CLASSES, TASKS, Task
from toolkit.training.experiment import Experiment
from toolkit.training.folds import cross_validate


def precision_by_thresholds(truth: np.ndarray, scores: np.ndarray) -> float:
    """Average precision by its definition: a step at every distinct score."""
    total, recall = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        chosen = scores >= threshold
        new = truth[chosen].sum() / truth.sum()
        total += (new - recall) * truth[chosen].mean()
        recall = new
    return total


@settings(max_examples=100, deadline=None)
@given(data=st.data(), count=st.integers(1, 30))
def test_average_precision_against_its_definition(data: st.DataObject, count: int) -> None:
    truth = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    ties = st.sampled_from([0.0, 0.1, 0.5, 0.7, 0.9])
    scores = np.array(data.draw(st.lists(ties, min_size=count, max_size=count)))
    (found,) = average_precision(truth[:, None], scores[:, None])
    if truth.any():
        assert found == pytest.approx(precision_by_thresholds(truth, scores))
    else:
        assert found is None


def test_mean_average_precision_leaves_out_absent_classes() -> None:
    probabilities = [[0.9, 0.2, 0.5], [0.8, 0.6, 0.1], [0.1, 0.9, 0.2]]
    table = pd.DataFrame({"truth": [(0,), (), (0, 1)], "probabilities": probabilities})
    # Class 0: ranks 1 and 3 -> (1 + 2/3) / 2; class 1: rank 1 -> 1; class 2 has no clips.
    assert SEVERAL_CLASSES.score(table) == pytest.approx(((1 + 2 / 3) / 2 + 1) / 2)
    assert SEVERAL_CLASSES.evaluate(table, 3).per_class[2] is None
    assert average_recall(np.array([[3, 1], [0, 2]])) == pytest.approx((0.75 + 1) / 2)
    assert average_recall(np.array([[3, 1], [0, 0]])) == pytest.approx(0.75)
    assert average_recall(np.array([[3, 1, 0], [0, 0, 0], [2, 0, 2]])) == pytest.approx(0.625)


def test_many_classes_loss_against_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, generator=generator)
    labels = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
    weights = torch.tensor([0.5, 2.0, 1.0])
    task = SEVERAL_CLASSES
    total = 0.0
    for row in range(4):
        for column in range(3):
            target = 0.8 * int(labels[row, column]) + 0.1
            p = torch.sigmoid(logits[row, column])
            total -= weights[column] * (target * p.log() + (1 - target) * (1 - p).log())
    found = task.training_loss(logits, task.targets(labels, 3), 0.2, weights)
    torch.testing.assert_close(found, total / 12)
    assert task.truths(labels) == [(0, 2), (), (0, 1, 2), (1,)]
    assert task.predictions([[0.5, 0.4, 0.9], [0.1, 0.2, 0.3]]) == [(0, 2), ()]
    torch.testing.assert_close(
        task.losses(logits, labels.float()).mean(),
        task.training_loss(logits, labels.float(), 0.0, None),
    )


def test_one_class_loss_with_weights_and_mixed_targets() -> None:
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    targets = torch.tensor([[1.0, 0, 0, 0], [0.3, 0.7, 0, 0], [0, 0, 0, 1]])
    weights = torch.tensor([1.0, 3.0, 0.5, 2.0])
    expected = -(weights * targets * logits.log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(ONE_CLASS.training_loss(logits, targets, 0.0, weights), expected)


def test_divergence_is_the_symmetric_kl() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(2, 9, 5).unbind()
    for task, kind in ((ONE_CLASS, Categorical), (SEVERAL_CLASSES, Bernoulli)):
        p, q = kind(logits=a), kind(logits=b)
        expected = 0.5 * (kl_divergence(p, q) + kl_divergence(q, p)).mean()
        torch.testing.assert_close(task.divergence(a, b), expected)


@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
def test_divergence_is_symmetric_not_negative_and_zero_for_equals(task: Task) -> None:
    torch.manual_seed(0)
    for scale in (1e-3, 1.0, 100.0):
        a, b = (scale * torch.randn(2, 50, 5)).unbind()
        assert task.divergence(a, b).item() >= 0
        torch.testing.assert_close(task.divergence(a, b), task.divergence(b, a))
        assert task.divergence(a, a).item() == 0
    logits = torch.randn(2, 4, 5, requires_grad=True)
    task.divergence(*logits.unbind()).backward()
    assert (logits.grad.flatten(1).abs().sum(dim=1) > 0).all()  # both predictions
    assert task.divergence(*torch.randn(2, 3, 5).bfloat16().unbind()).dtype == torch.float32


def test_balanced_weights() -> None:
    labels = pd.Series([0, 0, 0, 1])
    assert balanced_class_weights(labels, 3).tolist() == pytest.approx([4 / 6, 4 / 2, 1])
    assert balanced_clip_weights(labels, 3).tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1])
    many = pd.Series([np.array([1, 0]), np.array([1, 1]), np.array([0, 0])], dtype=object)
    assert balanced_clip_weights(many, 2).tolist() == pytest.approx([0.5, 1.5, 0.5])
    assert balanced_class_weights(many, 2).tolist() == pytest.approx([0.75, 1.5])


def test_balanced_weights_of_equal_classes_are_one() -> None:
    """Whatever other classes the corpus has."""
    assert balanced_class_weights(pd.Series([0, 2, 2, 0]), 4).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
def test_a_class_without_a_training_clip_keeps_its_loss(task: Task) -> None:
    """What the model wrongly says of it is still pushed down, in both tasks and with smoothing."""
    labels = [0, 0, 0, 1]
    series = pd.Series(labels)
    if task is SEVERAL_CLASSES:
        series = pd.Series([np.eye(3, dtype=np.uint8)[label] for label in labels], dtype=object)
    weights = balanced_class_weights(series, 3)
    logits = torch.zeros(4, 3, requires_grad=True)
    targets = torch.eye(3)[labels]
    task.training_loss(logits, targets, 0.1, weights).backward()
    assert (logits.grad[:, 2] > 0.01).all()


def test_balanced_sampling_draws_all_classes_alike() -> None:
    labels = pd.Series([0] * 900 + [1] * 100)
    weights = balanced_clip_weights(labels, 2)
    batches = TrainingBatches(1000, 50, seed=3, weights=weights)
    drawn = [clip for batch in batches for clip in batch]
    share = sum(clip >= 900 for clip in drawn) / len(drawn)
    assert len(drawn) == 1000 and abs(share - 0.5) < 4 * (0.25 / 1000) ** 0.5
    shares = [TrainingBatches(1000, 50, 3, r, 2, weights=weights) for r in range(2)]
    pairs = zip(*shares, strict=True)
    for whole, (even, odd) in zip(batches, pairs, strict=True):
        assert (even, odd) == (whole[::2], whole[1::2])


def test_few_shot_of_many_labels() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((60, 4)) < 0.4).astype(np.uint8)
    clips = pd.DataFrame({"id": range(60), "label": pd.Series(list(labels), dtype=object)})
    few, more = (few_shot(clips, k, 7, list("abcd")) for k in (2, 5))
    assert set(few["id"]) <= set(more["id"]) and len(few) <= 8
    for chosen, count in ((few, 2), (more, 5)):
        assert (np.stack(chosen["label"].to_numpy()).sum(axis=0) >= count).all()


def test_segments_are_read_as_parts_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    write_tones({path: 0}, seconds=1.0)
    whole = read_audio(path, 16000)
    np.testing.assert_array_equal(read_audio(path, 16000, 0.25, 0.5), whole[4000:8000])
    np.testing.assert_array_equal(read_audio(path, 16000, 0.25), whole[4000:])
    np.testing.assert_array_equal(read_audio(path, 16000, None, 0.5), whole[:8000])
    clips = pd.DataFrame({"path": ["a", "b"], "start": [0.5, np.nan], "stop": [1.0, np.nan]})
    assert segments_of(clips) == [Segment("a", 0.5, 1.0), Segment("b")]
    assert segments_of(clips[["path"]]) == [Segment("a"), Segment("b")]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(recipe: str, *arguments: object) -> RunResult:
    """The result of a recipe on its miniature, in debug mode, in the working directory."""
    words = [*map(str, arguments), "--debug", "--output_folder", "out", "--noprogressbar", "true"]
    train = ROOT / "recipes" / recipe / "train.py"
    return cross_validate(Experiment.from_command_line(str(train), words))


@pytest.mark.parametrize(
    ("recipe", "arguments", "tested"),
    [
        ("UrbanSound8K", ["hparams/linear.yaml"], list(range(1, 11))),
        ("SpeechCommands", ["hparams/lora.yaml", "--corpus.protocol", "twelve"], [3]),
        ("FluentSpeechCommands", ["hparams/adapter.yaml", "--label_smoothing", "0.1"], [3]),
        ("IEMOCAP", ["hparams/linear.yaml", "--class_weights", "balanced"], [1, 2, 3, 4, 5]),
        ("CREMA-D", [ROOT / "plugins" / "ssf" / "ssf.yaml"], [1, 2, 3, 4, 5]),
        ("YourSounds", ["hparams/linear.yaml", "--few_shot", "2"], [3]),
    ],
)
def test_every_recipe_runs_on_its_miniature(
    recipe: str, arguments: list, tested: list[int], elsewhere: Path
) -> None:
    result = run(recipe, *arguments)
    assert result.recipe == recipe and result.embedded
    assert result.folds_of_corpus == tested and result.metric == "accuracy"
    assert result.metrics["accuracy"].mean == result.score.mean
    assert 0 <= result.metrics["uar"].mean <= 1


def test_many_labels_through_a_recipe(elsewhere: Path) -> None:
    """With class weights, balanced sampling, smoothing and mixup at once."""
    mixup = "- !new:toolkit.data.augment.Mixup {alpha: 0.5}"
    result = run(
        "FSD50K", "hparams/linear.yaml", "--class_weights", "balanced", "--balanced_sampling",
        "true", "--label_smoothing", "0.1", "--augment", mixup,
    )  # fmt: skip
    predictions = pd.read_csv(elsewhere / "out-debug" / "predictions.csv", keep_default_na=False)
    assert result.metric == "mAP" and result.confusion is None
    assert result == read_run(elsewhere / "out-debug")
    names = [set(text.split(";")) for text in predictions["truth"]]
    truth = np.array([[name in own for name in result.classes] for own in names])
    scores = predictions[[f"p_{name}" for name in result.classes]].to_numpy()
    expected = [precision_by_thresholds(t, s)
                for t, s in zip(truth.T, scores.T, strict=True) if t.any()]  # fmt: skip
    assert result.score.mean == pytest.approx(np.mean(expected))
    bundle = load_bundle(elsewhere / "out-debug" / "bundle")
    assert bundle.task is SEVERAL_CLASSES
    assert bundle.probabilities(torch.zeros(2, 5)).tolist() == [[0.5] * 5] * 2


def test_thor_on_a_corpus_with_several_classes_per_clip(elsewhere: Path) -> None:
    """Its consistency loss follows the task of the corpus; nothing has to be configured."""
    result = run("FSD50K", ROOT / "plugins" / "thor" / "thor.yaml", "--peft.num_experts", "2")
    assert result.method == "thor" and result.metric == "mAP"
    [record] = read_fold(elsewhere / "out-debug" / "fold-3").history
    assert 0 < record.auxiliary["consistency"] < 1
    assert record.statistics["consistency"] > 0


def test_the_command_without_arguments_says_how() -> None:
    script = ROOT / "recipes" / "YourSounds" / "train.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "recipes/YourSounds/train.py hparams/lora.yaml" in done.stdout

"""Results as files: what is written is read again, old files still open, damage is named."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from toolkit import results
from toolkit.errors import RunError
from toolkit.metrics import Spread
from toolkit.parameters import ParameterCount
from toolkit.results import EpochRecord, FoldResult
from toolkit.typed_json import ShapeError, from_plain, to_json

OLD = Path(__file__).parent / "old_results"
"""The files of a run from when "accuracy" held whatever metric the corpus had."""


def fold_of(**changes: object) -> FoldResult:
    """A fold with two epochs of a mixture, on clips with several classes."""
    history = [
        EpochRecord(
            epoch=number,
            lr=0.001,
            train_loss=1 / number,
            valid_loss=2 / number,
            valid_score=0.1 * number,
            metric="mAP",
            train_seconds=3.0,
            valid_seconds=1.0,
            auxiliary={"balance": 0.01},
            statistics={"load": [0.25, 0.75], "gate_entropy": 0.5},
        )
        for number in (1, 2)
    ]
    whole = FoldResult(
        test_fold=1,
        valid_fold=2,
        train_folds=[3, 4],
        metric="mAP",
        score=0.3,
        valid_score=0.2,
        best_epoch=2,
        metrics={"mAP": 0.3},
        per_class=[0.3, None],
        confusion=None,
        parameters=ParameterCount(method=10, head=2, total=100),
        peak_memory_bytes=2**20,
        training_clips=30,
        history=history,
    )
    return dataclasses.replace(whole, **changes)


def test_results_are_read_without_torch() -> None:
    code = "import sys, toolkit.results; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_fold_is_read_as_it_was_written(tmp_path: Path) -> None:
    results.write_fold(tmp_path, fold_of())
    assert results.read_fold(tmp_path) == fold_of()
    assert fold_of().best.valid_loss == 1.0
    text = (tmp_path / "fold.json").read_text()
    assert "accuracy" not in text and json.loads(text)["metric"] == "mAP"


def test_a_history_is_read_as_it_was_written(tmp_path: Path) -> None:
    results.write_history(tmp_path / "history.ckpt", fold_of().history)
    assert results.read_history(tmp_path / "history.ckpt") == fold_of().history
    results.write_history(tmp_path / "history.ckpt", [])
    assert results.read_history(tmp_path / "history.ckpt") == []


def test_files_of_the_old_format_open(tmp_path: Path) -> None:
    """And once written again they are of the new format, with the same content."""
    run, fold = results.read_run(OLD), results.read_fold(OLD / "fold-1")
    assert run.score.folds == {1: fold.score} and fold.score == 0.5625
    assert run.valid_score == {1: fold.valid_score} and fold.valid_score == 0.59375
    assert run.metric == fold.metric == fold.history[0].metric == "accuracy"
    assert run.metrics["accuracy"] == Spread(0.5625, None) == run.score.spread
    assert fold.history[0].valid_score == fold.valid_score
    assert run.parameters == fold.parameters == ParameterCount(51156, 1930, 2793118)
    assert run.confusion == fold.confusion and len(run.score.per_class) == len(run.classes) == 10
    results.write_run(tmp_path, run)
    results.write_fold(tmp_path, fold)
    assert results.read_run(tmp_path) == run and results.read_fold(tmp_path) == fold
    written = json.loads((tmp_path / "result.json").read_text())
    assert written["score"]["mean"] == 0.5625 and "accuracy" not in written


def test_a_history_of_the_old_format_opens(tmp_path: Path) -> None:
    """As the checkpoint of a run holds it that was interrupted before the format changed."""
    history = json.loads((OLD / "fold-1" / "fold.json").read_text())["history"]
    (tmp_path / "history.ckpt").write_text(json.dumps(history))
    assert results.read_history(tmp_path / "history.ckpt")[0].valid_score == 0.59375


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "Expecting property name"),
        ("[]", "the file should be FoldResult"),
        ('{"test_fold": 1}', "'valid_fold' is missing"),
        ('{"test_fold": "one"}', "test_fold should be int, not 'one'"),
    ],
)
def test_a_damaged_file_is_named_with_the_remedy(content: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "fold.json").write_text(content)
    with pytest.raises(RunError, match="delete it and start the run again") as caught:
        results.read_fold(tmp_path)
    assert str(tmp_path / "fold.json") in str(caught.value) and reason in str(caught.value)


def test_a_wrong_value_deep_inside_is_named(tmp_path: Path) -> None:
    shutil.copy(OLD / "result.json", tmp_path)
    values = json.loads((tmp_path / "result.json").read_text())
    values["accuracy"]["folds"] = {"first": 0.5}
    (tmp_path / "result.json").write_text(json.dumps(values))
    with pytest.raises(RunError, match=r"result.json is damaged \(score.folds has the key 'first'"):
        results.read_run(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"result.json cannot be read \(No such file"):
        results.read_run(tmp_path)


@dataclasses.dataclass
class Inner:
    """Of a test."""

    number: float
    maybe: int | None = None


@dataclasses.dataclass
class Outer:
    """Of a test."""

    by_number: dict[int, Inner]
    several: list[float | list[float]]


def test_dataclasses_become_json_and_come_back() -> None:
    value = Outer({3: Inner(1.5), -1: Inner(2.0, 7)}, [1.0, [2.0, 3.0]])
    assert from_plain(Outer, json.loads(to_json(value))) == value
    read = from_plain(Outer, {"by_number": {"1": {"number": 2, "unknown": 0}}, "several": []})
    assert read == Outer({1: Inner(2.0)}, []) and isinstance(read.by_number[1].number, float)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"by_number": {}}, "'several' is missing"),
        ({"by_number": {}, "several": ["x"]}, r"several\[0\] should be float, not 'x'"),
        ({"by_number": {"1": {"number": True}}, "several": []}, "by_number.1.number should be"),
        ({"by_number": {"1": {"number": 1.0, "maybe": 0.5}}, "several": []}, "maybe should be int"),
    ],
)
def test_other_shapes_are_refused(value: object, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        from_plain(Outer, value)

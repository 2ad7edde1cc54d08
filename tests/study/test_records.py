"""Records of a study as files: old names and formats open, damage is named."""

import dataclasses
import json
from pathlib import Path

import pytest
import studies

from toolkit.errors import RunError
from toolkit.study.records import Record, read_record
from toolkit.typed_json import to_json


@pytest.fixture
def record(tmp_path: Path) -> Record:
    """The record of a run that nobody has made."""
    studies.made_up(tmp_path / "study", {"linear": 0.5}, folds=1, seeds=1)
    [file] = (tmp_path / "study").glob("runs/**/record.json")
    found = read_record(file.parent)
    assert found is not None and found.done
    return found


def old_format(record: Record) -> dict[str, object]:
    """A record as it was while "accuracy" held whatever metric the corpus had."""
    values = json.loads(to_json(record))
    outcome = values["outcome"]
    del outcome["metric"]
    for fold in outcome["folds"]:
        fold["accuracy"] = fold.pop("score")
        fold["valid_accuracy"] = fold.pop("valid_score")
        fold["curves"]["valid_accuracy"] = fold["curves"].pop("valid_score")
    return values


def test_a_record_is_read_as_it_was_written(record: Record, tmp_path: Path) -> None:
    record.write(tmp_path)
    assert read_record(tmp_path) == record
    assert [file.name for file in tmp_path.glob("*.json")] == ["record.json"]


def test_a_record_of_the_old_name_and_format_opens(record: Record, tmp_path: Path) -> None:
    """And the new one takes its place once it is written."""
    (tmp_path / "result.json").write_text(json.dumps(old_format(record)))
    assert read_record(tmp_path) == record
    record.write(tmp_path)
    assert [file.name for file in tmp_path.glob("*.json")] == ["record.json"]
    assert read_record(tmp_path) == record


def test_an_old_record_without_a_confusion_matrix_is_of_map(record: Record, tmp_path: Path) -> None:
    """Of before records named the metric: only corpora with one class per clip had a matrix."""
    values = old_format(record)
    values["outcome"]["folds"][0] |= {"confusion": None, "uar": None}
    (tmp_path / "result.json").write_text(json.dumps(values))
    outcome = read_record(tmp_path).found()
    assert outcome.metric == "mAP" and outcome.folds[0].confusion is None


def test_a_damaged_record_is_named_with_the_remedy(tmp_path: Path) -> None:
    assert read_record(tmp_path) is None
    (tmp_path / "record.json").write_text('{"cell": 3}')
    with pytest.raises(RunError, match=r"record.json is damaged \(cell should be Cell, not 3\)"):
        read_record(tmp_path)


def test_a_failed_run_found_nothing(record: Record) -> None:
    failed = dataclasses.replace(record, outcome=None, status="failed", reason="out of memory")
    with pytest.raises(RunError, match="has failed and found nothing: out of memory"):
        failed.found()

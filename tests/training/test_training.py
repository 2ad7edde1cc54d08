"""The main job through its real command line: results, resuming, several processes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from programs import warm_programs
from recipe import ROOT, SMALL, command, run

from toolkit.data.synthetic.corpus import write_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifty clips of 0.6 s each in ESC-50's layout."""
    folder = tmp_path_factory.mktemp("corpus") / "mini"
    return write_corpus(folder, clips_per_class=5, seconds=0.6, progress=False)


@pytest.fixture(scope="module")
def finished(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Working directory of a finished run of folds 1 and 3 of Soft-MoA, in `out`."""
    work = tmp_path_factory.mktemp("finished")
    done = run(*_arguments(corpus), "--folds", "1,3", cwd=work)
    assert done.returncode == 0, done.stderr
    (work / "stdout.txt").write_text(done.stdout)
    return work


def _arguments(corpus: Path, hparams: str = "hparams/softmoa.yaml") -> list[object]:
    return [hparams, "--data_folder", corpus, *SMALL, "--output_folder", "out"]


def _predictions(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "predictions.csv")


def test_a_run_leaves_what_it_promises(finished: Path, corpus: Path) -> None:
    out = finished / "out"
    for name in ("hyperparams.yaml", "env.log", "train_log.txt", "confusion.png", "result.json"):
        assert (out / name).stat().st_size > 0, name
    assert len(list(out.glob("tensorboard/fold-*/events.*"))) == 2
    assert {p.name for p in out.glob("fold-*")} == {"fold-1", "fold-3"}
    result = json.loads((out / "result.json").read_text())
    predictions = _predictions(out)
    assert sorted(predictions["fold"].unique()) == [1, 3]
    assert len(predictions) == predictions["id"].nunique() == 20
    probabilities = predictions.filter(like="p_")
    assert probabilities.shape[1] == 10
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    chosen = probabilities.columns[probabilities.to_numpy().argmax(axis=1)].str.removeprefix("p_")
    assert (chosen == predictions["prediction"]).all()
    for fold, table in predictions.groupby("fold"):
        share = (table["truth"] == table["prediction"]).mean()
        assert result["score"]["folds"][str(fold)] == pytest.approx(share)
    shares = list(result["score"]["folds"].values())
    assert result["score"]["mean"] == pytest.approx(np.mean(shares))
    assert result["score"]["std"] == pytest.approx(np.std(shares, ddof=1))
    truth = pd.read_csv(corpus / "meta" / "esc50.csv").set_index("filename")["category"]
    assert (predictions["truth"].to_numpy() == truth[predictions["id"]].to_numpy()).all()
    assert result["packages"]["torch"] and result["configuration"]["peft.num_experts"] == 7
    assert len((out / "train_log.txt").read_text().splitlines()) == 4


def test_the_bundle_is_that_of_the_best_validation_fold(finished: Path) -> None:
    result = json.loads((finished / "out" / "result.json").read_text())
    bundle = json.loads((finished / "out" / "bundle" / "bundle.json").read_text())
    best = max(result["valid_score"].values())
    assert bundle["origin"]["valid_score"] == best
    size = sum(file.stat().st_size for file in (finished / "out" / "bundle").iterdir())
    assert size < 400_000


def test_predict_agrees_with_the_run(finished: Path, corpus: Path) -> None:
    bundle = finished / "out" / "fold-1" / "bundle"
    table = _predictions(finished / "out" / "fold-1").set_index("id")
    names = list(table.index[:4])
    files = [str(corpus / "audio" / name) for name in names]
    done = subprocess.run(
        [warm_programs() / "toolkit", "predict", str(bundle), *files, "--json"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for name, line in zip(names, done.stdout.splitlines(), strict=True):
        answer = json.loads(line)
        assert answer["prediction"] == table.loc[name, "prediction"]
        for label, share in answer["probabilities"].items():
            assert share == pytest.approx(table.loc[name, f"p_{label}"], abs=1e-5)


def test_a_finished_run_stays_as_it_is(finished: Path, corpus: Path) -> None:
    """No file but the log of everything changes: not the log of epochs, not the environment."""

    def files() -> dict[Path, bytes]:
        found = (p for p in (finished / "out").rglob("*") if p.is_file() and p.name != "log.txt")
        return {path: path.read_bytes() for path in found}

    before = files()
    again = run(*_arguments(corpus), "--folds", "3", cwd=finished)
    assert again.returncode == 0 and "finished" in again.stdout
    assert files() == before


@pytest.mark.parametrize("debug", [[], ["--debug"]])
def test_files_of_others_are_never_replaced(corpus: Path, tmp_path: Path, debug: list[str]) -> None:
    precious = tmp_path / ("out-debug" if debug else "out") / "precious.txt"
    precious.parent.mkdir()
    precious.write_text("mine")
    refused = run(*_arguments(corpus), *debug, cwd=tmp_path)
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert "precious.txt" in refused.stderr and "--output_folder" in refused.stderr
    assert [file.name for file in precious.parent.iterdir()] == ["precious.txt"]
    assert precious.read_text() == "mine"


def test_a_run_of_the_version_that_named_the_pipeline_continues(
    finished: Path, corpus: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished / "out", tmp_path / "out")
    file = tmp_path / "out" / "hyperparams.yaml"
    text = file.read_text()
    assert "pipeline:" in text
    file.write_text(re.sub(r"(?m)^pipeline:.*$", "pipeline: {name: fbank}", text))
    again = run(*_arguments(corpus), "--folds", "3", cwd=tmp_path)
    assert again.returncode == 0 and "finished" in again.stdout, again.stderr
    file.write_text(re.sub(r"(?m)^pipeline:.*$", "pipeline: {name: pcen}", text))
    assert run(*_arguments(corpus), "--folds", "3", cwd=tmp_path).returncode == 2


def test_another_configuration_is_refused(finished: Path, corpus: Path) -> None:
    other = run(*_arguments(corpus), "--lr", "0.001", "--peft.slots", "2", cwd=finished)
    assert other.returncode == 2
    assert "lr: 0.005 there, 0.001 now" in other.stderr
    assert "peft.slots: 1 there, 2 now" in other.stderr
    assert "--output_folder" in other.stderr and "Traceback" not in other.stderr


def test_test_only_gives_the_same(finished: Path, corpus: Path) -> None:
    before = _predictions(finished / "out")
    again = run(*_arguments(corpus), "--folds", "1,3", "--test_only", "true", cwd=finished)
    assert again.returncode == 0, again.stderr
    pd.testing.assert_frame_equal(before, _predictions(finished / "out"), atol=1e-6)
    untrained = run(*_arguments(corpus), "--folds", "2", "--test_only", "true", cwd=finished)
    assert untrained.returncode == 2 and "train first" in untrained.stderr


def test_killed_and_started_again_ends_the_same(corpus: Path, tmp_path: Path) -> None:
    arguments = [
        *_arguments(corpus, "hparams/lora.yaml"), "--folds", "2", "--batch_size", "3",
        "--peft.dropout", "0.1", "--ckpt_interval_minutes", "0.00001",
    ]  # fmt: skip
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    assert run(*arguments, cwd=whole).returncode == 0
    process = subprocess.Popen(
        command(*arguments), cwd=killed, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _wait_for_epoch(killed / "out" / "fold-2" / "checkpoints", 2, process)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert not (killed / "out" / "result.json").exists()
    resumed = run(*arguments, cwd=killed)
    assert resumed.returncode == 0, resumed.stderr
    assert "continuing after epoch 1" in resumed.stdout
    expected, found = _predictions(whole / "out"), _predictions(killed / "out")
    pd.testing.assert_frame_equal(expected, found, check_exact=True)
    logs = [(folder / "out" / "train_log.txt").read_text() for folder in (whole, killed)]
    assert logs[0] == logs[1]


def _wait_for_epoch(checkpoints: Path, epoch: int, process: subprocess.Popen) -> None:
    """Wait until a checkpoint within that epoch exists."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        for meta in checkpoints.glob("CKPT*/CKPT.yaml"):
            try:
                inside = not yaml.safe_load(meta.read_text())["end-of-epoch"]
                if inside and int((meta.parent / "epoch.ckpt").read_text()) == epoch:
                    return
            except (OSError, ValueError):  # deleted meanwhile
                continue
        time.sleep(0.01)
    raise AssertionError("the run ended before it could be killed")


def test_two_processes_equal_one(corpus: Path, tmp_path: Path) -> None:
    arguments = [
        *_arguments(corpus, "hparams/adapter.yaml"), "--folds", "4",
        "--batch_size", "7", "--grad_accumulation_factor", "2",
    ]  # fmt: skip
    tables = []
    for processes in (1, 2):
        work = tmp_path / str(processes)
        work.mkdir()
        done = run(*arguments, cwd=work, processes=processes)
        assert done.returncode == 0, done.stderr
        tables.append(_predictions(work / "out"))
    assert len(tables[0]) == 10
    pd.testing.assert_frame_equal(*tables, atol=1e-5)
    results = [json.loads((tmp_path / n / "out" / "result.json").read_text()) for n in "12"]
    assert results[0]["score"] == results[1]["score"]


@pytest.mark.parametrize("name", ["linear", "full"])
def test_debug_on_the_embedded_default(name: str, tmp_path: Path) -> None:
    done = run(f"hparams/{name}.yaml", "--debug", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "embedded demonstration" in done.stdout and "--data_folder" in done.stdout
    results = list(tmp_path.glob("results/ESC50-embedded/*/10-debug/result.json"))
    assert len(results) == 1
    assert len(json.loads(results[0].read_text())["score"]["folds"]) == 1


def test_real_sound(real_data: Path, tmp_path: Path) -> None:
    done = run(
        "hparams/softmoa.yaml", "--data_folder", real_data / "ESC-10", "--backbone", "ast_tiny",
        "--debug", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "400 clips, 10 classes, folds 1, 2, 3, 4, 5; tested: fold 1" in done.stdout


def test_nan_is_refused_with_the_remedy(corpus: Path, tmp_path: Path) -> None:
    done = run(*_arguments(corpus), "--lr", "1e12", "--folds", "1", cwd=tmp_path)
    assert done.returncode == 2
    assert "the loss became" in done.stderr and "--lr" in done.stderr


def test_paths_work_from_the_recipe_folder_too(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "train.py", "hparams/softmo.yaml"],
        cwd=ROOT / "recipes" / "ESC50",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "did you mean 'softmoa'" in done.stderr
    assert "hparams/softmoa.yaml" in done.stderr

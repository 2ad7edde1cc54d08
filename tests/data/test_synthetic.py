"""The embedded corpus: reproducible by seed, in ESC-50's layout, whole or not there."""

import csv
import json
import os
import re
import wave
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from toolkit.data.synthetic import corpus as files
from toolkit.data.synthetic.corpus import write_corpus
from toolkit.data.synthetic.scene import make_clip
from toolkit.data.synthetic.sounds import CLASSES, NEIGHBOURS, TARGETS
from toolkit.errors import DataError, PlaceError

SMALL = {"clips_per_class": 5, "seconds": 0.5, "sample_rate": 8000, "progress": False}


def contents(folder: Path) -> dict[str, bytes]:
    """Path within the folder -> bytes, for every file."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def stamps(folder: Path) -> dict[Path, int]:
    """Modification time of every file and folder."""
    return {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}


def visible(folder: Path) -> list[str]:
    """The content of a folder, without the lock."""
    return sorted(name for name in os.listdir(folder) if name != ".corpus.lock")


def table(folder: Path) -> list[dict[str, str]]:
    """The rows of the metadata table."""
    with (folder / "meta" / "esc50.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def samples(path: Path) -> np.ndarray:
    """The 16-bit samples of a WAV file."""
    with wave.open(str(path)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("synthetic") / "corpus", **SMALL)


# ---------------------------------------------------------------- determinism


def test_same_seed_gives_the_same_bytes(corpus, tmp_path):
    assert contents(write_corpus(tmp_path / "again", **SMALL)) == contents(corpus)


def test_other_seed_gives_other_clips_under_the_same_names(corpus, tmp_path):
    first, second = contents(corpus), contents(write_corpus(tmp_path / "other", seed=1, **SMALL))
    assert first.keys() == second.keys()
    audio = [name for name in first if name.startswith("audio")]
    assert all(first[name] != second[name] for name in audio)


def test_a_clip_does_not_depend_on_how_many_there_are(corpus, tmp_path):
    larger = contents(write_corpus(tmp_path / "larger", **{**SMALL, "clips_per_class": 10}))
    audio = {name: data for name, data in contents(corpus).items() if name.startswith("audio")}
    assert len(audio) == 50
    assert all(larger[name] == data for name, data in audio.items())


def test_a_clip_does_not_depend_on_the_order():
    wanted = [(name, number) for name in CLASSES for number in (3, 0)]
    settings = {"seed": 7, "seconds": 0.5, "sample_rate": 8000}
    forwards = {key: make_clip(*key, **settings) for key in wanted}
    backwards = {key: make_clip(*key, **settings) for key in reversed(wanted)}
    assert all(np.array_equal(forwards[key], backwards[key]) for key in wanted)


# ---------------------------------------------------------------- layout


def test_layout_and_columns(corpus):
    rows = table(corpus)
    assert list(rows[0]) == ["filename", "fold", "target", "category", "esc10", "src_file", "take"]
    assert sorted(row["filename"] for row in rows) == sorted(os.listdir(corpus / "audio"))
    for row in rows:
        parts = re.fullmatch(r"(\d)-(\d{6})-([A-Z])-(\d+)\.wav", row["filename"]).groups()
        assert parts == (row["fold"], row["src_file"], row["take"], row["target"])
        assert TARGETS[row["category"]] == int(row["target"])
    assert len({row["src_file"] for row in rows}) == len(rows)
    assert json.loads((corpus / "synthetic.json").read_text())["clips_per_class"] == 5


def test_ten_classes_whose_targets_are_not_contiguous():
    assert len(CLASSES) == 10
    assert CLASSES.keys() == TARGETS.keys() == NEIGHBOURS.keys()
    assert len(set(TARGETS.values())) == 10
    assert sorted(TARGETS.values()) != list(range(10))
    assert all(name not in near and set(near) <= set(CLASSES) for name, near in NEIGHBOURS.items())


def test_folds_are_balanced(tmp_path):
    rows = table(write_corpus(tmp_path / "corpus", **{**SMALL, "clips_per_class": 10}))
    counts = Counter((row["category"], row["fold"]) for row in rows)
    assert counts == {(name, fold): 2 for name in CLASSES for fold in "12345"}


# ---------------------------------------------------------------- sound


def test_files_are_mono_pcm_neither_silent_nor_clipped(corpus):
    for path in (corpus / "audio").iterdir():
        with wave.open(str(path)) as file:
            assert (file.getnchannels(), file.getsampwidth()) == (1, 2)
            assert (file.getframerate(), file.getnframes()) == (8000, 4000)
        peak = np.abs(samples(path).astype(int)).max()
        assert 1000 < peak < 32000, path.name


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize(("seconds", "sample_rate"), [(0.25, 8000), (0.7, 16000), (2.5, 22050)])
def test_synthesisers(name, seconds, sample_rate):
    for seed in range(3):
        signal = CLASSES[name](np.random.default_rng(seed), seconds, sample_rate)
        assert signal.shape == (round(seconds * sample_rate),)
        assert signal.dtype == np.float64
        assert np.isfinite(signal).all()
        assert np.abs(signal).max() > 1e-3
        again = CLASSES[name](np.random.default_rng(seed), seconds, sample_rate)
        assert np.array_equal(signal, again)


@pytest.mark.parametrize("name", CLASSES)
def test_clips_are_finite_and_differ(name):
    clips = [make_clip(name, i, seed=0, seconds=0.5, sample_rate=16000) for i in range(8)]
    assert all(clip.shape == (8000,) and np.isfinite(clip).all() for clip in clips)
    assert all(0.05 < np.abs(clip).max() < 0.95 for clip in clips)
    correlation = np.abs(np.corrcoef(clips) - np.eye(len(clips)))
    assert correlation.max() < 0.7


def test_odd_lengths_and_rates(tmp_path):
    folder = write_corpus(
        tmp_path / "odd", clips_per_class=5, seconds=0.5003, sample_rate=11025, progress=False
    )
    assert {len(samples(path)) for path in (folder / "audio").iterdir()} == {5516}


# ---------------------------------------------------------------- all or nothing


def test_second_call_writes_nothing(corpus):
    before = stamps(corpus.parent)
    assert write_corpus(corpus, **SMALL) == corpus
    assert stamps(corpus.parent) == before


@pytest.mark.parametrize("lost", ["meta/esc50.csv", "audio/1-100000-A-0.wav"])
def test_a_folder_that_lacks_a_file_is_made_again(corpus, tmp_path, lost):
    folder = write_corpus(tmp_path / "corpus", **SMALL)
    (folder / lost).unlink()
    write_corpus(folder, **SMALL)
    assert contents(folder) == contents(corpus)
    assert visible(tmp_path) == ["corpus"]


def test_a_truncated_clip_is_made_again(corpus, tmp_path):
    folder = write_corpus(tmp_path / "corpus", **SMALL)
    clip = folder / "audio" / "1-100000-A-0.wav"
    clip.write_bytes(clip.read_bytes()[:-2])
    write_corpus(folder, **SMALL)
    assert contents(folder) == contents(corpus)


def test_other_settings_or_another_generator_replace_the_corpus(corpus, tmp_path, monkeypatch):
    folder = write_corpus(tmp_path / "corpus", seed=3, **SMALL)
    write_corpus(folder, **SMALL)
    assert contents(folder) == contents(corpus)
    monkeypatch.setattr(files, "GENERATOR_VERSION", files.GENERATOR_VERSION + 1)
    before = (folder / "meta" / "esc50.csv").stat().st_ino
    write_corpus(folder, **SMALL)
    assert (folder / "meta" / "esc50.csv").stat().st_ino != before


class Interrupted(BaseException):
    """Stands in for a signal during the work."""


def test_an_interrupted_call_leaves_nothing_and_the_next_one_starts_again(
    corpus, tmp_path, monkeypatch
):
    def interrupt(path, signal, sample_rate):
        if path.name.endswith("-13.wav"):
            raise Interrupted
        path.write_bytes(b"half")

    with monkeypatch.context() as patch:
        patch.setattr(files, "_write_wav", interrupt)
        with pytest.raises(Interrupted):
            write_corpus(tmp_path / "corpus", **SMALL)
    assert visible(tmp_path) == []
    assert contents(write_corpus(tmp_path / "corpus", **SMALL)) == contents(corpus)


def test_the_leftover_of_a_killed_process_is_not_taken_for_a_corpus(corpus, tmp_path):
    leftover = tmp_path / ".corpus.partial"
    (leftover / "audio").mkdir(parents=True)
    (leftover / "synthetic.json").write_bytes((corpus / "synthetic.json").read_bytes())
    assert contents(write_corpus(tmp_path / "corpus", **SMALL)) == contents(corpus)
    assert not leftover.exists()


def test_of_two_writers_at_once_one_writes(corpus, tmp_path, monkeypatch):
    folder, fill, fills = tmp_path / "corpus", files._fill, []

    def counted(*args):
        fills.append(args)
        fill(*args)

    monkeypatch.setattr(files, "_fill", counted)
    with ThreadPoolExecutor(2) as pool:
        for made in [pool.submit(write_corpus, folder, **SMALL) for _ in range(2)]:
            assert made.result() == folder
    assert len(fills) == 1
    assert contents(folder) == contents(corpus)


# ---------------------------------------------------------------- refusals


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(PlaceError, match=r"not a synthetic corpus.*thesis.txt"):
        write_corpus(tmp_path, **SMALL)
    assert contents(tmp_path) == {"thesis.txt": b"precious"}


@pytest.mark.parametrize(
    ("setting", "value"),
    [("seed", -1), ("clips_per_class", 0), ("clips_per_class", 7), ("seconds", 0.1),
     ("seconds", float("nan")), ("sample_rate", 4000)],
)  # fmt: skip
def test_impossible_settings_are_refused(tmp_path, setting, value):
    with pytest.raises(DataError, match=setting):
        write_corpus(tmp_path / "corpus", **{**SMALL, setting: value})
    assert os.listdir(tmp_path) == []

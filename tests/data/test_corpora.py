"""Corpora: miniatures in the original layouts are read correctly; leaks and damage are errors."""

import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.cli import main
from toolkit.data.corpora import fluent_speech_commands, iemocap, speech_commands
from toolkit.data.corpora.crema_d import CremaD
from toolkit.data.corpora.fluent_speech_commands import FluentSpeechCommands
from toolkit.data.corpora.folder import Folder
from toolkit.data.corpora.fsd50k import FSD50K
from toolkit.data.corpora.iemocap import IEMOCAP
from toolkit.data.corpora.miniature import write_tones
from toolkit.data.corpora.speech_commands import SpeechCommands
from toolkit.data.corpora.urbansound8k import UrbanSound8K
from toolkit.data.manifest import Corpus, Header, Manifest, copied, untrained
from toolkit.data.splits import FIXED, TEST, TRAIN, VALID, Split, stratified_parts
from toolkit.data.survey import picture, survey
from toolkit.errors import ConfigError, DataError
from toolkit.registry import CORPORA


def embedded(corpus: Corpus, folder: Path) -> Manifest:
    """The manifest of a corpus's miniature."""
    corpus.embed(folder / "corpus")
    return corpus.manifest(folder / "corpus")


def refused(corpus: Corpus, folder: Path) -> str:
    """The error message for a folder."""
    with pytest.raises(DataError) as caught:
        corpus.manifest(folder)
    return str(caught.value)


def rewrite(path: Path, column: str, old: str, new: str) -> None:
    """Change the first cell with a given text in a column of a CSV file."""
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    table.loc[table.index[table[column] == old][0], column] = new
    table.to_csv(path, index=False)


# ---------------------------------------------------------------- the parts that are made


@settings(max_examples=60, deadline=None)
@given(data=st.data(), count=st.integers(1, 80), classes=st.integers(1, 4))
def test_made_parts_keep_groups_whole(data: st.DataObject, count: int, classes: int) -> None:
    labels = np.array(data.draw(st.lists(st.integers(0, classes - 1), min_size=count,
                                         max_size=count)))  # fmt: skip
    groups = data.draw(st.lists(st.sampled_from("abcdefgh"), min_size=count, max_size=count))
    parts = stratified_parts(np.eye(classes)[labels], groups, (0.7, 0.1, 0.2), seed=1)
    assert all(len({p for p, g in zip(parts, groups, strict=True) if g == name}) == 1
               for name in set(groups))  # fmt: skip
    assert set(parts) <= {0, 1, 2}


@settings(max_examples=40, deadline=None)
@given(counts=st.lists(st.integers(10, 60), min_size=1, max_size=4), seed=st.integers(0, 9))
def test_single_clips_are_shared_out_within_one_of_the_share(counts: list[int], seed: int) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    shares = (0.7, 0.1, 0.2)
    parts = stratified_parts(np.eye(len(counts))[labels], list(map(str, range(len(labels)))),
                             shares, seed)  # fmt: skip
    for label, total in enumerate(counts):
        for part, share in enumerate(shares):
            assert abs(np.sum((labels == label) & (parts == part)) - share * total) <= 1


def test_another_seed_makes_other_parts() -> None:
    classes, names = np.eye(2)[np.arange(60) % 2], list(map(str, range(60)))
    first, again, other = (stratified_parts(classes, names, (0.5, 0.5), s) for s in (0, 0, 1))
    assert (first == again).all() and (first != other).any()


# ---------------------------------------------------------------- the manifest


def table(**columns: list) -> pd.DataFrame:
    """A table of clips, all of the first class unless labels are given."""
    count = len(columns["path"])
    ids = [str(i) for i in range(count)]
    return pd.DataFrame({"id": ids, "label": [0] * count, **columns})


def test_a_file_and_a_group_in_two_folds_are_refused() -> None:
    with pytest.raises(DataError, match="the file a is in folds 1, 2"):
        Manifest("test", table(path=["a", "a", "b"], fold=[1, 2, 2]), ["x", "y"])
    with pytest.raises(DataError, match="the group s is in folds 1, 3"):
        Manifest("test", table(path=["a", "b"], fold=[1, 3], group=["s", "s"]), ["x", "y"])
    whole = table(path=["a", "a", "b", "c"], fold=[1, 1, 2, 3], group=["s", "s", None, None])
    whole = whole.assign(start=[0.0, 1.0, np.nan, np.nan], stop=[1.0, 2.0, np.nan, np.nan])
    assert Manifest("test", whole, ["x", "y"]).splits[0] == Split((3,), 2, 1)


def test_copies_are_found_across_folds_only() -> None:
    clips = table(path=["a", "b", "c", "d"], fold=[1, 1, 2, 2])
    assert copied(clips, {"a": "1", "b": "1", "c": "2", "d": "3"}) == []
    (found,) = copied(clips, {"a": "1", "b": "2", "c": "1", "d": "3"})
    assert found.startswith("a, c hold the same sound in folds 1, 2")


def test_labels_of_the_wrong_shape_are_refused() -> None:
    labels = [np.array([1, 0]), np.array([1, 0, 0])]
    clips = table(path=["a", "b"], fold=[1, 2]).assign(label=pd.Series(labels, dtype=object))
    with pytest.raises(DataError, match="1 has a label without a class"):
        Manifest("test", clips, ["x", "y"], FIXED, multi_label=True)


# ---------------------------------------------------------------- UrbanSound8K


def test_urbansound8k(tmp_path: Path) -> None:
    manifest = embedded(UrbanSound8K(), tmp_path)
    assert len(manifest.clips) == 100 and manifest.folds == list(range(1, 11))
    for clip in manifest.clips.itertuples():
        assert f"/fold{clip.fold}/" in clip.path and clip.id.split("-")[1] == str(clip.label)
    assert manifest.splits[9] == Split((2, 3, 4, 5, 6, 7, 8, 9), 1, 10)


def test_urbansound8k_reshuffled_is_refused(tmp_path: Path) -> None:
    embedded(UrbanSound8K(), tmp_path)
    path = tmp_path / "corpus" / "metadata" / "UrbanSound8K.csv"
    rewrite(path, "fsID", "200", "100")
    assert "the group 100 is in folds 1, 2" in refused(UrbanSound8K(), tmp_path / "corpus")
    rewrite(path, "class", "siren", "sirene")
    (tmp_path / "corpus" / "audio" / "fold3" / "300-0-0-0.wav").unlink()
    message = refused(UrbanSound8K(), tmp_path / "corpus")
    assert "the class 'sirene'" in message and "300-0-0-0.wav is missing" in message


# ---------------------------------------------------------------- Speech Commands


def test_all_words(tmp_path: Path) -> None:
    manifest = embedded(SpeechCommands(), tmp_path)
    assert len(manifest.classes) == 12 and manifest.splits == list(FIXED)
    speaker = manifest.clips["id"].str.extract(r"/(\d+)_")[0].astype(int)
    expected = speaker.map({4: VALID, 5: TEST}).fillna(TRAIN)
    assert (manifest.clips["fold"] == expected).all() and len(manifest.clips) == 72


def test_twelve_classes(tmp_path: Path) -> None:
    manifest = embedded(SpeechCommands(protocol="twelve"), tmp_path)
    clips = manifest.clips.assign(name=[manifest.classes[i] for i in manifest.clips["label"]])
    assert manifest.classes[-2:] == ["_silence_", "_unknown_"] and len(manifest.classes) == 12
    test = clips[clips["fold"] == TEST]
    assert test["path"].str.contains("test_set").all() and (test["name"].value_counts() == 1).all()
    assert not clips[clips["fold"] != TEST]["id"].str.contains("00000005").any()
    silence = clips[(clips["name"] == "_silence_") & (clips["fold"] != TEST)]
    assert set(silence[silence["fold"] == VALID]["id"].str.split("@").str[0]) == {
        "_background_noise_/running_tap.wav"
    }
    assert (silence["stop"] - silence["start"] == 1).all() and silence["stop"].max() <= 3.2
    unknown = clips[(clips["name"] == "_unknown_") & (clips["fold"] != TEST)]
    assert set(unknown["id"].str.split("/").str[0]) == {"bed", "cat"}


def test_silence_is_cut_as_tensorflow_datasets_cuts_it() -> None:
    """running_tap.wav of v2 has 978,488 samples: 10,102 - 9,981 = 121 windows validate."""
    starts = speech_commands._starts(Header(978_488 / 16000, 16000, 1))
    assert len(starts) == 121 and starts[-1] + 1 <= 978_488 / 16000
    assert starts == [i / 16000 for i in range(0, 978_488 - 16000, 8000)]


def test_speech_commands_refuses(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    embedded(SpeechCommands(), tmp_path)
    lists = folder / "validation_list.txt"
    lists.write_text(lists.read_text() + "yes/00000001_nohash_0.wav\n")
    assert "the group 00000001 is in folds 1, 2" in refused(SpeechCommands(), folder)
    assert len(SpeechCommands(speaker_disjoint=False).manifest(folder).clips) == 72
    lists.write_text("yes/gone_nohash_0.wav\n")
    assert "gone_nohash_0.wav is listed but missing" in refused(SpeechCommands(), folder)
    (folder / "speech_commands_test_set_v0.02").rename(folder / "_elsewhere")
    lists.write_text("")
    twelve = SpeechCommands(protocol="twelve")
    assert "--corpus.test_folder" in refused(twelve, folder)
    named = SpeechCommands(protocol="twelve", test_folder=str(folder / "_elsewhere"))
    assert (named.manifest(folder).clips["fold"] == TEST).sum() == 12


def test_spoken_digits(real_data: Path) -> None:
    folder = real_data / "spoken-digits"
    if not folder.is_dir():
        pytest.skip(f"no spoken digits in {real_data}")
    assert "the group george" in refused(SpeechCommands(), folder)
    manifest = SpeechCommands(speaker_disjoint=False).manifest(folder)
    assert manifest.clips["fold"].value_counts().to_dict() == {TRAIN: 1200, VALID: 150, TEST: 150}
    grouped = Folder(group_pattern="^([a-z]+)_").manifest(folder)
    assert grouped.clips.groupby("group")["fold"].nunique().max() == 1
    assert sorted(grouped.clips["fold"].value_counts()) == [500, 500, 500]


# ---------------------------------------------------------------- the others


def test_fluent_speech_commands(tmp_path: Path) -> None:
    assert len(set(fluent_speech_commands.CLASSES)) == 31
    manifest = embedded(FluentSpeechCommands(), tmp_path)
    assert manifest.splits == list(FIXED)
    assert all(sorted(part["label"]) == list(range(31))
               for _, part in manifest.clips.groupby("fold"))  # fmt: skip
    path = tmp_path / "corpus" / "data" / "test_data.csv"
    rewrite(path, "location", "kitchen", "cellar")
    assert "'cellar') is not one of the 31" in refused(FluentSpeechCommands(), tmp_path / "corpus")
    rewrite(path, "location", "cellar", "kitchen")
    rewrite(path, "speakerId", "testspeaker", "trainspeaker")
    assert "the group trainspeaker" in refused(FluentSpeechCommands(), tmp_path / "corpus")


def test_iemocap_sessions(tmp_path: Path) -> None:
    manifest = embedded(IEMOCAP(), tmp_path)
    assert manifest.folds == [1, 2, 3, 4, 5] and manifest.splits[4] == Split((2, 3, 4), 1, 5)
    assert manifest.clips["label"].value_counts().to_dict() == {0: 20, 1: 20, 2: 20, 3: 20}
    assert all(f"/Session{clip.fold}/" in clip.path for clip in manifest.clips.itertuples())


def test_iemocap_speakers(tmp_path: Path) -> None:
    manifest = embedded(IEMOCAP(protocol="speaker"), tmp_path)
    for split in manifest.splits:
        assert (split.valid - 1) // 2 == (split.test - 1) // 2 and split.valid != split.test
        assert {(n - 1) // 2 for n in split.train} == set(range(5)) - {(split.test - 1) // 2}
    assert [split.test for split in iemocap.speaker_rounds()] == list(range(1, 11))
    for clip in manifest.clips.itertuples():
        assert clip.fold == 2 * int(clip.id[4]) - (clip.id.split("_")[-1][0] == "F")


def test_fsd50k(tmp_path: Path) -> None:
    manifest = embedded(FSD50K(), tmp_path)
    truth = tmp_path / "corpus" / "FSD50K.ground_truth"
    assert manifest.multi_label and manifest.classes[0] == "Bark" and len(manifest.clips) == 40
    dev = pd.read_csv(truth / "dev.csv", dtype=str).set_index("fname")
    for clip in manifest.clips.itertuples():
        place = "eval" if clip.fold == TEST else "dev"
        assert f"FSD50K.{place}_audio" in clip.path
        if clip.fold != TEST:
            names = {manifest.classes[i] for i in np.flatnonzero(clip.label)}
            assert names == set(dev.loc[clip.id, "labels"].split(","))
            assert clip.fold == {"train": TRAIN, "val": VALID}[dev.loc[clip.id, "split"]]
    rewrite(truth / "eval.csv", "labels", "Speech", "Speach")
    assert "'Speach' is not in the vocabulary" in refused(FSD50K(), tmp_path / "corpus")


def test_crema_d(tmp_path: Path) -> None:
    manifest = embedded(CremaD(), tmp_path)
    assert len(manifest.clips) == 60 and manifest.folds == [1, 2, 3, 4, 5]
    assert manifest.clips.groupby("group")["fold"].nunique().max() == 1
    assert (manifest.clips.groupby(["fold", "label"]).size() == 2).all()
    write_tones({tmp_path / "corpus" / "AudioWAV" / "1001_DFA_JOY_XX.wav": 0})
    assert "1001_DFA_JOY_XX.wav is not named" in refused(CremaD(), tmp_path / "corpus")


@pytest.mark.parametrize("corpus", [UrbanSound8K, SpeechCommands, FluentSpeechCommands, IEMOCAP,
                                    FSD50K, CremaD, Folder])  # fmt: skip
def test_an_empty_folder_names_the_remedy(corpus: type[Corpus], tmp_path: Path) -> None:
    assert "--data_folder" in refused(corpus(), tmp_path)


# ---------------------------------------------------------------- your sounds


def write_table(folder: Path, rows: list[dict], name: str = "clips.jsonl") -> None:
    """Write a table of the clips in the miniature that has one subfolder per class."""
    Folder().embed(folder)
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def names(count: int = 12) -> list[str]:
    """Files of the miniature, alternating between classes."""
    return [f"{c}/{n:02d}.wav" for n in range(count) for c in ("bell", "knock", "voice", "water")]


def test_a_folder_a_class(tmp_path: Path) -> None:
    manifest = embedded(Folder(), tmp_path)
    assert manifest.classes == ["bell", "knock", "voice", "water"] and not manifest.official
    assert manifest.splits == list(FIXED)
    counts = manifest.clips.groupby(["label", "fold"]).size().unstack()
    assert (counts[TRAIN].between(8, 9)).all() and (counts[TEST].between(2, 3)).all()
    folds = embedded(Folder(folds=4), tmp_path)
    assert (folds.clips.groupby(["label", "fold"]).size() == 3).all() and len(folds.splits) == 4


def test_a_table_with_everything(tmp_path: Path) -> None:
    rows = [
        {"path": path, "labels": [path.split("/")[0], *(["loud"] if i % 5 == 0 else [])],
         "split": ("train", "train", "val", "test")[i // 4 % 4], "start": 0.1, "end": 0.3}
        for i, path in enumerate(names())
    ]  # fmt: skip
    write_table(tmp_path / "mine", rows)
    manifest = Folder().manifest(tmp_path / "mine")
    assert manifest.multi_label and manifest.classes == ["bell", "knock", "loud", "voice", "water"]
    assert (manifest.clips["start"] == 0.1).all() and (manifest.clips["stop"] == 0.3).all()
    assert manifest.clips["fold"].to_list()[:16:4] == [TRAIN, TRAIN, VALID, TEST]
    assert manifest.clips["label"][0].tolist() == [1, 0, 1, 0, 0]


def test_validation_is_made_of_the_training_part(tmp_path: Path) -> None:
    rows = [{"path": p, "label": p[:4], "split": "test" if i < 8 else "train", "group": p[5:]}
            for i, p in enumerate(names())]  # fmt: skip
    write_table(tmp_path / "mine", rows)
    clips = Folder(valid_share=0.2).manifest(tmp_path / "mine").clips
    assert (clips["fold"].to_numpy()[:8] == TEST).all() and set(clips["fold"][8:]) == {TRAIN, VALID}
    assert clips.groupby("group")["fold"].nunique().max() == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labl": "x"}, "unknown column 'labl'; did you mean 'label'"),
        ({"split": "tranin"}, "the split 'tranin' is not one of"),
        ({"split": "train", "fold": 1}, "not both"),
        ({"fold": 1.5}, "the fold 1.5 is not a whole number"),
        ({"start": 0.3, "stop": 0.2}, "is not a part of"),
        ({"start": 0.3, "stop": 9}, "is not a part of"),
        ({"label": ""}, "line 1: the label is missing"),
        ({"path": "bell/99.wav"}, "99.wav is missing"),
        ({"split": "train"}, "no clip has the split 'test'"),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, change: dict, message: str) -> None:
    rows = [{"path": path, "label": path.split("/")[0], **change} for path in names()]
    write_table(tmp_path / "mine", rows)
    assert message in refused(Folder(), tmp_path / "mine")


def test_leaks_of_a_user_are_refused(tmp_path: Path) -> None:
    rows = [{"path": path, "label": path.split("/")[0], "fold": i // 4 % 3, "start": s}
            for i, path in enumerate(names()) for s in (0.0, 0.1)]  # fmt: skip
    rows[1]["fold"] = 2
    write_table(tmp_path / "mine", rows)
    assert "the file" in refused(Folder(), tmp_path / "mine")


def test_settings_that_cannot_work() -> None:
    for bad in ({"folds": 2}, {"group_pattern": "("}, {"group_pattern": "abc"}):
        with pytest.raises(ConfigError):
            Folder(**bad)


def test_a_hundred_thousand_clips_in_seconds(tmp_path: Path) -> None:
    """A table of 100 files; processor time is measured because the machine may be busy."""
    folder, count = tmp_path / "many", 100_000
    folder.mkdir()
    for number in range(100):
        soundfile.write(folder / f"{number}.wav", np.zeros(8000, dtype=np.float32), 8000)
    number = np.arange(count)
    pd.DataFrame({"path": [f"{n % 100}.wav" for n in number], "label": number % 100 % 10,
                  "start": number // 100 / 2000, "stop": number // 100 / 2000 + 0.2}
                 ).to_csv(folder / "clips.csv", index=False)  # fmt: skip
    begin = time.process_time()
    manifest = Folder().manifest(folder)
    assert len(manifest.clips) == count and time.process_time() - begin < 20


# ---------------------------------------------------------------- the command


def test_check_and_stats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Folder().embed(tmp_path / "mine")
    main(["corpus", "check", str(tmp_path / "mine"), "--as", "folder"])
    assert "48 clips" in capsys.readouterr().out
    picture = tmp_path / "mine.png"
    main(["corpus", "stats", str(tmp_path / "mine"), "--as", "folder:folds=3", "-o", str(picture)])
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split() == ["bell", "12", "4", "4", "4"] for line in lines)
    assert any(line.split() == ["16000", "1", "48"] for line in lines)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_picture_of_classes_of_any_name(tmp_path: Path) -> None:
    names = ["$x_$", "a $ b", r"\frac{1}{", "100 %", "<b>"]
    write_tones({tmp_path / "in" / c / f"{n}.wav": n for c in names for n in range(6)})
    manifest = Folder(folds=3).manifest(tmp_path / "in")
    picture(survey(manifest), "$$").savefig(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_check_counts_and_finds_copies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "us8k"
    UrbanSound8K().embed(folder)
    source, copy = (folder / "audio" / f"fold{n}" / f"{n}00-0-0-0.wav" for n in (1, 2))
    copy.write_bytes(source.read_bytes())
    with pytest.raises(SystemExit):
        main(["corpus", "check", str(folder), "--as", "urbansound8k"])
    message = capsys.readouterr().err
    assert "100 clips instead of the 8,732" in message and "same sound in folds 1, 2" in message


# ---------------------------------------------------------------- cells, and one rule for all


def cells_of(folder: Path, name: str, text: str) -> Manifest:
    """The manifest of a table beside the miniature of one's own sounds."""
    Folder().embed(folder)
    (folder / name).write_bytes(text.encode())
    return Folder(folds=3).manifest(folder)


def test_whole_numbers_stay_whole(tmp_path: Path) -> None:
    """Also beside a row without the cell, where pandas would make floats of all of them."""
    rows = [{"path": path, "label": 7 + i % 2, **({"group": i} if i % 5 else {})}
            for i, path in enumerate(names())]  # fmt: skip
    manifest = cells_of(tmp_path / "mine", "clips.jsonl", "\n".join(map(json.dumps, rows)))
    assert manifest.classes == ["7", "8"]
    groups = manifest.clips["group"]
    assert groups[1] == "1" and groups.isna().sum() == 10
    text = "path,label,group\n" + "".join(
        f"{path},{i % 2},{'' if i % 5 == 0 else i}\n" for i, path in enumerate(names())
    )
    manifest = cells_of(tmp_path / "other", "clips.csv", text)
    assert manifest.classes == ["0", "1"] and manifest.clips["group"][1] == "1"


@pytest.mark.parametrize("name", ["clips.csv", "clips.jsonl"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_marks_and_line_separators_are_text(name: str, mark: str, end: str, tmp_path: Path) -> None:
    """A byte-order mark is no part of the first column, and U+2028 does not end a line."""
    labels = ["a\u2028b", "nan", "None", "1e3", "#5", " x: y "]
    rows = [(path, labels[i % 6]) for i, path in enumerate(names())]
    if name == "clips.csv":
        lines = ["path,label", *(f"{path},{label}" for path, label in rows)]
    else:
        lines = [json.dumps({"path": p, "label": q}, ensure_ascii=False) for p, q in rows]
    manifest = cells_of(tmp_path / "mine", name, mark + end.join(lines) + end)
    assert manifest.classes == sorted(label.strip() for label in labels)


def test_no_label_at_all_is_a_label_of_a_clip_that_may_have_several(tmp_path: Path) -> None:
    rows = [{"path": path, "labels": [[], ["a"], "a;b", ["b", 3]][i % 4]}
            for i, path in enumerate(names())]  # fmt: skip
    manifest = cells_of(tmp_path / "mine", "clips.jsonl", "\n".join(map(json.dumps, rows)))
    assert manifest.multi_label and manifest.classes == ["3", "a", "b"]
    found = [label.tolist() for label in manifest.clips["label"][:4]]
    assert found == [[0, 0, 0], [0, 1, 0], [0, 1, 1], [1, 0, 1]]


def test_names_that_stand_twice_or_alone_are_refused() -> None:
    clips = table(id=["a", "b", "c"], path=["a", "b", "c"], label=[0, 1, 1], fold=[1, 2, 3])
    with pytest.raises(DataError, match="two classes are called 'x'"):
        Manifest("m", clips, ["x", "x"])
    with pytest.raises(DataError, match="two classes are called 'caf\u00e9'"):
        Manifest("m", clips, ["caf\u00e9", "cafe\u0301"])  # one name, composed and decomposed
    with pytest.raises(DataError, match="one class alone, 'x'"):
        Manifest("m", clips.assign(label=0), ["x"])
    for bad in ("caf\udce9", "a\nb", "\x00"):
        with pytest.raises(DataError, match="not UTF-8 or has control characters"):
            Manifest("m", clips, ["x", bad])
    assert Manifest("m", clips, ["\u00a0 \u3000\u200d", "\u0065\u0301"])


def test_one_file_under_two_names(tmp_path: Path) -> None:
    """Different parts of it may be clips, of one fold; the same part may not be two."""
    (tmp_path / "a.wav").touch()
    (tmp_path / "l.wav").symlink_to("a.wav")
    paths = [str(tmp_path / name) for name in ("a.wav", "l.wav")]
    clips = table(id=["a", "b"], path=paths, label=[0, 1], fold=[1, 1])
    with pytest.raises(DataError, match="one file, which is listed twice"):
        Manifest("m", clips, ["x", "y"])
    parts = clips.assign(start=[0.0, 1.0], stop=[1.0, 2.0])
    assert Manifest("m", parts, ["x", "y"])
    with pytest.raises(DataError, match="in folds 1, 2"):
        Manifest("m", parts.assign(fold=[1, 2]), ["x", "y"])


def test_classes_that_no_round_trains_are_named_in_every_corpus() -> None:
    """Refused in one's own sounds and by `corpus check`, and said of a published corpus."""
    clips = table(
        id=list("abcdefgh"), path=list("abcdefgh"), label=[0, 1, 2, 0, 1, 2, 0, 1],
        fold=[1, 2, 1, 3, 3, 2, 4, 4],
    )  # fmt: skip
    [problem] = untrained(Manifest("m", clips, ["x", "y", "z"]))
    assert "'z' has no training clip when fold 1 is tested" in problem
    fixed = clips.assign(fold=[TRAIN, TRAIN, TEST, VALID, TEST, VALID, TRAIN, TRAIN])
    [problem] = untrained(Manifest("m", fixed, ["x", "y", "z"], FIXED))
    assert problem.startswith("the class 'z' has no training clip: ")


@pytest.mark.parametrize("name", [n for n in CORPORA.names() if n != "synthetic"])
def test_miniatures_train_every_class(name: str, tmp_path: Path) -> None:
    corpus = CORPORA.create(name)
    try:
        corpus.embed(tmp_path / name)
    except DataError:
        pytest.skip("it has no miniature")
    assert untrained(corpus.manifest(tmp_path / name)) == []


def test_a_pattern_that_never_ends_is_refused(tmp_path: Path) -> None:
    write_tones(
        {tmp_path / name / f"{name}.wav": place for place, name in enumerate(("a" * 40, "b"))}
    )
    with pytest.raises(ConfigError, match="'group_pattern' takes more than 2 seconds"):
        Folder(group_pattern="^((a|a)+)+$").manifest(tmp_path)

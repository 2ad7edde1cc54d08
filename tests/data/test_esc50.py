"""ESC-50: all problems of a folder are reported together; the archive is downloaded completely."""

import errno
import io
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from http.client import IncompleteRead
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from toolkit.data.corpora import esc50
from toolkit.data.corpora.esc50 import ESC50
from toolkit.data.manifest import Manifest
from toolkit.errors import DataError

CLASSES = {7: "rain", 0: "dog", 40: "helicopter"}  # the numbers of ESC-50, with gaps
CLIPS = 30


def write_corpus(folder: Path) -> pd.DataFrame:
    """Two short clips for each of three classes in each of five folds; the last is not ESC-10."""
    (folder / "audio").mkdir(parents=True)
    (folder / "meta").mkdir()
    rows = []
    for target, category in CLASSES.items():
        for fold in range(1, 6):
            for take in "AB":
                name = f"{fold}-{100 + target}-{take}-{target}.wav"
                soundfile.write(folder / "audio" / name, np.full(80, 0.1), 8000)
                rows.append([name, fold, target, category, target != 40, 100 + target, take])
    columns = ["filename", "fold", "target", "category", "esc10", "src_file", "take"]
    table = pd.DataFrame(rows, columns=columns)
    table.to_csv(folder / "meta" / "esc50.csv", index=False)
    return table


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A miniature ESC-50."""
    write_corpus(tmp_path / "corpus")
    return tmp_path / "corpus"


def rewrite(folder: Path, change: Callable[[pd.DataFrame], pd.DataFrame | None]) -> None:
    """Change the table of a corpus, in place or by returning another one."""
    path = folder / "meta" / "esc50.csv"
    table = pd.read_csv(path).astype(object)
    changed = change(table)
    (table if changed is None else changed).to_csv(path, index=False)


def refused(folder: Path, **settings: bool) -> str:
    """The error message for a folder."""
    with pytest.raises(DataError) as caught:
        ESC50(**settings).manifest(folder)
    return str(caught.value)


def test_a_right_corpus(folder: Path) -> None:
    manifest = ESC50().manifest(folder)
    assert manifest.corpus == "ESC-50" and manifest.folds == [1, 2, 3, 4, 5]
    assert manifest.classes == ["dog", "rain", "helicopter"]
    assert len(manifest.clips) == CLIPS and manifest.clips["id"].is_unique
    for clip in manifest.clips.itertuples():
        assert Path(clip.path) == folder / "audio" / clip.id and Path(clip.path).is_file()
        fold, _, _, target = clip.id.removesuffix(".wav").split("-")
        assert clip.fold == int(fold)
        assert manifest.classes[clip.label] == CLASSES[int(target)]


def test_labels_follow_the_order_of_the_targets(folder: Path) -> None:
    manifest = ESC50().manifest(folder)
    numbers = manifest.clips["id"].str.extract(r"-(\d+)\.wav")[0].astype(int)
    assert dict(zip(numbers, manifest.clips["label"], strict=True)) == {0: 0, 7: 1, 40: 2}


def test_esc10_is_a_flag(folder: Path) -> None:
    (folder / "audio" / "1-140-A-40.wav").unlink()  # outside ESC-10: not its concern
    manifest = ESC50(esc10=True).manifest(folder)
    assert manifest.corpus == "ESC-10" and manifest.classes == ["dog", "rain"]
    assert len(manifest.clips) == 20 and sorted(manifest.clips["label"].unique()) == [0, 1]
    assert "1-140-A-40.wav is missing" in refused(folder)


@pytest.mark.parametrize("values", [("TRUE", "FALSE"), ("true", "false"), ("True", "0")])
def test_esc10_however_it_is_written(values: tuple[str, str], folder: Path) -> None:
    def write(table: pd.DataFrame) -> None:
        table["esc10"] = [values[0] if flag else values[1] for flag in table["esc10"]]

    rewrite(folder, write)
    assert len(ESC50(esc10=True).manifest(folder).clips) == 20


def test_esc10_of_a_corpus_without_it(folder: Path) -> None:
    rewrite(folder, lambda table: table.assign(esc10=False))
    assert "there are no clips" in refused(folder, esc10=True)


# What is refused


def test_not_the_folder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    wrong = [tmp_path / "absent", tmp_path / "empty", folder / "audio", folder / "meta/esc50.csv"]
    for other in wrong:
        message = refused(other)
        assert message.startswith(f"{other} is not ESC-50")
        assert "--data_folder" in message and "--download true" in message


def test_a_missing_column_and_what_stands_there(folder: Path) -> None:
    rewrite(folder, lambda table: table.rename(columns={"filename": "file_name", "fold": "Fold"}))
    message = refused(folder)
    assert "2 problems" in message and str(folder / "meta" / "esc50.csv") in message
    assert "column 'filename' is missing; did you mean 'file_name'" in message
    assert "column 'fold' is missing; did you mean 'Fold'?" in message


def test_columns_that_are_not_needed(folder: Path) -> None:
    rewrite(folder, lambda table: table.drop(columns=["src_file", "take"]))
    assert len(ESC50().manifest(folder).clips) == CLIPS


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00binary\x00\n\x81", b'a,b\n"1,2,3\n'])
def test_a_table_that_is_no_csv(content: bytes, folder: Path) -> None:
    path = folder / "meta" / "esc50.csv"
    path.write_bytes(content)
    assert refused(folder).startswith(f"{path} is not a CSV file")


def test_a_table_without_lines(folder: Path) -> None:
    rewrite(folder, lambda table: table[:0])
    assert "there are no clips" in refused(folder)


@pytest.mark.parametrize("fold", [0, 6, -1, "x", 1.5])
def test_unknown_folds_are_named_and_no_others(fold: object, folder: Path) -> None:
    def write(table: pd.DataFrame) -> None:
        table.loc[4, "fold"] = fold

    name = pd.read_csv(folder / "meta" / "esc50.csv")["filename"][4]
    rewrite(folder, write)
    message = refused(folder)
    assert "1 problems" in message and name in message and str(fold) in message
    assert "known: 1 to 5" in message


def test_empty_cells_are_named_by_line(folder: Path) -> None:
    def write(table: pd.DataFrame) -> None:
        table.loc[0, "category"] = None
        table.loc[7, "fold"] = None
        table.loc[9, "take"] = None  # not needed

    rewrite(folder, write)
    message = refused(folder)
    assert "2 problems" in message
    assert "line 2 has an empty cell" in message and "line 9 has an empty cell" in message


def test_a_target_has_one_category(folder: Path) -> None:
    def write(table: pd.DataFrame) -> None:
        table.loc[0, "category"] = "snow"

    rewrite(folder, write)
    assert "target 7 has more than one category" in refused(folder)


def test_a_clip_stands_once(folder: Path) -> None:
    rewrite(folder, lambda table: pd.concat([table, table[3:4]]))
    name = pd.read_csv(folder / "meta" / "esc50.csv")["filename"][3]
    assert f"the id {name} occurs twice" in refused(folder)


def test_twenty_missing_files_are_listed_and_a_count(folder: Path) -> None:
    names = list(pd.read_csv(folder / "meta" / "esc50.csv")["filename"])
    for name in names[:25]:
        (folder / "audio" / name).unlink()
    head, *lines = refused(folder).splitlines()
    assert "ESC-50" in head and str(folder) in head and "25 problems" in head
    assert lines[:20] == [f"  - {folder / 'audio' / name} is missing" for name in names[:20]]
    assert lines[20:] == ["  ... and 5 more"]


def test_all_kinds_of_problems_come_together(folder: Path) -> None:
    table = pd.read_csv(folder / "meta" / "esc50.csv")
    missing, text, empty, silent = (folder / "audio" / name for name in table["filename"][10:14])
    missing.unlink()
    text.write_text("no sound")
    empty.write_bytes(b"")
    soundfile.write(silent, [], 8000)

    def write(table: pd.DataFrame) -> None:
        table.loc[0, "fold"] = 9
        table.loc[1, "category"] = "snow"

    rewrite(folder, write)
    message = refused(folder)
    assert "6 problems" in message
    assert f"{missing} is missing" in message
    assert f"{text}: cannot be read" in message
    assert f"{empty}: cannot be read" in message
    assert f"{silent} contains no samples" in message
    assert "has the fold 9" in message and "more than one category" in message


def test_headerless_audio_is_refused(folder: Path) -> None:
    (folder / "audio" / "x.raw").write_bytes(bytes(100))

    def write(table: pd.DataFrame) -> None:
        table.loc[0, "filename"] = "x.raw"

    rewrite(folder, write)
    assert "x.raw: cannot be read" in refused(folder)


def test_names_of_digits_stay_names(folder: Path) -> None:
    first = pd.read_csv(folder / "meta" / "esc50.csv")["filename"][0]
    (folder / "audio" / first).rename(folder / "audio" / "007")
    rewrite(folder, lambda table: table.replace({"filename": {first: "007"}}))
    assert ESC50().manifest(folder).clips["id"][0] == "007"


def test_a_manifest_refuses_labels_without_a_class() -> None:
    clips = pd.DataFrame({"id": ["a", "b"], "path": ["a", "b"], "label": [0, 2], "fold": 1})
    with pytest.raises(DataError, match="b has a label without a class"):
        Manifest("test", clips, ["x", "y"])
    with pytest.raises(DataError, match="no column 'fold'"):
        Manifest("test", clips.drop(columns="fold"), ["x", "y", "z"])
    assert len(Manifest("test", clips, ["x", "y", "z"]).of_folds([1, 2])) == 2


# The archive


class Response(io.BytesIO):
    """Stands in for the response that urlopen returns."""

    def __init__(self, content: bytes, error: BaseException | None = None) -> None:
        super().__init__(content)
        self.headers = {"Content-Length": str(len(content))}
        self.error = error

    def read(self, size: int = -1) -> bytes:
        """Return the content, then raise the error if there is one."""
        block = super().read(size)
        if not block and self.error is not None:
            raise self.error
        return block


def archive(root: str = "ESC-50-master", without: str = "nothing") -> bytes:
    """A zip archive as GitHub makes it, of a miniature corpus."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(f"{root}/README.md", "ESC-50")
        for number in range(6):
            sound = io.BytesIO()
            noise = np.random.default_rng(number).standard_normal(200) / 9
            soundfile.write(sound, noise, 8000, format="WAV")
            if without != "audio":
                file.writestr(f"{root}/audio/1-{number}-A-0.wav", sound.getvalue())
        lines = ["filename,fold,target,category,esc10"]
        lines += [
            f"1-{number}-A-0.wav,{1 + number % 5},{number % 2},{('dog', 'cat')[number % 2]},True"
            for number in range(6)
        ]
        if without != "meta":
            file.writestr(f"{root}/meta/esc50.csv", "\n".join(lines))
    return buffer.getvalue()


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[[object], list[str]]:
    """Make urlopen return an archive or raise an error; return the list of requested addresses."""

    def serve(answer: bytes | BaseException | Response) -> list[str]:
        asked: list[str] = []

        def urlopen(url: str, timeout: float) -> Response:
            asked.append(url)
            if isinstance(answer, BaseException):
                raise answer
            return answer if isinstance(answer, Response) else Response(answer)

        monkeypatch.setattr(urllib.request, "urlopen", urlopen)
        monkeypatch.setattr(esc50, "CLIPS", 6)
        return asked

    return serve


def failed(folder: Path) -> str:
    """The error message of a failing download, which must not leave any files."""
    with pytest.raises(DataError) as caught:
        ESC50().download(folder)
    assert not folder.exists() or list(folder.iterdir()) == []
    return str(caught.value)


@pytest.mark.parametrize("existing", [False, True])
def test_the_archive_is_unpacked_once(
    existing: bool, serve: Callable[[object], list[str]], tmp_path: Path
) -> None:
    folder = tmp_path / "data" / "esc50"
    if existing:
        folder.mkdir(parents=True)
    asked = serve(archive())
    ESC50().download(folder)
    assert asked == [esc50.URL]
    assert sorted(p.name for p in folder.iterdir()) == ["audio", "meta"]
    assert [p.name for p in folder.parent.iterdir()] == ["esc50"]
    assert len(ESC50().manifest(folder).clips) == 6
    ESC50().download(folder)
    assert len(asked) == 1


@pytest.mark.parametrize(
    "error",
    [
        urllib.error.URLError("Name or service not known"),
        urllib.error.HTTPError(esc50.URL, 404, "Not Found", None, None),
        TimeoutError("timed out"),
        ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_without_internet_the_alternatives_are_named(
    error: Exception, serve: Callable[[object], list[str]], tmp_path: Path
) -> None:
    serve(error)
    message = failed(tmp_path / "esc50")
    assert esc50.URL in message and str(error) in message
    assert "--data_folder" in message and "embedded synthetic corpus" in message


@pytest.mark.parametrize(
    "error",
    [TimeoutError("timed out"), IncompleteRead(b"part", 99), OSError(errno.ENOSPC, "No space")],
    ids=lambda error: type(error).__name__,
)
def test_a_connection_that_breaks(
    error: Exception, serve: Callable[[object], list[str]], tmp_path: Path
) -> None:
    serve(Response(archive()[:500], error))
    message = failed(tmp_path / "esc50")
    assert "cannot be fetched" in message and str(error) in message


@pytest.mark.parametrize(
    "content",
    [b"", b"<html>sign in</html>", archive()[:-100]],
    ids=["nothing", "a page", "cut"],  # an archive holds the time at which it was made
)
def test_an_archive_that_is_none(
    content: bytes, serve: Callable[[object], list[str]], tmp_path: Path
) -> None:
    serve(content)
    message = failed(tmp_path / "esc50")
    assert "was damaged in transfer" in message and "try again" in message


def test_damage_anywhere_in_the_archive(
    serve: Callable[[object], list[str]], tmp_path: Path
) -> None:
    """Damage gives a readable error, unless nothing depends on the damaged bytes."""
    whole = archive()
    refusals = 0
    for place in range(7, len(whole), 61):
        body = bytearray(whole)
        body[place] ^= 0x55
        serve(bytes(body))
        folder = tmp_path / str(place)
        try:
            ESC50().download(folder)
        except DataError:
            refusals += 1
            assert list(folder.iterdir()) == []
        else:
            assert len(ESC50().manifest(folder).clips) == 6
    assert refusals > 20


@pytest.mark.parametrize(
    "content",
    [archive("other-master"), archive(without="audio"), archive(without="meta")],
    ids=["another root", "no audio", "no table"],
)
def test_another_archive(
    content: bytes, serve: Callable[[object], list[str]], tmp_path: Path
) -> None:
    serve(content)
    message = failed(tmp_path / "esc50")
    assert esc50.URL in message and "instead of 6" in message


def test_the_number_of_clips_is_checked(
    serve: Callable[[object], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(archive())
    monkeypatch.setattr(esc50, "CLIPS", 2000)
    assert "holds 6 clips and 1 tables instead of 2000" in failed(tmp_path / "esc50")


def test_an_interrupted_download_leaves_nothing(
    serve: Callable[[object], list[str]], tmp_path: Path
) -> None:
    serve(Response(archive()[:500], KeyboardInterrupt()))
    folder = tmp_path / "esc50"
    with pytest.raises(KeyboardInterrupt):
        ESC50().download(folder)
    assert list(folder.iterdir()) == []
    serve(archive())
    ESC50().download(folder)
    assert len(ESC50().manifest(folder).clips) == 6


@pytest.mark.parametrize("part", ["audio", "meta"])
def test_what_is_there_is_not_touched(
    part: str, serve: Callable[[object], list[str]], tmp_path: Path
) -> None:
    (tmp_path / part).mkdir()
    (tmp_path / part / "mine.wav").write_text("mine")
    asked = serve(archive())
    with pytest.raises(DataError, match="--data_folder"):
        ESC50().download(tmp_path)
    assert not asked and (tmp_path / part / "mine.wav").read_text() == "mine"


def test_a_folder_that_is_a_file(serve: Callable[[object], list[str]], tmp_path: Path) -> None:
    serve(archive())
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be unpacked into"):
        ESC50().download(tmp_path / "file")


# The real one


def test_the_real_esc10(real_data: Path) -> None:
    for flag in (False, True):
        manifest = ESC50(esc10=flag).manifest(real_data / "ESC-10")
        assert len(manifest.clips) == 400 and len(manifest.classes) == 10
        assert manifest.clips["fold"].value_counts().to_dict() == dict.fromkeys(range(1, 6), 80)
        assert manifest.clips["label"].value_counts().to_dict() == dict.fromkeys(range(10), 40)
        counts = manifest.clips.groupby(["fold", "label"]).size()
        assert len(counts) == 50 and (counts == 8).all()
        assert manifest.classes[0] == "dog" and len(set(manifest.classes)) == 10

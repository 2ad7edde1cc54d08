"""Speech Commands v1 and v2 (Warden, arXiv:1804.03209): one spoken word per clip.

Layout: one folder per word with `<speaker>_nohash_<n>.wav` in it, `_background_noise_/`, and
`validation_list.txt` and `testing_list.txt`; clips in neither list train. Two protocols:

- `words`: all words (30 in v1, 35 in v2), the official lists.
- `twelve`: ten commands, silence and everything else. Its test set is a separate archive, unpacked
  into `test_folder`; silence is cut from the background noise, one second every half second,
  `running_tap.wav` for validation and the other files for training, and all other words are
  unknown. This is how TensorFlow Datasets makes it; its parts have 85,511, 10,102 and 4,890 clips
  (v2).

Accuracies of the two are not comparable.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pandas as pd

from toolkit.data.corpora.miniature import write_tones
from toolkit.data.manifest import Corpus, Header, Manifest, headers, refuse
from toolkit.data.splits import FIXED, TEST, TRAIN, VALID
from toolkit.errors import DataError
from toolkit.files import make_once
from toolkit.registry import CORPORA
from toolkit.settings import setting

COMMANDS = ["yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go"]
SILENCE, UNKNOWN = "_silence_", "_unknown_"
NOISE = "_background_noise_"
VALID_NOISE = "running_tap.wav"
LISTS = {"validation_list.txt": VALID, "testing_list.txt": TEST}
WINDOW, HOP = 1.0, 0.5  # seconds of silence, and between their beginnings
PUBLISHED = {30: 64727, 35: 105829}  # words -> clips (v1, v2)
TEST_FOLDERS = ("speech_commands_test_set_v0.02", "speech_commands_test_set_v0.01")


@CORPORA.register("speech_commands", paper="arXiv:1804.03209")
class SpeechCommands(Corpus):
    """Spoken words, v1 or v2: all of them, or ten with silence and unknown."""

    protocol: Literal["words", "twelve"] = setting("words", "all words, or the 12-class protocol")
    test_folder: str | None = setting(
        None, "for `twelve`: its test archive, unpacked; none: in the data folder or beside it"
    )
    speaker_disjoint: bool = setting(True, "refuse lists with a speaker in two parts")

    def published_clips(self, manifest: Manifest) -> int | None:
        """The number of clips in the published corpus; known for the protocol `words` only."""
        return PUBLISHED.get(len(manifest.classes)) if self.protocol == "words" else None

    def manifest(self, folder: Path) -> Manifest:
        """Check the corpus on disk and return its table of clips."""
        clips = self._words(folder)
        words = sorted(clips["word"].unique())
        if self.protocol == "twelve":
            classes = [*COMMANDS, SILENCE, UNKNOWN]
            lacking = sorted(set(COMMANDS) - set(words))
            refuse(f"Speech Commands in {folder}", [f"the word {w} is missing" for w in lacking])
            clips = pd.concat([clips, self._silence(folder), self._test_archive(folder)])
            known = clips["word"].isin([*COMMANDS, SILENCE])
            clips["word"] = clips["word"].where(known, UNKNOWN)
        else:
            classes = words
        places = {word: place for place, word in enumerate(classes)}
        clips["label"] = clips["word"].map(places)
        if not self.speaker_disjoint:
            clips = clips.drop(columns="group")
        name = f"Speech Commands ({len(classes)} classes)"
        clips = clips.drop(columns="word").reset_index(drop=True)
        return Manifest(name, clips, classes, FIXED)

    def _words(self, folder: Path) -> pd.DataFrame:
        """The clips of the archive; for `twelve` without those of the testing list."""
        parts = dict(_listed(folder))
        names = sorted(
            f"{file.parent.name}/{file.name}"
            for file in folder.glob("*/*.wav")
            if not file.parent.name.startswith(("_", "."))
        )
        there = set(names)
        problems = [
            f"{folder / name} is listed but missing" for name in sorted(parts) if name not in there
        ]
        found = headers(folder / name for name in names)
        problems += [header for header in found.values() if isinstance(header, str)]
        if not names:
            problems.append("there are no folders of words with .wav files in them")
        refuse(f"Speech Commands in {folder}", problems)
        clips = pd.DataFrame(
            {
                "id": names,
                "path": [str(folder / name) for name in names],
                "word": [name.split("/")[0] for name in names],
                "fold": [parts.get(name, TRAIN) for name in names],
                "group": [re.split(r"_nohash_", name.split("/")[1])[0] for name in names],
            }
        )
        return clips[clips["fold"] != TEST] if self.protocol == "twelve" else clips

    def _silence(self, folder: Path) -> pd.DataFrame:
        files = sorted((folder / NOISE).glob("*.wav"))
        found = headers(files)
        problems = [header for header in found.values() if isinstance(header, str)]
        names = {file.name for file in files}
        if VALID_NOISE not in names or len(names) < 2:
            problems.append(f"{folder / NOISE} must hold {VALID_NOISE} and other noises")
        refuse(f"Speech Commands in {folder}", problems)
        rows = [
            (f"{NOISE}/{file.name}@{start}", str(file), SILENCE, fold, start, start + WINDOW)
            for file in files
            for fold in [VALID if file.name == VALID_NOISE else TRAIN]
            if isinstance(header := found[str(file)], Header)
            for start in _starts(header)
        ]
        return pd.DataFrame(rows, columns=["id", "path", "word", "fold", "start", "stop"])

    def _test_archive(self, folder: Path) -> pd.DataFrame:
        places = [folder / name for name in TEST_FOLDERS]
        places += [folder.resolve().parent / name for name in TEST_FOLDERS]
        if self.test_folder is not None:
            places = [Path(self.test_folder)]
        place = next((place for place in places if place.is_dir()), None)
        if place is None:
            raise DataError(
                "the 12-class protocol has a separate test archive "
                f"({TEST_FOLDERS[0]}.tar.gz), which is not at {places[0]}: unpack it and name its "
                "folder with `--corpus.test_folder`"
            )
        files = [
            f for w in (*COMMANDS, SILENCE, UNKNOWN) for f in sorted((place / w).glob("*.wav"))
        ]
        problems = [header for header in headers(files).values() if isinstance(header, str)]
        words = [file.parent.name for file in files]
        problems += [f"no clips of {w}" for w in (*COMMANDS, SILENCE, UNKNOWN) if w not in words]
        refuse(f"the test archive in {place}", problems)
        return pd.DataFrame(
            {
                "id": [f"test/{file.parent.name}/{file.name}" for file in files],
                "path": list(map(str, files)),
                "word": words,
                "fold": TEST,
            }
        )

    def embed(self, folder: Path) -> None:
        """Write a miniature: twelve words of six speakers, noise, and the test archive."""
        make_once(folder, write_miniature)


def _listed(folder: Path) -> Iterator[tuple[str, int]]:
    """File and part of each line of the two lists."""
    for name, part in LISTS.items():
        path = folder / name
        if not path.is_file():
            raise DataError(
                f"{path} is missing: name the folder of Speech Commands that holds the words' "
                "folders and the two lists with `--data_folder`"
            )
        for line in path.read_text(encoding="utf-8").split():
            yield line, part


def _starts(header: Header) -> list[float]:
    """Where the windows of silence begin, in seconds; the last one ends before the file does."""
    count = max(0, -(-int((header.seconds - WINDOW) * 1000) // int(HOP * 1000)))
    return [HOP * i for i in range(count)]


def write_miniature(folder: Path) -> None:
    """Fill a folder with a miniature of v2 and, in it, of the 12-class test archive."""
    words = [*COMMANDS, "bed", "cat"]
    tones: dict[Path, int] = {}
    lists: dict[str, list[str]] = {name: [] for name in LISTS}
    for label, word in enumerate(words):
        for speaker in range(6):
            name = f"{word}/{speaker:08x}_nohash_0.wav"
            tones[folder / name] = label
            for file, chosen in zip(LISTS, (4, 5), strict=True):
                lists[file] += [name] if speaker == chosen else []
    for name, lines in lists.items():
        (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    for label, word in enumerate([*COMMANDS, SILENCE, UNKNOWN]):
        tones[folder / TEST_FOLDERS[0] / word / "00000005_nohash_1.wav"] = label
    write_tones(tones)
    write_tones({folder / NOISE / n: 30 for n in (VALID_NOISE, "white_noise.wav")}, seconds=3.2)

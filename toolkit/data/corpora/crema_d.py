"""CREMA-D (Cao et al., 2014): 7442 clips of 91 actors, 6 emotions.

Layout: `AudioWAV/<actor>_<sentence>_<emotion>_<level>.wav`. There is no official split, and random
splits leak speakers. Here the actors are assigned to five folds by their numbers (actor modulo 5),
which needs no list and is the same everywhere.
"""

import re
from pathlib import Path

import pandas as pd

from toolkit.data.corpora.miniature import write_tones
from toolkit.data.manifest import Corpus, Manifest, refuse, unreadable
from toolkit.errors import DataError
from toolkit.files import make_once
from toolkit.registry import CORPORA

CODES = {"ANG": "anger", "DIS": "disgust", "FEA": "fear", "HAP": "happy", "NEU": "neutral",
         "SAD": "sad"}  # fmt: skip
NAME = re.compile(r"(?P<actor>\d{4})_[A-Z]{3}_(?P<code>[A-Z]{3})_(?:XX|X|LO|MD|HI)")
FOLDS = 5


@CORPORA.register("crema_d", paper="10.1109/TAFFC.2014.2336244")
class CremaD(Corpus):
    """Emotions of 91 actors, 6 classes, five folds with different actors."""

    def published_clips(self, manifest: Manifest) -> int:
        """The number of clips in the published corpus."""
        return 7442

    def manifest(self, folder: Path) -> Manifest:
        """Check the corpus on disk and return its table of clips."""
        files = sorted((folder / "AudioWAV").glob("[!.]*.wav"))
        if not files:
            raise DataError(
                f"{folder / 'AudioWAV'} holds no .wav files: name the folder that holds AudioWAV "
                "with `--data_folder`"
            )
        matches = {file: match for file in files if (match := NAME.fullmatch(file.stem))}
        strange = [
            f"{file} is not named <actor>_<sentence>_<emotion>_<level>.wav"
            for file in files
            if file not in matches or matches[file]["code"] not in CODES
        ]
        refuse(f"CREMA-D in {folder}", strange + unreadable(files))
        labels = {code: place for place, code in enumerate(CODES)}
        clips = pd.DataFrame(
            [
                (file.name, str(file), labels[m["code"]], int(m["actor"]) % FOLDS + 1, m["actor"])
                for file, m in matches.items()
            ],
            columns=["id", "path", "label", "fold", "group"],
        )
        return Manifest("CREMA-D", clips, list(CODES.values()))

    def embed(self, folder: Path) -> None:
        """Write a miniature: ten actors, each emotion once."""
        make_once(folder, write_miniature)


def write_miniature(folder: Path) -> None:
    """Fill a folder with a miniature of the corpus."""
    write_tones(
        {
            folder / "AudioWAV" / f"{actor}_DFA_{code}_XX.wav": label
            for actor in range(1001, 1011)
            for label, code in enumerate(CODES)
        }
    )

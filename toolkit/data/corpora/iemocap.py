"""IEMOCAP (Busso et al., 2008): acted dialogues, here with the usual four classes.

Layout: `Session1` to `Session5`, each with `sentences/wav/<dialogue>/<utterance>.wav` and
`dialog/EmoEvaluation/*.txt`. The classes are neutral, happy with excited, angry and sad (5531
utterances); all other labels are left out. There is no official split, and random splits
leak speakers: each round leaves out a session (`session`: the next one validates) or a speaker
(`speaker`: the other speaker of the session validates, the four other sessions train).
"""

import re
from pathlib import Path
from typing import Literal

import pandas as pd

from toolkit.data.corpora.miniature import write_tones
from toolkit.data.manifest import Corpus, Manifest, refuse, unreadable
from toolkit.data.splits import Split
from toolkit.errors import DataError
from toolkit.files import make_once
from toolkit.registry import CORPORA
from toolkit.settings import setting

CLASSES = ["neutral", "happy", "angry", "sad"]
CODES = {"neu": 0, "hap": 1, "exc": 1, "ang": 2, "sad": 3}
SESSIONS = range(1, 6)
LINE = re.compile(r"\[[^\]]*\]\t(?P<name>Ses0(?P<session>\d)\w+_(?P<sex>[FM])\w*)\t(?P<code>\w+)\t")


@CORPORA.register("iemocap", paper="10.1007/s10579-008-9076-6")
class IEMOCAP(Corpus):
    """Emotions in acted dialogues, 4 classes; a session or a speaker is left out."""

    protocol: Literal["session", "speaker"] = setting("session", "what each round leaves out")

    def published_clips(self, manifest: Manifest) -> int:
        """The number of clips in the published corpus."""
        return 5531

    def manifest(self, folder: Path) -> Manifest:
        """Check the corpus on disk and return its table of clips."""
        rows = [row for session in SESSIONS for row in self._session(folder, session)]
        table = pd.DataFrame(rows, columns=["id", "path", "label", "session", "speaker"])
        refuse(f"IEMOCAP in {folder}", unreadable([Path(path) for path in table["path"]]))
        by = self.protocol
        clips = table.assign(fold=table[by], group=table[by]).drop(columns=["session", "speaker"])
        rounds = None if by == "session" else speaker_rounds()
        return Manifest("IEMOCAP", clips, CLASSES, rounds)

    def _session(self, folder: Path, session: int) -> list[tuple[str, str, int, int, int]]:
        """Id, path, label, session and speaker of the utterances of a session."""
        root = folder / f"Session{session}"
        texts = sorted((root / "dialog" / "EmoEvaluation").glob("[!.]*.txt"))
        if not texts:
            raise DataError(
                f"{root}/dialog/EmoEvaluation holds no labels: name the folder that holds "
                "Session1 to Session5 with `--data_folder`"
            )
        rows = []
        for text in texts:
            for found in LINE.finditer(text.read_text(encoding="latin-1")):
                name, code = found["name"], found["code"]
                if code in CODES:
                    path = root / "sentences" / "wav" / name.rsplit("_", 1)[0] / f"{name}.wav"
                    speaker = 2 * session - (found["sex"] == "F")
                    rows.append((name, str(path), CODES[code], session, speaker))
        return rows

    def embed(self, folder: Path) -> None:
        """Write a miniature: each class twice for each of the ten speakers."""
        make_once(folder, write_miniature)


def speaker_rounds() -> list[Split]:
    """Each of the ten speakers is tested, the other of the session validates."""
    rounds = []
    for test in range(1, 11):
        valid = test + 1 if test % 2 else test - 1
        rounds.append(Split(tuple(n for n in range(1, 11) if n not in (test, valid)), valid, test))
    return rounds


def write_miniature(folder: Path) -> None:
    """Fill a folder with a miniature of the corpus, with a label that is left out."""
    tones: dict[Path, int] = {}
    for session in SESSIONS:
        root = folder / f"Session{session}"
        dialogue = f"Ses0{session}F_impro01"
        lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"]
        codes = [*CODES, "neu", "ang", "sad", "xxx"]
        for sex in "FM":
            for number, code in enumerate(codes):
                name = f"{dialogue}_{sex}{number:03d}"
                lines.append(f"[{number}.0 - {number}.4]\t{name}\t{code}\t[2.5, 2.5, 2.5]\n")
                lines.append("C-E2:\tNeutral;\t()\n")
                tones[root / "sentences" / "wav" / dialogue / f"{name}.wav"] = CODES.get(code, 9)
        labels = root / "dialog" / "EmoEvaluation"
        labels.mkdir(parents=True)
        (labels / f"{dialogue}.txt").write_text("".join(lines), encoding="utf-8")
    write_tones(tones)

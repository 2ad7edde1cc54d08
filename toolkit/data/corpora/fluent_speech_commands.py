"""Fluent Speech Commands (Lugosch et al., Interspeech 2019, arXiv:1904.03670): 31 intents.

Layout: `data/{train,valid,test}_data.csv` and `wavs/speakers/<speaker>/*.wav`. A clip has one
label, its whole intent (action, object, location): accuracy over slots is another, easier measure.
The split is official; that no speaker is in two parts is checked.
"""

from pathlib import Path

import pandas as pd

from toolkit.data.corpora.miniature import write_tones
from toolkit.data.manifest import Corpus, Manifest, refuse, unreadable
from toolkit.data.splits import FIXED, TEST, TRAIN, VALID
from toolkit.data.tables import read_csv
from toolkit.files import make_once
from toolkit.registry import CORPORA

PARTS = {"train": TRAIN, "valid": VALID, "test": TEST}
COLUMNS = ["path", "speakerId", "action", "object", "location"]
LANGUAGES = ("none", "Chinese", "Korean", "English", "German")
ROOMS = ("none", "kitchen", "bedroom", "washroom")
INTENTS = [
    *(("change language", what, "none") for what in LANGUAGES),
    *(
        (action, what, room)
        for action in ("activate", "deactivate")
        for what, rooms in (("music", ROOMS[:1]), ("lights", ROOMS), ("lamp", ROOMS[:1]))
        for room in rooms
    ),
    *(
        (action, what, room)
        for action in ("increase", "decrease")
        for what, rooms in (("volume", ROOMS[:1]), ("heat", ROOMS))
        for room in rooms
    ),
    *(("bring", what, "none") for what in ("newspaper", "juice", "socks", "shoes")),
]  # fmt: skip
CLASSES = [" | ".join(intent) for intent in INTENTS]


@CORPORA.register("fluent_speech_commands", paper="arXiv:1904.03670")
class FluentSpeechCommands(Corpus):
    """Spoken commands to a house, 31 intents, a fixed split by speakers."""

    def published_clips(self, manifest: Manifest) -> int:
        """The number of clips in the published corpus."""
        return 30043

    def manifest(self, folder: Path) -> Manifest:
        """Check the corpus on disk and return its table of clips."""
        tables = []
        for name, part in PARTS.items():
            path = folder / "data" / f"{name}_data.csv"
            tables.append(read_csv(path, COLUMNS, "Fluent Speech Commands").assign(fold=part))
        table = pd.concat(tables, ignore_index=True)
        intents = list(zip(table["action"], table["object"], table["location"], strict=True))
        places = {intent: place for place, intent in enumerate(INTENTS)}
        paths = [folder / name for name in table["path"]]
        refuse(
            f"Fluent Speech Commands in {folder}",
            [f"{i} is not one of the 31 intents" for i in dict.fromkeys(intents) if i not in places]
            + unreadable(paths),
        )
        clips = pd.DataFrame(
            {
                "id": table["path"],
                "path": list(map(str, paths)),
                "label": [places[intent] for intent in intents],
                "fold": table["fold"],
                "group": table["speakerId"],
            }
        )
        return Manifest("Fluent Speech Commands", clips, CLASSES, FIXED)

    def embed(self, folder: Path) -> None:
        """Write a miniature: each intent once in each part."""
        make_once(folder, write_miniature)


def write_miniature(folder: Path) -> None:
    """Fill a folder with a miniature of the corpus."""
    tones: dict[Path, int] = {}
    (folder / "data").mkdir()
    for name in PARTS:
        rows = []
        for label, intent in enumerate(INTENTS):
            file = f"wavs/speakers/{name}speaker/{label:02d}.wav"
            tones[folder / file] = label
            rows.append([file, f"{name}speaker", "Say, it", *intent])
        columns = ["path", "speakerId", "transcription", "action", "object", "location"]
        table = pd.DataFrame(rows, columns=columns)
        table.to_csv(folder / "data" / f"{name}_data.csv")
    write_tones(tones)

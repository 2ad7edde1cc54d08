"""UrbanSound8K (Salamon, Jacoby, Bello, ACM MM 2014): 8732 clips of at most 4 s, 10 classes.

Layout: `audio/fold1` to `audio/fold10` and `metadata/UrbanSound8K.csv`. The ten folds are official
and must not be reshuffled: that slices of one recording share a fold is checked.
"""

from pathlib import Path

import pandas as pd

from toolkit.data.corpora.miniature import write_tones
from toolkit.data.manifest import Corpus, Manifest, refuse, unreadable
from toolkit.data.tables import read_csv
from toolkit.files import make_once
from toolkit.registry import CORPORA

TABLE = "metadata/UrbanSound8K.csv"
COLUMNS = ["slice_file_name", "fsID", "fold", "classID", "class"]
CLASSES = [
    "air_conditioner", "car_horn", "children_playing", "dog_bark", "drilling", "engine_idling",
    "gun_shot", "jackhammer", "siren", "street_music",
]  # fmt: skip
FOLDS = range(1, 11)


@CORPORA.register("urbansound8k", paper="10.1145/2647868.2655045")
class UrbanSound8K(Corpus):
    """City sounds, 10 classes, 10 official folds."""

    def published_clips(self, manifest: Manifest) -> int:
        """The number of clips in the published corpus."""
        return 8732

    def manifest(self, folder: Path) -> Manifest:
        """Check the corpus on disk and return its table of clips."""
        table = read_csv(folder / TABLE, COLUMNS, "UrbanSound8K")
        folds = pd.to_numeric(table["fold"], errors="coerce")
        problems = [
            f"{row.slice_file_name} has the fold {row.fold!r} (known: 1 to 10)"
            for row in table[~folds.isin(FOLDS)].itertuples()
        ]
        problems += [
            f"{row.slice_file_name} has the class {row[-1]!r} with the classID {row.classID!r}"
            for row in table[["slice_file_name", "classID", "class"]].itertuples()
            if row[-1] not in CLASSES or str(CLASSES.index(row[-1])) != row.classID
        ]
        paths = [
            folder / "audio" / f"fold{fold}" / name
            for fold, name in zip(table["fold"], table["slice_file_name"], strict=True)
        ]
        refuse(f"UrbanSound8K in {folder}", problems + unreadable(paths))
        clips = pd.DataFrame(
            {
                "id": table["slice_file_name"],
                "path": list(map(str, paths)),
                "label": table["classID"].astype(int),
                "fold": folds.astype(int),
                "group": table["fsID"],
            }
        )
        return Manifest("UrbanSound8K", clips, CLASSES)

    def embed(self, folder: Path) -> None:
        """Write a miniature: one clip of each class in each fold."""
        make_once(folder, write_miniature)


def write_miniature(folder: Path) -> None:
    """Fill a folder with a miniature of the corpus."""
    rows, tones = [], {}
    for fold in FOLDS:
        for number, name in enumerate(CLASSES):
            recording = 100 * fold + number
            file = f"{recording}-{number}-0-0.wav"
            rows.append([file, recording, 0.0, 0.4, 1, fold, number, name])
            tones[folder / "audio" / f"fold{fold}" / file] = number
    write_tones(tones, rate=22050)
    (folder / "metadata").mkdir()
    columns = ["slice_file_name", "fsID", "start", "end", "salience", "fold", "classID", "class"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / TABLE, index=False)

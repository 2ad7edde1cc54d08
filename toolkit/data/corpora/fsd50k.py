"""FSD50K (Fonseca et al., arXiv:2010.00475): 51,197 clips of 0.3 to 30 s, multi-label, 200 classes.

Layout: `FSD50K.dev_audio/`, `FSD50K.eval_audio/` and `FSD50K.ground_truth/` with `dev.csv`,
`eval.csv` and `vocabulary.csv`. The split is official; the metric is the mean average precision.
"""

from pathlib import Path

import pandas as pd

from toolkit.data.corpora.miniature import write_tones
from toolkit.data.manifest import Corpus, Manifest, class_labels, refuse, unreadable
from toolkit.data.splits import FIXED, TEST, TRAIN, VALID
from toolkit.data.tables import read_csv
from toolkit.errors import DataError
from toolkit.files import make_once
from toolkit.registry import CORPORA

TRUTH = "FSD50K.ground_truth"
PARTS = {"train": TRAIN, "val": VALID}


@CORPORA.register("fsd50k", paper="arXiv:2010.00475")
class FSD50K(Corpus):
    """Freesound clips with any of 200 labels, a fixed split, mean average precision."""

    def published_clips(self, manifest: Manifest) -> int:
        """The number of clips in the published corpus."""
        return 51197

    def manifest(self, folder: Path) -> Manifest:
        """Check the corpus on disk and return its table of clips."""
        classes = _vocabulary(folder / TRUTH / "vocabulary.csv")
        dev = read_csv(folder / TRUTH / "dev.csv", ["fname", "labels", "split"], "FSD50K")
        test = read_csv(folder / TRUTH / "eval.csv", ["fname", "labels"], "FSD50K")
        strange = dev[~dev["split"].isin(PARTS)]
        problems = [f"{r.fname} has the split {r.split!r}" for r in strange.itertuples()]
        dev = dev.assign(fold=dev["split"].map(PARTS), folder="FSD50K.dev_audio")
        table = pd.concat([dev, test.assign(fold=TEST, folder="FSD50K.eval_audio")])
        names = table["labels"].str.split(",")
        unknown = sorted({name for row in names for name in row} - set(classes))
        problems += [f"the label {name!r} is not in the vocabulary" for name in unknown]
        paths = [
            folder / part / f"{name}.wav"
            for part, name in zip(table["folder"], table["fname"], strict=True)
        ]
        refuse(f"FSD50K in {folder}", problems + unreadable(paths))
        clips = pd.DataFrame(
            {
                "id": table["fname"].to_list(),
                "path": list(map(str, paths)),
                "label": pd.Series(class_labels(names, classes), dtype=object),
                "fold": table["fold"].to_list(),
            }
        )
        return Manifest("FSD50K", clips, classes, FIXED, multi_label=True)

    def embed(self, folder: Path) -> None:
        """Write a miniature: five labels, one or two per clip."""
        make_once(folder, write_miniature)


def _vocabulary(path: Path) -> list[str]:
    """The labels in their published order: the second column of a table without a header."""
    try:
        table = pd.read_csv(path, header=None, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read ({error}): name the folder that holds {TRUTH} with "
            "`--data_folder`"
        ) from None
    if table.shape[1] < 2:
        raise DataError(f"{path} must hold a number and a label in every line")
    return table[1].to_list()


def write_miniature(folder: Path) -> None:
    """Fill a folder with a miniature of the corpus."""
    classes = ["Bark", "Bell", "Rain", "Speech", "Wind_chime"]
    tones: dict[Path, int] = {}
    rows = []
    for number in range(40):
        first, second = number % 5, (number // 5 + number) % 5
        labels = ",".join(classes[i] for i in sorted({first, second}))
        place = "eval" if number % 4 == 3 else "dev"
        rows.append([place, 1000 + number, labels, "/m/0", "val" if number % 4 == 2 else "train"])
        tones[folder / f"FSD50K.{place}_audio" / f"{1000 + number}.wav"] = first
    write_tones(tones, rate=44100)
    truth = folder / TRUTH
    truth.mkdir()
    table = pd.DataFrame(rows, columns=["place", "fname", "labels", "mids", "split"])
    dev, test = (table[table["place"] == p].drop(columns="place") for p in ("dev", "eval"))
    dev.to_csv(truth / "dev.csv", index=False)
    test.drop(columns="split").to_csv(truth / "eval.csv", index=False)
    vocabulary = pd.DataFrame([[i, name, f"/m/{i}"] for i, name in enumerate(classes)])
    vocabulary.to_csv(truth / "vocabulary.csv", index=False, header=False)

"""ESC-50 (Piczak, ACM MM 2015): 2000 clips of 5 s, 50 classes, 5 official folds.

Layout: `audio/*` and `meta/esc50.csv`. ESC-10 is its Creative Commons subset of ten classes.
"""

import shutil
import tempfile
import urllib.request
import zipfile
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from toolkit.data.manifest import Corpus, Manifest, refuse, unreadable
from toolkit.errors import DataError, did_you_mean
from toolkit.registry import CORPORA
from toolkit.settings import setting

URL = "https://github.com/karolpiczak/ESC-50/archive/master.zip"
CLIPS = 2000
FOLDS = range(1, 6)
COLUMNS = ["filename", "fold", "target", "category", "esc10"]


@CORPORA.register("esc50", paper="10.1145/2733373.2806390")
class ESC50(Corpus):
    """Environmental sounds, 50 classes, 5 folds; ESC-10 as an option."""

    esc10: bool = setting(False, "only the ten classes of ESC-10")

    def manifest(self, folder: Path) -> Manifest:
        """See `Corpus.manifest`; targets may be any numbers, labels follow their order."""
        table_path = folder / "meta" / "esc50.csv"
        if not table_path.is_file():
            raise DataError(
                f"{folder} is not ESC-50: {table_path} is missing; name the folder that holds "
                "'audio' and 'meta' with `--data_folder`, or fetch it with `--download true`"
            )
        table = self._read(table_path)
        audio = folder / "audio"
        problems = [
            f"{table_path}: {row.filename} has the fold {row.fold!r} (known: 1 to 5)"
            for row in table[~table["fold"].isin(FOLDS)].itertuples()
        ]
        names = table.groupby("target")["category"].nunique()
        problems += [f"target {t} has more than one category" for t in names[names > 1].index]
        problems += unreadable([audio / name for name in table["filename"]])
        refuse(f"ESC-50 in {folder}", problems)
        targets = sorted(table["target"].unique())
        labels = {target: label for label, target in enumerate(targets)}
        categories = table.drop_duplicates("target").set_index("target")["category"]
        clips = pd.DataFrame(
            {
                "id": table["filename"],
                "path": [str(audio / name) for name in table["filename"]],
                "label": table["target"].map(labels),
                "fold": table["fold"],
            }
        )
        return Manifest(
            "ESC-10" if self.esc10 else "ESC-50", clips, [categories[t] for t in targets]
        )

    def _read(self, path: Path) -> pd.DataFrame:
        try:
            table = pd.read_csv(path)
        except (ValueError, UnicodeDecodeError) as error:
            raise DataError(f"{path} is not a CSV file: {error}") from None
        refuse(
            str(path),
            [
                f"column '{column}' is missing{did_you_mean(column, table.columns)}"
                for column in COLUMNS
                if column not in table.columns
            ],
        )
        incomplete = table[COLUMNS].isna().any(axis=1)
        refuse(str(path), [f"line {i + 2} has an empty cell" for i in table.index[incomplete]])
        if self.esc10:
            table = table[table["esc10"].astype(str).str.lower() == "true"]
        return table.reset_index(drop=True)

    def download(self, folder: Path) -> None:
        """Fetch and unpack the official archive; a folder that holds the corpus is left alone."""
        if (folder / "meta" / "esc50.csv").is_file():
            return
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            archive = Path(scratch) / "esc50.zip"
            fetch(URL, archive)
            with zipfile.ZipFile(archive) as file:
                file.extractall(scratch)
            root = next(Path(scratch).glob("ESC-50-*"))
            found = len(list((root / "audio").glob("*.wav")))
            if found != CLIPS:
                raise DataError(f"the archive {URL} holds {found} clips instead of {CLIPS}")
            folder.mkdir(exist_ok=True)
            for part in ("audio", "meta"):
                shutil.move(root / part, folder / part)


def fetch(url: str, path: Path) -> None:
    """Download a file with a progress bar; zip archives are checked.

    Raises:
        DataError: no connection, or a damaged archive; the message names the alternatives.
    """
    alternatives = (
        "name a folder that holds the corpus with `--data_folder`, or leave that out to run on "
        "the embedded synthetic corpus"
    )
    try:
        with urllib.request.urlopen(url, timeout=30) as response, open(path, "wb") as file:
            size = int(response.headers.get("Content-Length") or 0)
            with tqdm(total=size or None, unit="B", unit_scale=True, desc="download") as bar:
                while block := response.read(1 << 20):
                    file.write(block)
                    bar.update(len(block))
    except OSError as error:
        raise DataError(f"{url} cannot be fetched ({error}): {alternatives}") from None
    try:
        damaged = zipfile.ZipFile(path).testzip()
    except zipfile.BadZipFile:
        damaged = path.name
    if damaged:
        raise DataError(f"{url} came damaged ({damaged}): try again, or {alternatives}")

"""ESC-50 (Piczak, ACM MM 2015): 2000 clips of 5 s, 50 classes, 5 official folds.

Layout: `audio/*` and `meta/esc50.csv`. ESC-10 is its Creative Commons subset of ten classes.
"""

import lzma
import struct
import tempfile
import urllib.request
import zipfile
import zlib
from http.client import HTTPException
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from toolkit import os_errors
from toolkit.data.manifest import Corpus, Manifest, refuse, unreadable
from toolkit.data.tables import Row, parsed, read_csv, whole_number
from toolkit.errors import DataError
from toolkit.registry import CORPORA
from toolkit.settings import setting

URL = "https://github.com/karolpiczak/ESC-50/archive/master.zip"
CLIPS = 2000
PARTS = ("audio", "meta")  # in the order of unpacking: with the table, the corpus is whole
FOLDS = range(1, 6)
LARGEST_TARGET = 9999
COLUMNS = ["filename", "fold", "target", "category", "esc10"]


@CORPORA.register("esc50", paper="10.1145/2733373.2806390")
class ESC50(Corpus):
    """Environmental sounds, 50 classes, 5 folds; ESC-10 as an option."""

    esc10: bool = setting(False, "only the ten classes of ESC-10")

    def manifest(self, folder: Path) -> Manifest:
        """Check the corpus on disk and return its table; labels follow the order of the targets."""
        table_path = folder / "meta" / "esc50.csv"
        if not table_path.is_file():
            raise DataError(
                f"{folder} is not ESC-50: {table_path} is missing; name the folder that holds "
                "'audio' and 'meta' with `--data_folder`, or fetch it with `--download true`"
            )
        table = self._read(table_path)
        audio = folder / "audio"
        folds = pd.to_numeric(table["fold"], errors="coerce")
        problems = [
            f"{table_path}: {row.filename} has the fold {row.fold} (known: 1 to 5)"
            for row in table[~folds.isin(FOLDS)].itertuples()
        ]
        rows = [
            Row(index + 2, {"target": target})
            for index, target in zip(table.index, table["target"], strict=True)
        ]
        targets = parsed(rows, "target", whole_number(0, LARGEST_TARGET), problems)
        table = table.assign(target=targets)
        for one, other in (("target", "category"), ("category", "target")):
            values = table.groupby(one)[other].nunique()
            problems += [
                f"the {one} {value} has more than one {other}" for value in values[values > 1].index
            ]
        problems += unreadable([audio / name for name in table["filename"]])
        refuse(f"ESC-50 in {folder}", problems)
        known = sorted(table["target"].unique())
        labels = {target: label for label, target in enumerate(known)}
        categories = table.drop_duplicates("target").set_index("target")["category"]
        clips = pd.DataFrame(
            {
                "id": table["filename"],
                "path": [str(audio / name) for name in table["filename"]],
                "label": table["target"].map(labels),
                "fold": folds.astype(int),
            }
        )
        return Manifest("ESC-10" if self.esc10 else "ESC-50", clips, [categories[t] for t in known])

    def published_clips(self, manifest: Manifest) -> int:
        """The number of clips in the published corpus."""
        return 400 if self.esc10 else CLIPS

    def _read(self, path: Path) -> pd.DataFrame:
        table = read_csv(path, COLUMNS, "ESC-50")
        if self.esc10:
            table = table[table["esc10"].str.lower() == "true"]
        return table

    def download(self, folder: Path) -> None:
        """Fetch and unpack the official archive; a folder that holds the corpus is left alone."""
        if (folder / "meta" / "esc50.csv").is_file():
            return
        if any((folder / part).exists() for part in PARTS):
            raise DataError(
                f"{folder} holds part of ESC-50, or something else: remove 'audio' and 'meta' "
                "from it, or name another folder with `--data_folder`"
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                archive = Path(scratch) / "esc50.zip"
                fetch(URL, archive)
                with zipfile.ZipFile(archive) as file:
                    file.extractall(scratch)
                tables = list(Path(scratch).glob("ESC-50-*/meta/esc50.csv"))
                clips = list(Path(scratch).glob("ESC-50-*/audio/*.wav"))
                if len(tables) != 1 or len(clips) != CLIPS:
                    raise DataError(
                        f"the archive {URL} holds {len(clips)} clips and {len(tables)} tables "
                        f"instead of {CLIPS} and 1"
                    )
                for part in PARTS:
                    (tables[0].parents[1] / part).rename(folder / part)
        except OSError as error:
            raise DataError(
                f"ESC-50 cannot be unpacked into {folder}: {os_errors.sentence(error)}"
            ) from error


DAMAGED_ARCHIVE = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError, RuntimeError,
    struct.error,
)  # fmt: skip
"""What `zipfile` raises on archives with wrong bytes; an unknown coding is a RuntimeError."""


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
    except (OSError, HTTPException) as error:
        raise DataError(f"{url} cannot be fetched ({error}): {alternatives}") from None
    try:
        damaged = zipfile.ZipFile(path).testzip()
    except DAMAGED_ARCHIVE:
        damaged = path.name
    if damaged:
        raise DataError(f"{url} was damaged in transfer ({damaged}): try again, or {alternatives}")

"""Checks, statistics and a picture of a corpus on disk."""

from pathlib import Path

import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from toolkit.data.manifest import (
    Corpus,
    Header,
    Manifest,
    class_matrix,
    copied,
    headers,
    refuse,
    untrained,
)
from toolkit.errors import ConfigError, did_you_mean
from toolkit.features.cache import content_hashes, default_cache_folder
from toolkit.literal_text import literal
from toolkit.own_folders import require_new


def check_corpus(corpus: Corpus, folder: Path) -> list[str]:
    """Check a corpus thoroughly: table, files, parts, counts, copies of a sound in two parts.

    Returns:
        what was found to be right, one line each.

    Raises:
        DataError: everything that is wrong, in one message.
    """
    manifest = corpus.manifest(folder)
    problems = copied(manifest.clips, _contents(manifest)) + untrained(manifest)
    published, count = corpus.published_clips(manifest), len(manifest.clips)
    if published not in (None, count):
        problems.append(f"{count:,} clips instead of the {published:,} of the published corpus")
    refuse(f"{manifest.corpus} in {folder}", problems)
    complete = " (complete)" if published else ""
    return [
        f"{manifest.corpus}: {count:,} clips{complete}, {len(manifest.classes)} classes",
        f"{manifest.parts}: no file, group or copy of a sound is in two of them",
    ]


def survey(manifest: Manifest) -> dict[str, pd.DataFrame]:
    """Tables of a corpus: clips of each class and fold, durations (s), rates, copies.

    Raises:
        DataError: a file cannot be read.
    """
    clips = manifest.clips
    found = headers(clips["path"])
    refuse(manifest.corpus, [h for h in found.values() if isinstance(h, str)])
    read = [h for p in clips["path"] if isinstance(h := found[str(p)], Header)]
    length = pd.Series([h.seconds for h in read], index=clips.index, name="seconds")
    if "start" in clips:
        length = clips["stop"].fillna(length) - clips["start"].fillna(0.0)
    held = class_matrix(clips["label"], len(manifest.classes))
    per_fold = {
        manifest.name_of(fold): held[(clips["fold"] == fold).to_numpy()].sum(axis=0)
        for fold in manifest.folds
    }
    classes = pd.DataFrame({"class": manifest.classes, "clips": held.sum(axis=0), **per_fold})
    rates = pd.DataFrame([(h.sample_rate, h.channels) for h in read], columns=["rate", "channels"])
    contents = pd.Series(_contents(manifest))
    quantiles = length.quantile([0, 0.05, 0.5, 0.95, 1]).round(3)
    copies = int(contents.duplicated().sum())
    return {
        "classes": classes,
        "durations": quantiles.rename_axis("quantile").reset_index(name="seconds"),
        "rates": rates.value_counts().reset_index(name="clips"),
        "totals": pd.DataFrame(
            {
                "clips": [len(clips)],
                "hours": [round(length.sum() / 3600, 3)],
                "files": [len(contents)],
                "copies of another file": [copies],
            }
        ),
        "lengths": length.to_frame("seconds"),
    }


def require_picture(file: Path) -> None:
    """Refuse a file that cannot become a picture.

    Raises:
        ConfigError: its ending names no format.
        PlaceError: it is already there.
    """
    known = sorted(FigureCanvasAgg.get_supported_filetypes())
    ending = file.suffix.removeprefix(".").lower()
    if ending not in known:
        raise ConfigError(
            f"{file} names no format of pictures{did_you_mean(ending, known)}; end it in .png, or "
            f"in one of {', '.join(known)}"
        )
    require_new(file)


def picture(tables: dict[str, pd.DataFrame], title: str) -> Figure:
    """Draw the clips per class, stacked by fold, and a histogram of durations."""
    classes = tables["classes"]
    figure = Figure(figsize=(11, 2 + 0.22 * len(classes)), layout="constrained")
    left, right = figure.subplots(1, 2)
    folds = classes.columns[2:]
    named = classes.assign(**{"class": classes["class"].map(literal)}).set_index("class")
    named[folds].plot.barh(stacked=True, ax=left, colormap="viridis")
    left.invert_yaxis()
    left.set_xlabel("clips")
    right.hist(tables["lengths"]["seconds"], bins=40)
    right.set_xlabel("seconds")
    right.set_ylabel("clips")
    figure.suptitle(literal(title))
    return figure


def _contents(manifest: Manifest) -> dict[str, str]:
    paths = sorted(set(manifest.clips["path"]))
    return content_hashes(default_cache_folder(), paths)

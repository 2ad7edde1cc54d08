"""Places that commands must not write to, and places that they cannot write to or read from."""

import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hostile import Hostile, check_refused
from places import own, precious, prepared
from programs import ROOT

SMALL = ["--backbone", "ast_tiny", "--max_length", "64", "--epochs", "1", "--batch_size", "16"]
ONE_FOLD = [*SMALL, "--folds", "1", "--noprogressbar", "true"]
TRAIN = ["toolkit", "train", "ESC50", "linear", "--data_folder", "corpus", *ONE_FOLD]
RECIPE = ["python", "{root}/recipes/ESC50/train.py", "hparams/linear.yaml", *TRAIN[4:]]
TOOL = ["--corpus", "esc50", "--data_folder", "corpus"]
COMPRESS = ["toolkit", "compress", "bundle", "--method", "mc_moe", *TOOL]
PRUNE = ["toolkit", "prune", "bundle", "--method", "seer", *TOOL]
EXPERTS = ["toolkit", "experts", "bundle", "clip.wav"]
SEARCH = ["toolkit", "search", "{root}/plugins/automoe/automoe.yaml", "--method", "automoe",
          "--budget", "trainable=1e5", "--data_folder", "corpus", *ONE_FOLD]  # fmt: skip
STUDY = ["toolkit", "study", "run", "quick.yaml"]
TIME = ["toolkit", "study", "time", "quick.yaml"]
REPORT = ["toolkit", "study", "report", "results"]
STATS = ["toolkit", "corpus", "stats", "corpus", "--as", "esc50:esc10=true"]
PRETRAIN = ["python", "-m", "tools.pretrain", "train", "hparams/own_sounds.yaml",
            "--smoke", "true", "--data_folder", "corpus"]  # fmt: skip

WRITERS: dict[str, tuple[list[str], str, str]] = {
    "train": ([*TRAIN, "--output_folder"], "", "--output_folder"),
    "debug run": ([*TRAIN, "--debug", "--output_folder"], "-debug", "--output_folder"),
    "train.py": ([*RECIPE, "--output_folder"], "", "--output_folder"),
    "compress": ([*COMPRESS, "-o"], "", "name another folder"),
    "prune": ([*PRUNE, "-o"], "", "name another folder"),
    "experts": ([*EXPERTS, "-o"], "", "-o"),
    "search": ([*SEARCH, "-o"], "", "-o"),
    "study run": ([*STUDY, "-o"], "", "--output"),
    "study time": ([*TIME, "-o"], "", "--output"),
    "study report": ([*REPORT, "-o"], "", "--output"),
    "pretrain": ([*PRETRAIN, "--output_folder"], "", "--output_folder"),
}
"""Commands that write a folder -> the words before its name, what is added to it, the remedy."""


def clip(folder: Path) -> None:
    sound = next((folder / "corpus" / "audio").iterdir())
    (folder / "clip.wav").symlink_to(sound.resolve())


def of_others() -> Iterator[Hostile]:
    """A file of the user's in every place where a command writes."""
    for name, (words, added, remedy) in WRITERS.items():
        yield Hostile(
            f"{name}: a folder with a file of others",
            [*words, "mine"],
            ["precious.txt", remedy],
            prepared(clip, precious(f"mine{added}")),
        )
    for name in ("compress", "prune", "experts", "study run", "study report"):
        words, _, remedy = WRITERS[name]
        yield Hostile(f"{name}: the working directory", [*words, "."], [remedy], prepared(clip))


def unusable() -> Iterator[Hostile]:
    """Every place that cannot be a folder, for every command that writes into one."""
    for name, (words, added, _) in WRITERS.items():
        for place, (path, says, prepare) in PLACES.items():
            prepare_it = prepared(clip, *([prepare(added)] if prepare else []))
            yield Hostile(f"{name}: {place}", [*words, path], [says], prepare_it)


def file_at(name: str) -> Callable[[str], Callable[[Path], None]]:
    return lambda added: own(f"{name}{added}")


def loop_at(name: str) -> Callable[[str], Callable[[Path], None]]:
    return lambda added: lambda folder: (folder / f"{name}{added}").symlink_to(f"{name}{added}")


def sealed_at(name: str) -> Callable[[str], Callable[[Path], None]]:
    return lambda added: lambda folder: (folder / name).mkdir(mode=0o500)


PLACES: dict[str, tuple[str, str, Callable[[str], Callable[[Path], None]] | None]] = {
    "a file": ("file", "file.* is a file", file_at("file")),
    "below a file": ("file/x", "file", lambda added: own("file")),
    "a name that is too long": ("x" * 300, "(?i)too long", None),
    "a link to itself": ("loop", "loop", loop_at("loop")),
}

SINGLE = (
    Hostile(
        "a bundle that holds a file of others",
        [*COMPRESS, "-o", "other"],
        ["precious.txt"],
        prepared(
            lambda here: (here / "other").mkdir(),
            own("other/bundle.json", "{}"),
            precious("other"),
        ),
    ),
    Hostile(
        "a tool's bundle instead of the one it is made of",
        [*COMPRESS, "-o", "bundle"],
        ["stay as it is"],
        prepared(),
    ),
    Hostile(
        "a run instead of a bundle",
        [*COMPRESS, "-o", "run"],
        ["run is a run"],
        prepared(
            own(
                "run/.audio-peft-toolkit.json",
                '{"made by": "audio-peft-toolkit", "what": "run"}',
            )
        ),
    ),
    Hostile(
        "a mark of another program",
        [*TRAIN, "--output_folder", "run"],
        [".audio-peft-toolkit.json"],
        prepared(own("run/.audio-peft-toolkit.json", '{"made by": "us", "what": "run"}')),
    ),
    Hostile(
        "a mark that is a list",
        [*TRAIN, "--output_folder", "run"],
        [".audio-peft-toolkit.json"],
        prepared(own("run/.audio-peft-toolkit.json", '["run"]')),
    ),
    Hostile(
        "a run whose bundle holds a file of others",
        [*TRAIN, "--output_folder", "run"],
        ["precious.txt", "run/bundle"],
        prepared(
            own("run/hyperparams.yaml"), own("run/bundle/bundle.json", "{}"), precious("run/bundle")
        ),
    ),
    Hostile(
        "a fold whose bundle holds a file of others",
        [*TRAIN, "--output_folder", "run"],
        ["precious.txt", "run/fold-1/bundle"],
        prepared(own("run/hyperparams.yaml"), precious("run/fold-1/bundle")),
    ),
    *(
        Hostile(
            f"a debug run that holds a file of others in {place}",
            [*TRAIN, "--debug", "--output_folder", "run"],
            ["precious.txt", "move that away"],
            prepared(own("run-debug/hyperparams.yaml"), precious(f"run-debug/{place}")),
        )
        for place in (".", "fold-1", "mine", "src/deep")
    ),
    Hostile(
        "a debug run that holds a link of others",
        [*TRAIN, "--debug", "--output_folder", "run"],
        ["mine", "move that away"],
        prepared(
            own("run-debug/hyperparams.yaml"),
            lambda here: (here / "run-debug/mine").symlink_to("/"),
        ),
    ),
    Hostile(
        "the embedded corpus's place",
        ["toolkit", "train", "ESC50", "linear", *ONE_FOLD, "--output_folder", "out"],
        ["precious.txt", "synthetic"],
        precious("cache/synthetic/seed-0-clips-40"),
        variables={"TOOLKIT_CACHE": "{here}/cache"},
    ),
    Hostile(
        "a recipe that is there",
        ["toolkit", "copy-recipe", "ESC50"],
        ["ESC50 is already there"],
        precious("ESC50"),
    ),
    Hostile(
        "a recipe in the place of a file",
        ["toolkit", "copy-recipe", "ESC50", "mine"],
        ["mine/ESC50 is already there"],
        own("mine/ESC50"),
    ),
    Hostile(
        "a recipe below a file",
        ["toolkit", "copy-recipe", "ESC50", "mine"],
        ["mine"],
        own("mine"),
    ),
    Hostile(
        "a plugin that is there",
        ["toolkit", "new-plugin", "thing", "--folder", "mine"],
        ["mine/thing is already there"],
        precious("mine/thing"),
    ),
    Hostile(
        "a plugin below a file",
        ["toolkit", "new-plugin", "thing", "--folder", "mine"],
        ["mine"],
        own("mine"),
    ),
    Hostile(
        "a plugin with a name that is too long",
        ["toolkit", "new-plugin", "x" * 300],
        ["(?i)too long", "shorter"],
        leaves=["plugins"],
    ),
    Hostile(
        "a picture that is there",
        [*STATS, "-o", "mine.png"],
        ["mine.png is already there"],
        prepared(own("mine.png")),
    ),
    Hostile(
        "a picture that is a folder",
        [*STATS, "-o", "mine.png"],
        ["mine.png is already there"],
        prepared(precious("mine.png")),
    ),
    Hostile(
        "a picture below a file",
        [*STATS, "-o", "mine/a.png"],
        ["mine/a.png"],
        prepared(own("mine")),
    ),
    Hostile(
        "a picture of an unknown format",
        [*STATS, "-o", "a.pgn"],
        ["did you mean 'png'"],
        prepared(),
    ),
    Hostile("a picture of no format", [*STATS, "-o", "/dev/full"], ["end it in .png"], prepared()),
    Hostile("a picture without a folder", [*STATS, "-o", "no/a.png"], ["no/a.png"], prepared()),
    Hostile(
        "a text that is not a report",
        [*REPORT, "-o", "report", "--text", "mine.md"],
        ["mine.md is already there"],
        prepared(own("mine.md")),
    ),
    Hostile(
        "pictures of a text among files of others",
        [*REPORT, "-o", "report", "--text", "mine.md"],
        ["precious.txt", "--text"],
        prepared(precious("mine")),
        leaves=["report", "report/*"],
    ),
    Hostile(
        "a study beside its results", ["toolkit", "study", "run", "."], ["--output"],
        lambda here: prepared()(here) or (here / "quick.yaml").rename(here / "study.yaml"),
    ),
)  # fmt: skip

READERS = {
    "configuration": ["toolkit", "train", "ESC50", "{path}.yaml"],
    "study": ["toolkit", "study", "run", "{path}.yaml", "--dry-run"],
    "bundle": ["toolkit", "predict", "{path}", "clip.wav"],
    "corpus": ["toolkit", "corpus", "check", "{path}", "--as", "esc50"],
    "data folder": [*TRAIN[:4], *ONE_FOLD, "--data_folder", "{path}", "--output_folder", "out"],
    "results": ["toolkit", "study", "report", "{path}"],
}


def unreadable() -> Iterator[Hostile]:
    """Paths to read that are wrong, for every kind of input."""
    for name, words in READERS.items():
        for kind, path in {"too long": "x" * 300, "below a file": "mine/x"}.items():
            filled = [word.replace("{path}", path) for word in words]
            yield Hostile(f"{name}: {kind}", filled, [path[:4]], prepared(clip, own("mine")))
        ending = ".yaml" if any("{path}.yaml" in word for word in words) else ""
        filled = [word.replace("{path}", "loop") for word in words]
        yield Hostile(
            f"{name}: a link to itself", filled, ["loop"], prepared(clip, loop_at("loop")(ending))
        )


FULL = (
    *(
        Hostile(
            f"a full disk: files of at most {size} bytes",
            [*TRAIN, "--output_folder", "out"],
            ["ulimit -f|free some space"],
            prepared(),
            leaves=["out", "out/*", "cache", "cache/*"],
            variables={"TOOLKIT_CACHE": "{here}/cache", "WARM_FILE_BYTES": str(size)},
        )
        for size in (40, 3_000, 20_000, 200_000)
    ),
    *(
        Hostile(
            f"a full output of {name}",
            ["sh", "-c", f"{command} > /dev/full"],
            ["standard output cannot be written.*No space"],
            prepared(),
            leaves=["out", "out/*"],
        )
        for name, command in {
            "list": "toolkit list",
            "describe": "toolkit describe peft lora",
            "help": "toolkit --help",
            "version": "toolkit --version",
            "stats": " ".join(STATS),
            "train": " ".join([*TRAIN, "--output_folder out"]),
            "study": " ".join([*STUDY, "--dry-run"]),
        }.items()
    ),
)

PERMISSIONS = (
    Hostile(
        "an output folder in a folder without permission",
        [*TRAIN, "--output_folder", "sealed/out"],
        ["sealed", "(?i)permission"],
        prepared(sealed_at("sealed")("")),
    ),
    Hostile(
        "a bundle in a folder without permission",
        [*COMPRESS, "-o", "sealed/out"],
        ["sealed", "(?i)permission"],
        prepared(sealed_at("sealed")("")),
    ),
    Hostile(
        "a cache without permission",
        [*TRAIN, "--output_folder", "out", "--cache_folder", "sealed"],
        ["sealed", "--cache_folder"],
        prepared(sealed_at("sealed")("")),
    ),
    Hostile(
        "a recipe in a folder without permission",
        ["toolkit", "copy-recipe", "ESC50", "sealed"],
        ["sealed", "(?i)permission"],
        sealed_at("sealed")(""),
    ),
    Hostile(
        "a plugin in a folder without permission",
        ["toolkit", "new-plugin", "thing", "--folder", "sealed"],
        ["sealed", "(?i)permission"],
        sealed_at("sealed")(""),
    ),
    *(
        Hostile(
            f"{name} without permission",
            words,
            ["mine", "(?i)permission"],
            prepared(own(file), lambda here, file=file: (here / file).chmod(0)),
        )
        for name, file, words in (
            ("a configuration", "mine.yaml", ["toolkit", "train", "ESC50", "mine.yaml"]),
            ("a study", "mine.yaml", ["toolkit", "study", "run", "mine.yaml"]),
            ("a bundle", "mine/bundle.json", ["toolkit", "predict", "mine", "clip.wav"]),
            ("a run", "mine/hyperparams.yaml", [*TRAIN, "--output_folder", "mine"]),
        )
    ),
    Hostile(
        "a working directory without permission",
        ["toolkit", "new-plugin", "thing"],
        ["plugins", "(?i)permission"],
        lambda here: here.chmod(0o500),
    ),
)

TABLE = (*of_others(), *unusable(), *SINGLE, *unreadable(), *FULL)


@pytest.mark.parametrize("row", TABLE, ids=str)
def test_refused(row: Hostile, tmp_path: Path, programs: Path) -> None:
    check_refused(row, tmp_path / "here", programs, ROOT)


@pytest.mark.skipif(os.name != "posix" or not Path("/proc").is_dir(), reason="capabilities: Linux")
@pytest.mark.parametrize("row", PERMISSIONS, ids=str)
def test_permissions_are_obeyed(row: Hostile, tmp_path: Path, programs: Path) -> None:
    row = dataclasses.replace(row, variables={"WARM_UNPRIVILEGED": "yes"})
    try:
        check_refused(row, tmp_path / "here", programs, ROOT)
    finally:
        for path in (tmp_path / "here", *(tmp_path / "here").glob("sealed")):
            path.chmod(0o700)

"""Runs and studies whose files were damaged, cut, removed or exchanged, or whose data changed."""

import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import studies
from finished_run import WORDS, copy_finished_run
from hostile import Hostile, check_refused
from programs import ROOT

Damage = Callable[[Path], object]

RECIPE = ("python", "{root}/recipes/ESC50/train.py")
LEFT = ("out/log.txt", "out/.lock")
BEGUN = (*LEFT, "out/env.log", "out/train_log.txt", "out/tensorboard/*")
"""What a run changes that notices the damage while it trains."""


def one_digit(file: Path) -> None:
    """Change the first digit behind a decimal point, or else the first digit."""
    text = file.read_text(encoding="utf-8")
    found = re.search(r"(?<=0\.)\d", text) or re.search(r"\d", text)
    assert found
    place = found.start()
    file.write_text(f"{text[:place]}{(int(text[place]) + 5) % 10}{text[place + 1 :]}", "utf-8")


def flipped(file: Path) -> None:
    """Flip one bit in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def halved(file: Path) -> None:
    """Cut the second half off."""
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def emptied(file: Path) -> None:
    """Remove the content."""
    file.write_bytes(b"")


def noise(file: Path) -> None:
    """Replace the content by bytes that are no text."""
    file.write_bytes(bytes(range(128, 256)) * 4)


def nested(file: Path) -> None:
    """Replace the content by very many brackets."""
    file.write_text("[" * 100_000, encoding="utf-8")


def folder(file: Path) -> None:
    """Put a folder in the place of the file."""
    file.unlink()
    file.mkdir()


def removed(file: Path) -> None:
    """Remove the file."""
    file.unlink()


def with_text(text: str) -> Damage:
    """Replace the content."""
    return lambda file: file.write_text(text, encoding="utf-8")


def of_old_version(**changes: object) -> Damage:
    """Change keys of a JSON file, and remove the checksum, which version 0.1 did not write."""

    def change(file: Path) -> None:
        values = json.loads(file.read_text(encoding="utf-8"))
        values.pop("checksum", None)
        file.write_text(json.dumps(values | changes), encoding="utf-8")

    return change


def in_run(name: str, damage: Damage, *first: str) -> Damage:
    """Prepare the finished run with a damaged file.

    Args:
        name: pattern of the file below `out`.
        damage: what happens to it.
        first: patterns of files that are removed before, so that it is read.
    """

    def prepare(here: Path) -> None:
        out = copy_finished_run(here)
        for pattern in first:
            for file in out.glob(pattern):
                file.unlink()
        [file] = out.glob(name)
        damage(file)

    return prepare


def run_row(
    name: str, prepare: Damage, says: Sequence[str], *options: str, leaves: Sequence[str] = LEFT
) -> Hostile:
    """A row that starts the finished run again."""
    return Hostile(name, [*RECIPE, *WORDS, *options], says, prepare, leaves=leaves)


RESULT = "result.json"
FOLD = "fold-1/fold.json"
REOPENED = (RESULT,)
RESUMED = (RESULT, FOLD)
CHECKPOINT = "fold-1/checkpoints/CKPT*"
JSON_DAMAGES: dict[str, Damage] = {
    "one digit": one_digit,
    "cut": halved,
    "empty": emptied,
    "no text": noise,
    "a list": with_text("[]"),
    "null": with_text("null"),
    "a number": with_text("1e400"),
    "a word": with_text('"finished"'),
    "nested": nested,
    "a folder": folder,
    "no keys": with_text("{}"),
}
READ_AGAIN = r"start the run again"

RESULTS = [
    run_row(f"result.json: {name}", in_run(RESULT, damage), ["result.json", READ_AGAIN])
    for name, damage in JSON_DAMAGES.items()
    if name != "a folder"  # nothing is finished then
] + [
    run_row(
        f"result.json of 0.1: {name}", in_run(RESULT, of_old_version(**changes)), ["result.json"]
    )
    for name, changes in {
        "score of another type": {"score": "all"},
        "folds by name": {"best_epoch": {"first": 1}},
        "classes missing": {"classes": None},
    }.items()
]

FOLDS = [
    run_row(f"fold.json: {name}", in_run(FOLD, damage, *REOPENED), ["fold.json", READ_AGAIN])
    for name, damage in JSON_DAMAGES.items()
    if name != "a folder"
] + [
    run_row(f"fold.json of 0.1: {name}", in_run(FOLD, of_old_version(**changes), *REOPENED), says)
    for name, changes, says in (
        ("no epochs", {"history": []}, ["'best_epoch' is"]),
        ("score beyond 1", {"score": 7.5}, ["'score' is 7.5"]),
        ("score is NaN", {"score": float("nan")}, ["'score' is nan"]),
        ("best epoch of none", {"best_epoch": 99}, ["'best_epoch' is 99"]),
        ("history of words", {"history": ["one"]}, [r"history\[0\]"]),
        ("another identity", {"identity": "0123456789ab"}, ["other clips", "--overwrite"]),
    )
]

PREDICTIONS = [
    run_row(
        f"predictions.csv: {name}",
        in_run("fold-1/predictions.csv", damage, *REOPENED),
        ["predictions.csv", "delete fold.json"],
    )
    for name, damage in {
        "one digit": one_digit,
        "cut": halved,
        "empty": emptied,
        "no text": noise,
        "missing": removed,
        "a folder": folder,
    }.items()
] + [
    run_row(
        "the bundle of a fold is missing",
        in_run("fold-1/bundle", shutil.rmtree, *REOPENED),
        ["bundle is missing", "delete fold.json"],
        leaves=(*BEGUN, "out/predictions.csv", "out/confusion.png"),
    )
]

CHECKPOINTS = [
    run_row(
        f"checkpoint: {file}, {damage.__name__}",
        in_run(f"{CHECKPOINT}/{file}", damage, *RESUMED),
        ["checkpoint .* is damaged", "delete that folder"],
        leaves=BEGUN,
    )
    for file, damage in (
        ("model.ckpt", flipped),
        ("model.ckpt", halved),
        ("model.ckpt", removed),
        ("model.ckpt", emptied),
        ("optimizer.ckpt", flipped),
        ("optimizer.ckpt", removed),
        ("history.ckpt", one_digit),
        ("epoch.ckpt", emptied),
        ("dataloader-TRAIN.ckpt", noise),
        ("CKPT.yaml", flipped),
        ("CKPT.yaml", emptied),
        ("CKPT.yaml", noise),
        ("checksums.json", emptied),
        ("checksums.json", one_digit),
    )
] + [
    run_row(
        f"checkpoint of 0.1: {file}, {damage.__name__}",
        in_run(f"{CHECKPOINT}/{file}", damage, *RESUMED, f"{CHECKPOINT}/checksums.json"),
        ["damaged"],
        leaves=BEGUN,
    )
    for file, damage in (
        ("model.ckpt", halved),
        ("optimizer.ckpt", halved),
        ("history.ckpt", emptied),
        ("epoch.ckpt", emptied),
        ("CKPT.yaml", emptied),
    )
]

OTHER_LR = ("--lr", "0.25")
HYPERPARAMS = [
    run_row(
        "hyperparams.yaml is gone, and another rate",
        in_run("hyperparams.yaml", removed),
        [r"lr: [\d.]+ there, 0.25 now", "--output_folder", "--overwrite"],
        *OTHER_LR,
    ),
    run_row(
        "hyperparams.yaml and identity.json are gone, and another rate",
        in_run("hyperparams.yaml", removed, "identity.json"),
        [r"lr: [\d.]+ there, 0.25 now"],
        *OTHER_LR,
    ),
    run_row(
        "nothing says what a fold is of",
        in_run("hyperparams.yaml", removed, "identity.json", RESULT),
        ["neither identity.json nor hyperparams.yaml says of what", "--overwrite"],
    ),
    run_row(
        "nothing says what a checkpoint is of",
        in_run("hyperparams.yaml", removed, "identity.json", *RESUMED),
        ["neither identity.json nor hyperparams.yaml says of what", "--overwrite"],
    ),
    run_row(
        "hyperparams.yaml with another rate",
        in_run("hyperparams.yaml", lambda f: f.write_text(f.read_text().replace("lr: ", "lr: 1"))),
        ["lr: 1"],
    ),
] + [
    run_row(
        f"hyperparams.yaml: {name}",
        in_run("hyperparams.yaml", damage),
        ["hyperparams.yaml|another configuration"],
    )
    for name, damage in {
        "cut": halved,
        "empty": emptied,
        "no text": noise,
        "a list": with_text("[]"),
        "a folder": folder,
        "no YAML": with_text("a: [b"),
    }.items()
]

IDENTITIES = [
    run_row(f"identity.json: {name}", in_run("identity.json", damage), ["identity.json"])
    for name, damage in {
        "another hash": lambda file: file.write_text(file.read_text().replace("(", "(0", 1)),
        "cut": halved,
        "empty": emptied,
        "no text": noise,
        "a list": with_text("[]"),
        "a folder": folder,
        "nested": nested,
    }.items()
]


def in_corpus(change: Damage) -> Damage:
    """Prepare the finished run with a changed corpus."""

    def prepare(here: Path) -> None:
        copy_finished_run(here)
        change(here / "mini")

    return prepare


def edited(old: str, new: str) -> Damage:
    """Replace a text wherever it is in the table of the corpus."""

    def change(corpus: Path) -> None:
        table = corpus / "meta" / "esc50.csv"
        text = table.read_text(encoding="utf-8")
        assert old in text
        table.write_text(text.replace(old, new), encoding="utf-8")

    return change


def without_last_rows(corpus: Path) -> None:
    """Remove five rows of the table."""
    table = corpus / "meta" / "esc50.csv"
    lines = table.read_text(encoding="utf-8").splitlines(keepends=True)
    table.write_text("".join(lines[:-5]), encoding="utf-8")


def other_sound(corpus: Path) -> None:
    """Change one sample of one clip."""
    flipped(sorted((corpus / "audio").iterdir())[7])


def two_sounds_exchanged(corpus: Path) -> None:
    """Exchange the content of two clips of different classes."""
    first, *_, last = sorted((corpus / "audio").iterdir())
    one, other = first.read_bytes(), last.read_bytes()
    first.write_bytes(other)
    last.write_bytes(one)


CLIPS = [
    run_row(name, in_corpus(change), ["other clips, backbone or source", *says, "--overwrite"])
    for name, change, says in (
        ("a clip has another sound", other_sound, [r"clips of class \w+: 5 clips \(\w+\) there"]),
        ("two clips are exchanged", two_sounds_exchanged, ["clips of fold"]),
        ("a class has another name", edited("rain", "snow"), ["clips of class snow: none there"]),
        ("rows are removed", without_last_rows, [r"clips of class \w+: 5 clips \(\w+\) there, "]),
    )
] + [
    run_row(
        f"{name}, and result.json is gone",
        lambda here, change=change: (in_corpus(change)(here), (here / "out" / RESULT).unlink()),
        ["other clips, backbone or source"],
    )
    for name, change in (("another sound", other_sound), ("removed rows", without_last_rows))
]


def in_study(name: str, damage: Damage) -> Damage:
    """Prepare invented results of a study with a damaged file."""

    def prepare(here: Path) -> None:
        made = here / "study"
        studies.made_up(made, {"linear": 0.5, "lora": 0.7}, folds=2, seeds=1)
        damage(sorted(made.glob(name))[0])

    return prepare


STUDIES = [
    Hostile(
        f"{file.rpartition('/')[2]} of a study: {name}",
        ["toolkit", "study", "report", "study", "-o", "report"],
        [file.rpartition("/")[2].replace("*", "")],
        in_study(file, damage),
    )
    for file in ("runs/**/record.json", "plan.json", "timings/*.json")
    for name, damage in JSON_DAMAGES.items()
    if name not in ("nested", "a word", "a number")
] + [
    Hostile(
        f"predictions.csv of a study: {name}",
        ["toolkit", "study", "report", "study", "-o", "report"],
        ["predictions.csv", "does this run again"],
        in_study("runs/**/predictions.csv", damage),
    )
    for name, damage in {
        "another answer": lambda file: file.write_text(
            "".join(
                f"{','.join([*line.split(',')[:3], 'dog'])}\n" if number else f"{line}\n"
                for number, line in enumerate(file.read_text().splitlines())
            )
        ),
        "cut": halved,
        "empty": emptied,
        "no text": noise,
    }.items()
]

TABLE = (
    *RESULTS, *FOLDS, *PREDICTIONS, *CHECKPOINTS, *HYPERPARAMS, *IDENTITIES, *CLIPS, *STUDIES,
)  # fmt: skip


@pytest.mark.parametrize("row", TABLE, ids=str)
def test_refused(row: Hostile, tmp_path: Path, programs: Path) -> None:
    check_refused(row, tmp_path / "here", programs, ROOT)


def test_names_are_unique() -> None:
    assert len({row.name for row in TABLE}) == len(TABLE)

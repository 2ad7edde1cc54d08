"""Command lines that must be refused."""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hostile import Hostile, check_refused
from places import own, prepared
from programs import ROOT

from toolkit.cli.main import parser

AUTOMOE = "{root}/plugins/automoe/automoe.yaml"
COMMANDS = {
    "list": ["peft", "lora"],
    "describe": ["peft", "lora"],
    "matrix": [],
    "train": ["ESC50", "linear"],
    "copy-recipe": ["ESC50", "."],
    "new-plugin": ["thing"],
    "check-plugin": ["plugins/thing"],
    "predict": ["bundle", "clip.wav"],
    "compress": ["bundle", "--method", "mc_moe", "-o", "out"],
    "prune": ["bundle", "--method", "seer", "-o", "out"],
    "experts": ["bundle", "clip.wav"],
    "search": [AUTOMOE, "--method", "automoe", "--budget", "trainable=1e5", "-o", "out"],
    "corpus check": [".", "--as", "esc50"],
    "corpus stats": [".", "--as", "esc50"],
    "cache list": ["--cache_folder", "."],
    "cache clear": ["--cache_folder", "."],
    "study run": ["quick.yaml"],
    "study time": ["quick.yaml"],
    "study report": ["quick.yaml"],
}
"""Every command -> arguments with which it does something."""

MANY = {"predict"}
"""Commands that take any number of words."""


def command(name: str) -> list[str]:
    return ["toolkit", *name.split(), *COMMANDS[name]]


def unknown() -> Iterator[Hostile]:
    """What no command knows: an option, its beginning alone, and a word too many."""
    for name in COMMANDS:
        whole = command(name)
        yield Hostile(f"{name}: an unknown option", [*whole, "--typo", "3"], ["typo"], prepared())
        yield Hostile(f"{name}: half an option", [*whole, "--plug", "x"], ["plug"], prepared())
        if name not in MANY:
            yield Hostile(f"{name}: a word too many", [*whole, "surplus"], [], prepared())


def numbers() -> Iterator[Hostile]:
    """Numbers that are too small, or none."""
    for name, option, least in (
        ("study run", "--jobs", 1),
        ("study run", "--limit", 0),
        ("study time", "--rounds", 1),
        ("predict", "--top", 1),
        ("experts", "--most", 1),
        ("experts", "--window", 1),
    ):
        for value in (str(least - 1), "-7", "many", "1.5", "1e3", ""):
            yield Hostile(
                f"{name} {option} {value!r}", [*command(name), f"{option}={value}"], [option]
            )


def budgets() -> Iterator[Hostile]:
    """Budgets that bound nothing."""
    search = [*command("search")[:3], "--method", "automoe", "-o", "out"]
    yield Hostile("no budget", search, ["needs a budget"])
    for text, says in {
        "trainable=inf": "above 0",
        "trainable=nan": "above 0",
        "trainable=-1": "above 0",
        "trainable=0": "above 0",
        "trainable=": "above 0",
        "trainable": "above 0",
        "trainable=1e5,": "cannot be bounded",
        "trainible=1": "did you mean 'trainable'",
        "": "cannot be bounded",
    }.items():
        yield Hostile(f"budget {text!r}", [*search, f"--budget={text}"], [says])


def devices() -> Iterator[Hostile]:
    """Devices that are not there."""
    predict = ["toolkit", "predict", "bundle", "clip.wav"]
    train = [*command("train"), "--backbone", "ast_tiny"]
    yield Hostile("predict --device", [*predict, "--device"], ["--device"])
    yield Hostile("train --device", [*train, "--device"], ["device"])
    for device in ("gpu", "cuda:99", "meta", "cpu:x", "0", "[cpu]"):
        for words in (predict, train):
            row = [*words, "--device", device]
            yield Hostile(f"{words[1]} --device {device}", row, ["device"], prepared())


BROKEN = ("rank=[", "rank", "=", "rank={", "nope=1", "rank=!new:os.system", "rank='")


def specs() -> Iterator[Hostile]:
    """Names with settings that cannot be read."""
    for name, words in {
        "describe": ["toolkit", "describe", "peft", "--parameters", "lora:{}"],
        "corpus": ["toolkit", "corpus", "check", ".", "--as", "esc50:{}"],
        "compress": [*command("compress"), "--data_folder", "corpus", "--corpus", "esc50:{}"],
    }.items():
        for settings in (
            "rank=[",
            "rank",
            "=",
            "rank={",
            "nope=1",
            "rank=!new:os.system",
            "rank='",
        ):
            row = [word.replace("{}", settings) for word in words]
            yield Hostile(f"{name} {settings}", row, ["rank|nope|=|corpus\\."], prepared())


def binary(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(bytes(range(256)))


STUDY = "study: {study}\ncorpora: {{{corpus}: {{recipe: recipes/ESC50}}}}\nmethods: [{method}]\n"


def files() -> Iterator[Hostile]:
    """Files that are no configuration and no study."""
    for kind, words in {
        "configuration": ["toolkit", "train", "ESC50", "x.yaml"],
        "study": ["toolkit", "study", "run", "x.yaml"],
        "search": ["toolkit", "search", "x.yaml", *command("search")[3:]],
    }.items():
        for what, prepare in {
            "binary": binary("x.yaml"),
            "a list": own("x.yaml", "[1, 2]\n"),
            "a word": own("x.yaml", "lora\n"),
            "empty": own("x.yaml", ""),
            "broken": own("x.yaml", "a: [1\nb: 2\n"),
            "a key twice": own("x.yaml", "lr: 1\nlr: 2\n"),
            "a folder": lambda folder: (folder / "x.yaml").mkdir(),
        }.items():
            yield Hostile(f"{kind}: {what}", words, ["x.yaml"], prepare)
    for name in ("..", ".", "a/b", "", "~", "a b"):
        for kind, text in {
            "study": STUDY.format(study=repr(name), corpus="x", method="lora"),
            "corpus": STUDY.format(study="x", corpus=repr(name), method="lora"),
            "method": STUDY.format(
                study="x", corpus="x", method=f"{{hparams: lora, name: {name!r}}}"
            ),
        }.items():
            yield Hostile(
                f"{kind} named {name!r}",
                ["toolkit", "study", "run", "x.yaml"],
                ["cannot name a folder"],
                own("x.yaml", text),
            )


TABLE = (
    Hostile("no command", ["toolkit"], ["COMMAND"]),
    Hostile("unknown command", ["toolkit", "lst"], ["invalid choice: 'lst'"]),
    Hostile("unknown verb", ["toolkit", "study", "rum", "x.yaml"], ["invalid choice: 'rum'"]),
    Hostile("unknown kind", ["toolkit", "list", "pefft"], ["pefft"]),
    Hostile("no such name", ["toolkit", "list", "peft", "zzz*"], ["zzz"]),
    Hostile("two names", ["toolkit", "describe", "peft", "lora", "dora"], ["name one thing"]),
    Hostile("no name", ["toolkit", "describe", "peft"], ["name one thing"]),
    Hostile("matrix of nothing", ["toolkit", "matrix", "--method", "zzz"], ["no method"]),
    Hostile("unknown recipe", ["toolkit", "train", "ESC51", "lora"], ["did you mean 'ESC50'"]),
    Hostile("unknown method", ["toolkit", "train", "ESC50", "lroa"], ["did you mean 'lora'"]),
    Hostile("unknown engine", [*command("study run"), "--engine", "rai"], ["ray"], prepared()),
    Hostile("unknown tool", [*command("compress")[:4], "mc_mo", "-o", "x"], ["mc_moe"]),
    Hostile("a tool of the other verb", [*command("prune")[:4], "mc_moe", "-o", "x"], ["compress"]),
    Hostile("an option twice without a value", ["toolkit", "predict", "--top", "--top"], ["--top"]),
    Hostile(
        "misspelt setting",
        ["toolkit", "train", "ESC50", "lora", "--peft.rnk", "4"],
        ["rnk", "did you mean 'rank'"],
    ),
    *unknown(),
    *numbers(),
    *budgets(),
    *devices(),
    *specs(),
    *files(),
)


@pytest.mark.parametrize("row", TABLE, ids=str)
def test_refused(row: Hostile, tmp_path: Path, programs: Path) -> None:
    check_refused(row, tmp_path / "here", programs, ROOT)


def test_every_command_is_in_the_table() -> None:
    def leaves(of: argparse.ArgumentParser, name: str = "") -> Iterator[str]:
        groups = [a for a in of._actions if isinstance(a, argparse._SubParsersAction)]
        for group in groups:
            for word, inner in group.choices.items():
                yield from leaves(inner, f"{name} {word}".strip())
        if not groups:
            yield name

    assert set(leaves(parser())) == COMMANDS.keys()

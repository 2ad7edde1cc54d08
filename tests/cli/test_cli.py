"""The command `toolkit`: what it refuses, how it prints, and list, describe and new-plugin."""

import argparse
import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recipe import ROOT

import toolkit
from toolkit import config, plugins
from toolkit.cli import main
from toolkit.cli.console import print_table
from toolkit.cli.main import parser
from toolkit.errors import ConfigError, PlaceError
from toolkit.features.state_store import StateStore
from toolkit.registry import CORPORA, PEFT, REGISTRIES, TOOLS, Registry
from toolkit.scaffold import new_plugin

COMMAND = Path(sys.executable).parent / "toolkit"
RUFF = Path(sys.executable).parent / "ruff"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The output of a command, which must not write to the error stream."""
    main(words)
    output = capsys.readouterr()
    assert output.err == ""
    return output.out


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The error message of a command, which must end with status 2 and print nothing else."""
    with pytest.raises(SystemExit) as stopped:
        main(words)
    output = capsys.readouterr()
    assert (stopped.value.code, output.out) == (2, "")
    return output.err


def fresh(*command: object) -> subprocess.CompletedProcess[str]:
    """Run a command in a new process."""
    return subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=600
    )


# ---------------------------------------------------------------- list


@pytest.mark.parametrize("words", [["list"], ["--help"], ["list", "peft", "s*"]])
def test_a_listing_imports_neither_torch_nor_a_plugin(words: list[str]) -> None:
    script = f"""
import sys
from toolkit.cli import main
from toolkit.cli.console import print_table
from toolkit.cli.main import parser
try:
    main({words})
except SystemExit as stopped:
    assert not stopped.code
heavy = {{"torch", "transformers", "speechbrain", "numpy", "pandas", "rich", "hyperpyyaml"}}
assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
of_plugins = [m for m in sys.modules if m.startswith("toolkit_plugins.") and m.count(".") > 1]
assert not of_plugins, of_plugins
"""
    done = fresh(sys.executable, "-c", script)
    assert done.returncode == 0, done.stderr
    assert ("soft_moa" in done.stdout and "ssf" in done.stdout) == (words != ["--help"])


def test_the_command_is_the_module(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("list", "peft", "*a*")
    script, module = fresh(COMMAND, *words), fresh(sys.executable, "-m", "toolkit", *words)
    assert script.stdout == module.stdout == answer(capsys, *words)
    assert (script.returncode, module.returncode) == (0, 0)
    assert "  lora " in script.stdout


def test_list_shows_everything(capsys: pytest.CaptureFixture[str]) -> None:
    blocks: dict[str, list[str]] = {}
    for line in answer(capsys, "list").splitlines():
        if line.startswith("  "):
            blocks[next(reversed(blocks))].append(line)
        else:
            blocks[line] = []
    assert blocks.keys() == REGISTRIES.keys()
    for kind, lines in blocks.items():
        assert [line.split()[0] for line in lines] == REGISTRIES[kind].names()
        for line in lines:
            entry = REGISTRIES[kind].peek(line.split()[0])
            assert entry.description in line
            assert f"[{entry.metadata['paper']}]" in line


def test_list_of_a_pattern(capsys: pytest.CaptureFixture[str]) -> None:
    lines = answer(capsys, "list", "peft", "soft*").splitlines()
    assert lines[0] == "peft"
    assert [line.split()[0] for line in lines[1:]] == PEFT.names("soft*")
    assert "soft_moa" in lines[1]


@pytest.mark.parametrize(
    ("plural", "kind"),
    [("backbones", "backbone"), ("corpora", "corpus"), ("pipelines", "pipeline")],
)
def test_plurals(capsys: pytest.CaptureFixture[str], plural: str, kind: str) -> None:
    assert answer(capsys, "list", plural) == answer(capsys, "list", kind)


@pytest.mark.parametrize("command", ["list", "describe"])
def test_unknown_kind(capsys: pytest.CaptureFixture[str], command: str) -> None:
    words = [command, "petf", *(["x"] if command == "describe" else [])]
    message = refusal(capsys, *words)
    assert message.startswith("error: there is no registry 'petf'; did you mean 'peft'?")
    assert all(kind in message for kind in REGISTRIES)


def test_pattern_that_matches_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal(capsys, "list", "peft", "zzz*") == "error: no PEFT method matches 'zzz*'\n"


def test_version_and_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert (stopped.value.code, capsys.readouterr().out) == (0, f"{toolkit.__version__}\n")
    assert "arguments are required: COMMAND" in refusal(capsys)
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    text = capsys.readouterr().out
    assert stopped.value.code == 0
    assert all(command in text for command in ("list", "describe", "new-plugin", "predict"))


# ---------------------------------------------------------------- what a command does not know


def leaves(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parsers of all commands."""
    groups = [a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not groups:
        yield parser
    for command in (command for group in groups for command in group.values()):
        yield from leaves(command)


def shortest(command: argparse.ArgumentParser) -> list[str]:
    """A command line with everything that a command requires."""
    words = command.prog.split()[1:]
    for action in command._actions:
        if action.required and not action.option_strings:
            words.append("x")
        elif action.required:
            words += [action.option_strings[0], "x"]
    return words


@pytest.mark.parametrize("command", list(leaves(parser())), ids=lambda command: command.prog)
def test_every_command_refuses_what_it_does_not_know(
    capsys: pytest.CaptureFixture[str], command: argparse.ArgumentParser
) -> None:
    passes_on = command.prog.split()[-1] in ("train", "compress", "prune", "search")
    assert command.get_default("takes_settings") is passes_on
    if not passes_on:
        message = refusal(capsys, *shortest(command), "--typo=3")
        assert message.endswith("error: unrecognised arguments: --typo=3\n")
        assert "unrecognised arguments: --plug" in refusal(capsys, *shortest(command), "--plug=x")


def test_settings_that_a_tool_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compress", "bundle", "--method", "mc_moe", "-o", "small"]
    assert "unknown setting 'mc_moe.typo'" in refusal(capsys, *words, "--typo", "3")
    assert "unexpected argument 'word'" in refusal(capsys, *words, "word")


# ---------------------------------------------------------------- on a terminal


def test_a_fault_of_ours_is_drawn_on_a_terminal_and_raised_elsewhere(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(folders: object) -> None:
        raise ZeroDivisionError("of ours")

    monkeypatch.setattr("toolkit.plugins.discover_and_report", broken)
    with pytest.raises(ZeroDivisionError):
        main(["list"])
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with pytest.raises(SystemExit) as ended:
        main(["list"])
    assert ended.value.code == 1
    shown = capsys.readouterr().err
    assert "ZeroDivisionError" in shown and "of ours" in shown and "main.py" in shown


def test_tables_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", "60")
    shown = answer(capsys, "list", "corpus").split()
    assert {"corpus", "name", "description", "source"} <= set(shown)
    assert set(CORPORA.names()) <= set(shown)  # no name is wrapped
    shown = answer(capsys, "describe", "corpus", "esc50").split()
    assert {"setting", "default", "type", "description", "esc10"} <= set(shown)


@pytest.mark.parametrize("registry", REGISTRIES.values(), ids=REGISTRIES)
def test_kinds_may_be_in_the_plural(
    registry: Registry[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    plural = registry.variable.lower()
    assert answer(capsys, "list", plural) == answer(capsys, "list", registry.key)


def test_an_interrupted_command_ends_without_a_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*words: object) -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(PEFT, "names", interrupt)
    with pytest.raises(SystemExit, match="130"):
        main(["list", "peft"])
    assert capsys.readouterr().err == "\ninterrupted\n"


def test_a_table_elsewhere_is_one_line_per_row(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [("a" * 200, "[1]"), ("b", "[bold]")]
    print_table(rows, lambda name, text: f"{name} {text}", ("name", "text"), title="all")
    assert capsys.readouterr().out == f"all\n{'a' * 200} [1]\nb [bold]\n"


# ---------------------------------------------------------------- describe


def test_describe_soft_moa(capsys: pytest.CaptureFixture[str]) -> None:
    text = answer(capsys, "describe", "peft", "soft_moa")
    assert text.startswith(f"soft_moa: {PEFT.peek('soft_moa').description}\n")
    assert "source: arXiv:2402.00828; defined at" in text
    assert f"toolkit{os.sep}peft{os.sep}soft_moa.py:" in text
    assert "trains: 923,640 parameters on AST-base (1.07 %)" in text
    assert "the head (38,450 for 50 classes)" in text
    assert "placement = 'mhsa'  ('mhsa' | 'ffn' | 'both')" in text
    assert "num_experts = 7  (int, at least 1)" in text
    for field in dataclasses.fields(PEFT.get("soft_moa")):
        assert f"  {field.name} = {field.default!r}  (" in text
        assert field.metadata["doc"] in text


@pytest.mark.parametrize(
    ("name", "trains"),
    [("linear_probe", "1,536"), ("lora", "222,720"), ("ssf", "204,288"), ("full", "85,708,032")],
)
def test_describe_counts_what_trains(
    capsys: pytest.CaptureFixture[str], name: str, trains: str
) -> None:
    assert f"trains: {trains}" in answer(capsys, "describe", "peft", name)


def test_every_entry_can_be_described(capsys: pytest.CaptureFixture[str]) -> None:
    for kind, registry in REGISTRIES.items():
        for name in registry.names():
            text = answer(capsys, "describe", kind, name)
            assert text.startswith(f"{name}: {registry.peek(name).description}\n")
            assert ("\ntrains: " in text) == (kind == "peft")


def test_describe_shows_defaults_that_are_lists(capsys: pytest.CaptureFixture[str]) -> None:
    assert "targets = ['q', 'v']  (list of 'q' | 'k'" in answer(capsys, "describe", "peft", "lora")


@pytest.mark.parametrize(
    ("kind", "name", "shown"),
    [
        ("backbone", "ast", "source = 'MIT/ast-finetuned-audioset-10-10-0.4593'  (str)"),
        ("backbone", "ast", "stride = None  (int or none, at least 1)"),
        ("corpus", "esc50", "esc10 = False  (bool)"),
        ("pipeline", "fbank", "settings"),
    ],
)
def test_describe_other_kinds(
    capsys: pytest.CaptureFixture[str], kind: str, name: str, shown: str
) -> None:
    text = answer(capsys, "describe", kind, name)
    assert shown in text
    assert "trains:" not in text


def test_describe_unknown_name(capsys: pytest.CaptureFixture[str]) -> None:
    message = refusal(capsys, "describe", "peft", "soft_mao")
    assert message.startswith("error: no PEFT method is called 'soft_mao'; did you mean 'soft_moa'")


# ---------------------------------------------------------------- new-plugin


def test_a_new_plugin_passes_as_it_stands(
    capsys: pytest.CaptureFixture[str], elsewhere: Path
) -> None:
    text = answer(capsys, "new-plugin", "fresh_method")
    folder = elsewhere / "plugins" / "fresh_method"
    names = ["fresh_method.py", "fresh_method.yaml", "test_fresh_method.py"]
    assert sorted(file.name for file in folder.iterdir()) == names
    assert all(f"wrote plugins/fresh_method/{name}\n" in text for name in names)
    assert "toolkit train ESC50 plugins/fresh_method/fresh_method.yaml --debug" in text

    (elsewhere / "ruff.toml").write_text(
        f"extend = '{ROOT / 'pyproject.toml'}'\nsrc = ['{ROOT}']\n"
    )
    assert fresh(RUFF, "check", folder).stdout == "All checks passed!\n"
    assert fresh(RUFF, "format", "--check", folder).returncode == 0

    tested = fresh(sys.executable, "-m", "pytest", folder / names[2])
    assert tested.returncode == 0, tested.stdout
    assert "3 passed" in tested.stdout

    listed = fresh(COMMAND, "list", "peft", "fresh*", "--plugins", "plugins")
    assert listed.stdout.startswith("peft\n  fresh_method")
    assert listed.stderr == ""

    lines = (folder / names[1]).read_text().splitlines()
    assert len(lines) <= 15
    command_line = config.parse_command_line([f"plugins/fresh_method/{names[1]}"])
    values = config.load(command_line, ROOT / "recipes" / "ESC50").values
    assert values["peft"] == {"name": "fresh_method", "placement": "both"}
    assert values["batch_size"] == 32


@pytest.mark.parametrize("kind", ["backbone", "corpus", "pipeline"])
def test_the_command_to_try_a_new_plugin_finds_it(
    capsys: pytest.CaptureFixture[str], elsewhere: Path, kind: str
) -> None:
    text = answer(capsys, "new-plugin", f"tried_{kind}", "--kind", kind, "--folder", "mine")
    [command] = [line for line in text.splitlines() if line.startswith("try:")]
    assert f"tried_{kind}" in command and command.endswith("--plugins mine")


@pytest.mark.parametrize(
    "name",
    [
        "Big", "with-dash", "with space", "1st", "_x", "", "a.b", "../up", "class", "tête",
        "true", "null", "test_it", "conftest", "{name}",
    ],
)  # fmt: skip
def test_names_that_cannot_name_a_plugin(
    capsys: pytest.CaptureFixture[str], elsewhere: Path, name: str
) -> None:
    message = refusal(capsys, "new-plugin", name)
    assert message == (
        f"error: {name!r} cannot name a plugin; use lower-case letters, digits and _\n"
    )
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("name", ["soft_moa", "linear_probe", "ssf"])
def test_names_that_are_taken(
    capsys: pytest.CaptureFixture[str], elsewhere: Path, name: str
) -> None:
    message = refusal(capsys, "new-plugin", name)
    assert (
        message == f"error: there is already a PEFT method '{name}' at {PEFT.peek(name).origin}\n"
    )
    assert list(elsewhere.iterdir()) == []


def test_a_folder_that_is_there_is_left_alone(
    capsys: pytest.CaptureFixture[str], elsewhere: Path
) -> None:
    mine = elsewhere / "mine" / "thing"
    mine.mkdir(parents=True)
    (mine / "thing.txt").write_text("precious")
    message = refusal(capsys, "new-plugin", "thing", "--folder", "mine")
    assert message.startswith("error: mine/thing is already there")
    assert [file.read_text() for file in mine.iterdir()] == ["precious"]


def test_new_plugin_from_python(elsewhere: Path) -> None:
    files = new_plugin("one", elsewhere / "deep" / "place")
    assert [file.name for file in files] == ["one.py", "one.yaml", "test_one.py"]
    assert all(file.is_file() for file in files)
    with pytest.raises(PlaceError, match="already there"):
        new_plugin("one", elsewhere / "deep" / "place")
    with pytest.raises(ConfigError, match="cannot name a plugin"):
        new_plugin("Two", elsewhere)


# ---------------------------------------------------------------- the plugin of this repository


def test_every_plugin_of_this_repository_is_whole() -> None:
    assert plugins.report(plugins.load()) == ""
    for folder in plugins.nearest():
        name = folder.name
        assert (folder / "README.md").is_file()
        assert (folder / f"test_{name}.py").is_file()
        kinds = [registry for registry in (PEFT, TOOLS) if name in registry.names()]
        assert kinds and all(registry.entry(name).metadata["paper"] for registry in kinds)
        if PEFT in kinds:
            assert len((folder / f"{name}.yaml").read_text().splitlines()) <= 15


def test_parameters_of_all_methods_and_of_some(capsys: pytest.CaptureFixture[str]) -> None:
    main(["describe", "peft", "--parameters"])
    table = {row.split()[0]: row.split()[1:] for row in capsys.readouterr().out.splitlines()[1:]}
    assert table.keys() == set(PEFT.names())
    assert table["soft_moa"] == ["923,640", "38,450", "85,688,064"]
    assert table["full"] == ["85,708,032", "38,450", "0"]
    main(["describe", "peft", "lora:targets=[q, k, v],rank=4", "--parameters"])
    assert f"{12 * 3 * 2 * 768 * 4 + 1536:,}" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["describe", "backbone", "--parameters"])
    assert "PEFT methods" in capsys.readouterr().err


def test_a_tools_corpus_without_its_folder_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compress", "bundle", "--method", "mc_moe", "-o", "small", "--corpus", "esc50"]
    assert "where is 'esc50'? Name its folder with `--data_folder`" in refusal(capsys, *words)


# ---------------------------------------------------------------- cache


def test_caches_are_listed_and_cleared(
    capsys: pytest.CaptureFixture[str], cache_folder: Path
) -> None:
    assert "0.0 MB" in answer(capsys, "cache", "list")
    store = StateStore(cache_folder, {"block": 3}, 1000)
    store.add({"clip": np.ones((500, 1000), np.float32)})
    title, line = answer(capsys, "cache", "list").splitlines()
    assert title == f"{cache_folder}: 2.0 MB"
    assert line.startswith(f"states/{store.folder.name}  cache of states  2.0 MB  ")
    assert line.endswith("in use")
    kept = answer(capsys, "cache", "clear")
    assert kept == f"0.0 MB removed from {cache_folder}\n1 in use, and kept\n"
    del store
    assert answer(capsys, "cache", "clear") == f"2.0 MB removed from {cache_folder}\n"
    assert "0.0 MB" in answer(capsys, "cache", "list")


def test_another_cache_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    StateStore(folder, {}, 10).add({"clip": np.ones((5, 10), np.float32)})
    assert "cache of states" in answer(capsys, "cache", "list", "--cache_folder", str(folder))


def test_a_cache_with_files_of_others_is_kept(
    capsys: pytest.CaptureFixture[str], cache_folder: Path
) -> None:
    StateStore(cache_folder, {}, 10).add({"clip": np.ones((5, 10), np.float32)})
    (folder,) = (path for path in (cache_folder / "states").iterdir() if path.is_dir())
    (folder / "precious.txt").write_text("mine")
    with pytest.raises(SystemExit) as stopped:
        main(["cache", "clear"])
    output = capsys.readouterr()
    assert stopped.value.code == 2 and "precious.txt" in output.err
    assert output.out.startswith("0.0 MB removed")
    assert (folder / "precious.txt").is_file()

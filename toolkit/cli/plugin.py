"""Write a plugin to start from, and check plugins: `toolkit new-plugin`, `toolkit check-plugin`."""

import argparse
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from toolkit.cli.parser import Commands
from toolkit.errors import PluginError

TRY = {
    "peft": "toolkit train ESC50 {module} --debug",
    "augmentation": "toolkit train ESC50 {module} --debug",
    "backbone": "toolkit matrix --backbone {name} --plugins {folder}",
    "corpus": "toolkit corpus check DATA --as {name} --plugins {folder}",
    "pipeline": "toolkit train ESC50 linear --pipeline {name} --debug --plugins {folder}",
}
"""Kind of plugin -> the command with which its author goes on."""


def add(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add the commands `new-plugin` and `check-plugin`."""
    new = commands.add_parser("new-plugin", parents=[common], help="write a new plugin")
    new.add_argument("name")
    new.add_argument("--kind", choices=TRY, default="peft", help="of what; default: peft")
    new.add_argument("--folder", type=Path, default=Path("plugins"), help="default: plugins")
    new.set_defaults(run=make_plugin)

    check = commands.add_parser(
        "check-plugin",
        parents=[common],
        help="check what plugins register against its contract, and run their tests",
    )
    check.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="of one plugin")
    check.set_defaults(run=check_plugins)


def make_plugin(options: argparse.Namespace) -> None:
    """`toolkit new-plugin NAME --kind KIND`."""
    from toolkit.scaffold import new_plugin

    files = new_plugin(options.name, options.folder, options.kind)
    for file in files:
        print(f"wrote {file}")
    command = TRY[options.kind].format(name=options.name, module=files[1], folder=options.folder)
    print(f"try:  {command}")
    print(f"test: python -m pytest {files[-1]}")


def check_plugins(options: argparse.Namespace) -> None:
    """`toolkit check-plugin FOLDER...`.

    Raises:
        PluginError: a plugin is broken, breaks a contract, or fails its own tests.
    """
    from toolkit import plugins
    from toolkit.testing.plugin import verdicts

    failed = []
    for folder in options.folders:
        if not folder.is_dir():
            what = "is a file" if folder.exists() else "does not exist"
            raise PluginError(f"{folder} {what}: name the folder of a plugin")
        broken = plugins.report(
            p for p in plugins.load([folder]) if Path(p.origin) == folder.resolve()
        )
        if broken:
            raise PluginError(broken)
        for verdict in verdicts(folder.resolve().name):
            print(f"{verdict.thing}: {verdict.reason or 'keeps its contract'}", flush=True)
            failed += [verdict.thing] if verdict.reason else []
        failed += [] if _tests_pass(folder) else [f"the tests of {folder}"]
    if failed:
        raise PluginError(f"checks have failed of {', '.join(failed)}: correct what is said above")


def _tests_pass(folder: Path) -> bool:
    """Whether the tests of a plugin pass; also if there are none."""
    if not list(folder.glob("test_*.py")):
        print(f"{folder} has no test_*.py")
        return True
    if find_spec("pytest") is None:
        raise PluginError("the plugin's own tests need pytest: `pip install pytest`")
    tests = [sys.executable, "-m", "pytest", "-q", "--import-mode=importlib", str(folder)]
    return subprocess.run(tests, check=False).returncode == 0

"""Plugins: where they are found, and that a broken one is reported and does not affect others."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from toolkit import plugins
from toolkit.cli import main
from toolkit.errors import PluginError, UnknownName
from toolkit.plugins import Plugin
from toolkit.program import Program
from toolkit.registry import PEFT, REGISTRIES

METHOD = '''
from toolkit.peft.base import PeftMethod
from toolkit.registry import PEFT


@PEFT.register("{name}")
class Method(PeftMethod):
    """The method {name}."""

    def insert(self, backbone) -> None:
        """Nothing."""
'''


@pytest.fixture(autouse=True)
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty working directory without entry points; plugins are unregistered after each test."""
    plugins.load()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TOOLKIT_PLUGINS", raising=False)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [])
    monkeypatch.setattr(plugins, "_found", dict(plugins._found))
    names = {kind: registry.snapshot() for kind, registry in REGISTRIES.items()}
    modules = set(sys.modules)
    yield
    for kind, registry in REGISTRIES.items():
        registry.restore(names[kind])
    for module in set(sys.modules) - modules:
        if module.startswith(plugins.PACKAGE):
            del sys.modules[module]


def write(folder: Path | str, **files: str) -> Path:
    """Write a folder of Python files."""
    Path(folder).mkdir(parents=True)
    for name, text in files.items():
        (Path(folder) / f"{name}.py").write_text(text)
    return Path(folder)


def method(folder: Path | str, name: str | None = None) -> Path:
    """A plugin that registers one method, called as its folder unless a name is given."""
    return write(folder, method=METHOD.format(name=name or Path(folder).name))


def loaded(*folders: Path | str) -> dict[str, Plugin]:
    """All plugins by name, those in `plugins/` of this folder included."""
    here = [path for path in ("plugins",) if Path(path).is_dir()]
    return {plugin.name: plugin for plugin in plugins.load([*folders, *here])}


# ---------------------------------------------------------------- where they are found


def test_beside_the_recipes() -> None:
    ssf = loaded()["ssf"]
    assert ssf.error is None
    assert Path(ssf.origin) == Path(__file__).parents[1] / "plugins" / "ssf"
    assert PEFT.get("ssf").__module__ == "toolkit_plugins.ssf.ssf"


@pytest.mark.parametrize("place", ["plugins", "."])
def test_in_the_working_directory_if_it_is_named(place: str) -> None:
    method("plugins/red")
    method("plugins/blue")
    assert {"red", "blue"} <= {plugin.name for plugin in plugins.load([place])}
    assert PEFT.names("[rb]*e*") == ["blue", "red"]
    assert PEFT.create("red").registered_name == "red"


def test_not_in_the_working_directory_if_it_is_not_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It may be a folder that was downloaded; one line says what is not used."""
    write("plugins/red", red="open('sentinel', 'w')\n" + METHOD.format(name="red"))
    main(["list", "peft"])
    output = capsys.readouterr()
    assert "The method red." not in output.out
    assert output.err == (
        "the plugins in plugins/ of this folder are not used (red): if you trust them, add "
        "`--plugins plugins`\n"
    )
    with pytest.raises(SystemExit):
        main(["describe", "peft", "red"])
    assert not Path("sentinel").exists()


@pytest.mark.parametrize(
    ("recipe", "hparams", "expected"),
    [
        ("mine/ESC50", "hparams/lora.yaml", ["mine/plugins"]),
        ("mine/recipes/ESC50", "hparams/lora.yaml", ["mine/plugins"]),
        ("elsewhere/ESC50", "mine/plugins/red/red.yaml", ["mine/plugins"]),
        ("mine/ESC50", "mine/plugins/red/red.yaml", ["mine/plugins", "mine/plugins"]),
        ("elsewhere/ESC50", "mine/red.yaml", []),
        ("elsewhere/ESC50", "mine/deep/plugins.yaml", []),
    ],
)
def test_of_the_project_that_is_trained_with(
    recipe: str, hparams: str, expected: list[str]
) -> None:
    method("mine/plugins/red")
    found = plugins.of_project(Path(recipe), Path(hparams))
    assert found == [Path(folder).resolve() for folder in expected]


def test_in_folders_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone, many = method(tmp_path / "x" / "alone"), tmp_path / "many"
    method(many / "first")
    method(many / "second")
    monkeypatch.setenv("TOOLKIT_PLUGINS", os.pathsep.join([str(alone), "", str(many)]))
    assert {"alone", "first", "second"} <= loaded().keys()
    assert {"alone", "first", "second"} <= set(PEFT.names())


def test_in_folders_named_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    method(tmp_path / "here" / "red")
    method(tmp_path / "there" / "blue")
    main(["list", "peft", "*", "--plugins", "here", "--plugins", "there/blue"])
    output = capsys.readouterr()
    assert "  red                The method red.\n" in output.out
    assert "  blue               The method blue.\n" in output.out
    assert output.err == ""


def entry_point(name: str, value: str) -> EntryPoint:
    """An entry point as an installed package declares it."""
    return EntryPoint(name, value, plugins.ENTRY_POINT_GROUP)


@pytest.mark.parametrize("module", ["installed", "installed.deep", "installed.deep.method"])
def test_entry_points(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, module: str) -> None:
    write("installed", __init__="")
    write("installed/deep", __init__="")
    path = Path(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    file.write_text(METHOD.format(name="from_wheel"))
    monkeypatch.syspath_prepend(tmp_path)
    point, asked = entry_point("wheel", f"{module}:Method"), []
    monkeypatch.setattr(plugins, "entry_points", lambda group: asked.append(group) or [point])
    found = {plugin.name: plugin for plugin in plugins.discover()}
    assert (found["wheel"].origin, found["wheel"].error) == (f"{module}:Method", None)
    assert PEFT.peek("from_wheel").description == "The method from_wheel."
    assert "installed" not in sys.modules
    assert PEFT.get("from_wheel").__module__ == module
    assert asked == ["toolkit.plugins"]
    for name in [name for name in sys.modules if name.split(".")[0] == "installed"]:
        del sys.modules[name]


def test_the_modules_beside_an_entry_point(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write("several", __init__="", one=METHOD.format(name="one"), two=METHOD.format(name="two"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [entry_point("it", "several")])
    plugins.discover()
    assert {"one", "two"} <= set(PEFT.names())
    assert "several" not in sys.modules


def test_each_is_imported_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counter = tmp_path / "count"
    folder = write("plugins/counting", count=f"open({str(counter)!r}, 'a').write('x')")
    monkeypatch.setenv("TOOLKIT_PLUGINS", "plugins")
    first, second = plugins.load([folder]), plugins.load([folder.resolve()])
    assert first == second
    assert [p.name for p in first].count("counting") == 1
    assert counter.read_text() == "x"


def test_several_files_and_relative_imports() -> None:
    write(
        "plugins/large",
        a_method="from .parts import NAME\nfrom . import parts\n" + METHOD.format(name="large"),
        parts="from toolkit_plugins.large.words import WORD\nNAME = WORD\n",
        words="WORD = 'large'\n",
    )
    assert loaded()["large"].error is None
    assert PEFT.get("large").__module__ == "toolkit_plugins.large.a_method"


def test_a_folder_name_need_not_be_an_identifier() -> None:
    method("plugins/my-method", "mine")
    assert loaded()["my-method"].error is None
    assert PEFT.create("mine").registered_name == "mine"


def test_tests_hidden_folders_and_stray_files_are_no_plugins() -> None:
    method("plugins/good")
    for name in ("test_it", "conftest", "__init__"):
        Path(f"plugins/good/{name}.py").write_text("raise RuntimeError('imported')")
    write("plugins/.ipynb_checkpoints", copy=METHOD.format(name="good"))
    write("plugins/__pycache__", cached="raise RuntimeError('imported')")
    Path("plugins/stray.py").write_text("x = 1")
    Path("plugins/empty").mkdir()
    found = loaded()
    assert plugins.report(found.values()) == ""
    assert found.keys() & {"good", ".ipynb_checkpoints", "__pycache__", "plugins", "empty"} == {
        "good"
    }


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_a_named_folder_that_is_missing(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "environment":
        monkeypatch.setenv("TOOLKIT_PLUGINS", "no/such/folder")
    with pytest.raises(PluginError, match="plugin folder no/such/folder does not exist"):
        plugins.load(["no/such/folder"] if how == "argument" else [])


def test_the_command_says_which_folder_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["list", "--plugins", "nowhere"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: the plugin folder nowhere does not exist\n"


# ---------------------------------------------------------------- broken ones

BROKEN = {
    "raises": ("raise RuntimeError('boom')", "RuntimeError: boom"),
    "syntax": ("def f(:\n    pass", "line 1: invalid syntax"),
    "exits": ("import sys\nsys.exit('bye')", "SystemExit: bye"),
    "missing import": ("import no_such_package_at_all", "ModuleNotFoundError"),
    "duplicate": (METHOD.format(name="lora"), "the PEFT method 'lora' is registered twice"),
    "half": (METHOD.format(name="half") + "\nraise ValueError('after')", "ValueError: after"),
    "bad setting": (
        METHOD.format(name="half").replace("    def", "    rank: int = 'x' + 1\n\n    def"),
        "TypeError",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_plugin_is_reported_and_hurts_nobody(kind: str) -> None:
    source, complaint = BROKEN[kind]
    before = {key: set(registry.names()) for key, registry in REGISTRIES.items()}
    lora = PEFT.get("lora")
    method("plugins/a_good")
    method("plugins/z_good")
    write("plugins/m_broken", a_first=METHOD.format(name="first_file"), broken=source)
    found = loaded()
    assert [name for name, plugin in found.items() if plugin.error] == ["m_broken"]
    report = plugins.report(found.values())
    assert report.startswith(f"plugin 'm_broken' ({Path('plugins/m_broken').resolve()}) is broken")
    assert report.count("\n") == 0
    assert "m_broken/broken.py" in report
    assert complaint in report
    assert set(PEFT.names()) - before["peft"] == {"a_good", "z_good"}
    assert all(set(REGISTRIES[k].names()) == before[k] for k in before if k != "peft")
    assert PEFT.get("lora") is lora
    assert PEFT.create("z_good").registered_name == "z_good"
    with pytest.raises(UnknownName):
        PEFT.get("first_file")


def test_all_broken_plugins_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    write("plugins/one", code="1 / 0")
    write("plugins/two", code="[][0]")
    point = entry_point("three", "three:plugin")
    monkeypatch.setattr(plugins, "entry_points", lambda group: [point])
    report = plugins.report(loaded().values())
    complaints = {"one": "ZeroDivision", "two": "IndexError", "three": "no source file of three:p"}
    for name, complaint in complaints.items():
        assert f"plugin '{name}'" in report
        assert complaint in report


def test_a_broken_plugin_keeps_the_entries_of_another_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("plugins/twin", broken=METHOD.format(name="of_folder") + "\n1 / 0")
    write("twin_package", __init__=METHOD.format(name="of_package"))
    monkeypatch.syspath_prepend(tmp_path)
    point = entry_point("twin", "twin_package")
    monkeypatch.setattr(plugins, "entry_points", lambda group: [point])
    assert "ZeroDivision" in plugins.report(plugins.load(["plugins"]))
    assert PEFT.names("of_*") == ["of_package"]
    del sys.modules["twin_package"]


def test_two_folders_of_one_name(tmp_path: Path) -> None:
    method("plugins/twin", "first_twin")
    other = method(tmp_path / "elsewhere" / "twin", "second_twin")
    assert plugins.report(plugins.load([other, "plugins"])) == ""
    assert PEFT.names("*_twin") == ["second_twin"]
    assert plugins.shadowed([other, "plugins"]) == (
        f"plugins of {other.parent} are used instead of those in {Path('plugins').resolve()}: twin"
    )


def test_what_is_imported_stays_when_a_nearer_one_is_named_later(tmp_path: Path) -> None:
    method("plugins/twin", "first_twin")
    other = method(tmp_path / "elsewhere" / "twin", "second_twin")
    plugins.load(["plugins"])
    assert plugins.report(plugins.load([other])) == ""
    assert PEFT.names("*_twin") == ["first_twin"]


def test_a_folder_reached_in_two_ways_is_one(tmp_path: Path) -> None:
    Path("link").symlink_to(method("plugins/alone").parent)
    assert [f.name for f in plugins.candidates(["plugins", "link"])].count("alone") == 1
    assert plugins.shadowed(["plugins", "link"]) == ""


def test_another_checkout_that_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its plugins are nearer and take precedence; one line says so, none counts as broken."""
    own = Path(__file__).parents[1] / "plugins"
    shutil.copytree(own, "plugins", ignore=shutil.ignore_patterns("test_*", "__pycache__"))
    command = [sys.executable, "-m", "toolkit", "list", "peft", "--plugins", "plugins"]
    environment = {**os.environ, "PYTHONPATH": str(own.parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "ssf" in done.stdout
    names = sorted(f.name for f in plugins.nearest(["plugins"]) if f.parent != own)
    assert done.stderr == (
        f"plugins of {Path('plugins').resolve()} are used instead of those in {own}: "
        f"{', '.join(names)}\n"
    )


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_is_not_a_broken_plugin(name: str) -> None:
    write("plugins/slow", code=f"import os, signal\nos.kill(os.getpid(), signal.{name})\n")
    number = getattr(signal, name)
    before = signal.signal(number, signal.default_int_handler)  # `nohup` may ignore it
    try:
        with pytest.raises(SystemExit) as ended, Program():
            plugins.load(["plugins"])
    finally:
        signal.signal(number, before)
    assert ended.value.code == 128 + number


def test_an_interrupt_by_the_user_is_not_a_broken_plugin() -> None:
    write("plugins/slow", code="import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # `&` ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            plugins.load(["plugins"])
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_plugin_that_raises_an_interrupt_is_broken() -> None:
    write("plugins/sly", code="raise KeyboardInterrupt")
    assert "KeyboardInterrupt" in plugins.report(loaded().values())


# ---------------------------------------------------------------- read, not imported


def test_nothing_is_imported_until_an_entry_is_asked_for() -> None:
    method("plugins/lazy")
    plugins.discover(["plugins"])
    assert PEFT.peek("lazy").description == "The method lazy."
    assert PEFT.peek("lazy").plugin == "lazy"
    assert "toolkit_plugins.lazy.method" not in sys.modules
    assert PEFT.create("lazy").registered_name == "lazy"
    assert "toolkit_plugins.lazy.method" in sys.modules
    assert PEFT.peek("lazy").plugin == "lazy"


def test_a_plugin_may_import_another_one() -> None:
    method("plugins/z_base", "base_method")
    write(
        "plugins/a_child",
        child="from toolkit_plugins.z_base.method import Method as Base\n"
        + METHOD.format(name="child").replace("PeftMethod)", "Base)"),
    )
    plugins.discover(["plugins"])
    assert PEFT.get("child").__mro__[1] is PEFT.get("base_method")


UNREADABLE = {
    "syntax": ("def f(:\n    pass", "broken.py, line 1: invalid syntax"),
    "binary": ("\0", "null bytes"),
    "duplicate": (METHOD.format(name="lora"), "the PEFT method 'lora' is registered twice"),
    "twice": (METHOD.format(name="a_first"), "the PEFT method 'a_first' is registered twice"),
    "a variable": (
        "NAME = 'x'\n" + METHOD.format(name="x").replace('"x"', "NAME"),
        "broken.py:7: write the arguments of `register` as literals, the name first",
    ),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_plugin_that_cannot_be_read_is_left_out_in_one_line(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source, complaint = UNREADABLE[kind]
    before = set(PEFT.names())
    method("plugins/a_good")
    write("plugins/m_broken", a_first=METHOD.format(name="a_first"), broken=source)
    main(["list", "peft", "--plugins", "plugins"])
    output = capsys.readouterr()
    assert "The method a_good." in output.out
    assert output.err.count("\n") == 1
    assert output.err.startswith("plugin 'm_broken' (") and complaint in output.err
    assert set(PEFT.names()) - before == {"a_good"}
    assert PEFT.get("lora").__module__ == "toolkit.peft.lora"


def test_a_plugin_that_cannot_be_imported_is_reported_when_it_is_used(
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = METHOD.format(name="half") + "\nraise RuntimeError('boom')"
    write("plugins/bad", code=source, other=METHOD.format(name="whole"))
    main(["list", "peft", "half", "--plugins", "plugins"])
    assert "The method half." in capsys.readouterr().out
    for _ in range(2):
        with pytest.raises(SystemExit) as stopped:
            main(["describe", "peft", "half", "--plugins", "plugins"])
        error = capsys.readouterr().err
        assert stopped.value.code == 2
        assert error.startswith("error: 'half' cannot be used, because its plugin 'bad' is broken")
        assert "bad/code.py" in error and "RuntimeError: boom" in error
    assert PEFT.create("whole").registered_name == "whole"

"""What may be constructed: names of a list, each of the kind that its key takes; nothing else."""

import contextlib
import functools
import importlib
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hyperpyyaml import load_hyperpyyaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recipe import ROOT
from ruamel.yaml import YAML

from toolkit import config
from toolkit.config.allowed import AUGMENTATION, KINDS, OPTIMISER, SCHEDULER, find_callable
from toolkit.errors import ConfigError
from toolkit.training.trial import try_optimizer

# ---------------------------------------------------------------- the list


@pytest.mark.parametrize("path", [path for kind in KINDS for path in kind.paths()])
def test_every_name_of_the_list_exists(path: str) -> None:
    module, _, name = path.rpartition(".")
    target = getattr(importlib.import_module(module), name)
    assert isinstance(target, type)
    assert find_callable("any", f"!name:{path}", trusted=False) is target


@pytest.mark.parametrize("kind", [OPTIMISER, SCHEDULER, AUGMENTATION], ids=lambda kind: kind.name)
def test_every_name_is_of_its_kind(kind: Any) -> None:
    for path in kind.paths():
        assert kind.fits(find_callable("any", f"!name:{path}", trusted=False)), path


@pytest.mark.parametrize("path", OPTIMISER.paths())
def test_every_optimiser_of_the_list_trains(path: str) -> None:
    """Two steps raise no error: `try_optimizer` refuses what does not train."""
    try_optimizer(find_callable("optimizer", f"!name:{path}", trusted=False), 0.01, "cpu")


WRITES_OR_RUNS = (
    "torch.save",
    "torch.load",
    "torch.hub.load",
    "torch.hub._load_local",
    "torch.hub.load_state_dict_from_url",
    "torch.utils.cpp_extension.load",
    "torch.utils.cpp_extension.load_inline",
    "torch.package.PackageExporter",
    "torch.package.PackageImporter",
    "torch.fx.graph_module._exec_with_source",
    "torch.jit.load",
    "torch.distributed.elastic.multiprocessing.subprocess_handler.SubprocessHandler",
    "torch.distributed.FileStore",
    "torch.utils.tensorboard.SummaryWriter",
    "torch.utils.collect_env.run",
    "torch.os.system",
    "torch.sys.exit",
    "torch.optim.os.system",
    "torch.optim.optimizer.Optimizer",
    "torch.optim.lr_scheduler.warnings.warn",
    "torch.nn.Linear",
    "torch.zeros",
    "toolkit.training.output.OutputFolder",
    "toolkit.files.new_folder",
    "toolkit.plugins.load",
    "toolkit.scaffold.new_plugin",
    "toolkit.recipes.train",
    "toolkit.data.augment.torch.save",
    "toolkit.data.augment.Generator",
    "toolkit.config.trust.load_hyperpyyaml",
    "toolkit.peft.lora.LoRA",
    "speechbrain.utils.checkpoints.Checkpointer",
    "speechbrain.utils.train_logger.FileTrainLogger",
    "speechbrain.utils.superpowers.run_shell",
    "speechbrain.core.Brain",
    "speechbrain.augment.time_domain.AddNoise",
    "speechbrain.utils.fetching.fetch",
    "os.system",
    "subprocess.Popen",
    "builtins.eval",
    "builtins.exec",
    "eval",
    "shutil.rmtree",
    "pathlib.Path.unlink",
    "importlib.import_module",
    "toolkit_plugins",
    "toolkit_plugins.ssf.ssf.SSF",
    "toolkit_plugins.ssf.ssf.torch.save",
    "",
    ".",
    "..",
    "torch",
    "torch.optim",
    "torch.optim.",
    ".torch",
)


@pytest.mark.parametrize("where", ["optimizer", "augment.0", "label"])
@pytest.mark.parametrize("tag", ["!new", "!name", "!apply"])
@pytest.mark.parametrize("path", WRITES_OR_RUNS)
def test_what_writes_or_runs_is_not_allowed_anywhere(path: str, tag: str, where: str) -> None:
    with pytest.raises(ConfigError, match="--trust"):
        find_callable(where, f"{tag}:{path}", trusted=False)


@pytest.mark.parametrize(
    ("where", "tag", "message"),
    [
        ("optimizer", "!new:torch.optim.AdamW", "takes !name:torch.optim.AdamW"),
        ("augment.0", "!name:toolkit.data.augment.Mixup", "takes !new:toolkit.data.augment.Mixup"),
        ("optimizer", "!name:toolkit.data.augment.Mixup", "no optimiser"),
        ("optimizer", "!name:torch.optim.lr_scheduler.StepLR", "no optimiser"),
        ("optimizer", "!name:torch.optim.AdamWW", "did you mean 'torch.optim.AdamW'"),
        ("augment.0", "!new:torch.optim.AdamW", "no augmentation"),
        ("augment.0.inner", "!new:torch.optim.AdamW", "no augmentation"),
        ("augment.0", "!new:toolkit.data.augment.Mixupp", "did you mean"),
    ],
)
def test_a_key_takes_its_own_kind(where: str, tag: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_callable(where, tag, trusted=False)


PLUGIN = """
import torch
from torch.optim import AdamW
from subprocess import Popen


class Mine(torch.optim.SGD): ...


class Noise:
    def __call__(self, features, targets, generator):
        return features, targets


class Layer(torch.nn.Module):
    def forward(self, features, targets, generator):
        return features, targets


class Runs:
    def __init__(self): open("sentinel", "w")


class Waves(torch.nn.Module):
    def forward(self, waveforms): ...


def function(): ...
"""


def test_classes_of_a_plugin_are_allowed_by_their_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from toolkit import plugins

    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "own.py").write_text(PLUGIN)
    monkeypatch.setattr(plugins, "_found", dict(plugins._found))
    plugins.discover([tmp_path / "own"])

    def find(where: str, tag: str) -> str:
        return str(
            find_callable(where, tag.replace(":", ":toolkit_plugins.own.own."), False).__name__
        )

    assert find("optimizer", "!name:Mine") == "Mine"
    assert find("augment.0", "!new:Noise") == "Noise"
    assert find("augment.0", "!new:Layer") == "Layer"
    for name in ("Runs", "Waves", "function", "Popen", "AdamW", "torch.save", "nothing"):
        for where in ("optimizer", "augment.0", "label"):
            with pytest.raises(ConfigError, match="--trust"):
                find(where, f"!name:{name}")
    del sys.modules["toolkit_plugins.own.own"], sys.modules["toolkit_plugins.own"]


# ---------------------------------------------------------------- tags in any position


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What of a module `evil` was called."""
    calls: list[str] = []
    module: Any = types.ModuleType("evil")
    module.run = lambda *arguments, **options: calls.append("run")
    module.Run = type("Run", (), {"__init__": lambda self, *a, **o: calls.append("Run")})
    module.Run.__module__ = "evil"
    monkeypatch.setitem(sys.modules, "evil", module)
    yield calls


def test_the_reference_loader_does_call(called: list[str]) -> None:
    """So that the next test means something."""
    load_hyperpyyaml("a: {<<: {b: !apply:evil.run [1]}}\nc: !!pairs [d: !new:evil.Run []]\n")
    assert called == ["run", "Run"]


EVIL = st.sampled_from(
    [
        "!apply:evil.run",
        "!new:evil.Run",
        "!name:evil.run",
        "!applyref:evil.run",
        "!module:evil",
        "!include:evil.yaml",
        "!!python/object/apply:evil.run",
        "!!python/object/new:evil.Run",
        "!!python/name:evil.run",
        "!<!apply:evil.run>",
        "!apply:ev%69l.run",
        "!!set",
        "!!pairs",
        "!!omap",
        "!!map",
        "!!seq",
        "!!str",
        "!tuple",
        "!ref",
        "!copy",
        "!PLACEHOLDER",
        "&a",
        "!",
    ]
)
DOCUMENTS = st.recursive(
    st.sampled_from(["1", "x", "*a", "<label>", "'(!!python/object/apply:evil.run [1])'"]),
    lambda inner: st.one_of(
        st.builds("{} {}".format, EVIL, inner),
        st.builds("[{}, {}]".format, inner, inner),
        st.builds("{{k: {}, l: {}}}".format, inner, inner),
        st.builds("{{? {} : {}}}".format, inner, inner),
        st.builds("{{<<: {{m: {}}}, k: {}}}".format, inner, inner),
        st.builds("{{<<: [{{m: {}}}, {{n: {}}}]}}".format, inner, inner),
        st.builds("!!pairs [k: {}]".format, inner),
        st.builds("!!omap [k: {}]".format, inner),
        st.builds("!!set {{? {}}}".format, inner),
        st.builds("!new:toolkit.data.augment.Mixup {{alpha: {}}}".format, inner),
    ),
    max_leaves=8,
)
WHERE = st.sampled_from(
    ["label", "seed", "optimizer", "augment", "peft", "<<", "extends", "!x label"]
)


@given(st.sampled_from(["&a 1", "&a {x: 1}", "&a [1]"]), WHERE, DOCUMENTS)
@settings(
    max_examples=400,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_nothing_outside_the_list_is_ever_called(
    called: list[str], tmp_path: Path, anchored: str, key: str, document: str
) -> None:
    base = "seed: 1\nlabel: x\npeft: {name: lora}\naugment: []\noptimizer: null\nfirst: null\n"
    (tmp_path / "base.yaml").write_text(base)
    (tmp_path / "evil.yaml").write_text(
        f"extends: base.yaml\nfirst: {anchored}\n{key}: {document}\n"
    )
    command = config.parse_command_line([str(tmp_path / "evil.yaml")])
    with contextlib.suppress(ConfigError):
        config.load(command, tmp_path)
    assert called == []


# ---------------------------------------------------------------- the same as HyperPyYAML

FILES = sorted(
    file
    for pattern in ("recipes/*/hparams/*.yaml", "plugins/*/*.yaml", "tools/pretrain/hparams/*.yaml")
    for file in ROOT.glob(pattern)
    if file.stem not in ("embedded", "recipe")
)


def comparable(value: Any) -> Any:
    """A constructed value as plain values."""
    if isinstance(value, dict):
        return {key: comparable(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [comparable(inner) for inner in value]
    if isinstance(value, functools.partial):
        return [value.func, comparable(value.args), comparable(value.keywords)]
    return [type(value), vars(value)] if hasattr(value, "__dict__") else value


def by_hyperpyyaml(file: Path) -> dict[str, Any]:
    """What HyperPyYAML makes of a file whose values override those of the file that it extends."""
    values: dict[str, Any] = {}
    while True:
        own = YAML().load(file.read_text(encoding="utf-8"))
        for key in ("peft", "backbone"):
            if isinstance(own.get(key), str):
                own[key] = {"name": own[key]}
        parent = own.pop("extends", None)
        if parent is None:
            made: dict[str, Any] = load_hyperpyyaml(file.read_text(encoding="utf-8"), values)
            if isinstance(made["backbone"], str):
                made["backbone"] = {"name": made["backbone"]}
            return made
        if (
            "peft" in values
            and values["peft"].get("name", own["peft"]["name"]) == (own["peft"]["name"])
        ):
            values["peft"] = own["peft"] | values["peft"]
        values = own | values
        places = (file.parent / parent, ROOT / "recipes" / parent)
        file = next(place for place in places if place.is_file())


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.parent.name}/{file.stem}")
def test_the_toolkits_own_files_mean_what_hyperpyyaml_makes_of_them(file: Path) -> None:
    words = ["--pool", "x"] if "PLACEHOLDER" in file.read_text(encoding="utf-8") else []
    command = config.parse_command_line([str(file), *words])
    found = config.load(command, ROOT / "recipes" / "ESC50").values
    if words:
        text = file.read_text(encoding="utf-8")
        assert comparable(found) == comparable(load_hyperpyyaml(text, {"pool": "x"}))
    else:
        assert comparable(found) == comparable(by_hyperpyyaml(file))


LAYERS = sorted(
    file for name in ("embedded", "recipe") for file in ROOT.glob(f"recipes/*/hparams/{name}.yaml")
)


@pytest.mark.parametrize("file", LAYERS, ids=lambda file: f"{file.parent.parent.name}/{file.stem}")
def test_layers_mean_what_hyperpyyaml_makes_of_them(file: Path) -> None:
    base = ROOT / "recipes/ESC50/hparams/base.yaml"
    values = YAML().load(file.read_text(encoding="utf-8"))
    values |= values.pop("methods", {}).get("linear_probe", {})
    for key in ("corpus", "backbone"):
        if isinstance(values.get(key), str):
            values[key] = {"name": values[key]}
    text = base.read_text(encoding="utf-8")
    if "corpus" in values and values["corpus"]["name"] != "esc50":
        text = text.replace("{name: esc50, esc10: false}", "{}")  # another one: no old settings
    expected = load_hyperpyyaml(text, values)
    command = config.parse_command_line([str(base)])
    found = config.load(command, file.parents[1], [str(file)]).values
    assert comparable(found) == comparable(expected)

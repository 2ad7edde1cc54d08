"""Configurations: extending, overriding, invalid files, and that nothing untrusted is called."""

import functools
import os
import re
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from recipe import ROOT, command

from toolkit import config, plugins
from toolkit.config import Configuration
from toolkit.errors import ConfigError, ToolkitError
from toolkit.registry import PEFT

RECIPE = ROOT / "recipes" / "ESC50"
HPARAMS = RECIPE / "hparams"
METHOD_FILES = sorted(set(HPARAMS.glob("*.yaml")) - {HPARAMS / "base.yaml"})
BASE = """\
seed: 1
lr: 0.1
label: null
flag: false
output: !ref results/<peft[name]>/<seed>
peft: {name: linear_probe}
optimizer: !name:torch.optim.AdamW
  betas: [0.9, 0.98]
  weight_decay: 0.1
augment:
  - !new:toolkit.data.augment.SpecAugment {freq_mask: 24, time_mask: 80}
nested: {one: 1, two: {three: 3, four: [4, 5, 6]}}
"""
TWO = {"three": 3, "four": [4, 5, 6]}
NESTED = {"one": 1, "two": TWO}
Load = Callable[..., Configuration]


@pytest.fixture(autouse=True)
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe's folder with `hparams/base.yaml`, which is not the working directory."""
    work, folder = tmp_path / "work", tmp_path / "recipe"
    work.mkdir()
    (folder / "hparams").mkdir(parents=True)
    monkeypatch.chdir(work)
    (folder / "hparams" / "base.yaml").write_text(BASE)
    return folder


@pytest.fixture
def load(recipe: Path) -> Load:
    """Load `hparams/base.yaml`, or a text that extends it, with arguments of a command line."""

    def load(*words: object, text: str | None = None) -> Configuration:
        file = "hparams/base.yaml"
        if text is not None:
            file = "hparams/method.yaml"
            (recipe / file).write_text(text)
        return config.load(config.parse_command_line([file, *map(str, words)]), recipe)

    return load


# ---------------------------------------------------------------- the command line


def test_words_of_a_command_line() -> None:
    command_line = config.parse_command_line(
        [
            "--a", "1", "h.yaml", "--b.c=x=y", "--d", "--e", "-3", "--f", "--plugins", "p",
            "--h", "[1, 2]", "--i", "{j: 0.5}", "--plugins=q", "--k", "1,3", "--l", "null",
        ]
    )  # fmt: skip
    assert command_line.hparams == "h.yaml"
    assert command_line.plugins == ["p", "q"]
    assert not command_line.trust
    assert command_line.overrides == {
        "a": 1, "b.c": "x=y", "d": True, "e": -3, "f": True, "h": [1, 2],
        "i": {"j": 0.5}, "k": "1,3", "l": None,
    }  # fmt: skip


@given(st.integers() | st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_are_numbers(number: float) -> None:
    for words in (["--lr", repr(number)], [f"--lr={number!r}"]):
        found = config.parse_command_line(["h.yaml", *words]).overrides["lr"]
        assert found == number
        assert isinstance(found, type(number))


@pytest.mark.parametrize(
    ("text", "value"), [("1e-3", 0.001), ("-1E5", -1e5), (".5", 0.5), ("-2", -2), ("+1.e2", 100.0)]
)
def test_notations_of_numbers(load: Load, text: str, value: float) -> None:
    for loaded in (load("--lr", text), load(text=f"extends: base.yaml\nlr: {text}\n")):
        assert loaded.values["lr"] == value
        assert isinstance(loaded.values["lr"], type(value))


@pytest.mark.parametrize("words", [[], ["--seed", "1"], ["a.yaml", "b.yaml"], ["a.yaml", "-x"]])
def test_one_configuration_file_is_needed(words: list[str]) -> None:
    with pytest.raises(ConfigError, match="name one configuration file"):
        config.parse_command_line(words)


def test_trust_is_a_flag_and_no_key() -> None:
    command_line = config.parse_command_line(["h.yaml", "--trust"])
    assert (command_line.trust, command_line.overrides) == (True, {})
    assert not config.parse_command_line(["h.yaml", "--trust", "false"]).trust


# ---------------------------------------------------------------- files and what they extend


def test_base_alone(load: Load) -> None:
    loaded = load()
    assert loaded.name == "base"
    assert loaded.values["output"] == "results/linear_probe/1"
    assert loaded.values["nested"] == NESTED
    assert isinstance(loaded.values["optimizer"], functools.partial)
    assert loaded.values["augment"][0].time_mask == 80


def test_a_chain_of_files(load: Load, recipe: Path) -> None:
    (recipe / "middle.yaml").write_text("extends: hparams/base.yaml\nseed: 2\nlr: 0.2\n")
    loaded = load("--label", "end", text="extends: ../middle.yaml\nlr: 0.3\n")
    assert [loaded.values[key] for key in ("seed", "lr", "label")] == [2, 0.3, "end"]
    assert loaded.values["output"] == "results/linear_probe/2"
    assert "extends" not in loaded.values
    assert loaded.name == "method"


@pytest.mark.parametrize(
    ("child", "key", "value"),
    [
        ("nested: {two: {three: 30}}", "nested", NESTED | {"two": TWO | {"three": 30}}),
        ("nested: {two: {four: [7]}}", "nested", NESTED | {"two": TWO | {"four": [7]}}),
        ("nested: {two: 2}", "nested", NESTED | {"two": 2}),
        ("nested: null", "nested", None),
        ("label: {any: thing}", "label", {"any": "thing"}),
        ("peft: {final_norm: false}", "peft", {"name": "linear_probe", "final_norm": False}),
        ("peft: {name: linear_probe, a: 1}", "peft", {"name": "linear_probe", "a": 1}),
        ("peft: {name: lora, rank: 2}", "peft", {"name": "lora", "rank": 2}),
        ("peft: lora", "peft", {"name": "lora"}),
        ("augment: []", "augment", []),
    ],
)  # fmt: skip
def test_merging(load: Load, child: str, key: str, value: object) -> None:
    assert load(text=f"extends: base.yaml\n{child}\n").values[key] == value


def test_another_name_brings_no_settings_of_the_old_one(load: Load, recipe: Path) -> None:
    (recipe / "hparams" / "lora.yaml").write_text("extends: base.yaml\npeft: lora\nseed: 3\n")
    same = load(text="extends: lora.yaml\npeft: {rank: 2}\n")
    assert same.values["peft"] == {"name": "lora", "rank": 2}
    (recipe / "hparams" / "rank.yaml").write_text("extends: lora.yaml\npeft: {rank: 2}\n")
    same = load(text="extends: rank.yaml\npeft: {name: lora, alpha: 8}\n")
    assert same.values["peft"] == {"name": "lora", "rank": 2, "alpha": 8}
    other = load(text="extends: rank.yaml\npeft: {name: full}\n")
    assert other.values["peft"] == {"name": "full"}


def test_merging_what_is_constructed(load: Load) -> None:
    same = load(text="extends: base.yaml\noptimizer: {weight_decay: 0.5}\n").values["optimizer"]
    assert same.keywords == {"betas": [0.9, 0.98], "weight_decay": 0.5}
    sgd = "!name:torch.optim.SGD {momentum: 0.9}"
    other = load(text=f"extends: base.yaml\noptimizer: {sgd}\n").values["optimizer"]
    assert other.func.__name__ == "SGD"
    assert other.keywords == {"momentum": 0.9}


def test_layers_lie_between_file_and_command_line(recipe: Path) -> None:
    (recipe / "layer.yaml").write_text("seed: 5\nlr: 0.5\npeft: full\n")
    command_line = config.parse_command_line(["hparams/base.yaml", "--lr", "0.7"])
    loaded = config.load(command_line, recipe, layers=["layer.yaml"])
    assert (loaded.values["seed"], loaded.values["lr"]) == (5, 0.7)
    assert loaded.values["output"] == "results/full/5"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], 0.2),
        (["--peft", "full"], 0.3),
        (["--peft.name", "lora"], 0.5),
        (["--peft", "full", "--lr", "0.7"], 0.7),
    ],
)
def test_a_layer_may_hold_values_of_some_methods(
    recipe: Path, words: list[str], expected: float
) -> None:
    layer = "lr: 0.5\nmethods: {linear_probe: {lr: 0.2}, full: {lr: 0.3}}\n"
    (recipe / "layer.yaml").write_text(layer)
    command_line = config.parse_command_line(["hparams/base.yaml", *words])
    loaded = config.load(command_line, recipe, layers=["layer.yaml"])
    assert loaded.values["lr"] == expected
    assert "methods" not in loaded.values


TREES = st.recursive(
    st.integers(0, 9),
    lambda inner: st.dictionaries(st.sampled_from("abcd"), inner, min_size=1, max_size=3),
    max_leaves=8,
)


def _merged(old: Any, new: Any) -> Any:
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    return {k: _merged(old[k], new[k]) if k in new else old[k] for k in old}


@st.composite
def _change(draw: st.DrawFn, tree: Any) -> Any:
    """A part of a tree of settings, with different values at the leaves."""
    if not isinstance(tree, dict):
        return draw(st.integers(10, 19))
    keys = draw(st.lists(st.sampled_from(sorted(tree)), unique=True, min_size=1))
    return {key: draw(_change(tree[key])) for key in keys}


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_merging_is_a_deep_update(data: st.DataObject) -> None:
    tree = data.draw(st.dictionaries(st.sampled_from("abcd"), TREES, min_size=1))
    change = data.draw(_change(tree))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "base.yaml").write_text(yaml.safe_dump(tree))
        child = Path(folder) / "child.yaml"
        child.write_text(yaml.safe_dump({"extends": "base.yaml", **change}))
        loaded = config.load(config.parse_command_line([str(child)]), Path(folder))
    assert loaded.values == _merged(tree, change)


@pytest.mark.parametrize("parent", ["method.yaml", "../hparams/method.yaml", "./method.yaml"])
def test_a_file_that_extends_itself(load: Load, parent: str) -> None:
    with pytest.raises(ConfigError, match=r"method\.yaml, which extends it in turn"):
        load(text=f"extends: {parent}\nseed: 2\n")


def test_a_circle_of_files(load: Load, recipe: Path) -> None:
    (recipe / "hparams" / "other.yaml").write_text("extends: method.yaml\n")
    with pytest.raises(ConfigError, match=r"other\.yaml extends .*method\.yaml, which extends it"):
        load(text="extends: other.yaml\n")


@pytest.mark.parametrize("parent", ["gone.yaml", "3", "null", "[base.yaml]", "."])
def test_a_parent_that_is_not_there(load: Load, parent: str) -> None:
    with pytest.raises(ConfigError, match=r"method\.yaml extends .*, which does not exist"):
        load(text=f"extends: {parent}\n")


def test_looked_up_here_and_then_beside_the_recipe(recipe: Path) -> None:
    command_line = config.parse_command_line(["hparams/base.yaml"])
    assert config.load(command_line, recipe).values["seed"] == 1
    Path("hparams").mkdir()
    Path("hparams/base.yaml").write_text("seed: 7\n")
    assert config.load(command_line, recipe).values == {"seed": 7}
    absolute = config.parse_command_line([str(recipe / "hparams" / "base.yaml")])
    assert config.load(absolute, Path("nowhere")).values["seed"] == 1


def test_a_file_that_is_nowhere(recipe: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(config.parse_command_line(["hparams/bas.yaml"]), recipe)
    message = str(caught.value)
    assert "no configuration hparams/bas.yaml; did you mean 'base'?" in message
    assert "hparams/base.yaml" in message
    assert str(recipe) in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: [1, 2\n", "is not valid YAML"),
        ("seed: 1\nseed: 2\n", "is not valid YAML"),
        ("seed: 1\n  lr: 2\n", "is not valid YAML"),
        ("seed: *nothing\n", "is not valid YAML"),
        ("seed: 1\n---\nseed: 2\n", "is not valid YAML"),
        ("- seed\n", "must hold keys and values"),
        ("seed\n", "must hold keys and values"),
        ("", "must hold keys and values"),
        ("# nothing\n", "must hold keys and values"),
    ],
)
def test_files_that_are_no_configuration(load: Load, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"method\.yaml {message}"):
        load(text=text)


def test_a_value_on_the_command_line_that_is_no_yaml(load: Load) -> None:
    with pytest.raises(ConfigError, match="--label is not valid YAML"):
        load("--label", "[1, 2")


def test_placeholders(load: Load, recipe: Path) -> None:
    base = recipe / "hparams" / "base.yaml"
    base.write_text(BASE.replace("label: null", "label: !PLACEHOLDER"))
    with pytest.raises(ConfigError, match="'label' is a !PLACEHOLDER and must be replaced"):
        load()
    assert load("--label", "here").values["label"] == "here"
    assert load(text="extends: base.yaml\nlabel: there\n").values["label"] == "there"


@pytest.mark.parametrize("reference", ["<nothing>", "<nested[nine]>", "<label>"])
def test_references_that_lead_nowhere(load: Load, reference: str) -> None:
    with pytest.raises(ConfigError, match="the configuration cannot be built"):
        load(text=f"extends: base.yaml\nlabel: !ref {reference}\n")


# ---------------------------------------------------------------- overrides


def test_overrides_reach_every_depth(load: Load) -> None:
    loaded = load(
        "--seed", 2, "--nested.two.three=-3", "--nested.two.four.1", "-1e-3", "--flag",
        "--optimizer.weight_decay", "0", "--optimizer.betas.0=0.5", "--augment.0.freq_mask", 8,
        "--peft.final_norm", "false", "--nested.one", "[x, y]",
    ).values  # fmt: skip
    assert loaded["nested"] == {"one": ["x", "y"], "two": {"three": -3, "four": [4, -0.001, 6]}}
    assert loaded["optimizer"].keywords == {"betas": [0.5, 0.98], "weight_decay": 0}
    assert loaded["augment"][0].freq_mask == 8
    assert loaded["augment"][0].time_mask == 80
    assert loaded["peft"] == {"name": "linear_probe", "final_norm": False}
    assert loaded["flag"] is True
    assert loaded["output"] == "results/linear_probe/2"


def test_a_list_is_replaced_as_a_whole_or_item_by_item(load: Load) -> None:
    assert load("--augment", "[]").values["augment"] == []
    mixup = "!new:toolkit.data.augment.Mixup {alpha: 0.3}"
    assert load("--augment.0", mixup).values["augment"][0].alpha == 0.3
    for typed in (f"[{mixup}]", f"- {mixup}", f"[ {mixup} ]"):
        assert load("--augment", typed).values["augment"][0].alpha == 0.3


def test_a_name_stands_for_a_registered_thing(load: Load) -> None:
    assert load("--peft", "lora").values["peft"] == {"name": "lora"}
    loaded = load("--peft", "lora", "--peft.rank", "4")
    assert loaded.values["peft"] == {"name": "lora", "rank": 4}
    assert loaded.values["output"] == "results/lora/1"
    assert load("--peft={name: lora, rank: 2}").values["peft"] == {"name": "lora", "rank": 2}


def test_the_last_override_wins(load: Load) -> None:
    assert load("--seed", 2, "--seed", 3).values["seed"] == 3


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--sede", "unknown key 'sede'; did you mean 'seed'"),
        ("--nestd.one", "unknown key 'nestd' in '--nestd.one'; did you mean 'nested'?"),
        ("--nested.on", "unknown key 'nested.on'; did you mean 'one'?"),
        ("--nested.tow.three", "unknown key 'tow' in '--nested.tow.three'; did you mean 'two'?"),
        ("--nested.two.thre", "unknown key 'nested.two.thre'; did you mean 'three'?"),
        ("--optimizer.weight_decai", "'optimizer.weight_decai'; did you mean 'weight_decay'?"),
        ("--augment.0.freq_mas", "unknown key 'augment.0.freq_mas'; did you mean 'freq_mask'"),
        ("--augment.1.freq_mask", "'1' is no index of a list of length 1"),
        ("--augment.first", "'first' is no index of a list of length 1"),
        ("--nested.two.four.3", "'3' is no index of a list of length 3"),
        ("--nested.two.four.-1", "'-1' is no index of a list of length 3"),
        ("--seed.x", "'--seed.x' leads into 'seed', which is a single value"),
        ("--seed.x.y", "unknown key 'x' in '--seed.x.y'"),
        ("--extends", "unknown key 'extends'"),
        ("--xyzzy", "unknown key 'xyzzy'"),
        ("--", "unknown key ''"),
    ],
)
def test_misspelt_keys_on_the_command_line(load: Load, word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load(word, "3")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sed: 3", "unknown key 'sed'; did you mean 'seed'"),
        ("nested: {ones: 3}", "unknown key 'nested.ones'; did you mean 'one'?"),
        ("nested: {two: {tree: 3}}", "unknown key 'nested.two.tree'; did you mean 'three'?"),
        ("optimizer: {wait_decay: 3}", "'optimizer.wait_decay'; did you mean 'weight_decay'?"),
        ("optimizer: !name:torch.optim.SGD {momentun: 0}", "did you mean 'momentum'?"),
        ("augment: [!new:toolkit.data.augment.Mixup {alhpa: 1}]", "did you mean 'alpha'?"),
        ("label: {a: [!new:toolkit.data.augment.Mixup {alhpa: 1}]}", "'label.a.0.alhpa'"),
    ],
)
def test_misspelt_keys_in_a_file(load: Load, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load(text=f"extends: base.yaml\n{text}\n")


@pytest.mark.parametrize(
    "value", ["3", "[lora]", "null", "!new:toolkit.peft.lora.LoRA {rank: 2}", "!ref <label>"]
)
def test_what_is_no_registered_thing(load: Load, value: str) -> None:
    with pytest.raises(ConfigError, match="'peft' must be a name, or a mapping with a name"):
        load(text=f"extends: base.yaml\npeft: {value}\n")


# ---------------------------------------------------------------- what is kept of it


def test_the_kept_text_loads_to_the_same(load: Load, recipe: Path) -> None:
    loaded = load("--peft", "lora", "--seed", 4)
    kept = recipe / "kept.yaml"
    kept.write_text(loaded.text)
    again = config.load(config.parse_command_line([str(kept)]), recipe)
    assert again.flat == loaded.flat
    assert again.digest() == loaded.digest()
    assert loaded.flat["output"] == "results/lora/4"
    assert loaded.flat["optimizer.betas.1"] == 0.98
    assert loaded.flat["optimizer.!"] == "!name:torch.optim.AdamW"


def test_the_digest_tells_configurations_apart(load: Load) -> None:
    assert load().digest() == load("--seed", 1).digest()
    assert load().digest() != load("--nested.two.four.2", 7).digest()
    changed = load("--seed", 2, "--output", "here")
    assert load().digest() != changed.digest()
    assert load().digest(["seed", "output"]) == changed.digest(["seed", "output"])
    sgd = load("--optimizer", "!name:torch.optim.SGD")
    assert load().digest() != sgd.digest()


# ---------------------------------------------------------------- what may be constructed

RUN = "os.system ['touch sentinel']"
EXTENDS = "extends: base.yaml\n"
LABEL = f"{EXTENDS}label: "
PYTHON = "!!python/object/apply:os.system"
ATTACKS = {
    "apply": f"{LABEL}!apply:{RUN}",
    "apply through torch": f"{LABEL}!apply:torch.{RUN}",
    "apply through the toolkit": f"{LABEL}!apply:toolkit.training.experiment.{RUN}",
    "apply a function that runs": f"{LABEL}!apply:torch.utils.collect_env.run [touch sentinel]",
    "load a plugin": f"{LABEL}!apply:toolkit.plugins.load [[evil]]",
    "call a function that calls": f"{LABEL}!apply:toolkit.plugins._attempt "
    '[a, b, !name:torch.utils.collect_env.run {command: "touch sentinel"} ]',
    "new": f"{LABEL}!new:subprocess.Popen [[touch, sentinel]]",
    "new through torch": f"{LABEL}!new:torch.hub.subprocess.Popen [[touch, sentinel]]",
    "name": f"{LABEL}!name:os.system {{command: touch sentinel}}",
    "name through builtins": f"{LABEL}!name:toolkit.config.load.__builtins__.eval",
    "name of another package": f"{LABEL}!name:toolkit.config.trust.load_hyperpyyaml",
    "name of a module": f"{LABEL}!name:torch.os",
    "name by way of another package": f"{LABEL}!name:torch.os.sep.join",
    "name of a look-alike": f"{LABEL}!name:torchaudio.load",
    "module": f"{LABEL}!module:evil.code",
    "applyref": f"{LABEL}!applyref:{RUN}",
    "include": f"{LABEL}!include:evil.yaml",
    "python apply": f"{LABEL}!!python/object/apply:{RUN}",
    "python new": f"{LABEL}!!python/object/new:{RUN}",
    "python name": f"{LABEL}!!python/name:os.system",
    "python module": f"{LABEL}!!python/module:evil.code",
    "verbatim": f"{LABEL}!<tag:yaml.org,2002:python/object/apply:os.system> [touch sentinel]",
    "verbatim apply": f"{LABEL}!<!apply:os.system> [touch sentinel]",
    "escaped": f"{LABEL}!appl%79:{RUN}",
    "handle": "%TAG !e! tag:yaml.org,2002:python/object/\n---\n"
    f"{LABEL}!e!apply:{RUN}",
    "handle of apply": f"%TAG !e! !apply:os.\n---\n{EXTENDS}label: !e!system [touch sentinel]",
    "in a registered thing": f"{EXTENDS}peft: {{name: lora, rank: !apply:{RUN}}}",
    "python in a registered thing": f"{EXTENDS}peft: {{rank: !!python/object/apply:{RUN}}}",
    "for a registered thing": f"{EXTENDS}peft: !apply:{RUN}",
    "in a name": f"{EXTENDS}peft: {{name: !apply:{RUN}}}",
    "in a list": f"{EXTENDS}augment: [1, [2, !apply:{RUN}]]",
    "in a constructed thing": f"{EXTENDS}optimizer: {{weight_decay: !apply:{RUN}}}",
    "in a merged mapping": f"{EXTENDS}augment: [{{<<: {{a: !apply:{RUN}}}}}]",
    "in an ordered mapping": f"{LABEL}!!omap [a: !apply:{RUN}]",
    "in a set": f"{LABEL}!!set\n  ? !apply:{RUN}",
    "in a set, plain": f"{LABEL}!!set {{? !apply:evil.code.run x}}",
    "in a key": f"{EXTENDS}peft:\n  name: lora\n  ? !apply:{RUN}\n  : 1",
    "in a key, plain": f"{EXTENDS}peft: {{name: lora, ? !apply:evil.code.run x : 1}}",
    "in an outermost key": f"{EXTENDS}? !apply:evil.code.run x\n: 1",
    "behind an anchor": f"{EXTENDS}nested: {{one: &x !apply:{RUN}, two: *x}}",
    "at the root": "!!python/object/apply:os.system\nargs: [touch sentinel]",
    "at the root, apply": f"!apply:os.system\n{EXTENDS}",
    "in extends": f"extends: !apply:{RUN}",
    "in a tuple": f"{LABEL}(!!python/object/apply:{RUN})",
    "in a quoted tuple": f'{EXTENDS}label: "(!!python/object/apply:{RUN})"',
    "in a tagged tuple": f'{EXTENDS}label: !tuple "(!!python/object/apply:{RUN})"',
    "in a tuple of references": f"{EXTENDS}nested: {{one: \"!!python/object/apply:{RUN}\"}}\n"
    "label: !ref (<nested[one]>)",
}  # fmt: skip
ATTACKS |= {
    "in a merged mapping at the top": f"{EXTENDS}<<: {{label: !apply:{RUN}}}",
    "in a list of merged mappings": f"{EXTENDS}<<: [{{seed: 1}}, {{label: !apply:{RUN}}}]",
    "in a merged mapping behind an anchor": f"{EXTENDS}nested: &x {{one: !apply:{RUN}}}\n"
    "augment: {<<: *x}",
    "in pairs": f"{LABEL}!!pairs [a: !apply:{RUN}]",
    "in pairs, new": f"{LABEL}!!pairs [a: !new:subprocess.Popen [[touch, sentinel]]]",
    "in pairs in pairs": f"{LABEL}!!pairs [a: !!pairs [b: !apply:{RUN}]]",
    "in a merged list of pairs": f"{EXTENDS}nested: {{<<: !!pairs [a: !apply:{RUN}]}}",
    "applyref in pairs": f"{LABEL}!!pairs [a: !applyref:{RUN}]",
    "behind a reference": f"{EXTENDS}augment: [!apply:{RUN}]\nlabel: !ref <augment>",
    "an attribute": f"{EXTENDS}nested: {{one: 1}}\nlabel: !ref <nested.__class__>",
}
SHADOWED = {
    "at the top": f"{EXTENDS}<<: {{label: !apply:{RUN}}}\nlabel: shadowed",
    "in a mapping": f"{EXTENDS}nested: {{<<: {{one: !apply:{RUN}}}, one: 2}}",
    "by another merge": f"{EXTENDS}nested: {{<<: [{{one: 2}}, {{one: !apply:{RUN}}}]}}",
    "by a child": f"{EXTENDS}nested: {{<<: {{two: !!pairs [a: !apply:{RUN}]}}, two: 2}}",
}
HARMLESS = {"in a tuple", "in a quoted tuple", "in a tuple of references"}  # text, and stay text


@pytest.fixture
def evil(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module and a file that create `sentinel` in this folder when they are executed."""
    Path("evil").mkdir()
    Path("evil/code.py").write_text("def run():\n    open('sentinel', 'w')\n\n\nrun()\n")
    Path("evil.yaml").write_text(f"a: !apply:{RUN}\n")
    monkeypatch.syspath_prepend(Path.cwd())
    return Path("sentinel").resolve()


@pytest.mark.parametrize("kind", ATTACKS)
def test_nothing_untrusted_is_called(load: Load, evil: Path, kind: str) -> None:
    if kind in HARMLESS:
        assert "(!!python/object/apply:os.system" in load(text=ATTACKS[kind]).values["label"]
    else:
        with pytest.raises(ConfigError) as caught:
            load(text=ATTACKS[kind])
        assert "not valid YAML" not in str(caught.value)
    assert not evil.exists()


@pytest.mark.parametrize("kind", SHADOWED)
def test_what_is_shadowed_is_not_even_constructed(load: Load, evil: Path, kind: str) -> None:
    for trust in ([], ["--trust"]):
        load(*trust, text=SHADOWED[kind])
        assert not evil.exists()


@pytest.mark.parametrize(
    "words",
    [
        ["--label", f"!apply:{RUN}"],
        [f"--peft.rank=!apply:{RUN}"],
        ["--peft", f"!!python/object/apply:{RUN}"],
        ["--augment.0", f"!apply:torch.{RUN}"],
        ["--augment", "[!new:subprocess.Popen [[touch, sentinel]]]"],
    ],
)
def test_nothing_untrusted_is_called_from_the_command_line(
    load: Load, evil: Path, words: list[str]
) -> None:
    with pytest.raises(ConfigError, match=r"--trust|must be a name"):
        load(*words)
    assert not evil.exists()


@pytest.mark.parametrize("kind", ["apply", "python apply", "in a list", "in a registered thing"])
def test_trust_allows_it(load: Load, evil: Path, kind: str) -> None:
    with pytest.raises(ConfigError, match="--trust"):
        load(text=ATTACKS[kind])
    load("--trust", text=ATTACKS[kind])
    assert evil.exists()


def test_trust_does_not_excuse_what_is_not_there(load: Load) -> None:
    with pytest.raises(ConfigError, match=r"'label' names no\.such\.thing, which does not exist"):
        load("--trust", text=f"{EXTENDS}label: !name:no.such.thing\n")


def test_a_refusal_names_key_callable_and_remedy(load: Load) -> None:
    with pytest.raises(ConfigError) as caught:
        load(text=f"{EXTENDS}augment: [!new:collections.Counter [ab]]\n")
    message = str(caught.value)
    for part in ("'augment.0'", "collections.Counter", "toolkit.data.augment.Mixup", "--trust"):
        assert part in message


@pytest.mark.parametrize("text", ["(1, 2)", "(a)", "'(1, 2)'"])
def test_text_in_brackets_is_text(load: Load, text: str) -> None:
    for _ in range(2):
        assert load(text=f"{EXTENDS}label: {text}\n").values["label"] == text.strip("'")


def test_allowed_callables_are_constructed(load: Load) -> None:
    loaded = load(
        text=f"{EXTENDS}label:\n"
        "- !name:torch.optim.SGD {momentum: 0.9}\n"
        "- !name:torch.optim.lr_scheduler.StepLR\n"
        "- !new:toolkit.data.augment.Mixup\n"
        "- !new:speechbrain.augment.time_domain.SignFlip {flip_prob: 0.25}\n"
    )
    kinds = [getattr(value, "__name__", type(value).__name__) for value in loaded.values["label"]]
    assert kinds == ["partial", "StepLR", "Mixup", "SignFlip"]


ANYTHING = (
    "- !new:torch.nn.Linear {in_features: 3, out_features: 2}",
    "- !name:torch.nn.functional.relu",
    "- !new:toolkit_plugins.ssf.ssf.Affine {dim: 3, std: 0.0}",
    "- !name:speechbrain.nnet.losses.nll_loss {label_smoothing: 0.1}",
)


@pytest.mark.parametrize("text", ANYTHING)
def test_other_callables_need_trust(load: Load, text: str) -> None:
    plugins.load()
    text = f"{EXTENDS}label:\n{text}\n"
    with pytest.raises(ConfigError, match="may not name"):
        load(text=text)
    assert len(load("--trust", text=text).values["label"]) == 1


def test_what_a_reference_shares_is_made_once(load: Load) -> None:
    loaded = load(
        text=f"{EXTENDS}label: !ref <augment[x]>\nnested: !copy <augment[x]>\n"
        "augment: {x: !new:toolkit.data.augment.Mixup {alpha: 0.3}}\n"
    ).values
    assert loaded["label"] is loaded["augment"]["x"]
    assert loaded["nested"] is not loaded["label"]
    assert loaded["nested"].alpha == 0.3


@pytest.mark.parametrize(
    "text",
    [
        "!new:toolkit.data.augment.Mixup {alpha: x}",
        "!new:toolkit.data.augment.Mixup [0.5, 1, 2]",
        "!new:toolkit.data.augment.Mixup 0.5",
        "!new:toolkit.data.augment.Mixup {alpha: -1}",
        "!name:torch.optim.SGD [1, 2, 3, 4, 5, 6, 7, 8]",
    ],
)
def test_what_cannot_be_constructed(load: Load, text: str) -> None:
    with pytest.raises(ConfigError, match=r"label|Mixup needs"):
        load(text=f"{EXTENDS}label: {text}\n")


# ---------------------------------------------------------------- the recipe's own files


def _lines(file: Path) -> list[str]:
    lines = file.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


@pytest.mark.parametrize("file", METHOD_FILES, ids=lambda file: file.stem)
def test_a_method_file_is_short_and_holds_differences(file: Path) -> None:
    assert len(_lines(file)) <= 15
    own = yaml.load(file.read_text(), Loader=_Untagged)
    parent = HPARAMS / own.pop("extends", "base.yaml")
    assert (file.stem == "embedded") != ("extends" in file.read_text())
    base = config.load(config.parse_command_line([str(parent)]), RECIPE)
    for key in own.keys() - {"lr", "peft"}:  # these two make the method, and are always given
        given_values = dict(_flat(key, own[key]))
        assert all(base.flat.get(k) != v for k, v in given_values.items()), key


class _Untagged(yaml.SafeLoader):
    """A YAML loader that reads tagged values as plain text."""


_Untagged.add_multi_constructor("!", lambda loader, suffix, node: f"!{suffix} {node.value}")


def _flat(key: str, value: Any) -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        return [(key, value)]
    return [pair for k, v in value.items() for pair in _flat(f"{key}.{k}", v)]


@pytest.mark.parametrize("file", METHOD_FILES, ids=lambda file: file.stem)
def test_a_method_file_loads_and_its_method_can_be_made(file: Path) -> None:
    if file.stem == "embedded":
        command_line = config.parse_command_line(["hparams/softmoa.yaml"])
        values = config.load(command_line, RECIPE, layers=["hparams/embedded.yaml"]).values
        assert values["backbone"] == {"name": "ast_tiny"}
        assert values["output_folder"] == "results/ESC50-embedded/soft_moa/10"
    else:
        values = config.load(config.parse_command_line([str(file)]), RECIPE).values
        assert values["output_folder"] == f"results/ESC50/{values['label']}/10"
    method = PEFT.create(values["peft"])
    assert method.registered_name == values["peft"]["name"]
    assert values["optimizer"].keywords == {"betas": [0.9, 0.98], "eps": 1e-6, "weight_decay": 0.1}


# ---------------------------------------------------------------- refused before data is read

PLUGIN = '''
from toolkit.peft.base import PeftMethod, insertion
from toolkit.registry import PEFT


@PEFT.register("gated")
class Gated(PeftMethod):
    """Wants a role that no AST has."""

    def insert(self, backbone):
        for site in backbone.sites("gate"):
            insertion.after(site, "gated", None)
'''
IMPOSSIBLE = {
    "slots": (["--peft.slots", "0"], "'slots' must be at least 1, not 0"),
    "reduction": (
        ["--peft.reduction", "1000"],
        "reduction 1000 leaves no bottleneck in a backbone of width 192; use at most 383",
    ),
    "role": (
        ["--plugins", "gated", "--peft", "gated"],
        "the backbone 'ast_tiny' has no role 'gate' (it has block, attn.q,",
    ),
    "nothing": ([], "is not ESC-50"),  # a configuration that works: the data is what is missing
}


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    """The error message of the recipe's command line for each of `IMPOSSIBLE`, without any data."""
    work = tmp_path_factory.mktemp("refused")
    (work / "gated").mkdir()
    (work / "gated" / "gated.py").write_text(PLUGIN)
    common = ["hparams/softmoa.yaml", "--backbone", "ast_tiny", "--data_folder", "no/such/data"]
    started = {
        kind: subprocess.Popen(
            command(*common, "--output_folder", kind, *words),
            cwd=work,
            text=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for kind, (words, _) in IMPOSSIBLE.items()
    }
    answers = {}
    for kind, process in started.items():
        _, err = process.communicate(timeout=300)
        answers[kind] = (process.returncode, err)
    return answers


@pytest.mark.parametrize("kind", IMPOSSIBLE)
def test_what_cannot_work_is_refused_before_data_is_read(
    kind: str, refusals: dict[str, tuple[int, str]]
) -> None:
    code, err = refusals[kind]
    assert code == 2
    assert err.startswith("error: ")
    assert IMPOSSIBLE[kind][1] in err
    assert "Traceback" not in err
    assert ("no/such/data" in err) == (kind == "nothing")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--peft.slot", "2"], "unknown setting 'peft.slot'; did you mean 'slots'"),
        (["--peft.name", "soft_mao"], "no PEFT method is called 'soft_mao'; did you mean"),
        (["--peft.num_experts", "many"], "peft: 'num_experts' must be int, not 'many'"),
        (["--backbone", "ast_tny"], "no backbone is called 'ast_tny'; did you mean 'ast_tiny'"),
        (["--backbone.strides", "3"], "unknown setting 'backbone.strides'; did you mean 'stride'"),
        (["--corpus.ecs10"], "unknown setting 'corpus.ecs10'; did you mean 'esc10'"),
        (["--pipeline", "fbnak"], "no data pipeline is called 'fbnak'; did you mean 'fbank'"),
        (["--epochs", "0"], "'epochs' must be at least 1, not 0"),
        (["--lr", ".nan"], "'lr' must be at least 0, not nan"),
        (["--pooling", "maen"], "not 'maen'; did you mean 'mean'"),
        (["--batch_siez", "3"], "unknown key 'batch_siez'; did you mean 'batch_size'"),
        (["--device", "gpu9"], "the device 'gpu9' cannot be used"),
        (["--pipeline", "{rank: 3}"], "'pipeline' needs a 'name': one of fbank"),
    ],
)
def test_the_recipe_refuses(words: list[str], message: str) -> None:
    from toolkit.training.experiment import Experiment

    common = ["hparams/softmoa.yaml", "--data_folder", "no/such/data"]
    with pytest.raises(ToolkitError, match=re.escape(message)):
        Experiment.from_command_line(str(RECIPE / "train.py"), common + words)


# ---------------------------------------------------------------- names


@pytest.mark.parametrize("words", [["--peft.name", "lora"], ["--peft", "lora"]])
def test_another_name_on_the_command_line_brings_no_settings_of_the_old_one(
    load: Load, recipe: Path, words: list[str]
) -> None:
    """In whatever order name and settings are typed."""
    base = recipe / "hparams" / "base.yaml"
    base.write_text(BASE.replace("{name: linear_probe}", "{name: soft_moa, slots: 2}"))
    assert load(*words).values["peft"] == {"name": "lora"}
    for typed in ([*words, "--peft.rank", "3"], ["--peft.rank", "3", *words]):
        assert load(*typed).values["peft"] == {"name": "lora", "rank": 3}
    assert load("--peft.name", "soft_moa").values["peft"] == {"name": "soft_moa", "slots": 2}


@pytest.mark.parametrize(
    ("word", "meant"), [("learning_rate", "lr"), ("num_epochs", "epochs"), ("dataset", "corpus")]
)
def test_what_other_programs_call_a_key_is_known(word: str, meant: str) -> None:
    command_line = config.parse_command_line(["hparams/lora.yaml", f"--{word}", "1"])
    with pytest.raises(ConfigError, match=f"unknown key '{word}'; did you mean '{meant}'"):
        config.load(command_line, RECIPE)


def test_a_recipe_without_a_demonstration_needs_data(recipe: Path) -> None:
    from toolkit.training.experiment import configured

    base = HPARAMS / "base.yaml"
    (recipe / "hparams" / "base.yaml").write_text(base.read_text(encoding="utf-8"))
    with pytest.raises(ConfigError, match="has no demonstration"):
        configured(config.parse_command_line(["hparams/base.yaml"]), recipe)

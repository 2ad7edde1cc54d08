"""The pages that the documentation generates say what is true of every method, command and key."""

import re
from collections.abc import Iterator

import pytest
from code_blocks import ROOT

from toolkit import config, list_registered, testing
from toolkit.registry import PEFT


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The folder from which mkdocs imports its hooks."""
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    yield


@pytest.mark.parametrize(
    ("name", "structure"),
    [
        ("lora", "beside `attn.q`, `attn.v`"),
        ("soft_moa", "beside `mhsa`; trains `norm.mhsa`"),
        ("prefix", "keys and values of `mhsa`"),
        ("adaptformer", "beside `ffn`; reads the input of `norm.ffn`"),
        ("linear_probe", "nothing"),
    ],
)
def test_structure(name: str, structure: str) -> None:
    from generated.methods import structure_of

    found = str(structure_of(testing.tiny_classifier(PEFT.create(name))))
    assert set(found.split("; ")) == set(structure.split("; "))


def test_biases_are_not_the_whole() -> None:
    from generated.methods import structure_of

    unfrozen = structure_of(testing.tiny_classifier(PEFT.create("bitfit"))).unfrozen
    assert "attn.k" in unfrozen and set(unfrozen.values()) == {"biases"}


def test_every_method_has_a_row_and_a_picture() -> None:
    from generated.methods import pages

    made = pages()
    for name in list_registered("peft"):
        assert f"\n## {name}\n" in made["methods.md"]
        assert made[f"methods/{name}.svg"].startswith("<svg")
    assert "| `lora`" not in made["methods.md"]  # it is a link
    assert re.search(r"\[`lora`\].*\| 222,720 \| yes \|", made["methods.md"])


def test_every_command_and_every_key() -> None:
    from generated import commands, configuration

    page = commands.page()
    for command in ("list", "describe", "train", "predict", "corpus check", "study run"):
        assert f"\n## toolkit {command}\n" in page
    command = config.parse_command_line([str(ROOT / "recipes/ESC50/hparams/base.yaml")])
    values = config.load(command, ROOT / "recipes" / "ESC50").values
    keys = re.findall(r"^\| `(\w+)`", configuration.page(), re.MULTILINE)
    assert sorted(keys) == sorted(values)

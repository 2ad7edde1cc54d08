"""Recipes by name: which folder and which configuration a name means, and copies to edit."""

import shutil
from pathlib import Path

import pytest
from recipe import ROOT

from toolkit import config, places, recipes
from toolkit.cli import main
from toolkit.errors import ConfigError, PlaceError, UnknownName

OWN = ROOT / "recipes"
PLUGIN = "extends: ESC50/hparams/base.yaml\npeft: {name: lora, rank: 3}\n"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_checkout_has_its_folders_beside_the_package() -> None:
    assert places.recipes() == OWN
    assert places.plugins() == ROOT / "plugins"
    assert (places.studies() / "esc10.yaml").is_file()


def test_a_local_folder_is_nearer_than_the_toolkits_own(elsewhere: Path) -> None:
    assert recipes.find("ESC50") == OWN / "ESC50"
    recipes.copy("ESC50", elsewhere)
    assert recipes.find("ESC50").resolve() == elsewhere / "ESC50"
    assert recipes.find(str(OWN / "CREMA-D")) == OWN / "CREMA-D"


@pytest.mark.parametrize("find", [recipes.find, lambda name: recipes.copy(name, Path())])
def test_an_unknown_recipe(find: object) -> None:
    with pytest.raises(UnknownName, match="no recipe 'ESC5'; did you mean 'ESC50'"):
        find("ESC5")


def test_which_configuration_a_name_means(elsewhere: Path) -> None:
    crema = OWN / "CREMA-D"
    assert recipes.configuration(crema, "lora") == "hparams/lora.yaml"  # ESC50's, which all share
    assert Path(recipes.configuration(crema, "ssf")).resolve() == ROOT / "plugins/ssf/ssf.yaml"
    assert recipes.configuration(crema, "some/file.yaml") == "some/file.yaml"
    with pytest.raises(UnknownName, match="no configuration 'lroa'; did you mean 'lora'") as error:
        recipes.configuration(crema, "lroa")
    assert "embedded" not in str(error.value)


def test_a_copied_recipe_finds_what_recipes_share(elsewhere: Path) -> None:
    recipes.copy("CREMA-D", elsewhere)
    command = config.parse_command_line(["hparams/lora.yaml"])
    loaded = config.load(command, elsewhere / "CREMA-D", ["hparams/recipe.yaml"])
    assert loaded.values["recipe"] == "CREMA-D"
    assert loaded.values["peft"]["name"] == "lora"


def test_a_folder_that_is_there_is_left_alone(elsewhere: Path) -> None:
    mine = elsewhere / "ESC50" / "precious"
    mine.mkdir(parents=True)
    with pytest.raises(PlaceError, match="ESC50 is already there; choose another place"):
        recipes.copy("ESC50", elsewhere)
    assert list((elsewhere / "ESC50").iterdir()) == [mine]


def test_what_a_file_extends_is_the_nearest(elsewhere: Path) -> None:
    """Beside the file, then in the working directory, then among the toolkit's recipes."""
    file = elsewhere / "plugins" / "x" / "x.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(PLUGIN)
    name = "ESC50/hparams/base.yaml"
    assert places.extended(file, name) == OWN / name
    recipes.copy("ESC50", elsewhere)
    assert places.extended(file, name).resolve() == elsewhere / name
    shutil.copytree("ESC50", file.parent / "ESC50")
    assert places.extended(file, name) == file.parent / name
    assert config.recipe_of(file) == file.parent / "ESC50" / "train.py"


def test_what_is_extended_and_nowhere(elsewhere: Path) -> None:
    file = elsewhere / "x.yaml"
    file.write_text("extends: no/such.yaml\n")
    with pytest.raises(ConfigError, match=r"x.yaml extends .*no/such.yaml, which does not exist"):
        config.recipe_of(file)


def test_train_runs_the_recipe_with_the_rest_of_the_command_line(
    elsewhere: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["toolkit"])
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    (elsewhere / "ESC50").mkdir()
    (elsewhere / "ESC50" / "helper.py").write_text("WORD = 'helped'\n")
    (elsewhere / "ESC50" / "train.py").write_text(
        "import sys\nfrom helper import WORD\nprint(__name__, WORD, sys.argv)\n"
    )
    main(["train", "ESC50", "softmoa", "--epochs", "1", "--peft.slots", "2", "--debug"])
    used, said = capsys.readouterr().out.splitlines()
    assert used == "ESC50/train.py is used, not the recipe that comes with the toolkit"
    words = ["ESC50/train.py", "hparams/softmoa.yaml"]
    words += ["--epochs", "1", "--peft.slots", "2", "--debug"]
    assert said == f"__main__ helped {words}"

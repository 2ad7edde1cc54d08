"""Studies as files, the methods and runs that they plan, and equal budgets."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pytest
from recipe import ROOT

from toolkit.errors import ConfigError, RunError
from toolkit.registry import PEFT
from toolkit.study import budget
from toolkit.study.methods import methods_of
from toolkit.study.plan import Cell, Problem, Run, read_plan
from toolkit.study.planner import Planner
from toolkit.study.report.published import read_published
from toolkit.study.run.time_estimate import duration
from toolkit.study.spec import Study

FILES = sorted((ROOT / "tools" / "studies").glob("*.yaml"))


def plan(folder: Path, **changes: object) -> Planner:
    """A planner of a small study on the ESC-50 recipe."""
    values = {"study": "small", "corpora": {"embedded": {}}, "methods": ["linear"], **changes}
    return Planner(Study.from_mapping(values, "small"), folder)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_studies_that_come_with_the_project(file: Path, tmp_path: Path) -> None:
    """Each names existing methods, and states its question and its limits."""
    study = Study.read(file)
    assert study.study == file.stem
    assert study.question and study.limits
    cells = Planner(study, tmp_path).cells()
    assert len(cells) == len(set(cells)) >= 40
    study.write(tmp_path)
    assert Study.read(tmp_path).as_dict() == study.as_dict()
    assert Planner(Study.read(tmp_path), tmp_path).cells() == cells  # their order and names too


def test_esc10_runs_its_core_twice_and_the_rest_of_the_registry_once(tmp_path: Path) -> None:
    """Ten methods on 5 folds x 2 seeds, every other one on 5 x 1."""
    planner = Planner(Study.read(ROOT / "tools" / "studies" / "esc10.yaml"), tmp_path)
    cells = planner.cells()
    runs = {name: sum(c.method == name for c in cells) for name in planner.methods}
    assert list(runs.values()).count(10) == 10
    assert set(runs.values()) == {5, 10}
    assert {method.peft for method in planner.methods.values()} >= set(PEFT.names())


def test_positions_is_every_combination(tmp_path: Path) -> None:
    """Five methods, right and zero table, our initial values and the reference's; both take hold
    on ESC-10 in the configuration that a run is given."""
    study = Study.read(ROOT / "tools" / "studies" / "positions.yaml")
    assert len(methods_of(study)) == 20
    [run] = Planner(study, tmp_path, data=tmp_path).runs(
        ["ESC-10/softmoa,zero_positions=true,reference_init=false/*/seed-1/fold-1"]
    )
    assert isinstance(run, Run), run
    words = dict(zip(run.arguments[1::2], run.arguments[2::2], strict=True))
    assert words["--peft.zero_positions"] == "true"
    assert words["--peft.reference_init"] == "false"
    assert words["--data_folder"] == str(tmp_path / "ESC-10")


def test_published_numbers_have_sources_and_methods(tmp_path: Path) -> None:
    """Each is a share in % with its source; each of Table 1's has a method in paper_petl.yaml."""
    table = read_published()
    assert table["score"].between(0, 100).all()
    assert table["source"].notna().all()
    assert set(table["evidence"]) == {"paper", "secondary"}
    printed = table[table["source"] == "arXiv:2312.03694v4 Table 1"]
    assert len(printed) == 44
    planner = Planner(Study.read(ROOT / "tools" / "studies" / "paper_petl.yaml"), tmp_path)
    run = {(cell.corpus, planner.methods[cell.method].published) for cell in planner.cells()}
    assert set(zip(printed["corpus"], printed["method"], strict=True)) <= run


def test_globs_sweeps_names_and_first_mentions(tmp_path: Path) -> None:
    """Globs match configurations and registered names; the first mention of a name counts."""
    planner = plan(
        tmp_path,
        methods=[
            {"glob": "lora", "seeds": [7]},
            "*lora",
            {"hparams": "softmoa", "name": "moa", "sweep": {"peft.slots": [1, 2]}},
        ],
        seeds=[1, 2],
    )
    assert next(iter(planner.methods)) == "lora"
    assert {"adalora", "rslora", "moa,slots=1", "moa,slots=2"} <= set(planner.methods)
    assert {c.seed for c in planner.cells() if c.method == "lora"} == {7}
    assert {c.seed for c in planner.cells() if c.method == "rslora"} == {1, 2}
    assert {v.series for v in planner.methods.values() if v.factors} == {"moa"}


def test_seeds_of_a_method_go_over_a_corpuss_and_these_over_the_studys(tmp_path: Path) -> None:
    planner = plan(
        tmp_path,
        corpora={"one": {"seeds": [1, 2]}, "two": {}},
        methods=["linear", {"hparams": "lora", "seeds": [3]}],
        seeds=[4],
    )
    found = {(c.corpus, c.method, c.seed) for c in planner.cells()}
    linear = {("one", "linear", 1), ("one", "linear", 2), ("two", "linear", 4)}
    assert found == linear | {("one", "lora", 3), ("two", "lora", 3)}


def test_corpora_choose_methods_and_shots(tmp_path: Path) -> None:
    """A method on one corpus only, and a corpus with its own numbers of shots."""
    planner = plan(
        tmp_path,
        corpora={"one": {"shots": [1, None]}, "two": {}},
        methods=["linear", {"glob": "lora", "corpora": ["two"]}],
        shots=[4],
    )
    found = {(c.corpus, c.method, c.shots) for c in planner.cells()}
    assert found == {
        ("one", "linear", 1), ("one", "linear", None), ("two", "linear", 4), ("two", "lora", 4),
    }  # fmt: skip


def test_names_of_runs_tell_them_apart() -> None:
    """A name is a folder; a hub id is its last part."""
    cell = Cell("ESC-10", "lora", "MIT/ast-base", 4, 1, None)
    assert cell.name == "ESC-10/lora/ast-base/4-shot/seed-1/folds"
    assert dataclasses.replace(cell, shots=None, fold=2).name.endswith("/all/seed-1/fold-2")


def test_a_digest_changes_with_the_configuration_and_not_with_its_place(tmp_path: Path) -> None:
    """Seeds, folds, data and output folders are not in it; epochs are, but not in the step."""
    [one] = plan(tmp_path / "a").runs()
    [moved] = plan(tmp_path / "b", seeds=[3]).runs()
    [longer] = plan(tmp_path / "c", overrides={"epochs": 3}).runs()
    [wider] = plan(tmp_path / "d", overrides={"max_length": 64}).runs()
    assert one.digest == moved.digest
    assert len({one.digest, longer.digest, wider.digest}) == 3
    assert (one.step, longer.epochs) == (longer.step, 3)
    assert one.step != wider.step


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ["loar"]}, "no method matches 'loar'.*lora"),
        ({"methods": []}, "'methods' is empty"),
        ({"baseline": "liner"}, "no method 'liner'.*linear"),
        ({"seedz": [1]}, "unknown setting 'small.seedz'.*seeds"),
        ({"overrides": {"seed": 3}}, "'overrides' cannot set 'seed': list it in 'seeds'"),
        ({"overrides": {"debug": True}}, "a debug run gives no result"),
        ({"corpora": {"a/b": {}}}, "cannot name a folder"),
        ({"corpora": {"a": {"overrides": {"folds": 1}}}}, "as 'folds' of the corpus"),
        ({"methods": [{"glob": "lora", "hparams": "lora"}]}, "either 'glob' or 'hparams'"),
        ({"methods": [{"glob": "lora", "corpora": ["embeded"]}]}, "no corpus 'embeded'.*embedded"),
        ({"methods": [{"glob": "lora", "sweep": {"peft.rank": 3}}]}, "must be a list of values"),
        ({"budget": {}}, "either 'parameters' or 'seconds'"),
    ],
)
def test_what_is_wrong_with_a_study_is_said(
    tmp_path: Path, changes: Mapping[str, object], message: str
) -> None:
    """One message, with the nearest right name where there is one."""
    with pytest.raises(ConfigError, match=message):
        plan(tmp_path, **changes)


def test_a_misspelt_key_of_a_recipe_is_that_cells_problem(tmp_path: Path) -> None:
    """The rest of the study can still run."""
    methods = ["linear", {"hparams": "lora", "overrides": {"peft.rnak": 3}}]
    [good, bad] = plan(tmp_path, methods=methods).runs()
    assert isinstance(good, Run)
    assert isinstance(bad, Problem)
    assert "rank" in bad.reason


def test_a_file_that_is_no_study_is_said(tmp_path: Path) -> None:
    """A missing file, and a file that is not YAML."""
    with pytest.raises(ConfigError, match="there is no study"):
        Study.read(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("study: [")
    with pytest.raises(ConfigError, match="not valid YAML"):
        Study.read(tmp_path / "bad.yaml")


# ---------------------------------------------------------------- plan.json


def test_a_saved_plan_is_read_back(tmp_path: Path) -> None:
    """All methods and runs in their order; a digest stays known when other runs are planned."""
    methods = ["linear", {"hparams": "lora", "published": "LoRA", "sweep": {"peft.rank": [1, 2]}}]
    planner = plan(tmp_path, methods=methods, seeds=[1, 2])
    assert read_plan(tmp_path) is None
    planner.save(planner.runs(["*linear*"]))
    runs = list(planner.runs())
    planner.save(run for run in runs if run.cell.method != "linear")
    found = read_plan(tmp_path)
    assert list(found.digests) == planner.cells()
    assert found.digests == {run.cell: run.digest for run in runs}
    assert list(found.methods) == ["linear", "lora,rank=1", "lora,rank=2"]
    swept = found.methods["lora,rank=2"]
    assert (swept.series, swept.peft, swept.published) == ("lora", "lora", "LoRA,rank=2")
    assert swept.factors == {"peft.rank": 2}


def test_a_run_that_cannot_be_planned_has_no_digest(tmp_path: Path) -> None:
    planner = plan(tmp_path, methods=[{"hparams": "lora", "overrides": {"peft.rnak": 3}}])
    planner.save(planner.runs())
    assert list(read_plan(tmp_path).digests.values()) == [None]


@pytest.mark.parametrize("text", ["{", "[]", '{"methods": [{}], "runs": []}'])
def test_a_damaged_plan_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(RunError, match=r"plan.json is damaged.*delete it"):
        read_plan(tmp_path)


# ---------------------------------------------------------------- budgets


def test_a_matched_budget_is_met_and_remembered(tmp_path: Path) -> None:
    """Counted independently: LoRA has 2 x 2 x 6 x r x d parameters; the adapter's size follows."""
    planner = plan(
        tmp_path, methods=["lora", "adapter"], budget={"parameters": "lora", "within": 10}
    )
    lora, adapter = planner.runs()
    assert lora.fit.found == lora.fit.target == 6 * 2 * 2 * 6 * 192 + 384
    assert adapter.fit.setting == "reduction"
    assert adapter.fit.distance <= 10
    assert adapter.arguments[adapter.arguments.index("--peft.reduction") + 1] == str(
        adapter.fit.value
    )
    assert len(list((tmp_path / "budget").iterdir())) == 2


@pytest.mark.parametrize("target", [1, 950, 12_345, 10**9])
def test_the_search_finds_the_best_size(target: int) -> None:
    """Against trying every size; sizes that are refused are passed over."""

    def count(peft: Mapping[str, object]) -> int:
        rank = int(peft.get("rank", 6))
        if rank > 1024:
            raise ConfigError("too large")
        return 24 * rank + 384

    found = budget.fit({"name": "lora"}, target, 1.0, count, "rank")
    best = min(range(1, 1025), key=lambda rank: abs(24 * rank + 384 - target))
    assert found.value == best
    assert found.overrides == {"peft.rank": best}


def test_a_method_without_a_size_is_taken_as_it_is() -> None:
    """The report shows how far it is from the budget."""
    found = budget.fit({"name": "bitfit"}, 100, 10, lambda peft: 150)
    assert (found.setting, found.distance, found.overrides) == (None, 50, {})


def test_durations_are_read_easily() -> None:
    """Seconds, minutes, hours."""
    assert [duration(s) for s in (45, 720, 11_100)] == ["45 s", "12 min", "3 h 05 min"]


@pytest.mark.parametrize("name", ["esc10", "esc10.yaml", "tools/studies/esc10.yaml"])
def test_a_study_of_the_toolkit_is_found_from_any_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Study.read(Path(name)).study == "esc10"
    (tmp_path / "esc10.yaml").write_text("study: mine\ncorpora: {a: {}}\nmethods: [lora]\n")
    assert Study.read(Path("esc10.yaml")).study == "mine"  # the nearest
    with pytest.raises(ConfigError, match="did you mean 'esc10'"):
        Study.read(Path("esc11"))

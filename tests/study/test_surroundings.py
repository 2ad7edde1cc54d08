"""What a study notices besides configurations: clips, backbones, sources, and which folds exist."""

from pathlib import Path

import pytest
import studies

from toolkit.data.synthetic.corpus import write_corpus
from toolkit.errors import ConfigError, RunError
from toolkit.study.plan import Problem, Run
from toolkit.study.planner import Planner
from toolkit.study.run.children import Children, Stopping
from toolkit.study.run.process import Workplace, execute
from toolkit.study.run.queue import StudyQueue
from toolkit.study.spec import Study
from toolkit.training.identity import Identity, clips_of, fingerprint, identity_of


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe that finishes immediately, beside a corpus `mini`."""
    write_corpus(tmp_path / "mini", clips_per_class=5, seconds=0.5, progress=False)
    return studies.quick_recipe(tmp_path)


def study(recipe: Path, **changes: object) -> Study:
    corpora = {"two": {"recipe": str(recipe), "data_folder": "mini", "folds": [1, 2]} | changes}
    return studies.study_of(recipe, corpora=corpora)


def queue(recipe: Path, **options: bool) -> StudyQueue:
    """The queue of the study, whose clips are in the parent of the recipe."""
    planner = Planner(study(recipe), recipe.parent / "out", data=recipe.parent, recipes=[recipe])
    found = StudyQueue(planner, **options)
    planner.save(found.runs)
    return found


def keep_identities(recipe: Path) -> None:
    """Write what a recipe writes about the clips of each run."""
    planner = Planner(study(recipe), recipe.parent / "out", data=recipe.parent, recipes=[recipe])
    for run in planner.runs():
        experiment = planner._planned(run.cell).experiment
        root, length = experiment.cache_folder, experiment.options.max_length
        manifest = experiment.corpus.manifest(experiment.data_folder)
        backbone = fingerprint(experiment.source, length, root)
        identity_of(experiment, clips_of(manifest, root), backbone).write(run.output)


def change_a_clip(recipe: Path) -> None:
    file = sorted((recipe.parent / "mini" / "audio").iterdir())[0]
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)


def test_other_clips_are_refused_or_run_again(recipe: Path) -> None:
    """All runs of the corpus; nothing is executed before one says so."""
    list(queue(recipe).run("local", 1))
    keep_identities(recipe)
    assert (queue(recipe).done, queue(recipe).open) == (4, [])
    change_a_clip(recipe)
    with pytest.raises(RunError) as refused:
        queue(recipe)
    for words in ("4 runs in", "clips of fold", "clips of class", "--overwrite", "--output"):
        assert words in str(refused.value)
    assert len(studies.executions(recipe)) == 4
    again = queue(recipe, overwrite=True)
    assert [run.again for run in again.open] == [True] * 4
    lines = list(again.run("local", 1))
    assert len(lines) == 4 and len(studies.executions(recipe)) == 8
    keep_identities(recipe)
    assert queue(recipe).open == []


def test_an_interrupted_overwrite_leaves_no_old_result_that_counts(recipe: Path) -> None:
    """The recipe has noted the new clips when it is stopped, so that nothing seems to change."""
    list(queue(recipe).run("local", 1))
    keep_identities(recipe)
    change_a_clip(recipe)
    run, *others = queue(recipe, overwrite=True).open
    children = Children()
    children.end()
    with pytest.raises(Stopping):
        execute(run, Workplace("local", str(recipe), 1), before=1, children=children)
    keep_identities(recipe)
    assert [again.cell for again in queue(recipe).open] == [run.cell]
    assert len(others) == 3


def test_runs_that_say_nothing_of_their_clips_stay_done(recipe: Path) -> None:
    """As those of version 0.1."""
    list(queue(recipe).run("local", 1))
    change_a_clip(recipe)
    assert queue(recipe).done == 4


def test_clips_that_are_not_here_are_not_compared(recipe: Path) -> None:
    list(queue(recipe).run("local", 1))
    keep_identities(recipe)
    (recipe.parent / "mini").rename(recipe.parent / "gone")
    assert queue(recipe).done == 4


def test_a_fold_that_the_corpus_lacks_is_a_problem_of_the_plan(
    recipe: Path, tmp_path: Path
) -> None:
    planner = Planner(
        study(recipe, folds=[1, 9]), tmp_path / "out", data=recipe.parent, recipes=[recipe]
    )
    good, bad = [list(planner.runs([f"*fold-{fold}"])) for fold in (1, 9)]
    assert all(isinstance(run, Run) for run in good)
    assert all(isinstance(run, Problem) for run in bad)
    assert "no test fold 9 (it has 1, 2, 3, 4, 5)" in bad[0].reason


def test_a_wrong_baseline_lists_the_methods(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no method 'ridge'.*it has linear, lora"):
        Planner(studies.study_of(recipe, baseline="ridge"), tmp_path)


def test_overwriting_is_no_key_of_a_study(recipe: Path) -> None:
    with pytest.raises(ConfigError, match="--overwrite"):
        studies.study_of(recipe, overrides={"overwrite": True})


def test_an_identity_is_read_as_it_was_written(tmp_path: Path) -> None:
    from toolkit.training.identity import recorded

    identity = Identity({"lr": 0.1, "peft.name": "lora", "few_shot": None}, {"classes": "2 (ab)"})
    identity.write(tmp_path)
    assert recorded(tmp_path) == identity


def test_runs_of_version_0_1_are_recognised(recipe: Path, tmp_path: Path) -> None:
    """Their digests are of configurations without the options that were added since."""
    from toolkit.study.planner import ANYWHERE
    from toolkit.training.experiment import Options

    def digests(**overrides: object) -> tuple[str, str]:
        planner = Planner(
            studies.study_of(recipe, overrides=overrides), tmp_path / "out", recipes=[recipe]
        )
        run = next(iter(planner.runs()))
        configuration = planner._planned(run.cell).configuration
        return run.digest, configuration.digest(ignore=(*ANYWHERE, *Options.ADDED))

    now, before = digests()
    assert now == before
    now, before = digests(windows="first")
    assert now != before

"""`toolkit search --method automoe`: train a supernet, evolve architectures, write the best."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch

from toolkit.config import CommandLine
from toolkit.data.sampling import derive_seed
from toolkit.errors import ConfigError, RunError, listing
from toolkit.features.windows import over_clips
from toolkit.files import write_atomically
from toolkit.mixtures.observe import some_of
from toolkit.model import AudioClassifier
from toolkit.registry import SEARCHES
from toolkit.settings import setting
from toolkit.training.experiment import Experiment, say
from toolkit.training.folds import Fold, Job, require_same
from toolkit.training.output import OutputFolder
from toolkit.training.search import Search, SearchReport
from toolkit.training.volatile import VOLATILE

from .automoe import AutoMoE, method_of
from .costs import COSTS, ClosedForm, Costs, Predictor, Stopwatch
from .evolution import Plan, State, evolve
from .genome import Genome, Space
from .outcome import Outcome

STATE = "search.json"
FORMAT = 2
"""Of that file: since 2, architectures have a `valid_score`."""


@SEARCHES.register("automoe", paper="arXiv:2210.07535")
class AutoMoESearch(Search):
    """AutoMoE: evolution among the architectures of a trained supernet, within a budget."""

    costs = COSTS

    iterations: int = setting(15, "generations after the first, random one", minimum=0)
    population: int = setting(125, "architectures per generation", minimum=2)
    parents: int | None = setting(
        None, "architectures kept from the previous generation; none: a fifth", minimum=1
    )
    mutation_rate: float = setting(
        0.3, "probability that a value of a gene is drawn again in a mutant", minimum=0, maximum=1
    )
    max_tries: int = setting(10_000, "most draws for one member before giving up", minimum=1)
    fitness_clips: int | None = setting(
        None, "validation clips on which architectures are compared; none: all", minimum=1
    )
    latency: Literal["predictor", "measured"] = setting(
        "predictor",
        "a budget of latency_ms bounds a linear prediction, or a measurement of each architecture",
    )
    latency_samples: int = setting(40, "measurements to which the predictor is fitted", minimum=8)
    latency_passes: int = setting(
        100, "forward passes per measurement; three times as many on the Pareto front", minimum=1
    )

    def check(self) -> None:
        """Check that a part of each generation is new."""
        if self.parents is not None and self.parents >= self.population:
            raise ConfigError(
                f"'parents' {self.parents} leave no room in a 'population' of {self.population}: "
                "lower 'parents'"
            )

    def run(
        self,
        experiment: Experiment,
        command: CommandLine,
        budget: Mapping[str, float],
        folder: Path,
    ) -> SearchReport:
        """Train the supernet, evolve within the budget, and write what was found."""
        method = experiment.method
        if not isinstance(method, AutoMoE) or method.genome is not None:
            raise ConfigError(
                f"automoe searches a supernet of its own method, but {command.hparams} trains "
                f"{'one genome' if isinstance(method, AutoMoE) else method.registered_name}: use "
                "`peft: {name: automoe}` without a genome"
            )
        journal = Journal.open(
            folder / STATE, self._identity(experiment, budget), fresh=experiment.options.debug
        )
        backbone = experiment.source.load(experiment.options.max_length)
        space = method.space(backbone)
        spec = backbone.features
        clip = spec.normalise(torch.zeros(1, spec.rows, spec.width))
        stopwatch = Stopwatch(backbone, method, clip.to(experiment.device), self.latency_passes)
        costs = Costs(
            ClosedForm(backbone.dim, stopwatch.tokens, method.norms, method.final_norm),
            budget,
            self._latency(stopwatch, space, experiment.options.seed, journal),
        )
        costs.refuse_less_than(space.smallest)
        fold, model = train_supernet(experiment)
        state = self._evolve(space, costs, fold, model, journal)
        return Outcome(experiment, command, fold, model, costs, state, journal.predictor).write(
            folder, stopwatch
        )

    def _identity(self, experiment: Experiment, budget: Mapping[str, float]) -> dict[str, Any]:
        """What must stay the same when a search is continued; `iterations` may grow."""
        settings = {key: value for key, value in self.as_dict().items() if key != "iterations"}
        configuration = experiment.configuration.digest(ignore=VOLATILE)
        return {
            **settings, "budget": dict(budget), "configuration": configuration,
            "device": experiment.device, "debug": experiment.options.debug, "format": FORMAT,
        }  # fmt: skip

    def _latency(
        self, stopwatch: Stopwatch, space: Space, seed: int, journal: "Journal"
    ) -> Callable[[Genome], float]:
        """The estimate of latency, fitted now if the budget bounds latency."""
        if self.latency == "measured":
            return stopwatch.measure
        if journal.predictor is None and "latency_ms" in journal.identity["budget"]:
            say(f"measuring {self.latency_samples} architectures to predict latency")
            journal.predictor = Predictor.sample(
                space, self.latency_samples, derive_seed(seed, 0), stopwatch.measure
            )
            journal.write()
        return journal.predictor or stopwatch.measure

    def _evolve(
        self, space: Space, costs: Costs, fold: Fold, model: AudioClassifier, journal: "Journal"
    ) -> State:
        plan = Plan(
            iterations=self.iterations,
            population=self.population,
            parents=self.parents or max(1, self.population // 5),
            mutation_rate=self.mutation_rate,
            max_tries=self.max_tries,
            seed=fold.seed,
        )
        fitness = Fitness(model, fold, self.fitness_clips)

        def keep(state: State) -> None:
            journal.write()
            best = state.found[state.best]
            say(
                f"generation {len(state.generations) - 1}/{plan.iterations}: "
                f"{len(state.found)} architectures evaluated, best validation loss "
                f"{best['valid_loss']:.4f} ({100 * best['valid_score']:.1f} %)"
            )

        def evaluate(genome: Genome) -> dict[str, Any]:
            return fitness(genome) | costs.of(genome)

        return evolve(space, plan, costs.admits, evaluate, journal.state, keep)


def train_supernet(experiment: Experiment) -> tuple[Fold, AudioClassifier]:
    """Train as the recipe does, or continue; the test fold is not used.

    Returns:
        The fold, and the classifier after the last epoch, in eval mode.
    """
    options = experiment.options
    with OutputFolder(
        experiment.output_folder,
        experiment.configuration,
        fresh=options.debug,
        overwrite=options.overwrite,
    ) as output:
        experiment = output.settled(experiment)
        experiment.introduce()
        manifest = experiment.manifest()
        require_same(experiment, manifest, output)
        job = Job.of(experiment, manifest, output)
        output.begin()
        fold = Fold(job, job.splits[0])
        job.progress.bar.total = fold.batches
        brain = fold.brain()
        fold.fit(brain)
        job.progress.close()
    return fold, brain.model.eval()


class Fitness:
    """Evaluates architectures with the supernet's weights on validation clips.

    Args:
        model: the trained supernet.
        fold: the fold with the validation clips.
        clips: how many of them to use; None: all.
    """

    def __init__(self, model: AudioClassifier, fold: Fold, clips: int | None) -> None:
        self.model, self.task = model, fold.task
        chosen = fold.valid if clips is None else some_of(fold.valid, clips)
        device = fold.experiment.device
        self.batches = [batch.to(device) for batch in fold.evaluation_loader(chosen)]

    @torch.inference_mode()
    def __call__(self, genome: Genome) -> dict[str, float]:
        """`valid_loss`, the mean over the clips, and `valid_score`, both of the corpus's task.

        A clip that is longer than the backbone reads counts once, as in training's validation.
        """
        model, task = self.model, self.task
        windows: list[dict[str, Any]] = []
        with method_of(model).subnet(model.backbone, genome):
            for batch in self.batches:
                logits = model.logits(batch.features, batch.lengths).float()
                losses = task.losses(logits, task.targets(batch.labels, logits.shape[1])).tolist()
                truths, probabilities = task.truths(batch.labels), task.probabilities(logits)
                windows += [
                    {"id": name, "truth": truth, "probabilities": values, "loss": loss}
                    for name, truth, values, loss in zip(
                        batch.ids, truths, probabilities.tolist(), losses, strict=True
                    )
                ]
        clips = over_clips(windows)
        table = task.table(*([clip[key] for clip in clips] for key in ("truth", "probabilities")))
        return {
            "valid_loss": fmean(clip["loss"] for clip in clips),
            "valid_score": task.score(table),
        }


@dataclasses.dataclass
class Journal:
    """What a search needs to be continued, in a file that is always complete.

    Attributes:
        path: the file.
        identity: the settings that must stay the same.
        state: what the search has found.
        predictor: the predictor of latency, if the budget needs one.
    """

    path: Path
    identity: dict[str, Any]
    state: State
    predictor: Predictor | None = None

    @classmethod
    def open(cls, path: Path, identity: dict[str, Any], fresh: bool) -> "Journal":
        """Read the file if there is one, else start a new journal.

        Args:
            path: the file.
            identity: the present settings.
            fresh: start a new journal in any case.

        Raises:
            RunError: the file belongs to another search.
        """
        if fresh or not path.is_file():
            return cls(path, identity, State())
        there = json.loads(path.read_text(encoding="utf-8"))
        old = there["identity"]
        changed = [
            f"{key}: {old.get(key)} there, {value} now"
            for key, value in identity.items()
            if old.get(key) != value
        ]
        if changed:
            raise RunError(
                f"{path.parent} holds another search:\n{listing(changed)}\n"
                "choose another folder with `-o`, or delete that one"
            )
        predictor = there["predictor"]
        return cls(
            path,
            identity,
            State.from_json(there),
            None if predictor is None else Predictor(**predictor),
        )

    def write(self) -> None:
        """Write the whole journal."""
        predictor = None if self.predictor is None else self.predictor.as_dict()
        content = {"identity": self.identity, "predictor": predictor, **self.state.to_json()}
        write_atomically(self.path, json.dumps(content))

"""What tools on trained mixtures share: their report, and the corpus that fits a bundle."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from bundles import unsaved_bundle

from toolkit.data.manifest import Corpus, Manifest
from toolkit.errors import BundleError
from toolkit.mixtures.tool import Found, MixtureData
from toolkit.task import ONE_CLASS, SEVERAL_CLASSES, Task
from toolkit.testing import tiny_mixture


@dataclasses.dataclass
class ThreeClips(Corpus):
    """A clip per fold, said to have one class or several."""

    multi_label: bool

    def manifest(self, folder: Path) -> Manifest:
        names, labels = ["a", "b", "c"], [0, 1, 1]
        clips = pd.DataFrame({"id": names, "path": names, "label": labels, "fold": [1, 2, 3]})
        if self.multi_label:
            clips["label"] = [np.eye(2)[label] for label in labels]
        return Manifest("three", clips, ["x", "y"], multi_label=self.multi_label)


@pytest.mark.parametrize("task", [ONE_CLASS, SEVERAL_CLASSES])
def test_a_corpus_with_another_task_than_the_bundle_is_refused(task: Task) -> None:
    unsaved = unsaved_bundle(tiny_mixture("dense_moa"), task)
    bundle = dataclasses.replace(unsaved, classes=["x", "y"])
    with pytest.raises(BundleError, match=f"trained for the task '{task.name}'.*name the corpus"):
        MixtureData.of(bundle, ThreeClips(multi_label=task is ONE_CLASS), Path())
    with pytest.raises(BundleError, match="which fold"):
        MixtureData.of(bundle, ThreeClips(multi_label=task is SEVERAL_CLASSES), Path())


def test_a_report_has_what_a_tool_found_beside_its_details() -> None:
    assert Found().as_dict() == {} and Found().parameters_removed == 0
    found = Found(active_mean=0.0, parameters_before=5, parameters_after=3, details={"k": None})
    assert found.parameters_removed == 2
    assert found.as_dict() == {
        "active_mean": 0.0,
        "parameters_before": 5,
        "parameters_after": 3,
        "k": None,
    }

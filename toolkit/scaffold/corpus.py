"""The files of a new corpus."""

MODULE = '''"""{title}: what it holds, who made it, its licence, and its official protocol."""

import re
from pathlib import Path

import pandas as pd

from toolkit.data.corpora.miniature import write_tones
from toolkit.data.manifest import Corpus, Manifest, refuse, unreadable
from toolkit.errors import DataError
from toolkit.registry import CORPORA

NAME = re.compile(r"[a-z_]+-(?P<fold>[1-3])-[0-9]+")


@CORPORA.register("{name}", paper="your paper")
class {title}(Corpus):
    """A folder per class; files are called `<class>-<fold>-<number>.wav` (replace this)."""

    def manifest(self, folder: Path) -> Manifest:
        """The table of clips; everything that is wrong with them is reported at once."""
        files = sorted(folder.glob("*/*.wav"))
        if not files:
            raise DataError(f"{{folder}} holds no <class>/*.wav: name another `--data_folder`")
        matches = {{file: NAME.fullmatch(file.stem) for file in files}}
        strange = [f"{{file}} has no fold in its name" for file in files if not matches[file]]
        refuse(f"{title} in {{folder}}", strange + unreadable(files))
        classes = sorted({{file.parent.name for file in files}})
        rows = [
            (f"{{file.parent.name}}/{{file.name}}", str(file), classes.index(file.parent.name))
            for file in files
        ]
        clips = pd.DataFrame(rows, columns=["id", "path", "label"])
        folds = [int(match["fold"]) for match in matches.values() if match]
        return Manifest("{title}", clips.assign(fold=folds), classes)

    def embed(self, folder: Path) -> None:
        """Write a miniature: two classes of short tones in three folds."""
        write_tones(
            {{
                folder / label / f"{{label}}-{{fold}}-{{number}}.wav": place
                for place, label in enumerate(["high", "low"])
                for fold in (1, 2, 3)
                for number in range(4)
            }}
        )
'''

TEST = '''"""The plugin keeps the contract of every corpus, and says what is wrong with a folder."""

from pathlib import Path

import pytest

from toolkit import plugins
from toolkit.errors import DataError
from toolkit.registry import CORPORA
from toolkit.testing import check_corpus

loaded = plugins.load([Path(__file__).parent])
assert not plugins.report(loaded), plugins.report(loaded)


def test_contract() -> None:
    manifest = check_corpus("{name}")
    assert manifest.classes == ["high", "low"]
    assert len(manifest.clips) == 24


def test_a_file_without_a_fold_is_named(tmp_path: Path) -> None:
    corpus = CORPORA.create("{name}")
    corpus.embed(tmp_path)
    (tmp_path / "low" / "low-1-0.wav").rename(tmp_path / "low" / "strange.wav")
    with pytest.raises(DataError, match="strange.wav has no fold"):
        corpus.manifest(tmp_path)
'''

FILES = {"{name}.py": MODULE, "test_{name}.py": TEST}

"""The embedded corpus: what a recipe runs on when it is given no data."""

from pathlib import Path

from toolkit.data.corpora.esc50 import ESC50
from toolkit.data.manifest import Manifest
from toolkit.data.synthetic.corpus import write_corpus
from toolkit.registry import CORPORA
from toolkit.settings import setting


@CORPORA.register("synthetic", paper="this toolkit")
class Synthetic(ESC50):
    """Ten everyday sounds that the program makes itself, written once in ESC-50's layout."""

    seed: int = setting(0, "seed of the sounds", minimum=0)
    clips_per_class: int = setting(40, "clips of each of the ten classes", minimum=5)

    def manifest(self, folder: Path) -> Manifest:
        """Write the corpus if it is not there, and read it like any other."""
        folder = folder / f"seed-{self.seed}-clips-{self.clips_per_class}"
        write_corpus(folder, seed=self.seed, clips_per_class=self.clips_per_class)
        manifest = super().manifest(folder)
        return Manifest("the synthetic corpus", manifest.clips, manifest.classes)

    def published_clips(self, manifest: Manifest) -> int:
        """The number of clips: those of ten classes."""
        return 10 * self.clips_per_class

    def embed(self, folder: Path) -> None:
        """Nothing to do beforehand: `manifest` makes the sounds."""

    def download(self, folder: Path) -> None:
        """Nothing is fetched: `manifest` makes the sounds."""

"""Every code block of the documentation runs, or the comment above it says why it does not.

The blocks of a page run in their order in one temporary folder, the Python ones in one namespace.
In that folder are what the fixture `material` makes, and the checkout's `recipes`, `plugins`,
`tools` and `tests`. A block with a title is written to that file instead. `code_blocks.shortened`
says what is changed so that commands take seconds.
"""

import os
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from bundles import tiny_bundle
from code_blocks import ROOT, Block, blocks, pages, shortened

from toolkit import plugins
from toolkit.data.corpora.miniature import write_tones
from toolkit.data.corpora.speech_commands import TEST_FOLDERS
from toolkit.registry import BACKBONES, CORPORA

RUN = ("python", "bash", "yaml")
EXTRAS = {"docs/how-to/training-loops.md": ("accelerate", "lightning")}
"""Pages that need packages of the extra `frameworks`; skipped where these are missing."""
SHOWN = ("text", "bibtex")
"""Languages of blocks that are no code: layouts, output, references."""
CORPORA_IN_DATA = {
    "crema_d": "CREMA-D",
    "fluent_speech_commands": "fluent_speech_commands_dataset",
    "fsd50k": "FSD50K",
    "iemocap": "IEMOCAP",
    "speech_commands": "speech_commands_v0.02",
    "urbansound8k": "UrbanSound8K",
}
"""Name of a corpus that makes a miniature -> its folder in `data`."""
NOT_RUN = {
    "CONTRIBUTING.md": 1,
    "README.md": 1,
    "docs/index.md": 1,
    "docs/how-to/several-gpus.md": 1,
    "docs/how-to/speed.md": 3,
}
"""Page -> how many of its blocks need what no test has: an installation, a cluster."""


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Path:
    """What pages may use.

    Sounds of one's own: `my_sounds` (three classes), `dog.wav` and `long.wav`. `bundle` is one of
    Soft-MoA and `topk_bundle` one of top-k MoA. `data` has a miniature of each corpus, and
    `facebook/hubert-base-ls960` is a small random HuBERT.
    """
    folder = tmp_path_factory.mktemp("material")
    plugins.load([ROOT / "plugins" / "topk_moa"])
    tiny_bundle(folder, "topk_moa", num_experts=3).rename(folder / "topk_bundle")
    tiny_bundle(folder, "soft_moa", num_experts=3)
    for name, place in CORPORA_IN_DATA.items():
        CORPORA.create(name).embed(folder / "data" / place)
    (folder / "data" / "ESC-50").symlink_to(folder / "corpus" / "seed-0-clips-5")
    commands = folder / "data" / "speech_commands_v0.02"
    (folder / "data" / "spoken-digits").symlink_to(commands)
    (commands / TEST_FOLDERS[0]).rename(folder / "data" / TEST_FOLDERS[0])
    hubert = BACKBONES.get("hubert")
    config = hubert.config_class(**hubert.tiny_config, **hubert.options)
    hubert.model_class(config).save_pretrained(folder / "facebook" / "hubert-base-ls960")
    names = ("bark", "rain", "silence")
    write_tones(
        {
            folder / "my_sounds" / name / f"{name}_{number}.wav": label
            for label, name in enumerate(names)
            for number in range(9)
        }
    )
    write_tones({folder / "dog.wav": 0})
    write_tones({folder / "long.wav": 1}, seconds=3)
    return folder


@pytest.fixture
def workplace(
    material: Path,
    programs: Path,
    shared_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """The folder in which a page runs, with the commands `toolkit` and `python` on the path."""
    folder = tmp_path / "page"
    (folder / "plugins").mkdir(parents=True)
    own = [ROOT / name for name in ("recipes", "tools", "tests", "conftest.py", "pyproject.toml")]
    for target in (*material.iterdir(), *own):
        (folder / target.name).symlink_to(target)
    for plugin in (ROOT / "plugins").glob("[!._]*"):
        (folder / "plugins" / plugin.name).symlink_to(plugin)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TOOLKIT_CACHE", str(shared_cache))
    return folder


def runs(block: Block) -> bool:
    return block.language in RUN and block.reason is None


def rests(page: Path) -> list[pytest.MarkDecorator]:
    """Marks: pages of plugins, but for one, are run by `tools/test --all` only."""
    one_of_many = page.parts[0] == "plugins" and page.parts[1] != "topk_moa"
    return [pytest.mark.wide] if one_of_many else []


@pytest.mark.parametrize(
    "page",
    [pytest.param(p, marks=rests(p)) for p in pages() if any(map(runs, blocks(p)))],
    ids=str,
)
def test_blocks_of_page(page: Path, workplace: Path) -> None:
    for package in EXTRAS.get(str(page), ()):
        pytest.importorskip(package)
    namespace: dict[str, object] = {"__name__": "page"}
    for block in filter(runs, blocks(page)):
        if block.title is not None:
            file = workplace / block.title
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.code, encoding="utf-8")
        elif block.language == "python":
            exec(compile(block.code, block.place, "exec"), namespace)
        else:
            run_bash(block)


def run_bash(block: Block) -> None:
    command = ["bash", "-euo", "pipefail", "-c", shortened(block.code)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, f"{block.place}:\n{ended.stdout}\n{ended.stderr}"


def test_every_block_is_run_or_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    found = [block for page in pages() for block in blocks(page)]
    unknown = [b.place for b in found if b.language not in (*RUN, *SHOWN)]
    assert not unknown, f"fences without a language, or with one that nothing runs: {unknown}"
    untitled = [b.place for b in found if b.language == "yaml" and runs(b) and b.title is None]
    assert not untitled, f"a YAML block needs a title, the file that it is: {untitled}"
    assert not [b.place for b in found if b.language in SHOWN and b.reason], "needs no reason"
    ran = Counter(block.language for block in found if runs(block))
    left = Counter(block.language for block in found if block.language in RUN and not runs(block))
    with capsys.disabled():
        for language in RUN:
            total = ran[language] + left[language]
            print(f"\n{language}: {ran[language]} of {total} blocks run", end="")
    assert not left["python"] and not left["yaml"], "Python and YAML run everywhere"
    unrun = Counter(block.place.partition(":")[0] for block in found if block.reason)
    assert unrun == NOT_RUN


def test_long_commands_are_shortened_and_nothing_else() -> None:
    small = "--epochs 1 --folds 1 --corpus.clips_per_class 5 --max_length 64"
    embedded = "toolkit train ESC50 lora"
    assert shortened(f"{embedded}   # or --data_folder data/ESC-50") == f"{embedded} {small}"
    own = "toolkit train YourSounds lora \\\n --data_folder x"
    assert shortened(own).split() == [*own.replace("\\", "").split(), "--epochs", "1"]
    assert shortened("toolkit list peft") == "toolkit list peft"
    real = "torchrun --nproc_per_node=2 recipes/ESC50/train.py x.yaml --data_folder data/ESC-50"
    assert shortened(real) == f"{real} --debug --backbone ast_tiny --max_length 64"
    large = f"{real} --backbone facebook/hubert-base-ls960"
    assert shortened(large) == f"{large} --debug"
    assert shortened("python -m pytest plugins/ssf  # its tests").endswith("--collect-only -n 0")


def test_a_reason_belongs_to_the_block_below_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("code_blocks.ROOT", tmp_path)
    text = '<!-- not run: no GPU -->\n```bash\na\n```\n\n```python title="b.py"\nc\n```\n'
    (tmp_path / "page.md").write_text(text, encoding="utf-8")
    first, second = blocks(Path("page.md"))
    assert (first.language, first.code, first.reason, first.title) == (
        "bash",
        "a\n",
        "no GPU",
        None,
    )
    assert (second.language, second.reason, second.title) == ("python", None, "b.py")

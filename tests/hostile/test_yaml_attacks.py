"""Configurations and studies of someone else, which may run, write and delete nothing.

The attacks would create a file `sentinel`, or change or delete one; `check_refused` sees both.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hostile import Hostile, check_refused
from programs import ROOT

BASE = "extends: ESC50/hparams/base.yaml\n"
RUN = "os.system ['touch sentinel']"
POPEN = "subprocess.Popen [[touch, sentinel]]"
PYTHON = "!!python/object/apply:os.system ['touch sentinel']"
TRAIN = ["toolkit", "train", "ESC50", "evil.yaml", "--data_folder", "none"]


def written(**files: str | bytes) -> Callable[[Path], object]:
    """Writes files, such as `evil_yaml` for `evil.yaml`; and one to be deleted."""

    def write(folder: Path) -> None:
        for name, content in files.items():
            file = folder / name.replace("__", "/").replace("_", ".")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content.encode() if isinstance(content, str) else content)
        (folder / "precious").mkdir()
        (folder / "precious" / "precious.txt").write_text("mine")

    return write


def configurations(says: str, texts: Mapping[str, str]) -> list[Hostile]:
    """Rows of configurations that extend a recipe's."""
    return [
        Hostile(name, TRAIN, [says], written(evil_yaml=BASE + text)) for name, text in texts.items()
    ]


CALLS = configurations(
    "--trust",
    {
        "apply": f"label: !apply:{RUN}",
        "new": f"label: !new:{POPEN}",
        "applyref": f"label: !applyref:{RUN}",
        "module": "label: !module:antigravity",
        "include": "label: !include:other.yaml",
        "tuple": f'label: !tuple "({PYTHON})"',
        "python apply": f"label: {PYTHON}",
        "python new": "label: !!python/object/new:os.system ['touch sentinel']",
        "python object": "label: !!python/object:subprocess.Popen {args: [touch, sentinel]}",
        "python name": "label: !!python/name:os.system",
        "python module": "label: !!python/module:os",
        "verbatim": "label: !<!apply:os.system> [touch sentinel]",
        "verbatim python": "label: !<tag:yaml.org,2002:python/object/apply:os.system> [touch x]",
        "escaped": f"label: !appl%79:{RUN}",
        "merged at the top": f"<<: {{label: !apply:{RUN}}}",
        "merged in a list at the top": f"<<: [{{seed: 1}}, {{label: !apply:{RUN}}}]",
        "merged in a mapping": f"corpus: {{<<: {{esc10: !apply:{RUN}}}}}",
        "merged into a constructed thing": f"optimizer: {{<<: {{eps: !apply:{RUN}}}}}",
        "merged python": f"<<: {{label: {PYTHON}}}",
        "merged through an anchor": f"corpus: &x {{esc10: !apply:{RUN}}}\nlabel: {{<<: *x}}",
        "a merged merge": f"<<: {{<<: {{label: !apply:{RUN}}}}}",
        "pairs": f"label: !!pairs [a: !apply:{RUN}]",
        "new in pairs": f"label: !!pairs [a: !new:{POPEN}]",
        "applyref in pairs": f"label: !!pairs [a: !applyref:{RUN}]",
        "python in pairs": f"label: !!pairs [a: {PYTHON}]",
        "pairs in pairs": f"label: !!pairs [a: !!pairs [b: !apply:{RUN}]]",
        "pairs in a merge": f"corpus: {{<<: {{esc10: !!pairs [a: !apply:{RUN}]}}}}",
        "an ordered mapping": f"label: !!omap [a: !apply:{RUN}]",
        "a set": f"label: !!set {{x: [!apply:{RUN}]}}",
        "binary": "label: !!binary c2VudGluZWw=",
        "in a list": f"augment: [1, [2, !apply:{RUN}]]",
        "in a registered thing": f"peft: {{name: lora, rank: !apply:{RUN}}}",
        "in a name": f"peft: {{name: !apply:{RUN}}}",
        "in the optimiser": f"optimizer: {{eps: !apply:{RUN}}}",
        "behind an anchor": f"label: &x !apply:{RUN}\nfolds: *x",
        "behind a reference": f"label: !ref <folds>\nfolds: !apply:{RUN}",
        "behind a copy": f"label: !copy <folds>\nfolds: !apply:{RUN}",
        "an attribute": "label: !ref <corpus.__class__>",
        "an attribute of an attribute": "label: !ref <corpus.__class__.__mro__>",
    },
)

NAMES = configurations(
    "--trust",
    {
        f"{path} as {key}": f"{key}: {text.format(path)}"
        for key, text, paths in (
            (
                "optimizer",
                "!name:{} {{f: sentinel}}",
                (
                    "torch.save",
                    "torch.load",
                    "torch.hub.load",
                    "torch.jit.save",
                    "os.remove",
                    "torch.utils.cpp_extension.load",
                    "shutil.rmtree",
                    "builtins.open",
                    "speechbrain.utils.superpowers.run_shell",
                    "torch.hub.download_url_to_file",
                    "toolkit.scaffold.new_plugin",
                    "toolkit.files.write_atomically",
                    "torch.nn.Linear",
                    "torch.optim.lr_scheduler.StepLR",
                    "toolkit.data.augment.Mixup",
                    "torch.optim.os.system",
                ),
            ),
            (
                "augment",
                "[!new:{} {{path: precious, fresh: true}}]",
                (
                    "toolkit.training.output.OutputFolder",
                    "toolkit.training.output.EpochLog",
                    "pathlib.Path",
                ),
            ),
            (
                "augment",
                "[!new:{} [sentinel]]",
                (
                    "torch.utils.tensorboard.SummaryWriter",
                    "torch.package.PackageExporter",
                    "torch.distributed.FileStore",
                    "speechbrain.utils.checkpoints.Checkpointer",
                    "speechbrain.utils.train_logger.FileTrainLogger",
                    "torch.nn.Linear",
                    "torch.distributed.elastic.multiprocessing.subprocess_handler.SubprocessHandler",
                    "torch.optim.AdamW",
                    "subprocess.Popen",
                    "toolkit.peft.lora.LoRA",
                    "speechbrain.augment.time_domain.AddNoise",
                    "torch.fx.GraphModule",
                ),
            ),
            (
                "label",
                "!name:{}",
                (
                    "torch.fx.graph_module._exec_with_source",
                    "torch.hub._load_local",
                    "toolkit.plugins.load",
                    "os.system",
                    "torch.os",
                    "eval",
                ),
            ),
        )
        for path in paths
    },
)

SHAPES = [
    *configurations(
        "not valid YAML",
        {
            "an open bracket": "label: [1, 2",
            "a key twice": "seed: 1\nseed: 2",
            "an unknown anchor": "seed: *nothing",
            "no number": "seed: !!int x",
            "a number of many digits": "seed: " + "9" * 5000,
            "a control character": 'label: "\x07"',
            "two documents": "---\nseed: 2",
        },
    ),
    *configurations(
        "neither a word nor a number",
        {
            "an attack as a key": f"peft: {{? !apply:{RUN} : 1}}",
            "an attack as an outermost key": f"? !apply:{RUN}\n: 1",
            "an attack in a set": f"label: !!set {{? !apply:{RUN} }}",
            "a list as a key": "? [1]\n: 3",
        },
    ),
    *configurations(
        "too large|nested too deeply|too long",
        {
            "an alias bomb": "label: &a [1,1,1,1,1,1,1,1,1]\n"
            + "".join(
                f"{'bcdefgh'[i]}: &{'bcdefgh'[i]} [{','.join(9 * ['*' + 'abcdefg'[i]])}]\n"
                for i in range(7)
            ),
            "an alias to itself": "label: &a [*a]",
            "a merge of itself": "label: &a {<<: *a}",
            "3,000 brackets": "label: " + "[" * 3000 + "]" * 3000,
            "3,000 braces": "label: " + "{a: " * 3000 + "}" * 3000,
            "20,000 keys": "\n".join(f"k{i}: 1" for i in range(20_000)),
            "a million characters": "label: " + "a" * 1_000_000,
            "lists that grow by references": "cache_folder: [1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
            f"few_shot: [{', '.join(5 * ['!ref <cache_folder>'])}]\n"
            f"folds: [{', '.join(400 * ['!ref <few_shot>'])}]",
        },
    ),
    *configurations(
        "exponents go to 64|exceeds 10\\^18",
        {
            "a tower": "batch_size: 9\nseed: !ref <batch_size>**<batch_size>**<batch_size>",
            "a long tower": "batch_size: 9\nseed: !ref <batch_size>" + "**<batch_size>" * 9,
            "a large product": "lr: 999999999\nseed: !ref <lr>*<lr>*<lr>",
        },
    ),
    *configurations(
        "refers to itself|there is no <|lead to one another|more than a single|divides by zero",
        {
            "a reference to itself": "label: !ref <label>",
            "references to one another": "label: !ref <folds>\nfolds: !ref <label>",
            "a reference to what holds it": "corpus: {esc10: !ref <corpus>}",
            "a reference to nothing": "label: !ref <nothing>",
            "a mapping within text": "label: !ref x<corpus>",
            "a division by zero": "batch_size: 0\nseed: !ref 1 / <batch_size>",
        },
    ),
    *configurations("PLACEHOLDER", {"a placeholder": "label: !PLACEHOLDER"}),
    *configurations(
        "'<<' takes a mapping", {"a number merged": "<<: 3", "a tag merged": "<<: !x {}"}
    ),
    *configurations("takes text", {"a reference of a list": "label: !ref [a]"}),
]


def study(text: str) -> str:
    """A small study with further keys."""
    return f"study: s\ncorpora: {{a: {{}}}}\nmethods: [linear]\n{text}"


PLAN = ["toolkit", "study", "run", "evil.yaml", "--dry-run"]
OWN = "open('sentinel', 'w')\n"
STUDIES = [
    Hostile(name, PLAN, [says], written(evil_yaml=text, mine__train_py=OWN, mine__x_py=OWN))
    for name, says, text in (
        ("trusts itself", "cannot set 'trust'", study("overrides: {trust: true}")),
        ("names plugins", "cannot set 'plugins'", study("overrides: {plugins: mine}")),
        ("output folder", "cannot set 'output_folder'", study("overrides: {output_folder: /x}")),
        ("cache folder", "cannot set 'cache_folder'", study("overrides: {cache_folder: /x}")),
        ("downloads", "cannot set 'download'", study("overrides: {download: true}")),
        ("option in a key", "is no key", study("overrides: {'trust=true --x': 1}")),
        ("dashes in a key", "is no key", study("overrides: {'--trust': true}")),
        ("empty key", "is no key", study("overrides: {'': true}")),
        ("number as a key", "overrides", study("overrides: {1: true}")),
        (
            "trust of a method",
            "cannot set 'trust'",
            study("").replace("[linear]", "[{hparams: linear, overrides: {trust: true}}]"),
        ),
        (
            "trust swept",
            "cannot set 'trust'",
            study("").replace("[linear]", "[{hparams: linear, sweep: {trust: [true]}}]"),
        ),
        (
            "trust of a corpus",
            "cannot set 'trust'",
            study("").replace("{}", "{overrides: {trust: 1}}"),
        ),
        ("study above", "cannot name a folder", study("").replace("study: s", "study: ..")),
        ("study elsewhere", "cannot name a folder", study("").replace("study: s", "study: /tmp/x")),
        ("hidden study", "cannot name a folder", study("").replace("study: s", "study: .git")),
        ("corpus above", "cannot name a folder", study("").replace("{a: {}}", "{'..': {}}")),
        (
            "long corpus",
            "cannot name a folder",
            study("").replace("{a: {}}", f"{{{'a' * 300}: {{}}}}"),
        ),
        (
            "method above",
            "cannot name a folder",
            study("").replace("[linear]", "[{hparams: linear, name: ..}]"),
        ),
        (
            "method elsewhere",
            "cannot name a folder",
            study("").replace("[linear]", "[{hparams: linear, name: ../../x}]"),
        ),
        ("backbone above", "cannot name a folder", study("backbones: ['x/..']")),
        ("backbone nowhere", "cannot name a folder", study("backbones: ['']")),
        (
            "data elsewhere",
            "must lie in the folder",
            study("").replace("{}", "{data_folder: /etc}"),
        ),
        ("data above", "must lie in the folder", study("").replace("{}", "{data_folder: ../x}")),
        ("apply", "only plain values", study(f"question: !apply:{RUN}")),
        ("merged apply", "only plain values", study(f"<<: {{question: !apply:{RUN}}}")),
        ("pairs", "only plain values", study(f"question: !!pairs [a: !apply:{RUN}]")),
        ("python", "only plain values", study(f"question: {PYTHON}")),
        ("reference", "only plain values", study("question: !ref <study>")),
        ("brackets", "nested too deeply", study("question: " + "[" * 3000)),
        ("alias to itself", "nested too deeply", study("question: &a [*a]")),
        ("list", "must hold keys and values", "[1, 2]"),
        ("text", "must hold keys and values", "text"),
        ("nothing", "must hold keys and values", ""),
        ("unknown key", "unknown setting", study("command: touch sentinel")),
    )
]

BINARY = [
    Hostile("binary configuration", TRAIN, ["not text"], written(evil_yaml=b"\xff\xfe\x00\x01")),
    Hostile("zeros as configuration", TRAIN, ["not valid YAML"], written(evil_yaml=b"\x00" * 99)),
    Hostile(
        "picture as configuration", TRAIN, ["not text"], written(evil_yaml=b"\x89PNG\r\n\x1a\n\x00")
    ),
    Hostile("empty configuration", TRAIN, ["must hold keys and values"], written(evil_yaml="")),
    Hostile(
        "comment as configuration", TRAIN, ["must hold keys"], written(evil_yaml="# nothing\n")
    ),
    Hostile("list as configuration", TRAIN, ["must hold keys"], written(evil_yaml="- a\n")),
    Hostile("attack at the root", TRAIN, ["must hold keys"], written(evil_yaml=f"!apply:{RUN}")),
    Hostile(
        "tagged root", TRAIN, ["must hold keys"], written(evil_yaml=f"!apply:os.system\n{BASE}")
    ),
    Hostile(
        "attack in extends", TRAIN, ["does not exist"], written(evil_yaml=f"extends: !apply:{RUN}")
    ),
    Hostile("extends itself", TRAIN, ["in turn"], written(evil_yaml="extends: evil.yaml\n")),
    Hostile(
        "extends nothing", TRAIN, ["does not exist"], written(evil_yaml="extends: none.yaml\n")
    ),
    Hostile("extends a list", TRAIN, ["does not exist"], written(evil_yaml="extends: [a]\n")),
    Hostile(
        "extends a device", TRAIN, ["does not exist"], written(evil_yaml="extends: /dev/zero\n")
    ),
    Hostile(
        "extends a folder", TRAIN, ["does not exist"], written(evil_yaml="extends: precious\n")
    ),
    Hostile(
        "an attack in what is extended",
        TRAIN,
        ["--trust"],
        written(evil_yaml="extends: other.yaml\n", other_yaml=f"{BASE}label: !apply:{RUN}\n"),
    ),
    Hostile("binary study", PLAN, ["not text"], written(evil_yaml=b"\xff\xfe\x00\x01")),
    Hostile("zeros as study", PLAN, ["not valid YAML"], written(evil_yaml=b"\x00" * 99)),
]

TYPED = [
    Hostile(
        f"typed: {words[-1][:40]}",
        ["toolkit", "train", "ESC50", "lora", "--data_folder", "none", *words],
        [says],
        written(),
    )
    for words, says in (
        (["--seed", f"!apply:{RUN}"], "--trust"),
        (["--peft.rank", f"!apply:{RUN}"], "--trust|must be int"),
        (["--peft", f"!new:{POPEN}"], "must be a name"),
        (["--augment", f"[!new:{POPEN}]"], "--trust"),
        (["--augment", f"- !apply:{RUN}"], "--trust"),
        (["--augment", f"[<<: !apply:{RUN}]"], "takes a mapping"),
        (["--augment", f"[{{<<: {{a: !apply:{RUN}}}}}]"], "--trust"),
        (["--optimizer", "!name:os.system {command: touch sentinel}"], "--trust"),
        (["--optimizer", "!name:torch.save"], "--trust"),
        (["--corpus", f"{{name: esc50, esc10: {PYTHON}}}"], "--trust|must be bool"),
        (["--seed", "[" * 3000], "nested too deeply"),
        (["--label", f"!apply:{RUN}"], "--trust"),
    )
]

TABLE = (*CALLS, *NAMES, *SHAPES, *STUDIES, *BINARY, *TYPED)


@pytest.mark.parametrize("row", TABLE, ids=str)
def test_refused(row: Hostile, tmp_path: Path, programs: Path) -> None:
    check_refused(row, tmp_path / "here", programs, ROOT)
    assert not (tmp_path / "here" / "sentinel").exists()
    assert (tmp_path / "here" / "precious" / "precious.txt").read_text() == "mine"

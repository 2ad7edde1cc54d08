"""Values of options that no run can use, and optimisers and augmentations that cannot train."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hostile import Hostile, check_refused
from programs import ROOT

TRAIN = ["toolkit", "train", "ESC50", "lora", "--backbone", "ast_tiny", "--max_length", "64"]
NOWHERE = ["--data_folder", "none"]

VALUES = [
    Hostile(f"option {' '.join(words)[:60]}", [*TRAIN, *NOWHERE, *words], [says])
    for words, says in (
        (["--lr", ""], "--lr is empty"),
        (["--lr="], "--lr is empty"),
        (["--lr", " "], "--lr is empty"),
        (["--data_folder", ""], "--data_folder is empty"),
        (["--data_folder="], "--data_folder is empty"),
        (["--data_folder", '""'], "'data_folder' is empty"),
        (["--output_folder", '""'], "'output_folder' is empty"),
        (["--warmup_epochs", ".inf"], "finite number"),
        (["--warmup_epochs", "51"], "at most the number of epochs"),
        (["--warmup_epochs", ".nan"], "at least 0"),
        (["--lr", ".inf"], "finite number"),
        (["--lr", ".nan"], "at least 0"),
        (["--lr", "-1"], "at least 0"),
        (["--lr", "1 #2"], "must be float"),
        (["--lr", "&x"], "must be float"),
        (["--lr", "*x"], "must be float"),
        (["--lr", "a: b"], "must be float"),
        (["--lr", "[1"], "not valid YAML"),
        (["--lr", "[1] # x"], "would be a comment"),
        (["--lr", "{a: 1"], "not valid YAML"),
        (["--lr", "9" * 5000], "not valid YAML"),
        (["--reuse", "0"], "'reuse' must be"),
        (["--reuse", "-8"], "'reuse' must be"),
        (["--reuse", "2.5"], "'reuse' must be"),
        (["--reuse", "on"], "'reuse' must be"),
        (["--reuse", "[8]"], "'reuse' must be"),
        (["--reuse", "true"], "'reuse' must be"),
        (["--reuse="], "--reuse is empty"),
        (["--cache_gigabytes", "-1"], "at least 0"),
        (["--cache_gigabytes", ".nan"], "at least 0"),
        (["--cache_gigabytes", ".inf"], "finite number"),
        (["--cache_gigabytes", "lots"], "must be float"),
        (["--seed", "1.5"], "must be int"),
        (["--seed", "true"], "must be int"),
        (["--seed", "null"], "must be int"),
        (["--learning_rate", "1"], "unknown key 'learning_rate'; did you mean 'lr'"),
        (["--peft", "null"], "'peft' must be a name"),
        (["--peft", "[lora]"], "'peft' must be a name"),
        (["--peft", "3"], "'peft' must be a name"),
        (["--peft.name", "[a]"], r"no PEFT method is called '\[a\]'"),
        (["--peft.rank", "[1, 2]"], "must be int"),
        (["--corpus", "3"], "'corpus' must be a name"),
        (["--backbone", "{}"], "'backbone' needs a 'name'"),
        (["--augment.x", "1"], "no index of a list"),
        (["--augment.99999999999999999999", "1"], "no index of a list"),
        (["--seed.x", "1"], "a single value"),
        (["--optimizer.eps.x", "1"], "a single value"),
        (["--", "1"], "unknown key"),
        (["--.", "1"], "unknown key"),
        (["--peft.", "1"], "unknown setting|unknown key"),
        (["--trust", "maybe"], "is a flag"),
        (["--extends", "x.yaml"], "unknown key 'extends'"),
        (["another.yaml"], "name one configuration file"),
    )
]

OPTIMISERS = [
    Hostile(f"optimiser {text[:70]}", [*TRAIN, *NOWHERE, "--optimizer", text], [says])
    for text, says in (
        ("null", "must make an optimiser"),
        ("adam", "must make an optimiser"),
        ("3", "must make an optimiser"),
        ("[]", "must make an optimiser"),
        ("{lr: 1}", "must make an optimiser"),
        ("!name:torch.optim.Adamm", "did you mean"),
        ("!name:torch.optim.LBFGS", "no optimiser"),
        ("!name:torch.optim.SparseAdam", "no optimiser"),
        ("!name:torch.optim.Optimizer", "no optimiser"),
        ("!name:torch.optim", "no optimiser"),
        ("!name:torch.nn.Linear", "no optimiser"),
        ("!name:", "no optimiser"),
        ("!new:torch.optim.AdamW", "takes !name:"),
        ("!name:torch.optim.AdamW {lrr: 1}", "did you mean 'lr'"),
        ("!name:torch.optim.AdamW {betas: 0.9}", "cannot be used"),
        ("!name:torch.optim.AdamW {betas: [2, 3]}", "cannot be used"),
        ("!name:torch.optim.AdamW {betas: [a, b]}", "cannot be used"),
        ("!name:torch.optim.AdamW {betas: [0.9]}", "cannot be used"),
        ("!name:torch.optim.AdamW {eps: -1}", "cannot be used"),
        ("!name:torch.optim.AdamW {eps: x}", "must be float|cannot be used"),
        ("!name:torch.optim.AdamW {weight_decay: -1}", "cannot be used"),
        ("!name:torch.optim.AdamW {weight_decay: .inf}", "no finite|cannot be used"),
        ("!name:torch.optim.AdamW {weight_decay: .nan}", "no finite|cannot be used"),
        ("!name:torch.optim.AdamW {foreach: true, fused: true}", "cannot be used"),
        ("!name:torch.optim.AdamW {params: 1}", "cannot be used"),
        ("!name:torch.optim.AdamW [1, 2]", "cannot be used"),
        ("!name:torch.optim.AdamW [1, 2, 3, 4, 5, 6]", "must be bool|too many"),
        ("!name:torch.optim.AdamW 5", "as a list or as a mapping"),
        ("!name:torch.optim.SGD {momentum: -1}", "cannot be used"),
        ("!name:torch.optim.SGD {momentum: x}", "must be float|cannot be used"),
        ("!name:torch.optim.SGD {nesterov: true}", "cannot be used"),
        ("!name:torch.optim.SGD {dampening: .inf, momentum: 0.9}", "no finite|cannot be used"),
        ("!name:torch.optim.RMSprop {alpha: -1}", "cannot be used"),
        ("!name:torch.optim.Rprop {etas: [2, 1]}", "cannot be used"),
        ("!name:torch.optim.Adadelta {rho: 3}", "cannot be used"),
        ("[!name:torch.optim.AdamW ]", "must make an optimiser|no optimiser"),
    )
]

AUGMENTATIONS = [
    Hostile(
        f"augmentation {text[:70]}",
        [*TRAIN, *NOWHERE, "--augment", text],
        [says],
        leaves=["results*"] if "value: .nan" in text else [],  # tried on the backbone's features
    )
    for text, says in (
        ("null", "must be a list of augmentations"),
        ("mixup", "must be a list of augmentations"),
        ("[mixup]", "must be a list of augmentations"),
        ("[1]", "must be a list of augmentations"),
        ("[null]", "must be a list of augmentations"),
        ("[[]]", "must be a list of augmentations"),
        ("{}", "must be a list of augmentations"),
        ("!new:toolkit.data.augment.Mixup", "must be a list of augmentations"),
        ("[!new:toolkit.data.augment.Mixupp ]", "did you mean"),
        ("[!name:toolkit.data.augment.Mixup ]", "takes !new:"),
        ("[!new:toolkit.data.augment ]", "no augmentation"),
        ("[!new:speechbrain.augment.time_domain.DropChunk ]", "no augmentation"),
        ("[!new:torch.nn.Identity ]", "no augmentation"),
        ("[!new:torch.optim.AdamW ]", "no augmentation"),
        ("[!new:toolkit.data.augment.Mixup {alhpa: 0.5}]", "did you mean 'alpha'"),
        ("[!new:toolkit.data.augment.Mixup {alpha: x}]", "must be float"),
        ("[!new:toolkit.data.augment.Mixup {alpha: null}]", "must be float"),
        ("[!new:toolkit.data.augment.Mixup {alpha: -0.5}]", "alpha above 0"),
        ("[!new:toolkit.data.augment.Mixup {alpha: .nan}]", "Mixup|finite"),
        ("[!new:toolkit.data.augment.Mixup {probability: 2}]", "probability"),
        ("[!new:toolkit.data.augment.Mixup 0.5]", "as a list or as a mapping"),
        ("[!new:toolkit.data.augment.Mixup [1, 2, 3]]", "too many"),
        ("[!new:toolkit.data.augment.SpecAugment {freq_mask: -1}]", "masks are widths"),
        ("[!new:toolkit.data.augment.SpecAugment {freq_mask: x}]", "must be int"),
        ("[!new:toolkit.data.augment.SpecAugment {value: .nan}]", "finite"),
        ("[!new:toolkit.data.augment.SpecAugment {value: [1]}]", "must be float"),
    )
]  # fmt: skip


def plugin(source: str) -> Callable[[Path], object]:
    """Writes a plugin `plugins/bad` with a configuration."""

    def write(folder: Path) -> None:
        made = folder / "plugins" / "bad"
        made.mkdir(parents=True)
        (made / "bad.py").write_bytes(
            source.encode("latin-1") if source.startswith("\x7fELF") else source.encode()
        )
        (made / "bad.yaml").write_text("extends: ESC50/hparams/base.yaml\npeft: bad\n")

    return write


METHOD = (
    "from toolkit.peft.base import PeftMethod\nfrom toolkit.registry import PEFT\n{before}\n"
    "@PEFT.register('bad')\nclass Bad(PeftMethod):\n"
    "    def insert(self, backbone): pass\n{after}\n"
)
USED = ["toolkit", "train", "ESC50", "plugins/bad/bad.yaml", *NOWHERE]
PLUGINS = [
    Hostile(f"plugin that {name}", USED, says, plugin(METHOD.format(before=before, after=after)))
    for name, before, after, says in (
        ("exits", "import sys; sys.exit('bye')", "", ["plugin 'bad' is broken", "SystemExit: bye"]),
        ("exits without a word", "raise SystemExit", "", ["'bad' is broken", "SystemExit"]),
        ("exits at its end", "", "exit(0)", ["'bad' is broken", "SystemExit"]),
        ("interrupts", "raise KeyboardInterrupt", "", ["'bad' is broken", "KeyboardInterrupt"]),
        ("fails", "1 / 0", "", ["'bad' is broken", "bad.py, line 3: ZeroDivisionError"]),
        ("misses a package", "import no_such", "", ["'bad' is broken", "No module named"]),
        ("recurses", "def f(): f()\nf()", "", ["'bad' is broken", "RecursionError"]),
        ("asserts", "assert False, 'no'", "", ["'bad' is broken", "AssertionError: no"]),
    )
] + [
    Hostile(
        "plugin that is binary", USED, ["plugin 'bad'", "no PEFT method is called 'bad'"],
        plugin("\x7fELF\x00\x01\xff"),
    ),
    Hostile(
        "plugin that is no Python", USED, ["plugin 'bad'", "no PEFT method is called 'bad'"],
        plugin("def f(:"),
    ),
    Hostile(
        "plugin that is not named",
        ["toolkit", "describe", "peft", "bad"],
        ["plugins in plugins/ of this folder are not used", "no PEFT method is called 'bad'"],
        plugin("open('sentinel', 'w')\n" + METHOD.format(before="", after="")),
    ),
    Hostile(
        "plugin folder that is none",
        ["toolkit", "list", "--plugins", "nowhere"],
        ["plugin folder nowhere does not exist"],
    ),
]  # fmt: skip

AUGMENTING = "class Bad:\n    def __call__(self, features, targets, generator):\n        {}\n"
NOISY = [
    Hostile(
        f"augmentation that {name}",
        [*TRAIN, *NOWHERE, "--plugins", "plugins", "--augment",
         "[!new:toolkit_plugins.bad.bad.Bad ]"],
        [says],
        plugin(AUGMENTING.format(body)),
        leaves=["results*"],
    )
    for name, body, says in (
        ("gives back one tensor", "return features", "must give back two tensors"),
        ("gives back nothing", "pass", "must give back two tensors"),
        ("gives back a list", "return [features, targets]", "must give back two tensors"),
        ("drops a frame", "return features[:, 1:], targets", "of the shapes it was given"),
        ("gives back NaN", "return features / 0, targets", "finite"),
        ("fails", "return features @ targets", "cannot be used"),
        ("exits", "raise ValueError('no')", "cannot be used: no"),
    )
]  # fmt: skip

SPECS = [
    Hostile(f"spec {spec}", ["toolkit", "describe", "peft", spec, "--parameters"], [says])
    for spec, says in (
        ("lora:rank=[", "not valid YAML"),
        ("lora:rank=", "is empty"),
        ("lora:rank", "key=value"),
        ("lora:", "key=value"),
        ("lora:,", "key=value"),
        ("lora:rank=1,", "key=value"),
        ("lora:rank=!!python/name:os.system x", "must be int"),
        ("lora:rank=!apply:os.system [touch sentinel]", "must be int"),
        ("lora:rank=*x", "must be int"),
        ("lora:rank=1:alpha=2", "must be int"),
        ("lroa:rank=1", "did you mean 'lora'"),
        ("", "no PEFT method"),
    )
] + [
    Hostile(f"corpus {spec}", ["toolkit", "corpus", "check", ".", "--as", spec], [says])
    for spec, says in (
        ("folder:folds=[", "not valid YAML"),
        ("folder:folds=", "is empty"),
        ("folder:group_pattern=(", "not a regular expression"),
        ("fodler", "did you mean 'folder'"),
    )
]  # fmt: skip

TABLE = (*VALUES, *OPTIMISERS, *AUGMENTATIONS, *PLUGINS, *NOISY, *SPECS)


@pytest.mark.parametrize("row", TABLE, ids=str)
def test_refused(row: Hostile, tmp_path: Path, programs: Path) -> None:
    check_refused(row, tmp_path / "here", programs, ROOT)
    assert not (tmp_path / "here" / "sentinel").exists()

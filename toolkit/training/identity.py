"""What a run computes: its configuration, clips, backbone and source, by which it is recognised.

A run's folder keeps them as `identity.json`. A run that would continue, or be answered from, a
folder of another identity is refused with what has changed.
"""

import dataclasses
import hashlib
import json
from collections import defaultdict
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from toolkit import __version__
from toolkit.backbones.base import BackboneSource
from toolkit.config import Configuration, flatten
from toolkit.data.manifest import Manifest, class_matrix
from toolkit.errors import ConfigError, RunError, first_line, listing
from toolkit.features.cache import content_hashes, segments_of
from toolkit.files import write_atomically
from toolkit.results import RUN_FILE, read_run
from toolkit.settings import Settings
from toolkit.source_code import definition_of, source_digest
from toolkit.training import precision
from toolkit.training.experiment import Experiment, Options
from toolkit.training.volatile import VOLATILE, WHERE
from toolkit.typed_json import read_json, write_json

FILE, CONFIGURATION = "identity.json", "hyperparams.yaml"

DEFAULT_PIPELINES = ("fbank", "waveform")
"""What version 0.1 wrote where the pipeline is now left to the backbone."""

REMEDY = "choose another folder with `--output_folder`, or replace what is there with `--overwrite`"


@dataclasses.dataclass(frozen=True)
class Identity:
    """What a run computes; two runs of one identity find the same.

    Attributes:
        configuration: every key of the configuration, flattened.
        content: what is not in the configuration (clips, backbone, source) -> how many or which,
            with hashes; empty for a run from before this was kept.
    """

    configuration: dict[str, Any]
    content: dict[str, str]

    @property
    def digest(self) -> str:
        """Hash of the content."""
        return _digest(json.dumps(self.content, sort_keys=True))

    def changed_content(self, now: "Identity") -> list[str]:
        """What is not the same in the content of another identity, one line each."""
        return [
            f"{key}: {self.content.get(key, 'none')} there, {now.content.get(key, 'none')} now"
            for key in dict.fromkeys((*self.content, *now.content))
            if self.content.get(key) != now.content.get(key)
        ]

    def changed_configuration(
        self, now: Configuration, ignored: Collection[str] = VOLATILE
    ) -> list[str]:
        """What is not the same in a configuration except for some keys, one line each."""
        old, new = dict(self.configuration), _plain(now.flat)
        if new.get("pipeline", "") is None and old.get("pipeline.name") in DEFAULT_PIPELINES:
            old["pipeline"] = old.pop("pipeline.name")  # 0.1 named what is the default since
            new["pipeline"] = old["pipeline"]
        for values in (old, new):
            if values.get("reuse", "auto") in ("auto", "off"):  # where it is exact
                values["reuse"] = "off"
        for key in precision.OPTIONS:
            if new.get(key) == precision.AUTO:  # a run that continues keeps what it began with
                new[key] = old.get(key, precision.AUTO)
        ignored = {*ignored, *(WHERE if self.content else ())}
        ignored |= {k for k in Options.ADDED if not _of(k, old) and _is_default(k, _of(k, new))}
        return [
            f"{key}: {old.get(key, 'not set')} there, {new.get(key, 'not set')} now"
            for key in sorted(old.keys() | new)
            if key.split(".")[0] not in ignored and old.get(key) != new.get(key)
        ]

    def write(self, folder: Path) -> None:
        """Keep the identity in the folder of a run."""
        write_json(folder / FILE, self, indent=1)


def identity_of(experiment: Experiment, clips: dict[str, str], backbone: str) -> Identity:
    """The identity of an experiment.

    Args:
        experiment: the experiment.
        clips: see `clips_of`.
        backbone: see `fingerprint`.
    """
    content = {
        **clips,
        "backbone": f"{experiment.source.registered_name} ({backbone})",
        "features of the backbone": str(experiment.spec),
        **dict(_sources(experiment)),
    }
    return Identity(_plain(experiment.configuration.flat), content)


def clips_of(manifest: Manifest, root: Path) -> dict[str, str]:
    """Number and hash of the clips of each class and each fold, and which folds do what.

    Args:
        manifest: the clips. Files of the size and times at which they were last hashed are not
            read.
        root: folder of the caches, which remember the hashes.
    """
    contents = content_hashes(root, sorted(set(manifest.clips["path"])))
    labels = class_matrix(manifest.clips["label"], len(manifest.classes)).astype(bool)
    groups: defaultdict[str, list[str]] = defaultdict(list)
    clips = zip(
        manifest.clips["id"], manifest.clips["fold"], segments_of(manifest.clips), labels,
        strict=True,
    )  # fmt: skip
    for name, fold, segment, held in clips:
        classes = [manifest.classes[i] for i in held.nonzero()[0]]
        clip = str([name, contents[segment.path], segment.start, segment.stop, int(fold), classes])
        for group in (f"fold {int(fold)}", *(f"class {label}" for label in classes)):
            groups[group].append(clip)
    rounds = "; ".join(
        f"{' '.join(map(str, split.train))} train, {split.valid} validates, {split.test} tests"
        for split in manifest.splits
    )
    classes = manifest.classes
    return {
        "classes": f"{len(classes)} classes ({_digest(str(classes))})",
        **{
            f"clips of {group}": f"{len(clips)} clips ({_digest(*sorted(clips))})"
            for group, clips in sorted(groups.items())
        },
        "folds": rounds,
    }


def fingerprint(source: BackboneSource, max_length: int, root: Path) -> str:
    """The fingerprint of a backbone; one whose files are unchanged is not read again.

    Args:
        source: the backbone.
        max_length: frames of 10 ms that it reads.
        root: folder of the caches, which remember the fingerprint.
    """
    version = source.version()
    if not version:
        return source.load(max_length).fingerprint
    key = str([__version__, source.registered_name, source, max_length, version])
    remembered = root / "fingerprints" / _digest(key)
    if remembered.is_file():
        return remembered.read_text(encoding="utf-8")
    found = source.load(max_length).fingerprint
    remembered.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(remembered, found)
    return found


def recorded(folder: Path) -> Identity | None:
    """The identity of the run in a folder; None if nothing has been computed there.

    Of a run from before identities were kept, the configuration alone is known.

    Raises:
        RunError: a file is damaged, or there are results and nothing says of what.
    """
    kept = _read(folder / FILE) if (folder / FILE).exists() else None
    if (folder / CONFIGURATION).exists():
        configuration = _read_configuration(folder / CONFIGURATION, kept is not None)
        return Identity(configuration, {} if kept is None else kept.content)
    if kept is not None:
        return kept
    if (folder / RUN_FILE).is_file():
        return Identity(dict(read_run(folder).configuration), {})
    computed = [*folder.glob("fold-*/fold.json"), *folder.glob("fold-*/checkpoints/CKPT*")]
    if computed:
        raise RunError(
            f"{folder} holds results, and neither {FILE} nor {CONFIGURATION} says of what: {REMEDY}"
        )
    return None


def refuse_changes(folder: Path, what: str, changed: list[str]) -> None:
    """Raise a `RunError` that lists what has changed, if anything has."""
    if changed:
        raise RunError(f"{folder} holds a run of {what}:\n{listing(changed)}\n{REMEDY}")


def _read(file: Path) -> Identity:
    remedy = (
        "delete it, if you are sure that clips, backbone and method are still the same; then only "
        f"{CONFIGURATION} is compared"
    )
    try:
        return read_json(file, Identity, lambda values: values, remedy)
    except OSError as error:
        raise RunError(f"{file} cannot be read ({error.strerror}): {remedy}") from None


def _read_configuration(file: Path, has_copy: bool) -> dict[str, Any]:
    remedy = f"delete it, because {FILE} holds the same" if has_copy else REMEDY
    try:
        return _plain(flatten(file.read_text(encoding="utf-8")))
    except OSError as error:
        raise RunError(f"{file} cannot be read ({error.strerror}): {remedy}") from None
    except (ConfigError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(f"{file} is damaged ({first_line(error)}): {remedy}") from None


def _plain(flat: dict[str, Any]) -> dict[str, Any]:
    """A flattened configuration with the values that JSON gives back."""
    plain: dict[str, Any] = json.loads(json.dumps(flat, default=str))
    return plain


def _of(option: str, values: dict[str, Any]) -> dict[str, Any]:
    """The values of an option and of what is in it."""
    return {key: value for key, value in values.items() if key.split(".")[0] == option}


def _is_default(option: str, said: dict[str, Any]) -> bool:
    return said in ({}, {option: Options.__dataclass_fields__[option].default})


def _sources(experiment: Experiment) -> Iterator[tuple[str, str]]:
    """The source of the method, and of what else is not of the library, torch or SpeechBrain."""
    digest = source_digest(type(experiment.method))
    if digest is not None:
        yield f"source of the method {experiment.method.registered_name}", digest
    values = experiment.configuration.values
    for part in (
        experiment.source, experiment.corpus, experiment.pipeline, *values["augment"],
        values["optimizer"],
    ):  # fmt: skip
        kind = definition_of(part)
        if kind.__module__.partition(".")[0] not in ("toolkit", "torch", "speechbrain"):
            name = part.registered_name if isinstance(part, Settings) else kind.__name__
            yield f"source of {name}", source_digest(kind) or "unknown"


def _digest(*texts: str) -> str:
    digest = hashlib.blake2b(digest_size=6)
    for text in texts:
        digest.update(f"{len(text)} {text}".encode(errors="surrogateescape"))
    return digest.hexdigest()

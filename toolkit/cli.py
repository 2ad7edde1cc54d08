"""The command `toolkit`: what there is, predictions, mixtures, searches, reports of studies.

Modules that need torch are imported by the commands that use them, so that a listing is quick.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from toolkit import __version__, plugins
from toolkit.errors import ConfigError, ToolkitError, UnknownName, did_you_mean
from toolkit.registry import REGISTRIES, Entry, Registry, parse_spec


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; an error that is the user's to mend is one message, exit status 2."""
    options, rest = _parser().parse_known_args(arguments)
    if rest and "verb" not in options:
        _parser().error(f"unrecognised arguments: {' '.join(rest)}")
    options.settings = rest
    try:
        broken = plugins.report(plugins.load(options.plugins))
        if broken:
            print(broken, file=sys.stderr)
        options.run(options)
    except ToolkitError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        sys.exit(0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="toolkit", description=__doc__.split("\n")[0])
    parser.add_argument("--version", action="version", version=__version__)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--plugins", action="append", default=[], metavar="DIR", help="a folder of plugins"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    listing = commands.add_parser("list", parents=[common], help="what is registered")
    listing.add_argument("kind", nargs="?", help=f"one of {', '.join(REGISTRIES)}; all if left out")
    listing.add_argument("pattern", nargs="?", default="*", help="names, such as 'soft*'")
    listing.set_defaults(run=list_registered)

    about = commands.add_parser("describe", parents=[common], help="settings and source of one")
    about.add_argument("kind", help=f"one of {', '.join(REGISTRIES)}")
    about.add_argument("names", nargs="*", metavar="NAME", help="or soft_moa:num_experts=14")
    about.add_argument(
        "--parameters", action="store_true", help="parameters on AST-base; of all methods, or NAMEs"
    )
    about.set_defaults(run=describe)

    new = commands.add_parser("new-plugin", parents=[common], help="files of a new PEFT method")
    new.add_argument("name")
    new.add_argument("--folder", type=Path, default=Path("plugins"), help="default: plugins")
    new.set_defaults(run=make_plugin)

    guess = commands.add_parser("predict", parents=[common], help="classify files with a bundle")
    guess.add_argument("bundle", help="the folder 'bundle' of a run")
    guess.add_argument("files", nargs="+", metavar="FILE")
    guess.add_argument("--top", type=int, default=3, help="classes a file (default: 3)")
    guess.add_argument("--windows", action="store_true", help="one row a window of long files")
    guess.add_argument("--json", action="store_true", help="all probabilities as JSON")
    guess.add_argument("--backbone", help="where the bundle's backbone is now")
    guess.add_argument("--device", default="cpu")
    guess.set_defaults(run=predict)

    for verb, help_text in (("compress", "make a trained mixture smaller"),
                            ("prune", "drop experts of a trained mixture")):  # fmt: skip
        change = commands.add_parser(
            verb,
            parents=[common],
            help=help_text,
            epilog="Further options are the tool's settings, e.g. --avg-bits 2.5; see `toolkit "
            "describe tool NAME`.",
        )
        change.add_argument("bundle", type=Path)
        change.add_argument("--method", required=True, metavar="TOOL")
        change.add_argument("-o", "--output", type=Path, required=True, metavar="BUNDLE")
        change.add_argument(
            "--data_folder",
            type=Path,
            help="the corpus it was trained on; none: the embedded one",
        )
        change.add_argument(
            "--corpus",
            metavar="NAME[:setting=value,...]",
            help="what lies in the data folder (default: esc50)",
        )
        change.set_defaults(run=change_mixture, verb=verb)

    view = commands.add_parser(
        "experts", parents=[common], help="draw which expert of a mixture listens to what in a file"
    )
    view.add_argument("bundle", type=Path, help="the folder 'bundle' of a run")
    view.add_argument("file", type=Path, metavar="FILE")
    view.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="default: experts-FILE")
    view.add_argument("--most", type=int, default=8, help="experts a layer to draw (default: 8)")
    view.add_argument("--window", type=int, default=1, help="of a long file, from 1 (default: 1)")
    view.add_argument("--backbone", help="where the bundle's backbone is now")
    view.set_defaults(run=see_experts)

    search = commands.add_parser(
        "search",
        parents=[common],
        help="search for an architecture under a budget",
        epilog="Further options, after the file, are the search's settings (--iterations 10; see "
        "`toolkit describe search NAME`) and keys of the configuration (--data_folder DIR).",
    )
    search.add_argument("file", type=Path, metavar="YAML", help="of a recipe or of a plugin")
    search.add_argument("--method", required=True, metavar="SEARCH")
    search.add_argument("--budget", action="append", default=[], metavar="COST=MOST[,COST=MOST]")
    search.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    search.set_defaults(run=search_architecture, verb="search")

    corpus = commands.add_parser("corpus", parents=[common], help="look at a corpus on disk")
    corpus.add_argument("verb", choices=["check", "stats"], help="is it right; what is in it")
    corpus.add_argument("folder", type=Path, metavar="PATH")
    corpus.add_argument("--as", dest="corpus", required=True, metavar="NAME[:setting=value,...]")
    corpus.add_argument("-o", "--output", type=Path, metavar="FILE.png", help="stats as a picture")
    corpus.set_defaults(run=look_at_corpus)

    report = commands.add_parser(
        "report", parents=[common], help="tables and pictures of a study (tools/benchmark.py)"
    )
    report.add_argument("study", type=Path, help="its YAML file, or the folder of its results")
    report.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="default: report/ in that folder"
    )
    report.add_argument(
        "--text", type=Path, metavar="FILE.md", help="write the Markdown and its pictures here too"
    )
    report.set_defaults(run=report_study)

    grid = commands.add_parser(
        "matrix", parents=[common], help="check every PEFT method on every backbone"
    )
    grid.add_argument("--method", default="*", metavar="PATTERN", help="names, such as '*lora*'")
    grid.add_argument("--backbone", default="*", metavar="PATTERN", help="such as 'wav2vec2*'")
    grid.set_defaults(run=show_matrix)
    return parser


def _registry(kind: str) -> Registry:
    plurals = {"backbones": "backbone", "corpora": "corpus", "pipelines": "pipeline"}
    kind = plurals.get(kind, kind)
    if kind not in REGISTRIES:
        known = ", ".join(REGISTRIES)
        raise UnknownName(
            f"there is no registry '{kind}'{did_you_mean(kind, REGISTRIES)} (known: {known})"
        )
    return REGISTRIES[kind]


def list_registered(options: argparse.Namespace) -> None:
    """`toolkit list [KIND [PATTERN]]`."""
    registries = [_registry(options.kind)] if options.kind else list(REGISTRIES.values())
    for registry in registries:
        names = registry.names(options.pattern)
        if options.kind and not names:
            raise UnknownName(f"no {registry.kind} matches '{options.pattern}'")
        kind = next(key for key, value in REGISTRIES.items() if value is registry)
        print(kind)
        for name in names:
            entry = registry.peek(name)
            paper = entry.metadata.get("paper", "")
            print(f"  {name:<18} {entry.description}{f'  [{paper}]' if paper else ''}")


def describe(options: argparse.Namespace) -> None:
    """`toolkit describe KIND NAME`, and `toolkit describe peft [SPEC ...] --parameters`."""
    registry = _registry(options.kind)
    if options.parameters:
        _describe_parameters(registry, options.names)
        return
    if len(options.names) != 1:
        raise ConfigError("name one thing to describe, e.g. `toolkit describe peft soft_moa`")
    _describe_entry(registry, registry.entry(options.names[0]))


def _describe_entry(registry: Registry, entry: Entry) -> None:
    import dataclasses
    import typing

    from toolkit.settings import type_name

    print(f"{entry.name}: {entry.description}")
    print(f"source: {entry.metadata.get('paper', 'not given')}; defined at {entry.origin}")
    if registry is REGISTRIES["peft"]:
        from toolkit.parameter_count import count_on_ast_base

        count = count_on_ast_base({"name": entry.name})
        share = 100 * count.method / (count.total - count.head)
        print(
            f"trains: {count.method:,} parameters on AST-base ({share:.2f} %) with the settings "
            f"below, and the head ({count.head:,} for 50 classes)"
        )
    fields = dataclasses.fields(entry.target)
    hints = typing.get_type_hints(entry.target)
    print("settings:" if fields else "settings: none")
    for field in fields:
        factory = field.default_factory
        default = field.default if factory is dataclasses.MISSING else factory()
        print(f"  {field.name} = {default!r}  ({type_name(hints[field.name])})")
        if field.metadata.get("doc"):
            print(f"      {field.metadata['doc']}")


def _describe_parameters(registry: Registry, specs: Sequence[str]) -> None:
    """A row a method: parameters on AST-base (500 frames, 50 classes), without its weights."""
    if registry is not REGISTRIES["peft"]:
        raise ConfigError("parameters are counted for PEFT methods: `describe peft --parameters`")
    from toolkit.parameter_count import count_on_ast_base

    print(f"{'method':<40} {'trained':>12} {'head':>8} {'frozen':>12}")
    for spec in specs or registry.names():
        count = count_on_ast_base(parse_spec(spec))
        frozen = count.total - count.trainable
        print(f"{spec:<40} {count.method:>12,} {count.head:>8,} {frozen:>12,}")


def make_plugin(options: argparse.Namespace) -> None:
    """`toolkit new-plugin NAME`."""
    from toolkit.scaffold import new_plugin

    files = new_plugin(options.name, options.folder)
    for file in files:
        print(f"wrote {file}")
    print(f"try:  python recipes/ESC50/train.py {files[1]} --debug")
    print(f"test: python -m pytest {files[2]}")


def predict(options: argparse.Namespace) -> None:
    """`toolkit predict BUNDLE FILE...`."""
    from toolkit.bundle import load_bundle
    from toolkit.inference.predict import predict as predictions

    bundle = load_bundle(options.bundle, options.backbone)
    for prediction in predictions(bundle, options.files, options.device):
        if options.json:
            print(json.dumps(_as_json(prediction, bundle.classes)))
            continue
        rows = [("", prediction.probabilities)]
        if options.windows:
            rows = [(f"  window {i + 1}", p) for i, p in enumerate(prediction.windows)]
        for label, probabilities in rows:
            best = prediction.top(bundle.classes, options.top, probabilities)
            text = "   ".join(f"{name} {100 * share:.1f} %" for name, share in best)
            print(f"{prediction.path}{label}   {text}")


def _as_json(prediction: object, classes: list[str]) -> dict[str, object]:
    best, _ = prediction.top(classes, 1)[0]
    return {
        "file": prediction.path,
        "prediction": best,
        "probabilities": dict(zip(classes, prediction.probabilities.tolist(), strict=True)),
        "windows": prediction.windows.tolist(),
    }


def change_mixture(options: argparse.Namespace) -> None:
    """`toolkit compress` and `toolkit prune`."""
    from toolkit.config import parse_settings
    from toolkit.features.cache import default_cache_folder
    from toolkit.mixtures.tool import run_tool
    from toolkit.registry import CORPORA, TOOLS

    verb = TOOLS.entry(options.method).metadata.get("verb")
    if verb != options.verb:
        raise ConfigError(f"'{options.method}' is for `toolkit {verb}`")
    settings = parse_settings(options.settings)
    tool = TOOLS.create({"name": options.method, **settings}, options.method)
    folder, name = options.data_folder, options.corpus or "esc50"
    if folder is None:
        if options.corpus is not None:
            raise ConfigError(f"where is '{name}'? Say so with `--data_folder`")
        folder, name = default_cache_folder() / "synthetic", "synthetic"
    corpus = CORPORA.create(parse_spec(name))
    report = run_tool(tool, options.bundle, corpus, folder, options.output)
    print(f"wrote {options.output}")
    for key, value in report.as_dict().items():
        print(f"  {key}: {value:.4f}" if isinstance(value, float) else f"  {key}: {value}")


def see_experts(options: argparse.Namespace) -> None:
    """`toolkit experts BUNDLE FILE`."""
    from toolkit.mixtures.view.page import show_experts

    output = options.output or Path(f"experts-{options.file.stem}")
    page = show_experts(
        options.bundle, options.file, output, options.most, options.window, options.backbone
    )
    print(f"wrote {page} and its pictures")


def search_architecture(options: argparse.Namespace) -> None:
    """`toolkit search YAML`."""
    from toolkit.training.search import run_search

    report = run_search(
        options.method, options.file, options.settings, options.budget, options.output
    )
    print(f"wrote {options.output}")
    for key, value in report.items():
        print(f"  {key}: {value:.4f}" if isinstance(value, float) else f"  {key}: {value}")


def show_matrix(options: argparse.Namespace) -> None:
    """`toolkit matrix`: exit status 1 if a cell is broken."""
    from fnmatch import filter as matching

    from toolkit.testing import matrix

    methods = REGISTRIES["peft"].names(options.method)
    families = matching(matrix.families(), options.backbone)
    if not methods or not families:
        raise UnknownName("no method or no backbone matches (`toolkit list` shows all)")
    found = list(matrix.cells(methods, families))
    print(matrix.table(found))
    if any(cell.verdict == "broken" for cell in found):
        sys.exit(1)


def look_at_corpus(options: argparse.Namespace) -> None:
    """`toolkit corpus check PATH --as NAME` and `toolkit corpus stats PATH --as NAME`."""
    from toolkit.data.survey import check_corpus, picture, survey
    from toolkit.registry import CORPORA

    corpus = CORPORA.create(parse_spec(options.corpus))
    if options.verb == "check":
        print("\n".join(check_corpus(corpus, options.folder)))
        return
    manifest = corpus.manifest(options.folder)
    tables = survey(manifest)
    for name in ("totals", "classes", "durations", "rates"):
        print(f"{name}\n{tables[name].to_string(index=False)}\n")
    if options.output is not None:
        picture(tables, manifest.corpus).savefig(options.output)
        print(f"wrote {options.output}")


def report_study(options: argparse.Namespace) -> None:
    """`toolkit report STUDY`."""
    from toolkit.study.report.load import Results
    from toolkit.study.report.write import write_report

    results = Results.read(options.study, options.plugins)
    for file in write_report(results, options.output or results.folder / "report", options.text):
        print(f"wrote {file}")

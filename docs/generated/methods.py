"""The page of all methods and a picture of each, from the registry and from what they insert."""

import dataclasses

from generated.picture import READS, Inserted, draw
from toolkit import describe, list_registered, plugins, testing
from toolkit.counting import count_on_ast_base
from toolkit.description import Description, SettingDescription
from toolkit.model import AudioClassifier
from toolkit.peft import insertion
from toolkit.peft.base import PeftMethod
from toolkit.registry import PEFT

ROLES = (
    "tokens", "norm.mhsa", "attn.q", "attn.k", "attn.v", "attn.o", "mhsa",
    "norm.ffn", "ffn.up", "ffn.down", "ffn", "block", "norm",
)  # fmt: skip
PLACES = {
    insertion.Parallel: "beside",
    insertion.ParallelToTap: "beside",
    insertion.After: "after",
    insertion.Before: "before",
    insertion.BeforeAndBeside: "before and beside",
    insertion.Reparametrised: "in place of",
    insertion.Passing: "keys and values of",
}
"""Kind of wrapper -> where it puts its module; `ParallelKept` is a `Parallel`."""

INTRODUCTION = """# All methods

Generated from the registry at each build, plugins included. Parameters are those trained on
AST-base (85 million parameters in the blocks, 500 frames) with the default settings, without the
head (38,450 for 50 classes). "Merges" means that the trained method can be folded into the stock
weights exactly, so that inference costs nothing more.

Teal: inserted modules. Amber: stock tensors that train. Grey: frozen. Every method also trains the
final norm unless `final_norm` is false, and the head.

Which of them to use: [which method when](which-method.md). Which backbones each works on:
`toolkit matrix --method NAME`.

| method | inserted, unfrozen | parameters | merges | source | picture |
|---|---|--:|---|---|---|
"""
COMMON = """
## Settings of all methods

| setting | default | type | meaning |
|---|---|---|---|
"""


@dataclasses.dataclass(frozen=True)
class Structure:
    """What a method does to one block and its surroundings.

    Attributes:
        inserted: modules that train, and where; inputs that are read for one further up.
        unfrozen: role -> which of its stock tensors train: `all` or `biases`.
    """

    inserted: list[Inserted]
    unfrozen: dict[str, str]

    def __str__(self) -> str:
        parts = []
        for place in dict.fromkeys(item.place for item in self.inserted):
            roles = [item.role for item in self.inserted if item.place == place]
            parts.append(f"{place} {_roles(roles)}")
        for which, prefix in (("all", "trains "), ("biases", "trains the biases of ")):
            roles = [r for r, found in self.unfrozen.items() if found == which and r != "norm"]
            if roles:
                parts.append(prefix + _roles(roles))
        return "; ".join(parts) or "nothing"


def pages() -> dict[str, str]:
    """Path -> content: the page and its pictures."""
    plugins.load([])
    common = {field.name for field in dataclasses.fields(PeftMethod)}
    rows: list[str] = []
    details: list[str] = []
    made: dict[str, str] = {}
    for name in list_registered("peft"):
        method = PEFT.create(name)
        structure = structure_of(testing.tiny_classifier(method))
        merges = "yes" if testing.check_merging(method) else "no"
        count = f"{count_on_ast_base({'name': name}).method:,}"
        about = describe("peft", name)
        picture = f"methods/{name}.svg"
        made[picture] = draw(f"{name}: {structure}", structure.inserted, structure.unfrozen)
        rows.append(
            f"| [`{name}`](#{name}) | {structure} | {count} | {merges} | {_paper(about.source)} "
            f"| ![]({picture}){{ width=240 }} |"
        )
        details += [f"\n## {name}\n", f"{about.summary}\n", f"![{structure}]({picture})\n"]
        details += _table(about, common)
    shared = [_setting_row(s) for s in describe("peft", "linear_probe").settings]
    text = INTRODUCTION + "\n".join(rows) + "\n" + COMMON + "\n".join([*shared, *details]) + "\n"
    return {"methods.md": text, **made}


def structure_of(model: AudioClassifier) -> Structure:
    """What a method inserted into the second block of a tiny classifier, and what it unfroze."""
    backbone = model.backbone
    trainable = backbone.stock & model.trainable().keys()
    inserted, unfrozen = [], {}
    for role in ROLES:
        outside = {"tokens": backbone.tokens, "norm": backbone.final}
        site = outside[role] if role in outside else backbone.site(1, role)
        module = site.module
        while hasattr(module, "wrapped"):
            if isinstance(module, insertion.Tap):
                inserted.append(Inserted(role, READS))
            elif isinstance(module, insertion.Wrapper) and _counts(module):
                inserted.append(Inserted(role, _place(module)))
            module = module.wrapped
        name = {"tokens": "embedding", "norm": "norm"}.get(role, f"blocks.1.{role}")
        stock = [n for n in backbone.stock if n.rpartition(".")[0] == name]
        if role == "tokens":
            stock = [n for n in backbone.stock if n.startswith("embedding.")]
        found = trainable.intersection(stock)
        if found:
            whole = len(found) == len(stock) or any(n.endswith(".weight") for n in found)
            unfrozen[role] = "all" if whole else "biases"
    return Structure(inserted, unfrozen)


def _counts(wrapper: insertion.Wrapper) -> bool:
    """Whether it trains: its own parameters, or (FacT) shared ones that it is merged with."""
    trains = any(parameter.requires_grad for parameter in wrapper.inserted.parameters())
    return trains or isinstance(wrapper.inserted, insertion.Mergeable)


def _place(wrapper: insertion.Wrapper) -> str:
    return next(PLACES[kind] for kind in type(wrapper).__mro__ if kind in PLACES)


def _roles(roles: list[str]) -> str:
    return ", ".join(f"`{role}`" for role in roles)


def _table(about: Description, common: set[str]) -> list[str]:
    own = [setting for setting in about.settings if setting.name not in common]
    if not own:
        return ["No settings of its own."]
    head = ["| setting | default | type | meaning |", "|---|---|---|---|"]
    return [*head, *(_setting_row(setting) for setting in own)]


def _setting_row(setting: SettingDescription) -> str:
    kind = setting.type.replace("|", "or")
    return f"| `{setting.name}` | `{setting.default!r}` | {kind} | {setting.doc} |"


def _paper(source: str) -> str:
    if source.startswith("arXiv:"):
        return f"[{source}](https://arxiv.org/abs/{source.removeprefix('arXiv:')})"
    return source

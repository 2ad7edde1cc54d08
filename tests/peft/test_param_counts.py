"""Parameter counts of every configuration of the papers' code, as its authors' code counts them."""

import json
from typing import Any

import pytest

from conftest import SHARED
from toolkit.counting import count_on_ast_base

COUNTS = SHARED / "design" / "param_counts.json"
PLACEMENT = {"MHSA": "mhsa", "FFN": "ffn", "MHSA+FFN": "both"}
PAPER = {  # column "Par" of 2312.03694v4, Table 1, in thousands; without head and final norm
    "bitfit": 102,
    "prompt_shallow:300": 230,
    "prompt_deep:25": 230,
    "prefix": 221,
    "lora": 221,
    "bottleneck:ffn": 249,
    "bottleneck:both": 498,
    "conformer:ffn": 271,
    "conformer:both": 541,
}  # fmt: skip; the paper prints 542 for the last, twice the rounded 271


def method_of(config: dict[str, Any]) -> dict[str, Any]:
    """Our settings for one of the counted configurations."""
    kind = config["method"]
    plain = {"linear": "linear_probe", "full-FT": "full", "BitFit": "bitfit"}
    if kind in plain:
        return {"name": plain[kind]}
    if kind == "prompt-tuning":
        name = "prompt_deep" if config["deep"] else "prompt_shallow"
        return {"name": name, "prompts": config["prompts"]}
    if kind == "prefix-tuning":
        return {"name": "prefix", "tokens": config["tokens"]}
    if kind.startswith("LoRA"):
        matrices = config.get("matrices", "Wq,Wv").split(",")
        targets = [matrix.strip()[-1] for matrix in matrices]
        return {"name": "lora", "reduction": config["reduction_rate"], "targets": targets}
    block = {"reduction": config["reduction_rate"]}
    if kind.startswith("adapter"):
        block |= {"kernel": config["kernel"]} if config["kernel"] else {}
        houlsby = config.get("type") == "Houlsby"
        placement = "both" if houlsby else PLACEMENT[config.get("location", "FFN")]
        return {"name": "adapter", "block": config["block"], "placement": placement, **block}
    own = {
        "block": config["module"], "num_experts": config["num_adapters"],
        "placement": PLACEMENT[config["location"]], **block,
    }  # fmt: skip
    if kind == "Dense-MoA":
        return {"name": "dense_moa", **own}
    slots = {"slots": config["num_slots"], "normalize": config["normalize"]}
    return {"name": "soft_moa", **own, **slots}


@pytest.mark.skipif(not COUNTS.is_file(), reason=f"the reference's counts are not in {COUNTS}")
@pytest.mark.wide
def test_every_configuration_of_the_reference() -> None:
    counts = json.loads(COUNTS.read_text())
    wrong = []
    for config in counts["configs"]:
        method = {**method_of(config), "reference": True}
        for corpus, expected in config["datasets"].items():
            setting = counts["datasets"][corpus]
            found = count_on_ast_base(method, setting["max_length"], setting["classes"])
            frozen = found.total - found.trainable
            ours = (found.total, found.trainable, found.head, frozen)
            theirs = tuple(expected[key] for key in ("total", "trainable", "head", "frozen"))
            if ours != theirs:
                wrong.append(f"{config['name']}, {corpus}: {ours} instead of {theirs}")
        if "trainable_excl_head" in config and found.method != config["trainable_excl_head"]:
            wrong.append(f"{config['name']}: {found.method} outside the head")
    assert len(counts["configs"]) > 500
    assert not wrong, wrong[:10]


def test_column_of_the_paper() -> None:
    methods: dict[str, dict[str, Any]] = {
        "prompt_shallow:300": {"name": "prompt_shallow", "prompts": 300},
        "prompt_deep:25": {"name": "prompt_deep", "prompts": 25},
        "prefix": {"name": "prefix", "tokens": 24},
        "lora": {"name": "lora", "rank": 6},
    }
    for place in ("ffn", "both"):
        methods[f"bottleneck:{place}"] = {"name": "adapter", "reduction": 64, "placement": place}
        methods[f"conformer:{place}"] = {
            "name": "adapter", "block": "conformer", "reduction": 96, "kernel": 31,
            "placement": place,
        }  # fmt: skip
    for name, method in methods.items():
        count = count_on_ast_base({**method, "final_norm": False}).method
        assert round(count / 1000) == PAPER[name], name
    assert round(count_on_ast_base({"name": "bitfit"}).method / 1000) == PAPER["bitfit"]

"""Values of `patchout` and `merge_tokens` that no run can use."""

from pathlib import Path

import pytest
from hostile import Hostile, check_refused
from programs import ROOT

TRAIN = ["toolkit", "train", "ESC50"]
SMALL = ["--backbone", "ast_tiny", "--max_length", "64", "--data_folder", "none"]

ROWS = [
    Hostile(f"{method} {' '.join(words)}", [*TRAIN, method, *SMALL, *words], [says])
    for method, words, says in (
        ("lora", ["--patchout", "1"], "patchout: 'share' must be below 1"),
        ("lora", ["--patchout", "-0.5"], "'share' must be at least 0"),
        ("lora", ["--patchout", ".nan"], "'share' must be"),
        ("lora", ["--patchout", "0"], "set one of the two kinds"),
        ("lora", ["--patchout", "{}"], "set one of the two kinds"),
        ("lora", ["--patchout", "half"], "'patchout' must be a mapping of settings, not 'half'"),
        ("lora", ["--patchout", "[0.5]"], "'patchout' must be a mapping of settings"),
        ("lora", ["--patchout", "true"], "'patchout' must be a mapping of settings"),
        ("lora", ["--patchout.tme", "0.5"], "did you mean 'time'"),
        ("lora", ["--patchout.time", "half"], "'time' must be float"),
        ("lora", ["--patchout.time.x", "1"], "unknown key 'time'|'time' must be float"),
        ("lora", ["--patchout.time", "0.3", "--patchout.share", "0.5"], "set one of the two kinds"),
        ("lora", ["--patchout", "0.01"], "drops nothing of a grid of 8 x 4 patches"),
        ("lora", ["--merge_tokens", "0"], "'merge_tokens' must be at least 1"),
        ("lora", ["--merge_tokens", "-3"], "'merge_tokens' must be at least 1"),
        ("lora", ["--merge_tokens", "2.5"], "'merge_tokens' must be int"),
        ("lora", ["--merge_tokens", "true"], "'merge_tokens' must be int"),
        ("lora", ["--merge_tokens", "half"], "'merge_tokens' must be int"),
        ("lora", ["--merge_tokens", "17"], "more than half of the 32 patches"),
        ("conformer", ["--merge_tokens", "2"], "under a conformer adapter"),
        ("convpass", ["--merge_tokens", "2"], "under a convpass adapter"),
        ("softmoa", ["--merge_tokens", "2", "--peft.add_twice", "true"], "`add_twice` to false"),
        ("lora", ["--few_shot.x", "1"], "'few_shot' must be int or none"),
    )
]


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_refused(row: Hostile, tmp_path: Path, programs: Path) -> None:
    check_refused(row, tmp_path / "here", programs, ROOT)

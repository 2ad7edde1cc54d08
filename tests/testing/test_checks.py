"""The checks of the contract fail where they should, also under `python -O`."""

import ast
from pathlib import Path

import pytest

from toolkit.testing import checks, matrix


@pytest.mark.parametrize("module", [checks, matrix], ids=["checks", "matrix"])
def test_no_verdict_stands_on_assert(module: object) -> None:
    source = Path(str(module.__file__)).read_text(encoding="utf-8")
    assert not any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(source)))


def test_a_check_fails_under_python_O(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Path(checks.__file__).read_text(encoding="utf-8")
    optimised: dict[str, object] = {"__name__": "optimised"}
    exec(compile(source, checks.__file__, "exec", optimize=1), optimised)
    method = checks.PEFT.create("bitfit")
    monkeypatch.setattr(type(method), "parameter_groups", lambda self, trainable, lr: [
        {"params": list(trainable.values()), "lr": 0.0}
    ])  # fmt: skip
    with pytest.raises(AssertionError, match=r"did not (fall|move)"):
        optimised["check_training"](method)

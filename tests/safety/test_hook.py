"""The pre-commit hook: which files it takes, and that what it runs is there."""

import re
from pathlib import Path

import pytest

from tests.support import ROOT, run

yaml = pytest.importorskip("yaml")
(HOOK,) = [
    hook
    for hook in yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text("utf-8"))
    if hook["id"] == "ckptkit-scan"
]


@pytest.mark.parametrize(
    "path", ["model.pt", "a/b/pytorch_model.bin", "x.ckpt", "model.safetensors.index.json", "m.onnx"]
)
def test_it_takes_checkpoints(path: str) -> None:
    assert re.search(HOOK["files"], path)


@pytest.mark.parametrize("path", ["model.py", "config.json", "README.md", "pt", "bin/run", "x.pt.txt"])
def test_it_leaves_others_alone(path: str) -> None:
    assert not re.search(HOOK["files"], path)


def test_what_it_runs(tmp_path: Path) -> None:
    program, *command = HOOK["entry"].split()
    assert program == "ckptkit"
    good = ROOT / "fixtures" / "good" / "pickles"
    assert run(*command, good / "views.pt").code == 0
    assert run(*command, good / "views.pt", good / "unsafe.pt").code == 1

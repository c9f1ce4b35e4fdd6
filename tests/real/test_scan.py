"""What torch's own restricted loader accepts of real checkpoints, scan does not call code; nor anything else there."""

from pathlib import Path

import pytest

import ckptkit as ck
from tests.real.test_oracles import FILES

torch = pytest.importorskip("torch", reason="needs the torch extra")


def accepted(path: Path) -> bool:
    """Whether `torch.load(weights_only=True)` takes it."""
    try:
        torch.load(path, weights_only=True, map_location="meta", mmap=False)
    except Exception:
        return False
    return True


@pytest.mark.parametrize("path", [p for p, _ in FILES], ids=[n for _, n in FILES])
def test_no_real_checkpoint_is_called_code(path: Path) -> None:
    found = ck.scan(path)
    kinds = {finding.kind for finding in found.findings}
    assert "code" not in kinds
    if path.suffix in (".pt", ".pth", ".th") and accepted(path):
        assert found.verdict == "clean", found.findings


def test_some_are_accepted() -> None:
    assert sum(accepted(p) for p, _ in FILES if p.suffix in (".pt", ".pth", ".th")) >= 3

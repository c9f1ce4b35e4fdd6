"""A tensor of zero strides claims terabytes; whatever streams values refuses, and what need not does not."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import Result

Run = Callable[..., Result]


@pytest.fixture(params=[1, 3])
def bomb(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """4 TB in one tensor, or 2.4 GB in three of which each alone would pass."""
    torch = pytest.importorskip("torch", reason="needs the torch extra")
    path = tmp_path / "bomb.pt"
    size = 1 << 40 if request.param == 1 else 200_000_000
    torch.save({f"t{i}": torch.ones(1).expand(size) for i in range(request.param)}, path)
    return path


@pytest.mark.parametrize("command", [["inspect", "--stats"], ["digest"], ["diff"]])
def test_what_streams_values_refuses(run: Run, bomb: Path, tmp_path: Path, command: list[str]) -> None:
    other = tmp_path / "other.pt"
    other.write_bytes(bomb.read_bytes())
    done = run(*command, bomb, *([other] if command == ["diff"] else []), "--json")
    assert (done.code, done.json["code"]) == (2, "expands")


def test_what_reads_headers_does_not(run: Run, bomb: Path) -> None:
    assert run("inspect", bomb).code == 0
    assert run("diff", "--no-values", bomb, bomb).code == 0
    assert run("digest", "--textconv", bomb).stdout.startswith("expands: ")


def test_a_slice_is_shown(run: Run, bomb: Path) -> None:
    assert run("show", bomb, "t0", "--slice", "5").stdout.splitlines()[-1] == "1."
    assert len(run("show", bomb, "t0", "--slice", "0:2000", "--json").json["values"]) == 2000
    assert run("show", bomb, "t0", "--slice", "0:1000001", "--json").json["values"] is None

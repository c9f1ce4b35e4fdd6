"""`ckptkit convert`, seen from outside; what is written is tested with the verb."""

from collections.abc import Callable
from pathlib import Path

import pytest

import ckptkit as ck
from tests.house import samples
from tests.support import Result

Run = Callable[..., Result]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return samples.safetensors(tmp_path / "x.safetensors")


def test_the_plan_then_what_was_written(run: Run, model: Path, tmp_path: Path) -> None:
    done = run("convert", model, tmp_path / "y.safetensors", "--rules", "strip:fc.", "--dtype", "bfloat16")
    assert (done.code, done.stderr) == (0, "")
    plan, wrote = done.stdout.splitlines()
    assert plan.startswith("plan        2 tensors · 32 B → ")
    assert "float32 → bfloat16" in plan
    assert wrote.startswith("wrote       ")
    assert "--verify" in wrote
    assert {name: tensor.dtype.name for name, tensor in ck.read(tmp_path / "y.safetensors").items()} == {
        "weight": "bfloat16",
        "bias": "bfloat16",
    }


def test_a_dry_run_writes_nothing(run: Run, model: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    done = run("convert", model, tmp_path / "y.pt", "--dry-run", "--receipt", tmp_path / "r.json")
    assert done.code == 0
    assert done.stdout.startswith("plan ")
    assert "wrote" not in done.stdout
    document = run("convert", model, tmp_path / "y.pt", "-n", "--json").json
    assert document["schema"] == "ckptkit.plan/1"
    assert [tensor["name"] for tensor in document["tensors"]] == ["fc.weight", "fc.bias"]
    assert sorted(tmp_path.iterdir()) == before


def test_a_dry_run_fails_where_the_run_would(run: Run, model: Path, tmp_path: Path) -> None:
    target = tmp_path / "y.safetensors"
    target.write_bytes(b"x")
    for extra in ([], ["-n"]):
        done = run("convert", model, target, *extra)
        assert done.code == 2
        assert "error[exists]" in done.stderr
    assert target.read_bytes() == b"x"
    assert run("convert", model, target, "-n", "-y").code == 0
    assert target.read_bytes() == b"x"
    for extra in ([], ["-n"]):
        assert run("convert", model, tmp_path / "no" / "y.pt", *extra).code == 2


def test_the_receipt_is_the_json(run: Run, model: Path, tmp_path: Path) -> None:
    done = run("convert", model, tmp_path / "y.safetensors", "--json", "--verify", "--metadata", "a=b=c")
    assert (done.code, done.stderr) == (0, "")
    assert done.json["schema"] == "ckptkit.convert/1"
    assert done.json["verified"] is True
    assert ck.read(tmp_path / "y.safetensors").metadata["a"] == "b=c"


def test_shards(run: Run, model: Path, tmp_path: Path) -> None:
    done = run("convert", model, tmp_path / "out", "--to", "safetensors", "--max-shard-size", "30")
    assert done.code == 0, done.stderr
    assert "3 files" in done.stdout
    assert len(ck.read(tmp_path / "out")) == 2


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("5GB", 5 * 10**9), ("1.5MB", 1_500_000), ("1GiB", 1 << 30), ("77", 77), ("3 kb", 3000)],
)
def test_sizes(text: str, nbytes: int) -> None:
    from ckptkit.cli.convert import _size

    assert _size(text) == nbytes


@pytest.mark.parametrize("text", ["", "0", "-5GB", "5XB", "GB", "1e9", "٣GB", "9" * 40])
def test_what_is_no_size(run: Run, text: str) -> None:
    done = run("convert", "a", "b.pt", f"--max-shard-size={text}")
    assert done.code == 2
    assert "error[usage]" in done.stderr


def test_quiet_says_nothing(run: Run, model: Path, tmp_path: Path) -> None:
    done = run("convert", model, tmp_path / "y.safetensors", "-q")
    assert (done.code, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "y.safetensors").exists()

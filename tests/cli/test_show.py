"""`ckptkit show`, seen from outside."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.support import Result

Run = Callable[..., Result]
W = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "x.safetensors"
    save_file(
        {"w": W, "nan": np.array([np.nan, -np.inf, 1], np.float32), "big": np.zeros(2000, np.int8)}, path
    )
    return path


def test_values_are_printed(run: Run, model: Path) -> None:
    done = run("show", model, "w")
    assert done.code == 0
    head, statistics, *values = done.stdout.splitlines()
    assert head == "w   float32 · 3×4 · 48 B"
    assert statistics == "statistics  min 0 · max 11 · mean 5.5 · std 3.452 · 1 zero"
    assert values[0].startswith("[[ 0.,  1.,  2.,  3.]")


def test_json_has_values_of_small_tensors_and_of_slices(run: Run, model: Path) -> None:
    found = run("show", model, "w", "--json", "--slice", "1:,::2").json
    assert found["schema"] == "ckptkit.show/1"
    assert found["values"] == W[1:, ::2].tolist()
    assert found["shape"] == [3, 4]
    assert found["statistics"]["maximum"] == 10  # of the slice
    assert run("show", model, "nan", "--json").json["values"] == ["nan", "-inf", 1.0]
    assert run("show", model, "big", "--json").json["values"] is None
    assert len(run("show", model, "big", "--json", "--slice", ":").json["values"]) == 2000


def test_what_is_not_finite_is_told(run: Run, model: Path) -> None:
    told = run("show", model, "nan").stdout.splitlines()[1]
    assert told == "statistics  min 1 · max 1 · mean 1 · std 0 (of the finite values) · 1 NaN · 1 Inf"
    assert "finite" not in run("show", model, "w").stdout


def test_npy(run: Run, model: Path, tmp_path: Path) -> None:
    done = run("show", model, "w", "-o", tmp_path / "w.npy")
    assert (done.code, done.stdout) == (0, "")
    assert done.stderr.startswith("wrote  ")
    assert np.array_equal(np.load(tmp_path / "w.npy"), W)
    assert run("show", model, "w", "-o", tmp_path / "w.npy").code == 2
    assert run("show", model, "w", "-o", tmp_path / "w.npy", "-y", "-q").stderr == ""


def test_a_wrong_name_gets_the_right_one(run: Run, model: Path) -> None:
    done = run("show", model, "module.w")
    assert done.code == 2
    assert done.stderr.splitlines()[1] == "hint: did you mean w?"


def test_bfloat16_needs_an_upcast(run: Run, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs the torch extra")
    torch.save({"w": torch.tensor([1.5, -2.0], dtype=torch.bfloat16)}, tmp_path / "x.pt")
    assert "1.5" in run("show", tmp_path / "x.pt", "w").stdout
    done = run("show", tmp_path / "x.pt", "w", "-o", tmp_path / "w.npy")
    assert done.code == 2
    assert "--upcast float32" in done.stderr
    assert run("show", tmp_path / "x.pt", "w", "-o", tmp_path / "w.npy", "--upcast", "float32").code == 0
    assert np.load(tmp_path / "w.npy").tolist() == [1.5, -2.0]

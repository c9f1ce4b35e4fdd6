"""Weights of a model in a safetensors file, and where they lie already: no copy, and onnxruntime runs it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ckptkit as ck
from tests.support import ROOT, Result

onnx = pytest.importorskip("onnx", reason="needs the onnx extra")
np = pytest.importorskip("numpy")
runtime = pytest.importorskip("onnxruntime", reason="needs the onnx extra")
safetensors = pytest.importorskip("safetensors.numpy", reason="needs the safetensors extra")
helper, numpy_helper = onnx.helper, onnx.numpy_helper

Run = Callable[..., Result]
VALUE = helper.make_tensor_value_info
GOOD = ROOT / "fixtures" / "good" / "onnx"
RNG = np.random.default_rng(0)
W = {
    "layer.weight": RNG.standard_normal((64, 40)).astype(np.float32),
    "layer.bias": RNG.standard_normal(40).astype(np.float32),
    "gain": np.ones(2, np.float32),
}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A model with inline weights, an integer that shape inference needs, and a weight in a branch."""
    inner = numpy_helper.from_array(RNG.standard_normal(40).astype(np.float32), "shift")
    then = helper.make_graph(
        [helper.make_node("Add", ["h", "shift"], ["t"])], "then", [], [VALUE("t", 1, ["n", 40])], [inner]
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["h"], ["e"])], "else", [], [VALUE("e", 1, ["n", 40])]
    )
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "layer.weight", "layer.bias"], ["h"]),
            helper.make_node("If", ["flag"], ["i"], then_branch=then, else_branch=other, name="if"),
            helper.make_node("Reshape", ["i", "shape"], ["r"]),
            helper.make_node("Mul", ["r", "gain"], ["y"]),
        ],
        "g",
        [VALUE("x", 1, ["n", 64]), VALUE("flag", 9, [])],
        [VALUE("y", 1, ["m", 2])],
        [numpy_helper.from_array(value, name) for name, value in W.items()]
        + [numpy_helper.from_array(np.array([-1, 2]), "shape")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(made, tmp_path / "base.onnx")
    return tmp_path / "base.onnx"


def outputs(path: Path) -> Any:
    runtime.set_default_logger_severity(3)
    feed = {"x": np.linspace(-1, 1, 128, dtype=np.float32).reshape(2, 64), "flag": np.array(True)}
    return runtime.InferenceSession(str(path)).run(None, feed)[0]


def test_a_safetensors_file_beside_the_model(base: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.onnx"
    ck.convert(base, target, external="safetensors", verify=True, prove=True)
    onnx.checker.check_model(str(target), full_check=True)
    held = safetensors.load_file(tmp_path / "out.onnx.safetensors")
    assert set(held) == {"layer.weight", "layer.bias", "if/then_branch/shift"}
    assert all((held[name] == W[name]).all() for name in ("layer.weight", "layer.bias"))
    assert (outputs(target) == outputs(base)).all()
    read = ck.read(target)
    assert not read.findings
    assert [Path(file.path).name for file in read.origin.files] == ["out.onnx", "out.onnx.safetensors"]
    ck.convert(target, tmp_path / "back.onnx", external="inline")
    assert (tmp_path / "back.onnx").read_bytes() == base.read_bytes()


def test_tied_weights_lie_there_once(tmp_path: Path) -> None:
    ck.convert(GOOD / "external_tied.onnx", tmp_path / "t.onnx", external="safetensors", verify=True)
    before, after = ck.read(GOOD / "external_tied.onnx"), ck.read(tmp_path / "t.onnx")
    assert after.ties() == before.ties()
    assert {n: t.tobytes() for n, t in after.items()} == {n: t.tobytes() for n, t in before.items()}


def test_dtypes_that_safetensors_lacks_stay_in_the_model(tmp_path: Path) -> None:
    ck.convert(GOOD / "raw.onnx", tmp_path / "r.onnx", external="safetensors")
    before, after = ck.read(GOOD / "raw.onnx"), ck.read(tmp_path / "r.onnx")
    assert {n: t.tobytes() for n, t in after.items()} == {n: t.tobytes() for n, t in before.items()}


def test_weights_of_a_checkpoint_are_used_where_they_lie(base: Path, tmp_path: Path, run: Run) -> None:
    tuned = {name: value + 1 for name, value in W.items()} | {"if/then_branch/shift": np.ones(40, np.float32)}
    safetensors.save_file(tuned, tmp_path / "tuned.safetensors")
    told = (tmp_path / "tuned.safetensors").stat()
    line = ("--into", base, "--verify")
    done = run(
        "convert", tmp_path / "tuned.safetensors", tmp_path / "small.onnx", *line, "--onnx-data", "shared"
    )
    assert done.code == 0, done.stderr
    assert "stay in tuned.safetensors" in done.stdout
    assert run("convert", tmp_path / "tuned.safetensors", tmp_path / "whole.onnx", *line).code == 0
    assert (tmp_path / "small.onnx").stat().st_size < 2000
    assert (outputs(tmp_path / "small.onnx") == outputs(tmp_path / "whole.onnx")).all()
    onnx.checker.check_model(str(tmp_path / "small.onnx"), full_check=True)
    after = (tmp_path / "tuned.safetensors").stat()
    assert (after.st_mtime_ns, after.st_ino, after.st_nlink) == (told.st_mtime_ns, told.st_ino, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "base.onnx", "small.onnx", "tuned.safetensors", "whole.onnx",
    ]  # fmt: skip
    # A model made of that one shares the file too, and replacing the first leaves it alone.
    assert run("convert", tmp_path / "small.onnx", tmp_path / "more.onnx", "--onnx-data", "shared").code == 0
    assert (
        run("convert", tmp_path / "more.onnx", tmp_path / "small.onnx", "-y", "--onnx-data", "inline").code
        == 0
    )
    assert (outputs(tmp_path / "more.onnx") == outputs(tmp_path / "small.onnx")).all()


def test_data_that_another_model_shares_is_kept(base: Path, tmp_path: Path) -> None:
    ck.convert(base, tmp_path / "m.onnx", external="safetensors")
    ck.convert(tmp_path / "m.onnx", tmp_path / "n.onnx", external="shared")
    ck.convert(tmp_path / "n.onnx", tmp_path / "m.onnx", external="inline", overwrite=True)
    assert (outputs(tmp_path / "n.onnx") == outputs(base)).all()


def test_only_what_lies_in_the_folder_is_shared(base: Path, tmp_path: Path) -> None:
    for name in ("in", "out"):
        (tmp_path / name).mkdir()
    safetensors.save_file(W, tmp_path / "in" / "w.safetensors")
    shutil.copy(base, tmp_path / "out")

    def error(source: Path, target: Path, **options: Any) -> str:
        with pytest.raises(ck.CkptError) as caught:
            ck.convert(source, target, external="shared", **options)
        return caught.value.code

    assert error(base, tmp_path / "x.onnx") == "not-shared"  # weights inside a model are no file of their own
    plan = ck.plan(base, tmp_path / "n.onnx", external="safetensors")
    assert len(plan.files) == 2
    ck.convert(base, tmp_path / "in" / "m.onnx", external="safetensors")
    assert error(tmp_path / "in" / "m.onnx", tmp_path / "out" / "m.onnx") == "not-shared"
    assert error(tmp_path / "in" / "m.onnx", tmp_path / "folder", to="onnx") == "not-shared"
    ck.convert(tmp_path / "in" / "m.onnx", tmp_path / "m.onnx", external="shared")  # a folder below
    assert (outputs(tmp_path / "m.onnx") == outputs(base)).all()


def test_a_proof_that_fails_leaves_nothing(base: Path, tmp_path: Path, run: Run, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "no_such_net.py").write_text(
        "import torch\ndef build(): return torch.nn.Linear(64, 40)\n", "utf-8"
    )
    ck.convert(base, tmp_path / "m.onnx", external="safetensors")
    before = sorted(path.name for path in tmp_path.iterdir())
    line = (
        "m.onnx",
        "n.onnx",
        "--onnx-data",
        "shared",
        "--prove",
        "--module",
        "no_such_net:build",
        "--allow-code",
    )
    done = run("convert", *line)
    assert done.code == 2
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__") == before

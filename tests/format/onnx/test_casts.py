"""Weights of a graph stored in another float type: Cast nodes make up for it, inputs and outputs stay."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ckptkit as ck
from tests.support import ROOT, Result

onnx = pytest.importorskip("onnx", reason="needs the onnx extra")
np = pytest.importorskip("numpy")
runtime = pytest.importorskip("onnxruntime", reason="needs the onnx extra")
helper, numpy_helper, TensorProto = onnx.helper, onnx.numpy_helper, onnx.TensorProto

Run = Callable[..., Result]
VALUE = helper.make_tensor_value_info
GOOD = ROOT / "fixtures" / "good" / "onnx"
N = 300


def weight(name: str, seed: int, dtype: Any = np.float32) -> Any:
    return numpy_helper.from_array(np.random.default_rng(seed).standard_normal(N).astype(dtype), name)


def saved(path: Path, graph: Any, opset: int = 17, ir: int = 8) -> Path:
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir), path)
    return path


@pytest.fixture
def branches(tmp_path: Path) -> Path:
    """Weights wherever they can be: `w` is used outside and in a branch, the other branch has a `w` of its own; `k` is
    a Constant, `small` is short, `shown` is an output, `unused` has no user, `given` the default of an input."""
    then = helper.make_graph(
        [helper.make_node("Add", ["w", "k"], ["t"])], "then", [], [VALUE("t", 1, [N])], [weight("own", 1)]
    )
    other = helper.make_graph(
        [helper.make_node("Mul", ["w", "k"], ["e"])], "else", [], [VALUE("e", 1, [N])], [weight("w", 2)]
    )
    graph = helper.make_graph(
        [
            helper.make_node("Constant", [], ["k"], value=weight("", 3)),
            helper.make_node("If", ["flag"], ["i"], then_branch=then, else_branch=other, name="if"),
            helper.make_node("Sum", ["i", "w", "small", "shown", "given"], ["w.float32"]),
            helper.make_node("Identity", ["w.float32"], ["y"]),
        ],
        "g",
        [VALUE("flag", 9, []), VALUE("given", 1, [N])],
        [VALUE("y", 1, [N]), VALUE("shown", 1, [N])],
        [
            weight("w", 4),
            numpy_helper.from_array(np.ones(1, np.float32), "small"),
            weight("shown", 5),
            weight("unused", 6),
            weight("given", 7),
        ],
        value_info=[VALUE("w", 1, [N]), VALUE("k", 1, [N]), VALUE("unused", 1, [N])],
    )
    return saved(tmp_path / "branches.onnx", graph)


def outputs(path: Path, **feed: Any) -> list[Any]:
    runtime.set_default_logger_severity(3)
    return runtime.InferenceSession(str(path)).run(None, feed)


@pytest.mark.parametrize(("dtype", "close"), [("float16", 1e-2), ("bfloat16", 5e-2), ("float64", 1e-6)])
def test_every_user_gets_the_type_it_was_made_for(
    branches: Path, tmp_path: Path, dtype: str, close: float
) -> None:
    target = tmp_path / "half.onnx"
    receipt = ck.convert(branches, target, dtype=dtype, verify=True, prove=True)
    onnx.checker.check_model(str(target), full_check=True)
    held = ck.read(target)
    assert {name for name, t in held.items() if t.dtype.name == dtype} == {
        "w", "k", "if/then_branch/own", "if/else_branch/w", "unused",
    }  # fmt: skip
    assert {r.name for r in receipt.tensors if r.dtype != r.source_dtype} == {
        name for name, t in held.items() if t.dtype.name == dtype
    }
    before = ck.read(branches)
    assert (held.inputs, held.outputs) == (before.inputs, before.outputs)
    assert sum(node.op == "Cast" for node in held.nodes) == 2  # the unused one needs none
    model = onnx.load(target)
    assert [v.name for v in model.graph.value_info] == [
        "w.float32__",
        "k.float32",
    ]  # as the graph has a w.float32
    for flag in (True, False):
        for mine, theirs in zip(
            outputs(target, flag=np.array(flag)), outputs(branches, flag=np.array(flag)), strict=True
        ):
            assert mine.dtype == np.float32
            assert np.allclose(mine, theirs, rtol=close, atol=close)


def test_going_back_takes_the_casts_out(branches: Path, tmp_path: Path) -> None:
    ck.convert(branches, tmp_path / "half.onnx", dtype="float16")
    ck.convert(tmp_path / "half.onnx", tmp_path / "other.onnx", dtype="bfloat16")
    ck.convert(tmp_path / "half.onnx", tmp_path / "back.onnx", dtype="float32")
    half, other, back, first = (
        ck.read(path)
        for path in (tmp_path / "half.onnx", tmp_path / "other.onnx", tmp_path / "back.onnx", branches)
    )
    assert back.nodes == first.nodes
    assert {name: t.dtype for name, t in back.items()} == {name: t.dtype for name, t in first.items()}
    assert other.nodes == half.nodes  # a Cast takes one type as well as another
    assert back["w"].numpy().tolist() == half["w"].numpy().astype(np.float32).tolist()


def test_weights_are_renamed_and_stored_otherwise_at_once(branches: Path, tmp_path: Path) -> None:
    kept = ("k", "small", "shown", "unused", "given", "if/then_branch/own", "if/else_branch/w")
    rules = "ckptkit-rules: 1\nabout: one name\nrules:\n- {from: w, to: model.w}\n"
    rules += "".join(f"- {{keep: {name}}}\n" for name in kept)
    (tmp_path / "rules.yaml").write_text(rules, "utf-8")
    target = tmp_path / "half.onnx"
    ck.convert(branches, target, dtype="float16", rules=[str(tmp_path / "rules.yaml")])
    model = onnx.load(target)
    onnx.checker.check_model(model, full_check=True)
    cast = next(node for node in model.graph.node if node.op_type == "Cast")
    assert (list(cast.input), list(cast.output)) == (["model.w"], ["model.w.float32"])
    flag = np.array(True)
    assert np.allclose(outputs(target, flag=flag)[0], outputs(branches, flag=flag)[0], rtol=1e-2, atol=1e-2)


def test_a_graph_that_computes_in_half_keeps_computing_in_half(tmp_path: Path) -> None:
    """A weight used as float16 by one node and cast by another."""
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["w"], ["wide"], to=TensorProto.FLOAT),
            helper.make_node("Neg", ["w"], ["h"]),
            helper.make_node("Cast", ["h"], ["n"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["wide", "n"], ["s"]),
            helper.make_node("Add", ["s", "x"], ["y"]),
        ],
        "g", [VALUE("x", 1, [N])], [VALUE("y", 1, [N])], [weight("w", 0, np.float16)],
    )  # fmt: skip
    source = saved(tmp_path / "a.onnx", graph)
    ck.convert(source, tmp_path / "b.onnx", dtype="float32")
    ops = [(node.op, node.inputs) for node in ck.read(tmp_path / "b.onnx").nodes]
    assert ops[:3] == [("Cast", ("w",)), ("Cast", ("w.float16",)), ("Neg", ("w.float16",))]
    x = np.ones(N, np.float32)
    assert np.array_equal(outputs(source, x=x)[0], outputs(tmp_path / "b.onnx", x=x)[0])


def test_weights_that_are_inputs_stay(tmp_path: Path) -> None:
    """Up to IR 3 every weight is an input, and inputs do not change."""
    done = ck.plan(GOOD / "ir3.onnx", tmp_path / "x.onnx", dtype="float16")
    assert not done.cast
    assert next(note for note in done.notes if note.code == "dtype-kept")


@pytest.mark.parametrize(
    ("opset", "dtype"), [(12, "bfloat16"), (5, "float16"), (18, "float8_e5m2"), (0, "float16")]
)
def test_operators_too_old_for_the_type(tmp_path: Path, opset: int, dtype: str) -> None:
    graph = helper.make_graph(
        [helper.make_node("Neg", ["w"], ["y"])], "g", [], [VALUE("y", 1, [N])], [weight("w", 0)]
    )
    source = saved(tmp_path / "a.onnx", graph, max(opset, 1))
    if not opset:
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("com.other", 1)]), source)
    with pytest.raises(ck.CkptError) as caught:
        ck.convert(source, tmp_path / "b.onnx", dtype=dtype)
    assert caught.value.code == "onnx-opset"


def test_values_that_do_not_fit_need_a_word(tmp_path: Path, run: Run) -> None:
    graph = helper.make_graph(
        [helper.make_node("Neg", ["w"], ["y"])],
        "g", [], [VALUE("y", 1, [N])], [numpy_helper.from_array(np.full(N, 1e6, np.float32), "w")],
    )  # fmt: skip
    saved(tmp_path / "a.onnx", graph)
    line = ("convert", tmp_path / "a.onnx", tmp_path / "b.onnx", "--dtype", "float16")
    assert run(*line).stderr.startswith("error[overflow]")
    assert not (tmp_path / "b.onnx").exists()
    assert run(*line, "--allow-loss", "overflow").code == 0


def test_functions_sparse_weights_and_training_models_stay(tmp_path: Path) -> None:
    for name in ("everywhere", "sparse"):
        path = GOOD / f"{name}.onnx"
        if path.exists():
            assert not ck.plan(path, tmp_path / "x.onnx", dtype="float16").cast
    inner = helper.make_node("Constant", [], ["c"], value=weight("", 0))
    function = helper.make_function(
        "own", "F", ["a"], ["b"], [inner, helper.make_node("Add", ["a", "c"], ["b"])],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    graph = helper.make_graph(
        [helper.make_node("F", ["w"], ["y"], domain="own")], "g", [], [VALUE("y", 1, [N])], [weight("w", 1)]
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    onnx.save(
        helper.make_model(graph, functions=[function], opset_imports=imports, ir_version=8),
        tmp_path / "f.onnx",
    )
    decided = ck.convert(tmp_path / "f.onnx", tmp_path / "g.onnx", dtype="float16")
    assert {r.name for r in decided.tensors if r.dtype == "float16"} == {"w"}
    assert np.allclose(outputs(tmp_path / "f.onnx")[0], outputs(tmp_path / "g.onnx")[0], atol=1e-2)


def test_names_that_begin_with_the_place_of_a_node_stay(tmp_path: Path) -> None:
    """A Loop without a name is called by its place, as is its weight: nodes put before it must not change that."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["c"], ["co"]),
            helper.make_node("Add", ["v", "own"], ["t"]),
            helper.make_node("Add", ["t", "w"], ["vo"]),
        ],
        "b",
        [VALUE("i", 7, []), VALUE("c", 9, []), VALUE("v", 1, [N])],
        [VALUE("co", 9, []), VALUE("vo", 1, [N])],
        [weight("own", 1)],
    )
    graph = helper.make_graph(
        [
            helper.make_node("Constant", [], ["m"], value=numpy_helper.from_array(np.array(3))),
            helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.array(True))),
            helper.make_node("Loop", ["m", "c", "x"], ["y"], body=body),
        ],
        "g", [VALUE("x", 1, [N])], [VALUE("y", 1, [N])], [weight("w", 2)],
    )  # fmt: skip
    source = saved(tmp_path / "a.onnx", graph)
    ck.convert(source, tmp_path / "half.onnx", dtype="float16", prove=True, verify=True)
    ck.convert(tmp_path / "half.onnx", tmp_path / "back.onnx", dtype="float32", prove=True, verify=True)
    half, back = ck.read(tmp_path / "half.onnx"), ck.read(tmp_path / "back.onnx")
    assert set(half) == set(back) == set(ck.read(source)) == {"m", "c", "w", "Loop_2/body/own"}
    assert half["Loop_2/body/own"].dtype.name == "float16"
    assert [node.op for node in back.nodes] == [node.op for node in ck.read(source).nodes]

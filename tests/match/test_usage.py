"""What the operators of a graph do with its tensors."""

from pathlib import Path
from typing import Any

import pytest

import ckptkit as ck
from ckptkit.match.usage import usage
from tests.support import ROOT

onnx = pytest.importorskip("onnx", reason="needs the onnx extra")
np = pytest.importorskip("numpy")
helper, numpy_helper = onnx.helper, onnx.numpy_helper

VALUE = helper.make_tensor_value_info
GOOD = ROOT / "fixtures" / "good" / "onnx"


def weight(name: str, *shape: int, dtype: Any = np.float32) -> Any:
    return numpy_helper.from_array(np.ones(shape, dtype), name)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A table used twice, a half stored weight behind a Cast, a captured weight, and one that an inner one hides."""
    then = helper.make_graph(
        [helper.make_node("Mul", ["h", "captured"], ["t"]), helper.make_node("Neg", ["hidden"], ["u"])],
        "then", [], [VALUE("t", 1, None)], [weight("hidden", 7)],
    )  # fmt: skip
    other = helper.make_graph([helper.make_node("Abs", ["h"], ["e"])], "else", [], [VALUE("e", 1, None)])
    function = helper.make_function(
        "own", "F", ["captured"], ["b"],
        [
            helper.make_node("Constant", [], ["c"], value=weight("", 5)),
            helper.make_node("Sub", ["captured", "c"], ["b"]),
        ],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "ids"], ["g"]),
            helper.make_node("Cast", ["half"], ["wide"], to=1),
            helper.make_node("Transpose", ["wide"], ["turned"]),
            helper.make_node("MatMul", ["g", "turned"], ["m"]),
            helper.make_node("MatMul", ["m", "table"], ["h"]),
            helper.make_node("If", ["flag"], ["i"], then_branch=then, else_branch=other, name="if"),
            helper.make_node("Reshape", ["i", "val_1"], ["r"]),
            helper.make_node("Fancy", ["r", "onnx::MatMul_12"], ["f"], domain="com.other"),
            helper.make_node("F", ["f"], ["y"], domain="own"),
        ],
        "g",
        [VALUE("ids", 7, ["n"]), VALUE("flag", 9, [])],
        [VALUE("y", 1, None), VALUE("shown", 1, [3])],
        [
            weight("table", 4, 4),
            weight("half", 4, 4, dtype=np.float16),
            weight("captured", 4),
            weight("hidden", 9),
            weight("val_1", 1, dtype=np.int64),
            weight("onnx::MatMul_12", 2, 2),
            weight("shown", 3),
        ],
    )
    imports = [
        helper.make_opsetid(domain, version) for domain, version in (("", 17), ("own", 1), ("com.other", 1))
    ]
    onnx.save(helper.make_model(graph, functions=[function], opset_imports=imports), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_who_uses_what(path: Path) -> None:
    found = usage(ck.read(path))
    assert found is not None
    assert dict(found.operators) == {
        "Gather, MatMul": (1, 64),
        "MatMul": (1, 32),
        "Neg": (1, 28),
        "Sub": (1, 20),
        "Mul": (1, 16),
        "com.other.Fancy": (1, 16),
        "output": (1, 12),
        "Reshape": (1, 8),
    }
    assert next(iter(found.operators)) == "Gather, MatMul"
    assert dict(found.casts) == {("float16", "float32"): 1}
    assert (found.folded, found.constants, found.unused) == (("onnx::MatMul_12",), ("val_1",), ("hidden",))


def test_every_tensor_is_used_or_not(path: Path) -> None:
    for each in (path, *GOOD.glob("*.onnx")):
        graph = ck.read(each)
        found = usage(graph)
        if found is not None:
            assert sum(n for n, _ in found.operators.values()) + len(found.unused) == len(graph)
            used = sum(nbytes for _, nbytes in found.operators.values())
            assert used == sum(t.nbytes for n, t in graph.items() if n not in found.unused)


def test_no_graph_no_usage(tmp_path: Path, path: Path) -> None:
    ck.convert(path, tmp_path / "w.safetensors")
    assert usage(ck.read(tmp_path / "w.safetensors")) is None


def test_subgraphs_do_not_recurse(tmp_path: Path) -> None:
    inner = helper.make_graph([helper.make_node("Neg", ["w"], ["n0"])], "g", [], [VALUE("n0", 1, [3])])
    for depth in range(1, 20):
        node = helper.make_node("If", ["c"], [f"n{depth}"], then_branch=inner, name=f"if{depth}")
        inner = helper.make_graph([node], "g", [], [VALUE(f"n{depth}", 1, [3])])
    inner.initializer.append(weight("w", 3))
    onnx.save(helper.make_model(inner), tmp_path / "deep.onnx")
    found = usage(ck.read(tmp_path / "deep.onnx"))
    assert found is not None
    assert dict(found.operators) == {"Neg": (1, 12)}

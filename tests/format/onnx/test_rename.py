"""Renaming tensors of an ONNX model: every use follows, scopes are respected, the model computes the same."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptkit.core.errors import CkptError
from ckptkit.core.graph import TensorGraph
from ckptkit.core.options import ReadOptions
from ckptkit.core.plan import WriteOptions
from ckptkit.format.onnx import layout, read
from ckptkit.testing import write
from tests.format.onnx.oracle import contents
from tests.support import ROOT

onnx = pytest.importorskip("onnx", reason="needs the onnx extra")
np = pytest.importorskip("numpy")
helper, numpy_helper, TensorProto = onnx.helper, onnx.numpy_helper, onnx.TensorProto

GOOD = ROOT / "fixtures" / "good" / "onnx"
VALUE = helper.make_tensor_value_info


def graph_of(path: Path | str) -> TensorGraph:
    return read(str(path), ReadOptions())


def weight(name: str, *values: float) -> Any:
    return numpy_helper.from_array(np.array(values, np.float32), name)


def renamed(path: Path, folder: Path, names: dict[str, str]) -> Path:
    """The model with tensors renamed, written; what it reads back as is what was asked for."""
    graph = graph_of(path).rename(names)
    target = write(layout(graph, "model.onnx", WriteOptions()), folder)
    back = graph_of(target)
    assert {name: t.tobytes() for name, t in back.items()} == {name: t.tobytes() for name, t in graph.items()}
    assert back.nodes == graph.nodes
    assert (back.inputs, back.outputs) == (graph.inputs, graph.outputs)
    return target


def refusal(path: Path, names: dict[str, str]) -> str:
    with pytest.raises(CkptError) as caught:
        layout(graph_of(path).rename(names), "model.onnx", WriteOptions())
    return caught.value.code


def run(path: Path, **feed: Any) -> list[Any]:
    runtime = pytest.importorskip("onnxruntime", reason="needs the onnx extra")
    runtime.set_default_logger_severity(3)
    return runtime.InferenceSession(str(path)).run(None, feed)


@pytest.fixture
def branches(tmp_path: Path) -> Path:
    """An If: one branch captures the weight `w`, the other has a weight `w` of its own; `k` is a Constant."""
    then = helper.make_graph(
        [helper.make_node("Add", ["w", "k"], ["t"])], "then", [], [VALUE("t", 1, [2])], [weight("own", 5, 5)]
    )
    other = helper.make_graph(
        [helper.make_node("Mul", ["w", "k"], ["e"])],
        "else",
        [],
        [VALUE("e", 1, [2])],
        [weight("w", 100, 200)],
    )
    graph = helper.make_graph(
        [
            helper.make_node("Constant", [], ["k"], value=weight("", 3, 4)),
            helper.make_node("If", ["flag"], ["i"], then_branch=then, else_branch=other, name="if"),
            helper.make_node("Add", ["i", "w"], ["y"]),
        ],
        "g",
        [VALUE("flag", 9, []), VALUE("w", 1, [2])],
        [VALUE("y", 1, [2]), VALUE("w", 1, [2])],
        [weight("w", 1, 2)],
        value_info=[VALUE("k", 1, [2])],
    )
    note = graph.quantization_annotation.add(tensor_name="w")
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="k")
    path = tmp_path / "branches.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_every_use_follows_and_what_shadows_does_not(branches: Path, tmp_path: Path) -> None:
    target = renamed(branches, tmp_path / "out", {"w": "weight.of.the.model", "k": "constant"})
    graph = onnx.load(target).graph
    onnx.checker.check_model(str(target))
    assert [t.name for t in graph.initializer] == ["weight.of.the.model"]
    assert [list(n.input) for n in graph.node] == [[], ["flag"], ["i", "weight.of.the.model"]]
    assert [v.name for v in graph.input] == ["flag", "weight.of.the.model"]
    assert [v.name for v in graph.output] == ["y", "weight.of.the.model"]
    assert [v.name for v in graph.value_info] == ["constant"]
    assert graph.quantization_annotation[0].tensor_name == "weight.of.the.model"
    assert graph.quantization_annotation[0].quant_parameter_tensor_names[0].value == "constant"
    then, other = (a.g for n in graph.node for a in n.attribute if a.HasField("g"))
    if then.name != "then":
        then, other = other, then
    assert list(then.node[0].input) == ["weight.of.the.model", "constant"]
    assert [list(n.input) + list(n.output) for n in other.node] == [["w", "constant", "e"]]
    assert [t.name for t in other.initializer] == ["w"]
    for flag in (True, False):
        before, after = run(branches, flag=np.array(flag)), run(target, flag=np.array(flag))
        assert [a.tolist() for a in before] == [a.tolist() for a in after]


def test_a_tensor_of_a_subgraph_is_renamed_within_its_path(branches: Path, tmp_path: Path) -> None:
    names = {"if/else_branch/w": "if/else_branch/inner", "if/then_branch/own": "if/then_branch/mine"}
    target = renamed(branches, tmp_path / "out", names)
    assert set(contents(target)) == {"w", "k", "if/else_branch/inner", "if/then_branch/mine"}
    for flag in (True, False):
        before, after = run(branches, flag=np.array(flag)), run(target, flag=np.array(flag))
        assert [a.tolist() for a in before] == [a.tolist() for a in after]


def test_names_can_be_exchanged_and_changed_twice(branches: Path, tmp_path: Path) -> None:
    target = renamed(branches, tmp_path / "1", {"if/else_branch/w": "if/else_branch/x"})
    target = renamed(target, tmp_path / "2", {"w": "k", "k": "w"})
    again = graph_of(target).rename({"w": "one"}).rename({"one": "two"}).rename({"two": "k2"})
    target = write(layout(again, "model.onnx", WriteOptions()), tmp_path / "3")
    assert set(contents(target)) == {"k", "k2", "if/else_branch/x", "if/then_branch/own"}
    assert run(target, flag=np.array(False))[0].tolist() == run(branches, flag=np.array(False))[0].tolist()


@pytest.mark.parametrize("external", ["inline", "external"])
def test_weights_are_renamed_and_moved_in_one_go(tmp_path: Path, external: Any) -> None:
    path = GOOD / "external.onnx"
    graph = graph_of(path).rename({"a": "model.a" * 50, "w": "model.w"})
    target = write(layout(graph, "model.onnx", WriteOptions(external=external)), tmp_path)
    before, after = contents(path), contents(target)
    assert after == {"model.a" * 50: before["a"], "b": before["b"], "model.w": before["w"]}


def test_renaming_there_and_back_touches_nothing(branches: Path, tmp_path: Path) -> None:
    graph = graph_of(branches).rename({"w": "other"}).rename({"other": "w"})
    assert (
        write(layout(graph, "model.onnx", WriteOptions()), tmp_path / "out").read_bytes()
        == branches.read_bytes()
    )


@pytest.mark.parametrize(
    "names",
    [
        {"w": "y"},  # an output
        {"w": "flag"},  # an input
        {"w": "t"},  # a value in a branch that sees it
        {"k": "own"},  # another tensor of a branch that uses it
        {"k": "if/then_branch/own"},
        {"if/then_branch/own": "if/then_branch/k"},  # would hide what its branch uses
        {"w": "new", "if/then_branch/own": "if/then_branch/new"},
        {"w": "k", "k": "w"},  # one branch has a w of its own
    ],
)
def test_a_name_with_another_meaning_is_refused(branches: Path, names: dict[str, str]) -> None:
    assert refusal(branches, names) == "name-collision"


@pytest.mark.parametrize(
    "names",
    [
        {"if/then_branch/own": "own"},
        {"if/then_branch/own": "if/else_branch/own"},
        {"if/then_branch/own": "if/then_branch/"},
    ],
)
def test_a_name_cannot_leave_its_path(branches: Path, names: dict[str, str]) -> None:
    assert refusal(branches, names) == "onnx-rename"


def test_what_has_no_name_of_its_own_keeps_it(tmp_path: Path) -> None:
    tensor = weight("", 1)
    graph = helper.make_graph([helper.make_node("Op", [], ["o"], name="n", value=tensor)], "g", [], [])
    onnx.save(helper.make_model(graph), tmp_path / "m.onnx")
    assert refusal(tmp_path / "m.onnx", {"n.value": "m.value"}) == "onnx-rename"
    assert refusal(GOOD / "everywhere.onnx", {"w": "v"}) == "onnx-rename"  # it has training info


def test_sparse_tensors_are_renamed_by_both_parts(tmp_path: Path) -> None:
    sparse = helper.make_sparse_tensor(
        weight("s", 1, 2), numpy_helper.from_array(np.array([1, 3], np.int64), "at"), [4]
    )
    graph = helper.make_graph([helper.make_node("Identity", ["s"], ["y"])], "g", [], [VALUE("y", 1, [4])])
    graph.sparse_initializer.append(sparse)
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph), path)
    target = renamed(path, tmp_path / "out", {"s.values": "sparse.values", "s.indices": "sparse.indices"})
    back = onnx.load(target).graph
    assert back.sparse_initializer[0].values.name == "sparse"
    assert list(back.node[0].input) == ["sparse"]
    assert refusal(path, {"s.values": "sparse.values"}) == "onnx-rename"
    assert refusal(path, {"s.values": "a.values", "s.indices": "b.indices"}) == "onnx-rename"


def test_functions_have_names_of_their_own(tmp_path: Path) -> None:
    function = helper.make_function(
        "test",
        "Shift",
        ["w"],
        ["out"],
        [
            helper.make_node("Constant", [], ["k"], value=weight("", 10, 20)),
            helper.make_node("Add", ["w", "k"], ["out"]),
        ],
        [helper.make_opsetid("", 17)],
    )
    graph = helper.make_graph(
        [helper.make_node("Shift", ["w"], ["y"], domain="test")],
        "g",
        [],
        [VALUE("y", 1, [2])],
        [weight("w", 1, 2)],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("test", 1)]
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, functions=[function], opset_imports=opsets, ir_version=8), path)
    target = renamed(path, tmp_path / "out", {"w": "weight", "test.Shift/k": "test.Shift/shift"})
    found = onnx.load(target)
    assert [t.name for t in found.graph.initializer] == ["weight"]
    assert [list(n.input) + list(n.output) for n in found.functions[0].node] == [
        ["shift"],
        ["w", "shift", "out"],
    ]
    assert run(target)[0].tolist() == [11.0, 22.0]


@given(st.data())
def test_any_renaming_that_is_taken_computes_the_same(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Names of one letter clash often: what is not refused must be right."""
    folder = tmp_path_factory.mktemp("any")
    letters = st.sampled_from("abcdefgh")
    outer = sorted(data.draw(st.sets(letters, min_size=2, max_size=4)))
    inner = sorted(data.draw(st.sets(letters, max_size=3)))
    uses = data.draw(st.lists(st.sampled_from(outer + inner), min_size=1, max_size=4))
    value = iter(range(1, 100))
    branch = helper.make_graph(
        [helper.make_node("Sum", uses, ["t"])],
        "branch",
        [],
        [VALUE("t", 1, [1])],
        [weight(name, 10.0 ** next(value)) for name in inner],
    )
    graph = helper.make_graph(
        [
            helper.make_node("If", ["flag"], ["i"], then_branch=branch, else_branch=branch, name="if"),
            helper.make_node("Sum", ["i", *outer], ["y"]),
        ],
        "g",
        [VALUE("flag", 9, [])],
        [VALUE("y", 1, [1])],
        [weight(name, float(next(value))) for name in outer],
    )
    path = folder / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    names = data.draw(st.dictionaries(st.sampled_from(outer), letters, min_size=1))
    names |= {
        f"if/{b}_branch/{old}": f"if/{b}_branch/{new}"
        for b in ("then", "else")
        for old, new in data.draw(st.dictionaries(st.sampled_from(inner or outer), letters)).items()
        if old in inner
    }
    try:
        target = renamed(path, folder / "out", names)
    except CkptError as error:
        if error.code != "name-collision":
            raise
        return
    for flag in (True, False):
        assert run(target, flag=np.array(flag))[0].tolist() == run(path, flag=np.array(flag))[0].tolist()

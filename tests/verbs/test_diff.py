"""diff: exactly what changed is told, in whatever formats the two checkpoints are."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

import ckptkit as ck

Arrays = dict[str, Any]
Save = Callable[..., Path]


@pytest.fixture
def arrays() -> Arrays:
    rng = np.random.default_rng(0)
    return {
        f"layers.{i}.{name}": rng.standard_normal(shape).astype(np.float32)
        for i in range(4)
        for name, shape in (("fc.weight", (6, 5)), ("fc.bias", (6,)), ("norm.weight", (6,)))
    }


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def write(name: str, arrays: Arrays, metadata: dict[str, str] | None = None) -> Path:
        path = tmp_path / f"{name}.safetensors"
        save_file(arrays, path, metadata)
        return path

    return write


def kinds(diff: ck.Diff) -> dict[str, tuple[str, ...]]:
    return {name: entry.kinds for name, entry in diff.changed.items()}


def test_what_differs_in_nothing_is_equal(save: Save, arrays: Arrays) -> None:
    found = ck.diff(save("a", arrays), save("b", dict(reversed(arrays.items()))))
    assert (found.verdict, found.identical, found.entries[0].status) == ("equal", 12, "equal")
    assert (found.added, found.removed, found.renamed, found.other, dict(found.changed)) == (
        (),
        (),
        (),
        (),
        {},
    )


def test_metadata_alone_makes_no_difference(save: Save, arrays: Arrays) -> None:
    found = ck.diff(
        save("a", arrays, {"format": "pt", "x": "1"}), save("b", arrays, {"format": "pt", "x": "2"})
    )
    assert found.equal
    assert [(o.what, o.name, o.a, o.b, o.counts) for o in found.other] == [("metadata", "x", "1", "2", False)]


def test_each_kind_of_change_is_told_from_the_others(save: Save, arrays: Arrays) -> None:
    changed = dict(arrays)
    changed["layers.0.fc.weight"] = arrays["layers.0.fc.weight"].astype(np.float64)  # dtype, same values
    changed["layers.1.fc.weight"] = arrays["layers.1.fc.weight"] + np.float32(0.25)
    changed["layers.2.fc.bias"] = np.arange(9, dtype=np.float32)
    changed["layers.3.fc.bias"] = arrays["layers.3.fc.bias"].astype(np.float64) * 2
    changed["head"] = np.full((3, 3), 7, np.float32)
    del changed["layers.3.norm.weight"]
    found = ck.diff(save("a", arrays), save("b", changed))
    assert kinds(found) == {
        "layers.0.fc.weight": ("dtype",),
        "layers.1.fc.weight": ("values",),
        "layers.2.fc.bias": ("shape",),
        "layers.3.fc.bias": ("dtype", "values"),
    }
    assert (found.added, found.removed, found.identical) == (("head",), ("layers.3.norm.weight",), 7)
    values = found.changed["layers.1.fc.weight"].values
    assert values is not None
    assert values.max_abs == pytest.approx(0.25, rel=1e-6)
    assert values.changed == values.size == 30
    assert found.changed["layers.0.fc.weight"].values is None


@given(st.data())
def test_a_flipped_bit_anywhere_is_found(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("bits")
    rng = np.random.default_rng(1)
    dtypes = [np.float32, np.float16, np.int64, np.int8, np.bool_, np.complex64]
    arrays = {np.dtype(dtype).name: rng.integers(0, 2, (4, 3)).astype(dtype) for dtype in dtypes}
    save_file(arrays, folder / "a.safetensors")
    raw = bytearray((folder / "a.safetensors").read_bytes())
    start = 8 + int.from_bytes(raw[:8], "little")
    place, bit = data.draw(st.integers(start, len(raw) - 1)), data.draw(st.integers(0, 7))
    header = json.loads(raw[8:start])
    runs = {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}
    (hit,) = [name for name, (begin, end) in runs.items() if begin <= place - start < end]
    raw[place] ^= 1 << bit
    (folder / "b.safetensors").write_bytes(raw)
    found = ck.diff(folder / "a.safetensors", folder / "b.safetensors")
    assert kinds(found) == {hit: ("values",)}
    values = found.changed[hit].values
    assert values is not None
    assert values.changed == 1


def test_headers_alone_know_nothing_of_values(save: Save, arrays: Arrays) -> None:
    moved = {"layers.1.fc.weight": arrays["layers.1.fc.weight"] + 1, "layers.2.fc.bias": np.zeros(2, np.int8)}
    changed = {**arrays, **moved}
    found = ck.diff(save("a", arrays), save("b", changed), values=False)
    assert kinds(found) == {"layers.2.fc.bias": ("dtype", "shape")}
    assert {e.status for e in found.entries} == {"unread", "changed"}
    assert not found.read


def test_a_tolerance_decides_what_is_equal(save: Save, arrays: Arrays) -> None:
    moved = {name: array * np.float32(1 + 1e-4) for name, array in arrays.items()}
    a, b = save("a", arrays), save("b", moved)
    assert len(ck.diff(a, b).changed) == 12
    near = ck.diff(a, b, rtol=1e-3)
    assert near.equal
    assert {e.status for e in near.entries} == {"close"}
    assert near.identical == 0
    assert not ck.diff(a, b, rtol=1e-5).equal
    assert ck.diff(a, b, atol=1.0).equal


def test_rules_rename_a_first_and_patterns_select_from_both(save: Save, arrays: Arrays) -> None:
    wrapped = save("a", {f"module.{name}": array for name, array in arrays.items()})
    plain = save("b", {**arrays, "extra": np.zeros(1, np.float32)})
    assert ck.diff(wrapped, plain, rules=["strip:module."]).added == ("extra",)
    assert ck.diff(wrapped, plain, rules=["strip:module."], exclude=["extra"]).equal
    assert ck.diff(wrapped, plain, rules=["strip:module."], include=["layers.0.*"]).identical == 3
    with pytest.raises(ck.CkptError) as caught:
        ck.diff(wrapped, plain, include=["nowhere*"])
    assert caught.value.code == "no-match"


def test_what_moved_is_found_by_content(save: Save, arrays: Arrays) -> None:
    rng = np.random.default_rng(2)
    shapes = {"q": (3, 4), "k": (3, 4), "old": (2, 7), "w": (5,)}
    a = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    b = {"qk": np.concatenate([a["q"], a["k"]]), "new": np.ascontiguousarray(a["old"].T), "w": a["w"]}
    found = ck.diff(save("a", a), save("b", b))
    assert {(r.sources, r.target, r.how) for r in found.renamed} == {
        (("q", "k"), "qk", "concat"),
        (("old",), "new", "transposed"),
    }
    assert (found.added, found.removed, found.verdict) == ((), (), "different")


def test_a_rounded_tensor_is_known_as_such(save: Save, arrays: Arrays) -> None:
    a = save("a", arrays)
    ck.convert(a, a.with_name("half.safetensors"), dtype="float16")
    found = ck.diff(a, a.with_name("half.safetensors"))
    entry = found.changed["layers.0.fc.weight"]
    assert entry.kinds == ("dtype", "values")
    assert entry.how == "float16(layers.0.fc.weight)"
    assert not found.renamed
    exact = ck.diff(a.with_name("half.safetensors"), a)
    assert exact.changed["layers.0.fc.weight"].kinds == ("dtype", "values")


def test_the_result_is_a_value(save: Save, arrays: Arrays) -> None:
    found = ck.diff(save("a", arrays), save("b", {**arrays, "layers.0.fc.bias": np.zeros(6, np.float32)}))
    assert pickle.loads(pickle.dumps(found)) == found
    seen: list[tuple[str, int, int]] = []
    graphs = ck.read(found.a.path), ck.read(found.b.path)
    again = ck.diff(*graphs, progress=lambda *state: seen.append(state))
    assert again.changed == found.changed
    assert {phase for phase, _, _ in seen} == {"compare", "measure"}
    assert all(0 < done <= total for _, done, total in seen)


def test_ties_broken_and_made(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs the torch extra")
    shared = torch.arange(6.0)
    torch.save({"a": shared, "b": shared, "c": torch.ones(2)}, tmp_path / "tied.pt")
    torch.save({"a": shared, "b": shared.clone(), "c": torch.ones(2)}, tmp_path / "free.pt")
    broken = ck.diff(tmp_path / "tied.pt", tmp_path / "free.pt")
    assert kinds(broken) == {"a": ("tie",), "b": ("tie",)}
    assert broken.changed["b"].a == ("float32", (6,), "a", "")
    assert broken.changed["b"].b == ("float32", (6,), None, "")
    assert kinds(ck.diff(tmp_path / "free.pt", tmp_path / "tied.pt")) == {"a": ("tie",), "b": ("tie",)}
    ck.convert(tmp_path / "tied.pt", tmp_path / "tied.safetensors")
    assert ck.diff(tmp_path / "tied.pt", tmp_path / "tied.safetensors").equal
    del shared
    torch.save({"b": torch.arange(6.0), "c": torch.ones(2)}, tmp_path / "one.pt")
    assert ck.diff(tmp_path / "tied.pt", tmp_path / "one.pt").changed == {}  # no tie between names of both


def test_the_same_weights_in_every_format_are_equal(tmp_path: Path, save: Save, arrays: Arrays) -> None:
    a = save("a", arrays)
    for target in ("b.pt", "shards"):
        more = {"to": "safetensors", "max_shard_size": 300} if target == "shards" else {}
        ck.convert(a, tmp_path / target, **more)
        assert ck.diff(a, tmp_path / target).equal
    torch = pytest.importorskip("torch", reason="needs the torch extra")
    turned = {
        name: torch.from_numpy(array.T.copy()).permute(*reversed(range(array.ndim)))
        for name, array in arrays.items()
    }
    torch.save(turned, tmp_path / "turned.pt")
    assert ck.diff(a, tmp_path / "turned.pt").equal
    torch.save(turned, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    assert ck.diff(tmp_path / "legacy.pt", a).equal


def test_exactly_the_trained_layers_are_reported(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs the torch extra")
    torch.manual_seed(0)
    block = lambda: torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.LayerNorm(8), torch.nn.GELU())  # noqa: E731
    model = torch.nn.Sequential(*[block() for _ in range(4)], torch.nn.Linear(8, 2))
    torch.save(model.state_dict(), tmp_path / "base.pt")
    trained = {"2.0.weight", "2.0.bias", "4.weight"}
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name in trained
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(16, 8)).square().mean().backward()
        optimizer.step()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "tuned.pt")
    found = ck.diff(tmp_path / "base.pt", tmp_path / "tuned.pt")
    assert kinds(found) == dict.fromkeys(trained, ("values",))
    assert found.identical == len(model.state_dict()) - 3
    assert (set(found.trained), len(found.frozen)) == (trained, found.identical)
    assert not found.unrelated
    for entry in found.changed.values():
        assert entry.values is not None
        assert 0 < entry.values.max_abs < 0.01
        assert entry.values.cosine is not None
        assert entry.values.cosine > 0.99


def onnx_model(**changes: Any) -> Any:
    onnx = pytest.importorskip("onnx", reason="needs the onnx extra")
    from onnx import helper

    weights = onnx.numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(2, 3), "w")
    gemm = helper.make_node("Gemm", ["x", "w"], ["h"], name="fc", transB=changes.get("transB", 1))
    act = helper.make_node(changes.get("act", "Relu"), ["h"], ["y"])
    value = lambda name, shape: helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)  # noqa: E731
    graph = helper.make_graph(
        [gemm, act], "g", [value("x", changes.get("x", [1, 3]))], [value("y", [1, 2])], [weights]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", changes.get("opset", 17))])


FIXED = {"dtype": "float32", "shape": [1, 3]}


@pytest.mark.parametrize(
    ("change", "what", "name", "before", "after"),
    [
        ({"transB": 0}, "attribute", "fc.transB", 1, 0),
        ({"opset": 18}, "opset", "ai.onnx", 17, 18),
        ({"x": ["batch", 3]}, "input", "x", FIXED, {**FIXED, "shape": ["batch", 3]}),
    ],
)
def test_a_change_of_an_onnx_graph(
    tmp_path: Path, change: dict[str, Any], what: str, name: str, before: Any, after: Any
) -> None:
    onnx = pytest.importorskip("onnx", reason="needs the onnx extra")
    onnx.save(onnx_model(), tmp_path / "a.onnx")
    onnx.save(onnx_model(**change), tmp_path / "b.onnx")
    assert ck.diff(tmp_path / "a.onnx", tmp_path / "a.onnx").equal
    found = ck.diff(tmp_path / "a.onnx", tmp_path / "b.onnx")
    assert [(o.what, o.name, o.a, o.b) for o in found.other] == [(what, name, before, after)]
    assert not found.equal
    assert found.identical == 1


def test_attributes_that_are_not_numbers_equal_themselves(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="needs the onnx extra")
    for name, alpha in (("a", float("nan")), ("b", float("nan")), ("c", 1.0)):
        model = onnx_model()
        model.graph.node[0].attribute.append(onnx.helper.make_attribute("alpha", alpha))
        onnx.save(model, tmp_path / f"{name}.onnx")
    assert ck.diff(tmp_path / "a.onnx", tmp_path / "b.onnx").equal
    (other,) = ck.diff(tmp_path / "a.onnx", tmp_path / "c.onnx").other
    assert (other.name, other.b) == ("fc.alpha", 1.0)


def test_nodes_that_came_and_went(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="needs the onnx extra")
    onnx.save(onnx_model(), tmp_path / "a.onnx")
    onnx.save(onnx_model(act="Tanh"), tmp_path / "b.onnx")
    (other,) = ck.diff(tmp_path / "a.onnx", tmp_path / "b.onnx").other
    assert (other.what, other.name, other.a["op"], other.b["op"]) == ("node", "y", "Relu", "Tanh")


def test_a_change_inside_a_subgraph_is_found(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="needs the onnx extra")
    from onnx import helper

    def save(path: Path, op: str) -> None:
        value = lambda name: helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1])  # noqa: E731
        branch = helper.make_graph([helper.make_node(op, ["x"], ["z"], name="inner")], "t", [], [value("z")])
        other = helper.make_graph(
            [helper.make_node("Neg", ["x"], ["z"], name="inner")], "e", [], [value("z")]
        )
        node = helper.make_node("If", ["c"], ["y"], name="if", then_branch=branch, else_branch=other)
        condition = helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, [])
        onnx.save(
            helper.make_model(helper.make_graph([node], "g", [value("x"), condition], [value("y")])), path
        )

    save(tmp_path / "a.onnx", "Abs")
    save(tmp_path / "b.onnx", "Sqrt")
    (other,) = ck.diff(tmp_path / "a.onnx", tmp_path / "b.onnx").other
    assert (other.what, other.name) == ("node", "if/then_branch/inner")


def test_an_export_to_onnx_is_explained_tensor_by_tensor(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs the torch extra")
    pytest.importorskip("onnxscript", reason="needs onnxscript")
    torch.manual_seed(0)
    conv, norm = torch.nn.Conv1d(3, 4, 3), torch.nn.BatchNorm1d(4)
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.5, 2)
    model = torch.nn.Sequential(
        conv, norm, torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(32, 5)
    ).eval()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    torch.onnx.export(model, (torch.randn(2, 3, 10),), tmp_path / "old.onnx", dynamo=False)
    torch.onnx.export(model, (torch.randn(2, 3, 10),), tmp_path / "new.onnx", dynamo=True, verbose=False)
    for export in ("old.onnx", "new.onnx"):
        found = ck.diff(tmp_path / "model.pt", tmp_path / export)
        weights = {name for name in (*found.added, *found.removed) if name not in found.constants}
        assert weights == set(), export
        assert found.identical + len(found.renamed) >= 4, export


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ({}, {"lookup": np.arange(64, dtype=np.uint8)}),
        ({"steps": np.array(3)}, {}),
        ({"q": np.array([1, 2], np.int8)}, {"r": np.array([3, 4], np.int8)}),
        ({"mask": np.array([True, False])}, {}),
    ],
)
def test_small_integers_on_one_side_make_a_difference(save: Save, a: Arrays, b: Arrays) -> None:
    weights = {"w": np.ones(3, np.float32)}
    found = ck.diff(save("a", {**weights, **a}), save("b", {**weights, **b}))
    assert not found.equal
    assert (found.added, found.removed, found.constants) == (tuple(b), tuple(a), frozenset())


def test_only_a_graph_has_constants_beside_the_weights(tmp_path: Path, save: Save) -> None:
    onnx = pytest.importorskip("onnx", reason="needs the onnx extra")
    model = onnx_model()
    shape = onnx.numpy_helper.from_array(np.array([1, -1]), "shape")
    zero_point = onnx.numpy_helper.from_array(np.array([3], np.int8), "zero_point")
    model.graph.initializer.append(shape)
    onnx.save(model, tmp_path / "a.onnx")
    weights = {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}
    found = ck.diff(save("b", weights), tmp_path / "a.onnx")
    assert (found.equal, found.added, found.constants) == (True, ("shape",), {"shape"})
    found = ck.diff(tmp_path / "a.onnx", save("b", {**weights, "table": np.arange(4)}))
    assert (found.equal, found.added, found.constants) == (False, ("table",), {"shape"})
    model.graph.initializer.append(zero_point)
    onnx.save(model, tmp_path / "q.onnx")
    found = ck.diff(save("b", weights), tmp_path / "q.onnx")
    assert (found.equal, found.constants) == (False, {"shape"})
    found = ck.diff(tmp_path / "a.onnx", tmp_path / "q.onnx")
    assert (found.equal, found.added, found.constants) == (False, ("zero_point",), frozenset())


def test_a_graph_needs_no_counter_of_training_batches(tmp_path: Path, save: Save) -> None:
    onnx = pytest.importorskip("onnx", reason="needs the onnx extra")
    onnx.save(onnx_model(), tmp_path / "a.onnx")
    weights = {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}
    counter = {"bn.num_batches_tracked": np.array(7)}
    assert ck.diff(save("b", {**weights, **counter}), tmp_path / "a.onnx").equal
    assert not ck.diff(save("b", {**weights, **counter}), save("c", weights)).equal
    assert not ck.diff(save("b", {**weights, "steps": np.array(7)}), tmp_path / "a.onnx").equal


def test_the_size_of_a_sparse_tensor_and_the_axis_of_a_quantised_one(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs the torch extra")
    place, value = torch.tensor([[0], [1]]), torch.tensor([1.0])
    x, scales, zeros = torch.eye(6), torch.full((6,), 0.1), torch.zeros(6, dtype=torch.long)
    for name, size, axis in (("a", 3, 0), ("b", 40, 1)):
        sparse = torch.sparse_coo_tensor(place, value, (size, size))
        quantised = torch.quantize_per_channel(x, scales, zeros, axis, torch.qint8)
        torch.save({"s": sparse, "q": quantised, "plain": x}, tmp_path / f"{name}.pt")
    found = ck.diff(tmp_path / "a.pt", tmp_path / "b.pt")
    assert kinds(found) == dict.fromkeys(("s.indices", "s.values", "q"), ("layout",))
    entry = found.changed["s.values"]
    assert entry.a
    assert entry.b
    assert ("3×3" in entry.a.layout, "40×40" in entry.b.layout) == (True, True)
    assert ck.diff(tmp_path / "a.pt", tmp_path / "a.pt").equal
    assert kinds(ck.diff(tmp_path / "a.pt", tmp_path / "b.pt", values=False)) == kinds(found)


def test_the_size_of_a_sparse_initializer(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="needs the onnx extra")
    model = onnx_model()
    values, places = (onnx.numpy_helper.from_array(np.array([1, 2], t)) for t in (np.float32, np.int64))
    values.name = "s"
    model.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, places, [10]))
    onnx.save(model, tmp_path / "a.onnx")
    model.graph.sparse_initializer[0].dims[0] = 11
    onnx.save(model, tmp_path / "b.onnx")
    found = ck.diff(tmp_path / "a.onnx", tmp_path / "b.onnx")
    assert kinds(found) == {"s.values": ("layout",), "s.indices": ("layout",)}


def onnx_edited(path: Path, edit: Callable[[Any], object]) -> Path:
    """The model of `onnx_model` with two inputs more and a function, changed further."""
    onnx = pytest.importorskip("onnx", reason="needs the onnx extra")
    from onnx import helper

    model = onnx_model()
    model.graph.input.append(helper.make_tensor_value_info("x2", 1, [1]))
    model.graph.input.append(
        helper.make_value_info("s", helper.make_sequence_type_proto(helper.make_tensor_type_proto(1, None)))
    )
    leaky = helper.make_node("LeakyRelu", ["a"], ["b"])
    leaky.attribute.add(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT)
    ours = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("own", "F", ["a"], ["b"], [leaky], ours, ["slope", "other"]))
    held = helper.make_node("Held", ["y"], ["z"], name="held", domain="own")
    held.attribute.append(helper.make_attribute("type", helper.make_tensor_type_proto(1, [3])))
    model.graph.node.append(held)
    training = model.training_info.add()
    training.algorithm.name = "step"
    training.algorithm.node.append(helper.make_node("Sub", ["w", "g"], ["w2"]))
    binding = training.update_binding.add()
    binding.key, binding.value = "w", "w2"
    edit(model)
    onnx.save(model, path)
    return path


def swap_inputs(model: Any) -> None:
    first, second, third = (type(v).FromString(v.SerializeToString()) for v in model.graph.input)
    del model.graph.input[:]
    model.graph.input.extend([second, first, third])


def declare_optional(model: Any) -> None:
    kind = model.graph.input[2].type
    kind.Clear()
    kind.optional_type.elem_type.tensor_type.elem_type = 1


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (swap_inputs, ("order", "inputs", ["x", "x2", "s"], ["x2", "x", "s"])),
        (
            declare_optional,
            (
                "input",
                "s",
                {"dtype": "sequence(float32)", "shape": None},
                {"dtype": "optional(float32)", "shape": None},
            ),
        ),
        (
            lambda m: setattr(m.functions[0].node[0].attribute[0], "ref_attr_name", "other"),
            ("attribute", "own.F/body/b.alpha", {"argument": "slope"}, {"argument": "other"}),
        ),
        (
            lambda m: m.functions[0].input.__setitem__(0, "c"),
            ("inputs", "own.F", ["a"], ["c"]),
        ),
        (
            lambda m: setattr(m.functions[0].opset_import[0], "version", 18),
            ("attribute", "own.F.opset ai.onnx", 17, 18),
        ),
        (
            lambda m: setattr(m.training_info[0].update_binding[0], "key", "v"),
            ("attribute", "training_info.0.update_binding", [["w", "w2"]], [["v", "w2"]]),
        ),
        (
            lambda m: m.training_info[0].algorithm.node[0].input.__setitem__(1, "h"),
            ("inputs", "training_info.0/algorithm/w2", ["w", "g"], ["w", "h"]),
        ),
    ],
)
def test_what_an_onnx_model_declares_besides_its_nodes(
    tmp_path: Path, edit: Callable[[Any], object], told: tuple[object, ...]
) -> None:
    before = onnx_edited(tmp_path / "a.onnx", lambda model: None)
    after = onnx_edited(tmp_path / "b.onnx", edit)
    assert ck.diff(before, before).equal
    assert [(o.what, o.name, o.a, o.b) for o in ck.diff(before, after).other] == [told]


def test_other_operators_functions_and_types(tmp_path: Path) -> None:
    before = onnx_edited(tmp_path / "a.onnx", lambda model: None)
    edits: dict[str, Callable[[Any], object]] = {
        "own.F/body/b": lambda m: setattr(m.functions[0].node[0], "op_type", "Elu"),
        "own.G": lambda m: setattr(m.functions[0], "name", "G"),
        "held.type": lambda m: setattr(m.graph.node[2].attribute[0].tp.tensor_type, "elem_type", 7),
        "training_info.0": lambda m: m.ClearField("training_info"),
    }
    for name, edit in edits.items():
        found = ck.diff(before, onnx_edited(tmp_path / "b.onnx", edit))
        assert name in {other.name for other in found.other}
        assert not found.equal


def test_a_graph_of_no_nodes_is_a_graph(tmp_path: Path, save: Save) -> None:
    onnx = pytest.importorskip("onnx", reason="needs the onnx extra")
    for name, output in (("a", "w"), ("b", "x")):
        model = onnx_model()
        del model.graph.node[:]
        model.graph.output[0].name = output
        onnx.save(model, tmp_path / f"{name}.onnx")
    onnx.save(onnx_model(), tmp_path / "c.onnx")
    assert [o.what for o in ck.diff(tmp_path / "a.onnx", tmp_path / "b.onnx").other] == ["output", "output"]
    assert "node" in [o.what for o in ck.diff(tmp_path / "a.onnx", tmp_path / "c.onnx").other]
    weights = save("w", {"w": np.arange(6, dtype=np.float32).reshape(2, 3)})
    found = ck.diff(weights, tmp_path / "a.onnx")
    assert found.equal
    assert [(o.what, o.a, o.b) for o in found.other] == [("graph", None, {"nodes": 0})]


def test_what_was_left_out_of_a_trainer_checkpoint_is_named(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs the torch extra")
    for name, moment in (("a", 0.0), ("b", 1.0)):
        state = {"state": {0: {"exp_avg": torch.full((2,), moment)}}, "param_groups": []}
        whole = {"model": {"w": torch.ones(2)}, "ema": {"w": torch.ones(2) / 2}, "optimizer": state}
        torch.save(whole, tmp_path / f"{name}.pt")
    a, b = tmp_path / "a.pt", tmp_path / "b.pt"
    found = ck.diff(a, b)
    assert found.equal
    assert (found.a.section, found.a.left_out) == ("model", ("ema", "optimizer"))
    whole = ck.diff(a, b, section="all")
    assert (whole.equal, whole.a.section, whole.a.left_out) == (False, "", ())


def test_a_section_or_variant_is_that_of_the_side_which_has_it(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs the torch extra")
    ema = {"w": torch.zeros(3)}
    torch.save({"model": {"w": torch.ones(3)}, "ema": ema}, tmp_path / "trainer.pt")
    torch.save(ema, tmp_path / "plain.pt")
    trainer, plain = tmp_path / "trainer.pt", tmp_path / "plain.pt"
    assert not ck.diff(trainer, plain).equal
    assert ck.diff(trainer, plain, section="ema").equal
    assert ck.diff(plain, trainer, section="ema").equal
    assert ck.diff(plain, ck.read(trainer, "ema")).equal
    for section in ("nowhere", "em"):
        with pytest.raises(ck.CkptError) as caught:
            ck.diff(trainer, plain, section=section)
        assert caught.value.code == "section-unknown"
    folder = tmp_path / "folder"
    folder.mkdir()
    save_file({"w": np.zeros(3, np.float32)}, folder / "model.fp16.safetensors")
    assert ck.diff(folder, plain, variant="fp16").equal
    with pytest.raises(ck.CkptError) as caught:
        ck.diff(folder, plain, variant="fp8")
    assert caught.value.code == "variant-missing"

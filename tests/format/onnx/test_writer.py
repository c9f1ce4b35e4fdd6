"""Writing ONNX models: re-laid-out models say and compute the same, and nothing but the weights is touched."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptkit.core.dtypes import DTYPES
from ckptkit.core.errors import CkptError
from ckptkit.core.files import File
from ckptkit.core.graph import Origin, TensorGraph
from ckptkit.core.options import ReadOptions
from ckptkit.core.plan import Layout, WriteOptions
from ckptkit.core.tensor import Tensor
from ckptkit.format.onnx import layout, open_with_reference, placing, read
from ckptkit.format.onnx.wire import encode_field
from ckptkit.testing import write
from tests.format.onnx.oracle import contents
from tests.format.onnx.test_reader import make_big
from tests.support import ROOT

onnx = pytest.importorskip("onnx", reason="needs the onnx extra")
np = pytest.importorskip("numpy")
helper, numpy_helper, TensorProto = onnx.helper, onnx.numpy_helper, onnx.TensorProto

GOOD = ROOT / "fixtures" / "good" / "onnx"


def graph_of(path: Path | str) -> TensorGraph:
    return read(str(path), ReadOptions())


def relaid(source: Path | TensorGraph, folder: Path, external: Any = "auto", **options: Any) -> Path:
    """The model written anew into `folder` as model.onnx."""
    graph = source if isinstance(source, TensorGraph) else graph_of(source)
    return write(layout(graph, "model.onnx", WriteOptions(external=external, **options)), folder)


def refusal(graph: TensorGraph, **options: Any) -> str:
    with pytest.raises(CkptError) as caught:
        layout(graph, "model.onnx", WriteOptions(**options))
    return caught.value.code


def outputs(path: Path, feed: dict[str, Any]) -> list[Any]:
    runtime = pytest.importorskip("onnxruntime", reason="needs the onnx extra")
    runtime.set_default_logger_severity(3)
    return runtime.InferenceSession(str(path)).run(None, feed)


@pytest.fixture
def mlp(tmp_path: Path) -> Path:
    """Two layers with inline raw weights, one of a megabyte; a branch of an If adds a weight of its own."""
    rng = np.random.default_rng(0)
    weights = {
        "a": rng.standard_normal((64, 4096)).astype(np.float32),
        "bias": rng.standard_normal(4096).astype(np.float32),
        "b": rng.standard_normal((4096, 8)).astype(np.float32),
        "small": rng.standard_normal(8).astype(np.float32),
    }
    value = helper.make_tensor_value_info
    inner = numpy_helper.from_array(rng.standard_normal((300, 1)).astype(np.float32), "inner")
    then = helper.make_graph(
        [
            helper.make_node("ReduceSum", ["inner"], ["sum"], keepdims=0),
            helper.make_node("Add", ["small", "sum"], ["t"]),
        ],
        "then",
        [],
        [value("t", 1, [8])],
        [inner],
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["small"], ["e"])], "else", [], [value("e", 1, [8])]
    )
    nodes = [
        helper.make_node("Gemm", ["x", "a", "bias"], ["h"], name="first"),
        helper.make_node("MatMul", ["h", "b"], ["m"]),
        helper.make_node("If", ["flag"], ["shift"], then_branch=then, else_branch=other, name="choose"),
        helper.make_node("Add", ["m", "shift"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "mlp",
        [value("x", 1, ["n", 64]), value("flag", 9, [])],
        [value("y", 1, ["n", 8])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
        value_info=[value("h", 1, ["n", 4096])],
        doc_string="documented",
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {"author": "someone", "stage": "1"})
    path = tmp_path / "source.onnx"
    onnx.save(model, path)
    return path


FEED = {"x": np.linspace(-1, 1, 128, dtype=np.float32).reshape(2, 64), "flag": np.array(True)}


def test_out_and_back_in_gives_the_same_bytes(mlp: Path, tmp_path: Path) -> None:
    outside = relaid(mlp, tmp_path / "out", "external")
    assert relaid(outside, tmp_path / "in", "inline").read_bytes() == mlp.read_bytes()


def test_as_it_is_gives_the_same_bytes(mlp: Path, tmp_path: Path) -> None:
    assert relaid(mlp, tmp_path / "same").read_bytes() == mlp.read_bytes()
    for path in GOOD.glob("*.onnx"):
        again = relaid(path, tmp_path / path.stem)
        if not graph_of(path).origin.details["data_files"]:
            assert again.read_bytes() == path.read_bytes(), path


def test_an_external_model_computes_the_same(mlp: Path, tmp_path: Path) -> None:
    outside = relaid(mlp, tmp_path / "out", "external")
    open_with_reference(str(outside))
    open_with_reference(str(outside) + ".data")  # passed over
    assert contents(outside) == contents(mlp)
    for flag in (True, False):
        feed = FEED | {"flag": np.array(flag)}
        (before,), (after,) = outputs(mlp, feed), outputs(outside, feed)
        assert before.tobytes() == after.tobytes()


def test_where_external_weights_lie(mlp: Path, tmp_path: Path) -> None:
    outside = relaid(mlp, tmp_path / "out", "external")
    model = onnx.load(outside, load_external_data=False)
    tensors = {t.name: t for t in model.graph.initializer}
    assert tensors["small"].HasField("raw_data")  # 32 bytes
    inner = next(n for n in model.graph.node if n.op_type == "If").attribute
    tensors |= {t.name: t for a in inner for t in a.g.initializer}
    places = {}
    for name, tensor in tensors.items():
        if tensor.data_location:
            entries = {e.key: e.value for e in tensor.external_data}
            assert list(entries) == ["location", "offset", "length"]
            assert entries["location"] == "model.onnx.data"
            places[name] = (int(entries["offset"]), int(entries["length"]))
    # In file order: the If's branch is written among the nodes, before the initializers.
    assert sorted(places, key=lambda name: places[name]) == ["inner", "a", "bias", "b"]
    assert places["inner"] == (0, 1200)
    assert places["a"] == (65536, 1 << 20)
    assert places["bias"][0] == 65536 + (1 << 20)
    assert all(offset % 4096 == 0 for offset, _ in places.values())
    assert (tmp_path / "out" / "model.onnx.data").stat().st_size == max(map(sum, places.values()))
    assert graph_of(outside).findings == ()


def test_nothing_but_the_data_is_touched(mlp: Path, tmp_path: Path) -> None:
    outside = onnx.load(relaid(mlp, tmp_path / "out", "external"))
    source = onnx.load(mlp)
    for tensor in outside.graph.initializer:
        tensor.ClearField("data_location")
    for node in outside.graph.node:
        for attribute in node.attribute:
            for tensor in attribute.g.initializer:
                tensor.ClearField("data_location")
    assert outside == source


def test_unknown_fields_and_odd_encodings_are_kept(tmp_path: Path) -> None:
    """Lengths written with more bytes than needed, unknown fields on every level, fields out of order."""

    def padded(number: int, payload: bytes) -> bytes:
        return (
            bytes(
                [number << 3 | 2, len(payload) & 127 | 128, len(payload) >> 7 & 127 | 128, len(payload) >> 14]
            )
            + payload
        )

    unknown = encode_field(99, b"unknown")
    data = bytes(range(256)) * 8
    tensor = (
        unknown
        + encode_field(9, data)
        + encode_field(8, b"w")
        + unknown
        + encode_field(2, 1)
        + encode_field(1, 512)
    )
    graph = unknown + padded(5, tensor) + encode_field(1, encode_field(4, b"Nop"))
    model = unknown + padded(7, graph) + encode_field(1, 8) + unknown
    path = tmp_path / "odd.onnx"
    path.write_bytes(model)
    assert relaid(path, tmp_path / "same").read_bytes() == model
    outside = relaid(path, tmp_path / "out", "external")
    assert graph_of(outside)["w"].tobytes() == data
    assert outside.read_bytes().count(unknown) == model.count(unknown)
    assert contents(outside)["w"] == ("float32", (512,), data)


@pytest.mark.parametrize("name", ["typed", "typed_split", "everywhere", "raw"])
def test_typed_fields_stay_as_they_are_inline(name: str, tmp_path: Path) -> None:
    path = GOOD / f"{name}.onnx"
    assert relaid(path, tmp_path / "in", "inline").read_bytes() == path.read_bytes()


def test_typed_weights_go_out_as_raw_bytes(tmp_path: Path) -> None:
    values = np.arange(-600, 600, dtype=np.int16)
    tensors = [
        helper.make_tensor("h", TensorProto.INT16, [1200], values.tolist()),
        helper.make_tensor("f", TensorProto.FLOAT16, [1200], values.astype(np.float16).tolist()),
        helper.make_tensor("w", TensorProto.FLOAT, [1200], values.astype(np.float32).tolist()),
        helper.make_tensor("text", TensorProto.STRING, [300], [b"words"] * 300),
    ]
    path = tmp_path / "typed.onnx"
    onnx.save(helper.make_model(helper.make_graph([], "g", [], [], tensors)), path)
    outside = relaid(path, tmp_path / "out", "external")
    assert contents(outside) == contents(path)
    back = relaid(outside, tmp_path / "in", "inline")
    assert contents(back) == contents(path)
    assert {t.name: t.HasField("raw_data") for t in onnx.load(back).graph.initializer} == {
        "h": True,
        "f": True,
        "w": True,
        "text": False,
    }


def test_data_that_nothing_uses_is_left_behind(tmp_path: Path) -> None:
    again = relaid(GOOD / "external_orphans.onnx", tmp_path)
    assert (tmp_path / "model.onnx.data").stat().st_size == 1024
    assert graph_of(again).findings == ()


def test_small_external_tensors_come_home(tmp_path: Path) -> None:
    small = numpy_helper.from_array(np.ones(4, np.float32), "small")
    path = tmp_path / "m.onnx"
    onnx.save(
        helper.make_model(helper.make_graph([], "g", [], [], [small])),
        path,
        save_as_external_data=True,
        size_threshold=0,
        location="weights",
    )
    assert graph_of(path)["small"].file == File.at(tmp_path / "weights")
    assert contents(relaid(path, tmp_path / "out")) == contents(path)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["model.onnx"]


def test_too_large_for_protobuf_goes_outside_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "big.onnx"
    make_big(path, 3_000_000_000)
    graph = graph_of(path)
    plan = layout(graph, "model.onnx", WriteOptions())
    assert [f.path for f in plan.files] == ["model.onnx.data", "model.onnx"]
    assert plan.files[0].size == 3_000_000_000
    assert plan.files[1].size < 200
    assert [note.code for note in plan.notes] == ["weights-external"]
    assert refusal(graph, external="inline") == "onnx-too-large"


def test_external_data_that_would_not_fit_inline_stays_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mlp: Path
) -> None:
    monkeypatch.setattr(placing, "COMFORTABLE", 1 << 20)
    assert [f.path for f in layout(graph_of(mlp), "m.onnx", WriteOptions()).files] == [
        "m.onnx.data",
        "m.onnx",
    ]


def test_the_data_file_takes_no_name_that_is_taken(mlp: Path) -> None:
    def name(*taken: str) -> str:
        return (
            layout(graph_of(mlp), "m.onnx", WriteOptions(external="external", taken=frozenset(taken)))
            .files[0]
            .path
        )

    assert name("other") == "m.onnx.data"
    assert name("m.onnx.data") == "m.onnx.2.data"
    assert name("m.onnx.data", "m.onnx.2.data") == "m.onnx.3.data"


def test_ties_live_in_the_data_file(tmp_path: Path) -> None:
    graph = graph_of(GOOD / "external_tied.onnx")
    assert graph.ties() == {"b": "a"}
    kept = relaid(graph, tmp_path / "keep")
    assert graph_of(kept).ties() == {"b": "a"}
    assert (tmp_path / "keep" / "model.onnx.data").stat().st_size == 1024
    copied = relaid(graph, tmp_path / "copy", ties="copy")
    assert graph_of(copied).ties() == {}
    assert refusal(graph, ties="error") == "tied-tensors"
    inline = layout(graph, "m.onnx", WriteOptions(external="inline"))
    assert [(loss.code, loss.where) for loss in inline.losses] == [("ties-copied", "b")]
    assert layout(graph, "m.onnx", WriteOptions(external="inline", ties="copy")).losses == ()
    assert refusal(graph, external="inline", ties="error") == "tied-tensors"


def test_metadata_changes_are_written(mlp: Path, tmp_path: Path) -> None:
    graph = graph_of(mlp)
    assert graph.metadata == {"author": "someone", "stage": "1"}
    changed = relaid(replace(graph, metadata={"stage": "two", "note": "größer"}), tmp_path / "1")
    model = onnx.load(changed)
    assert {p.key: p.value for p in model.metadata_props} == {"stage": "two", "note": "größer"}
    del model.metadata_props[:]
    source = onnx.load(mlp)
    del source.metadata_props[:]
    assert model == source
    assert graph_of(relaid(replace(graph, metadata={}), tmp_path / "2")).metadata == {}


# --- weights that come from elsewhere


def other_bytes(folder: Path, tensor: Tensor) -> Tensor:
    """A tensor of the same type with the bytes 0, 1, 2, …"""
    path = folder / f"other-{len(list(folder.iterdir()))}"
    path.write_bytes(bytes(i % 251 for i in range(tensor.nbytes)))
    return Tensor(tensor.dtype, tensor.shape, File.at(path))


@pytest.mark.parametrize("external", ["inline", "external", "auto"])
@pytest.mark.parametrize("name", ["raw", "typed", "external"])
def test_a_weight_can_be_replaced_by_one_of_its_type(tmp_path: Path, name: str, external: str) -> None:
    graph = graph_of(GOOD / f"{name}.onnx")
    changed = [n for n, t in graph.items() if t.dtype.bits >= 8 and t.dtype.name != "bool"]
    tensors = dict(graph.tensors) | {n: other_bytes(tmp_path, graph[n]) for n in changed}
    written = contents(relaid(replace(graph, tensors=tensors), tmp_path / "out", external))
    before = contents(GOOD / f"{name}.onnx")
    for n, tensor in tensors.items():
        assert written[n][2] == (tensor.tobytes() if n in changed else before[n][2]), n


def test_a_weight_of_another_type_is_refused(mlp: Path, tmp_path: Path) -> None:
    graph = graph_of(mlp)
    half = Tensor(DTYPES["float16"], graph["small"].shape, File.at(mlp), 0)
    turned = Tensor(DTYPES["float32"], (2, 4), File.at(mlp), 0)
    for tensor in (half, turned):
        assert refusal(replace(graph, tensors=dict(graph.tensors) | {"small": tensor})) == "graph-typed"


def test_values_of_node_settings_cannot_be_replaced(tmp_path: Path) -> None:
    graph = graph_of(GOOD / "everywhere.onnx")
    for name in ("float", "ints", "op.long", "string"):
        tensors = dict(graph.tensors) | {
            name: replace(graph[name], source=None, file=graph.native.file, offset=1)
        }
        assert refusal(replace(graph, tensors=tensors)) == "graph-typed"


def test_a_graph_needs_all_its_tensors_and_no_others(mlp: Path) -> None:
    graph = graph_of(mlp)
    assert refusal(graph.select(["a", "b"])) == "graph-incomplete"
    extra = dict(graph.tensors) | {"more": graph["a"]}
    assert refusal(replace(graph, tensors=extra)) == "graph-incomplete"


def test_weights_alone_make_no_model() -> None:
    graph = TensorGraph({}, Origin("w.safetensors", "safetensors"))
    with pytest.raises(CkptError) as caught:
        layout(graph, "model.onnx", WriteOptions())
    assert caught.value.code == "graph-needed"
    assert "w.safetensors" in caught.value.message


def test_shards_are_refused(mlp: Path) -> None:
    assert refusal(graph_of(mlp), max_shard_size=1 << 20) == "not-sharded"


# --- any model


@st.composite
def models(draw: st.DrawFn) -> Any:
    """A model of initializers and Constants, raw and typed, some within Ifs."""
    names = iter(f"t{i}" for i in range(10_000))

    def tensor() -> Any:
        size = draw(st.sampled_from([0, 1, 3, 255, 256, 1024]))
        array = np.arange(size).astype(draw(st.sampled_from([np.float32, np.int8, np.int64, np.float16])))
        name = next(names)
        if draw(st.booleans()):
            return numpy_helper.from_array(array, name)
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        return helper.make_tensor(name, kind, [size], array.tolist())

    def graph(depth: int) -> Any:
        count = draw(st.integers(0, 2))
        nodes = [helper.make_node("Constant", [], [next(names)], value=tensor()) for _ in range(count)]
        if depth:
            nodes.append(
                helper.make_node(
                    "If", ["c"], [next(names)], then_branch=graph(depth - 1), else_branch=graph(0)
                )
            )
        return helper.make_graph(nodes, "g", [], [], [tensor() for _ in range(draw(st.integers(0, 3)))])

    return helper.make_model(graph(draw(st.integers(0, 3))))


@given(models())
def test_any_model_goes_out_and_comes_back(tmp_path_factory: pytest.TempPathFactory, model: Any) -> None:
    folder = tmp_path_factory.mktemp("any")
    path = folder / "source.onnx"
    onnx.save(model, path)
    outside = relaid(path, folder / "out", "external")
    back = relaid(outside, folder / "in", "inline")
    expected = contents(path)
    assert contents(outside) == contents(back) == expected
    if all(t.source is None for t in graph_of(path).values()) and not typed_floats(model):
        assert back.read_bytes() == path.read_bytes()


def typed_floats(model: Any) -> bool:
    """Whether floats stand in float_data: packed they are raw bytes too, and come back as raw_data."""
    return any(len(t.float_data) for t in tensors_of(model.graph))


def tensors_of(graph: Any) -> list[Any]:
    inner = [a.g for n in graph.node for a in n.attribute if a.HasField("g")]
    return list(graph.initializer) + [t for g in inner for t in tensors_of(g)]


def test_each_weight_is_a_piece_of_its_name(mlp: Path) -> None:
    plan: Layout = layout(graph_of(mlp), "m.onnx", WriteOptions(external="external"))
    names = [p.name for f in plan.files for p in f.pieces if p.name]
    assert sorted(names) == sorted(graph_of(mlp))


def test_real_models_compute_the_same_moved_and_renamed(shared_data: Path, tmp_path: Path) -> None:
    paths = sorted(shared_data.rglob("version-slim-320*.onnx"))
    if not paths:
        pytest.skip("the model is not there")
    for path in paths:
        graph = graph_of(path)
        assert [(v.name, v.shape) for v in graph.inputs] == [("input", (1, 3, 240, 320))]
        feed = {"input": np.random.default_rng(0).random((1, 3, 240, 320), np.float32)}
        before = outputs(path, feed)
        moved = graph.rename({name: f"model.{name}" for name in graph})
        for where in ("inline", "external"):
            after = outputs(relaid(moved, tmp_path / path.stem / where, where), feed)
            assert [a.tobytes() for a in after] == [b.tobytes() for b in before], (path, where)

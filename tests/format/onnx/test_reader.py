"""Reading ONNX models: every tensor as onnx reads it, the graph, external data and its paths, limits."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ckptkit as ck
from ckptkit.core.budgets import DEFAULT_BUDGETS
from ckptkit.core.errors import CkptError
from ckptkit.core.graph import Subgraph, TensorGraph, TensorName
from ckptkit.core.options import ReadOptions
from ckptkit.format.onnx import read as read_onnx
from ckptkit.format.onnx import wire
from tests.format.onnx.oracle import Content, contents
from tests.support import ROOT, environment

onnx = pytest.importorskip("onnx", reason="needs the onnx extra")
helper, TensorProto = onnx.helper, onnx.TensorProto

FIXTURES = ROOT / "fixtures"
ROWS = [row for row in json.loads((FIXTURES / "index.json").read_text("utf-8")) if "/onnx/" in row["path"]]
GOOD = [row for row in ROWS if "error" not in row["expect"]]
HOSTILE = [row for row in ROWS if "error" in row["expect"]]


def read(path: Path | str, **changes: int) -> TensorGraph:
    return read_onnx(str(path), ReadOptions(budgets=replace(DEFAULT_BUDGETS, **changes)))


def ours(graph: TensorGraph) -> dict[str, Content]:
    return {name: (t.dtype.name, t.shape, t.tobytes()) for name, t in graph.items()}


def model(path: Path, *initializers: Any, nodes: tuple[Any, ...] = (), **parts: Any) -> Path:
    """A model file with these parts, as onnx writes it."""
    graph = helper.make_graph(
        list(nodes), "g", parts.get("inputs", []), parts.get("outputs", []), list(initializers)
    )
    onnx.save(helper.make_model(graph, ir_version=parts.get("ir_version", 10)), path)
    return path


# --- tensors


@pytest.mark.parametrize("row", GOOD, ids=lambda row: Path(row["path"]).stem)
def test_the_examples_give_what_their_index_says_and_what_onnx_reads(row: dict[str, Any]) -> None:
    graph = read(FIXTURES / row["path"])
    found = {name: f"{t.dtype}[{','.join(map(str, t.shape))}]" for name, t in graph.items()}
    assert found == row["expect"]["tensors"]
    # onnx does not look for weights in functions and training info
    main = {
        name: c for name, c in ours(graph).items() if not name.startswith(("test.Double/", "training_info."))
    }
    assert main == contents(FIXTURES / row["path"])


@pytest.mark.parametrize("row", HOSTILE, ids=lambda row: Path(row["path"]).stem)
def test_a_broken_rule_is_refused_with_its_code(row: dict[str, Any]) -> None:
    with pytest.raises(CkptError) as refusal:
        read(FIXTURES / row["path"])
    assert refusal.value.code == row["expect"]["error"]


def test_real_models_read_as_onnx_reads_them(shared_data: Path) -> None:
    paths = sorted(shared_data.rglob("*.onnx"))
    if not paths:
        pytest.skip("no ONNX models there")
    for path in paths:
        assert ours(read(path)) == contents(path), path


NUMERIC = sorted(set(TensorProto.DataType.values()) - {0, TensorProto.STRING})


@given(st.data())
@settings(max_examples=60)
def test_any_tensor_that_onnx_makes_reads_back(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    import ml_dtypes  # noqa: F401 - registers the types that helper asks numpy for

    path = tmp_path_factory.getbasetemp() / "made.onnx"
    tensors = []
    for number in range(data.draw(st.integers(1, 4))):
        kind = data.draw(st.sampled_from(NUMERIC))
        shape = data.draw(st.lists(st.integers(0, 5), max_size=3))
        count = 1
        for size in shape:
            count *= size
        raw = data.draw(st.booleans())
        dtype = helper.tensor_dtype_to_np_dtype(kind)
        import numpy as np

        bits = np.frombuffer(data.draw(st.binary(min_size=16 * count, max_size=16 * count)), np.uint8)
        small = (bits[:count] % (2 if kind in (9, 25, 26) else 4)).astype(np.int64)
        if kind == TensorProto.FLOAT8E8M0:
            small = small * 0 + 1
        values = small.astype(dtype)
        if raw:
            tensors.append(onnx.numpy_helper.from_array(values.reshape(shape), f"t{number}"))
        else:
            tensors.append(helper.make_tensor(f"t{number}", kind, shape, values.tolist()))
    model(path, *tensors)
    assert ours(read(path)) == contents(path)


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [
        (TensorProto.INT64, -(2**63), 2**63),
        (TensorProto.INT32, -(2**31), 2**31),
        (TensorProto.UINT64, 0, 2**64),
        (TensorProto.INT8, -128, 128),
        (TensorProto.UINT16, 0, 2**16),
    ],
)
@pytest.mark.parametrize("count", [1, 7, 300_000])
def test_long_typed_fields_are_decoded_in_blocks(
    tmp_path: Path, kind: int, low: int, high: int, count: int
) -> None:
    import numpy as np

    dtype = helper.tensor_dtype_to_np_dtype(kind)
    values = np.random.default_rng(count).integers(low, high, count, dtype=dtype)
    values[:1] = low
    tensor = helper.make_tensor("t", kind, [count], values.tolist())
    graph = read(model(tmp_path / "m.onnx", tensor))
    assert graph["t"].tobytes() == values.tobytes()
    assert max(len(chunk) for chunk in graph["t"].chunks(1024)) <= 1024


def test_a_number_out_of_range_in_a_long_field_is_found_when_it_is_used(tmp_path: Path) -> None:
    tensor = TensorProto(name="t", data_type=TensorProto.UINT8, dims=[100_000])
    tensor.int32_data.extend([1] * 99_999 + [256])
    graph = read(model(tmp_path / "m.onnx", tensor))
    with pytest.raises(CkptError) as refusal:
        graph["t"].tobytes()
    assert refusal.value.code == "onnx-value-range"


def test_negative_int32_may_take_five_bytes(tmp_path: Path) -> None:
    """protobuf takes the low 32 bits, so a writer that does not extend the sign is understood too."""
    tensor = TensorProto(name="t", data_type=TensorProto.INT32, dims=[1])
    tensor.int32_data.append(-2)
    path = model(tmp_path / "m.onnx", tensor)
    whole = path.read_bytes()
    long, short = b"\x2a\x0a\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\x2a\x05\xfe\xff\xff\xff\x0f"
    assert long in whole
    proto = onnx.TensorProto()
    tensor_bytes = tensor.SerializeToString()
    proto.ParseFromString(tensor_bytes.replace(long, short))
    assert list(proto.int32_data) == [-2]
    # Padding with an unknown field keeps all lengths.
    path.write_bytes(whole.replace(long, short + b"\xfa\x06\x02\0\0"))
    assert read(path)["t"].tobytes() == (-2).to_bytes(4, "little", signed=True)


# --- structure


def test_the_graph_is_what_onnx_reads(tmp_path: Path) -> None:
    path = FIXTURES / "good" / "onnx" / "everywhere.onnx"
    graph, proto = read(path), onnx.load(path)
    assert [(n.name, n.op, n.domain, list(n.inputs), list(n.outputs)) for n in graph.nodes] == [
        (n.name, n.op_type, n.domain, list(n.input), list(n.output)) for n in proto.graph.node
    ]
    assert [v.name for v in graph.inputs] == [v.name for v in proto.graph.input]
    assert (graph.inputs[0].dtype, graph.inputs[0].shape) == ("float32", (3,))
    assert graph.metadata == {"author": "hand"}
    details = graph.origin.details
    assert details["ir_version"] == 10
    assert details["opsets"] == {"ai.onnx": 21, "test": 1}
    assert details["operators"]["Constant"] == 13
    assert details["operators"]["test.Custom"] == 2
    custom = graph.nodes[9].attributes
    assert custom["axis"] == -1
    assert custom["words"] == ("a", "b")
    assert custom["scale"] == 0.5
    assert custom["label"] == "x"
    assert custom["pads"] == (1, 300, 1)
    assert custom["one"] == "op.one"
    assert isinstance(custom["one"], TensorName)
    assert custom["many"] == ["op.many.0", "op.many.1"]
    assert [g.scope for g in custom["graphs"]] == ["op/graphs.0/", "op/graphs.1/"]
    deep = graph.nodes[8].attributes["else_branch"].nodes[0].attributes["then_branch"]
    assert isinstance(deep, Subgraph)
    assert [n.op for n in deep.nodes] == ["Constant", "Add"]


def test_tensors_come_in_file_order() -> None:
    graph = read(FIXTURES / "good" / "onnx" / "everywhere.onnx")
    starts = [tensor.extents[0].offset for tensor in graph.values() if tensor.kind != "sparse-initializer"]
    assert starts == sorted(starts)
    kinds = {name: tensor.kind for name, tensor in graph.items()}
    assert kinds["w"] == "initializer"
    assert kinds["s.values"] == "sparse-initializer"
    assert kinds["ints"] == "constant"
    assert kinds["op.one"] == "attribute"
    assert graph["s.values"].note == "sparse, 2×3"


def test_initializers_among_the_inputs_are_no_inputs(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    tensor = helper.make_tensor("w", 1, [1], [1.0])
    inputs = [value("x", 1, ["batch", None, 2]), value("w", 1, [1])]
    old = read(model(tmp_path / "old.onnx", tensor, inputs=inputs, ir_version=3))
    new = read(model(tmp_path / "new.onnx", tensor, inputs=inputs, ir_version=8))
    assert [v.name for v in old.inputs] == [v.name for v in new.inputs] == ["x"]
    assert old.inputs[0].shape == ("batch", None, 2)
    assert (old["w"].note, new["w"].note) == ("", "default of a graph input")


def test_nodes_without_a_name_or_with_a_used_one_are_told_apart(tmp_path: Path) -> None:
    tensor = helper.make_tensor("", 1, [1], [1.0])
    nodes = tuple(helper.make_node("Op", [], [f"o{i}"], name="n" * (i % 2), value=tensor) for i in range(4))
    graph = read(model(tmp_path / "m.onnx", nodes=nodes))
    assert list(graph) == ["Op_0.value", "n.value", "Op_2.value", "Op_3.value"]


def test_a_node_named_as_another_would_be_is_told_apart(tmp_path: Path) -> None:
    tensor = helper.make_tensor("", 1, [1], [1.0])
    names = ("Op_1", "", "Op_3", "Op_3", "")
    nodes = tuple(
        helper.make_node("Op", [], [f"o{i}"], name=name, value=tensor) for i, name in enumerate(names)
    )
    graph = read(model(tmp_path / "m.onnx", nodes=nodes))
    assert list(graph) == ["Op_1.value", "Op_1_.value", "Op_3.value", "Op_3_.value", "Op_4.value"]


def test_three_gigabytes_of_weights_cost_their_header(tmp_path: Path) -> None:
    """More than protobuf itself can read. The weights are a hole in the file."""
    path = tmp_path / "big.onnx"
    size = 3_000_000_000
    make_big(path, size)
    code = """
import sys
from ckptkit.format.onnx import read
from ckptkit.core.options import ReadOptions
graph = read(sys.argv[1], ReadOptions())
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(graph["w"].nbytes, peak.split()[1], sorted({"numpy", "onnx", "google.protobuf"} & set(sys.modules)))
"""
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc to see the memory of a process")
    out = subprocess.run(
        [sys.executable, "-c", code, path], env=environment(), capture_output=True, text=True, check=True
    ).stdout
    nbytes, resident, heavy = out.split()
    assert int(nbytes) == size
    assert int(resident) < 40_000
    assert heavy == "[]"


def make_big(path: Path, size: int) -> None:
    """A model with one uint8 tensor of that many zeros, which take no room on disk."""
    from ckptkit.format.onnx.wire import encode_field, encode_varint

    head = encode_field(1, size) + encode_field(2, 2) + encode_field(8, b"w") + encode_varint(9 << 3 | 2)
    head += encode_varint(size)
    tensor = encode_varint(5 << 3 | 2) + encode_varint(len(head) + size) + head
    graph = encode_field(1, encode_field(4, b"Nop"))
    start = encode_field(1, 8) + encode_varint(7 << 3 | 2) + encode_varint(len(graph) + len(tensor) + size)
    with open(path, "wb") as file:
        file.write(start + graph + tensor)
        file.seek(size, os.SEEK_CUR)
        file.write(encode_field(8, encode_field(2, 17)))


@pytest.mark.parametrize("window", [20, 21, 64, 1000])
def test_the_window_makes_no_difference(monkeypatch: pytest.MonkeyPatch, window: int) -> None:
    before = {row["path"]: ours(read(FIXTURES / row["path"])) for row in GOOD}
    monkeypatch.setattr(wire, "_WINDOW", window)
    assert {row["path"]: ours(read(FIXTURES / row["path"])) for row in GOOD} == before


def test_budgets_end_the_reading() -> None:
    path = FIXTURES / "good" / "onnx" / "everywhere.onnx"
    for limits in ({"entries": 20}, {"header_bytes": 100}, {"nesting": 1}):
        with pytest.raises(CkptError) as refusal:
            read(path, **limits)
        assert refusal.value.code == "over-budget"


# --- external data


@pytest.fixture
def external(tmp_path: Path) -> Path:
    """A folder with a model and its data file."""
    folder = tmp_path / "models"
    folder.mkdir()
    for name in ("external.onnx", "external.onnx.data"):
        (folder / name).write_bytes((FIXTURES / "good" / "onnx" / name).read_bytes())
    return folder


def test_a_hub_cache_of_links_is_followed(external: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1"
    external.rename(blobs)
    snapshot.mkdir(parents=True)
    for index, name in enumerate(("external.onnx", "external.onnx.data")):
        (blobs / name).rename(blobs / str(index))
        (snapshot / name).symlink_to(blobs / str(index))
    graph = read(snapshot / "external.onnx")
    assert graph["a"].tobytes() == bytes(i * 7 % 256 for i in range(1024))


def test_a_link_to_the_model_alone_finds_the_data_beside_the_real_one(external: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.onnx"
    link.symlink_to(external / "external.onnx")
    assert len(read(link)["a"].tobytes()) == 1024


@pytest.mark.parametrize("through", ["file", "folder"])
def test_a_link_out_of_the_folder_is_refused(external: Path, tmp_path: Path, through: str) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    data = external / "external.onnx.data"
    data.rename(secret / "external.onnx.data")
    if through == "file":
        data.symlink_to(secret / "external.onnx.data")
    else:
        path = external / "external.onnx"
        # The same length, so that the lengths around it stay true.
        path.write_bytes(path.read_bytes().replace(b"external.onnx.data", b"out/./././one.data"))
        (secret / "one.data").write_bytes(bytes(8192))
        (external / "out").symlink_to(secret)
    with pytest.raises(CkptError) as refusal:
        read(external / "external.onnx")
    assert refusal.value.code == "outside-folder"


def test_a_hard_link_is_read(external: Path, tmp_path: Path) -> None:
    data = external / "external.onnx.data"
    data.rename(tmp_path / "stored")
    os.link(tmp_path / "stored", data)
    assert len(read(external / "external.onnx")["b"].tobytes()) == 1024


def test_unused_bytes_of_a_data_file_are_found_and_padding_is_not() -> None:
    good = FIXTURES / "good" / "onnx"
    assert read(good / "external.onnx").findings == ()
    (finding,) = read(good / "external_orphans.onnx").findings
    assert finding.code == "bytes-unclaimed"
    assert finding.message.startswith("4096 of 5120 bytes")


def test_tensors_that_share_some_bytes_are_found(tmp_path: Path) -> None:
    (tmp_path / "d").write_bytes(bytes(64))
    tensors = []
    for name, offset in (("a", 0), ("b", 16), ("c", 16), ("d", 48)):
        tensor = TensorProto(name=name, data_type=1, dims=[8 if offset < 48 else 4], data_location=1)
        for key, text in (("location", "d"), ("offset", str(offset))):
            tensor.external_data.add(key=key, value=text)
        tensor.external_data.add(key="length", value=str(32 if offset < 48 else 16))
        tensors.append(tensor)
    graph = read(model(tmp_path / "m.onnx", *tensors))
    assert [(f.code, f.where) for f in graph.findings] == [("tensors-overlap", "b")]
    assert graph.ties() == {"c": "b"}


def test_stated_checksums_are_handed_on(external: Path) -> None:
    model = onnx.load(external / "external.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        if tensor.data_location:
            tensor.external_data.add(key="checksum", value="0" * 40)
    onnx.save(model, external / "m.onnx")
    checksums = read(external / "m.onnx").origin.details["checksums"]
    assert checksums == {str(external / "external.onnx.data"): "0" * 40}
    model.graph.initializer[0].external_data[-1].value = "1" * 40
    onnx.save(model, external / "m.onnx")
    with pytest.raises(CkptError) as refusal:
        read(external / "m.onnx")
    assert refusal.value.code == "onnx-external"


def test_an_error_names_the_file_and_the_tensor() -> None:
    path = FIXTURES / "hostile" / "onnx" / "external_parent.onnx"
    with pytest.raises(CkptError) as refusal:
        read(path)
    assert refusal.value.where == f"{path}: 'w'"


@pytest.mark.parametrize("suffix", ["pb", "onnx", "onnxtxt", "textproto", "json"])
def test_lone_tensors_and_text_forms_are_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"it.{suffix}"
    if suffix in ("pb", "onnx"):
        path.write_bytes(helper.make_tensor("t", 1, [2, 1], [1.0, 2.0]).SerializeToString())
    else:
        onnx.save(onnx.load(FIXTURES / "good" / "onnx" / "ir3.onnx"), path)
    with pytest.raises(CkptError) as refusal:
        ck.read(path)
    assert refusal.value.code == "format-unsupported"
    assert "ONNX" in refusal.value.message


# --- what exporters write


@pytest.mark.parametrize("dynamo", [False, True])
def test_exported_modules_keep_their_weights(tmp_path: Path, dynamo: bool) -> None:
    torch = pytest.importorskip("torch", reason="needs the torch extra")
    if dynamo:
        pytest.importorskip("onnxscript", reason="torch's exporter needs it")
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(288, 5)
    )
    path = tmp_path / "module.onnx"
    torch.onnx.export(module.eval(), (torch.randn(1, 3, 8, 8),), str(path), dynamo=dynamo)
    graph = read(path)
    for name, parameter in module.state_dict().items():
        assert graph[name].tobytes() == parameter.numpy().tobytes(), name
    assert ours(graph) == contents(path)

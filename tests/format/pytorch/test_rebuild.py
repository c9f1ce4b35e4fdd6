"""Every record torch writes for a tensor, against what torch reads from it."""

import collections
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ckptkit as ck
from ckptkit.core.errors import CkptError
from ckptkit.core.options import ReadOptions
from ckptkit.core.storage import MemoryStorage
from ckptkit.core.tensor import Tensor
from ckptkit.format.pytorch import machine
from ckptkit.format.pytorch.assemble import assemble
from ckptkit.format.pytorch.refs import StorageRef, storage_id
from tests.format.pytorch.unpickling import same, saved

torch = pytest.importorskip("torch", reason="needs the torch extra")

pytestmark = pytest.mark.filterwarnings("ignore")

_DTYPES = [
    "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool", "uint16",
    "uint32", "uint64", "complex128", "complex64", "complex32", "float8_e4m3fn", "float8_e5m2",
    "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2",
]  # fmt: skip


def _bits(dtype: str, *shape: int) -> Any:
    """A tensor with all kinds of bits."""
    kind = getattr(torch, dtype)
    if dtype == "bool":
        return torch.arange(int(np.prod(shape))).reshape(shape) % 3 == 0
    count = int(np.prod(shape)) * kind.itemsize
    return ((torch.arange(count) * 37) % 251).to(torch.uint8).view(kind).reshape(shape)


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("dtype", _DTYPES)
def test_dtypes(tmp_path: Path, dtype: str, protocol: int) -> None:
    value = {
        "plain": _bits(dtype, 3, 4),
        "scalar": _bits(dtype),
        "empty": _bits(dtype, 0, 3),
        "row": _bits(dtype, 7),
    }
    found = saved(tmp_path, value, pickle_protocol=protocol)
    for name, tensor in found.tensors.items():
        same(tensor, value[name])
    assert list(found.tensors) == list(value)


_VIEWS: dict[str, Callable[[Any], Any]] = {
    "slice": lambda t: t[1:3],
    "offset": lambda t: t[2],
    "column": lambda t: t[:, 1],
    "stepped": lambda t: t[::2, ::3],
    "transposed": lambda t: t.T,
    "expanded": lambda t: t[:1].expand(5, -1),
    "scalar": lambda t: t[3, 2],
    "empty": lambda t: t[4:],
    "channels last": lambda t: t.reshape(1, 4, 2, 3).contiguous(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("name", _VIEWS)
def test_views(tmp_path: Path, name: str) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    value = {"base": base, "view": _VIEWS[name](base)}
    found = saved(tmp_path, value)
    same(found.tensors["base"], value["base"])
    same(found.tensors["view"], value["view"])


def test_lazy_bits(tmp_path: Path) -> None:
    value = torch.complex(torch.arange(6.0), torch.arange(6.0) - 3)
    bits = {"conj": value.conj(), "neg": value.conj().imag, "both": value.conj().reshape(2, 3).T}
    for name, tensor in bits.items():
        assert tensor.is_conj() or tensor.is_neg()
        same(saved(tmp_path, {name: tensor}).tensors[name], tensor)


def test_ties_and_parameters(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.randn(3, 2))
    value = {
        "a": weight,
        "b": weight,
        "c": weight.data,
        "d": weight.data.T,
        "e": torch.nn.Parameter(weight.data),
    }
    found = saved(tmp_path, value).tensors
    for name, tensor in value.items():
        same(found[name], tensor)
    assert found["a"].storage == found["b"].storage == found["c"].storage == found["e"].storage
    assert found["d"].storage != found["a"].storage
    assert [found[name].kind for name in "abcde"] == ["parameter", "parameter", "", "", "parameter"]


def test_attributes_of_tensors(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.tag = {"a": 1, "extra": torch.zeros(3)}
    tensor = torch.ones(4)
    tensor.note = "x"
    found = saved(tmp_path, {"p": parameter, "t": tensor})
    assert list(found.tensors) == ["p", "t"]
    same(found.tensors["p"], parameter)
    same(found.tensors["t"], tensor)
    leaves = {leaf.path: leaf for leaf in found.objects}
    assert leaves["p.tag.a"].value == 1
    assert leaves["p.tag.extra"].type == "float32[3]"
    assert leaves["t.note"].value == "x"


def test_quantized_per_tensor(tmp_path: Path) -> None:
    weight = torch.quantize_per_tensor(torch.randn(3, 4), 0.1, 7, torch.quint8)
    found = saved(tmp_path, {"w": weight}).tensors
    assert list(found) == ["w", "w.scale", "w.zero_point"]
    assert found["w"].dtype.name == "quint8"
    same(found["w"], weight)
    same(found["w.scale"], torch.tensor(weight.q_scale(), dtype=torch.float64))
    same(found["w.zero_point"], torch.tensor(weight.q_zero_point()))


@pytest.mark.parametrize("dtype", ["qint8", "quint8", "qint32"])
def test_quantized_per_channel(tmp_path: Path, dtype: str) -> None:
    scales, zeros = torch.rand(4, dtype=torch.float64) + 0.1, torch.arange(4)
    weight = torch.quantize_per_channel(torch.randn(3, 4), scales, zeros, 1, getattr(torch, dtype))
    found = saved(tmp_path, {"w": weight}).tensors
    assert list(found) == ["w", "w.scale", "w.zero_point"]
    same(found["w"], weight)
    same(found["w.scale"], weight.q_per_channel_scales())
    same(found["w.zero_point"], weight.q_per_channel_zero_points())
    assert "axis 1" in found["w"].note


def test_sparse(tmp_path: Path) -> None:
    dense = torch.tensor([[0.0, 2.0, 0.0], [1.0, 0.0, 3.0]])
    value = {
        "coo": dense.to_sparse(),
        "csr": dense.to_sparse_csr(),
        "csc": dense.to_sparse_csc(),
        "bsr": torch.eye(4).to_sparse_bsr((2, 2)),
    }
    found = saved(tmp_path, value).tensors
    want = {
        "coo.indices": value["coo"].indices(),
        "coo.values": value["coo"].values(),
        "csr.crow_indices": value["csr"].crow_indices(),
        "csr.col_indices": value["csr"].col_indices(),
        "csr.values": value["csr"].values(),
        "csc.ccol_indices": value["csc"].ccol_indices(),
        "csc.row_indices": value["csc"].row_indices(),
        "csc.values": value["csc"].values(),
        "bsr.crow_indices": value["bsr"].crow_indices(),
        "bsr.col_indices": value["bsr"].col_indices(),
        "bsr.values": value["bsr"].values(),
    }
    assert list(found) == list(want)
    for name, tensor in want.items():
        same(found[name], tensor)
    assert found["coo.values"].note == "sparse COO of 2×3"


def test_nested(tmp_path: Path) -> None:
    parts = [torch.randn(2, 3), torch.randn(4, 3)]
    strided = torch.nested.nested_tensor(parts)
    jagged = torch.nested.nested_tensor(parts, layout=torch.jagged)
    found = saved(tmp_path, {"s": strided, "j": jagged}).tensors
    assert list(found) == ["s.values", "s.sizes", "s.strides", "s.offsets", "j.values", "j.offsets"]
    same(found["s.values"], torch.cat([p.flatten() for p in parts]))
    same(found["j.values"], jagged.values())
    same(found["j.offsets"], jagged.offsets())


def test_tensors_without_data_are_told(tmp_path: Path) -> None:
    found = saved(tmp_path, {"w": torch.ones(2), "m": torch.ones(3, 4, device="meta")})
    assert list(found.tensors) == ["w"]
    (finding,) = found.findings
    assert (finding.code, finding.where) == ("tensor-absent", "m")
    assert "[3, 4]" in finding.message


@pytest.mark.parametrize("kind", ["meta", "uninitialised"])
def test_a_tensor_without_data_is_a_loss(tmp_path: Path, kind: str) -> None:
    absent = torch.ones(2, device="meta") if kind == "meta" else torch.nn.parameter.UninitializedParameter()
    torch.save(
        {"model": {"w": torch.ones(2), "m": absent}, "optimizer": {"x": torch.ones(1)}}, tmp_path / "a.pt"
    )
    for target in ("out.pt", "out.safetensors"):
        with pytest.raises(ck.CkptError) as caught:
            ck.convert(tmp_path / "a.pt", tmp_path / target)
        assert (caught.value.code, caught.value.where) == ("tensor-absent", "model.m")
        ck.convert(tmp_path / "a.pt", tmp_path / target, allow_loss=["tensor-absent"])
        assert list(ck.read(tmp_path / target)) == ["w"]
    ck.convert(tmp_path / "a.pt", tmp_path / "x.safetensors", section="optimizer")


def test_storages_alone(tmp_path: Path) -> None:
    value = torch.arange(5, dtype=torch.int16)
    found = saved(tmp_path, {"typed": value.storage(), "untyped": value.clone().untyped_storage()}).tensors
    same(found["typed"], value)
    same(found["untyped"], value.view(torch.uint8))


def test_a_torch_file_inside_a_pickle(tmp_path: Path) -> None:
    """How storages travel through pickle itself."""
    value = pickle.dumps({"x": torch.arange(6.0).reshape(2, 3)[1:]})
    from tests.format.pytorch.unpickling import legacy

    loaded = machine.load(value)
    found = assemble(loaded.value, ReadOptions(), nested=legacy).tensors
    same(found["x"], torch.arange(6.0).reshape(2, 3)[1:])
    with pytest.raises(CkptError):
        assemble(loaded.value, ReadOptions())


class _Shard(torch.Tensor):
    pass


def test_dtensor(tmp_path: Path) -> None:
    """The file of one of two ranks: its shard with the shape of the whole; what is whole already is plain."""
    if not torch.distributed.is_available():
        pytest.skip("torch without distributed")
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
    from torch.testing._internal.distributed.fake_pg import FakeStore

    local = torch.randn(4, 3)
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        mesh = DeviceMesh("cpu", [0, 1])
        kinds = {"shard": Shard(0), "whole": Replicate(), "sum": Partial()}
        values = {n: DTensor.from_local(local, mesh, [k], run_check=False) for n, k in kinds.items()}
        found = saved(tmp_path, values | {"parameter": torch.nn.Parameter(values["shard"])}).tensors
    finally:
        torch.distributed.destroy_process_group()
    for tensor in found.values():
        same(tensor, local)
    assert {name: (tensor.note, tensor.loss) for name, tensor in found.items()} == {
        "shard": ("local shard of 8×3", "local-shard"),
        "whole": ("", ""),
        "sum": ("local shard of 4×3", "local-shard"),
        "parameter": ("local shard of 8×3", "local-shard"),
    }


def test_unknown_subclasses_are_searched(tmp_path: Path) -> None:
    value = torch.randn(3).as_subclass(_Shard)
    found = saved(tmp_path, {"s": value}).tensors
    same(found["s"], value.as_subclass(torch.Tensor))


def test_wrappers_of_an_unknown_kind_give_their_parts() -> None:
    """As quantisation libraries pickle their weights: numbers and scales as attributes."""
    cls = machine.Global("torchao.quantization", "Weight")
    rebuild = machine.Global("torch._utils", "_rebuild_wrapper_subclass")
    args = (cls, machine.Global("torch", "float32"), (2, 3), (3, 1), 0, None, "cpu", False)
    state = machine.Dict(["qdata", _tensor(), "scale", _tensor(), "bits", 4])
    made = machine.Object(
        machine.Global("torch._tensor", "_rebuild_from_type_v2"), (rebuild, cls, args, state)
    )
    found = assemble(machine.Dict(["w", made]), ReadOptions())
    assert list(found.tensors) == ["w.qdata", "w.scale"]
    leaves = {leaf.path: leaf for leaf in found.objects}
    assert leaves["w"].opaque
    assert leaves["w"].type == "torchao.quantization.Weight"
    assert leaves["w.bits"].value == 4


# numpy


_ARRAYS = st.sampled_from(["?", "i1", "<i2", ">i4", "<i8", "u1", ">u2", "<f2", ">f4", "<f8", "<c8", ">c16"])


@given(_ARRAYS, st.lists(st.integers(0, 4), max_size=3), st.booleans(), st.integers(0, 5), st.data())
def test_numpy_arrays(code: str, shape: list[int], fortran: bool, protocol: int, draw: st.DataObject) -> None:
    dtype = np.dtype(code)
    raw = draw.draw(st.binary(min_size=0, max_size=50)) or b"\0"
    count = int(np.prod(shape)) * dtype.itemsize
    data = (raw * (count // len(raw) + 1))[:count]
    if code == "?":
        data = bytes(byte & 1 for byte in data)
    array = np.frombuffer(data, dtype).reshape(shape)
    value = np.asfortranarray(array) if fortran else array.copy()
    found = assemble(machine.load(pickle.dumps({"x": value}, protocol)).value, ReadOptions())
    tensor = found.tensors["x"]
    assert tensor.shape == value.shape
    assert tensor.dtype.numpy == dtype.newbyteorder("=").name
    assert tensor.tobytes() == array.astype(dtype.newbyteorder("<")).tobytes()


@pytest.mark.parametrize("protocol", range(6))
def test_numpy_scalars_and_what_is_no_number(protocol: int) -> None:
    value = {
        "lr": np.float64(0.25),
        "step": np.int32(-7),
        "ok": np.bool_(True),
        "text": np.array(["a", "bc"]),
        "when": np.array(["2020-01-01"], "M8[D]"),
        "record": np.zeros(2, [("a", "i4")]),
        "objects": np.array([1, "x", None], object),
    }
    found = assemble(machine.load(pickle.dumps(value, protocol)).value, ReadOptions())
    leaves = {leaf.path: leaf for leaf in found.objects}
    assert not found.tensors
    assert (leaves["lr"].type, leaves["lr"].value) == ("numpy.float64", 0.25)
    assert (leaves["step"].type, leaves["step"].value) == ("numpy.int32", -7)
    assert leaves["ok"].value is True
    assert {"text", "when", "record", "objects"} <= set(leaves)


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn"])
def test_ml_dtypes_arrays(name: str) -> None:
    import ml_dtypes

    value = np.arange(6).astype(getattr(ml_dtypes, name)).reshape(2, 3)
    found = assemble(machine.load(pickle.dumps([value], 2)).value, ReadOptions()).tensors["0"]
    assert found.dtype.name == name
    assert found.tobytes() == value.tobytes()


def test_arrays_met_twice_are_tied() -> None:
    value = np.arange(3.0)
    found = assemble(
        machine.load(pickle.dumps({"a": value, "b": value, "c": value.copy()})).value, ReadOptions()
    )
    a, b, c = found.tensors.values()
    assert a.storage == b.storage != c.storage


# Records that no torch wrote


def _tensor(ref: object = None, *, function: str = "_rebuild_tensor_v2", **changes: Any) -> Any:
    """The record of a 2×3 float32 tensor, with changes."""
    if ref is None:
        ref = StorageRef(MemoryStorage(bytes(24), "s"), machine_dtype("float32"), 24)
    args = {
        "ref": ref,
        "start": 0,
        "shape": (2, 3),
        "strides": (3, 1),
        "grad": False,
        "hooks": None,
    } | changes
    return machine.Object(machine.Global("torch._utils", function), tuple(args.values()))


def machine_dtype(name: str) -> Any:
    from ckptkit.core.dtypes import dtype

    return dtype(name)


_BAD: dict[str, Callable[[], Any]] = {
    "no arguments": lambda: machine.Object(machine.Global("torch._utils", "_rebuild_tensor_v2"), ()),
    "storage that is none": lambda: _tensor("key"),
    "storage that is a number": lambda: _tensor(7),
    "start that is a bool": lambda: _tensor(start=True),
    "negative start": lambda: _tensor(start=-1),
    "start past the end": lambda: _tensor(start=1),
    "shape that is a number": lambda: _tensor(shape=6),
    "shape of floats": lambda: _tensor(shape=(2.0, 3)),
    "shape of bools": lambda: _tensor(shape=(True, 3)),
    "negative shape": lambda: _tensor(shape=(-2, -3)),
    "shape of another rank": lambda: _tensor(shape=(6,)),
    "huge shape": lambda: _tensor(shape=(1 << 62, 1 << 62)),
    "stride past the end": lambda: _tensor(strides=(4, 1)),
    "negative stride": lambda: _tensor(strides=(-3, 1)),
    "huge stride": lambda: _tensor(strides=(1 << 63, 1)),
    "ten thousand dimensions": lambda: _tensor(shape=[1] * 10_000, strides=[1] * 10_000),
    "dtype that is none": lambda: _tensor(function="_rebuild_tensor_v3", dtype="float32"),
    "dtype that is unknown": lambda: _tensor(
        function="_rebuild_tensor_v3", dtype=machine.Global("torch", "float7")
    ),
    "dtype of another module": lambda: _tensor(
        function="_rebuild_tensor_v3", dtype=machine.Global("torch.nn", "float32")
    ),
    "conjugate of real numbers": lambda: _tensor(metadata=machine.Dict(["conj", True])),
    "unknown bit": lambda: _tensor(metadata=machine.Dict(["sign", True])),
    "bit that is a number": lambda: _tensor(metadata=machine.Dict(["conj", 1])),
    "parameter of nothing": lambda: machine.Object(
        machine.Global("torch._utils", "_rebuild_parameter"), (None, True, None)
    ),
    "parameter of an object": lambda: machine.Object(
        machine.Global("torch._utils", "_rebuild_parameter"),
        (machine.Object(machine.Global("os", "system"), ()), True, None),
    ),
    "quantised plain numbers": lambda: _tensor(function="_rebuild_qtensor", hooks=(), grad=False, last=None),
    "storage not in the file": lambda: _tensor(StorageRef(None, machine_dtype("float32"), 24)),
}


@pytest.mark.parametrize("name", _BAD)
def test_bad_records(name: str) -> None:
    with pytest.raises(CkptError) as caught:
        assemble(machine.Dict(["layer.weight", _BAD[name]()]), ReadOptions())
    assert caught.value.code in {"tensor-invalid", "view-invalid", "dtype-unknown", "storage-missing"}
    assert caught.value.where == "layer.weight"


def test_endless_wrapping() -> None:
    value = _tensor()
    for _ in range(20_000):
        value = machine.Object(machine.Global("torch._utils", "_rebuild_parameter"), (value, True, None))
    with pytest.raises(CkptError, match="wrapped"):
        assemble(value, ReadOptions())
    size: Any = (2, 3)
    for _ in range(20_000):
        size = machine.Object(machine.Global("torch", "Size"), (size,))
    with pytest.raises(CkptError):
        assemble(_tensor(shape=size), ReadOptions())
    with pytest.raises(CkptError, match="wrapped"):
        assemble(size, ReadOptions())


@pytest.mark.parametrize(
    "pid",
    [
        (),
        "storage",
        ("storage",),
        ("module", machine.Global("torch", "FloatStorage"), "0", "cpu", 1),
        ("storage", "FloatStorage", "0", "cpu", 1),
        ("storage", machine.Global("os", "FloatStorage"), "0", "cpu", 1),
        ("storage", machine.Global("torch", "EvilStorage"), "0", "cpu", 1),
        ("storage", machine.Global("torch", "Float"), "0", "cpu", 1),
        ("storage", machine.Global("torch", "FloatStorage"), None, "cpu", 1),
        ("storage", machine.Global("torch", "FloatStorage"), "0", "cpu", -1),
        ("storage", machine.Global("torch", "FloatStorage"), "0", "cpu", True),
        ("storage", machine.Global("torch", "FloatStorage"), "0", "cpu", 1.0),
        ("storage", machine.Global("torch", "FloatStorage"), "0", "cpu", 1 << 63),
        ("storage", machine.Global("torch", "FloatStorage"), "0", "cpu", 1, ("v", -1, 2)),
        ("storage", machine.Global("torch", "FloatStorage"), "0", "cpu", 1, "v"),
    ],
)
def test_bad_persistent_ids(pid: object) -> None:
    with pytest.raises(CkptError) as caught:
        storage_id(pid)
    assert caught.value.code == "tensor-invalid"


def test_old_tensors() -> None:
    """torch 0.1 to 0.3 made tensors bare and gave them a state."""
    ref = StorageRef(MemoryStorage(np.arange(6, dtype="<f4").tobytes(), "s"), machine_dtype("float32"), 24)
    bare = machine.Object(machine.Global("torch", "FloatTensor"), ())
    bare.state = (ref, 0, (2, 3), (3, 1))
    parameter = machine.Object(machine.Global("torch.nn.parameter", "Parameter"), (bare,))
    parameter.state = (True, False, collections.OrderedDict())
    variable = machine.Object(machine.Global("torch", "Tensor"), ())
    variable.state = (bare, None, None, True, False)
    found = assemble(machine.Dict(["a", bare, "b", parameter, "c", variable]), ReadOptions()).tensors
    for name in "abc":
        same(found[name], torch.arange(6.0).reshape(2, 3))
    assert isinstance(found["a"], Tensor)

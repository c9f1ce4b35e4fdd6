"""TorchScript archives against `torch.jit.load`: element types, lazy bits, sparse parameters."""

from pathlib import Path
from typing import Any

import pytest

import ckptkit as ck
from ckptkit.core.dtypes import DTYPES
from ckptkit.core.storage import MemoryStorage
from ckptkit.format.pytorch.machine import load
from ckptkit.format.pytorch.rebuild import Rebuilder
from ckptkit.format.pytorch.refs import StorageRef
from tests.format.pytorch.unpickling import same

torch = pytest.importorskip("torch", reason="needs the torch extra")

pytestmark = pytest.mark.filterwarnings("ignore")

TYPES = (
    "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2",
    "uint16", "uint32", "uint64", "complex32", "bfloat16", "complex64", "bool",
)  # fmt: skip


class Holder(torch.nn.Module):  # type: ignore[misc]
    def __init__(self, **buffers: Any) -> None:
        super().__init__()
        for name, value in buffers.items():
            self.register_buffer(name, value)

    def forward(self, x: "torch.Tensor") -> "torch.Tensor":
        return x


def scripted(module: Any, tmp_path: Path) -> Path:
    path = tmp_path / "net.pt"
    torch.jit.save(torch.jit.script(module), path)
    return path


@pytest.mark.parametrize("name", TYPES)
def test_every_element_type(tmp_path: Path, name: str) -> None:
    dtype = getattr(torch, name)
    raw = torch.randint(0, 2, (6 * dtype.itemsize,), dtype=torch.uint8)
    path = scripted(Holder(x=raw.view(dtype), rows=raw.view(dtype).reshape(2, 3)[1:]), tmp_path)
    graph = ck.read(path)
    expected = torch.jit.load(path).state_dict()
    assert list(graph) == list(expected)
    for key, tensor in graph.items():
        assert tensor.dtype.torch == name
        assert tensor.tobytes() == bytes(expected[key].contiguous().view(torch.uint8).flatten().tolist())
    if name == "float4_e2m1fn_x2":
        assert {key: t.shape for key, t in graph.items()} == {"x": (12,), "rows": (1, 6)}


def test_lazy_bits_are_applied(tmp_path: Path) -> None:
    lazy = {
        "c": torch.tensor([1 + 2j, 3 - 1j]).conj(),
        "n": torch._neg_view(torch.ones(2)),
        "plain": torch.tensor([1 + 2j]),
    }
    path = scripted(Holder(**lazy), tmp_path)
    graph = ck.read(path)
    assert list(graph) == list(lazy)
    for name, tensor in torch.jit.load(path).state_dict().items():
        same(graph[name], tensor)
        assert graph[name].numpy().tolist() == lazy[name].tolist()


@pytest.mark.parametrize("layout", ["coo", "csr"])
def test_sparse_tensors(tmp_path: Path, layout: str) -> None:
    dense = torch.tensor([[0.0, 2.0, 0.0], [3.0, 0.0, 4.0]])
    made = dense.to_sparse() if layout == "coo" else dense.to_sparse_csr()
    graph = ck.read(scripted(Holder(s=made), tmp_path))
    if layout == "coo":
        parts = {"s.indices": made.coalesce().indices(), "s.values": made.coalesce().values()}
    else:
        parts = {
            "s.crow_indices": made.crow_indices(),
            "s.col_indices": made.col_indices(),
            "s.values": made.values(),
        }
    assert list(graph) == list(parts)
    for name, tensor in parts.items():
        same(graph[name], tensor)
        assert graph[name].loss == "sparse-as-parts"
        assert "2×3" in graph[name].note


def test_tagged_containers_are_the_containers(tmp_path: Path) -> None:
    class Tagged(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.table = {"a": torch.ones(2)}
            self.names = {"b": 3}

        def forward(self, x: "torch.Tensor") -> "torch.Tensor":
            return x + self.table["a"] + self.names["b"]

    graph = ck.read(scripted(Tagged(), tmp_path), section="all")
    assert list(graph) == ["table.a"]
    assert {leaf.path: leaf.value for leaf in graph.objects}["names.b"] == 3
    assert not any(leaf.opaque for leaf in graph.objects if leaf.path)


@pytest.mark.parametrize(
    "metadata", [b"K\x01", b"K\x00", b"\x89", b")", b"]", b"}(K\x01\x88u", b"}(X\x01\0\0\0x\x88u"]
)
def test_metadata_that_is_no_dict_of_bits_is_refused(metadata: bytes) -> None:
    """It would say that the numbers stored are not those meant, so it is never passed over."""
    storage = b"X\x01\0\0\0sQ"
    data = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00K\x01\x85K\x01\x85\x89N"
    ref = StorageRef(MemoryStorage(bytes(4), 1), DTYPES["float32"], 4)
    value = load(data + metadata + b"tR.", persistent=lambda _: ref).value
    with pytest.raises(ck.CkptError) as caught:
        Rebuilder().rebuild(value)
    assert caught.value.code == "tensor-invalid"

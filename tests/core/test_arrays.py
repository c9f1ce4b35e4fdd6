"""Tensors as numpy arrays: mapped or gathered, every dtype, the values of the reference libraries."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ckptkit.core.arrays import numpy_dtype, pack, unpack
from ckptkit.core.dtypes import DTYPES, dtype
from ckptkit.core.errors import CkptError
from ckptkit.core.files import File
from ckptkit.core.storage import FileStorage, MemoryStorage
from ckptkit.core.tensor import Tensor
from ckptkit.core.views import view

HELD = [d.name for d in DTYPES.values() if d.numpy]
PACKED = [d.name for d in DTYPES.values() if d.bits % 8]


def stored(path: Path, data: bytes, name: str, shape: tuple[int, ...], offset: int = 0) -> Tensor:
    path.write_bytes(b"x" * offset + data)
    return Tensor(dtype(name), shape, File.at(path), offset)


@pytest.mark.parametrize("offset", [0, 1, 3, 8])
@pytest.mark.parametrize("name", HELD)
def test_plain_tensors_of_every_type(tmp_path: Path, name: str, offset: int) -> None:
    """Also at odd offsets, which legacy files and some safetensors have."""
    element = dtype(name)
    data = np.random.default_rng(5).bytes(element.nbytes(24))
    if element.kind == "bool":
        data = bytes(b & 1 for b in data)
    array = stored(tmp_path / "f", data, name, (2, 3, 4), offset).numpy()
    assert array.shape == (2, 3, 4)
    assert array.dtype == numpy_dtype(element)
    assert not array.flags.writeable
    assert pack(array, element) == data
    with np.errstate(all="ignore"):
        wide = array.astype(np.complex128 if element.kind == "complex" else np.float64)
    aligned = unpack(data, element, 24).reshape(2, 3, 4)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(wide, aligned.astype(wide.dtype))


@pytest.mark.parametrize(
    "name", [d.name for d in DTYPES.values() if d.torch and d.kind == "float" and d.bits >= 8]
)
def test_values_are_those_of_torch(tmp_path: Path, name: str) -> None:
    torch = pytest.importorskip("torch", reason="needs the torch extra")
    data = np.random.default_rng(5).bytes(4096)
    ours = stored(tmp_path / "f", data, name, (4096 * 8 // dtype(name).bits,)).numpy()
    theirs = torch.frombuffer(bytearray(data), dtype=getattr(torch, name))
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(ours.astype(np.float64), theirs.to(torch.float64).numpy())


@pytest.mark.parametrize("name", HELD)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1, 1)])
def test_scalars_and_empty_tensors(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    data = bytes(dtype(name).nbytes(int(np.prod(shape))))
    array = stored(tmp_path / "f", data, name, shape, 5).numpy()
    assert (array.shape, array.dtype) == (shape, numpy_dtype(dtype(name)))
    assert not array.flags.writeable


def test_gathered_views(tmp_path: Path) -> None:
    matrix = np.arange(12, dtype=np.float32).reshape(3, 4)
    (tmp_path / "f").write_bytes(matrix.tobytes())
    tensor = view(FileStorage(File.at(tmp_path / "f"), 0, 48), dtype("float32"), (4, 3), (1, 4), 0)
    array = tensor.numpy()
    np.testing.assert_array_equal(array, matrix.T)
    assert not array.flags.writeable


def test_bools_that_are_neither_are_shown_as_stored(tmp_path: Path) -> None:
    """A numpy bool of another byte than 0 or 1 has no defined meaning."""
    good = stored(tmp_path / "good", b"\0\1\1", "bool", (3,)).numpy()
    assert good.dtype == np.bool_
    assert good.tolist() == [False, True, True]
    odd = stored(tmp_path / "odd", b"\0\2\1\xff", "bool", (2, 2)).numpy()
    assert odd.dtype == np.uint8
    assert odd.tolist() == [[0, 2], [1, 255]]
    gathered = view(MemoryStorage(b"\0\2\1\xff", "m"), dtype("bool"), (2, 2), (1, 2), 0).numpy()
    assert gathered.tolist() == [[0, 1], [2, 255]]
    assert view(MemoryStorage(b"\0\1\1\0", "m"), dtype("bool"), (2, 2), (1, 2), 0).numpy().dtype == np.bool_


@given(data=st.data(), name=st.sampled_from(PACKED))
def test_packing_and_unpacking_are_inverse(data: st.DataObject, name: str) -> None:
    element = dtype(name)
    bits = data.draw(arrays(np.uint8, st.integers(0, 50), elements=st.integers(0, (1 << element.bits) - 1)))
    values = unpack(pack(bits, element), element, len(bits))
    assert values.dtype == numpy_dtype(element)
    np.testing.assert_array_equal(values.view(np.uint8) & ((1 << element.bits) - 1), bits)
    # lowest bits first, as one long little-endian number
    number = sum(int(b) << (element.bits * i) for i, b in enumerate(bits))
    assert pack(bits, element) == number.to_bytes(element.nbytes(len(bits)), "little")


def test_signed_packed_values() -> None:
    assert unpack(b"\x8f\x07", dtype("int4"), 3).astype(int).tolist() == [-1, -8, 7]
    assert unpack(b"\xe4", dtype("int2"), 4).astype(int).tolist() == [0, 1, -2, -1]
    assert unpack(b"\xf2", dtype("float4_e2m1fn"), 2).astype(float).tolist() == [1.0, -6.0]
    assert pack(np.array([-1, -8, 7], ml_dtypes.int4), dtype("int4")) == b"\x8f\x07"


def test_one_map_for_many_arrays(tmp_path: Path) -> None:
    """A process has a limited number of maps; a checkpoint may have more tensors."""
    path = tmp_path / "f"
    path.write_bytes(bytes(1000))
    file = File.at(path)
    held = [Tensor(dtype("uint8"), (1,), file, i).numpy() for i in range(1000)]
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert maps.read_text().count(str(path)) == 1
    del held


def test_refusals(tmp_path: Path) -> None:
    for name in ("complex32", "string"):
        with pytest.raises(CkptError) as caught:
            Tensor(dtype(name), (1,), File.at(__file__), 0).numpy()
        assert caught.value.code == "dtype-unsupported"
    with pytest.raises(CkptError) as caught:
        stored(tmp_path / "f", b"x", "uint8", (1,) * 65).numpy()
    assert caught.value.code == "shape-unsupported"
    assert stored(tmp_path / "f", b"x", "uint8", (1,) * 64).numpy().ndim == 64
    tensor = stored(tmp_path / "g", b"xyz", "uint8", (3,))
    (tmp_path / "g").write_bytes(b"x")
    with pytest.raises(CkptError) as caught:
        tensor.numpy()
    assert caught.value.code == "changed-on-disk"
    past_the_end = Tensor(dtype("uint8"), (30,), File.at(tmp_path / "g"), 0)
    with pytest.raises(CkptError) as caught:
        past_the_end.numpy()
    assert caught.value.code == "truncated"

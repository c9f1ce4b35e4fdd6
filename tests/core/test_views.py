"""Strided views give, bit for bit, what torch shows through the same strides."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptkit.core import views
from ckptkit.core.dtypes import DTYPES, dtype
from ckptkit.core.errors import CkptError
from ckptkit.core.files import File
from ckptkit.core.storage import FileStorage, MemoryStorage
from ckptkit.core.tensor import Tensor
from ckptkit.core.views import view

ELEMENTS = 4000
BYTE_WIDE = [d.name for d in DTYPES.values() if d.bits >= 8]


Geometry = tuple[tuple[int, ...], tuple[int, ...], int]


class Stored:
    """A file of random bytes, 16 per element, that begin at an odd offset."""

    def __init__(self, path: Path, data: bytes) -> None:
        self.path = path
        self.data = data

    def __repr__(self) -> str:
        return "stored"

    def storage(self, nbytes: int) -> FileStorage:
        return FileStorage(File.at(self.path), 3, nbytes)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    path = tmp_path_factory.mktemp("views") / "storage"
    data = np.random.default_rng(1).bytes(ELEMENTS * 16)
    path.write_bytes(b"odd" + data)
    return Stored(path, data)


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    """Shape, strides and start of any view of ELEMENTS elements: permuted, sliced, expanded, overlapping."""
    rank = draw(st.integers(0, 5))
    shape: list[int] = []
    strides: list[int] = []
    room = ELEMENTS - 1
    for _ in range(rank):
        n = draw(st.one_of(st.integers(0, 4), st.integers(1, 40)))
        most = room // max(n - 1, 1)
        stride = draw(st.one_of(st.integers(0, min(most, 8)), st.integers(0, most)))
        room -= max(n - 1, 0) * stride
        shape.append(n)
        strides.append(stride)
    start = draw(st.integers(0, room))
    order = draw(st.permutations(range(rank)))
    return tuple(shape[i] for i in order), tuple(strides[i] for i in order), start


@st.composite
def usual_geometries(draw: st.DrawFn) -> Geometry:
    """What people save: a contiguous block, sliced, transposed, or with channels last."""
    full = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4).filter(lambda s: np.prod(s) <= ELEMENTS))
    strides = [int(np.prod(full[i + 1 :])) for i in range(len(full))]
    shape = [draw(st.integers(1, n)) for n in full]
    order = draw(st.permutations(range(len(full))))
    start = sum((n - m) * s for n, m, s in zip(full, shape, strides, strict=True))
    return tuple(shape[i] for i in order), tuple(strides[i] for i in order), start


def expected(data: bytes, name: str, shape: tuple[int, ...], strides: tuple[int, ...], start: int) -> bytes:
    """The view's bytes by torch (by way of an integer type of the same width, which moves any bits)."""
    torch = pytest.importorskip("torch", reason="needs the torch extra")
    width = dtype(name).bits // 8
    moved = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}[width]
    base = torch.frombuffer(bytearray(data[: ELEMENTS * width]), dtype=moved)
    found = torch.as_strided(base, shape, strides, start).contiguous()
    return found.numpy().tobytes()


def collect(tensor: Tensor, limit: int) -> bytes:
    """All bytes by chunks of at most `limit`, with the promises about chunks and memory checked."""
    unit = max(1, tensor.dtype.bits // 8)
    chunks = [bytes(chunk) for chunk in tensor.chunks(limit)]
    assert all(0 < len(chunk) <= max(limit, unit) and len(chunk) % unit == 0 for chunk in chunks)
    if chunks:
        assert max(map(len, chunks)) <= max(tensor.memory(limit), unit)
    return b"".join(chunks)


@given(
    geometry=st.one_of(geometries(), usual_geometries()),
    name=st.sampled_from(BYTE_WIDE),
    limit=st.one_of(st.integers(1, 100), st.integers(1, 100_000)),
    in_memory=st.booleans(),
)
def test_equals_torch(
    stored: Stored,
    geometry: Geometry,
    name: str,
    limit: int,
    in_memory: bool,
) -> None:
    nbytes = ELEMENTS * (dtype(name).bits // 8)
    storage = MemoryStorage(stored.data[:nbytes], "m") if in_memory else stored.storage(nbytes)
    tensor = view(storage, dtype(name), *geometry)
    assert collect(tensor, limit) == expected(stored.data, name, *geometry)


@given(
    geometry=st.one_of(geometries(), usual_geometries()),
    limit=st.integers(1, 3000),
    window=st.integers(1, 750).map(lambda n: 4 * n),
    scratch=st.integers(16, 3000),
    gap=st.integers(0, 300),
)
def test_equals_torch_whatever_the_sizes_of_buffers(
    stored: Stored,
    geometry: Geometry,
    limit: int,
    window: int,
    scratch: int,
    gap: int,
) -> None:
    """Small buffers take the roads that otherwise only tensors of many megabytes take."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(views, "WINDOW", window)
        patch.setattr(views, "SCRATCH", scratch)
        patch.setattr(views, "GAP", gap)
        tensor = view(stored.storage(ELEMENTS * 4), dtype("float32"), *geometry)
        assert collect(tensor, limit) == expected(stored.data, "float32", *geometry)


LAZY = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8"]
COMPLEX = ["complex128", "complex64", "complex32"]


@pytest.mark.filterwarnings("ignore:ComplexHalf support")
@given(
    geometry=geometries(),
    name=st.sampled_from([*LAZY, *COMPLEX]),
    conj=st.booleans(),
    neg=st.booleans(),
    limit=st.integers(1, 5000),
)
def test_lazy_bits_equal_torch(
    stored: Stored,
    geometry: Geometry,
    name: str,
    conj: bool,
    neg: bool,
    limit: int,
) -> None:
    torch = pytest.importorskip("torch", reason="needs the torch extra")
    conj = conj and name in COMPLEX
    element = dtype(name)
    tensor = view(stored.storage(ELEMENTS * element.bits // 8), element, *geometry, conj=conj, neg=neg)
    result = collect(tensor, limit)
    plain = bytearray(expected(stored.data, name, *geometry))
    if not plain:
        assert not result
        return
    values = torch.frombuffer(plain, dtype=getattr(torch, name))
    values = values.conj().resolve_conj() if conj else values  # one by one: complex32 cannot do both at once
    values = torch._neg_view(values).resolve_neg() if neg else values
    if element.kind in ("int", "uint"):
        assert result == values.numpy().tobytes()
        return
    # Only signs may change. torch gives the same values, but it makes signalling NaN of 16 bits quiet.
    numbers = np.frombuffer(plain, f"u{element.parts}").reshape(-1, 2 if name in COMPLEX else 1).copy()
    sign = numbers.dtype.type(1 << (8 * element.parts - 1))
    numbers[:, 0] ^= sign * neg
    numbers[:, 1:] ^= sign * (neg != conj)
    assert result == numbers.tobytes()
    ours = torch.frombuffer(bytearray(result), dtype=values.dtype)
    if name in COMPLEX:
        ours, values = torch.view_as_real(ours), torch.view_as_real(values)
    assert torch.equal(ours.isnan(), values.isnan())
    assert torch.equal(ours.nan_to_num(7), values.nan_to_num(7))


@given(geometry=geometries(), name=st.sampled_from(BYTE_WIDE), limit=st.integers(1, 5000))
def test_big_endian_is_swapped_per_number(
    stored: Stored,
    geometry: Geometry,
    name: str,
    limit: int,
) -> None:
    element = dtype(name)
    nbytes = ELEMENTS * (element.bits // 8)
    little = np.frombuffer(stored.data[:nbytes], f">u{element.parts}").astype(f"<u{element.parts}").tobytes()
    tensor = view(stored.storage(nbytes), element, *geometry, swap=True)
    assert collect(tensor, limit) == expected(little, name, *geometry)


def test_contiguous_views_are_plain(stored: Stored) -> None:
    file = File.at(stored.path)
    tensor = view(
        FileStorage(file, 3, 4000), dtype("float32"), (2, 1, 3), (3, 77, 1), 5, kind="buffer", note="x"
    )
    assert (tensor.source, tensor.file, tensor.offset) == (None, file, 23)
    assert (tensor.shape, tensor.kind, tensor.note) == ((2, 1, 3), "buffer", "x")


def test_ties(stored: Stored) -> None:
    """Same elements, same layout: tied, however sizes of one are strided; a transposed twin is not."""
    storage = stored.storage(4000)
    f32 = dtype("float32")
    one, two = (view(storage, f32, (4, 1, 3), (1, s, 4), 0) for s in (7, 1))
    other = view(storage, f32, (4, 1, 3), (3, 3, 1), 0)
    assert one.storage == two.storage
    assert one.storage != other.storage
    assert view(storage, f32, (4, 1, 3), (1, 7, 4), 1).storage != one.storage


def test_extents_are_the_span(stored: Stored) -> None:
    file = File.at(stored.path)
    tensor = view(FileStorage(file, 3, 4000), dtype("float32"), (3, 2), (1, 100), 10)
    assert tensor.extents == ((file, 43, 412),)


def test_sources_are_picklable(stored: Stored) -> None:
    tensor = view(stored.storage(4000), dtype("float32"), (3, 2), (1, 3), 0)
    assert pickle.loads(pickle.dumps(tensor)).tobytes() == tensor.tobytes()


def test_absurd_expansion_costs_nothing(stored: Stored) -> None:
    tensor = view(stored.storage(4), dtype("float32"), (1 << 40, 3), (0, 0), 0)
    first = bytes(next(iter(tensor.chunks(1 << 20))))
    assert first == stored.data[:4] * (1 << 18)
    assert tensor.memory(1 << 20) < 64 << 20


@pytest.mark.parametrize("name", ["uint4", "int2", "float4_e2m1fn"])
def test_packed_elements_move_as_bytes(stored: Stored, name: str) -> None:
    per = 8 // dtype(name).bits
    storage = stored.storage(100)
    rows = view(storage, dtype(name), (5, 2 * per), (10 * per, 1), 3 * per)
    data = stored.data
    assert rows.tobytes() == b"".join(data[3 + 10 * i :][:2] for i in range(5))
    odd = view(storage, dtype(name), (2 * per + 1,), (1,), 0)
    assert odd.tobytes() == data[:3]
    for shape, strides, start in [((2 * per, 5), (1, 10 * per), 0), ((4,), (1,), 1), ((5, 1), (per, 1), 0)]:
        with pytest.raises(CkptError) as caught:
            view(storage, dtype(name), shape, strides, start)
        assert caught.value.code == "dtype-unsupported"


DEEP: list[object] = []
for _ in range(100_000):
    DEEP = [DEEP]

HOSTILE = {
    "bool size": ((True,), (1,), 0),
    "float size": ((1.0,), (1,), 0),
    "bool stride": ((1,), (True,), 0),
    "None stride": ((1,), (None,), 0),
    "bool start": ((1,), (1,), False),
    "negative size": ((-1,), (1,), 0),
    "negative stride": ((2,), (-1,), 1),
    "negative start": ((1,), (1,), -1),
    "more strides": ((1,), (1, 1), 0),
    "fewer strides": ((1, 1), (1,), 0),
    "one past the end": ((1001,), (1,), 0),
    "start past the end": ((), (), 1000),
    "stride past the end": ((2, 2), (999, 1), 0),
    "2^63 elements": ((1 << 62, 2), (0, 0), 0),
    "size of 2^63 beside 0": ((0, 1 << 63), (1, 1), 0),
    "huge integers": ((1 << 100_000,), (1 << 100_000,), 1 << 100_000),
    "a nested list": ((DEEP,), (1,), 0),
    "a million dimensions": ((1 << 62,) * 1_000_000, (0,) * 1_000_000, 0),
    "4300 digits": ((2, 1 << 20_000), (1, 1), 0),
}


@pytest.mark.parametrize("geometry", HOSTILE.values(), ids=HOSTILE)
def test_impossible_views_are_refused(stored: Stored, geometry: tuple[object, object, object]) -> None:
    storage = stored.storage(4000)
    with pytest.raises(CkptError) as caught:
        view(storage, dtype("float32"), *geometry)  # type: ignore[arg-type]
    assert caught.value.code == "view-invalid"
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("name", "bits"), [("float32", "conj"), ("bool", "neg"), ("uint16", "neg"), ("float8_e5m2", "neg")]
)
def test_bits_that_torch_refuses_are_refused(stored: Stored, name: str, bits: str) -> None:
    with pytest.raises(CkptError) as caught:
        view(stored.storage(4000), dtype(name), (2,), (1,), 0, **{bits: True})  # type: ignore[arg-type]
    assert caught.value.code == "view-invalid"


def test_a_large_transposed_tensor_stays_within_its_stated_memory(tmp_path: Path) -> None:
    """What is held is far below the tensor, and each run of the file is not read again for each row."""
    rows, columns = 6000, 4000
    path = tmp_path / "large"
    matrix = np.arange(rows * columns, dtype=np.uint32).reshape(rows, columns)
    path.write_bytes(matrix.tobytes())
    tensor = view(
        FileStorage(File.at(path), 0, matrix.nbytes), dtype("uint32"), (columns, rows), (1, columns), 0
    )
    assert tensor.memory() < 64 << 20
    at = 0
    expect = np.ascontiguousarray(matrix.T).view(np.uint8).reshape(-1)
    for chunk in tensor.chunks():
        assert np.array_equal(np.frombuffer(chunk, np.uint8), expect[at : at + len(chunk)])
        at += len(chunk)
    assert at == matrix.nbytes

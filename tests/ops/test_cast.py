"""Casts equal torch bit for bit, NaN apart, and count what overflows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptkit.core.dtypes import dtype
from ckptkit.core.errors import CkptError
from ckptkit.core.storage import MemoryStorage
from ckptkit.core.tensor import Tally, Tensor
from ckptkit.core.views import view
from ckptkit.ops.cast import cast

SOURCES = ["float64", "float32", "float16", "bfloat16"]
TARGETS = [*SOURCES, "float8_e4m3fn", "float8_e5m2"]
PAIRS = [(a, b) for a in SOURCES for b in TARGETS if a != b]

NAN = {
    "float64": 0x7FF8000000000000,
    "float32": 0x7FC00000,
    "float16": 0x7E00,
    "bfloat16": 0x7FC0,
    "float8_e4m3fn": 0x7F,
    "float8_e5m2": 0x7F,
}


def tensor(bits: np.ndarray, name: str) -> Tensor:
    """A tensor of that type from bit patterns."""
    storage = MemoryStorage(bits.tobytes(), "test")
    return view(storage, dtype(name), bits.shape, (1,), 0)


def edges(width: int) -> np.ndarray:
    """Bit patterns around every boundary: powers of two, halves, all ones, zeros, infinities, NaN."""
    u = {4: np.uint32, 8: np.uint64}[width]
    mantissa = {4: 23, 8: 52}[width]
    exponents = np.arange(1 << (width * 8 - 1 - mantissa), dtype=u) << u(mantissa)
    tops = np.concatenate([np.arange(64, dtype=u) << u(mantissa - 6), u(1) << np.arange(mantissa, dtype=u)])
    near = np.array([0, 1, 2, -1, -2], np.int64).astype(u)
    grid = (exponents[:, None, None] + tops[None, :, None] + near[None, None, :]).ravel()
    grid &= u((1 << (width * 8 - 1)) - 1)
    return np.concatenate([grid, grid | (u(1) << u(width * 8 - 1))])


def patterns(name: str) -> np.ndarray:
    width = dtype(name).bits // 8
    if width == 2:
        return np.arange(1 << 16, dtype=np.uint16)
    rng = np.random.default_rng(7)
    u = {4: np.uint32, 8: np.uint64}[width]
    anything = rng.integers(0, 1 << (8 * width), 1 << 18, dtype=u, endpoint=False)
    values = rng.standard_normal(1 << 17) * 2.0 ** rng.uniform(-30, 20, 1 << 17)
    common = values.astype({4: np.float32, 8: np.float64}[width]).view(u)
    # doubles that lie between two floats, where rounding twice differs from rounding once
    singles = rng.integers(0, 1 << 32, 1 << 17, dtype=np.uint32).view(np.float32)
    with np.errstate(all="ignore"):
        between = (singles.astype(np.float64) * (1 + 2.0**-25)).astype(values.dtype) if width == 8 else values
    return np.concatenate(
        [edges(width), anything, common, between.astype(common.dtype.str.replace("u", "f")).view(u)]
    )


def by_torch(bits: np.ndarray, source: str, target: str) -> tuple[np.ndarray, np.ndarray]:
    """What torch makes of these patterns, with NaN in our form; and which of the values are NaN."""
    torch = pytest.importorskip("torch", reason="needs the torch extra")
    values = torch.from_numpy(bits.copy()).view(getattr(torch, source))
    width = dtype(target).bits // 8
    out = values.to(getattr(torch, target)).view(torch.uint8).numpy().view(f"u{width}").copy()
    nan = values.isnan().numpy()
    out[nan] = NAN[target]
    return out, nan


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_equals_torch(source: str, target: str) -> None:
    bits = patterns(source)
    expected, _ = by_torch(bits, source, target)
    result = np.frombuffer(cast(tensor(bits, source), dtype(target)).tobytes(), expected.dtype)
    wrong = np.flatnonzero(result != expected)
    assert not len(wrong), [(hex(bits[i]), hex(result[i]), hex(expected[i])) for i in wrong[:5]]


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_counts_overflow(source: str, target: str) -> None:
    torch = pytest.importorskip("torch", reason="needs the torch extra")
    bits = patterns(source)
    values = torch.from_numpy(bits.copy()).view(getattr(torch, source))
    if target == "float8_e4m3fn":  # everything beyond the greatest value's half step, infinities included
        lost = (values.double().float().abs() > 464) & ~values.isnan()
    else:
        lost = values.to(getattr(torch, target)).float().isinf() & ~values.isinf()
        if target == "float64":
            lost[:] = False
    tally = Tally()
    for _ in cast(tensor(bits, source), dtype(target)).chunks(1 << 20, tally):
        pass
    assert tally.counts.get("overflow", 0) == int(lost.sum())


@given(st.sampled_from(PAIRS), st.integers(0, 300), st.integers(1, 200), st.integers(0, 2**32 - 1))
def test_any_chunk_limit_gives_the_same_bytes(
    pair: tuple[str, str], count: int, limit: int, seed: int
) -> None:
    source, target = pair
    width = dtype(source).bits // 8
    bits = np.random.default_rng(seed).integers(0, 256, count * width, dtype=np.uint8).view(f"u{width}")
    result = cast(tensor(bits, source), dtype(target))
    chunks = [bytes(chunk) for chunk in result.chunks(limit)]
    unit = result.dtype.bits // 8
    assert b"".join(chunks) == result.tobytes()
    assert all(0 < len(chunk) <= max(limit, unit) and len(chunk) % unit == 0 for chunk in chunks)
    assert len(result.tobytes()) == count * unit


def test_same_dtype_is_the_same_tensor() -> None:
    plain = tensor(np.zeros(3, np.uint16), "bfloat16")
    assert cast(plain, dtype("bfloat16")) is plain


def test_ties_survive() -> None:
    bits = np.zeros(3, np.uint16)
    one, two = (cast(tensor(bits, "bfloat16"), dtype("float32")) for _ in range(2))
    assert one.storage == two.storage
    assert one.storage != cast(tensor(bits, "bfloat16"), dtype("float64")).storage


@pytest.mark.parametrize(
    ("source", "target"), [("int8", "float32"), ("float32", "int8"), ("float8_e5m2", "float16")]
)
def test_other_types_are_refused(source: str, target: str) -> None:
    bits = np.zeros(4, f"u{dtype(source).bits // 8}")
    with pytest.raises(CkptError) as caught:
        cast(tensor(bits, source), dtype(target))
    assert caught.value.code == "dtype-unsupported"


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_unaligned_bytes(source: str, target: str) -> None:
    """In memory, as in files, numbers need not lie at multiples of their size."""
    bits = patterns(source)[: 1 << 17]
    storage = MemoryStorage(memoryview(b"x" + bits.tobytes())[1:], "odd")
    odd = cast(view(storage, dtype(source), bits.shape, (1,), 0), dtype(target))
    assert odd.tobytes() == cast(tensor(bits, source), dtype(target)).tobytes()

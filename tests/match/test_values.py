"""Distances of values against numpy in float64 and exact integers, for every dtype and however chunks fall."""

import math
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptkit.core.arrays import pack
from ckptkit.core.dtypes import DTYPES
from ckptkit.core.errors import CkptError
from ckptkit.core.storage import MemoryStorage
from ckptkit.core.tensor import Tensor
from ckptkit.core.views import View
from ckptkit.match.values import Tolerance, Values, comparable, distance

Array = np.ndarray[Any, Any]


def tensor(array: Array, dtype: str = "") -> Tensor:
    """A tensor over bytes in memory."""
    kind = DTYPES[dtype or array.dtype.name]
    data = pack(array, kind)
    source = View(MemoryStorage(data, object()), kind, ((array.size, 1),), 0, False, False, False)
    if kind.bits & 7:
        whole = DTYPES["uint8"]
        source = View(MemoryStorage(data, object()), whole, ((len(data), 1),), 0, False, False, False)
    return Tensor(kind, array.shape, source=source)


def measured(a: Array, b: Array, tolerance: Tolerance | None = None) -> Values:
    found = distance(tensor(a), tensor(b), tolerance)
    assert found is not None
    return found


FLOATS = ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("size", [1, 7, 16384, 40_000])
def test_floats_are_measured_as_numpy_does(dtype: str, size: int) -> None:
    rng = np.random.default_rng(size)
    kind = np.dtype(getattr(ml_dtypes, dtype, None) or dtype)
    a = rng.standard_normal(size).astype(kind)
    b = np.where(rng.random(size) < 0.3, a.astype(np.float64) * 1.5 + 0.1, a.astype(np.float64)).astype(kind)
    x, y = a.astype(np.float64), b.astype(np.float64)
    found = measured(a, b)
    assert found.size == size
    assert found.changed == np.count_nonzero(x != y)
    assert found.max_abs == np.abs(y - x).max()
    larger = np.maximum(np.maximum(np.abs(x), np.abs(y)), 5e-324)
    assert found.max_rel == (np.abs(y - x) / larger).max()
    assert found.rms == pytest.approx(math.sqrt(np.square(y - x).mean()))
    assert found.cosine == pytest.approx(float(x @ y / np.linalg.norm(x) / np.linalg.norm(y)), abs=1e-12)
    assert (found.nan, found.inf, found.outside) == ((0, 0), (0, 0), None)


def test_a_change_anywhere_is_found_and_it_alone() -> None:
    a = np.zeros(100_000, np.float32)
    for place in (0, 16_383, 16_384, 99_999):
        b = a.copy()
        b[place] = 0.5
        found = measured(a, b)
        assert (found.changed, found.max_abs, found.max_rel) == (1, 0.5, 1.0)
        assert found.cosine is None  # a vector of zeros has no direction


def test_not_finite_elements_are_counted_and_keep_out_of_distances() -> None:
    a = np.array([1, np.nan, np.inf, 2, -np.inf, np.nan], np.float32)
    b = np.array([1, 5, np.inf, np.nan, np.inf, np.nan], np.float32)
    found = measured(a, b)
    assert (found.nan, found.inf) == ((2, 2), (2, 2))
    assert (found.changed, found.max_abs, found.rms) == (3, 0.0, 0.0)
    assert found.cosine == 1.0


def test_bits_count_where_dtypes_are_equal() -> None:
    a = np.array([0.0, 1.0], np.float32)
    assert measured(a, np.array([-0.0, 1.0], np.float32)).changed == 1
    payloads = np.array([0x7FC00000, 0x7FC00001], np.uint32).view(np.float32)
    assert measured(payloads[:1], payloads[1:]).changed == 1
    bools = [Tensor(DTYPES["bool"], (1,), source=tensor(np.array([v], np.uint8)).source) for v in (1, 2)]
    found = distance(*bools)
    assert found is not None
    assert (found.changed, found.max_abs) == (1, 1.0)


@given(st.data())
def test_integers_of_64_bits_are_exact(data: st.DataObject) -> None:
    kinds = [data.draw(st.sampled_from(["int64", "uint64", "int32", "float64", "float32"])) for _ in range(2)]
    arrays = []
    for kind in kinds:
        if kind.startswith("float"):
            numbers: list[Any] = data.draw(
                st.lists(st.floats(width=32, allow_nan=False), min_size=3, max_size=3)
            )
            numbers[0] = 2.0**53
        else:
            info = np.iinfo(kind)
            numbers = data.draw(st.lists(st.integers(int(info.min), int(info.max)), min_size=3, max_size=3))
            numbers[0] = min(2**53 + 1, int(info.max))
        arrays.append(np.array(numbers, kind))
    a, b = arrays
    if kinds[0] == kinds[1] and kinds[0].startswith("float"):
        return
    with np.errstate(over="ignore"):
        found = measured(a, b)
    pairs = [(x.item(), y.item()) for x, y in zip(a, b, strict=True)]
    signed = all(kind.startswith("float") for kind in kinds)  # a zero of the other sign is another value
    other = [x != y or (signed and math.copysign(1, x) != math.copysign(1, y)) for x, y in pairs]
    assert found.changed == sum(other)
    finite = [(x, y) for x, y in pairs if math.isfinite(x) and math.isfinite(y)]
    exact = max((abs(Fraction(y) - Fraction(x)) for x, y in finite), default=0)
    assert found.max_abs == pytest.approx(float(exact), rel=1e-9, abs=2048.0 if kinds[0] != kinds[1] else 0.0)


def test_the_nearest_of_large_integers_differ_by_one() -> None:
    a = np.array([2**62, -(2**63)], np.int64)
    found = measured(a, np.array([2**62 + 1, 2**63 - 1], np.int64))
    assert (found.changed, found.max_abs) == (2, float(2**64 - 1))
    assert measured(a[:1], a[:1] + 1).max_abs == 1.0


@pytest.mark.parametrize(
    ("narrow", "wide"),
    [("float16", "float32"), ("bfloat16", "float64"), ("int8", "float16"), ("int32", "int64"), ("int4", "int8"),
     ("float4_e2m1fn", "float32"), ("float6_e3m2fn", "float32"), ("uint2", "int64"), ("complex64", "complex128"),
     ("float32", "complex64"), ("uint8", "bool")],
)  # fmt: skip
def test_widening_changes_no_value(narrow: str, wide: str) -> None:
    def array(dtype: str) -> Array:
        kind = np.dtype(getattr(ml_dtypes, dtype, None) or dtype.replace("bool", "uint8"))
        return np.array([0, 1, 1, 0, 1], np.float32).astype(kind)

    a, b = tensor(array(narrow), narrow), tensor(array(wide), wide)
    found = distance(a, b)
    assert found is not None
    assert found.equal
    assert (found.size, found.changed, found.max_abs, found.cosine) == (5, 0, 0.0, pytest.approx(1.0))


def test_across_dtypes_one_nan_is_as_good_as_another_and_signs_of_zero_count() -> None:
    a = np.array([np.nan, 0.0, -0.0], np.float32)
    assert measured(a, np.array([-np.nan, 0.0, -0.0], np.float64)).changed == 0
    assert measured(a, np.array([np.nan, -0.0, -0.0], np.float64)).changed == 1
    assert measured(np.array([-0.0], np.float32), np.array([0], np.int64)).changed == 0


@pytest.mark.parametrize("size", [1, 40_000])
def test_complex128_is_compared_bit_by_bit(size: int) -> None:
    a = np.arange(size) + 1j
    b = a.copy()
    assert measured(a, b).changed == 0
    b[-1] += 3 + 4j
    assert (measured(a, b).changed, measured(a, b).max_abs) == (1, 5.0)
    b = a.copy()
    b[0] = complex(-0.0, 1)
    assert (measured(a, b).changed, measured(a, b).max_abs) == (1, 0.0)


def test_complex_numbers_lie_apart_in_the_plane() -> None:
    found = measured(np.array([3 + 4j, 1], np.complex64), np.array([0, 1], np.complex64))
    assert (found.changed, found.max_abs, found.max_rel) == (1, 5.0, 1.0)
    half = Tensor(DTYPES["complex32"], (1,), source=tensor(np.array([3, 4], np.float16)).source)
    zero = Tensor(DTYPES["complex32"], (1,), source=tensor(np.array([0, 4], np.float16)).source)
    apart = distance(half, zero)
    assert apart is not None
    assert (apart.size, apart.changed, apart.max_abs) == (1, 1, 3.0)


def test_huge_and_tiny_values_neither_overflow_nor_vanish() -> None:
    for scale in (1e300, 1e-300):
        found = measured(np.array([3, 0.0]) * scale, np.array([3, 4.0]) * scale)
        assert found.rms == pytest.approx(4 / math.sqrt(2) * scale)
        assert found.cosine == pytest.approx(0.6)


def test_a_huge_and_a_tiny_tensor_have_an_angle() -> None:
    for x, y in ((1e-300, 1.0), (1e-320, 1e300), (1e200, 1e-200), (5e-324, 5e-324)):
        a, b = np.array([3, 4.0]), np.array([4, 3.0])
        found = measured(a * x, b * y)
        assert found.cosine == pytest.approx(float((a * x / x) @ (b * y / y)) / 25, rel=1e-3)
        assert measured(a * x, -a * x).cosine == pytest.approx(-1.0)
    mixed = np.r_[np.full(16384, 1e-250), np.full(16384, 1e-10), np.full(16384, 1e250)]
    assert measured(mixed, mixed[::-1].copy()).cosine == pytest.approx(0, abs=1e-12)
    assert measured(mixed, 2 * mixed).cosine == pytest.approx(1.0)


@pytest.mark.parametrize("bad", [-1e-9, math.nan, math.inf, -math.inf])
def test_a_tolerance_that_means_nothing_is_refused(bad: float) -> None:
    for rtol, atol in ((bad, 0.0), (0.0, bad)):
        with pytest.raises(CkptError) as caught:
            Tolerance(rtol, atol)
        assert caught.value.code == "bad-tolerance"


@given(st.floats(0, 1), st.floats(0, 1))
def test_the_tolerance_is_that_of_allclose(rtol: float, atol: float) -> None:
    rng = np.random.default_rng(1)
    a = np.r_[rng.standard_normal(50), np.nan, np.inf, np.inf, 0]
    b = np.r_[a[:50] * rng.uniform(0.5, 1.5, 50), np.nan, np.inf, -np.inf, 1e-3]
    found = measured(a, b, Tolerance(rtol, atol))
    assert found.outside == np.count_nonzero(~np.isclose(a, b, rtol=rtol, atol=atol, equal_nan=True))
    assert found.equal == (found.outside == 0)


def test_what_is_no_number_is_not_measured() -> None:
    assert not comparable(DTYPES["string"], DTYPES["string"])
    assert not comparable(DTYPES["qint8"], DTYPES["int8"])
    assert comparable(DTYPES["qint8"], DTYPES["qint8"])
    raw = Tensor(DTYPES["bits8"], (1,), source=tensor(np.array([1], np.uint8)).source)
    assert distance(raw, raw) is None


def test_an_empty_tensor_is_equal() -> None:
    found = measured(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32))
    assert (found.size, found.equal, found.share, found.cosine) == (0, True, 0.0, None)

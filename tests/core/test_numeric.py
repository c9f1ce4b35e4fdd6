"""Statistics equal those that exact arithmetic gives."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptkit.core import numeric, tensor
from ckptkit.core.arrays import pack, unpack
from ckptkit.core.dtypes import DTYPES, dtype
from ckptkit.core.numeric import Statistics, statistics
from ckptkit.core.storage import MemoryStorage
from ckptkit.core.tensor import Tensor
from ckptkit.core.views import view

REAL = [d.name for d in DTYPES.values() if d.kind in ("float", "int", "uint", "bool", "quantized")]
OTHER = [d.name for d in DTYPES.values() if d.kind in ("complex", "bits", "string")]


def of(data: bytes, name: str, count: int) -> Tensor:
    return view(MemoryStorage(data, "m"), dtype(name), (count,), (1,), 0)


def exact(values: list[float]) -> tuple[float | None, ...]:
    """Minimum, maximum, mean and standard deviation of the finite values, by rational arithmetic."""
    finite = [Fraction(v) for v in values if math.isfinite(v)]
    if not finite:
        return (None,) * 4
    mean = sum(finite) / len(finite)
    variance = sum((v - mean) ** 2 for v in finite) / len(finite)
    # a square root of a fraction that a float may not hold
    shift = max(0, (variance.numerator.bit_length() - variance.denominator.bit_length()) // 2 - 400)
    return (
        min(filter(math.isfinite, values)),
        max(filter(math.isfinite, values)),
        float(mean),
        math.ldexp(math.sqrt(variance / 4**shift), shift),
    )


@given(data=st.data(), name=st.sampled_from(REAL))
def test_every_type_from_any_bits(data: st.DataObject, name: str) -> None:
    element = dtype(name)
    count = data.draw(st.integers(0, 60))
    raw = data.draw(st.binary(min_size=element.nbytes(count), max_size=element.nbytes(count)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numeric, "_BLOCK", data.draw(st.integers(1, 70)))
        patch.setattr(numeric, "DEFAULT_CHUNK", data.draw(st.integers(1, 300)))
        found = statistics(of(raw, name, count))
    assert found is not None
    with np.errstate(all="ignore"):
        array = unpack(raw, element, count)
        values = array.tolist() if array.dtype.kind in "iu" else array.astype(np.float64).tolist()
    minimum, maximum, mean, std = exact(values)
    assert (found.minimum, found.maximum) == (minimum, maximum)
    if mean is not None:
        assert found.mean == pytest.approx(mean, rel=1e-9, abs=abs(std or 0) * 1e-12)
        assert found.std == pytest.approx(std, rel=1e-9, abs=abs(mean) * 1e-9)
    else:
        assert found.mean is found.std is None
    assert found.zeros == sum(v == 0 for v in values)
    assert found.nan == sum(math.isnan(v) for v in values)
    assert found.inf == sum(math.isinf(v) for v in values)


@pytest.mark.parametrize("name", OTHER)
def test_what_is_no_real_number_has_none(name: str) -> None:
    assert statistics(Tensor(dtype(name), (0,), source=of(b"", "uint8", 0).source)) is None


def test_integers_stay_exact() -> None:
    """Neither large ones nor sums beyond 64 bits go through floats."""
    values = np.full(1 << 20, 2**63 - 1, np.int64)
    values[0] = -(2**63)
    found = statistics(of(values.tobytes(), "int64", len(values)))
    assert found is not None
    assert (found.minimum, found.maximum) == (-(2**63), 2**63 - 1)
    assert isinstance(found.minimum, int)
    assert found.mean == float(
        Fraction(sum(map(int, [values[0]])) + (len(values) - 1) * (2**63 - 1), len(values))
    )


def test_cancellation_does_not_eat_the_deviation() -> None:
    values = np.tile(np.array([1e9, 1e9 + 1, 1e9 + 2]), 100_000)
    found = statistics(of(values.tobytes(), "float64", len(values)))
    assert found is not None
    assert found.std == pytest.approx(math.sqrt(2 / 3), rel=1e-12)
    assert found.mean == pytest.approx(1e9 + 1, rel=1e-15)


def test_huge_values_do_not_overflow() -> None:
    values = np.array([1e308, -1e308, 1e308, 1.0] * 50_000)
    found = statistics(of(values.tobytes(), "float64", len(values)))
    assert found is not None
    assert found.mean == pytest.approx(2.5e307)
    assert found.std == pytest.approx(float(np.std(values / 1e300)) * 1e300)


def test_an_ordinary_weight() -> None:
    values = np.random.default_rng(0).standard_normal(300_000).astype(np.float32)
    values[:7] = [0, -0.0, np.nan, np.inf, -np.inf, np.inf, 0]
    found = statistics(of(values.tobytes(), "float32", len(values)))
    finite = values[np.isfinite(values)].astype(np.float64)
    assert found == Statistics(
        float(finite.min()),
        float(finite.max()),
        pytest.approx(finite.mean(), rel=1e-12),
        pytest.approx(finite.std(), rel=1e-12),
        zeros=3,
        nan=1,
        inf=3,
    )


def test_float6_whose_chunks_end_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    bits = np.random.default_rng(0).integers(0, 64, 1001, dtype=np.uint8)
    data = pack(bits, dtype("float6_e2m3fn"))
    whole = statistics(of(data, "float6_e2m3fn", 1001))
    monkeypatch.setattr(numeric, "DEFAULT_CHUNK", 10)
    assert statistics(of(data, "float6_e2m3fn", 1001)) == whole
    assert tensor.DEFAULT_CHUNK != 10

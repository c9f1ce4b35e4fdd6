"""How far the values of two tensors of one shape lie apart, streamed in bounded memory.

Tensors of one dtype are compared bit by bit first. Different dtypes are compared after widening, which is exact: all
types of up to 32 bits fit into float64, and 64-bit integers are told apart as integers. Distances are float64
arithmetic in blocks that stay in the processor's cache. They are over the elements that are finite on both sides;
NaN and infinities are counted apart.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from math import frexp, ldexp, sqrt
from typing import TYPE_CHECKING, Any

from ckptkit.core.dtypes import DType
from ckptkit.core.tensor import DEFAULT_CHUNK, Tensor

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

_BLOCK = 1 << 14  # elements
_FEW = 8  # where less than one in so many elements changed, only those are looked at
_ROUNDED = ("int64", "uint64")  # float64 does not hold them all
_KINDS = ("float", "int", "uint", "bool", "complex")
_LEAST = 5e-324
_WIDE = 400  # squares of numbers within 2^±400 neither overflow nor vanish


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Close means |a − b| ≤ atol + rtol·|b|, equal infinities, or NaN on both sides."""

    rtol: float = 0.0
    atol: float = 0.0


@dataclass(frozen=True, slots=True)
class Values:
    """The distance of B from A, two tensors of one shape.

    Attributes:
        size: number of elements.
        changed: elements that are not the same: other bits where the dtypes are equal; else another value (a zero of
            the other sign is another value, one NaN is as good as another).
        outside: elements outside the tolerance; None if none was given.
        max_abs: greatest |b − a|.
        max_rel: greatest |b − a| / max(|a|, |b|); 0 where both are 0.
        rms: root of the mean of (b − a)².
        cosine: of the angle between the two as vectors; None where one of them is zero.
        nan, inf: counts in A and in B.
    """

    size: int
    changed: int
    outside: int | None
    max_abs: float
    max_rel: float
    rms: float
    cosine: float | None
    nan: tuple[int, int]
    inf: tuple[int, int]

    @property
    def share(self) -> float:
        """Changed elements as a part of all."""
        return self.changed / self.size if self.size else 0.0

    @property
    def equal(self) -> bool:
        """Within the tolerance, if one was given; else not one element changed."""
        return not (self.changed if self.outside is None else self.outside)


def comparable(a: DType, b: DType) -> bool:
    """Whether values of the two types can be told to be equal: numbers, or the same quantised type."""
    return (a.kind in _KINDS and b.kind in _KINDS) or (a is b and a.kind == "quantized")


def distance(a: Tensor, b: Tensor, tolerance: Tolerance | None = None) -> Values | None:
    """Read both tensors once; they have equal shapes. None if there are no values to compare.

    Complex numbers are compared as such (|b − a| is the distance in the plane). Bools are the bytes they are,
    quantised values the stored integers. Raises what reading the tensors raises.
    """
    if not comparable(a.dtype, b.dtype):
        return None
    import numpy as np

    total = _Total(a.dtype, b.dtype, tolerance)
    with np.errstate(all="ignore"):
        for x, y in _aligned(_elements(a), _elements(b)):
            total.add(x, y)
    return total.values()


def _elements(tensor: Tensor) -> "Iterator[Array]":
    """The elements, one per item, in pieces of any length; complex32 as pairs of float16."""
    import numpy as np

    from ckptkit.core.arrays import unpack

    dtype, left = tensor.dtype, tensor.size
    carry = b""  # float6: four elements lie in three bytes, and chunks end at any
    for chunk in tensor.chunks(DEFAULT_CHUNK // 4):
        if dtype.bits == 6:
            chunk = carry + bytes(chunk)
            whole = len(chunk) if len(chunk) * 8 // 6 >= left else len(chunk) // 3 * 3
            carry, chunk = chunk[whole:], chunk[:whole]
        count = min(left, len(chunk) * 8 // dtype.bits)
        left -= count
        if dtype.numpy is None:
            yield np.frombuffer(chunk, "<f2").reshape(-1, 2)
        else:
            yield unpack(chunk, dtype, count)


def _aligned(left: "Iterator[Array]", right: "Iterator[Array]") -> "Iterator[tuple[Array, Array]]":
    """Blocks of equally many elements of both."""
    x = next(left, None)
    y = next(right, None)
    while x is not None and y is not None:
        count = min(len(x), len(y), _BLOCK)
        yield x[:count], y[:count]
        x, y = x[count:], y[count:]
        if not len(x):
            x = next(left, None)
        if not len(y):
            y = next(right, None)


class _Total:
    """Sums over the blocks seen so far. Squares are kept by the power of two that they were scaled with."""

    def __init__(self, a: DType, b: DType, tolerance: Tolerance | None) -> None:
        self.same = a is b
        self.exact = not {a.name, b.name}.isdisjoint(_ROUNDED)
        self.signed = a.kind in ("float", "complex") and b.kind in ("float", "complex")
        self.complex = "complex" in (a.kind, b.kind)
        self.widen = (_widener(a, self.complex), _widener(b, self.complex))
        self.tolerance = tolerance
        self.size = self.finite = self.changed = self.outside = 0
        self.max_abs = self.max_rel = 0.0
        self.squares: dict[int, list[float]] = {}  # power → sums of a², b², ab, (b − a)²
        self.nan = [0, 0]
        self.inf = [0, 0]

    def add(self, a: "Array", b: "Array") -> None:
        import numpy as np

        self.size += len(a)
        x, y = self.widen[0](a), self.widen[1](b)
        unequal = _bits(a) != _bits(b) if self.same else self._unequal(a, b, x, y)
        changed = int(np.count_nonzero(unequal))
        self.changed += changed
        delta = None
        if changed:
            delta = _exact_delta(a, b) if self.exact and self.same else y - x
        if not (np.isfinite(_sum(x, x)) and np.isfinite(_sum(y, y))):  # or they are only too large to be squared
            finite = np.isfinite(x) & np.isfinite(y)
            if not finite.all():
                self._odd(x, y, delta, finite)
                x, y = x[finite], y[finite]
                unequal = unequal[finite]
                delta = None if delta is None else delta[finite]
        self.finite += len(x)
        if not len(x):
            return
        if delta is not None:
            if changed < len(a) // _FEW:
                self._compare(x[unequal], y[unequal], delta[unequal])
            else:
                self._compare(x, y, delta)
        self._square(x, y, delta)

    def _odd(self, x: "Array", y: "Array", delta: "Array | None", finite: "Array") -> None:
        """Count what is not finite on one side or both."""
        import numpy as np

        x, y = x[~finite], y[~finite]
        for side, values in enumerate((x, y)):
            nan = np.isnan(values)
            self.nan[side] += int(np.count_nonzero(nan))
            self.inf[side] += int(np.count_nonzero(np.isinf(values) & ~nan))
        if self.tolerance is not None and delta is not None:
            self.outside += int(np.count_nonzero((x != y) & ~(np.isnan(x) & np.isnan(y))))

    def _unequal(self, a: "Array", b: "Array", x: "Array", y: "Array") -> "Array":
        """Where elements of two dtypes have different values; `x` and `y` are `a` and `b` widened."""
        import numpy as np

        if self.exact and a.dtype.kind in "iu" and b.dtype.kind in "iu":
            return np.not_equal(a, b)
        equal = x == y
        if self.exact:
            for stored, wide in ((a, x.real), (b, y.real)):
                if stored.dtype.name in _ROUNDED:  # equal only if widening lost nothing
                    equal &= wide < (2.0**63 if stored.dtype.kind == "i" else 2.0**64)
                    equal[equal] = wide[equal].astype(stored.dtype) == stored[equal]
        if self.signed:
            for part in ("real", "imag") if self.complex else ("real",):
                equal &= np.signbit(getattr(x, part)) == np.signbit(getattr(y, part))
            equal |= np.isnan(x) & np.isnan(y)
        unequal: Array = ~equal
        return unequal

    def _compare(self, x: "Array", y: "Array", delta: "Array") -> None:
        """Distances; all are finite. Elements that are equal do no harm."""
        import numpy as np

        if not len(x):
            return
        y, delta = np.abs(y), np.abs(delta)
        self.max_abs = max(self.max_abs, float(delta.max()))
        if self.tolerance is not None:
            outside = delta > self.tolerance.atol + self.tolerance.rtol * y
            self.outside += int(np.count_nonzero(outside))
        larger = np.maximum(np.abs(x), y)
        np.maximum(larger, _LEAST, out=larger)  # where both are zero
        self.max_rel = max(self.max_rel, float(np.divide(delta, larger, out=delta).max()))

    def _square(self, x: "Array", y: "Array", delta: "Array | None") -> None:
        most = max(_largest(x), _largest(y))
        power = frexp(most)[1]
        if abs(power) <= _WIDE:
            power = 0
        else:
            half = -power // 2
            scale = ldexp(1.0, half) * ldexp(1.0, -power - half)
            x, y = x * scale, y * scale
            delta = None if delta is None else delta * scale
        sums = self.squares.setdefault(power, [0.0] * 4)
        for k, (left, right) in enumerate(((x, x), (y, y), (x, y), (delta, delta))):
            if left is not None and right is not None:
                sums[k] += float(_sum(left, right).real)

    def values(self) -> Values:
        top = max((power for power, sums in self.squares.items() if any(sums)), default=0)
        aa, bb, ab, dd = (
            sum(ldexp(sums[k], 2 * (power - top)) for power, sums in self.squares.items()) for k in range(4)
        )
        norms = sqrt(aa) * sqrt(bb)
        return Values(
            size=self.size,
            changed=self.changed,
            outside=None if self.tolerance is None else self.outside,
            max_abs=self.max_abs,
            max_rel=self.max_rel,
            rms=ldexp(sqrt(dd / self.finite), top) if self.finite else 0.0,
            cosine=max(-1.0, min(1.0, ab / norms)) if norms else None,
            nan=(self.nan[0], self.nan[1]),
            inf=(self.inf[0], self.inf[1]),
        )


def _largest(values: "Array") -> float:
    """Greatest magnitude, of complex numbers that of a part."""
    import numpy as np

    if values.dtype.kind == "c":
        values = values.view(np.float64)
    return float(max(values.max(), -values.min()))


def _sum(x: "Array", y: "Array") -> Any:
    """Σ conj(x)·y. Not `x @ y`: its library starts threads of its own, which are in each other's way here."""
    import numpy as np

    return np.einsum("i,i->", x.conj() if x.dtype.kind == "c" else x, y)


def _bits(values: "Array") -> "Array":
    """The elements as what can be compared bit by bit, one item each."""
    import numpy as np

    if values.ndim == 2:  # complex32
        return values.view(np.uint32).reshape(-1)
    if values.dtype.itemsize == 16:
        return values.view([("re", "u8"), ("im", "u8")])
    return values.view(f"u{values.dtype.itemsize}")


def _exact_delta(a: "Array", b: "Array") -> "Array":
    """|b − a| of 64-bit integers, rounded once."""
    import numpy as np

    x, y = a.view(np.uint64), b.view(np.uint64)
    return np.where(b > a, y - x, x - y).astype(np.float64)


@cache
def _widener(dtype: DType, complex_: bool) -> "Callable[[Array], Array]":
    """A function that gives values of the dtype as float64 (complex128)."""
    import numpy as np

    from ckptkit.core.arrays import numpy_dtype

    if complex_:
        if dtype.numpy is None:
            return lambda values: values.astype(np.float32).view(np.complex64).reshape(-1).astype(np.complex128)
        narrow = _widener(dtype, False) if dtype.kind != "complex" else None
        return lambda values: (values if narrow is None else narrow(values)).astype(np.complex128)
    if dtype.kind == "bool" or dtype.bits > 16 or dtype.kind != "float":
        return lambda values: values.astype(np.float64)
    # ml_dtypes converts one by one; a table of all values is faster.
    kind = numpy_dtype(dtype)
    pattern = np.dtype(f"u{kind.itemsize}")
    with np.errstate(all="ignore"):
        table = np.arange(1 << 8 * kind.itemsize, dtype=pattern).view(kind).astype(np.float64)
    return lambda values: table.take(values.view(pattern), mode="clip")

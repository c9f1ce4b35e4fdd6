"""How far the values of two tensors of one shape lie apart, streamed in bounded memory.

Tensors of one dtype are compared bit by bit first. Different dtypes are compared after widening, which is exact: all
types of up to 32 bits fit into float64, and 64-bit integers are told apart as integers. Distances are float64
arithmetic in blocks that stay in the processor's cache. They are over the elements that are finite on both sides;
NaN and infinities are counted apart.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from math import frexp, inf, ldexp, sqrt
from typing import TYPE_CHECKING, Any

from ckptkit.core.dtypes import DType
from ckptkit.core.errors import CkptError
from ckptkit.core.tensor import Tensor
from ckptkit.match.reading import Window

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

_BLOCK = 1 << 14  # elements
_FEW = 8  # where less than one in so many elements changed, only those are looked at
_ROUNDED = ("int64", "uint64")  # float64 does not hold them all
_KINDS = ("float", "int", "uint", "bool", "complex")
_LEAST = 5e-324
_LOW, _HIGH = 2.0**-700, 2.0**900  # sums of squares between these have lost nothing that matters


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Close means |a − b| ≤ atol + rtol·|b|, equal infinities, or NaN on both sides.

    Raises CkptError `bad-tolerance` for what is negative or not finite.
    """

    rtol: float = 0.0
    atol: float = 0.0

    def __post_init__(self) -> None:
        for name, value in (("rtol", self.rtol), ("atol", self.atol)):
            if not 0 <= value < inf:
                raise CkptError("bad-tolerance", f"{name} is {value}, not a finite number from 0 on")


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


def distance(
    a: Tensor,
    b: Tensor,
    tolerance: Tolerance | None = None,
    windows: tuple[Window, Window] | None = None,
) -> Values | None:
    """Read both tensors once; they have equal shapes. None if there are no values to compare.

    `windows` are to read through where many tensors are measured one after another. Complex numbers are compared as
    such (|b − a| is the distance in the plane). Bools are the bytes they are, quantised values the stored integers.
    Raises what reading the tensors raises.
    """
    if not comparable(a.dtype, b.dtype):
        return None
    if windows is None:
        with Window() as left, Window() as right:
            return distance(a, b, tolerance, (left, right))
    import numpy as np

    total = _Total(a.dtype, b.dtype, tolerance, min(a.size, _BLOCK))
    with np.errstate(all="ignore"):
        for x, y in _aligned(_elements(a, windows[0]), _elements(b, windows[1])):
            total.add(x, y)
    return total.values()


def _elements(tensor: Tensor, window: Window) -> "Iterator[Array]":
    """The elements, one per item, in pieces of any length; complex32 as pairs of float16."""
    import numpy as np

    from ckptkit.core.arrays import unpack

    dtype, left = tensor.dtype, tensor.size
    carry = b""  # float6: four elements lie in three bytes, and chunks end at any
    plain = tensor.source is None
    for chunk in (
        window.pieces(tensor, 0, tensor.nbytes, max(1, dtype.bits // 8)) if plain else tensor.chunks()
    ):
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
    """Sums over the blocks seen so far.

    Blocks go through the same few arrays again and again: fresh ones would be mapped by the system each time.
    """

    def __init__(self, a: DType, b: DType, tolerance: Tolerance | None, block: int) -> None:
        import numpy as np

        self.same = a is b
        self.exact = not {a.name, b.name}.isdisjoint(_ROUNDED)
        self.signed = a.kind in ("float", "complex") and b.kind in ("float", "complex")
        self.complex = "complex" in (a.kind, b.kind)
        self.widen = (_widener(a, self.complex), _widener(b, self.complex))
        self.tolerance = tolerance
        self.size = self.finite = self.changed = self.outside = 0
        self.max_abs = self.max_rel = 0.0
        # Sums of a², b², ab, (b − a)², by the power of two that they were divided by.
        self.squares: dict[int, list[float]] = {}
        self.nan = [0, 0]
        self.inf = [0, 0]
        self.scratch = [np.empty(block, np.complex128 if self.complex else np.float64) for _ in range(3)]
        self.mask = np.empty(block, np.bool_)

    def add(self, a: "Array", b: "Array") -> None:
        import numpy as np

        count = len(a)
        self.size += count
        x, y, delta = (array[:count] for array in self.scratch)
        self.widen[0](a, x)
        self.widen[1](b, y)
        unequal: Array
        if self.same:
            x_bits, y_bits = _bits(a), _bits(b)
            if x_bits.ndim == 1:
                unequal = np.not_equal(x_bits, y_bits, out=self.mask[:count])
            else:
                unequal = np.any(x_bits != y_bits, axis=1, out=self.mask[:count])
        else:
            unequal = self._unequal(a, b, x, y)
        changed = int(np.count_nonzero(unequal))
        self.changed += changed
        some = changed < count // _FEW
        if not changed:
            delta = delta[:0]
        elif self.exact and self.same:
            delta[:] = _exact_delta(a, b)
        else:
            np.subtract(y, x, out=delta)
        sums = [float(_sum(left, right).real) for left, right in ((x, x), (y, y), (x, y), (delta, delta))]
        if any(not _LOW < value < _HIGH for value in (sums[0], sums[1], sums[3] or 1.0)):
            # Something is zero, too large or too small to be squared, or not finite.
            finite = np.isfinite(x) & np.isfinite(y)
            if not finite.all():
                self._odd(x, y, finite, bool(changed))
                x, y, unequal = x[finite], y[finite], unequal[finite]
                delta = delta[finite] if changed else delta
            self._scaled(x, y, delta)
        else:
            total = self.squares.setdefault(0, [0.0] * 4)
            for k, value in enumerate(sums):
                total[k] += value
        self.finite += len(x)
        if changed and len(x):
            if some:
                x, y, delta = x[unequal], y[unequal], delta[unequal]
            self._compare(x, y, delta)

    def _odd(self, x: "Array", y: "Array", finite: "Array", changed: bool) -> None:
        """Count what is not finite on one side or both."""
        import numpy as np

        x, y = x[~finite], y[~finite]
        for side, values in enumerate((x, y)):
            nan = np.isnan(values)
            self.nan[side] += int(np.count_nonzero(nan))
            self.inf[side] += int(np.count_nonzero(np.isinf(values) & ~nan))
        if self.tolerance is not None and changed:
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
        """Distances; all are finite. Elements that are equal do no harm. Overwrites what it is given."""
        import numpy as np

        if not len(x):
            return
        if self.complex:
            x, y, delta = np.abs(x), np.abs(y), np.abs(delta)
        else:
            for values in (x, y, delta):
                np.abs(values, out=values)
        self.max_abs = max(self.max_abs, float(delta.max()))
        if self.tolerance is not None:
            outside = delta > self.tolerance.atol + self.tolerance.rtol * y
            self.outside += int(np.count_nonzero(outside))
        np.maximum(x, y, out=x)
        np.maximum(x, _LEAST, out=x)  # where both are zero
        self.max_rel = max(self.max_rel, float(np.divide(delta, x, out=delta).max()))

    def _scaled(self, x: "Array", y: "Array", delta: "Array") -> None:
        """Add squares of what would overflow or vanish unless it is brought near 1 first."""
        near = []
        for values in (x, y, delta):
            power = _power(values)
            near.append((values * ldexp(1.0, -(power // 2)) * ldexp(1.0, -(power - power // 2)), power))
        for left, right, place in ((0, 0, 0), (1, 1, 1), (0, 1, 2), (2, 2, 3)):
            power = near[left][1] + near[right][1]
            total = float(_sum(near[left][0], near[right][0]).real)
            self.squares.setdefault(power, [0.0] * 4)[place] += total

    def values(self) -> Values:
        tops = [max((p for p, sums in self.squares.items() if sums[k]), default=0) for k in range(4)]
        aa, bb, ab, dd = (
            sum(ldexp(sums[k], power - tops[k]) for power, sums in self.squares.items()) for k in range(4)
        )
        norms = sqrt(aa) * sqrt(bb)
        return Values(
            size=self.size,
            changed=self.changed,
            outside=None if self.tolerance is None else self.outside,
            max_abs=self.max_abs,
            max_rel=self.max_rel,
            rms=ldexp(sqrt(dd / self.finite), tops[3] // 2) if self.finite else 0.0,
            cosine=max(-1.0, min(1.0, ldexp(ab / norms, tops[2] - (tops[0] + tops[1]) // 2)))
            if norms
            else None,
            nan=(self.nan[0], self.nan[1]),
            inf=(self.inf[0], self.inf[1]),
        )


def _power(values: "Array") -> int:
    """The power of two that is just above the greatest magnitude; of complex numbers that of a part."""
    import numpy as np

    if values.dtype.kind == "c":
        values = np.ascontiguousarray(values).view(np.float64)
    return frexp(float(max(values.max(), -values.min())))[1] if len(values) else 0


def _sum(x: "Array", y: "Array") -> Any:
    """Σ conj(x)·y. Not `x @ y`: its library starts threads of its own, which are in each other's way here."""
    import numpy as np

    return np.einsum("i,i->", x.conj() if x.dtype.kind == "c" else x, y)


def _bits(values: "Array") -> "Array":
    """The elements as what can be compared bit by bit, one item each; a row of two each for complex128."""
    import numpy as np

    if values.ndim == 2:  # complex32
        return values.view(np.uint32).reshape(-1)
    if values.dtype.itemsize == 16:
        return values.view(np.uint64).reshape(-1, 2)
    return values.view(f"u{values.dtype.itemsize}")


def _exact_delta(a: "Array", b: "Array") -> "Array":
    """|b − a| of 64-bit integers, rounded once."""
    import numpy as np

    x, y = a.view(np.uint64), b.view(np.uint64)
    return np.where(b > a, y - x, x - y).astype(np.float64)


@cache
def _widener(dtype: DType, complex_: bool) -> "Callable[[Array, Array], object]":
    """A function that puts values of the dtype as float64 (complex128) into an array."""
    import numpy as np

    from ckptkit.core.arrays import numpy_dtype

    if dtype.numpy is None:  # complex32
        return lambda values, out: np.copyto(out, values.astype(np.float32).view(np.complex64).reshape(-1))
    if dtype.kind != "float" or dtype.bits > 16:
        return lambda values, out: np.copyto(out, values, casting="unsafe")
    # ml_dtypes converts one by one; a table of all values is faster.
    kind = numpy_dtype(dtype)
    pattern = np.dtype(f"u{kind.itemsize}")
    with np.errstate(all="ignore"):
        table = np.arange(1 << 8 * kind.itemsize, dtype=pattern).view(kind).astype(np.float64)
    if complex_:
        return lambda values, out: np.copyto(out, table[values.view(pattern)])
    return lambda values, out: table.take(values.view(pattern), out=out, mode="clip")

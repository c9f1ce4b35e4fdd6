"""Statistics of one tensor's values, streamed in bounded memory.

Types of at most 16 bits are counted pattern by pattern, which gives every figure exactly. Wider integers keep exact
minimum, maximum and mean. The rest is float64 arithmetic in blocks, each with its own mean and squared deviations,
merged as in Chan, Golub, LeVeque (1983), which neither cancels nor overflows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import fsum, ldexp, sqrt
from typing import TYPE_CHECKING, Any

from ckptkit.core.tensor import DEFAULT_CHUNK, Tensor

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

_BLOCK = 1 << 16  # elements: what stays in the processor's cache as float64
_HUGE = ldexp(1.0, 400)  # beyond this, squares and sums could overflow
_SCALE = ldexp(1.0, -600)


@dataclass(frozen=True, slots=True)
class Statistics:
    """The values of one tensor in numbers.

    `minimum`, `maximum`, `mean` and `std` (of the population) are over the finite values, None if there are none;
    `minimum` and `maximum` are ints for integer types. `zeros`, `nan` and `inf` are counts.
    """

    minimum: float | None
    maximum: float | None
    mean: float | None
    std: float | None
    zeros: int
    nan: int
    inf: int


def statistics(tensor: Tensor) -> Statistics | None:
    """Read the tensor once; None if its elements are no real numbers (complex, strings, raw bits).

    Bools count as the bytes they are, quantised values as the stored integers. Raises what `Tensor.chunks` raises.
    """
    dtype = tensor.dtype
    if dtype.kind not in ("float", "int", "uint", "bool", "quantized"):
        return None
    if dtype.bits <= 16:
        return _by_pattern(tensor)
    return _Accumulator(dtype.kind == "float").run(_values(tensor))


def _values(tensor: Tensor) -> "Iterator[Array]":
    """The elements, one per item, in blocks; bools as uint8."""
    from ckptkit.core.arrays import unpack

    dtype = tensor.dtype
    left = tensor.size
    carry = b""  # float6: four elements lie in three bytes, and chunks end at any
    for chunk in tensor.chunks(DEFAULT_CHUNK):
        if dtype.bits == 6:
            chunk = carry + bytes(chunk)
            whole = len(chunk) if len(chunk) * 8 // 6 >= left else len(chunk) // 3 * 3
            carry = chunk[whole:]
            chunk = chunk[:whole]
        count = min(left, len(chunk) * 8 // dtype.bits)
        left -= count
        values = unpack(chunk, dtype, count)
        for at in range(0, count, _BLOCK):
            yield values[at : at + _BLOCK]


def _by_pattern(tensor: Tensor) -> Statistics:
    import numpy as np

    from ckptkit.core.arrays import numpy_dtype

    dtype = tensor.dtype
    kind = np.dtype("u1") if dtype.kind == "bool" else numpy_dtype(dtype)
    pattern = f"u{kind.itemsize}"
    patterns = 1 << (8 * kind.itemsize)
    counts = np.zeros(patterns, np.int64)
    for block in _values(tensor):
        np.add.at(counts, block.view(pattern), 1)
    present = np.flatnonzero(counts)
    counts = counts[present]
    with np.errstate(all="ignore"):
        values = present.astype(pattern).view(kind).astype(np.float64)
    finite = np.isfinite(values)
    nan = int(counts[np.isnan(values)].sum())
    inf = int(counts[np.isinf(values)].sum())
    zeros = int(counts[values == 0].sum())
    values, counts = values[finite], counts[finite]
    total = int(counts.sum())
    if not total:
        return Statistics(None, None, None, None, zeros, nan, inf)
    mean = fsum(values * counts) / total
    std = sqrt(fsum((values - mean) ** 2 * counts) / total)
    ends = values.min().item(), values.max().item()
    low, high = ends if dtype.kind == "float" else map(int, ends)
    return Statistics(low, high, mean, std, zeros, nan, inf)


class _Accumulator:
    """Figures of values of 32 and 64 bits, block by block."""

    def __init__(self, floating: bool) -> None:
        self.floating = floating
        self.minimum: float | None = None
        self.maximum: float | None = None
        self.count = 0  # of finite values
        self.total = 0  # exact, for integers
        self.mean = 0.0  # of what was seen so far, times scale
        self.squares = 0.0  # sum of squared deviations from it, times scale squared
        self.scale = 1.0
        self.zeros = self.nan = self.inf = 0

    def run(self, blocks: "Iterator[Array]") -> Statistics:
        for block in blocks:
            self._add(block)
        if not self.count:
            return Statistics(None, None, None, None, self.zeros, self.nan, self.inf)
        mean = self.mean / self.scale if self.floating else self.total / self.count
        std = sqrt(self.squares / self.count) / self.scale
        return Statistics(self.minimum, self.maximum, mean, std, self.zeros, self.nan, self.inf)

    def _add(self, block: "Array") -> None:
        import numpy as np

        self.zeros += int(np.count_nonzero(block == 0))
        if self.floating:
            finite = np.isfinite(block)
            if not finite.all():
                nan = int(np.count_nonzero(np.isnan(block)))
                self.nan += nan
                self.inf += len(block) - nan - int(np.count_nonzero(finite))
                block = block[finite]
        if not len(block):
            return
        low, high = block.min().item(), block.max().item()
        self.minimum = low if self.minimum is None else min(self.minimum, low)
        self.maximum = high if self.maximum is None else max(self.maximum, high)
        if not self.floating:
            self.total += _sum(block)
        if max(-low, high) > _HUGE and self.scale == 1.0:
            self.scale = _SCALE
            self.mean *= _SCALE
            self.squares *= _SCALE * _SCALE
        self._merge(block.astype(np.float64))

    def _merge(self, values: "Array") -> None:
        import numpy as np

        if self.scale != 1.0:
            values *= self.scale
        count = len(values)
        mean = float(values.mean())
        values -= mean
        squares = float(np.einsum("i,i", values, values))  # not BLAS, whose threads wait for each other
        delta = mean - self.mean
        total = self.count + count
        self.mean += delta * (count / total)
        self.squares += squares + delta * delta * (self.count * (count / total))
        self.count = total


def _sum(block: "Array") -> int:
    """The exact sum of at most 2^31 integers of up to 64 bits."""
    import numpy as np

    if block.itemsize < 8:
        return int(block.sum(dtype=np.int64))
    return (int((block >> 32).sum()) << 32) + int((block & 0xFFFFFFFF).sum())

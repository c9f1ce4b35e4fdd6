"""Casts between floating-point types, streamed: bit for bit what torch 2.13 computes, but with one NaN.

Everything goes by way of float32, float64 included, as in torch (so float64 → float16 rounds twice). Rounding is to
nearest, ties to even. Too large values become infinite; float8_e4m3fn has no infinity, and torch saturates to ±448
(ml_dtypes gives NaN). Every NaN becomes the type's one positive quiet NaN, whatever its sign and payload.

The work is done in blocks that stay in the processor's cache. From a 16-bit type it is a look-up in a table
of all 65,536 results; to an 8-bit type a look-up by the 16 upper bits of the float32, the lowest of them set if
any bit below is, which rounds the same because the types keep at most 3 of the 7 fraction bits left.
"""

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from ckptkit.core.dtypes import DTYPES, DType
from ckptkit.core.errors import CkptError
from ckptkit.core.tensor import Buffer, Extent, Tally, Tensor

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

OVERFLOW = "overflow"  # the tally's name for values that the target's range does not hold

_BLOCK = 1 << 16  # elements
_INFINITE = 0x7F800000  # float32
_FLOAT16_LEAST = 0x477FF000  # 65520 as float32: halfway from float16's greatest to the next power of two
_SOURCES = frozenset({"float64", "float32", "float16", "bfloat16"})


def cast(tensor: Tensor, dtype: DType) -> Tensor:
    """The tensor with its values in another floating-point type; the same tensor if it has that type already.

    From float64, float32, float16 and bfloat16 to these, float8_e4m3fn and float8_e5m2. Values outside the
    target's range (finite ones that become infinite; all that saturate) are counted in the tally as `overflow`.
    Raises CkptError `dtype-unsupported` for other types.
    """
    if tensor.dtype is dtype:
        return tensor
    if tensor.dtype.name not in _SOURCES or dtype.name not in _TARGETS:
        raise CkptError("dtype-unsupported", f"there is no cast from {tensor.dtype} to {dtype}")
    return Tensor(dtype, tensor.shape, source=Cast(tensor, dtype), kind=tensor.kind, note=tensor.note)


@dataclass(frozen=True, slots=True)
class Cast:
    """The elements of `origin` as `dtype`."""

    origin: Tensor
    dtype: DType

    @property
    def identity(self) -> Hashable:
        return ("cast", self.origin.storage, self.dtype.name)

    @property
    def extents(self) -> tuple[Extent, ...]:
        return self.origin.extents

    def memory(self, limit: int) -> int:
        read, given = self._limits(limit)
        return self.origin.memory(read) + given + 24 * _BLOCK + _TABLES

    def chunks(self, limit: int, tally: Tally | None = None) -> Iterator[Buffer]:
        import numpy as np

        convert = _converter(self.origin.dtype.name, self.dtype.name)
        read, given = self._limits(limit)
        result = bytearray(given)
        out: Array = np.frombuffer(result, f"u{self.dtype.bits // 8}")
        with memoryview(result) as whole:
            for chunk in self.origin.chunks(read, tally):
                values: Array = np.frombuffer(chunk, _READ[self.origin.dtype.name])
                overflows = 0
                with np.errstate(all="ignore"):
                    for at in range(0, len(values), _BLOCK):
                        block = values[at : at + _BLOCK]
                        overflows += convert(block, out[at : at + len(block)])
                if tally is not None:
                    tally.add(OVERFLOW, overflows)
                yield whole[: len(values) * out.itemsize]

    def _limits(self, limit: int) -> tuple[int, int]:
        """Bytes to read, and to give, at once: neither more than `limit`, nor than there are."""
        wide, narrow = self.origin.dtype.bits // 8, self.dtype.bits // 8
        count = max(1, min(limit // max(wide, narrow), self.origin.size))
        return count * wide, count * narrow


@dataclass(frozen=True, slots=True)
class _Target:
    """A type to cast to: what turns float32 values into its bit patterns, NaN apart.

    `least` is the smallest magnitude, as float32 bits, that its range does not hold; `nan` its one NaN.
    """

    convert: "Kernel"
    least: int
    nan: int
    infinite: bool = True


# float32 values, their magnitudes as uint32 (free to be overwritten), scratch of uint32, and the result.
Kernel = Callable[["Array", "Array", "Array", "Array"], None]


def _to_float(name: str) -> Kernel:
    def convert(values: "Array", magnitude: "Array", scratch: "Array", out: "Array") -> None:
        out.view(name)[...] = values

    return convert


def _to_float16(values: "Array", magnitude: "Array", scratch: "Array", out: "Array") -> None:
    """Let an addition round: to a power of two so large that the sum's last bit is the result's last bit.

    The fraction, with its leading 1 if it has one, then lies in the sum's low bits; the exponent is added to it. Right
    for everything that does not overflow; the rest becomes infinite. Faster than numpy's own cast.
    """
    import numpy as np

    where = magnitude >= _FLOAT16_LEAST if magnitude.max() >= _FLOAT16_LEAST else None
    np.bitwise_and(magnitude, _INFINITE, out=scratch)
    np.maximum(scratch, _subnormal()[: len(scratch)], out=scratch)
    np.add(scratch, 13 << 23, out=scratch)
    np.add(magnitude.view(np.float32), scratch.view(np.float32), out=magnitude.view(np.float32))
    np.right_shift(scratch, 13, out=scratch)
    np.add(magnitude, scratch, out=magnitude)
    np.subtract(magnitude, 113 + 13 << 10, out=magnitude)  # only the low 16 bits count from here
    if where is not None:
        magnitude[where] = 0x7C00
    np.right_shift(values.view(np.uint32), 16, out=scratch)
    np.bitwise_and(scratch, 0x8000, out=scratch)
    np.bitwise_or(magnitude, scratch, out=magnitude)
    out[...] = magnitude


@cache
def _subnormal() -> "Array":
    """2^-14, whose exponent all subnormal float16 share; an array, as numpy is 3 times slower with a scalar."""
    import numpy as np

    return np.full(_BLOCK, 113 << 23, np.uint32)


def _to_bfloat16(values: "Array", magnitude: "Array", scratch: "Array", out: "Array") -> None:
    """Add just under half of what is cut off, and the bit that makes ties even; then cut."""
    import numpy as np

    bits = values.view(np.uint32)
    np.right_shift(bits, 16, out=scratch)
    np.bitwise_and(scratch, 1, out=scratch)
    np.add(scratch, 0x7FFF, out=scratch)
    np.add(scratch, bits, out=scratch)
    np.right_shift(scratch, 16, out=scratch)
    out[...] = scratch


def _to_float8(name: str, greatest: float) -> Kernel:
    @cache
    def table() -> "Array":
        import ml_dtypes
        import numpy as np

        values = (np.arange(1 << 16, dtype=np.uint32) << 16).view(np.float32)
        return np.clip(values, -greatest, greatest).astype(getattr(ml_dtypes, name)).view(np.uint8)

    def convert(values: "Array", magnitude: "Array", scratch: "Array", out: "Array") -> None:
        import numpy as np

        bits = values.view(np.uint32)
        np.bitwise_and(bits, 0xFFFF, out=scratch)
        np.add(scratch, 0xFFFF, out=scratch)
        np.bitwise_or(scratch, bits, out=scratch)  # bit 16 is set if any lower one was
        np.right_shift(scratch, 16, out=scratch)
        np.take(table(), scratch.astype(np.intp), out=out, mode="clip")

    return convert


_TARGETS = {
    "float64": _Target(_to_float("float64"), _INFINITE, 0x7FF8 << 48),
    "float32": _Target(_to_float("float32"), _INFINITE, 0x7FC00000),
    "float16": _Target(_to_float16, _FLOAT16_LEAST, 0x7E00),
    "bfloat16": _Target(_to_bfloat16, 0x7F7F8000, 0x7FC0),
    "float8_e4m3fn": _Target(
        _to_float8("float8_e4m3fn", 448.0), 0x43E80001, 0x7F, infinite=False
    ),  # beyond 464
    "float8_e5m2": _Target(_to_float8("float8_e5m2", float("inf")), 0x47700000, 0x7F),  # 61440
}

_READ = {"float64": "f8", "float32": "f4", "float16": "u2", "bfloat16": "u2"}
_TABLES = 1 << 20


def _converter(source: str, target: str) -> "Callable[[Array, Array], int]":
    """What fills an array of bit patterns from a block of values and returns the number of overflows."""
    if _READ[source] == "u2":
        return _by_table(source, target)

    import numpy as np

    row = _TARGETS[target]
    scratch = np.empty((2, _BLOCK), np.uint32)
    single = np.empty(_BLOCK, np.float32)

    def convert(values: "Array", out: "Array") -> int:
        magnitude, work = scratch[:, : len(values)]
        narrow = values
        if source == "float64":
            narrow = single[: len(values)]
            narrow[...] = values
        np.bitwise_and(narrow.view(np.uint32), 0x7FFFFFFF, out=magnitude)
        special = magnitude.max() >= row.least
        row.convert(narrow, magnitude, work, out)
        return _settle(row, values, narrow, out) if special else 0

    return convert


def _settle(row: _Target, values: "Array", narrow: "Array", out: "Array") -> int:
    """Give NaN its one form and count overflows, in a block that may hold some."""
    import numpy as np

    out[np.isnan(values)] = row.nan
    magnitude = narrow.view(np.uint32) & 0x7FFFFFFF
    beyond = np.count_nonzero((magnitude >= row.least) & (magnitude <= _INFINITE))
    kept = np.count_nonzero(np.isinf(values)) if row.infinite else 0
    return int(beyond - kept)


def _by_table(source: str, target: str) -> "Callable[[Array, Array], int]":
    import numpy as np

    table, overflows, least = _table(source, target)
    index = np.empty(_BLOCK, np.intp)
    scratch = np.empty(_BLOCK, np.uint16)

    def convert(values: "Array", out: "Array") -> int:
        at = index[: len(values)]
        at[...] = values
        np.take(table, at, out=out, mode="clip")
        if least is None or np.bitwise_and(values, 0x7FFF, out=scratch[: len(values)]).max() < least:
            return 0
        return int(np.count_nonzero(overflows[at]))

    return convert


@cache
def _table(source: str, target: str) -> "tuple[Array, Array, int | None]":
    """For each of the 65,536 values: the result, whether it overflows; and the least magnitude that does."""
    import numpy as np

    row = _TARGETS[target]
    patterns = np.arange(1 << 16, dtype=np.uint16)
    if source == "bfloat16":
        values = (patterns.astype(np.uint32) << 16).view(np.float32)
    else:
        values = patterns.view(np.float16).astype(np.float32)
    out = np.empty(len(patterns), f"u{DTYPES[target].bits // 8}")
    magnitude = values.view(np.uint32) & 0x7FFFFFFF
    with np.errstate(all="ignore"):
        row.convert(values, magnitude.copy(), np.empty_like(magnitude), out)
    out[np.isnan(values)] = row.nan
    overflows = (magnitude >= row.least) & (magnitude <= _INFINITE)
    if row.infinite:
        overflows &= magnitude != _INFINITE
    least = (patterns & 0x7FFF)[overflows]
    return out, overflows, int(least.min()) if len(least) else None

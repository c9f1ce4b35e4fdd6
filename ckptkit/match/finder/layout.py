"""Tensors seen in another layout, and the comparison that proves a match.

Nothing is moved: a permuted, cut or rearranged tensor is a strided view of the bytes that are there, read
block by block while it is compared.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from operator import mul
from typing import TYPE_CHECKING, Any

from ckptkit.core.arrays import gather
from ckptkit.core.dtypes import DType
from ckptkit.core.storage import FileStorage, MemoryStorage, Storage
from ckptkit.core.tensor import Buffer, Extent, Tally, Tensor
from ckptkit.core.views import view
from ckptkit.ops.cast import Cast, cast

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

BLOCK = 1 << 18  # bytes compared at once: buffers that stay in the cache, a third faster than 1 MiB
GATHERED = (
    1 << 30
)  # bytes: a tensor that is not stored plainly is held in memory to be rearranged, up to this

Lattice = tuple[tuple[int, int], ...]  # (count, step) per level, outermost first


def equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same bytes, dtype and shape apart. Stops at the first difference."""
    import numpy as np

    if a.nbytes != b.nbytes:
        return False
    left, right = a.chunks(BLOCK), b.chunks(BLOCK)
    x = y = np.empty(0, np.uint8)
    while True:
        if not len(x):
            x = np.frombuffer(next(left, b""), np.uint8)
        if not len(y):
            y = np.frombuffer(next(right, b""), np.uint8)
        size = min(len(x), len(y))
        if not size:
            return len(x) == len(y)
        if not _same(x[:size], y[:size]):
            return False
        x, y = x[size:], y[size:]


def _same(x: "Array", y: "Array") -> bool:
    import numpy as np

    whole = len(x) & ~7
    return np.array_equal(x[:whole].view("u8"), y[:whole].view("u8")) and np.array_equal(x[whole:], y[whole:])


def contiguous(shape: Sequence[int]) -> list[int]:
    """Row-major strides in elements."""
    return list(accumulate(reversed(shape[1:]), mul, initial=1))[::-1] if shape else []


def strided(tensor: Tensor, shape: Sequence[int], strides: Sequence[int], start: int = 0) -> Tensor:
    """The elements of a `movable` tensor, counted in its own row-major order, through other strides.

    Raises what reading raises.
    """
    if isinstance(tensor.source, Cast):
        inner = strided(tensor.source.origin, shape, strides, start)
        return cast(inner, tensor.dtype)
    return view(_storage(tensor), tensor.dtype, shape, strides, start)


def movable(tensor: Tensor) -> bool:
    """Whether the tensor can be seen through other strides without holding more than `GATHERED` bytes."""
    if isinstance(tensor.source, Cast):
        return movable(tensor.source.origin)
    return tensor.file is not None or tensor.nbytes <= GATHERED


def _storage(tensor: Tensor) -> Storage:
    if tensor.file is not None:
        return FileStorage(tensor.file, tensor.offset, tensor.nbytes)
    return MemoryStorage(gather(tensor).data, object())


def picked(
    tensor: Tensor, dim: int, base: int, lattice: Lattice, shape: Sequence[int] | None = None
) -> Tensor:
    """The indices `base + Σ i·step` along `dim`, in row-major order of the lattice's counters.

    `shape` reads the tensor's elements under another shape.
    """
    shape = tensor.shape if shape is None else shape
    strides = contiguous(shape)
    unit = strides[dim]
    sizes = [*shape[:dim], *(n for n, _ in lattice), *shape[dim + 1 :]]
    steps = [*strides[:dim], *(step * unit for _, step in lattice), *strides[dim + 1 :]]
    return strided(tensor, sizes, steps, base * unit)


def cast_to(tensor: Tensor, dtype: DType) -> Tensor:
    """The tensor's values in another float or integer dtype: `ops.cast`, and integers that are checked to fit.

    Raises CkptError `dtype-unsupported` for a pair of dtypes that are not cast into each other.
    """
    if tensor.dtype is dtype:
        return tensor
    if tensor.dtype.name in INTEGERS and dtype.name in INTEGERS:
        return Tensor(dtype, tensor.shape, source=_Integers(tensor, dtype))
    return cast(tensor, dtype)


INTEGERS = frozenset({"int64", "int32", "int16", "int8", "uint8", "bool"})
FLOATS = frozenset({"float64", "float32", "float16", "bfloat16"})
NARROW = FLOATS | {"float8_e4m3fn", "float8_e5m2"}


def castable(source: DType, target: DType) -> bool:
    """Whether `cast_to` knows the pair, the dtypes being different."""
    if source is target:
        return False
    if source.name in INTEGERS:
        return target.name in INTEGERS
    return source.name in FLOATS and target.name in NARROW


class _Integers:
    """Integers in another width; a value that does not fit wraps, which the proof in both directions finds out."""

    __slots__ = ("dtype", "origin")

    def __init__(self, origin: Tensor, dtype: DType) -> None:
        self.origin, self.dtype = origin, dtype

    @property
    def identity(self) -> object:
        return ("integers", self.origin.storage, self.dtype.name)

    @property
    def extents(self) -> tuple[Extent, ...]:
        return self.origin.extents

    def memory(self, limit: int) -> int:
        return self.origin.memory(limit) + limit

    def chunks(self, limit: int, tally: Tally | None = None) -> Iterator[Buffer]:
        import numpy as np

        wide, narrow = self.origin.dtype.bits // 8, self.dtype.bits // 8
        step = max(1, limit // max(wide, narrow)) * wide
        for chunk in self.origin.chunks(step, tally):
            values: Array = np.frombuffer(chunk, _STORED[self.origin.dtype.name])
            yield values.astype(_STORED[self.dtype.name]).view(np.uint8).data


_STORED = {"int64": "i8", "int32": "i4", "int16": "i2", "int8": "i1", "uint8": "u1", "bool": "u1"}

"""Rearranging a tensor's elements without touching them: reshape, permute, narrow.

Over stored bytes all of these are strided views (`ckptkit.core.views`), which compose and are read in bounded memory; a
range of rows of a plain tensor is a plain tensor. What no view can express (elements that can only be produced
in order) is streamed past, or held as a whole where the order changes.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod

from ckptkit.core.arrays import gather, pack, unpack
from ckptkit.core.errors import CkptError
from ckptkit.core.storage import FileStorage, MemoryStorage, Storage
from ckptkit.core.tensor import Buffer, Extent, Tally, Tensor
from ckptkit.core.views import WINDOW, View, view
from ckptkit.ops.join import Joined, joined
from ckptkit.ops.pull import Puller


def reshape(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """The same elements in the same order under another shape; one size may be -1. Moves nothing.

    Raises CkptError `op-shape` unless the sizes multiply to the number of elements.
    """
    if -1 not in shape and prod(shape) == tensor.size and min(shape, default=0) >= 0:
        return tensor if tuple(shape) == tensor.shape else _shaped(tensor, tuple(shape))
    known = prod(n for n in shape if n != -1)
    sizes = tuple(tensor.size // known if n == -1 and known else n for n in shape)
    if list(shape).count(-1) > 1 or min(sizes, default=0) < 0 or prod(sizes) != tensor.size:
        raise CkptError("op-shape", f"shape {list(tensor.shape)} cannot become {list(shape)}")
    return _shaped(tensor, sizes)


def _shaped(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    return Tensor(
        tensor.dtype, shape, tensor.file, tensor.offset, tensor.source, tensor.kind, note=tensor.note
    )


def axis(tensor: Tensor, dim: int) -> int:
    """`dim` counted from the front. Raises CkptError `op-shape` if the tensor has no such dimension."""
    rank = len(tensor.shape)
    if not -rank <= dim < rank:
        raise CkptError("op-shape", f"shape {list(tensor.shape)} has no dimension {dim}")
    return dim % rank


def permute(tensor: Tensor, order: Sequence[int]) -> Tensor:
    """Dimensions in another order, as torch's `permute`. Raises CkptError `op-shape` if `order` is none."""
    rank = len(tensor.shape)
    dims = [axis(tensor, dim) for dim in order]
    if sorted(dims) != list(range(rank)):
        raise CkptError("op-shape", f"{list(order)} does not order the {rank} dimensions")
    if not tensor.size or [d for d in dims if tensor.shape[d] != 1] == sorted(
        d for d in dims if tensor.shape[d] != 1
    ):
        return reshape(tensor, [tensor.shape[d] for d in dims])
    placed = _placed(tensor)
    strides = placed.strides if placed else contiguous(tensor.shape)
    start = placed.start if placed else 0
    return _viewed(
        tensor, placed, tuple(tensor.shape[d] for d in dims), tuple(strides[d] for d in dims), start
    )


def narrow(tensor: Tensor, dim: int, start: int, stop: int, step: int = 1) -> Tensor:
    """The indices `start`, `start + step`, … below `stop` of a dimension, counted as in Python's slices.

    Raises CkptError `op-shape` when they lie outside the dimension.
    """
    at = axis(tensor, dim)
    size = tensor.shape[at]
    start, stop = (n + size if n < 0 else n for n in (start, stop))
    if not 0 <= start <= stop <= size or step < 1:
        raise CkptError("op-shape", f"{start}:{stop}:{step} does not lie in dimension {dim} of size {size}")
    count = -(-(stop - start) // step)
    if count == size:
        return tensor
    shape = (*tensor.shape[:at], count, *tensor.shape[at + 1 :])
    if not prod(shape):
        return joined((), shape, tensor.dtype, tensor.kind)
    outer, inner = prod(tensor.shape[:at]), prod(tensor.shape[at + 1 :])
    if step == 1:
        if isinstance(tensor.source, Joined) and tensor.source.outer == 1 and outer == 1:
            return _of_joined(tensor, tensor.source, shape, start * inner, stop * inner)
        if tensor.file is not None and outer == 1 and not start * inner * tensor.dtype.bits & 7:
            return replace(tensor, shape=shape, offset=tensor.offset + start * inner * tensor.dtype.bits // 8)
    placed = _placed(tensor)
    if placed is None and step == 1 and not inner * tensor.dtype.bits & 7:
        unit = inner * tensor.dtype.bits // 8
        window = Window(tensor, size * unit, start * unit, stop * unit)
        return Tensor(tensor.dtype, shape, source=window, kind=tensor.kind)
    strides = list(placed.strides if placed else contiguous(tensor.shape))
    first = (placed.start if placed else 0) + start * strides[at]
    strides[at] *= step
    return _viewed(tensor, placed, shape, tuple(strides), first)


def contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    """Row-major strides, in elements."""
    strides = []
    step = 1
    for n in reversed(shape):
        strides.append(step)
        step *= n
    return tuple(reversed(strides))


@dataclass(frozen=True, slots=True)
class _Placed:
    """Where each element lies in a storage."""

    storage: Storage
    strides: tuple[int, ...]
    start: int = 0
    swap: bool = False
    conj: bool = False
    neg: bool = False


def _placed(tensor: Tensor) -> _Placed | None:
    """The strided view that a tensor is; None for one whose elements can only be produced in order."""
    if tensor.dtype.bits & 7 or tensor.dtype.bits == 0 or not tensor.size:
        return None
    if tensor.file is not None:
        storage = FileStorage(tensor.file, tensor.offset, tensor.nbytes)
        return _Placed(storage, contiguous(tensor.shape))
    if not isinstance(tensor.source, View):
        return None
    source = tensor.source
    strides: list[int] = []
    dims = list(source.dims)
    size, stride = dims.pop() if dims else (1, 1)
    for n in reversed(tensor.shape):
        if size == 1 and n != 1:
            if not dims:
                return None
            size, stride = dims.pop()
        if size % n:
            return None  # reshaped across what the view keeps apart
        strides.append(stride)
        size, stride = size // n, stride * n
    placed = tuple(reversed(strides))
    return _Placed(source.origin, placed, source.start, source.swap, source.conj, source.neg)


def _viewed(
    tensor: Tensor, placed: _Placed | None, shape: tuple[int, ...], strides: tuple[int, ...], start: int
) -> Tensor:
    if placed is None:
        held = Held(tensor, shape, strides, start)
        return Tensor(tensor.dtype, shape, source=held, kind=tensor.kind)
    return view(
        placed.storage,
        tensor.dtype,
        shape,
        strides,
        start,
        swap=placed.swap,
        conj=placed.conj,
        neg=placed.neg,
        kind=tensor.kind,
    )


def _of_joined(tensor: Tensor, source: Joined, shape: tuple[int, ...], start: int, stop: int) -> Tensor:
    """The elements from `start` to `stop` of tensors that follow each other."""
    found = []
    at = 0
    for part in source.parts:
        first, last = max(start, at), min(stop, at + part.size)
        if first < last:
            found.append(narrow(reshape(part, [part.size]), 0, first - at, last - at))
        at += part.size
    return joined(found, shape, tensor.dtype, tensor.kind)


@dataclass(frozen=True, slots=True)
class Window:
    """Of every `period` bytes of a tensor those from `start` to `stop`; the rest is read and passed over."""

    origin: Tensor
    period: int
    start: int
    stop: int

    @property
    def identity(self) -> Hashable:
        return ("window", self.origin.storage, self.period, self.start, self.stop)

    @property
    def extents(self) -> tuple[Extent, ...]:
        return self.origin.extents

    def memory(self, limit: int) -> int:
        return self.origin.memory(limit) + limit

    def chunks(self, limit: int, tally: Tally | None = None) -> Iterator[Buffer]:
        kept = self.stop - self.start
        periods = self.origin.nbytes // self.period
        pull = Puller(self.origin, limit, tally)
        together = limit // self.period
        if together > 1:
            import numpy as np

            for first in range(0, periods, together):
                count = min(together, periods - first)
                block = np.empty((count, self.period), np.uint8)
                pull.into(block.data.cast("B"))
                yield np.ascontiguousarray(block[:, self.start : self.stop]).data.cast("B")
            return
        for _ in range(periods):
            pull.skip(self.start)
            yield from pull.pieces(kept)
            pull.skip(self.period - self.stop)


@dataclass(frozen=True, slots=True)
class Held:
    """A strided rearrangement of a tensor whose elements only come in order: all of it is held in memory."""

    origin: Tensor
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    start: int

    @property
    def identity(self) -> Hashable:
        return ("held", self.origin.storage, self.strides, self.start)

    @property
    def extents(self) -> tuple[Extent, ...]:
        return self.origin.extents

    def memory(self, limit: int) -> int:
        whole = self.origin.nbytes
        if self.origin.dtype.bits & 7:  # unpacked, strided, packed again
            return self.origin.memory() + 2 * whole + 3 * self.origin.size
        return self.origin.memory() + whole + min(whole, WINDOW) + limit + (2 << 20)

    def chunks(self, limit: int, tally: Tally | None = None) -> Iterator[Buffer]:
        dtype = self.origin.dtype
        data = gather(self.origin)
        if not dtype.bits & 7:
            yield from view(
                MemoryStorage(data.data, None), dtype, self.shape, self.strides, self.start
            ).chunks(limit)
            return
        from numpy.lib.stride_tricks import as_strided

        elements = unpack(data, dtype, self.origin.size)
        strided = as_strided(elements[self.start :], self.shape, self.strides, writeable=False)
        packed = memoryview(pack(strided, dtype))
        for at in range(0, len(packed), limit):
            yield packed[at : at + limit]

"""Strided views of a storage: what torch's `(storage, offset, size, stride)` means, read in bounded memory.

A view that needs no rearranging is just a range of a file and becomes a plain `Tensor`. Any other one is
gathered block by block. A block is a run of the output; in storage it is a box of strided runs, which are read in
storage order, neighbours together, through a scratch buffer that fits the processor's cache. When the strides
descend, as in slices, a block is one chunk and each stored byte is read about once. When they do not, as in
transposed tensors, blocks are as large as `WINDOW` allows, so that each brings in long runs and a large matrix
is not read again for each of its rows.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING, Any

from ckptkit.core.dtypes import DType
from ckptkit.core.errors import CkptError
from ckptkit.core.storage import Cursor, FileStorage, MemoryStorage, Storage
from ckptkit.core.tensor import Buffer, Extent, Tally, Tensor

if TYPE_CHECKING:
    import numpy as np

WINDOW = 32 << 20  # bytes of output gathered at once when strides do not descend
SCRATCH = 512 << 10  # bytes gathered before they are put in place
GAP = 4 << 10  # reading this much for nothing is cheaper than another call

_MOST = 1 << 63
_RANK = 1024  # dimensions; torch's own operations stop at 64

Dims = tuple[tuple[int, int], ...]  # (size, stride) in elements, outermost first


def view(
    storage: Storage,
    dtype: DType,
    shape: Sequence[int],
    strides: Sequence[int],
    start: int,
    *,
    swap: bool = False,
    conj: bool = False,
    neg: bool = False,
    kind: str = "",
    note: str = "",
) -> Tensor:
    """The tensor that a storage shows through `shape`, `strides` and `start`, all counted in elements.

    `swap` means that the stored numbers are big-endian; `conj` and `neg` are torch's lazy bits: the values are
    the conjugates, the negatives, of what is stored.

    Raises CkptError `view-invalid` for anything but non-negative ints, equally many, whose last element lies
    within the storage, for 2^63 elements or 1024 dimensions or more, and for bits that torch refuses on the dtype;
    `dtype-unsupported` for elements narrower than a byte that cannot be moved as whole bytes.
    """
    if len(shape) != len(strides):
        raise CkptError("view-invalid", f"a tensor has {len(shape)} sizes but {len(strides)} strides")
    if len(shape) >= _RANK:
        raise CkptError("view-invalid", f"a tensor has {len(shape)} dimensions")
    if type(start) is not int or start < 0:
        raise _invalid(shape, strides, start, "the start is not a count")
    size = 1
    last = start
    contiguous = True
    for n, stride in zip(reversed(shape), reversed(strides), strict=True):
        if type(n) is not int or type(stride) is not int or n < 0 or stride < 0:
            raise _invalid(shape, strides, start, "sizes and strides must be counts")
        if n != 1:
            if stride != size:
                contiguous = False
            last += (n - 1) * stride
            size *= n
    bits = dtype.bits
    if size == 0:
        if max(shape) >= _MOST:
            raise _invalid(shape, strides, start, "a size passes 2^63")
        contiguous = True
        start = 0
    elif size >= _MOST:
        raise _invalid(shape, strides, start, "2^63 elements or more")
    elif (last + 1) * bits > storage.nbytes * 8:
        raise _invalid(shape, strides, start, f"it leaves its storage of {storage.nbytes} bytes")
    if contiguous and type(storage) is FileStorage and not (swap or conj or neg or start * bits & 7):
        offset = storage.offset + (start * bits >> 3)
        return Tensor(dtype, tuple(shape), storage.file, offset, kind=kind, note=note)
    if conj and dtype.kind != "complex":
        raise CkptError("view-invalid", f"{dtype} values have no conjugates")
    if neg and dtype.name not in _NEGATED:
        raise CkptError("view-invalid", f"{dtype} values cannot be negated")
    dims = ((size, 1),) if contiguous else _coalesced(shape, strides)
    if bits & 7:
        dims, start = _whole_bytes(dtype, dims, start)
    source = View(storage, dtype, dims, start, swap and dtype.parts > 1, conj, neg)
    return Tensor(dtype, tuple(shape), source=source, kind=kind, note=note)


# fmt: off
_NEGATED = frozenset({  # what torch negates
    "float64", "float32", "float16", "bfloat16", "complex128", "complex64", "complex32",
    "int64", "int32", "int16", "int8", "uint8",
})
# fmt: on


def _invalid(shape: Sequence[int], strides: Sequence[int], start: int, why: str) -> CkptError:
    shown = (str(part) if _printable(part) else "…" for part in (shape, strides, start))
    return CkptError("view-invalid", "a tensor has shape {}, strides {}, start {}: {}".format(*shown, why))


def _printable(value: object) -> bool:
    """Whether it is an integer, or a few, of printable size: huge ones take long, and may be refused."""
    if isinstance(value, tuple | list):
        return len(value) <= 16 and all(isinstance(n, int) and n.bit_length() < 256 for n in value)
    return isinstance(value, int) and value.bit_length() < 256


def _coalesced(shape: Sequence[int], strides: Sequence[int]) -> Dims:
    """The same elements in the same order with as few dimensions as possible."""
    dims: list[tuple[int, int]] = []
    for n, stride in zip(shape, strides, strict=True):
        if n == 1:
            continue
        if dims and dims[-1][1] == n * stride:
            dims[-1] = (dims[-1][0] * n, stride)
        else:
            dims.append((n, stride))
    return tuple(dims)


def _whole_bytes(dtype: DType, dims: Dims, start: int) -> tuple[Dims, int]:
    """The view counted in bytes, for elements of which several share one."""
    if len(dims) <= 1 and (not dims or dims[0][1] == 1) and start * dtype.bits % 8 == 0:
        return ((dtype.nbytes(prod(n for n, _ in dims)), 1),), start * dtype.bits // 8
    per, left = divmod(8, dtype.bits)
    outer, (n, stride) = dims[:-1], dims[-1]
    if left or stride != 1 or any(count % per for count in (start, n, *(s for _, s in outer))):
        raise CkptError("dtype-unsupported", f"a strided view of {dtype} divides bytes")
    return (*((size, s // per) for size, s in outer), (n // per, 1)), start // per


@dataclass(frozen=True, slots=True)
class View:
    """A strided view as the source of a tensor; made by `view`, which checks.

    `dims` and `start` count elements (bytes for sub-byte types); sizes of 1 are gone and neighbours merged.
    """

    origin: Storage
    dtype: DType
    dims: Dims
    start: int
    swap: bool
    conj: bool
    neg: bool

    @property
    def identity(self) -> Hashable:
        return (self.origin.identity, self.dims, self.start, self.swap, self.conj, self.neg)

    @property
    def extents(self) -> tuple[Extent, ...]:
        """The span of stored bytes from the first element to the last; a deflated storage as a whole."""
        found = self.origin.extents
        if len(found) == 1 and isinstance(self.origin, FileStorage):
            first, stop = self._span()
            return (Extent(self.origin.file, self.origin.offset + first, stop - first),)
        return found

    def memory(self, limit: int) -> int:
        nbytes = self._nbytes()
        if self._as_stored() or not nbytes:
            return self.origin.memory(self._step(limit))
        block = min(nbytes, self._block(limit))
        inflated = 0
        if not self.origin.seekable:
            first, stop = self._span()
            inflated = self.origin.memory(_inflated(stop - first))
        return block + 2 * SCRATCH + inflated

    def chunks(self, limit: int, tally: Tally | None = None) -> Iterator[Buffer]:
        if not self._nbytes():
            return
        first, stop = self._span()
        if self._as_stored():
            yield from self.origin.stream(first, stop, self._step(limit))
            return
        import numpy as np

        origin = self.origin
        start = self.start
        unit = self._unit()
        if not origin.seekable and stop - first <= WINDOW:
            origin = MemoryStorage(origin.read(first, stop - first), None)
            start -= first // unit
        step = self._step(limit)
        buffer = bytearray(max(unit, min(self._nbytes(), self._block(limit))))
        out = np.frombuffer(buffer, _MOVED[unit])
        scratch = np.empty(min(SCRATCH, stop - first + unit) // unit * unit, "u1")
        with origin.open() as cursor, memoryview(buffer) as whole:
            for at, box in _blocks(self.dims, start, len(out)):
                count = prod(n for n, _ in box)
                _gather(cursor, at, box, out[:count].reshape([n for n, _ in box]), scratch)
                self._resolve(buffer, count * unit)
                for begin in range(0, count * unit, step):
                    yield whole[begin : min(begin + step, count * unit)]

    def _unit(self) -> int:
        """Bytes of what is moved: an element, or a byte of packed ones."""
        return max(1, self.dtype.bits // 8)

    def _nbytes(self) -> int:
        return prod(n for n, _ in self.dims) * self._unit()

    def _span(self) -> tuple[int, int]:
        """First and last + 1 byte of the storage that the view sees."""
        unit = self._unit()
        return self.start * unit, (self.start + 1 + sum((n - 1) * stride for n, stride in self.dims)) * unit

    def _as_stored(self) -> bool:
        plain = not self.dims or (len(self.dims) == 1 and self.dims[0][1] == 1)
        return plain and not (self.swap or self.conj or self.neg)

    def _step(self, limit: int) -> int:
        unit = self._unit()
        return max(unit, limit - limit % unit)

    def _block(self, limit: int) -> int:
        """Bytes of output to gather at once."""
        moving = [stride for _, stride in self.dims if stride]
        if all(outer >= inner for outer, inner in pairwise(moving)):
            return min(self._step(limit), WINDOW)
        return WINDOW

    def _resolve(self, buffer: bytearray, nbytes: int) -> None:
        """Turn stored numbers into values, in place."""
        import numpy as np

        if not (self.swap or self.conj or self.neg):
            return
        width = self.dtype.parts
        parts: np.ndarray[Any, Any] = np.frombuffer(buffer, f"u{width}", count=nbytes // width)
        if self.swap:
            parts.byteswap(inplace=True)
        if self.neg and self.dtype.kind in ("int", "uint"):
            np.negative(parts, out=parts)
            return
        sign = parts.dtype.type(1 << (8 * width - 1))
        if self.dtype.kind != "complex":
            if self.neg:
                parts ^= sign
            return
        if self.neg:
            parts[0::2] ^= sign
        if self.neg != self.conj:
            parts[1::2] ^= sign


# What numpy moves elements of a width as; none of them touches the bits.
_MOVED = {1: "u1", 2: "u2", 4: "u4", 8: "u8", 16: "c16"}


def _inflated(span: int) -> int:
    return span if span <= WINDOW else SCRATCH


def _blocks(dims: Dims, start: int, most: int) -> Iterator[tuple[int, Dims]]:
    """Cut the output into runs of at most `most` elements: where each begins in storage, and its box."""
    count = 1
    cut = len(dims)
    while cut and count * dims[cut - 1][0] <= most:
        cut -= 1
        count *= dims[cut][0]
    if not cut:
        yield start, dims
        return
    n, stride = dims[cut - 1]
    rows = max(1, most // count)
    for at in _positions(dims[: cut - 1], start):
        for row in range(0, n, rows):
            yield at + row * stride, ((min(rows, n - row), stride), *dims[cut:])


def _positions(dims: Dims, start: int) -> Iterator[int]:
    """Where each index of `dims` lies, in row-major order."""
    index = [0] * len(dims)
    at = start
    while True:
        yield at
        for axis in range(len(dims) - 1, -1, -1):
            n, stride = dims[axis]
            index[axis] += 1
            at += stride
            if index[axis] < n:
                break
            at -= n * stride
            index[axis] = 0
        else:
            return


def _gather(
    cursor: Cursor, start: int, box: Dims, out: "np.ndarray[Any, Any]", scratch: "np.ndarray[Any, Any]"
) -> None:
    """Fill `out`, which has the box's shape, reading in storage order through the bytes of `scratch`."""
    import numpy as np
    from numpy.lib.stride_tricks import as_strided

    unit = out.itemsize
    data = scratch.data
    elements = scratch.view(out.dtype)
    order = sorted(range(len(box)), key=lambda axis: -box[axis][1])
    repeated = [axis for axis in order if box[axis][1] == 0]
    order = [axis for axis in order if box[axis][1]]
    target = out.transpose(repeated + order)  # leading axes are filled by broadcasting
    everywhere = (slice(None),) * len(repeated)
    dims = [box[axis] for axis in order]

    # The innermost dimensions are read as one run with its gaps, as far as gaps are small and scratch suffices.
    room = len(elements)
    run = 1
    inner = len(dims)
    while inner:
        n, stride = dims[inner - 1]
        if (stride - run) * unit > GAP or run + (n - 1) * stride > room:
            break
        run += (n - 1) * stride
        inner -= 1
    sizes = [n for n, _ in dims[inner:]]
    steps = [stride * unit for _, stride in dims[inner:]]
    if not inner:
        cursor.read_into(start * unit, data[: run * unit])
        target[...] = as_strided(elements, sizes, steps, writeable=False)
        return

    # The next dimension is taken in groups: as one longer run, or as several runs side by side in scratch.
    n, stride = dims[inner - 1]
    together = (stride - run) * unit <= GAP
    apart = stride if together else run
    group = min(n, max(1, (room - run) // apart + 1))
    outer = tuple(dims[: inner - 1])
    for index, at in zip(np.ndindex(*(n for n, _ in outer)), _positions(outer, start), strict=True):
        for first in range(0, n, group):
            count = min(group, n - first)
            begin = (at + first * stride) * unit
            if together:
                cursor.read_into(begin, data[: (run + (count - 1) * stride) * unit])
            else:
                size = run * unit
                for k in range(count):
                    cursor.read_into(begin + k * stride * unit, data[k * size : (k + 1) * size])
            target[(*everywhere, *index, slice(first, first + count))] = as_strided(
                elements, [count, *sizes], [apart * unit, *steps], writeable=False
            )

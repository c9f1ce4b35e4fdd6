"""A tensor as a manifest entry: element type, shape, and where its bytes lie.

Nearly every tensor is a plain run of bytes in a file and is held as (file, offset). Everything else
(strided views, deflated archive members, swapped byte order, values computed by an operation) stands behind a
`Source`.
"""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ckptkit.core.dtypes import DType
from ckptkit.core.files import File

if TYPE_CHECKING:
    import numpy as np

Buffer = bytes | bytearray | memoryview

DEFAULT_CHUNK = 4 << 20


class Extent(NamedTuple):
    """A run of bytes of a file."""

    file: File
    offset: int
    nbytes: int


class Tally:
    """Counts of the losses that show only in the values (overflow in a cast), filled while streaming."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def add(self, code: str, count: int) -> None:
        if count:
            self.counts[code] = self.counts.get(code, 0) + count


class Source(Protocol):
    """Anything that can produce a tensor's bytes, without holding them."""

    @property
    def identity(self) -> Hashable:
        """Equal for two sources that show the same stored elements in the same layout (a tie)."""

    @property
    def extents(self) -> tuple[Extent, ...]:
        """The stored bytes that this source reads, for stored-size and overlap accounting."""

    def memory(self, limit: int) -> int:
        """Upper bound, in bytes, of what `chunks(limit)` holds at any moment, its chunk included."""

    def chunks(self, limit: int, tally: Tally | None = None) -> Iterator[Buffer]:
        """The elements, row-major, little-endian, sub-byte types packed low bits first.

        Each chunk is at most `limit` bytes (but at least one element) and ends between two elements
        (between two bytes for sub-byte types). Raises CkptError when the bytes cannot be had.
        """


@dataclass(frozen=True, slots=True, eq=False, init=False)
class Tensor:
    """One named entry's content. Compared and hashed by identity; see `same_storage` for ties.

    Attributes:
        dtype: element type.
        shape: dimensions in elements, outermost first; () for a scalar.
        file, offset: where the packed row-major little-endian bytes start, for plain stored bytes.
        source: what produces the bytes otherwise; exactly one of `file` and `source` is set.
        kind: what the format calls it (`parameter`, `buffer`, `initializer`, `constant`, …); may be "".
        note: an oddity worth showing beside it ("local shard of 4096×4096"); usually "".
        loss: code of what is lost when it is written as a plain tensor (`sparse-as-parts`, `nested-as-parts`,
            `local-shard`); "" for nothing.
    """

    dtype: DType
    shape: tuple[int, ...]
    file: File | None = None
    offset: int = 0
    source: Source | None = None
    kind: str = ""
    note: str = field(default="", kw_only=True)
    loss: str = field(default="", kw_only=True)

    def __init__(
        self,
        dtype: DType,
        shape: tuple[int, ...],
        file: File | None = None,
        offset: int = 0,
        source: Source | None = None,
        kind: str = "",
        *,
        note: str = "",
        loss: str = "",
    ) -> None:
        # The slots are set directly: what a frozen dataclass would do costs twice as much, 200,000 times over.
        _set_dtype(self, dtype)
        _set_shape(self, shape)
        _set_file(self, file)
        _set_offset(self, offset)
        _set_source(self, source)
        _set_kind(self, kind)
        _set_note(self, note)
        _set_loss(self, loss)

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Logical size in bytes: packed elements, whatever is stored. Strings: what their source states."""
        if self.dtype.bits == 0:
            return int(getattr(self.source, "nbytes", 0))
        return (prod(self.shape) * self.dtype.bits + 7) // 8

    @property
    def storage(self) -> Hashable:
        """Identity of stored elements and layout: equal for tied tensors, None for an empty tensor."""
        nbytes = self.nbytes
        if nbytes == 0:
            return None
        place = (self.file, self.offset) if self.source is None else self.source.identity
        return (place, self.dtype.name, self.shape)

    @property
    def extents(self) -> tuple[Extent, ...]:
        """The stored bytes behind the tensor; for a plain one its own bytes."""
        if self.source is not None:
            return self.source.extents
        assert self.file is not None
        return (Extent(self.file, self.offset, self.nbytes),)

    def memory(self, limit: int = DEFAULT_CHUNK) -> int:
        """Upper bound, in bytes, of what `chunks(limit)` holds at any moment."""
        return min(limit, self.nbytes) if self.source is None else self.source.memory(limit)

    def chunks(self, limit: int = DEFAULT_CHUNK, tally: Tally | None = None) -> Iterator[Buffer]:
        """The bytes in row-major little-endian order, in buffers of at most `limit` bytes.

        A buffer is valid until the next one is asked for. Raises CkptError (`truncated`, `changed-on-disk`,
        `io-error`, …).
        """
        if self.source is not None:
            yield from self.source.chunks(limit, tally)
            return
        assert self.file is not None
        unit = max(1, self.dtype.bits // 8)
        step = max(unit, limit - limit % unit)
        end = self.offset + self.nbytes
        with self.file.open() as reader:
            for start in range(self.offset, end, step):
                yield reader.read(start, min(step, end - start))

    def tobytes(self) -> bytes:
        """All bytes at once, row-major little-endian."""
        return b"".join(bytes(chunk) for chunk in self.chunks(max(self.nbytes, 1)))  # buffers are reused

    def numpy(self) -> "np.ndarray[Any, Any]":
        """The values as a read-only numpy array of `shape` (ml_dtypes for bfloat16, float8, int4, …).

        Plain tensors are memory-mapped, not read. Sub-byte types are unpacked to one element per byte.
        Raises CkptError `dtype-unsupported` for types numpy cannot hold (complex32, string).
        """
        from ckptkit.core.arrays import to_numpy

        return to_numpy(self)


_set_dtype, _set_shape, _set_file, _set_offset, _set_source, _set_kind, _set_note, _set_loss = (
    Tensor.__dict__[name].__set__
    for name in ("dtype", "shape", "file", "offset", "source", "kind", "note", "loss")
)

"""Flat runs of stored bytes: of a file, of a deflated archive member, of memory.

A storage is what strided views (`ckptkit.core.views`) look at. Positions and sizes are in bytes.
"""

import zlib
from collections.abc import Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from threading import Lock
from typing import NamedTuple, Protocol

from ckptkit.core.budgets import DEFAULT_BUDGETS, Budgets
from ckptkit.core.errors import CkptError
from ckptkit.core.files import File, Reader
from ckptkit.core.tensor import Buffer, Extent

_PACKED = 64 << 10  # deflated bytes fed at a time
_PIECE = 1 << 20  # inflated bytes taken at a time while skipping
_MARKS = 64  # places kept per deflated storage where inflating can resume, some 40 KB each
_MARK_EVERY = 4 << 20  # never nearer to each other than this
_RECENT = 4  # deflated storages that keep theirs: those read last


class Cursor(Protocol):
    """An opened storage."""

    def read_into(self, start: int, buffer: memoryview) -> None:
        """Fill the byte buffer with what lies at `start`; reads that go forward are cheap on every storage."""


class Storage(Protocol):
    """A run of `nbytes` bytes. Callers stay within it: reading outside is a defect, not bad input."""

    @property
    def nbytes(self) -> int: ...

    @property
    def seekable(self) -> bool:
        """Whether going backwards costs nothing."""

    @property
    def identity(self) -> Hashable:
        """Equal for storages that hold the same bytes at the same place."""

    @property
    def extents(self) -> tuple[Extent, ...]:
        """Where the bytes lie on disk; empty when they lie in memory."""

    def open(self) -> AbstractContextManager[Cursor]:
        """Random access; as a context manager. Raises CkptError, as does the cursor, when the bytes cannot be had."""

    def read(self, start: int, size: int) -> Buffer:
        """The bytes at `start`."""

    def stream(self, start: int, stop: int, limit: int) -> Iterator[Buffer]:
        """The bytes from `start` to `stop` in buffers of exactly `limit` bytes (the last one may be shorter),
        each valid until the next one is asked for."""

    def memory(self, limit: int) -> int:
        """Upper bound in bytes of what `stream` holds, its buffer included."""


class _Stored:
    """`read` and `stream` by way of `open`."""

    __slots__ = ()

    def open(self) -> AbstractContextManager[Cursor]:
        raise NotImplementedError

    def read(self, start: int, size: int) -> Buffer:
        data = bytearray(size)
        with self.open() as cursor:
            cursor.read_into(start, memoryview(data))
        return data

    def stream(self, start: int, stop: int, limit: int) -> Iterator[Buffer]:
        if start >= stop:
            return
        buffer = memoryview(bytearray(min(limit, stop - start)))
        with self.open() as cursor:
            for at in range(start, stop, limit):
                piece = buffer[: min(limit, stop - at)]
                cursor.read_into(at, piece)
                yield piece


@dataclass(frozen=True, slots=True)
class FileStorage(_Stored):
    """`nbytes` bytes of a file from `offset`."""

    file: File
    offset: int
    nbytes: int

    @property
    def seekable(self) -> bool:
        return True

    @property
    def identity(self) -> Hashable:
        return (self.file, self.offset)

    @property
    def extents(self) -> tuple[Extent, ...]:
        return (Extent(self.file, self.offset, self.nbytes),)

    @contextmanager
    def open(self) -> Iterator[Cursor]:
        with self.file.open() as reader:
            yield _FileCursor(reader, self.offset)

    def memory(self, limit: int) -> int:
        return min(limit, self.nbytes)


class _FileCursor:
    __slots__ = ("offset", "reader")

    def __init__(self, reader: Reader, offset: int) -> None:
        self.reader = reader
        self.offset = offset

    def read_into(self, start: int, buffer: memoryview) -> None:
        self.reader.read_into(self.offset + start, buffer)


@dataclass(frozen=True, slots=True)
class MemoryStorage:
    """Bytes held in memory; `extents` says where they came from, if they lie in a file as they are."""

    data: Buffer = field(repr=False, hash=False, compare=False)
    identity: Hashable
    extents: tuple[Extent, ...] = ()

    @property
    def nbytes(self) -> int:
        return len(self.data)

    @property
    def seekable(self) -> bool:
        return True

    def open(self) -> AbstractContextManager[Cursor]:
        return nullcontext(self)

    def read_into(self, start: int, buffer: memoryview) -> None:
        buffer[:] = memoryview(self.data)[start : start + len(buffer)]

    def read(self, start: int, size: int) -> Buffer:
        return memoryview(self.data)[start : start + size]

    def stream(self, start: int, stop: int, limit: int) -> Iterator[Buffer]:
        for at in range(start, stop, limit):
            yield self.read(at, min(limit, stop - at))

    def memory(self, limit: int) -> int:
        return min(limit, len(self.data))


class _Mark(NamedTuple):
    """A place where inflating can resume: an inflator that has used `packed` bytes and given `position` bytes."""

    position: int
    packed: int
    inflator: "zlib._Decompress"


class InflatedStorage(_Stored):
    """`nbytes` bytes that lie in a file as a raw DEFLATE stream of `packed_nbytes` bytes at `offset`.

    Inflated as it is read, with a few buffers of memory; places to resume are remembered, so that going back
    does not begin at the beginning, and many views read in order cost one pass. May be shared by threads.

    Raises CkptError `archive-bomb` when the declared size passes the budgets; reading raises `deflate-invalid`
    when the stream is damaged or does not give exactly the declared size.
    """

    __slots__ = ("_marks", "_parked", "budgets", "file", "nbytes", "offset", "packed_nbytes")

    def __init__(
        self, file: File, offset: int, packed_nbytes: int, nbytes: int, budgets: Budgets = DEFAULT_BUDGETS
    ) -> None:
        if nbytes > budgets.inflate_bytes or nbytes > packed_nbytes * budgets.inflate_ratio:
            raise CkptError(
                "archive-bomb",
                f"{packed_nbytes} deflated bytes claim to hold {nbytes} bytes",
                file.path,
            )
        self.file = file
        self.offset = offset
        self.packed_nbytes = packed_nbytes
        self.nbytes = nbytes
        self.budgets = budgets
        self._marks: dict[int, _Mark] = {}  # by position // spacing; only ever added to
        self._parked: _Mark | None = None  # where the last reader stopped

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return InflatedStorage, (self.file, self.offset, self.packed_nbytes, self.nbytes, self.budgets)

    def __repr__(self) -> str:
        return f"InflatedStorage({self.file.path!r}, offset={self.offset}, nbytes={self.nbytes})"

    @property
    def seekable(self) -> bool:
        return False

    @property
    def identity(self) -> Hashable:
        return (self.file, self.offset, "deflate")

    @property
    def extents(self) -> tuple[Extent, ...]:
        return (Extent(self.file, self.offset, self.packed_nbytes),)

    @contextmanager
    def open(self) -> Iterator[Cursor]:
        _hold(self)
        with self.file.open() as reader:
            cursor = _InflatingCursor(self, reader)
            yield cursor
            if cursor.position < self.nbytes and self in _recent:
                self._parked = cursor.mark()

    def memory(self, limit: int) -> int:
        return min(limit, self.nbytes) + _PIECE + _PACKED + (self.nbytes // self.spacing + 2) * (48 << 10)

    @property
    def spacing(self) -> int:
        """Bytes between two places to resume."""
        return max(_MARK_EVERY, self.nbytes // _MARKS)

    def nearest(self, start: int) -> _Mark:
        """The last known place at or before `start` from which to inflate."""
        known = [mark for mark in list(self._marks.values()) if mark.position <= start]
        parked = self._parked
        if parked is not None and parked.position <= start:
            known.append(parked)
        if not known:
            return _Mark(0, 0, zlib.decompressobj(-zlib.MAX_WBITS))
        best = max(known, key=lambda mark: mark.position)
        return best._replace(inflator=best.inflator.copy())

    def remember(self, mark: _Mark) -> None:
        """Keep a place to resume, if there is none nearby."""
        slot = mark.position // self.spacing
        if slot and slot not in self._marks and self in _recent:
            self._marks[slot] = mark._replace(inflator=mark.inflator.copy())

    def forget(self) -> None:
        """Drop all places to resume."""
        self._marks = {}
        self._parked = None


_recent: list[InflatedStorage] = []
_recent_lock = Lock()


def _hold(storage: InflatedStorage) -> None:
    """Let this storage keep places to resume, and the one unused longest drop its own."""
    with _recent_lock:
        if storage in _recent:
            _recent.remove(storage)
        _recent.append(storage)
        if len(_recent) > _RECENT:
            _recent.pop(0).forget()


class _InflatingCursor:
    """Inflates forwards; starts again from a remembered place when asked for earlier bytes."""

    def __init__(self, storage: InflatedStorage, reader: Reader) -> None:
        self.storage = storage
        self.reader = reader
        self.tail = b""  # read from the file and not yet used
        self.position, self.packed, self.inflator = _Mark(0, 0, zlib.decompressobj(-zlib.MAX_WBITS))
        self.fresh = True

    def mark(self) -> _Mark:
        return _Mark(self.position, self.packed, self.inflator)

    def read_into(self, start: int, buffer: memoryview) -> None:
        if self.fresh or start < self.position:
            self.position, self.packed, self.inflator = self.storage.nearest(start)
            self.tail = b""
            self.fresh = False
        while self.position < start:
            self._take(min(_PIECE, start - self.position))
        done = 0
        while done < len(buffer):
            piece = self._take(min(_PIECE, len(buffer) - done))
            buffer[done : done + len(piece)] = piece
            done += len(piece)
        if self.position == self.storage.nbytes:
            self._finish()

    def _take(self, most: int) -> bytes:
        """The next bytes, at least one and at most `most`."""
        while True:
            piece = self._inflate(most)
            if piece:
                self.position += len(piece)
                self.storage.remember(self.mark())
                return piece
            if self.inflator.eof:
                missing = self.storage.nbytes - self.position
                raise self._invalid(f"the deflated data end {missing} bytes short of the size declared")

    def _inflate(self, most: int) -> bytes:
        storage = self.storage
        if not self.tail:
            left = storage.packed_nbytes - self.packed
            if not left and not self.inflator.eof:
                # zlib may still hold output that no further input is needed for
                try:
                    piece = self.inflator.decompress(b"", most)
                except zlib.error:
                    raise self._invalid("the deflated data are damaged") from None
                if not piece and not self.inflator.eof:
                    raise self._invalid("the deflated data are cut short")
                return piece
            self.tail = self.reader.read(storage.offset + self.packed, min(left, _PACKED))
        try:
            piece = self.inflator.decompress(self.tail, most)
        except zlib.error:
            raise self._invalid("the deflated data are damaged") from None
        rest = self.inflator.unused_data if self.inflator.eof else self.inflator.unconsumed_tail
        self.packed += len(self.tail) - len(rest)
        self.tail = rest
        return piece

    def _finish(self) -> None:
        """The last byte was read: the stream must end here as well."""
        while not self.inflator.eof:
            if self._inflate(1):
                raise self._invalid("the deflated data hold more than the size declared")
        if self.packed != self.storage.packed_nbytes:
            raise self._invalid("bytes follow the deflated data")

    def _invalid(self, message: str) -> CkptError:
        return CkptError("deflate-invalid", message, self.storage.file.path)

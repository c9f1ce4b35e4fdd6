"""Where a container's bytes lie: a part of a file, or memory (a torch file pickled inside another one)."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Protocol

from ckptkit.core.budgets import Budgets
from ckptkit.core.errors import CkptError
from ckptkit.core.files import File, Reader
from ckptkit.core.storage import FileStorage, MemoryStorage, Storage
from ckptkit.format.pytorch.machine import Unpickled, load

_WINDOW = 64 << 10
_NEAR = 64 << 20  # bytes that may be read at once though a pickle may need but a sixteenth of them


class Source(Protocol):
    """`size` bytes of a container; `where` says whose they are. Offsets count from its beginning."""

    @property
    def size(self) -> int: ...

    @property
    def where(self) -> str: ...

    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes. Raises CkptError `truncated`, `io-error`."""

    def storage(self, offset: int, nbytes: int) -> Storage:
        """The same bytes, unread. The caller has checked that they exist."""


@dataclass(frozen=True, slots=True)
class Span:
    """A part of an open file: `size` bytes from `base`."""

    reader: Reader
    base: int
    size: int

    @classmethod
    def whole(cls, reader: Reader) -> "Span":
        return cls(reader, 0, reader.file.size)

    @property
    def file(self) -> File:
        return self.reader.file

    @property
    def where(self) -> str:
        return self.file.path

    def read(self, offset: int, size: int) -> bytes:
        if offset + size > self.size:
            raise CkptError("truncated", f"the data end {offset + size - self.size} bytes early", self.where)
        return self.reader.read(self.base + offset, size)

    def storage(self, offset: int, nbytes: int) -> FileStorage:
        return FileStorage(self.file, self.base + offset, nbytes)


@dataclass(frozen=True, slots=True)
class Held:
    """Bytes in memory; `label` tells them from others."""

    data: bytes
    where: str
    label: Hashable

    @property
    def size(self) -> int:
        return len(self.data)

    def read(self, offset: int, size: int) -> bytes:
        if offset + size > len(self.data):
            raise CkptError("truncated", "the data end early", self.where)
        return self.data[offset : offset + size]

    def storage(self, offset: int, nbytes: int) -> MemoryStorage:
        data = memoryview(self.data)[offset : offset + nbytes]
        return MemoryStorage(data, (self.label, offset))


class Pickles:
    """Reads pickles that stand at known places of a source but end where they say.

    A window of the source is kept and grows fourfold while a pickle passes its end, or to the end of the source
    where that is not much farther; so the parts before and behind it are hardly read and a stream costs a third more
    than if its length were known.
    """

    def __init__(self, source: Source, budgets: Budgets) -> None:
        self.source = source
        self.budgets = budgets
        self.base = 0
        self.data = b""

    def load(self, at: int, persistent: Callable[[Any], object] | None = None) -> Unpickled:
        """The pickle at `at`; its `end` is an offset of the source. `persistent` may see an id more than once."""
        size = self.source.size
        want = _WINDOW
        if not self.base <= at < self.base + len(self.data):
            self._move(at, want)
        while True:
            try:
                found = load(self.data, persistent=persistent, budgets=self.budgets, start=at - self.base)
            except CkptError as error:
                end = self.base + len(self.data)
                if error.code != "truncated" or end >= size:
                    raise
                if end - at > self.budgets.pickle_bytes:
                    raise CkptError("over-budget", "a pickle does not end", self.source.where) from None
                want = max(want, end - at) * 4
                if size - at <= min(want * 4, _NEAR):
                    want = size - at
                self._move(at, want)
            else:
                return found._replace(end=self.base + found.end)

    def _move(self, at: int, want: int) -> None:
        self.base = at
        self.data = self.source.read(at, min(want, max(self.source.size - at, 0)))

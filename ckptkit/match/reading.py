"""Reading the bytes of many tensors with two threads, a small window at a time.

A window stays in the processor's cache; where reads go forward through a file it reads ahead, so that a hundred
small neighbours cost one call, and where they jump about it reads what is asked for and nothing else.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TypeVar

from ckptkit.core.files import Reader
from ckptkit.core.tensor import Tensor

WORKERS = 2
WINDOW = 256 << 10
SEGMENT = 8 << 20  # bytes of tensors that a thread takes at a time
_ALONE = 2 << 20  # less work than this is not worth a second thread
_GAP = 4 << 10  # what may lie between two tensors that are neighbours
_FIRST = 16 << 10  # bytes read ahead when reading turns out to go forward

T = TypeVar("T")

Progress = Callable[[int], None]  # gets the number of bytes just done


class Window:
    """A run of a file held in memory, moved as needed. One thread's own; use as a context manager.

    Leaving it checks that the last file is still the one first seen; changing files does so too.
    """

    __slots__ = ("_ahead", "_reader", "buffer", "start", "stop")

    def __init__(self) -> None:
        self.buffer = bytearray(WINDOW)
        self.start = self.stop = 0  # the run of the file that the buffer holds
        self._ahead = 0
        self._reader: Reader | None = None

    def pieces(self, tensor: Tensor, start: int, stop: int, unit: int = 1) -> Iterator[memoryview]:
        """The bytes of a plain tensor from `start` to `stop`, in views that hold until the next is asked for.

        All but the last are multiples of `unit` bytes, at most 16.
        """
        view = memoryview(self.buffer)
        while start < stop:
            at, size = self.find(tensor, start, stop)
            if start + size < stop:
                size -= size % unit
                if size == 0:  # what is held ends within an element
                    self.stop = self.start
                    continue
            yield view[at : at + size]
            start += size

    def find(self, tensor: Tensor, start: int, stop: int) -> tuple[int, int]:
        """Where in the buffer the bytes of a plain tensor from `start` on lie, and how many of them do.

        At least one, at most those up to `stop`. Raises CkptError `changed-on-disk`, `truncated` or `io-error`.
        """
        assert tensor.file is not None
        reader = self._reader
        if reader is None or reader.file != tensor.file:
            self.close()
            reader = self._reader = tensor.file.open()
        start += tensor.offset
        stop += tensor.offset
        if not self.start <= start < self.stop:
            forward = 0 <= start - self.stop <= _GAP
            self._ahead = min(self._ahead * 4 or _FIRST, WINDOW) if forward else 0
            size = min(max(stop - start, self._ahead), WINDOW, reader.file.size - start)
            size = max(size, min(stop - start, WINDOW))  # beyond the end reading itself says what is wrong
            reader.read_into(start, memoryview(self.buffer)[:size])
            self.start, self.stop = start, start + size
        return start - self.start, min(stop, self.stop) - start

    def close(self) -> None:
        """Close the file held open. Raises CkptError `changed-on-disk`."""
        reader, self._reader = self._reader, None
        self.start = self.stop = self._ahead = 0
        if reader is not None:
            try:
                reader.check()
            finally:
                reader.close()

    def __enter__(self) -> "Window":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        elif self._reader is not None:
            self._reader.close()


def shared(
    tasks: Iterable[T], worker: Callable[[], AbstractContextManager[Callable[[T], None]]], nbytes: int
) -> None:
    """Do all tasks, on two threads when there is much to do (`nbytes`); each thread enters a worker of its own.

    The first failure stops both and is raised.
    """
    waiting = iter(tasks)
    lock = threading.Lock()
    stop = threading.Event()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            with worker() as do:
                while not stop.is_set():
                    with lock:
                        try:
                            task = next(waiting)
                        except StopIteration:
                            return
                    do(task)
        except BaseException as error:  # noqa: BLE001 — raised again below, in the caller's thread
            failures.append(error)
            stop.set()

    if nbytes < _ALONE:
        run()
    else:
        threads = [threading.Thread(target=run) for _ in range(WORKERS - 1)]
        for thread in threads:
            thread.start()
        run()
        try:
            for thread in threads:
                thread.join()
        finally:  # Ctrl-C while waiting
            stop.set()
            for thread in threads:
                thread.join()
    if failures:
        raise failures[0]

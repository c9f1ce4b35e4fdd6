"""Moving the bytes of a planned file, once, in bounded buffers, with two threads.

Runs that are plain on both sides (most of nearly every checkpoint) are merged and copied by positional reads and
writes through one small buffer per thread, or by the system itself, as `cp` does it, where their pages line up and
the bytes need not be seen. Everything else is produced chunk by chunk by its source. The number of threads is part
of the memory bound that a plan states, so it is fixed.
"""

import os
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from heapq import nlargest
from typing import Protocol

from ckptkit.core.checksum import combine_crc32
from ckptkit.core.errors import CkptError
from ckptkit.core.files import File, Reader, io_error
from ckptkit.core.plan import OutputFile, Piece, stored_runs
from ckptkit.core.tensor import Buffer, Extent, Tally, Tensor

WORKERS = 2
COPY_BUFFER = 256 << 10
CHUNK = 4 << 20
_PAGE = 4096
_WRITE = (
    256 << 10
)  # per call; measured on ext4: calls of megabytes can take several times as long as smaller ones
SEGMENT = 16 << 20  # a long run is shared out between the threads in segments of this size

Progress = Callable[[int], None]


class Observer(Protocol):
    """Sees the bytes of one tensor in order: a hasher."""

    def update(self, data: Buffer, /) -> object: ...


@dataclass(slots=True)
class Streamed:
    """What was noticed while streaming: losses counted in the values."""

    tally: Tally = field(default_factory=Tally)


@dataclass(frozen=True, slots=True)
class _Task:
    """A stretch of the output for one thread: a run of a file, a literal, or a tensor to produce."""

    index: int  # of the (first) piece
    part: int  # segment number within the piece, for checksums
    offset: int
    nbytes: int
    content: bytes | Extent | Tensor
    observers: tuple[Observer, ...] = ()


def memory_bound(file: OutputFile) -> int:
    """Upper bound, in bytes, of the buffers that writing this file holds at once."""
    produced = (
        p.content.memory(CHUNK)
        for p in file.pieces
        if isinstance(p.content, Tensor) and stored_runs(p.content) is None
    )
    return WORKERS * COPY_BUFFER + sum(nlargest(WORKERS, produced))


def write_file(
    file: OutputFile,
    path: str | os.PathLike[str],
    *,
    progress: Progress | None = None,
    observe: Callable[[Piece], Observer | None] | None = None,
    sync: bool = False,
) -> Streamed:
    """Create `path` and fill it as planned. On failure it is left incomplete: callers stage and clean up.

    `progress` is called with the number of bytes just written, from any thread but never twice at once.
    `observe` may give an observer for a piece that holds a tensor; it sees that tensor's bytes in order.
    `sync` waits until the disk has the bytes. Raises CkptError `io-error`, `no-space`, `changed-on-disk`,
    `truncated`, or what a tensor's source raises.
    """
    file.check()
    name = os.fspath(path)
    try:
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666)
    except OSError as error:
        raise io_error(error, name) from None
    try:
        return _Writer(file, fd, name, progress, observe).run(sync)
    finally:
        os.close(fd)


class _Writer:
    def __init__(
        self,
        file: OutputFile,
        fd: int,
        name: str,
        progress: Progress | None,
        observe: Callable[[Piece], Observer | None] | None,
    ) -> None:
        self.file, self.fd, self.name = file, fd, name
        self.progress, self.observe = progress, observe
        self.done = Streamed()
        self.lock = threading.Lock()
        self.stop = threading.Event()
        self.copying = threading.Lock()  # one file takes one writer at a time; the other thread need not spin
        self.readers: dict[File, Reader] = {}
        self.checksums: dict[int, list[tuple[int, int, int]]] = {}  # piece → (part, crc, nbytes)

    def run(self, sync: bool) -> Streamed:
        try:
            os.ftruncate(self.fd, self.file.size)
            tasks = self._tasks()
            with ThreadPoolExecutor(WORKERS) as pool:
                try:
                    for worker in as_completed([pool.submit(self._work, tasks) for _ in range(WORKERS)]):
                        worker.result()
                finally:
                    self.stop.set()  # after a failure or Ctrl-C the threads leave before the file closes
            for reader in self.readers.values():
                reader.check()
            if self.file.seal is not None:
                for offset, data in self.file.seal.patches(self._piece_checksums()):
                    self._write(data, offset)
            if sync:
                os.fsync(self.fd)
        except OSError as error:
            raise io_error(error, self.name) from None
        finally:
            for reader in self.readers.values():
                reader.close()
        return self.done

    def _work(self, tasks: Iterator[_Task]) -> None:
        buffer = memoryview(bytearray(COPY_BUFFER))
        while not self.stop.is_set():
            with self.lock:
                task = next(tasks, None)
            if task is None:
                return
            try:
                self._do(task, buffer)
            except CkptError as error:
                where = error.where or self.file.pieces[task.index].name or None
                raise CkptError(error.code, error.message, where, error.hint) from error

    def _tasks(self) -> Iterator[_Task]:
        """The pieces as tasks: neighbouring plain runs merged, long ones cut into segments."""
        run: _Task | None = None
        sealed = self.file.seal is not None
        for index, piece in enumerate(self.file.pieces):
            if piece.nbytes == 0:
                continue
            runs = stored_runs(piece.content)
            observer = self.observe(piece) if self.observe and isinstance(piece.content, Tensor) else None
            if runs is None or observer is not None:
                observers = (observer,) if observer is not None else ()
                whole = runs[0] if runs is not None and len(runs) == 1 else piece.content
                yield _Task(index, 0, piece.offset, piece.nbytes, whole, observers)
                continue
            offset, part = piece.offset, 0
            for found in runs:
                if run is not None:
                    assert isinstance(run.content, Extent)
                    file, start, nbytes = run.content
                    gap = offset - run.offset - nbytes
                    if not sealed and gap == 0 and found.file is file and found.offset == start + nbytes:
                        total = nbytes + found.nbytes
                        run = _Task(run.index, 0, run.offset, total, Extent(file, start, total))
                        offset += found.nbytes
                        continue
                    yield from _segments(run)
                run = _Task(index, part, offset, found.nbytes, found)
                offset += found.nbytes
                part += -(-found.nbytes // SEGMENT)
            if offset != piece.offset + piece.nbytes:
                raise _length(piece)
        if run is not None:
            yield from _segments(run)

    def _do(self, task: _Task, buffer: memoryview) -> None:
        crc, sealed = 0, self.file.seal is not None
        position = task.offset
        if isinstance(task.content, Extent) and not (sealed or task.observers) and _in_step(task):
            position += self._copied(task.offset, task.content)
        for chunk in self._chunks(task, position - task.offset, buffer):
            if self.stop.is_set():
                return
            if sealed:
                crc = zlib.crc32(chunk, crc)
            for observer in task.observers:
                observer.update(chunk)
            if position + len(chunk) > task.offset + task.nbytes:
                break
            self._write(chunk, position)
            position += len(chunk)
            self._advance(len(chunk))
        if position != task.offset + task.nbytes:
            raise _length(self.file.pieces[task.index])
        if sealed:
            with self.lock:
                self.checksums.setdefault(task.index, []).append((task.part, crc, task.nbytes))

    def _copied(self, at: int, content: Extent) -> int:
        """How many of the bytes, from the first on, the system has copied."""
        reader = self._reader(content.file)
        with self.copying:
            done = reader.copy_to(self.fd, at, content.offset, content.nbytes)
        self._advance(done)
        return done

    def _advance(self, nbytes: int) -> None:
        if self.progress is not None and nbytes:
            with self.lock:
                self.progress(nbytes)

    def _chunks(self, task: _Task, done: int, buffer: memoryview) -> Iterator[Buffer]:
        """The bytes of a task, without the first `done` of a run."""
        content = task.content
        if isinstance(content, bytes):
            yield content
        elif isinstance(content, Extent):
            reader = self._reader(content.file)
            for start in range(done, content.nbytes, len(buffer)):
                part = buffer[: min(len(buffer), content.nbytes - start)]
                reader.read_into(content.offset + start, part)
                yield part
        else:
            tally = Tally()
            yield from content.chunks(CHUNK, tally)
            with self.lock:
                for code, count in tally.counts.items():
                    self.done.tally.add(code, count)

    def _reader(self, file: File) -> Reader:
        with self.lock:
            reader = self.readers.get(file)
            if reader is None:
                reader = self.readers[file] = file.open()
            return reader

    def _write(self, data: Buffer, offset: int) -> None:
        view = memoryview(data).cast("B") if not isinstance(data, bytes) else memoryview(data)
        while view:
            wrote = _pwrite(self.fd, view[:_WRITE], offset)
            view = view[wrote:]
            offset += wrote

    def _piece_checksums(self) -> list[int]:
        result = []
        for index in range(len(self.file.pieces)):
            total = 0
            for _, crc, nbytes in sorted(self.checksums.get(index, ())):
                total = combine_crc32(total, crc, nbytes)
            result.append(total)
        return result


def _length(piece: Piece) -> CkptError:
    return CkptError(
        "source-length", "a tensor's source gave another number of bytes than planned", piece.name
    )


def _in_step(run: _Task) -> bool:
    """Whether its pages line up on both sides; else the system splits each of them, and two threads are faster."""
    assert isinstance(run.content, Extent)
    return (run.content.offset - run.offset) % _PAGE == 0


def _segments(run: _Task) -> Iterator[_Task]:
    assert isinstance(run.content, Extent)
    file, start, nbytes = run.content
    for part, at in enumerate(range(0, nbytes, SEGMENT), run.part):
        size = min(SEGMENT, nbytes - at)
        yield _Task(run.index, run.part + part, run.offset + at, size, Extent(file, start + at, size))


_pwrite: Callable[[int, Buffer, int], int]
if hasattr(os, "pwrite"):
    _pwrite = os.pwrite
else:  # no positional writes: one seek and write at a time
    _seek = threading.Lock()

    def _pwrite(fd: int, data: Buffer, offset: int, /) -> int:
        with _seek:
            os.lseek(fd, offset, os.SEEK_SET)
            return os.write(fd, data)

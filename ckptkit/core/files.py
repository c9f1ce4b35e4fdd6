"""Checked reading of files: identified when first seen, re-checked whenever they are opened.

All reading goes through here. Nothing is mapped for streaming (a mapped file that shrinks kills the process,
and mapped pages count as memory); `Reader.map` serves random access by numpy.
"""

import errno
import mmap
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import TracebackType

from ckptkit.core.errors import CkptError

_PIECE = 1 << 20
_O_FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


@dataclass(frozen=True, slots=True)
class File:
    """A regular file as it was when first seen. Picklable; opening it again checks that it is still the same.

    Sizes are in bytes; `mtime` is in nanoseconds.
    """

    path: str
    size: int
    mtime: int
    inode: int

    @classmethod
    def at(cls, path: str | os.PathLike[str]) -> "File":
        """Look at the file. Raises CkptError `not-found`, `not-a-file` (folder, pipe, …) or `io-error`."""
        name = os.fspath(path)
        try:
            found = os.stat(name)
        except (FileNotFoundError, NotADirectoryError):
            raise CkptError("not-found", "no such file", name) from None
        except ValueError:
            raise CkptError("not-found", "no file can have this name", repr(name)) from None
        except OSError as error:
            raise io_error(error, name) from None
        if not stat.S_ISREG(found.st_mode):
            kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a device, pipe or socket"
            raise CkptError("not-a-file", f"this is {kind}, not a file", name)
        return cls(name, found.st_size, found.st_mtime_ns, found.st_ino)

    def open(self) -> "Reader":
        """Open for reading, as a context manager. Raises CkptError `changed-on-disk` if it is another now."""
        return Reader(self)


class Reader:
    """An open file whose identity was checked. Reads are positional, so threads may share one."""

    __slots__ = ("fd", "file")

    def __init__(self, file: File) -> None:
        self.file = file
        try:
            self.fd = os.open(file.path, _O_FLAGS | getattr(os, "O_NONBLOCK", 0))
        except FileNotFoundError:
            raise CkptError(
                "changed-on-disk", "the file has vanished since it was looked at", file.path
            ) from None
        except OSError as error:
            raise io_error(error, file.path) from None
        try:
            self.check()
        except BaseException:
            self.close()
            raise

    def check(self) -> None:
        """Raise CkptError `changed-on-disk` unless size, time and inode are still those first seen."""
        now = os.fstat(self.fd)
        if (now.st_size, now.st_mtime_ns, now.st_ino) != (self.file.size, self.file.mtime, self.file.inode):
            raise CkptError(
                "changed-on-disk",
                "the file changed since it was looked at",
                self.file.path,
                "run the command again",
            )

    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset`. Raises CkptError `truncated` or `io-error`."""
        try:
            data = _pread(self.fd, size, offset)
            if len(data) == size:
                return data
            parts = [data]
            got = len(data)
            while got < size and data:
                data = _pread(self.fd, size - got, offset + got)
                parts.append(data)
                got += len(data)
        except OSError as error:
            raise io_error(error, self.file.path) from None
        if got < size:
            raise CkptError("truncated", f"the file ends {size - got} bytes early", self.file.path)
        return b"".join(parts)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill a writable byte buffer from `offset`. Raises as `read`."""
        done = 0
        try:
            while done < len(buffer):
                got = _preadinto(self.fd, buffer[done:], offset + done)
                if got == 0:
                    missing = len(buffer) - done
                    raise CkptError("truncated", f"the file ends {missing} bytes early", self.file.path)
                done += got
        except OSError as error:
            raise io_error(error, self.file.path) from None

    def copy_to(self, fd: int, at: int, offset: int, size: int) -> int:
        """Let the system copy bytes from `offset` to `at` in another open file; returns how many, from the first on.

        They never enter this process, and file systems that can share blocks do so. It may be none: what is left
        is to be read and written, which also says what is wrong.
        """
        done = 0
        try:
            while done < size and _copy_file_range is not None:
                copied = _copy_file_range(self.fd, fd, size - done, offset + done, at + done)
                if copied == 0:
                    break
                done += copied
        except OSError:  # not by this system, or not between these files
            pass
        return done

    def map(self) -> mmap.mmap:
        """The whole file, mapped read-only; it outlives this reader. The file must not be empty."""
        try:
            return mmap.mmap(self.fd, 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise io_error(error, self.file.path) from None

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> "Reader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


_copy_file_range: Callable[[int, int, int, int, int], int] | None = getattr(os, "copy_file_range", None)

if sys.platform != "win32":
    _pread = os.pread

    def _preadinto(fd: int, buffer: memoryview, offset: int) -> int:
        return os.preadv(fd, [buffer], offset)

else:  # no positional reads: one seek and read at a time
    import threading

    _seek = threading.Lock()

    def _pread(fd: int, size: int, offset: int) -> bytes:
        with _seek:
            os.lseek(fd, offset, os.SEEK_SET)
            return os.read(fd, size)

    def _preadinto(fd: int, buffer: memoryview, offset: int) -> int:
        data = _pread(fd, len(buffer), offset)
        buffer[: len(data)] = data
        return len(data)


def io_error(error: OSError, path: str | None = None) -> CkptError:
    """What the operating system said, as a CkptError `io-error` (`no-space` when the disk is full)."""
    where = path or (os.fspath(error.filename) if error.filename else None)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return CkptError(
            "no-space", "the disk is full", where, "nothing was left behind; free some space and try again"
        )
    return CkptError("io-error", (error.strerror or str(error)).lower(), where)


@contextmanager
def told(where: str | os.PathLike[str]) -> Iterator[None]:
    """What the operating system refuses within the block is told as a CkptError of that place."""
    try:
        yield
    except BrokenPipeError:  # of whoever listens to the progress
        raise
    except OSError as error:
        raise io_error(error, os.fspath(where)) from None


def hashed(file: File, algorithm: str, advance: Callable[[int], None] | None = None) -> str:
    """The hexadecimal digest of all bytes of a file; `advance` is called with the bytes of each piece read.

    Raises CkptError `changed-on-disk`, `truncated`, `io-error`.
    """
    import hashlib

    digest = hashlib.new(algorithm, usedforsecurity=False)
    with file.open() as reader:
        for at in range(0, file.size, _PIECE):
            piece = reader.read(at, min(_PIECE, file.size - at))
            digest.update(piece)
            if advance is not None:
                advance(len(piece))
    return digest.hexdigest()


def beside(folder: str | os.PathLike[str], name: str) -> Path:
    """The path of a file that another file names, proved to lie in `folder`.

    `folder` is where the naming file stands as the user named it. Symbolic links are followed, and the result
    must lie below the folder's real path or below the folder of the naming file's own link target (a hub
    cache keeps `snapshots/x/model.onnx` as links into `blobs/`); callers that know the naming file use
    `beside_file`. Raises CkptError `outside-folder`.
    """
    return _inside(Path(folder), name, (Path(folder).resolve(),))


def beside_file(file: str | os.PathLike[str], name: str) -> Path:
    """As `beside`, for a name found inside `file`: siblings of the file's real path are allowed too."""
    path = Path(file)
    return _inside(path.parent, name, (path.parent.resolve(), path.resolve().parent))


def _inside(folder: Path, name: str, roots: tuple[Path, ...]) -> Path:
    windows, posix = PureWindowsPath(name), PurePosixPath(name)
    if (
        not name
        or "\0" in name
        or "://" in name
        or windows.drive
        or windows.root
        or posix.is_absolute()
        or ".." in windows.parts
        or ".." in posix.parts
    ):
        raise CkptError("outside-folder", f"names a file outside its folder: {name!r}", str(folder))
    path = folder / name
    try:
        real = path.resolve()
    except (OSError, RuntimeError, ValueError):
        raise CkptError(
            "outside-folder", f"names a file that cannot be resolved: {name!r}", str(folder)
        ) from None
    if not any(real.is_relative_to(root) for root in roots):
        raise CkptError("outside-folder", f"names a link that leaves its folder: {name!r}", str(folder))
    return path

"""The files of a checkpoint as a contract states them: SHA-256 and size, of the file or of its git-LFS pointer."""

import os
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from ckptkit.core.errors import CkptError
from ckptkit.core.files import File, beside, hashed
from ckptkit.format.foreign import lfs_pointer
from ckptkit.targets.target import Stored

_POINTER = 1024  # bytes; the specification's limit
_BLOCK = 4 << 20


class Compared(NamedTuple):
    """One file: what is there, None for nothing, and whether it is a git-LFS pointer."""

    name: str
    expected: Stored
    found: Stored | None
    pointer: bool


def compare(
    path: str, expected: Mapping[str, Stored], progress: Callable[[int, int], None] | None = None
) -> Iterator[Compared]:
    """Look at each file beside the checkpoint (in it, for a folder). Sizes first: what has another is not read.

    `progress` is called with the bytes done and all bytes expected.

    Raises CkptError `outside-folder`, `io-error`.
    """
    folder = path if os.path.isdir(path) else os.path.dirname(path) or "."
    done, total = 0, sum(stored.size for stored in expected.values())

    def advance(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if progress is not None:
            progress(done, total)

    for name, stored in expected.items():
        place = str(beside(folder, name))
        if not os.path.exists(place):
            yield Compared(name, stored, None, False)
            continue
        found, pointer = _look(place, stored.size, advance)
        yield Compared(name, stored, found, pointer)


def stored(path: str) -> Stored:
    """SHA-256 and size of a file, or what its git-LFS pointer states."""
    return _look(path, None, lambda nbytes: None)[0]


def _look(path: str, expected: int | None, advance: Callable[[int], None]) -> tuple[Stored, bool]:
    file = File.at(path)
    if file.size <= _POINTER:
        with file.open() as reader:
            named = lfs_pointer(reader.read(0, file.size))
        if named is not None:
            return Stored(*named), True
    if expected not in (None, file.size):
        return Stored("", file.size), False
    return Stored(hashed(file, "sha256", advance), file.size), False


def is_pointer(error: CkptError) -> bool:
    """Whether reading failed because a git-LFS pointer stands there."""
    return error.code == "lfs-pointer"

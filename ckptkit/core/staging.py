"""Outputs appear whole or not at all: written into a temporary folder beside the target, then renamed.

The temporary folder is called `.NAME.ckptkit-PID-RANDOM.tmp`, so that what a killed process leaves behind is
recognisable; the next run onto the same target takes it away, and puts back a folder that was being replaced. For
a folder target the temporary folder itself is renamed; for a file target the files inside
are moved out, companions (external data) first and the target last. Renames within one folder are atomic.
Something existing is replaced only once its replacement has reached the disk; a new file is left to the
kernel, as `cp` does.
"""

import os
import secrets
import shutil
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from ckptkit.core.errors import CkptError
from ckptkit.core.files import io_error, told
from ckptkit.core.graph import TensorGraph
from ckptkit.core.leftovers import hold, prefix, release, sweep


class Staging:
    """A temporary folder beside `target`, removed at the end whatever happens. Use as a context manager.

    Raises CkptError `exists` when the target exists and `overwrite` is off, `not-found` when its folder does
    not exist, `not-a-file` when it is a device or of the other kind, `io-error` when it cannot be written.
    """

    def __init__(self, target: str | os.PathLike[str], *, folder: bool, overwrite: bool) -> None:
        with told(target):
            self.target = Path(os.path.abspath(target))
        self.folder = folder
        self.overwrite = overwrite
        sweep(self.target)
        check_target(self.target, folder=folder, overwrite=overwrite)
        token = f"{os.getpid()}-{secrets.token_hex(3)}"
        self.path = self.target.parent / f"{prefix(self.target)}{token}.tmp"
        self.held = -1
        self._staged: Path | None = None

    @property
    def replaces(self) -> bool:
        """Whether something existing will be replaced, so that the bytes must reach the disk first."""
        return os.path.exists(self.target)

    def __enter__(self) -> "Staging":
        try:
            os.mkdir(self.path)
        except OSError as error:
            raise io_error(error, str(self.target.parent)) from None
        self.held = hold(self.path)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        if self._staged is not None:
            with suppress(OSError):
                self._staged.unlink(missing_ok=True)
        release(self.held)
        if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
            raise io_error(error, str(self.target)) from None

    def surface(self, name: str) -> Path:
        """Take the staged target into the target's folder, under a name of its own, so that it finds what it refers to.

        Raises CkptError `io-error`.
        """
        self._staged = self.path.with_suffix("")
        with told(self._staged):
            os.rename(self.path / name, self._staged)
        return self._staged

    def publish(self, files: Sequence[str]) -> None:
        """Put the staged files (paths relative to the temporary folder, the target's own last) in place."""
        with told(self.target):
            if self.folder:
                self._publish_folder()
            else:
                self._publish_files(files)

    def _publish_files(self, files: Sequence[str]) -> None:
        """Companions first: they are of no use to anybody until the target names them, nor without it."""
        placed: list[Path] = []
        try:
            for name in files[:-1]:
                _place(self.path / name, self.target.parent / name, overwrite=False)
                placed.append(self.target.parent / name)
            _place(self._staged or self.path / files[-1], self.target, overwrite=self.overwrite)
        except BaseException:
            for path in placed:
                with suppress(OSError):
                    os.unlink(path)
            raise

    def _publish_folder(self) -> None:
        aside = self.path.with_suffix(".old")
        replaced = self.replaces
        if replaced:
            os.rename(self.target, aside)
        try:
            os.rename(self.path, self.target)
        except BaseException:
            if replaced:
                os.rename(aside, self.target)
            raise
        if replaced:
            shutil.rmtree(aside, ignore_errors=True)


def check_target(target: Path, *, folder: bool, overwrite: bool) -> None:
    """Raise CkptError unless something may be put at `target`."""
    parent, found = _look(target.parent), _look(target)
    if parent is None or not stat.S_ISDIR(parent.st_mode):
        raise CkptError("not-found", "no such folder to write into", target.parent)
    if found is None and not os.path.islink(target):
        return
    is_folder = found is not None and stat.S_ISDIR(found.st_mode)
    if folder:
        if not is_folder:
            raise CkptError("exists", "the target is to be a folder, but a file has that name", target)
        with told(target):
            empty = not os.listdir(target)
        if not overwrite and not empty:
            raise CkptError("exists", "the target folder exists and is not empty", target, "-y replaces it")
    elif is_folder:
        raise CkptError("exists", "the target is to be a file, but a folder has that name", target)
    elif found is not None and not stat.S_ISREG(found.st_mode):
        raise CkptError("not-a-file", "the target is a device, pipe or socket", target)
    elif not overwrite:
        raise CkptError("exists", "the target exists", target, "-y replaces it")


def names_beside(target: Path) -> frozenset[str]:
    """Names that the folder of a target has, for companions to avoid."""
    try:
        return frozenset(os.listdir(target.parent))
    except OSError:
        return frozenset()  # writing will say what is wrong with the folder


def refuse_inputs(source: TensorGraph, targets: Sequence[str | os.PathLike[str]]) -> None:
    """Raise CkptError `target-is-source` or `target-twice`: never write onto an input, or a folder around one.

    Files are told by what they are on disk, so that links to an input count as the input.
    """
    inputs = {os.path.realpath(path) for path in (source.origin.path, *(f.path for f in source.origin.files))}
    identities = {_identity(path) for path in inputs} - {None}
    seen: set[str] = set()
    for target in targets:
        real = os.path.realpath(target)
        if real in seen:
            raise CkptError(
                "target-twice", "two outputs would be written here", target, "give them different names"
            )
        seen.add(real)
        inside = any(path.startswith(real + os.sep) for path in inputs)
        if inside or _identity(real) in identities:
            raise CkptError("target-is-source", "this is what is being read", target, "write somewhere else")


def _look(path: str | os.PathLike[str]) -> os.stat_result | None:
    """What is at a path; None if nothing is."""
    with told(path), suppress(FileNotFoundError, NotADirectoryError):
        return os.stat(path)
    return None


def _identity(path: str) -> tuple[int, int] | None:
    """What a file is on disk, whatever its name; None if there is none."""
    found = _look(path)
    return None if found is None else (found.st_dev, found.st_ino)


def _place(staged: Path, final: Path, *, overwrite: bool) -> None:
    if overwrite:
        os.replace(staged, final)
        return
    try:
        os.link(staged, final)  # unlike a rename, this fails if another process was first
    except FileExistsError:
        raise CkptError("exists", "the target appeared meanwhile", final, "-y replaces it") from None
    except OSError:  # a file system without hard links
        if os.path.lexists(final):
            raise CkptError("exists", "the target appeared meanwhile", final, "-y replaces it") from None
        os.rename(staged, final)

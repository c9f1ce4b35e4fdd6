"""How git holds the files: a weight that .gitattributes gives to git-LFS must be staged as a pointer."""

import os
from collections.abc import Iterator, Sequence

from ckptkit.core.errors import CkptError
from ckptkit.format.foreign import lfs_pointer
from ckptkit.verbs.check.report import Misfit

_AT_ONCE = 500  # paths of one call of git
_POINTER = 1024  # bytes; the specification's limit


def staged(paths: Sequence[str]) -> dict[str, tuple[Misfit, ...]]:
    """Path → its findings; a folder stands for all files below it.

    Raises CkptError `git-failed` where there is no repository or no git.
    """
    found: dict[str, list[Misfit]] = {}
    for start in range(0, len(paths), _AT_ONCE):
        some = paths[start : start + _AT_ONCE]
        for file, blob in _whole(some):
            for path in some:
                if file == os.path.normpath(path) or file.startswith(
                    os.path.join(os.path.normpath(path), "")
                ):
                    found.setdefault(path, []).append(_bypassed(file, blob))
    return {path: tuple(items) for path, items in found.items()}


def _bypassed(file: str, size: int) -> Misfit:
    return Misfit(
        "lfs-bypassed", "error", file, "a git-LFS pointer", f"{size:,} bytes", "added where git-LFS was not installed",
        "git lfs install, then git add --renormalize",
    )  # fmt: skip


def _whole(paths: Sequence[str]) -> Iterator[tuple[str, int]]:
    """(file, size) of what git-LFS should hold and git holds as it is."""
    entries = [
        entry.partition("\t") for entry in _git("ls-files", "-s", "-z", "--", *paths).split("\0") if entry
    ]
    blobs = {name: facts.split()[1] for facts, _, name in entries if facts.split()[0] in ("100644", "100755")}
    if not blobs:
        return
    said = _git("check-attr", "-z", "--cached", "--stdin", "filter", given="\0".join(blobs)).split("\0")
    kept = [name for name, value in zip(said[::3], said[2::3], strict=False) if value == "lfs"]
    if not kept:
        return
    sizes = _git(
        "cat-file", "--batch-check=%(objectsize)", given="\n".join(blobs[name] for name in kept) + "\n"
    )
    for name, size in zip(kept, sizes.split(), strict=False):
        small = int(size) <= _POINTER
        if not small or lfs_pointer(os.fsencode(_git("cat-file", "blob", blobs[name]))) is None:
            yield os.path.normpath(name), int(size)


def _git(*words: str, given: str | None = None) -> str:
    import subprocess

    try:
        done = subprocess.run(
            ["git", "--literal-pathspecs", *words],
            input=None if given is None else os.fsencode(given),
            stdin=subprocess.DEVNULL if given is None else None,
            capture_output=True,
            check=False,
        )
    except OSError as error:
        raise CkptError("git-failed", f"git cannot be run: {error.strerror}") from None
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise CkptError("git-failed", said[-1] if said else f"git {words[0]} fails", os.getcwd())
    return os.fsdecode(done.stdout)

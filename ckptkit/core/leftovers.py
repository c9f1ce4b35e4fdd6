"""What processes that were killed left beside a target: told from the work of living ones, and taken away.

A temporary folder is held by a lock that ends with its process, wherever that runs. It is a leftover if the process of
its name is gone, nobody holds it, and it is not brand-new (its owner may be about to lock it). Systems without such
locks keep their leftovers.
"""

import os
import re
import shutil
import stat
import time
from pathlib import Path

_LONGEST = 100  # characters of a target's name that stand in that of its temporary folder
_NEW = 60.0  # seconds


def prefix(target: Path) -> str:
    """What the names of temporary folders of a target begin with; a process number and a random one follow."""
    return f".{target.name[:_LONGEST]}.ckptkit-"


def hold(path: Path) -> int:
    """Lock a folder until `release`, or the end of the process; -1 where that cannot be done."""
    try:
        import fcntl

        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (ImportError, OSError):
        return -1
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return -1
    return fd


def release(held: int) -> None:
    if held >= 0:
        os.close(held)


def sweep(target: Path) -> None:
    """Take away what dead processes left of writing the target, and put a folder back that one had set aside.

    Nothing that goes wrong matters: what cannot be taken away stays.
    """
    if os.name != "posix":
        return
    pattern = re.compile(re.escape(prefix(target)) + r"(\d+)-[0-9a-f]{6}(?:\.(tmp|old))?")
    try:
        found = [match for name in os.listdir(target.parent) if (match := pattern.fullmatch(name))]
    except OSError:
        return
    for match in found:
        path, kind = target.parent / match[0], match[2]
        try:
            if not _is_dead(int(match[1]), path, kind):
                continue
            if kind == "old" and len(target.name) <= _LONGEST and not os.path.lexists(target):
                os.rename(path, target)
            elif kind is None:
                path.unlink()
            else:
                shutil.rmtree(path)
        except OSError:
            continue


def _is_dead(pid: int, path: Path, kind: str | None) -> bool:
    """Whether a temporary folder (`tmp`), one set aside (`old`) or a file staged beside its target is nobody's."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        facts = os.lstat(path)
    except OverflowError:
        return False
    else:
        return False
    expected = stat.S_ISREG if kind is None else stat.S_ISDIR
    if not expected(facts.st_mode) or facts.st_uid != os.geteuid():
        return False
    if time.time() - (facts.st_mtime if kind == "tmp" else facts.st_ctime) < _NEW:
        return False
    folder = path if kind else path.with_name(f"{path.name}.tmp")
    if not kind and not os.path.lexists(folder):
        return True
    held = hold(folder)
    release(held)
    return held >= 0

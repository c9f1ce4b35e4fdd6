"""One command over several paths: each is told as soon as it is known, and one that cannot be read hides no other."""

import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from ckptkit.cli import report
from ckptkit.core.errors import CkptError

T = TypeVar("T")


def each(
    paths: Sequence[str], style: str | None, look: Callable[[str], T], tell: Callable[[T, int], int]
) -> int:
    """Look at each path, and tell what was found; JSON documents of several paths become one list.

    Args:
        look: path → what is there; its CkptError is reported in the place of the answer.
        tell: prints an answer, given with its position, and returns its exit code.

    Returns the largest exit code: 2 where a path could not be read.
    """
    listed = style == "json" and len(paths) > 1
    code = 0
    for position, path in enumerate(paths):
        if listed:
            sys.stdout.write(",\n" if position else "[")
        try:
            found = look(path)
        except CkptError as error:
            code = 2
            _failed(error, path, style)
            continue
        code = max(code, tell(found, position))
    if listed:
        sys.stdout.write("]\n")
    return code


def _failed(error: CkptError, path: str, style: str | None) -> None:
    if style == "json":
        from ckptkit.cli import jsontext

        sys.stdout.write(jsontext.error(error, path) + "\n")
    else:
        sys.stdout.flush()
        report(error)

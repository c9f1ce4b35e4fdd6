"""convert: any readable checkpoint to any writable format, in three steps: read, plan, stream.

`plan` decides everything (offsets, losses, what is left out, the memory bound) and touches nothing; `write`
moves the bytes into a staged output, reads its header back and puts it in place; `convert` does both.
"""

import os
from typing import Any

from ckptkit.match.receipt import Receipt
from ckptkit.verbs.convert.plan import Plan, plan
from ckptkit.verbs.convert.write import Progress, check, write

__all__ = ["Plan", "Progress", "Receipt", "check", "convert", "plan", "write"]


def convert(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    verify: bool = False,
    receipt: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Receipt:
    """`plan` and `write` in one step; `options` are those of `plan`."""
    decided = plan(src, dst, **options)
    return write(decided, overwrite=overwrite, verify=verify, receipt=receipt, progress=progress)

"""check: does a checkpoint fit what it is meant for? And if not: why, and what mends it."""

import os
from collections.abc import Callable, Sequence

from ckptkit.core.errors import CkptError
from ckptkit.core.graph import TensorGraph
from ckptkit.format import read
from ckptkit.match import stored
from ckptkit.targets.resolve import Given, target_of
from ckptkit.targets.target import weights
from ckptkit.verbs.check.judge import Allowed, judge
from ckptkit.verbs.check.report import CheckReport, Misfit
from ckptkit.verbs.check.values import values as measured
from ckptkit.verbs.check.whole import files, from_pointer

__all__ = ["Allowed", "CheckReport", "Misfit", "check"]


def check(
    source: TensorGraph | str | os.PathLike[str],
    target: Given,
    *,
    section: str | None = None,
    variant: str | None = None,
    allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
    allow_mismatch: Sequence[str] = (),
    values: bool = False,
    allow_code: bool = False,
    time_limit: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CheckReport:
    """Check a checkpoint against a target.

    Args:
        source: a path, or a graph as `read` gives it.
        target: a contract or another checkpoint, by its path or as it was read; the path of a config.json of
            transformers, or of its folder; a module of the user, `package.module:factory`; or the name of a published
            architecture.
        section, variant: as in `read`, for a path.
        allow_missing, allow_unexpected, allow_mismatch: shell patterns of names whose absence, presence or other
            dtype or shape is no error.
        allow_code: a factory of the user may be called.
        time_limit: seconds after which the making of a model is given up; 60 if nothing is said.
        values: read the tensors too: NaN and infinity are errors, weights that are all one number warnings.
        progress: called with the bytes read and all bytes, where values or files are read.

    Only headers are read, unless `values` or a contract's policies, digest or files ask for more. Where the contract
    states the files and a git-LFS pointer stands in their place, the pointer is compared.

    Raises CkptError when the checkpoint or the target cannot be read.
    """
    aim = target_of(target, allow_code=allow_code, time_limit=time_limit)
    allowed = Allowed(tuple(allow_missing), tuple(allow_unexpected), tuple(allow_mismatch))
    if isinstance(source, TensorGraph):
        return judge(source, aim, allowed, measured(weights(source), progress) if values else ())
    path = os.fspath(source)
    try:
        graph = read(path, section, variant=variant)
    except CkptError as error:
        if stored.is_pointer(error) and aim.files:
            return from_pointer(path, aim)
        raise
    found = [*files(path, aim, progress), *(measured(weights(graph), progress) if values else ())]
    return judge(graph, aim, allowed, found)

"""Which input of one model is which of another."""

from collections.abc import Sequence

from ckptkit.core.errors import CkptError
from ckptkit.core.graph import TensorGraph, Value


def pair(a: TensorGraph, b: TensorGraph) -> dict[str, str]:
    """Name of an input of B → name of it in A: by name as far as names agree, then by type, then by position.

    Type and position must leave no doubt: a type that only one of the others has on either side, or else the same
    types in the same order. Raises CkptError `signatures-differ`.
    """
    mine, theirs = ({value.name: value for value in g.inputs} for g in (a, b))
    found = {name: name for name in theirs if name in mine}
    left = [value for value in a.inputs if value.name not in found]
    right = [value for value in b.inputs if value.name not in found]
    if len(left) == len(right) and all(_fit(mine[name], theirs[name]) for name in found):
        fitting = [[value for value in left if _fit(value, other)] for other in right]
        alone = [some[0].name for some in fitting if len(some) == 1]
        if len(alone) == len(set(alone)) == len(right):
            return found | dict(zip((value.name for value in right), alone, strict=True))
        if all(map(_fit, left, right)):
            return found | {other.name: value.name for value, other in zip(left, right, strict=True)}
    texts = (", ".join(map(_described, g.inputs)) or "none" for g in (a, b))
    raise CkptError("signatures-differ", f"inputs {' and '.join(texts)}", f"{a.origin.path}, {b.origin.path}")


def pair_outputs(a: Sequence[str], b: Sequence[str], label: str) -> dict[str, str]:
    """Name of an output of B → name of it in A: by name if they have the same, else by position.

    Raises CkptError `signatures-differ` unless there are equally many.
    """
    if len(a) != len(b):
        raise CkptError("signatures-differ", f"{len(a)} outputs, and {len(b)}", label)
    return {name: name for name in a} if set(a) == set(b) else dict(zip(b, a, strict=True))


def _fit(x: Value, y: Value) -> bool:
    """Whether some array suits both."""
    if x.dtype != y.dtype:
        return False
    if x.shape is None or y.shape is None:
        return True
    free = (
        m == n or not isinstance(m, int) or not isinstance(n, int)
        for m, n in zip(x.shape, y.shape, strict=False)
    )
    return len(x.shape) == len(y.shape) and all(free)


def _described(value: Value) -> str:
    shape = "?" if value.shape is None else ",".join("?" if n is None else str(n) for n in value.shape)
    return f"{value.name}:{value.dtype}[{shape}]"

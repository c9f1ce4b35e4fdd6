"""What of a transplant is open to doubt: which weight a tensor of the graph was made from, and what has no place in it.

Each doubt is a loss, to be allowed by its code.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set

from ckptkit.core.errors import CkptError
from ckptkit.core.findings import Finding
from ckptkit.core.graph import TensorGraph
from ckptkit.core.tensor import Tensor
from ckptkit.match.finder import TWINS, Expression, Match, Slice, Source, Take, equal
from ckptkit.match.finder.expressions import operands
from ckptkit.match.finder.layout import cast_to, castable, movable, strided
from ckptkit.match.transplant.order import repeats, vouched
from ckptkit.match.transplant.recurrent import PACKED

UNUSED, AMBIGUOUS = "weights-unused", "weights-ambiguous"
EQUAL = "several weights were equal when the graph was exported, and differ now"
TURNED = "the values were the same in any layout, so that the graph's cannot be told"
ORDER = (
    "parts of the values were the same when the graph was exported, so that their order there cannot be told"
)
_PROVE = "ckptkit prove tells whether that is right"
_HINTS = {
    ORDER: f"--allow-loss {AMBIGUOUS} keeps the order of the checkpoint; {_PROVE}. An export of weights whose "
    "values differ, such as the new ones, leaves no doubt"
}
_LISTED = 8  # names in a message


def ambiguous(
    pairs: Sequence[Match], supply: Mapping[str, Tensor], origin: TensorGraph, base: TensorGraph
) -> Iterator[Finding]:
    """Weights that several tensors could have given, or one in several ways, where that matters by now."""
    told = vouched(pairs, origin, base) | {match.target for match in pairs if match.why == PACKED}
    doubtful: dict[str, list[str]] = defaultdict(list)
    groups: defaultdict[tuple[str, tuple[int, ...]], list[str]] = defaultdict(list)
    ends: defaultdict[object, list[str]] = defaultdict(list)
    for name, tensor in origin.items():
        if _is_matrix(tensor):
            ends[_ends(tensor)].append(name)
    for name in supply:
        groups[origin[name].dtype.name, origin[name].shape].append(name)
    for match in pairs:
        if match.expression == Source(match.target):
            continue
        changed = [name for name in match.sources if not equal(supply[name], origin[name])]
        held = [origin[name] for name in changed] if match.how != "folded" else []
        if any(map(_lies_anyhow, held)):
            doubtful[TURNED].append(match.target)
        elif match.target not in told and any(map(repeats, held)):
            doubtful[ORDER].append(match.target)
        elif match.how != "folded" and any(_transposed(name, ends, origin) for name in changed):
            doubtful[EQUAL].append(match.target)
        elif match.certain or match.sources == (match.target,):
            continue
        elif match.why not in TWINS:
            if changed:
                doubtful[match.why].append(match.target)
        elif any(_has_other_twin(name, groups, supply, origin) for name in match.sources):
            doubtful[EQUAL].append(match.target)
    for why, names in doubtful.items():
        yield Finding(
            AMBIGUOUS,
            "error",
            names[0],
            f"{listed(names)}: {why}",
            _HINTS.get(why, f"--allow-loss {AMBIGUOUS} takes those whose names fit best; {_PROVE}"),
        )


def _has_other_twin(
    name: str,
    groups: Mapping[tuple[str, tuple[int, ...]], Sequence[str]],
    supply: Mapping[str, Tensor],
    origin: TensorGraph,
) -> bool:
    """Whether another tensor was equal to this one, and is no longer."""
    was = origin[name]
    twins = (n for n in groups[was.dtype.name, was.shape] if n != name and equal(origin[n], was))
    return any(not equal(supply[n], supply[name]) for n in twins)


def partial(
    pairs: Iterable[Match], supply: Mapping[str, Tensor], origin: TensorGraph, filled: Sequence[Tensor]
) -> Iterator[Finding]:
    """Weights of which only parts were found, where tensors of one value that nothing explains may be the rest."""
    values = {strided(tensor, [1], [1]).tobytes() for tensor in filled if movable(tensor)}
    covered: defaultdict[str, set[int]] = defaultdict(set)
    for match in pairs if filled else ():
        for name in match.sources:
            covered[name].update(_rows(match.expression, name, origin[name]))
    names = [
        name
        for name, rows in covered.items()
        if not equal(supply[name], origin[name]) and _holds_rows_of(values, origin[name], rows)
    ]
    if names:
        yield Finding(
            AMBIGUOUS,
            "error",
            names[0],
            f"only parts of {listed(names)} were found; the rest had one value, as tensors of the graph have that stay",
            f"--allow-loss {AMBIGUOUS} keeps these; {_PROVE}",
        )


def _holds_rows_of(values: Set[bytes], tensor: Tensor, found: Set[int]) -> bool:
    """Whether an index of the first axis that was not found holds one of these values throughout."""
    count = (*tensor.shape, 0)[0]
    if not count or len(found) >= count or not movable(tensor):
        return False
    width = tensor.size // count
    rows = (strided(tensor, [width], [1], row * width).tobytes() for row in range(count) if row not in found)
    return any(row == value * width for row in rows for value in values)


def _rows(expression: Expression, name: str, tensor: Tensor) -> Iterable[int]:
    """Which indices of its first axis an expression takes of a tensor; all of them where that is not plain to see."""
    waiting = [expression]
    taken: set[int] = set()
    while waiting:
        one = waiting.pop()
        match one:
            case Slice(Source(source), 0, start, stop) if source == name:
                taken.update(range(start, stop))
            case Take(Source(source), 0, indices) if source == name:
                taken.update(indices)
            case Source(source) if source == name:
                return range(tensor.shape[0] if tensor.shape else 0)
            case _:
                waiting += operands(one)
    return taken or range(tensor.shape[0] if tensor.shape else 0)


def _ends(tensor: Tensor) -> tuple[str, int, bytes]:
    """Dtype, size, and the first and last element, which no order of axes moves."""
    return tensor.dtype.name, tensor.size, strided(tensor, [2], [tensor.size - 1]).tobytes()


def _transposed(name: str, ends: Mapping[object, Sequence[str]], origin: TensorGraph) -> bool:
    """Whether another tensor is this one transposed."""
    tensor = origin[name]
    if not _is_matrix(tensor):
        return False
    rows, columns = tensor.shape
    return any(
        other != name
        and origin[other].shape == (columns, rows)
        and equal(strided(origin[other], [rows, columns], [1, rows]), tensor)
        for other in ends[_ends(tensor)]
    )


def _is_matrix(tensor: Tensor) -> bool:
    return len(tensor.shape) == 2 and 1 not in tensor.shape and tensor.size > 0 and movable(tensor)


def _lies_anyhow(tensor: Tensor) -> bool:
    """Whether the tensor holds the same values transposed: it is square and symmetric, or filled."""
    axes = [n for n in tensor.shape if n != 1]
    if len(axes) < 2 or not movable(tensor):
        return False
    if len(axes) == 2 and axes[0] == axes[1]:
        edges = [
            strided(tensor, [axes[0]], [step]) for step in (1, axes[0])
        ]  # the first row and the first column
        return equal(*edges) and equal(strided(tensor, axes, (1, axes[0])), tensor)
    return equal(strided(tensor, [tensor.size], [0]), tensor)


def _changed(
    left: Iterable[str], weights: TensorGraph, origin: TensorGraph, supply: Mapping[str, Tensor]
) -> Iterator[tuple[str, str]]:
    """Weights without a place in the graph that matter: new ones, and those that are neither what they were nor what
    has taken their place, with the name of that: it was equal at the export."""
    for name in left:
        tensor, was = weights[name], origin.get(name)
        if was is None or tensor.shape != was.shape:
            yield name, ""
        elif tensor.dtype is not was.dtype or not equal(tensor, was):
            alike = (n for n in supply if origin[n].shape == was.shape and origin[n].dtype is was.dtype)
            twins = [n for n in alike if equal(origin[n], was)]
            if not any(equal(supply[n], like(tensor, was, name)) for n in twins):
                yield name, twins[0] if twins else ""


def placeless(
    left: Iterable[str],
    weights: TensorGraph,
    origin: TensorGraph,
    supply: Mapping[str, Tensor],
    base: TensorGraph,
) -> Iterator[Finding]:
    """Weights of the checkpoint that matter and that the graph has no place for."""
    changed = list(_changed(left, weights, origin, supply))
    new = [name for name, twin in changed if not twin]
    untied = {name: twin for name, twin in changed if twin}
    if new:
        yield Finding(
            UNUSED,
            "error",
            new[0],
            f"{listed(new)} of the checkpoint, new or changed, have no place in {base.origin.path}",
            f"--exclude leaves them out by name, --allow-loss {UNUSED} all of them",
        )
    if untied:
        name, twin = next(iter(untied.items()))
        yield Finding(
            UNUSED,
            "error",
            name,
            f"{listed(list(untied))}: equal to others ({name!r} to {twin!r}) when the graph was exported, which holds "
            "one tensor for both; they differ now",
            "export the new weights; this graph has no place for them",
        )


def like(tensor: Tensor, wanted: Tensor, name: str) -> Tensor:
    """The tensor in the dtype that is wanted. Floats are cast, other types have to agree."""
    if tensor.dtype is wanted.dtype:
        return tensor
    if tensor.dtype.kind != "float" or not castable(tensor.dtype, wanted.dtype):
        raise CkptError("graph-typed", f"{tensor.dtype}, where the graph was made from {wanted.dtype}", name)
    return cast_to(tensor, wanted.dtype)


def listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{', '.join(map(repr, names[:_LISTED]))}{more}"

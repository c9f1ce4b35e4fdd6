"""Tensors that lie in others: slices of one, several joined in one, rows taken in another order.

A part lies in a whole along an axis if their other axes have the same sizes. The sums of the part's slabs along that
axis must then be among the whole's (`prints.Marginals`): next to each other, at regular distances (heads of a fused
projection, interleaved rows), or in any order. Where they are found is proved on the bytes before it counts.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, pairwise, permutations
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

from ckptkit.core.tensor import Tensor
from ckptkit.match.finder.expressions import Concat, Expression, Permute, Slice, Source, Stack, Take
from ckptkit.match.finder.lattice import recognise, select
from ckptkit.match.finder.layout import Lattice, contiguous, equal, movable, picked, strided
from ckptkit.match.finder.result import PLACES, How, Match, Proposal
from ckptkit.match.finder.whole import reshape
from ckptkit.match.finder.workers import Prints

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

ORDERS = 150  # most orders of axes tried at one place
DOUBLES = 8  # most equal parts told apart: as many times may one content be in a whole
HITS = 64  # most places tried for one part
RUNS = 4096  # most contiguous runs of a part in a whole
SLICES = 16  # most of them written as slices put together, not as a list of indices
DIRECTIONS = (
    2  # rows of the packed biases of a recurrent layer that runs both ways: vectors joined, then stacked
)
PACKED = 1 << 16  # most elements of each
SMALL = 16  # integers and bools in fewer elements than this are found anywhere

Shape = tuple[int, ...]


class Face(NamedTuple):
    """A tensor seen along an axis: the shape it is read in, without axes of 1 but for `dim`."""

    name: str
    shape: Shape
    dim: int
    merged: int  # leading axes taken as one


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a part lies in a whole: `runs` of (first index in the part, first index in the whole, count)."""

    part: Face
    whole: Face
    dims: tuple[int, ...]  # order of the part's axes that gives the whole's
    base: int
    lattice: Lattice | None
    runs: tuple[tuple[int, int, int], ...]


def sliced(
    targets: Mapping[str, Tensor], sources: Mapping[str, Tensor], prints: Prints
) -> Iterator[Proposal]:
    """Targets that lie in a source."""
    doubles = _doubles(sources, prints)
    wholes = {names[0]: sources[names[0]] for names in doubles}
    alike = {names[0]: tuple(names) for names in doubles}
    places: defaultdict[str, list[Placement]] = defaultdict(list)
    for place in _places(wholes, targets, prints):
        places[place.part.name].append(place)
    for place, sure in _first_proved(places.values(), wholes, targets, prints):
        part, whole = place.part.name, place.whole.name
        expression = _slice(place, wholes[whole].shape, targets[part].shape)
        how: How = "permuted" if wholes[whole].size == targets[part].size else "slice"
        yield Proposal(_match(part, expression, how, sure), {whole: alike[whole]})


def joined(
    targets: Mapping[str, Tensor], sources: Mapping[str, Tensor], prints: Prints
) -> Iterator[Proposal]:
    """Targets that are made of several sources."""
    doubles = _doubles(sources, prints)
    alike = {name: shared for names in doubles for shared in [tuple(names)] for name in names[:DOUBLES]}
    parts = {name: sources[name] for name in sources if name in alike}
    orders: dict[object, list[Placement]] = {}  # of the axes of one part at one place
    for place in _places(targets, parts, prints):
        orders.setdefault((place.whole, place.part, place.runs), []).append(place)
    found: defaultdict[str, defaultdict[Face, list[Placement]]] = defaultdict(lambda: defaultdict(list))
    doubtful: set[Placement] = set()
    for place, sure in _first_proved(orders.values(), targets, parts, prints):
        found[place.whole.name][place.whole].append(place)
        if not sure:
            doubtful.add(place)
    for name in targets:
        for face, places in found.get(name, {}).items():
            chosen = _cover(face.shape[face.dim], places)
            if chosen:
                expression, how = _join(chosen, parts, targets[name].shape)
                names = dict.fromkeys(place.part.name for place in chosen)
                sure = doubtful.isdisjoint(chosen) and not _others(chosen, places, alike)
                yield Proposal(_match(name, expression, how, sure), {n: alike[n] for n in names})
                break


def _match(target: str, expression: Expression, how: How, sure: bool) -> Match:
    return Match(target, expression, how, certain=sure, why="" if sure else PLACES)


def _others(chosen: list[Placement], places: list[Placement], alike: Mapping[str, tuple[str, ...]]) -> bool:
    """Whether a part of other content would do in the place of a chosen one."""
    held = {place.runs[0][1:]: alike[place.part.name] for place in chosen if len(place.runs) == 1}
    return any(
        held.get(place.runs[0][1:], alike[place.part.name]) != alike[place.part.name]
        for place in places
        if len(place.runs) == 1
    )


def _first_proved(
    groups: Iterable[list[Placement]],
    wholes: Mapping[str, Tensor],
    parts: Mapping[str, Tensor],
    prints: Prints,
) -> Iterator[tuple[Placement, bool]]:
    """Of each group the first placement that the bytes bear out, if any, and whether they bear out no other one."""

    def prove(group: list[Placement]) -> list[Placement]:
        return list(islice((place for place in group if _proved(place, wholes, parts)), 2))

    yield from ((proved[0], len(proved) == 1) for proved in prints.workers.map(prove, groups) if proved)


def _doubles(sources: Mapping[str, Tensor], prints: Prints) -> list[list[str]]:
    """The names grouped by bytes, dtype and shape."""
    groups: dict[object, list[str]] = defaultdict(list)
    for name, tensor in sources.items():
        groups[prints[tensor].digest, tensor.dtype.name, tensor.shape].append(name)
    return list(groups.values())


def _searchable(tensor: Tensor, prints: Prints) -> bool:
    """Whether its elements say anything: a constant lies in every other tensor that holds that value."""
    mark = prints[tensor]
    if mark.sums is None or mark.constant or tensor.size < 2 or len(tensor.shape) > 8 or not movable(tensor):
        return False
    return tensor.dtype.kind == "float" or tensor.size >= SMALL


def _faces(name: str, shape: Shape, whole: bool) -> Iterator[Face]:
    """The ways to look at a tensor: along each axis; a whole also along its merged leading axes, a part as a slab."""
    for dim in range(len(shape)):
        others = [n for n in shape[:dim] if n != 1]
        rest = [n for n in shape[dim + 1 :] if n != 1]
        if shape[dim] != 1:
            yield Face(name, (*others, shape[dim], *rest), len(others), 0)
    if whole:
        for count in range(2, len(shape)):
            if prod(shape[:count]) > max(shape[:count]):
                rest = [n for n in shape[count:] if n != 1]
                if rest:
                    yield Face(name, (prod(shape[:count]), *rest), 0, count)
        if len(shape) == 2 and shape[0] == DIRECTIONS and 1 < shape[1] <= PACKED:
            yield Face(name, (prod(shape),), 0, 2)
    else:
        yield Face(name, (1, *(n for n in shape if n != 1)), 0, 0)  # as one slab of a stack


def _sums(face: Face, tensor: Tensor, prints: Prints) -> "Array | None":
    if face.merged:
        return prints.leading(tensor, face.merged)
    if face.shape[face.dim] == 1:
        import numpy as np

        return np.array([prints[tensor].sums], np.uint64)
    # The axis in the tensor's own shape: the one that has this many larger axes before it.
    axes = [axis for axis, n in enumerate(tensor.shape) if n != 1]
    return prints.axis(tensor, axes[face.dim])


def _places(wholes: Mapping[str, Tensor], parts: Mapping[str, Tensor], prints: Prints) -> Iterator[Placement]:
    """Where parts seem to lie in wholes, by their sums; parts in order, the simplest places first."""
    faces: dict[object, tuple[list[Face], list[Face]]] = {}
    for side, tensors in enumerate((wholes, parts)):
        for name, tensor in tensors.items():
            if _searchable(tensor, prints):
                for face in _faces(name, tensor.shape, side == 0):
                    others = face.shape[: face.dim] + face.shape[face.dim + 1 :]
                    key = (tensor.dtype.name, tuple(sorted(others)))
                    faces.setdefault(key, ([], []))[side].append(face)
    results: list[tuple[tuple[int, int, int], int, Placement]] = []
    order = {name: k for k, name in enumerate(parts)}
    for large, small in faces.values():
        if not large or not small:
            continue
        least = min(face.shape[face.dim] for face in small)
        large = [face for face in large if face.shape[face.dim] >= least]
        prints.measure([*(wholes[face.name] for face in large), *(parts[face.name] for face in small)])
        index = _Index.build(large, wholes, prints)
        if index is None:
            continue
        for face in small:
            sums = _sums(face, parts[face.name], prints)
            if sums is None:
                continue
            for rank, place in enumerate(index.places(face, sums)):
                results.append(((order[face.name], len(place.runs), rank), len(results), place))
    yield from (place for _, _, place in sorted(results, key=lambda r: r[:2]))


class _Index:
    """The sums of many wholes along one kind of axis, sorted."""

    def __init__(self, faces: list[Face], sums: "list[Array]") -> None:
        import numpy as np

        self.faces, self.sums = faces, sums
        self.starts = np.cumsum([0, *(len(s) for s in sums)])
        everything = np.concatenate(sums)
        self.order = np.argsort(everything, kind="stable")
        self.sorted = everything[self.order]

    @classmethod
    def build(cls, faces: list[Face], tensors: Mapping[str, Tensor], prints: Prints) -> "_Index | None":
        both = [(face, _sums(face, tensors[face.name], prints)) for face in faces]
        known = [(face, sums) for face, sums in both if sums is not None]
        return cls([f for f, _ in known], [s for _, s in known]) if known else None

    def places(self, part: Face, sums: "Array") -> Iterator[Placement]:
        import numpy as np

        low = np.searchsorted(self.sorted, sums, "left")
        high = np.searchsorted(self.sorted, sums, "right")
        counts = high - low
        if not counts.all():
            return
        rarest = int(counts.argmin())
        tried: dict[int, bool] = {}
        for at in self.order[low[rarest] : high[rarest]][:HITS]:
            which = int(np.searchsorted(self.starts, at, "right")) - 1
            face, there = self.faces[which], self.sums[which]
            if len(there) < len(sums):
                continue
            first = int(at - self.starts[which]) - rarest
            if first >= 0 and np.array_equal(there[first : first + len(sums)], sums):
                tried[which] = True
                runs = ((0, first, len(sums)),)
                yield from self._ordered(part, face, first, ((len(sums), 1),), runs)
            else:
                tried.setdefault(which, False)
        for which, found in tried.items():
            if not found and len(sums) > 1:
                yield from self._scattered(part, self.faces[which], sums, self.sums[which])

    def _scattered(self, part: Face, face: Face, sums: "Array", there: "Array") -> Iterator[Placement]:
        """The part's slabs in any order, if each is found once."""
        import numpy as np

        order = np.argsort(there, kind="stable")
        low = np.searchsorted(there[order], sums, "left")
        high = np.searchsorted(there[order], sums, "right")
        if (high - low != 1).any():
            return
        indices = order[low]
        lattice = recognise(indices)
        breaks = np.flatnonzero(np.diff(indices) != 1) + 1
        if len(breaks) >= RUNS or len(np.unique(indices)) != len(indices):
            return
        edges = [0, *breaks.tolist(), len(indices)]
        runs = tuple((a, int(indices[a]), b - a) for a, b in pairwise(edges))
        yield from self._ordered(part, face, int(indices[0]), lattice, runs)

    @staticmethod
    def _ordered(
        part: Face, whole: Face, base: int, lattice: Lattice | None, runs: tuple[tuple[int, int, int], ...]
    ) -> Iterator[Placement]:
        """The orders of the part's axes that give the whole's."""
        others = [axis for axis in range(len(part.shape)) if axis != part.dim]
        wanted = whole.shape[: whole.dim] + whole.shape[whole.dim + 1 :]
        for order in islice(permutations(others), ORDERS):
            if tuple(part.shape[axis] for axis in order) == wanted:
                dims = (*order[: whole.dim], part.dim, *order[whole.dim :])
                yield Placement(part, whole, dims, base, lattice, runs)


def _proved(place: Placement, wholes: Mapping[str, Tensor], parts: Mapping[str, Tensor]) -> bool:
    """Whether the bytes are where the sums say."""
    part, whole = place.part, place.whole
    strides = contiguous(part.shape)
    sizes, steps = [part.shape[d] for d in place.dims], [strides[d] for d in place.dims]
    if place.lattice is not None:
        there = picked(wholes[whole.name], whole.dim, place.base, place.lattice, whole.shape)
        return equal(there, strided(parts[part.name], sizes, steps))
    dim = whole.dim
    for here, at, count in place.runs:
        there = picked(wholes[whole.name], dim, at, ((count, 1),), whole.shape)
        sizes[dim] = count
        if not equal(there, strided(parts[part.name], sizes, steps, here * steps[dim])):
            return False
    return True


def _slice(place: Placement, source: Shape, target: Shape) -> Expression:
    """The part as an expression over the whole."""
    whole, part = place.whole, place.part
    operand = reshape(Source(whole.name), source, whole.shape)
    taken: Expression | None = None
    if place.lattice is not None:
        taken = select(operand, whole.shape, whole.dim, place.base, place.lattice)
    if taken is None and len(place.runs) <= SLICES:
        taken = Concat(
            tuple(Slice(operand, whole.dim, at, at + count) for _, at, count in place.runs), whole.dim
        )
    if taken is None:
        indices = tuple(at + k for _, at, count in place.runs for k in range(count))
        taken = Take(operand, whole.dim, indices)
    shape = tuple(part.shape[d] for d in place.dims)
    back = tuple(place.dims.index(axis) for axis in range(len(place.dims)))
    if back != tuple(sorted(back)):
        taken, shape = Permute(taken, back), part.shape
    return reshape(taken, shape, target)


def _cover(size: int, places: list[Placement]) -> list[Placement]:
    """Placements that together fill an axis of a whole, none over another; [] if they leave gaps."""
    import numpy as np

    starts: defaultdict[int, list[Placement]] = defaultdict(list)
    for place in places:
        for _, at, _ in place.runs:
            starts[at].append(place)
    free = np.ones(size, bool)
    chosen: list[Placement] = []
    taken: set[str] = set()
    position = 0
    while position < size:
        fitting = [
            place
            for place in starts[position]
            if place.part.name not in taken and all(free[at : at + n].all() for _, at, n in place.runs)
        ]
        if not fitting:
            return []
        best = max(fitting, key=lambda place: place.part.shape[place.part.dim])
        for _, at, count in best.runs:
            free[at : at + count] = False
        chosen.append(best)
        taken.add(best.part.name)
        left = free[position:]
        position += int(left.argmax()) if left.any() else size - position
    return chosen


def _join(chosen: list[Placement], parts: Mapping[str, Tensor], target: Shape) -> tuple[Expression, How]:
    """The whole as an expression over its parts."""
    face = chosen[0].whole
    pieces: list[tuple[int, int, Expression]] = []
    slabs = all(place.part.shape[place.part.dim] == 1 for place in chosen)
    for place in chosen:
        part, dims = place.part, place.dims
        shape = part.shape
        if slabs:  # the axis of 1 is the one that stacking makes
            shape = shape[1:]
            dims = tuple(d - 1 for d in dims if d)
        operand = reshape(Source(part.name), parts[part.name].shape, shape)
        if dims != tuple(range(len(dims))):
            operand = Permute(operand, dims)
        for here, at, count in place.runs:
            whole = len(place.runs) == 1
            pieces.append((at, count, operand if whole else Slice(operand, face.dim, here, here + count)))
    pieces.sort(key=lambda piece: piece[0])
    expressions = tuple(expression for _, _, expression in pieces)
    if slabs:
        return reshape(Stack(expressions, face.dim), face.shape, target), "stack"
    groups = _groups(pieces, prod(target[1 : face.merged])) if face.merged == 2 else []
    if groups:
        stack = Stack(tuple(Concat(group, 0) if len(group) > 1 else group[0] for group in groups), 0)
        return reshape(stack, (target[0], target[1], *face.shape[1:]), target), "stack"
    return reshape(Concat(expressions, face.dim), face.shape, target), "concat"


def _groups(pieces: list[tuple[int, int, Expression]], size: int) -> list[tuple[Expression, ...]]:
    """The pieces cut into runs that each fill `size` indices; [] if they do not."""
    groups: list[tuple[Expression, ...]] = []
    group: list[Expression] = []
    for at, count, expression in pieces:
        group.append(expression)
        if (at + count) % size == 0:
            groups.append(tuple(group))
            group = []
        elif at // size != (at + count) // size:
            return []
    return groups

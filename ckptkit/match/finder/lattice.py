"""Regular patterns among indices: nested loops with fixed counts and steps, and the layout operations they are."""

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ckptkit.match.finder.expressions import Expression, Permute, Reshape, Slice
from ckptkit.match.finder.layout import Lattice

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

DEPTH = 4


def recognise(indices: "Array") -> Lattice | None:
    """The nested loops that give the indices, relative to the first; None if there are more than `DEPTH`."""
    levels: list[tuple[int, int]] = []
    while len(indices) > 1:
        if len(levels) == DEPTH:
            return None
        steps = indices[1:] - indices[:-1]
        step = int(steps[0])
        breaks = (steps != step).nonzero()[0]
        count = int(breaks[0]) + 1 if len(breaks) else len(indices)
        if step <= 0 or len(indices) % count:
            return None
        table = indices.reshape(-1, count)
        if (table[:, 1:] - table[:, :-1] != step).any():
            return None
        levels.append((count, step))
        indices = table[:, 0]
    return tuple(reversed(levels))


def select(
    operand: Expression, shape: tuple[int, ...], dim: int, base: int, lattice: Lattice
) -> Expression | None:
    """The expression that picks a lattice of indices along `dim`; None where the axis does not divide evenly.

    `shape` is the operand's. The result has the lattice's counts merged into one axis.
    """
    size = shape[dim]
    lattice = tuple((count, step) for count, step in lattice if count > 1) or ((1, 1),)
    if len(lattice) == 1 and (lattice[0][1] == 1 or lattice[0][0] == 1):
        return Slice(operand, dim, base, base + lattice[0][0])
    ordered = sorted(lattice, key=lambda level: -level[1])
    if ordered[-1][1] != 1:
        ordered.append((1, 1))
    steps = [step for _, step in ordered]
    if size % steps[0] or any(outer % inner for outer, inner in pairwise(steps)):
        return None
    factors = [size // steps[0], *(outer // inner for outer, inner in pairwise(steps))]
    result: Expression = Reshape(operand, (*shape[:dim], *factors, *shape[dim + 1 :]))
    left = base
    for axis, ((count, step), factor) in enumerate(zip(ordered, factors, strict=True)):
        first, left = divmod(left, step)
        if first + count > factor:
            return None
        if count < factor:
            result = Slice(result, dim + axis, first, first + count)
    places = [ordered.index(level) for level in lattice]
    places += [axis for axis in range(len(ordered)) if axis not in places]
    if places != sorted(places):
        before, after = range(dim), range(dim + len(ordered), len(shape) - 1 + len(ordered))
        result = Permute(result, (*before, *(dim + place for place in places), *after))
    count = 1
    for n, _ in lattice:
        count *= n
    return Reshape(result, (*shape[:dim], count, *shape[dim + 1 :]))

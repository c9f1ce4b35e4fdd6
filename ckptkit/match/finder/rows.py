"""Rows looked up in a table: embeddings at positions or types that an exporter knew, and repeated or rearranged them.

A target is looked at as a list of rows along its first or its last axis (`relative_position_bias_table` goes to the
heads in front); a vector is a table of one row, such as a bias that a folded product of zeros leaves. Every row must
have the sums of one of the table's (`prints`), and then its bytes. Rows that lie next to each other, or in another
order, each once, are `pieces`'; here a row may be taken any number of times.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ckptkit.core.tensor import Tensor
from ckptkit.match.finder.expressions import Expression, Permute, Source, Take
from ckptkit.match.finder.layout import contiguous, equal, movable, strided
from ckptkit.match.finder.result import PLACES, Match, Proposal
from ckptkit.match.finder.whole import reshape
from ckptkit.match.finder.workers import Prints

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

RUNS = 1 << 14  # most runs of one row, or of rows in order, compared one by one
ROWS = 1 << 18  # most rows of a target
REPEATED = "the table has rows that are equal; the first of them are named"
TRIED = 16  # most tables whose rows have the sums of a target's


def looked_up(
    targets: Mapping[str, Tensor], sources: Mapping[str, Tensor], prints: Prints
) -> Iterator[Proposal]:
    """Targets that are rows of a source, taken more than once or in any order."""
    tables: defaultdict[object, dict[tuple[bytes, tuple[int, ...]], list[str]]] = defaultdict(dict)
    for name, tensor in sources.items():
        mark = prints[tensor]
        if len(tensor.shape) in (1, 2) and mark.sums is not None and not mark.constant and movable(tensor):
            alike = tables[tensor.dtype.name, tensor.shape[-1]]
            alike.setdefault((mark.digest, tensor.shape), []).append(name)
    for name, tensor in targets.items():
        mark = prints[tensor]
        if mark.sums is None or mark.constant or not movable(tensor):
            continue
        axes = [n for n in tensor.shape if n != 1]
        found = []
        for width, last in ((axes[-1], True), (axes[0], False)) if len(axes) > 1 else ():
            for names in list(tables.get((tensor.dtype.name, width), {}).values())[:TRIED]:
                table = sources[names[0]]
                if len(table.shape) == 1:
                    table = strided(table, (1, width), (width, 1))
                rows = _rows(tensor, table, axes, last, prints)
                if rows is not None:
                    found.append((names, *rows, last))
        if found:
            names, indices, sure, last = found[0]
            why = REPEATED if not sure else PLACES if len(found) > 1 else ""
            shape = sources[names[0]].shape
            width = shape[-1]
            table_rows = reshape(Source(names[0]), shape, shape if len(shape) == 2 else (1, width))
            taken: Expression = Take(table_rows, 0, indices)
            shape = (len(indices), width) if last else (width, len(indices))
            expression = reshape(taken if last else Permute(taken, (1, 0)), shape, tensor.shape)
            match = Match(name, expression, "slice", certain=not why, why=why)
            yield Proposal(match, {names[0]: tuple(names)})


def _rows(
    target: Tensor, table: Tensor, axes: Sequence[int], last: bool, prints: Prints
) -> tuple[tuple[int, ...], bool] | None:
    """The rows of the table that the target's are, proved on the bytes, and whether no others are the same."""
    import numpy as np

    width = axes[-1] if last else axes[0]
    count = target.size // width
    if not 0 < count <= ROWS:
        return None
    shape = (count, width) if last else (width, count)
    rows = strided(target, shape, contiguous(shape))
    mine, theirs = prints.axis(rows, 0 if last else 1), prints.axis(table, 0)
    if mine is None or theirs is None:
        return None
    order = np.argsort(theirs, kind="stable")
    at = np.searchsorted(theirs[order], mine)
    at[at == len(theirs)] = 0
    indices: Array = order[at]
    if not np.array_equal(theirs[indices], mine):
        return None
    runs = _runs(indices)
    if len(runs) > RUNS:
        return None
    steps = (width, 1) if last else (1, count)
    for here, first, number, step in runs:
        taken = strided(table, (number, width), (step * width, 1), first * width)
        if not equal(taken, strided(target, (number, width), steps, here * steps[0])):
            return None
    sure = bool((np.searchsorted(theirs[order], mine, "right") - at == 1).all())
    return tuple(indices.tolist()), sure


def _runs(indices: "Array") -> list[tuple[int, int, int, int]]:
    """(first place, first index, count, step 0 or 1) of the stretches that repeat one row or go on with the next."""
    runs: list[tuple[int, int, int, int]] = []
    for place, index in enumerate(indices.tolist()):
        if runs:
            here, first, count, step = runs[-1]
            gone = index - (first + step * (count - 1))
            if gone == step or (count == 1 and gone in (0, 1)):
                runs[-1] = (here, first, count + 1, gone)
                continue
        runs.append((place, index, 1, 0))
    return runs

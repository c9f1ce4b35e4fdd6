"""Tensors that are one tensor of the other checkpoint: under another name, shape, order of axes or dtype."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice, permutations

from ckptkit.core.dtypes import DTYPES
from ckptkit.core.tensor import Tensor
from ckptkit.match.finder.expressions import Cast, Expression, Permute, Reshape, Source
from ckptkit.match.finder.layout import INTEGERS, cast_to, castable, contiguous, equal, movable, strided
from ckptkit.match.finder.prints import Print
from ckptkit.match.finder.result import PLACES, How, Match, Proposal
from ckptkit.match.finder.workers import Prints

TRIED = 16  # most distinct contents with the same sums that are tried for one target
LOOKED = 1 << 16  # bytes: larger tensors are looked at before they are rearranged
ORDERS = 150  # most orders of axes tried for one pair


def exact(targets: Mapping[str, Tensor], sources: Mapping[str, Tensor], prints: Prints) -> Iterator[Proposal]:
    """Targets whose bytes are those of a source."""
    index = _by_content(sources, prints)
    alike: dict[object, tuple[str, ...]] = {}  # one tuple for all targets of a content and shape
    for name, tensor in targets.items():
        key = (tensor.dtype.name, prints[tensor].digest)
        if key in index:
            shaped = (*key, tensor.shape)
            if shaped not in alike:
                alike[shaped] = _alike(index[key], tensor.shape, sources)
            found = proposal(name, tensor, alike[shaped], sources, Source)
            if len(alike[shaped]) < len(index[key]):  # the others have another shape
                found = replace(found, match=replace(found.match, certain=False, why=PLACES))
            yield found


def rearranged(
    targets: Mapping[str, Tensor], sources: Mapping[str, Tensor], prints: Prints
) -> Iterator[Proposal]:
    """Targets whose elements are those of a source with its axes in another order."""
    contents = _by_sums(sources, prints)

    def look(item: tuple[str, Tensor]) -> Proposal | None:
        name, tensor = item
        mark = prints[tensor]
        if mark.sums is None:
            return None
        for names in contents.get((tensor.dtype.name, tensor.size, mark.sums), ())[:TRIED]:
            found = reordered(name, tensor, names, sources, lambda t: t)
            if found is not None:
                return found
        return None

    yield from (found for found in prints.workers.map(look, targets.items()) if found is not None)


def converted(
    targets: Mapping[str, Tensor], sources: Mapping[str, Tensor], prints: Prints
) -> Iterator[Proposal]:
    """Targets whose values are those of a source in another dtype, axes possibly reordered.

    Either the target is the rounded source, or the source widened without loss. Both show when the wider of the two
    is cast to the narrower dtype.
    """
    by_size: defaultdict[int, set[str]] = defaultdict(set)
    for tensor in (*targets.values(), *sources.values()):
        by_size[tensor.size].add(tensor.dtype.name)
    narrowed: dict[Tensor, list[Tensor]] = {}
    for tensor in dict.fromkeys((*targets.values(), *sources.values())):
        others = (DTYPES[name] for name in sorted(by_size[tensor.size]))
        narrowed[tensor] = [
            cast_to(tensor, d) for d in others if d.bits <= tensor.dtype.bits and castable(tensor.dtype, d)
        ]
    prints.take(cast for casts in narrowed.values() for cast in casts)
    index: dict[tuple[str, int, int | None], list[str]] = {}
    for name, tensor in sources.items():
        for form in (tensor, *narrowed[tensor]):
            index.setdefault((form.dtype.name, form.size, prints[form].sums), []).append(name)

    def look(item: tuple[str, Tensor]) -> Proposal | None:
        name, tensor = item
        for form in (tensor, *narrowed[tensor]):
            mark = prints[form]
            if mark.sums is None:
                continue
            names = [
                n
                for n in index.get((form.dtype.name, form.size, mark.sums), ())
                if castable(sources[n].dtype, tensor.dtype)
            ]
            for alike in list(_contents(names, sources, prints))[:TRIED]:
                found = _converted(name, tensor, alike, sources)
                if found is not None:
                    return found
        return None

    yield from (found for found in prints.workers.map(look, targets.items()) if found is not None)


def _converted(name: str, tensor: Tensor, names: list[str], sources: Mapping[str, Tensor]) -> Proposal | None:
    source = sources[names[0]]
    same = cast_to(source, tensor.dtype)
    if source.dtype.name in INTEGERS and not equal(cast_to(same, source.dtype), source):
        return None  # values that do not fit
    if equal(same, tensor):
        alike = _alike(names, tensor.shape, sources)
        return proposal(name, tensor, alike, sources, lambda n: Cast(Source(n), tensor.dtype.name), "cast")
    return reordered(name, tensor, names, sources, lambda t: cast_to(t, tensor.dtype))


def reordered(
    name: str,
    tensor: Tensor,
    names: Sequence[str],
    sources: Mapping[str, Tensor],
    form: Callable[[Tensor], Tensor],
) -> Proposal | None:
    """Try the orders of axes of sources that all hold the same bytes; their shapes may differ."""
    for shape in dict.fromkeys(sources[n].shape for n in names):
        alike = tuple(n for n in names if sources[n].shape == shape)
        source = form(sources[alike[0]])
        if not movable(source):
            continue
        for before, dims in islice(_orders(shape, tensor.shape), ORDERS):
            if not _agrees(source, before, dims, tensor):
                continue
            strides = contiguous(before)
            moved = strided(source, [before[d] for d in dims], [strides[d] for d in dims])
            if equal(moved, tensor):
                inner: Expression = Source(alike[0])
                if source.dtype is not sources[alike[0]].dtype:
                    inner = Cast(inner, tensor.dtype.name)
                expression, how = _permute(inner, shape, before, dims, tensor.shape)
                return Proposal(Match(name, expression, how), {alike[0]: alike})
    return None


def _orders(
    source: tuple[int, ...], target: tuple[int, ...]
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(shape to read the source in, order of its axes), those that give the target's shape first."""
    mine = tuple(n for n in source if n != 1)
    theirs = tuple(n for n in target if n != 1)
    seen = set()
    if len(mine) <= 6:
        for dims in permutations(range(len(mine))):
            if tuple(mine[d] for d in dims) == theirs:
                seen.add((mine, dims))
                yield mine, dims
    if len(mine) <= 5:  # axes reordered, then merged or split
        yield from ((mine, dims) for dims in permutations(range(len(mine))) if (mine, dims) not in seen)
    if len(theirs) <= 5 and sorted(mine) != sorted(theirs):  # split or merged, then reordered
        for dims in permutations(range(len(theirs))):
            before = [0] * len(theirs)
            for axis, d in enumerate(dims):
                before[d] = theirs[axis]
            yield tuple(before), dims


def _agrees(source: Tensor, shape: Sequence[int], dims: Sequence[int], target: Tensor) -> bool:
    """Whether a few runs agree: a cheap look before a large tensor is rearranged."""
    if not dims or source.nbytes <= LOOKED or source.file is None or target.file is None:
        return True
    strides = contiguous(shape)
    sizes, steps = [shape[d] for d in dims], [strides[d] for d in dims]
    own = contiguous(sizes)
    run = min(sizes[-1], 64)
    for part in (0.0, 0.37, 0.71):
        index = [int(n * part) for n in sizes[:-1]] + [0]
        there = sum(i * s for i, s in zip(index, steps, strict=True))
        here = sum(i * s for i, s in zip(index, own, strict=True))
        if not equal(strided(source, [run], steps[-1:], there), strided(target, [run], [1], here)):
            return False
    return True


def _permute(
    inner: Expression,
    shape: tuple[int, ...],
    before: tuple[int, ...],
    dims: tuple[int, ...],
    target: tuple[int, ...],
) -> tuple[Expression, How]:
    """The expression of a proved order of axes, on the full shapes where they have the same axes."""
    if sorted(shape) == sorted(target) and tuple(before[d] for d in dims) == tuple(
        n for n in target if n != 1
    ):
        axes = [axis for axis, n in enumerate(shape) if n != 1]
        ones = iter([axis for axis, n in enumerate(shape) if n == 1])
        order = iter(dims)
        full = tuple(next(ones) if n == 1 else axes[next(order)] for n in target)
        return Permute(inner, full), "transposed" if full == (1, 0) else "permuted"
    moved = Permute(reshape(inner, shape, before), dims)
    after = tuple(before[d] for d in dims)
    return reshape(moved, after, target), "transposed" if dims == (1, 0) and after == target else "permuted"


def reshape(expression: Expression, shape: Sequence[int], target: Sequence[int]) -> Expression:
    """Reshape, unless the shape is that already."""
    return expression if tuple(shape) == tuple(target) else Reshape(expression, tuple(target))


def _alike(names: Sequence[str], shape: tuple[int, ...], sources: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Of names that hold the same bytes those of a shape, or else those of the first one's."""
    found = tuple(n for n in names if sources[n].shape == shape)
    return found or tuple(n for n in names if sources[n].shape == sources[names[0]].shape)


def proposal(
    name: str,
    tensor: Tensor,
    alike: tuple[str, ...],
    sources: Mapping[str, Tensor],
    build: Callable[[str], Expression],
    how: How = "renamed",
) -> Proposal:
    """The sources all hold the target's bytes, in one shape."""
    first = alike[0]
    shape = sources[first].shape
    if shape != tensor.shape and how == "renamed":
        how = "reshaped"
    if how == "reshaped" and len(tensor.shape) == 2 and 1 in tensor.shape and shape == tensor.shape[::-1]:
        return Proposal(Match(name, Permute(build(first), (1, 0)), "transposed"), {first: alike})
    expression = reshape(build(first), shape, tensor.shape)
    if how == "renamed" and alike == (name,):
        how = "same"
    return Proposal(Match(name, expression, how), {first: alike})


def _by_content(sources: Mapping[str, Tensor], prints: Prints) -> dict[tuple[str, bytes], list[str]]:
    index: dict[tuple[str, bytes], list[str]] = defaultdict(list)
    for name, tensor in sources.items():
        index[tensor.dtype.name, prints[tensor].digest].append(name)
    return index


def _contents(names: Iterable[str], sources: Mapping[str, Tensor], prints: Prints) -> Iterable[list[str]]:
    """The names grouped by bytes and dtype."""
    groups: dict[tuple[str, bytes], list[str]] = defaultdict(list)
    for name in names:
        groups[sources[name].dtype.name, prints[sources[name]].digest].append(name)
    return groups.values()


def _by_sums(sources: Mapping[str, Tensor], prints: Prints) -> dict[tuple[str, int, int], list[list[str]]]:
    """The contents that share dtype, number of elements and sums."""
    names: dict[tuple[str, int, int], list[str]] = defaultdict(list)
    for name, tensor in sources.items():
        mark: Print = prints[tensor]
        if mark.sums is not None:
            names[tensor.dtype.name, tensor.size, mark.sums].append(name)
    return {key: list(_contents(found, sources, prints)) for key, found in names.items()}

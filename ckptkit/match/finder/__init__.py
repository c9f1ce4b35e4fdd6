"""The content finder: explains each tensor of one checkpoint by tensors of another.

`find` looks at values only to the bit: fingerprints propose (`prints`), the bytes prove (`layout.equal`), names merely
choose among tensors that hold the same values (`settle`). The one exception is a folded batch normalization, which is
arithmetic: there the formula that comes nearest is named with its distance (`folded`).
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from ckptkit.core.dtypes import DType
from ckptkit.core.tensor import Tensor
from ckptkit.match.finder.analogy import analogies
from ckptkit.match.finder.ends import by_ends
from ckptkit.match.finder.expressions import (
    Cast,
    Concat,
    Expression,
    Folded,
    Normalization,
    Permute,
    Reshape,
    Slice,
    Source,
    Stack,
    Take,
    describe,
    evaluate,
    substitute,
)
from ckptkit.match.finder.folded import folds
from ckptkit.match.finder.layout import cast_to, castable, equal
from ckptkit.match.finder.pieces import joined, sliced
from ckptkit.match.finder.result import CONSTANT, TWINS, Correspondence, How, Match, Proposal
from ckptkit.match.finder.rows import looked_up
from ckptkit.match.finder.settle import settle
from ckptkit.match.finder.whole import converted, exact, rearranged
from ckptkit.match.finder.workers import WORKERS, Prints, Workers

__all__ = [
    "TWINS",
    "Cast",
    "Concat",
    "Correspondence",
    "Expression",
    "Folded",
    "How",
    "Match",
    "Normalization",
    "Permute",
    "Reshape",
    "Slice",
    "Source",
    "Stack",
    "Take",
    "describe",
    "equal",
    "evaluate",
    "find",
]

SMALL = 64  # elements: an integer tensor up to this size is a shape or an axis, not a weight
TINY = 16  # elements: fewer are no evidence that a tensor moved; counters and factors coincide

Tensors = Mapping[str, Tensor]


def find(a: Tensors, b: Tensors, *, same: Collection[str] | None = None) -> Correspondence:
    """Explain the tensors of `b` by those of `a`, and what is left of `a` by those of `b`.

    `same` gives the names known to have one shape and equal values on both sides; None has them compared first.
    A name that both have with different values is looked for only among what is not equal by name, so that two
    tensors that changed places are found, or in the other tensor of its name alone if it is tiny or holds one value
    throughout; a name that only one side has is looked for everywhere.

    Reads each tensor that is searched for once, and again to prove what was found; memory stays within a few blocks,
    plus one tensor that is not stored plainly and has to be rearranged. Raises what reading raises.
    """
    with ThreadPoolExecutor(WORKERS) as pool:
        return _Search(a, b, Workers(pool)).run(same)


class _Search:
    def __init__(self, a: Tensors, b: Tensors, workers: Workers) -> None:
        self.a, self.b = a, b
        self.workers = workers
        self.prints = Prints(workers)

    def run(self, same: Collection[str] | None) -> Correspondence:
        common = [name for name in self.b if name in self.a]
        found = self.workers.map(self._same, common) if same is None else map(self._known, same)
        pairs = {match.target: match for match in found if match is not None}
        left_a = {name: tensor for name, tensor in self.a.items() if name not in pairs}
        left_b = {name: tensor for name, tensor in self.b.items() if name not in pairs}
        backward: dict[str, Match] = {}
        if left_a or left_b:
            ends = [found.match for found in by_ends(left_b, self.a, left_a.keys(), self.workers)]
            _add(pairs, ends)
            left_b = _without(left_b, pairs)
            if not any(_holds_parts(tensor) for tensor in left_b.values()):
                left_a = _without(left_a, {name for match in ends for name in match.sources})
            fixed = list(pairs.values())
            self.prints.take((*left_b.values(), *left_a.values()))
            own = {name for name, t in left_b.items() if name in left_a and self._stays(left_a[name], t)}
            _add(pairs, self._in_place(own))
            other_b, other_a = _without(left_b, own), _without(left_a, own)
            _add(pairs, settle(self._explain(other_b, other_a, self.a), fixed))
            _add(pairs, analogies(_without(other_b, pairs), other_a, pairs))
            _add(pairs, folds(_without(left_b, pairs), self.a, self._plain(pairs)))
            used = {name for match in pairs.values() for name in match.sources}
            left_a, left_b = _without(left_a, used), _without(left_b, pairs)
            _add(backward, settle(self._explain(_without(left_a, own), _without(left_b, own), self.b)))
            if not any(match.how == "folded" for match in pairs.values()):
                _add(backward, folds(_without(left_a, backward), self.b))
        return self._report(pairs, backward)

    def _plain(self, pairs: Mapping[str, Match]) -> dict[str, dict[str, Tensor]]:
        """Vectors of B that are a tensor of A as it is, by that tensor."""
        found: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
        for name, match in pairs.items():
            if isinstance(match.expression, Source) and len(self.b[name].shape) == 1:
                found[match.expression.name][name] = self.b[name]
        return found

    def _report(self, pairs: Mapping[str, Match], backward: Mapping[str, Match]) -> Correspondence:
        used_a = {name for match in pairs.values() for name in match.sources}
        used_b = {name for match in backward.values() for name in match.sources}
        left_a = _without(self.a, used_a | backward.keys())
        left_b = _without(self.b, used_b | pairs.keys())
        return Correspondence(
            tuple(pairs[name] for name in self.b if name in pairs),
            tuple(backward[name] for name in self.a if name in backward),
            tuple(name for name, tensor in left_a.items() if _is_constant(tensor)),
            tuple(name for name, tensor in left_b.items() if _is_constant(tensor)),
            tuple(name for name, tensor in left_a.items() if not _is_constant(tensor)),
            tuple(name for name, tensor in left_b.items() if not _is_constant(tensor)),
        )

    def _known(self, name: str) -> Match:
        target = self.b[name].dtype
        if target is self.a[name].dtype:
            return Match(name, Source(name), "same")
        return Match(name, Cast(Source(name), target.name), "cast")

    def _same(self, name: str) -> Match | None:
        """Whether the name has the same values on both sides, widened or rounded if the dtypes differ."""
        x, y = self.a[name], self.b[name]
        if x.shape != y.shape:
            return None
        if x.dtype is y.dtype:
            return self._known(name) if equal(x, y) else None
        if castable(x.dtype, y.dtype) and x.dtype.kind == "float" and equal(cast_to(x, y.dtype), y):
            return self._known(name)
        return None

    def _stays(self, one: Tensor, other: Tensor) -> bool:
        """Whether two tensors of one name say too little to be found under others."""
        marks = self.prints[one], self.prints[other]
        return max(one.size, other.size) < TINY or any(mark.constant for mark in marks)

    def _in_place(self, names: Iterable[str]) -> Iterator[Match]:
        """Tensors that are the other one of their name in another layout or dtype."""
        for name in names:
            one, other = self.a[name], self.b[name]
            if one.size != other.size or not (one.dtype is not other.dtype or self._kept(one, other)):
                continue
            for stage in (exact, rearranged, converted):
                found = next(iter(stage({name: other}, {name: one}, self.prints)), None)
                if found is not None:
                    yield found.match
                    break

    def _explain(self, targets: Tensors, near: Tensors, sources: Tensors) -> Iterator[Proposal]:
        """The proposals; those for constants say that they prove little."""
        for proposal in self._proposals(targets, near, sources):
            if self.prints[targets[proposal.match.target]].constant:
                yield replace(proposal, match=replace(proposal.match, certain=False, why=CONSTANT))
            else:
                yield proposal

    def _proposals(self, targets: Tensors, near: Tensors, sources: Tensors) -> Iterator[Proposal]:
        """Proposals for the targets from `near`; for names that the other side lacks, from all `sources`."""
        prints = self.prints
        left = dict(targets)
        new = {name: t for name, t in targets.items() if name not in sources}
        wanted = {(t.dtype.name, t.size) for t in new.values()}
        far = {
            name: t for name, t in sources.items() if name not in near and (t.dtype.name, t.size) in wanted
        }
        stages: tuple[Callable[[Tensors, Tensors, Prints], Iterable[Proposal]], ...]
        stages = (exact, rearranged)
        for stage in stages:
            for proposal in list(stage(left, near, prints)):
                del left[proposal.match.target]
                yield proposal
        if far and any(name in left for name in new):
            prints.take(far.values())
            for stage in stages:
                for proposal in list(stage({n: t for n, t in left.items() if n in new}, far, prints)):
                    del left[proposal.match.target]
                    yield proposal
        for proposal in list(converted(left, near, prints)):
            del left[proposal.match.target]
            yield proposal
        # A tensor that kept its name and shape is in no other one, unless its elements are all still there.
        changed = {name for name, t in left.items() if name in near and self._changed(t, near[name])}
        left = {name: t for name, t in left.items() if name not in changed}
        near = {name: t for name, t in near.items() if name not in changed}
        for proposal in self._pieces(left, near):
            del left[proposal.match.target]
            yield proposal
        for dtype in dict.fromkeys(t.dtype for t in left.values() if t.dtype.kind == "float"):
            some = {name: t for name, t in left.items() if t.dtype is dtype}
            cast = {name: cast_to(t, dtype) for name, t in near.items() if castable(t.dtype, dtype)}
            prints.take(cast.values())
            for proposal in self._pieces(some, cast):
                yield _rounded(proposal, dtype)

    def _pieces(self, targets: Tensors, sources: Tensors) -> Iterator[Proposal]:
        left = dict(targets)
        for stage in (sliced, joined, looked_up):
            for proposal in list(stage(left, sources, self.prints)):
                del left[proposal.match.target]
                yield proposal

    def _changed(self, one: Tensor, other: Tensor) -> bool:
        return one.shape == other.shape and not self._kept(one, other)

    def _kept(self, one: Tensor, other: Tensor) -> bool:
        """Whether the elements are still there, in whatever order."""
        return one.dtype is other.dtype and self.prints[one].sums == self.prints[other].sums


def _holds_parts(tensor: Tensor) -> bool:
    """Whether it may be a part of another tensor, or made of such parts."""
    return tensor.dtype.kind == "float" and tensor.size >= TINY


def _add(matches: dict[str, Match], more: Iterable[Match]) -> None:
    matches.update([(match.target, match) for match in more])


def _without(tensors: Tensors, names: Container[str]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name not in names}


def _rounded(proposal: Proposal, dtype: DType) -> Proposal:
    """The proposal with its sources cast first."""
    cast = substitute(proposal.match.expression, lambda name: Cast(Source(name), dtype.name))
    return replace(proposal, match=replace(proposal.match, expression=cast))


def _is_constant(tensor: Tensor) -> bool:
    whole = tensor.dtype.kind in ("int", "uint", "bool")
    return tensor.size <= (SMALL if whole else 1) and (whole or tensor.kind == "constant")

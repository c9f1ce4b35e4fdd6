"""Entries after the search by content: what moved is told as such, what is left stays added, removed or changed."""

from collections.abc import Sequence

from ckptkit.core.graph import TensorGraph
from ckptkit.match.finder import Correspondence, Match, find
from ckptkit.verbs.diff.result import Entry, Renamed


def explained(
    a: TensorGraph, b: TensorGraph, entries: Sequence[Entry]
) -> tuple[list[Entry], list[Renamed], frozenset[str]]:
    """The entries that remain, the tensors found again, and the names that are settings of a graph, not weights."""
    same = {e.name for e in entries if e.a and e.b and {"values", "shape"}.isdisjoint(e.kinds)}
    found = find(a.tensors, b.tensors, same=same)
    moves = [match for match in found.pairs if match.target not in same]
    renamed = [_renamed(match) for match in moves if match.sources != (match.target,)]
    renamed += [_backward(match) for match in found.backward]
    how = {match.target: match.text for match in moves}
    gone = {name for match in moves for name in match.sources} | {match.target for match in found.backward}
    left = [
        entry._replace(how=how.get(entry.name, "")) if entry.status == "changed" else entry
        for entry in entries
        if entry.name not in {"added": how, "removed": gone}.get(entry.status, ())
    ]
    return left, renamed, _constants(found)


def _constants(found: Correspondence) -> frozenset[str]:
    return frozenset((*found.constants_a, *found.constants_b))


def _renamed(match: Match) -> Renamed:
    return Renamed(match.sources, match.target, match.how, match.text, match.certain, match.why, match.ulp)


def _backward(match: Match) -> Renamed:
    """A tensor of A that is made from tensors of B."""
    return Renamed(
        (match.target,),
        match.sources[0],
        match.how,
        match.text,
        match.certain,
        match.why,
        match.ulp,
        backward=True,
    )

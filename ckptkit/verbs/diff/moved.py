"""Entries after the search by content: what moved is told as such, what is left stays added, removed or changed.

Every tensor is accounted for once. A tensor that still stands under its own name has not moved: what holds its
values elsewhere is a copy, and stays added or removed. So do a tensor that only parts of are found again, and a
name that holds another one's values now, if its own are gone.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from ckptkit.core.graph import TensorGraph
from ckptkit.match.finder import Expression, Match, find
from ckptkit.verbs.diff.result import Entry, Renamed

DOUBLED = "several tensors hold the same values; the first is taken"


def explained(
    a: TensorGraph, b: TensorGraph, entries: Sequence[Entry]
) -> tuple[list[Entry], list[Renamed], frozenset[str]]:
    """The entries that remain, the tensors found again, and the names that are settings of a graph, not weights."""
    same = {e.name for e in entries if e.a and e.b and {"values", "shape"}.isdisjoint(e.kinds)}
    found = find(a.tensors, b.tensors, same=same)
    account = _Account(a, b, same)
    account.forward([match for match in found.pairs if match.target not in same])
    account.backward(found.backward)
    left = [after for entry in entries if (after := account.entry(entry)) is not None]
    return left, account.renamed, frozenset((*found.constants_a, *found.constants_b))


class _Account:
    """Which tensors of either side are told under another name, and what is known of the others."""

    def __init__(self, a: TensorGraph, b: TensorGraph, same: set[str]) -> None:
        self.a, self.b, self.same = a, b, same
        self.renamed: list[Renamed] = []
        self._taken = set(same)  # tensors of A that stand for one of B
        self._told_a: set[str] = set()
        self._told_b: set[str] = set()
        self._how: dict[str, str] = {}  # of a tensor of B
        self._copies: dict[str, str] = {}  # on one side only

    def forward(self, matches: Sequence[Match]) -> None:
        """Take in what makes tensors of B from A, in place first, then whole tensors, then parts."""
        self._how = {match.target: match.text for match in matches}
        self._taken |= {n for match in matches if match.target in match.sources for n in match.sources}
        moved = self._moves([match for match in matches if self._whole(match)])
        doubled = Counter(match.expression for match in matches)
        taken = self._taken | {match.sources[0] for match in moved.values()}
        pieces: set[Expression] = set()
        covered: Counter[str] = Counter()
        for match in matches:
            if match.target in match.sources:
                if len(match.sources) > 1:
                    self.renamed.append(_renamed(match))
                    self._told_a.update(n for n in match.sources if n not in self.b)
                continue
            if self._whole(match):
                if match.target not in moved:
                    self._copy(match)
                    continue
                if doubled[match.expression] > 1 and match.certain:
                    match = replace(match, certain=False, why=DOUBLED)
                self._told_a.update(match.sources)
            elif match.how == "folded":
                self._told_a.update(n for n in match.sources if n not in self.b)
            elif match.expression in pieces or taken.issuperset(match.sources):
                self._copy(match)
                continue
            else:
                pieces.add(match.expression)
                self._cover(match, covered)
            self._told_b.add(match.target)
            self.renamed.append(_renamed(match))
        self._taken = taken | self._told_a

    def backward(self, matches: Iterable[Match]) -> None:
        """Take in what makes tensors of A from B: copies that are gone, parts of a larger one, rounded values."""
        taken = self.same | self._told_b
        for match in matches:
            if taken.intersection(match.sources) and match.how != "folded":
                self._copy(match)
                continue
            self.renamed.append(_backward(match))
            if match.target in match.sources:
                continue
            self._told_a.add(match.target)
            if sum(self.b[name].size for name in match.sources) <= self.a[match.target].size:
                self._told_b.update(n for n in match.sources if n not in self.a)
                taken.update(match.sources)

    def entry(self, entry: Entry) -> Entry | None:
        """What remains to be told of one name; None if all of it is among the renamed."""
        name = entry.name
        told = entry.a is None or name in self._told_a, entry.b is None or name in self._told_b
        if name in self.same or entry.status not in ("changed", "added", "removed"):
            return entry
        if all(told):
            return None
        if entry.status == "changed" and not any(told):
            return entry._replace(how=self._how.get(name, ""))
        if told[0]:
            return Entry(name, "added", (), None, entry.b, how=self._copies.get(name, ""))
        return Entry(name, "removed", (), entry.a, None, how=self._copies.get(name, ""))

    def _whole(self, match: Match) -> bool:
        """Whether one tensor of another name has become the target, with all its elements."""
        name = match.sources[0]
        alone = len(match.sources) == 1 and match.how != "folded" and match.target != name
        return alone and self.a[name].size == self.b[match.target].size

    def _moves(self, matches: Iterable[Match]) -> Mapping[str, Match]:
        """The first of those that take one source, by target.

        Names that both sides have must have changed places, or moved up or down for one that came or went.
        """
        onward: dict[str, Match] = {}
        for match in matches:
            if match.sources[0] not in self._taken:
                onward.setdefault(match.sources[0], match)
        moved = {match.target: match for match in onward.values()}
        for start in [name for name in onward if name not in moved]:
            path = [start]
            while path[-1] in onward:
                path.append(onward[path[-1]].target)
            if start in self.b and path[-1] in self.a:
                for target in path[1:]:
                    del moved[target]
        return moved

    def _cover(self, match: Match, covered: Counter[str]) -> None:
        """Note the sources that are all there, counting the slices of each."""
        size = self.b[match.target].size
        sizes = {name: self.a[name].size for name in match.sources}
        whole = sum(sizes.values()) <= size
        for name, own in sizes.items():
            covered[name] += own if whole else size // len(sizes)
            if covered[name] >= own:
                self._told_a.add(name)

    def _copy(self, match: Match) -> None:
        if match.certain:
            self._copies[match.target] = f"copy of {match.text}"


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

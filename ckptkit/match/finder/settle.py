"""Choosing among tensors that hold the same values: by the names around them, then by position.

Matches that leave no choice vote: if `conv1.weight` became `stem.conv.weight`, then `conv1` became `stem.conv`, and
`weight` `weight`. Of several sources the one is chosen whose enclosing modules and last name agree best with the
target's; among equals the one nearest in place. A source is used again only when none is left.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

from ckptkit.core.names import natural, segments
from ckptkit.match.finder.result import Match, Proposal

LEVELS = 6  # of enclosing modules, from the innermost
SCORED = 40_000  # most combinations of one group scored one by one
LIKELY = 64  # most options scored for a target of a larger one


def settle(proposals: Iterable[Proposal], fixed: Iterable[Match] = ()) -> list[Match]:
    """Choose the sources of all proposals; matches `fixed` before vote too."""
    matches: list[Match] = []
    groups: dict[object, list[Proposal]] = defaultdict(list)
    for proposal in proposals:
        if proposal.open:
            # Names of one content are listed as one: the first and their number stand for all of them.
            groups[tuple((names[0], len(names)) for names in proposal.choices.values())].append(proposal)
        else:
            matches.append(proposal.match)
    if not groups:
        return matches
    votes = Votes()
    used = Counter(name for match in matches for name in match.sources)
    for match in chain(fixed, matches):
        for name in match.sources:
            votes.add(name, match.target)
    for group in sorted(groups.values(), key=lambda some: sum(map(len, some[0].choices.values())) * len(some)):
        picked: list[dict[str, str]] = [{} for _ in group]
        for place, options in enumerate(group[0].choices.values()):
            targets = [proposal.match.target for proposal in group]
            free = [name for name in options if not used[name]] or list(options)
            for names, proposal, chosen in zip(picked, group, _assign(targets, free, votes), strict=True):
                names[list(proposal.choices)[place]] = chosen
                used[chosen] += 1
        for names, proposal in zip(picked, group, strict=True):
            match = proposal.settled(names)
            matches.append(match)
            for name in match.sources:
                votes.add(name, match.target)
    return matches


class Votes:
    """Which modules and last names of one checkpoint go with which of the other, by the matches seen."""

    def __init__(self) -> None:
        self._both: Counter[tuple[str, str]] = Counter()
        self._source: Counter[str] = Counter()
        self._target: Counter[str] = Counter()
        self._partners: defaultdict[str, set[str]] = defaultdict(set)  # of a target's module

    def add(self, source: str, target: str) -> None:
        left, right = _words(source), _words(target)
        self._source.update(left)
        self._target.update(right)
        for y in right:
            for x in left:
                self._both[x, y] += 1
            self._partners[y].update(left)

    def score(self, source: str, target: str) -> float:
        """How well a source's name suits a target's: 0 if nothing speaks for it."""
        total = 0.0
        right = _words(target)
        for x in _words(source):
            for y in right:
                both = self._both[x, y]
                if both:
                    total += both / (self._source[x] + self._target[y] - both)
        mine, other = set(segments(source)), set(segments(target))
        return total + len(mine & other) / len(mine | other) + 4 * (source == target)

    def partners(self, target: str) -> Iterable[str]:
        """Modules that go with the modules around a target, the innermost first."""
        for y in _words(target)[:-1]:
            found = [x for x in self._partners[y] if 2 * self._both[x, y] >= self._source[x]]
            yield from sorted(found, key=lambda x: (-self._both[x, y] / self._source[x], x))


def _words(name: str) -> list[str]:
    """The modules around a name, innermost first, and its last part, marked by a leading blank."""
    parts = segments(name)
    modules = ["".join(parts[:k]) for k in range(len(parts) - 1, 0, -1)]
    return [*modules[:LEVELS], " " + parts[-1].lstrip("./")] if parts else [" "]


def _assign(targets: Sequence[str], options: Sequence[str], votes: Votes) -> list[str]:
    """One option for each target."""
    rank = {name: k / len(options) for k, name in enumerate(sorted(options, key=natural))}
    place = {name: k / len(targets) for k, name in enumerate(sorted(targets, key=natural))}
    chosen: dict[str, str] = {}
    free = set(options)
    few = len(targets) * len(options) <= SCORED
    index = {} if few else _by_module(options)
    scored = [
        (-votes.score(source, target), abs(rank[source] - place[target]), k, source, target)
        for k, target in enumerate(targets)
        for source in (options if few else _likely(target, index, votes))
    ]
    for _, _, _, source, target in sorted(scored):
        if target not in chosen and source in free:
            chosen[target] = source
            free.discard(source)
    rest = sorted((target for target in targets if target not in chosen), key=natural)
    best = {target: source for *_, source, target in sorted(scored, reverse=True)}
    left = sorted(free, key=natural)
    for k, target in enumerate(rest):  # nothing but position, or copies of a source that is taken
        chosen[target] = left[k] if k < len(left) else best.get(target, options[0])
    return [chosen[target] for target in targets]


def _likely(target: str, index: Mapping[str, Sequence[str]], votes: Votes) -> Sequence[str]:
    """The options worth scoring in a large group: those in a module that goes with the target's."""
    for module in votes.partners(target):
        found = index.get(module)
        if found is not None:
            return found[:LIKELY]
    return ()


def _by_module(options: Sequence[str]) -> Mapping[str, list[str]]:
    index: dict[str, list[str]] = defaultdict(list)
    for name in options:
        for module in _words(name)[:-1]:
            index[module].append(name)
    return index

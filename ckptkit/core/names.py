"""Tensor names as people read them: natural order, a prefix tree, and repeated layers folded into one.

A name is cut before every `.` and `/` into segments that joined together give the name again
(`layers.0.weight` → `layers`, `.0`, `.weight`). Siblings whose subtrees are equal (same names below, same
signatures) become one branch with several alternatives:

    model.layers.{0..31}          numbered siblings, gaps and exceptions as they are: {0..2,4..31} and {3}
    self_attn.{q,o}_proj.weight   a few named siblings with a small subtree

so a branch stands for the product of its alternatives, and `unfold` gives back exactly the names that went in.
Work and memory are linear in the names: equal subtrees are recognised by number, not compared, and each
distinct one is folded once. Names deeper than `DEPTH` keep the rest as one segment, which bounds recursion.
"""

import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from itertools import islice, product
from os.path import commonprefix
from typing import Any, NamedTuple, Union

DEPTH = 64  # segments of one name; real names have up to about 12
LONG = 1_000  # characters of a name that is cut with care, of a segment that is not looked at for numbers
NODES = 2_000_000  # of the prefix tree; names that would need more stand alone
NAMED = 8  # most siblings written as one `{a,b,…}`
LINES = 4  # most lines below siblings that are written so
WIDTH = 18  # most digits of a number that counts
RANGES = 12  # most ranges in one `{0..3,7,…}`

_SEGMENTS = re.compile(r"[./]?[^./]*")
_DIGITS = re.compile(r"([0-9]+)")

_Node = dict[str, Union["_Node", int]]  # segment → subtree, or the number of a leaf's signature


class Branch(NamedTuple):
    """Names that share a prefix or a signature: the product of the alternatives of `parts`, then `children`.

    Attributes:
        parts: for each step of the path below the parent the segments that may stand there; usually one.
        children: what is below; empty for a leaf.
        signature: of a leaf, what all its names have in common (dtype and shape, say); else None.
        copies: how many paths `parts` stands for.
        names: how many names the branch stands for, those of its children included.
        lines: how many leaves it has.
    """

    parts: tuple[tuple[str, ...], ...]
    children: tuple["Branch", ...]
    signature: Any
    copies: int
    names: int
    lines: int

    @property
    def label(self) -> str:
        """The path below the parent, alternatives in braces: `.self_attn.{q,o}_proj.weight`."""
        return "".join(map(braces, self.parts))

    @property
    def paths(self) -> Iterator[str]:
        """The paths below the parent, one by one."""
        return map("".join, product(*self.parts))


Tree = tuple[Branch, ...]


def natural(name: str) -> list[str | int]:
    """Sort key that counts: `layer.2` comes before `layer.10`."""
    pieces: list[str | int] = list(_DIGITS.split(name))
    pieces[1::2] = [int(str(digits)[:4000]) for digits in pieces[1::2]]
    return pieces


def segments(name: str) -> list[str]:
    """The name cut before each `.` and `/`, into at most `DEPTH` pieces; joined they are the name."""
    if len(name) > LONG:
        found = [match[0] for match in islice(_SEGMENTS.finditer(name), DEPTH - 1)]
        return [*found, name[sum(map(len, found)) :]]
    found = _SEGMENTS.findall(name)
    if len(found) > 1 and not found[-1]:
        found.pop()
    return [*found[: DEPTH - 1], "".join(found[DEPTH - 1 :])] if len(found) > DEPTH else found


def fold(names: Iterable[tuple[str, Hashable]]) -> Tree:
    """Fold (name, signature) pairs into a tree; names must differ.

    Siblings keep the order they come in, except that numbered ones count upwards. Names fold together only
    where their signatures are equal.
    """
    root: _Node = {}
    parents = {"": root}
    signatures: dict[Hashable, int] = {}
    nodes = 0
    prefix, node = "", root
    for name, signature in names:
        cut = name.rfind(".")
        if "/" in name:
            cut = max(cut, name.rfind("/"))
        if cut < 0:
            cut = 0
        if name[:cut] != prefix:
            prefix = name[:cut]
            known = parents.get(prefix)
            if known is not None:
                node = known
            elif nodes > NODES:
                prefix, node, cut = "", root, 0
            else:
                node = root
                for segment in segments(prefix):
                    below = node.get(segment)
                    if not isinstance(below, dict):
                        # A name that others continue stands below its own node, as "".
                        below = node[segment] = {} if below is None else {"": below}
                        nodes += 1
                    node = below
                parents[prefix] = node
        number = signatures.setdefault(signature, ~len(signatures))
        taken = node.get(name[cut:])
        if isinstance(taken, dict):
            taken[""] = number
        else:
            node[name[cut:]] = number
    folder = _Folder(list(signatures))
    return folder.tree(folder.number(root))


def unfold(tree: Iterable[Branch]) -> Iterator[str]:
    """Every name a tree stands for."""
    for branch in tree:
        for path in branch.paths:
            if branch.children:
                for rest in unfold(branch.children):
                    yield path + rest
            else:
                yield path


class _Folder:
    """Numbers subtrees so that equal ones have equal numbers, and folds each of them once.

    A leaf's number is negative (the complement of its signature's index), a subtree's is its index.
    """

    def __init__(self, signatures: list[Hashable]) -> None:
        self.signatures = signatures
        self.numbers: dict[tuple[tuple[str, int], ...], int] = {}
        self.subtrees: list[tuple[tuple[str, int], ...]] = []
        self.folded: dict[int, Tree] = {}

    def number(self, node: _Node) -> int:
        items = tuple([(segment, v if isinstance(v, int) else self.number(v)) for segment, v in node.items()])
        found = self.numbers.get(items)
        if found is None:  # perhaps the same in another order
            found = self.numbers.setdefault(tuple(sorted(items)), len(self.subtrees))
            self.numbers[items] = found
            if found == len(self.subtrees):
                self.subtrees.append(items)
        return found

    def tree(self, number: int) -> Tree:
        tree = self.folded.get(number)
        if tree is None:
            items = self.subtrees[number]
            groups = _siblings(items, self.lines) if len(items) > 1 else [((s,), n) for s, n in items]
            tree = self.folded[number] = tuple([self.branch(*group) for group in groups])
        return tree

    def lines(self, number: int) -> int:
        return 1 if number < 0 else sum(branch.lines for branch in self.tree(number))

    def branch(self, segments: tuple[str, ...], number: int) -> Branch:
        copies = len(segments)
        if number < 0:
            return Branch((segments,), (), self.signatures[~number], copies, copies, 1)
        below = self.tree(number)
        if len(below) == 1:  # a chain is one step
            only = below[0]
            parts = (segments, *only.parts)
            return Branch(
                parts, only.children, only.signature, copies * only.copies, copies * only.names, only.lines
            )
        names = copies * sum(branch.names for branch in below)
        return Branch((segments,), below, None, copies, names, sum(branch.lines for branch in below))


def _siblings(
    items: Sequence[tuple[str, int]], lines: Callable[[int], int]
) -> Iterator[tuple[tuple[str, ...], int]]:
    """Group sibling (segment, number) pairs that may be written as one."""
    series = _series([segment for segment, _ in items])
    order = list(items)
    members: dict[Hashable, list[int]] = {}
    for place, found in enumerate(series):
        if found is not None:
            members.setdefault(found.around, []).append(place)
    for places in members.values():  # the members of a series take its places in ascending order
        for place, (_, item) in zip(places, sorted((series[p], items[p]) for p in places), strict=True):
            order[place] = item
    named: dict[int, int] = {}
    for (_, number), found in zip(order, series, strict=True):
        if found is None:
            named[number] = named.get(number, 0) + 1
    groups: dict[Hashable, tuple[list[str], int]] = {}
    for (segment, number), found in zip(order, series, strict=True):
        together = found is not None or (1 < named[number] <= NAMED and lines(number) <= LINES)
        key = (found and found.around, number) if together else segment
        groups.setdefault(key, ([], number))[0].append(segment)
    for segments, number in groups.values():
        if len(segments) <= NAMED:
            yield tuple(segments), number
        else:
            for some in _batches(segments):
                yield some, number


def braces(segments: Sequence[str]) -> str:
    """Alternatives as one text: `.{0..31}`, `.{q,o}_proj`, `.bn{1,2}`; one alternative as it is."""
    if len(segments) == 1:
        return segments[0]
    cut = _numbers(segments)
    if cut is not None:
        before, numbers, after = cut
        inner = ",".join(f"{first}..{last}" if last else first for first, last in _ranges(numbers))
        return f"{before}{{{inner}}}{after}"
    # Shared words at either end stand outside: up to the last, from the first, character that is no letter.
    prefix = _upto_word(commonprefix(segments))
    rest = [segment[len(prefix) :] for segment in segments]
    suffix = _upto_word(commonprefix([text[::-1] for text in rest]))[::-1]
    inner = ",".join(text[: len(text) - len(suffix)] for text in rest)
    return f"{prefix}{{{inner}}}{suffix}"


def _upto_word(text: str) -> str:
    end = len(text)
    while end and text[end - 1].isalnum():
        end -= 1
    return text[:end]


def _ranges(digits: list[str]) -> list[tuple[str, str]]:
    """Runs of consecutive numbers as (first, last), single ones as (number, "")."""
    runs: list[list[str]] = []
    for text in digits:
        if runs and text == str(int(runs[-1][-1]) + 1).zfill(len(runs[-1][-1])):
            runs[-1].append(text)
        else:
            runs.append([text])
    ranges: list[tuple[str, str]] = []
    for run in runs:
        ranges += [(run[0], run[-1])] if len(run) > 2 else [(text, "") for text in run]
    return ranges


def _batches(segments: list[str]) -> Iterator[tuple[str, ...]]:
    """Numbered siblings in batches that need at most `RANGES` ranges, so that a label stays readable."""
    cut = _numbers(segments)
    start = runs = 0
    last = -2
    for place, digits in enumerate(cut[1] if cut else ()):
        runs += int(digits) != last + 1
        if runs > RANGES:
            yield tuple(segments[start:place])
            start, runs = place, 1
        last = int(digits)
    yield tuple(segments[start:])


class _Place(NamedTuple):
    """Where a segment stands in a series of siblings that differ in one number."""

    number: int
    around: tuple[str, str]


def _series(segments: list[str]) -> list[_Place | None]:
    """For each segment the largest series it can be in, None if it is alone in each."""
    sizes: dict[tuple[str, str], int] = {}
    choices: list[list[_Place]] = []
    for segment in segments:
        pieces = _DIGITS.split(segment) if len(segment) < LONG else ()
        choices.append(
            [
                _Place(int(pieces[at]), ("".join(pieces[:at]), "".join(pieces[at + 1 :])))
                for at in range(1, min(len(pieces), 2 * NAMED), 2)
                if len(pieces[at]) <= WIDTH
            ]
        )
        for choice in choices[-1]:
            sizes[choice.around] = sizes.get(choice.around, 0) + 1
    found = [
        some[0] if len(some) == 1 else max(some, key=lambda choice: sizes[choice.around], default=None)
        for some in choices
    ]
    chosen: dict[tuple[str, str], int] = {}
    for pick in found:
        if pick is not None:
            chosen[pick.around] = chosen.get(pick.around, 0) + 1
    return [choice if choice and chosen[choice.around] > 1 else None for choice in found]


def _numbers(segments: Sequence[str]) -> tuple[str, list[str], str] | None:
    """The digits of the one number in which segments differ, and what stands before and after; None without one."""
    cuts = [_DIGITS.split(segment) for segment in segments]
    first = cuts[0]
    if any(len(cut) != len(first) for cut in cuts):
        return None
    differing = [at for at, column in enumerate(zip(*cuts, strict=True)) if len(set(column)) > 1]
    if len(differing) != 1 or differing[0] % 2 == 0:
        return None
    at = differing[0]
    digits = [cut[at] for cut in cuts]
    if max(map(len, digits)) > WIDTH:
        return None
    return "".join(first[:at]), digits, "".join(first[at + 1 :])

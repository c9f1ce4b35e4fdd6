"""Names that say the same: which unexpected name a missing one most likely stands under. Shapes must agree."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator

_FEW = 60  # names among which similar ones are looked for one by one
_LIKE = 0.8  # how alike they must be
_SEGMENTS = 24  # of a name that is compared; real ones have a dozen
_LONGEST = 300  # characters of one
_SHARED = 24  # names that differ in the same segment, such as the projections of a layer
_SIGNS = re.compile(r"[\W_]+")
Same = Callable[[str, str], bool]


def alike(
    missing: Iterable[str], unexpected: Iterable[str], same: Same, heads: Callable[[str], bool]
) -> dict[str, str]:
    """Missing name → unexpected name; each is taken once.

    First names that differ in case and signs alone (`LAYER1/CONV.weight:0`), then where one segment of all names is
    another (layers, blocks), then names spelt alike, then heads.

    Args:
        same: whether the shapes of a missing and an unexpected name agree.
        heads: whether a name belongs to the outputs of a model.
    """
    lacking, extra = list(missing), list(unexpected)
    found = _respelt(lacking, extra, same)
    taken = set(found.values())
    found |= _substituted([n for n in lacking if n not in found], [n for n in extra if n not in taken], same)
    taken = set(found.values())
    lacking = [name for name in lacking if name not in found]
    extra = [name for name in extra if name not in taken]
    if len(lacking) <= _FEW and len(extra) <= _FEW:
        for _, wanted, there in sorted(_similar(lacking, extra, same, heads)):
            if wanted not in found and there not in taken:
                found[wanted] = there
                taken.add(there)
    return found


def _respelt(lacking: list[str], extra: list[str], same: Same) -> dict[str, str]:
    """Names of the same letters and digits, where no two of a side have them."""
    wanted, there = ({_letters(name): name for name in names} for names in (lacking, extra))
    if len(wanted) < len(lacking) or len(there) < len(extra):
        return {}
    return {wanted[key]: there[key] for key in wanted if key in there and same(wanted[key], there[key])}


def _letters(name: str) -> str:
    """The name in small letters; what separates its words, as dots; TensorFlow's number of the output left out."""
    return _SIGNS.sub(".", name.lower().removesuffix(":0"))


def _substituted(lacking: list[str], extra: list[str], same: Same) -> dict[str, str]:
    """Names that differ in one segment, where that exchange explains most."""
    wanted: defaultdict[tuple[str, ...], list[tuple[str, str]]] = defaultdict(list)
    for name in lacking:
        for key, segment in _gaps(name):
            if len(wanted[key]) < _SHARED:
                wanted[key].append((segment, name))
    pairs = [
        ((segment, other), name, there)
        for there in extra
        for key, segment in _gaps(there)
        for other, name in wanted.get(key, ())
        if same(name, there)
    ]
    votes = Counter(exchange for exchange, _, _ in pairs)
    found: dict[str, str] = {}
    taken: set[str] = set()
    for exchange, votes_for in votes.most_common():
        if votes_for < 2:
            break
        for this, name, there in pairs:
            if this == exchange and name not in found and there not in taken:
                found[name] = there
                taken.add(there)
    return found


def _gaps(name: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """The name without each of its segments but numbers and the last, and that segment."""
    segments = name.split(".", _SEGMENTS)
    if len(segments) > _SEGMENTS:
        return
    for at, segment in enumerate(segments[:-1]):
        if not segment.isdigit():
            yield (*segments[:at], "", *segments[at + 1 :]), segment


def _similar(
    lacking: list[str], extra: list[str], same: Same, heads: Callable[[str], bool]
) -> Iterator[tuple[float, str, str]]:
    from difflib import SequenceMatcher

    for wanted in lacking:
        for there in extra:
            if len(wanted) <= _LONGEST and len(there) <= _LONGEST and same(wanted, there):
                like = SequenceMatcher(None, wanted.lower(), there.lower()).ratio()
                last = wanted.rpartition(".")[2] == there.rpartition(".")[2]
                if like >= _LIKE or (last and heads(wanted) and heads(there)):
                    yield -like, wanted, there

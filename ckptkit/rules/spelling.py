"""Rules that say, in few lines, what becomes of every name: what happens to all names under a prefix is one rule."""

from collections.abc import Iterator, Mapping
from typing import Any

from ckptkit.rules.template import escaped

_DEEPEST = 8  # segments of a prefix that one rule may speak of
_REST = "{rest:**}"
_DROPPED = object()
_MIXED = object()


def spelled(moves: Mapping[str, str | None], apart: frozenset[str] = frozenset()) -> list[dict[str, Any]]:
    """The rules for these names; those that stay as they are need none beside `keep_others`.

    Args:
        moves: every name of a checkpoint → its new name; None where it is dropped.
        apart: names of it that have rules of their own.
    """
    outcomes: dict[str, object] = {}
    counts: dict[str, int] = {}
    stay = []
    for old, new in moves.items():
        if new == old or old in apart:
            stay.append(old)
            continue
        for prefix in _prefixes(old):
            outcome = _outcome(old, new, prefix)
            counts[prefix] = counts.get(prefix, 0) + 1
            if outcomes.setdefault(prefix, outcome) != outcome:
                outcomes[prefix] = _MIXED
    for old in stay:
        for prefix in _prefixes(old):
            if prefix not in outcomes:  # nor is a longer one
                break
            outcomes[prefix] = _MIXED
    rules: dict[str, dict[str, Any]] = {}
    for old, new in moves.items():
        if new == old or old in apart:
            continue
        wide = (p for p in _prefixes(old) if outcomes[p] is not _MIXED and counts[p] > 1)
        shared = next(wide, None)
        if shared is None:
            rules[old] = {"drop": escaped(old)} if new is None else {"from": escaped(old), "to": escaped(new)}
        elif shared not in rules:
            source, outcome = escaped(shared) + _REST, outcomes[shared]
            instead = escaped(str(outcome)) + "{rest}"
            rules[shared] = {"drop": source} if outcome is _DROPPED else {"from": source, "to": instead}
    return list(rules.values())


def _prefixes(name: str) -> Iterator[str]:
    """ "" and the dotted prefixes, shortest first."""
    yield ""
    end = -1
    for _ in range(_DEEPEST):
        end = name.find(".", end + 1)
        if end < 0:
            return
        yield name[: end + 1]


def _outcome(old: str, new: str | None, prefix: str) -> object:
    """What stands in the new name instead of the prefix, if that is all that changes."""
    if new is None:
        return _DROPPED
    rest = old[len(prefix) :]
    lead = new.removesuffix(rest)
    return lead if new.endswith(rest) and (not lead or lead.endswith(".")) else _MIXED

"""Choosing tensors by shell patterns, where `*` also matches dots."""

from collections.abc import Iterable, Sequence
from fnmatch import translate
from re import compile as compile_pattern

from ckptkit.core.errors import CkptError


def matching(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """The names that match any pattern, in their order. Raises CkptError `no-match` for one without.

    A pattern that matches nothing is nearly always a typing error, and the tensor meant would be silently
    kept or dropped; the hint names the nearest names.
    """
    names = list(names)
    found: set[str] = set()
    for pattern in patterns:
        hits = list(filter(compile_pattern(translate(pattern)).match, names))
        if not hits:
            raise CkptError("no-match", "the pattern matches no tensor", pattern, _nearest(pattern, names))
        found.update(hits)
    return [name for name in names if name in found]


def selected(names: Iterable[str], include: Sequence[str], exclude: Sequence[str]) -> list[str]:
    """The names that match `include` (all, if it is empty) and not `exclude`. Raises as `matching`."""
    names = list(names)
    kept = matching(names, include) if include else names
    dropped = set(matching(names, exclude)) if exclude else ()
    return [name for name in kept if name not in dropped]


def _nearest(pattern: str, names: list[str]) -> str | None:
    from difflib import get_close_matches

    near = get_close_matches(pattern.replace("*", ""), names[:20_000], n=3, cutoff=0.4)
    return f"nearest names: {', '.join(near)}" if near else None

"""Which rules speak of which names. Cost grows with the names, hardly with the rules."""

import re
from collections.abc import Iterable
from itertools import islice
from typing import NamedTuple

from ckptkit.rules.expressions import Environment, Value
from ckptkit.rules.template import Matcher, Template

_NO_DIGITS = str.maketrans("", "", "0123456789")


class Hit(NamedTuple):
    """A side of a rule that matches a name."""

    rule: int
    side: int
    bound: dict[str, Value]


class Index:
    """Templates, found by the names that they match.

    Literal templates are looked up. For the others names are first told apart by what they are without their
    digits: the templates that can match are found once for all names that are equal so.
    """

    def __init__(self) -> None:
        self.literal: dict[str, list[Hit]] = {}
        self.open: list[tuple[int, int, Matcher]] = []
        self.candidates: dict[str, list[tuple[int, int, Matcher]]] = {}

    def add(self, rule: int, side: int, found: Template, env: Environment, known: Iterable[str]) -> None:
        """Raises CkptError as `Matcher`."""
        literal = found.literal
        if literal is not None:
            self.literal.setdefault(literal, []).append(Hit(rule, side, {}))
        else:
            self.open.append((rule, side, Matcher(found, env, known)))

    def hits(self, name: str) -> list[Hit]:
        """Every side that matches the name."""
        key = name.translate(_NO_DIGITS)
        able = self.candidates.get(key)
        if able is None:
            able = [entry for entry in self.open if entry[2].loose.fullmatch(key)]
            self.candidates[key] = able
        found = self.literal.get(name)
        hits = list(found) if found else []
        for rule, side, matcher in able:
            bound = matcher.match(name)
            if bound is not None:
                hits.append(Hit(rule, side, bound))
        return hits


def nearest(name: str, others: Iterable[str], most: int = 2) -> list[str]:
    """Names or templates that differ little from one, numbers and holes apart."""
    from difflib import get_close_matches

    wanted = _shape(name)
    segments = (
        wanted.count(".") if wanted.endswith(".#") and "{" in name else None
    )  # the rest may be anything
    alike: dict[str, str] = {}
    for other in islice(others, _COMPARED):
        shape = _shape(other)
        if segments is not None:
            shape = ".".join([*shape.split(".")[:segments], "#"])
        if abs(len(shape) - len(wanted)) <= max(8, len(wanted) // 2):
            alike.setdefault(shape, other)
    return [alike[shape] for shape in get_close_matches(wanted[:200], list(islice(alike, _NEAR)), most, 0.7)]


_COMPARED, _NEAR = 20_000, 1_000


def _shape(name: str) -> str:
    """The name, or template, with one sign for each number or hole."""
    return re.sub(r"\{[^{}]*\}|[0-9]+", "#", name)

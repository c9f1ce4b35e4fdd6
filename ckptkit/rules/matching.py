"""Which rules speak of which names. Cost grows with the names, hardly with the rules."""

from collections.abc import Iterable
from typing import NamedTuple

from ckptkit.rules.expressions import Environment, Value
from ckptkit.rules.matcher import Matcher
from ckptkit.rules.template import Template

_NO_DIGITS = str.maketrans("", "", "0123456789")


def kind(name: str) -> str:
    """A name without its digits: names of one kind are matched by the same templates, mostly."""
    return name.translate(_NO_DIGITS)


class Hit(NamedTuple):
    """A side of a rule that matches a name."""

    rule: int
    side: int
    bound: dict[str, Value]


class _Entry(NamedTuple):
    rule: int
    side: int
    matcher: Matcher


class Index:
    """Templates, found by the names that they match.

    Literal templates are looked up. For the others names are first told apart by what they are without their
    digits: the templates that can match are found once for all names that are equal so, and among those only
    that begin alike.
    """

    def __init__(self) -> None:
        self.literal: dict[str, list[Hit]] = {}
        self.open: dict[
            int, dict[str, list[_Entry]]
        ] = {}  # length of what stands before the first hole → that
        self.candidates: dict[str, list[_Entry]] = {}

    def add(self, rule: int, side: int, found: Template, env: Environment, known: Iterable[str]) -> None:
        """Raises CkptError as `Matcher`."""
        literal = found.literal
        if literal is not None:
            self.literal.setdefault(literal, []).append(Hit(rule, side, {}))
        else:
            first = found.parts[0]
            beginning = kind(first) if isinstance(first, str) else ""
            alike = self.open.setdefault(len(beginning), {}).setdefault(beginning, [])
            alike.append(_Entry(rule, side, Matcher(found, env, known)))

    def able(self, key: str) -> list["_Entry"]:
        """The templates with holes that can match a name which is this without its digits."""
        found = self.candidates.get(key)
        if found is None:
            found = [
                entry
                for length, beginnings in self.open.items()
                for entry in beginnings.get(key[:length], ())
                if entry.matcher.loose.fullmatch(key)
            ]
            self.candidates[key] = found
        return found

    def hits(self, name: str) -> list[Hit]:
        """Every side that matches the name."""
        found = self.literal.get(name)
        hits = list(found) if found else []
        for rule, side, matcher in self.able(kind(name)):
            bound = matcher.match(name)
            if bound is not None:
                hits.append(Hit(rule, side, bound))
        return hits

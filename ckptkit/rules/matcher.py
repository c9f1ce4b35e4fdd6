"""Matching names against templates: values for the holes, arithmetic solved for them."""

import re
from collections.abc import Callable, Iterable
from typing import NoReturn

from ckptkit.core.errors import CkptError
from ckptkit.rules import readings
from ckptkit.rules.expressions import Bound, Environment, Value
from ckptkit.rules.template import Hole, Template

WAYS = 1_000  # in which one template may read one name, as far as that shows without the name
DOMAIN = 10_000  # numbers tried for a hole that stands in arithmetic which no formula undoes

_NUMBER = r"(0|[1-9][0-9]{0,8})"
_NO_DIGITS = str.maketrans("", "", "0123456789")


class Matcher:
    """Matches names against a template whose bare holes have been declared, in an environment for its arithmetic."""

    __slots__ = ("_binders", "_direct", "_last", "_solved", "_undo", "env", "loose", "pattern", "template")

    def __init__(self, found: Template, env: Environment, known: Iterable[str]) -> None:
        """`known` are the names that `let` declares. Raises CkptError `rule-invalid` for arithmetic that
        cannot be undone."""
        self.template = found
        self.env = env
        pattern, last, loose = "", "", ""
        strict: list[readings.Part] = []
        rough: list[readings.Part] = []
        groups: dict[str, int] = {}
        binders: list[tuple[Hole, int]] = []
        let = frozenset(known)
        count = 0

        def literal(text: str) -> None:
            nonlocal pattern, last, loose
            pattern, last = pattern + re.escape(text), last + re.escape(text)
            loose += re.escape(text.translate(_NO_DIGITS))
            strict.append(text)
            rough.append(text.translate(_NO_DIGITS))

        for part in found.parts:
            if isinstance(part, str):
                literal(part)
                continue
            if any("{" in call.template for call in part.expression.calls):
                hint = "a question without holes can stand under let"
                raise CkptError("rule-invalid", f"{{{part.text}}} cannot be solved for its holes", None, hint)
            if part.kind in ("int", "expression") and not part.expression.names - let:
                literal(Template("", (part,)).fill({}, env))
                continue
            loose += _loose(part)
            rough.append(_texts(part, _NO_DIGITS))
            if part.kind not in ("expression", "map") and part.name in groups:
                again = f"(?:\\{groups[part.name]})"
                pattern, last = pattern + again, last + again
                strict.append(None)
                continue
            if part.kind == "map" and part.name and len(set(part.texts)) < len(part.texts):
                raise CkptError("rule-invalid", f"{{{part.text}}} gives one text for two values")
            count += 1
            pattern += _pattern(part)
            last += _pattern(part, last=True)
            strict.append(_texts(part))
            binders.append((part, count))
            if part.kind not in ("expression", "map"):
                groups[part.name] = count
        ways = readings.most(strict)
        if ways > WAYS:
            hint = "put texts between holes that none of their texts contains"
            raise CkptError("rule-invalid", f"{found.text[:80]!r} may be read in {ways} ways", None, hint)
        self.pattern = re.compile(pattern, re.DOTALL)
        self.loose = re.compile(loose if readings.most(rough) <= WAYS else ".*", re.DOTALL)
        self._last = re.compile(last, re.DOTALL) if ways > 1 else None
        self._binders = tuple(binders)
        simple = all(hole.kind not in ("expression", "map") for hole, _ in binders)
        self._direct = tuple((hole.name, _reading(hole)) for hole, _ in binders) if simple else None
        direct = {hole.name for hole, _ in binders if hole.kind != "expression" and hole.name}
        solved = [(hole, at) for hole, at in binders if not hole.name]
        self._solved = tuple(at for _, at in solved)
        self._undo = _Undo(found, [hole for hole, _ in solved], let | direct, env)

    def match(self, name: str) -> dict[str, Value] | None:
        """The values of the holes, or None. Raises CkptError `rule-overlap` for a name that can be read in two ways."""
        found = self.pattern.fullmatch(name)
        if found is None:
            return None
        if self._last is not None:
            other = self._last.fullmatch(name)
            if other is None or other.groups() != found.groups():
                self._doubt(name)
        if self._direct is not None:
            return {name: read(text) for (name, read), text in zip(self._direct, found.groups(), strict=True)}
        bound: dict[str, Value] = {}
        for hole, at in self._binders:
            text = found[at]
            if hole.kind == "int":
                bound[hole.name] = int(text)
            elif hole.kind == "map":
                if hole.name:
                    value = option(hole.options[hole.texts.index(text)])
                    if bound.setdefault(hole.name, value) != value:
                        return None
            elif hole.kind == "one":
                value = option(text)
                if bound.setdefault(hole.name, value) != value:
                    return None
            elif hole.kind != "expression":
                bound[hole.name] = text
        return self._undo.solve([found[at] for at in self._solved], bound) if self._solved else bound

    def _doubt(self, name: str) -> NoReturn:
        hint = "put a text between holes that stands in none of theirs, or list names one by one"
        raise CkptError("rule-overlap", f"{self.template.text} reads {name!r} in two ways", None, hint)


def _reading(hole: Hole) -> Callable[[str], Value]:
    """How the text that a hole matched becomes its value."""
    if hole.kind == "int":
        return int
    return option if any(re.fullmatch(_NUMBER, text) for text in hole.options) else str


def option(text: str) -> int | str:
    """A text as a hole's value: texts that are numbers count as such."""
    return int(text) if re.fullmatch(_NUMBER, text) else text


def _texts(hole: Hole, without: dict[int, int | None] | None = None) -> readings.Part:
    """The texts that a hole stands for, each once, with these characters taken out."""
    if hole.kind in ("int", "expression"):
        return readings.DIGITS if without is None else ""
    if hole.kind not in ("one", "map"):
        return None
    texts = hole.options if hole.kind == "one" else hole.texts
    return tuple(dict.fromkeys(text.translate(without or {}) for text in texts))


def _pattern(hole: Hole, *, last: bool = False) -> str:
    """What a hole matches; searching finds the first way to read a name by these, by those for the `last` the last."""
    lazy = "?" if last else ""
    texts = _texts(hole)
    if hole.kind == "int" and hole.width:
        ways: tuple[str, ...] = (f"[0-9]{{{hole.width}}}", f"[1-9][0-9]{{{hole.width},8}}{lazy}")
    elif texts is readings.DIGITS:
        ways = ("0", f"[1-9][0-9]{{0,8}}{lazy}")
    elif isinstance(texts, tuple):
        ways = tuple(map(re.escape, texts))
    else:
        ways = (f"[^.]+{lazy}" if hole.kind == "segment" else f".+{lazy}",)
    return f"({'|'.join(reversed(ways) if last else ways)})"


def _loose(hole: Hole) -> str:
    """What can be left of the hole's text when all digits are taken out."""
    match hole.kind:
        case "int" | "expression":
            return ""
        case "one" | "map":
            return f"(?:{'|'.join(map(re.escape, _texts(hole, _NO_DIGITS) or ()))})"
        case "segment":
            return r"(?:[^.]*)"
        case _:
            return r"(?:.*)"


class _Undo:
    """Finds the holes that stand only in arithmetic, from the texts that it gave."""

    __slots__ = ("by_name", "domains", "env", "holes", "tables")

    def __init__(
        self, found: Template, holes: list[Hole], bound: frozenset[str] | set[str], env: Environment
    ) -> None:
        self.holes = holes
        self.env = env
        self.domains = {name: tuple(map(option, texts)) for name, texts in found.domains.items()}
        self.by_name: dict[str, list[int]] = {}  # hole → places of what has no other unknown
        self.tables: dict[str, dict[tuple[str, ...], Value]] = {}
        unknown = [hole.expression.names - bound for hole in holes]
        for place, names in enumerate(unknown):
            if len(names) == 1:
                self.by_name.setdefault(next(iter(names)), []).append(place)
        missing = sorted(frozenset().union(*unknown) - set(self.by_name))
        if missing:
            listed = ", ".join(missing)
            raise CkptError("rule-invalid", f"{found.text!r} cannot be solved for {listed}")

    def solve(self, texts: list[str], bound: dict[str, Value]) -> dict[str, Value] | None:
        env = Bound(self.env, bound)
        for name, places in self.by_name.items():
            number: Value = self._straight(name, places, texts, env)
            if number is None:
                table = self.tables.get(name)
                if table is None:
                    table = self.tables[name] = self._table(
                        name, [self.holes[place] for place in places], env
                    )
                number = table.get(tuple(texts[place] for place in places))
            possible = self.domains.get(name)
            if number is None or (isinstance(number, int) and number < 0):
                return None
            if possible is not None and number not in possible:
                return None
            bound[name] = number
        for hole, text in zip(self.holes, texts, strict=True):
            if _given(hole, env) != text:
                return None
        return bound

    def _straight(self, name: str, places: list[int], texts: list[str], env: Bound) -> int | None:
        """The number, where one of the expressions is a·number + b."""
        for place in places:
            hole = self.holes[place]
            line = None if hole.kind == "map" else hole.expression.affine(name, env)
            if line is not None and line[0]:
                number, left = divmod(int(texts[place]) - line[1], line[0])
                return number if not left and number >= 0 else -1
        return None

    def _table(self, name: str, holes: list[Hole], outer: Bound) -> dict[tuple[str, ...], Value]:
        """What the expressions give for every value that the hole can have."""
        table: dict[tuple[str, ...], Value] = {}
        for value in self.domains.get(name, range(DOMAIN)):
            env = Bound(outer, {name: value})
            try:
                key = tuple(_given(hole, env) for hole in holes)
            except CkptError:
                continue  # outside a table
            if table.setdefault(key, value) != value:
                texts = ", ".join(f"{{{hole.text}}}" for hole in holes)
                raise CkptError("rule-invalid", f"{texts} is the same for {name} = {table[key]} and {value}")
        return table


def _given(hole: Hole, env: Bound) -> str:
    """The text that arithmetic gives."""
    value = str(hole.expression.value(env))
    return hole.texts[hole.options.index(value)] if hole.kind == "map" and value in hole.options else value

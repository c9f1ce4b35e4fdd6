"""Names with typed holes: matched against a whole name, or filled in to make one.

    {i}                 a whole number without leading zeros; {i:03} one padded to three digits
    {x:wq|wk}           one of these texts, which may hold dots
    {name:*}            one segment without a dot
    {rest:**}           anything that is not empty, once per template ({rest} alone is the same)
    {i+1} {n-1-i} {t[i]}  arithmetic; on the side that is matched it is solved for the hole
    {place(a.{i}.{j})}  on the side that is made: the number of this one, counted over i and j
    {x|w1=gate,w2=down,b}  a text for each value of a hole (b stays b); {i%2|0=even,1=odd} of an expression
    {{ }}               braces of the name itself

Everything else stands for itself: there are no regular expressions.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

from ckptkit.core.errors import CkptError
from ckptkit.rules.expressions import Bound, Environment, Expression, Value, parse

LONGEST = 4_000  # characters of a template
HOLES = 32
DOMAIN = 10_000  # numbers tried for a hole that stands in arithmetic which no formula undoes

Kind = Literal["int", "one", "segment", "rest", "expression", "map"]

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NUMBER = r"(0|[1-9][0-9]{0,8})"
_NO_DIGITS = str.maketrans("", "", "0123456789")


@dataclass(frozen=True, slots=True)
class Hole:
    """One pair of braces. `name` is "" for arithmetic that is more than a name.

    Attributes:
        kind: what it stands for; a bare `{x}` is an `int` until a declaration says otherwise.
        options: the texts of `one`; the keys of `map`, whose texts are `texts`.
        width: digits that an `int` is padded to.
    """

    text: str
    name: str
    kind: Kind
    expression: Expression
    options: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    width: int = 0
    declared: bool = False


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed template: literal texts and holes in turn.

    `domains` are the values of those holes that stand in its arithmetic and are declared elsewhere as one of a few.
    """

    text: str
    parts: tuple[str | Hole, ...]
    domains: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)

    @property
    def holes(self) -> tuple[Hole, ...]:
        return tuple(part for part in self.parts if isinstance(part, Hole))

    @property
    def names(self) -> frozenset[str]:
        """Every name that its holes use: of holes, and of what `let` declares."""
        return frozenset(name for hole in self.holes for name in hole.expression.names)

    @property
    def literal(self) -> str | None:
        """The one name that it stands for, if it has no holes."""
        if any(isinstance(part, Hole) for part in self.parts):
            return None
        return "".join(str(part) for part in self.parts)

    def declarations(self) -> dict[str, Hole]:
        """Holes that say what they stand for; how wide a number is written is the matter of each side."""
        return {hole.name: hole for hole in self.holes if hole.declared and hole.kind != "int"}

    def declared(self, holes: Mapping[str, Hole]) -> "Template":
        """The same template with its bare holes being what is declared of them elsewhere."""
        parts = tuple(
            _as_declared(part, holes[part.name])
            if isinstance(part, Hole) and part.kind == "int" and not part.declared and part.name in holes
            else part
            for part in self.parts
        )
        domains = {name: hole.options for name, hole in holes.items() if hole.kind == "one"}
        used = {name: domains[name] for name in sorted(self.names & set(domains))}
        return Template(self.text, parts, used)

    def fill(self, bound: Mapping[str, Value], env: Environment) -> str:
        """The name for these values of the holes. Raises CkptError `rule-value`."""
        pieces = []
        for part in self.parts:
            if isinstance(part, str):
                pieces.append(part)
                continue
            value = bound.get(part.name)
            if type(value) is str and part.kind != "map":
                pieces.append(value)
                continue
            if value is None:
                value = part.expression.value(Bound(env, bound))
            if part.kind == "map":
                key = str(value)
                if key not in part.options:
                    raise CkptError("rule-value", f"{{{part.text}}} says nothing for {key!r}")
                pieces.append(part.texts[part.options.index(key)])
                continue
            if isinstance(value, bool) or not isinstance(value, int | str):
                raise CkptError("rule-value", f"{{{part.text}}} is {value!r}, which is no part of a name")
            if isinstance(value, int) and value < 0:
                raise CkptError("rule-value", f"{{{part.text}}} is {value}, a negative number")
            pieces.append(str(value).zfill(part.width) if part.width else str(value))
        return "".join(pieces)


def _as_declared(bare: Hole, declared: Hole) -> Hole:
    return Hole(
        bare.text, bare.name, declared.kind, bare.expression, declared.options, declared.texts, declared.width
    )


@cache
def template(text: str) -> Template:
    """Parse. Raises CkptError `rule-invalid`."""
    if len(text) > LONGEST:
        raise CkptError("rule-invalid", f"a template of {len(text)} characters")
    if not text:
        raise CkptError("rule-invalid", "a template is empty", None, "a name has at least one character")
    parts: list[str | Hole] = []
    literal = ""
    at = 0
    while at < len(text):
        if text[at] in "{}" and text[at + 1 : at + 2] == text[at]:
            literal += text[at]
            at += 2
        elif text[at] == "{":
            end = _closing(text, at)
            if end < 0:
                raise CkptError(
                    "rule-invalid", f"a brace is not closed in {text!r}", None, "{{ stands for a brace"
                )
            if literal:
                parts.append(literal)
                literal = ""
            try:
                parts.append(_hole(text[at + 1 : end]))
            except CkptError as error:
                what = f"in {text!r}: {error.message}"
                raise CkptError(error.code, what, None, error.hint or _KINDS) from None
            at = end + 1
        elif text[at] == "}":
            raise CkptError(
                "rule-invalid", f"a brace is not opened in {text!r}", None, "}} stands for a brace"
            )
        else:
            literal += text[at]
            at += 1
    if literal:
        parts.append(literal)
    found = Template(text, tuple(parts))
    _check(found)
    return found


def _closing(text: str, at: int) -> int:
    """Where the brace at `at` is closed (a question in a hole has holes of its own), or -1."""
    depth = 0
    for place in range(at, len(text)):
        depth += (text[place] == "{") - (text[place] == "}")
        if not depth:
            return place
    return -1


def _hole(text: str) -> Hole:
    if not text.strip():
        raise CkptError("rule-invalid", "a hole without a name")
    name, colon, kind = text.partition(":")
    if colon and _NAME.fullmatch(name):
        expression = parse(name)
        if kind == "*":
            return Hole(text, name, "segment", expression, declared=True)
        if kind == "**":
            return Hole(text, name, "rest", expression, declared=True)
        if re.fullmatch("0[1-9]", kind):
            return Hole(text, name, "int", expression, width=int(kind), declared=True)
        options = tuple(kind.split("|"))
        if len(set(options)) < len(options):
            raise CkptError("rule-invalid", f"{{{text}}} names one text twice")
        if options == ("",):
            raise CkptError("rule-invalid", f"{{{text}}} says not what it stands for", None, _KINDS)
        return Hole(text, name, "one", expression, options, declared=True)
    before, bar, pairs = text.partition("|")
    expression = parse(before)
    plain = before.strip() if _NAME.fullmatch(before.strip()) else ""
    if not bar:
        if plain == "rest":
            return Hole(text, plain, "rest", expression, declared=True)
        return Hole(text, plain, "int" if plain else "expression", expression)
    keys, texts = [], []
    for pair in pairs.split(","):
        key, equals, value = pair.partition("=")
        if not equals:
            value = key = key.strip()  # stays as it is
            if ":" in key:
                hint = "for example {x|w1=gate_proj,w2=down_proj}"
                raise CkptError(
                    "rule-invalid", f"{{{text}}} pairs values and texts by =, not by :", None, hint
                )
        if not key.strip() or key.strip() in keys:
            hint = "for example {x|w1=gate_proj,w2=down_proj}"
            raise CkptError("rule-invalid", f"{{{text}}} has an empty value, or one twice", None, hint)
        keys.append(key.strip())
        texts.append(value)
    return Hole(text, plain, "map", expression, tuple(keys), tuple(texts))


_KINDS = "{i} number, {i:03} padded, {x:a|b} one of, {x:*} one segment, {x:**} anything"


def _check(found: Template) -> None:
    holes = found.holes
    if len(holes) > HOLES:
        raise CkptError("rule-invalid", f"{len(holes)} holes in one template")
    if sum(hole.kind == "rest" for hole in holes) > 1:
        raise CkptError("rule-invalid", f"two holes for anything in {found.text!r}")
    open_segment = False
    before: Hole | None = None
    for part in found.parts:
        if isinstance(part, str):
            open_segment = open_segment and "." not in part
            before = None
            continue
        wide = part.kind in ("segment", "rest")
        if wide and open_segment:
            raise CkptError("rule-invalid", f"in {found.text!r} it is not clear where {{{part.text}}} begins")
        closed = ("one", "map")
        if before is not None and part.kind not in closed and before.kind not in closed:
            hint = "put a text between them"
            raise CkptError("rule-invalid", f"two holes touch in {found.text!r}", None, hint)
        open_segment = open_segment or wide
        before = part


def like_a_pattern(text: str) -> bool:
    """Whether a template looks as if it were meant as a regular expression or a file pattern."""
    return re.search(r"\\[.dws]|\.[*+]|\(\?|\[0-9|\*", re.sub(r"\{[^{}]*\}", "", text)) is not None


def partly(text: str, bound: Mapping[str, Value], env: Environment) -> str:
    """A template's text with the holes filled in that have a value."""
    found = template(text)
    pieces = []
    for part in found.parts:
        if isinstance(part, Hole) and part.kind != "map" and part.expression.names <= bound.keys():
            pieces.append(escaped(str(part.expression.value(Bound(env, bound)))))
        else:
            pieces.append(escaped(part) if isinstance(part, str) else f"{{{part.text}}}")
    return "".join(pieces)


def escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


class Matcher:
    """Matches names against a template whose bare holes have been declared, in an environment for its arithmetic."""

    __slots__ = ("_binders", "_direct", "_solved", "_undo", "env", "loose", "pattern", "template")

    def __init__(self, found: Template, env: Environment, known: Iterable[str]) -> None:
        """`known` are the names that `let` declares. Raises CkptError `rule-invalid` for arithmetic that
        cannot be undone."""
        self.template = found
        self.env = env
        pattern, loose = "", ""
        groups: dict[str, int] = {}
        binders: list[tuple[Hole, int]] = []
        let = frozenset(known)
        count = 0
        for part in found.parts:
            if isinstance(part, str):
                pattern += re.escape(part)
                loose += re.escape(part.translate(_NO_DIGITS))
                continue
            if any("{" in call.template for call in part.expression.calls):
                hint = "a question without holes can stand under let"
                raise CkptError("rule-invalid", f"{{{part.text}}} cannot be solved for its holes", None, hint)
            if part.kind in ("int", "expression") and not part.expression.names - let:
                text = Template("", (part,)).fill({}, env)
                pattern += re.escape(text)
                loose += re.escape(text.translate(_NO_DIGITS))
                continue
            loose += _loose(part)
            if part.kind not in ("expression", "map") and part.name in groups:
                pattern += f"(?:\\{groups[part.name]})"
                continue
            if part.kind == "map" and part.name and len(set(part.texts)) < len(part.texts):
                raise CkptError("rule-invalid", f"{{{part.text}}} gives one text for two values")
            count += 1
            pattern += _pattern(part)
            binders.append((part, count))
            if part.kind not in ("expression", "map"):
                groups[part.name] = count
        self.pattern = re.compile(pattern, re.DOTALL)
        self.loose = re.compile(loose, re.DOTALL)
        self._binders = tuple(binders)
        simple = all(hole.kind not in ("expression", "map") for hole, _ in binders)
        self._direct = tuple((hole.name, _reading(hole)) for hole, _ in binders) if simple else None
        direct = {hole.name for hole, _ in binders if hole.kind != "expression" and hole.name}
        solved = [(hole, at) for hole, at in binders if not hole.name]
        self._solved = tuple(at for _, at in solved)
        self._undo = _Undo(found, [hole for hole, _ in solved], let | direct, env)

    def match(self, name: str) -> dict[str, Value] | None:
        """The values of the holes, or None."""
        found = self.pattern.fullmatch(name)
        if found is None:
            return None
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


def _reading(hole: Hole) -> Callable[[str], Value]:
    """How the text that a hole matched becomes its value."""
    if hole.kind == "int":
        return int
    return option if any(re.fullmatch(_NUMBER, text) for text in hole.options) else str


def option(text: str) -> int | str:
    """A text as a hole's value: texts that are numbers count as such."""
    return int(text) if re.fullmatch(_NUMBER, text) else text


def _pattern(hole: Hole) -> str:
    match hole.kind:
        case "int" if hole.width:
            return f"([0-9]{{{hole.width}}}|[1-9][0-9]{{{hole.width},8}})"
        case "int" | "expression":
            return _NUMBER
        case "one":
            return f"({'|'.join(map(re.escape, hole.options))})"
        case "map":
            return f"({'|'.join(map(re.escape, hole.texts))})"
        case "segment":
            return r"([^.]+)"
        case _:
            return r"(.+)"


def _loose(hole: Hole) -> str:
    """What can be left of the hole's text when all digits are taken out."""
    match hole.kind:
        case "int" | "expression":
            return ""
        case "one" | "map":
            texts = hole.options if hole.kind == "one" else hole.texts
            return f"(?:{'|'.join(re.escape(text.translate(_NO_DIGITS)) for text in texts)})"
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

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
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

from ckptkit.core.errors import CkptError
from ckptkit.rules.expressions import Bound, Environment, Expression, Value, parse

LONGEST = 4_000  # characters of a template
HOLES = 32

Kind = Literal["int", "one", "segment", "rest", "expression", "map"]

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


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

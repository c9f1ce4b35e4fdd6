"""The arithmetic of rules: whole numbers, comparisons, and questions about the source.

    H*D   n-1-i   i//2   (i+1)%4   stage[i]   config.n_heads   config.text_config.num_attention_heads
    dim(tok_embeddings.weight, 0)   dim(0)   count(layers.{i})   present(lm_head.weight)   absent(…)
    dim(x, 0) == 4 and not present("a (b)")   config.model_type == "llama"

`dim(NAME, D)` is a size of a tensor of the source, `dim(D)` one of the tensor that an operation works on, `count(T)`
how many different numbers the hole of T has among the names that begin with T, `place(T)` the number of the one
whose holes have their present values when all that begin with T are numbered in order: `place(blocks.{i}.{j})`
makes one list of lists of blocks. Nothing else can be called.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

from ckptkit.core.errors import CkptError

Value = Any  # int, str, bool, None; tables: list or dict of these

LONGEST = 1_000  # characters of one expression
DEEPEST = 40  # parentheses within parentheses
GREATEST = 1 << 62

_TOKEN = re.compile(
    r"\s*(?:(?P<int>[0-9]{1,18})(?![0-9A-Za-z_])"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*)"
    r"|(?P<text>'[^']*'|\"[^\"]*\")"
    r"|(?P<op>//|==|!=|<=|>=|[-+*%<>()\[\],]))"
)
_CALLS = ("dim", "count", "place", "present", "absent")
_WORDS: dict[str, Value] = {"true": True, "false": False, "null": None}
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}
_SIGNS = {  # of other languages, and what is written here
    "&": "and joins two conditions", "|": "or joins two conditions", "!": "not turns a condition around, != compares",
    "=": "== compares", "/": "// divides whole numbers",
    "{": "names of holes and of let stand without braces here",
}  # fmt: skip
_MADE_OF = "whole numbers and names with + - * // %, comparisons, questions; several stand in a list"
_LEVELS = (("or",), ("and",), tuple(_COMPARE), ("+", "-"), ("*", "//", "%"))


class Environment(Protocol):
    """What names and calls mean. Raises CkptError `rule-value` for what has no value."""

    def value(self, name: str) -> Value: ...

    def call(self, function: str, template: str, dim: int | None) -> Value: ...


@dataclass(frozen=True, slots=True)
class Call:
    """A question in an expression's text; `start` and `stop` enclose the template it asks about, quotes included."""

    function: str
    template: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Expression:
    """A parsed expression. `names` are those without dots that it uses, `calls` its questions."""

    text: str
    tree: tuple[Any, ...]
    names: frozenset[str]
    calls: tuple[Call, ...]

    def value(self, env: Environment) -> Value:
        """Raises CkptError `rule-value`."""
        return _evaluate(self.tree, env)

    def integer(self, env: Environment) -> int:
        """The value, which must be a whole number."""
        found = _evaluate(self.tree, env)
        if type(found) is not int:
            raise CkptError("rule-value", f"{self.text} is {found!r}, not a whole number")
        return found

    def affine(self, name: str, env: Environment) -> tuple[int, int] | None:
        """(a, b) with value = a·name + b, or None if it is not of that form."""
        return _affine(self.tree, name, env)

    def __str__(self) -> str:
        return self.text


def parse(text: str) -> Expression:
    """Raises CkptError `rule-invalid`."""
    return _Parser(text).whole()


def constant(value: int) -> Expression:
    """The expression that is this number."""
    return Expression(str(value), ("value", value), frozenset(), ())


class _Parser:
    def __init__(self, text: str) -> None:
        if len(text) > LONGEST:
            raise CkptError("rule-invalid", f"an expression of {len(text)} characters")
        self.text = text
        self.at = 0
        self.depth = 0
        self.kind, self.word = "", ""
        self.names: set[str] = set()
        self.calls: list[Call] = []
        self._next()

    def whole(self) -> Expression:
        tree = self._level(0)
        if self.kind:
            asks = "questions are present(NAME), absent(NAME), dim(NAME, D), count(NAME), config.x"
            self._fail(f"{self.word!r} is not expected here", asks if self.kind == "name" else None)
        return Expression(self.text, tree, frozenset(self.names), tuple(self.calls))

    def _next(self) -> None:
        if not self.text[self.at :].strip():
            self.kind, self.word = "", ""
            return
        match = _TOKEN.match(self.text, self.at)
        if match is None or match.lastgroup is None:
            rest = self.text[self.at :].strip()
            hint = next((hint for sign, hint in _SIGNS.items() if rest.startswith(sign)), _MADE_OF)
            self._fail(f"{rest[:20]!r} is not understood", hint)
        self.kind, self.word = match.lastgroup, match[match.lastgroup]
        self.at = match.end()

    def _fail(self, why: str, hint: str | None = None) -> NoReturn:
        raise CkptError("rule-invalid", f"in the expression {self.text!r} {why}", None, hint)

    def _take(self, word: str) -> None:
        if self.word != word:
            self._fail(f"{word!r} is missing")
        self._next()

    def _level(self, level: int) -> tuple[Any, ...]:
        if level == len(_LEVELS):
            return self._factor()
        if level == 2 and self.kind == "name" and self.word == "not":
            self._next()
            return ("not", self._nested(2))
        left = self._level(level + 1)
        while self.kind and self.kind != "text" and self.word in _LEVELS[level]:
            word = self.word
            self._next()
            left = (word, left, self._level(level + 1))
        return left

    def _nested(self, level: int) -> tuple[Any, ...]:
        self.depth += 1
        if self.depth > DEEPEST:
            self._fail("is nested too deeply")
        tree = self._level(level)
        self.depth -= 1
        return tree

    def _factor(self) -> tuple[Any, ...]:
        kind, word = self.kind, self.word
        if not kind:
            self._fail("something is missing")
        if kind == "int":
            self._next()
            return ("value", int(word))
        if kind == "text":
            self._next()
            return ("value", word[1:-1])
        if kind == "op" and word == "(":
            self._next()
            tree = self._nested(0)
            self._take(")")
            return tree
        if kind == "op" and word == "-":
            self._next()
            self.depth += 1
            if self.depth > DEEPEST:
                self._fail("is nested too deeply")
            tree = ("-", ("value", 0), self._factor())
            self.depth -= 1
            return tree
        if kind == "name":
            if word in _CALLS and self.text[self.at : self.at + 1] == "(":
                return self._call(word)
            self._next()
            if word in _WORDS:
                return ("value", _WORDS[word])
            self.names.add(word.partition(".")[0])
            if self.kind == "op" and self.word == "[":
                self._next()
                index = self._nested(0)
                self._take("]")
                return ("index", word, index)
            return ("name", word)
        return self._fail(f"{word!r} is not expected here")

    def _call(self, function: str) -> tuple[Any, ...]:
        """`self.at` stands at the opening parenthesis; the template runs to its partner, or to the last comma."""
        start = self.at + 1
        quote = self.text[start : start + 1]
        if quote in ("'", '"'):
            closing = self.text.find(quote, start + 1)
            stop = closing + 1
        else:
            closing = stop = self.text.find(")", start)
        end = self.text.find(")", stop)
        if closing < 0 or end < 0:
            self._fail(
                "a parenthesis or quote is not closed", "within { } and [ ] texts with a comma are quoted"
            )
        inside = self.text[start:end]
        template, dim = inside, None
        if function == "dim":
            template, comma, number = inside.rpartition(",")
            stop = start + len(template)
            if not re.fullmatch(r"\s*-?[0-9]{1,4}\s*", number):
                self._fail("dim takes a name and the number of a dimension")
            dim = int(number)
            if not comma:
                template = ""
        template = template.strip()
        if template[:1] in ("'", '"') and template[-1:] == template[:1]:
            template = template[1:-1]
        if template:
            self.calls.append(Call(function, template, start, stop))
        elif function != "dim":
            self._fail(f"{function} takes a name")
        self.at = end + 1
        self._next()
        if function == "place":
            holes = _plain_holes(template)
            if not holes:
                self._fail("place takes a name with the holes of the rule")
            self.names.update(holes)
            return ("place", template, holes)
        return ("call", function, template, dim)


def _plain_holes(template: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\{([A-Za-z_][A-Za-z0-9_]*)\}", template))


def _evaluate(tree: tuple[Any, ...], env: Environment) -> Value:
    kind = tree[0]
    if kind == "value":
        return tree[1]
    if kind == "name":
        return env.value(tree[1])
    if kind == "call":
        return env.call(tree[1], tree[2], tree[3])
    if kind == "place":
        places: dict[Any, int] = env.call("place", tree[1], None)
        key = tuple([env.value(hole) for hole in tree[2]])
        if key not in places:
            raise CkptError("rule-value", f"no name begins with {tree[1]} for {list(key)}")
        return places[key]
    if kind == "index":
        return _entry(tree[1], env.value(tree[1]), _evaluate(tree[2], env))
    if kind == "not":
        return not _evaluate(tree[1], env)
    left = _evaluate(tree[1], env)
    if kind == "and":
        return bool(left and _evaluate(tree[2], env))
    if kind == "or":
        return bool(left or _evaluate(tree[2], env))
    right = _evaluate(tree[2], env)
    if kind in ("==", "!="):
        return _COMPARE[kind](left, right)
    if type(left) is not int or type(right) is not int:
        raise CkptError("rule-value", f"{left!r} {kind} {right!r} is not arithmetic on whole numbers")
    if kind in _COMPARE:
        return _COMPARE[kind](left, right)
    return _arithmetic(kind, left, right)


def _arithmetic(kind: str, left: int, right: int) -> int:
    if kind in ("//", "%") and right == 0:
        raise CkptError("rule-value", f"{left} {kind} 0")
    if kind == "//":
        found = left // right
    elif kind == "%":
        found = left % right
    else:
        found = {"+": left + right, "-": left - right, "*": left * right}[kind]
    if abs(found) > GREATEST:
        raise CkptError("rule-value", f"{left} {kind} {right} passes 2^62")
    return found


def _entry(name: str, table: Value, key: Value) -> Value:
    if isinstance(table, list) and type(key) is int and 0 <= key < len(table):
        return table[key]
    if isinstance(table, dict) and str(key) in table:
        return table[str(key)]
    raise CkptError("rule-value", f"the table {name} has no entry {key!r}")


def _affine(tree: tuple[Any, ...], name: str, env: Environment) -> tuple[int, int] | None:
    kind = tree[0]
    if kind == "name" and tree[1] == name:
        return (1, 0)
    if not _uses(tree, name):
        found = _evaluate(tree, env)
        return (0, found) if type(found) is int else None
    if kind not in ("+", "-", "*"):
        return None
    left, right = _affine(tree[1], name, env), _affine(tree[2], name, env)
    if left is None or right is None:
        return None
    if kind == "*":
        if left[0] and right[0]:
            return None
        return (left[0] * right[1] + right[0] * left[1], left[1] * right[1])
    sign = 1 if kind == "+" else -1
    return (left[0] + sign * right[0], left[1] + sign * right[1])


def _uses(tree: tuple[Any, ...], name: str) -> bool:
    if tree[0] in ("value", "call"):
        return False
    if tree[0] == "name":
        return bool(tree[1] == name)
    if tree[0] == "place":
        return name in tree[2]
    return any(isinstance(part, tuple) and _uses(part, name) for part in tree[1:])


class Bound:
    """An environment with some names bound, over another."""

    __slots__ = ("bound", "outer")

    def __init__(self, outer: Environment, bound: Mapping[str, Value]) -> None:
        self.outer = outer
        self.bound = bound

    def value(self, name: str) -> Value:
        if name in self.bound:
            return self.bound[name]
        return self.outer.value(name)

    def call(self, function: str, template: str, dim: int | None) -> Value:
        if "{" in template and function != "place":
            from ckptkit.rules.template import partly

            template = partly(template, self.bound, self.outer)
        return self.outer.call(function, template, dim)

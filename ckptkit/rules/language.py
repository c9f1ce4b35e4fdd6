"""From nodes to rules: every key, template, expression and operation is checked, errors carry file and line."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

from ckptkit.core.errors import CkptError
from ckptkit.rules.checks import checked, named
from ckptkit.rules.expressions import Expression
from ckptkit.rules.expressions import parse as parse_expression
from ckptkit.rules.joins import JOINS, SPLITS
from ckptkit.rules.model import Made, Op, Rule, Side
from ckptkit.rules.nodes import Node
from ckptkit.rules.operations import OPERATIONS, WORDS, dtype
from ckptkit.rules.template import Template, template

VERSION = "1"
RULES = 200_000

TOP = ("ckptkit-rules", "about", "let", "tables", "unwrap", "keep_others", "optional", "done", "rules")
COMMON = ("when", "optional", "note")
KEYS: dict[str, tuple[str, ...]] = {  # by the key that tells the kind
    "from": ("to", "ops", "each", *JOINS, *SPLITS),
    "keep": ("ops",),
    "drop": ("same_as", "value"),
    "shared": (),
    "tie": ("to",),
    "fill": ("value", "shape", "dtype", "over", "like"),
    "scope": ("rules",),
    "rules": (),
}
_FILLS = ("arange", "causal", "eye")


@dataclass(frozen=True, slots=True)
class Parsed:
    """A rule file's content."""

    name: str
    about: str
    let: Mapping[str, tuple[Expression, ...]]
    tables: Mapping[str, Any]
    unwrap: tuple[str, ...]
    keep_others: bool
    done: Expression | None
    rules: tuple[Rule, ...]


def parse(root: Node, name: str) -> Parsed:
    """Raises CkptError `rule-invalid` at the first thing that is not understood."""
    return _Reader(name).file(root)


@dataclass(frozen=True, slots=True)
class _Scope:
    """What the rules of a list have in common."""

    source: str = ""
    target: str = ""
    when: tuple[Expression, ...] = ()
    optional: bool = False


_NOTHING = Node(())
_QUOTE = 'names with holes are quoted: "{i}.weight"'
_EXAMPLE = "{from: NAME, to: NAME}"
_INSTEAD = dict.fromkeys(("rename", "move", "map", "replace"), _EXAMPLE) | {
    **dict.fromkeys(("delete", "remove", "ignore", "skip"), "{drop: NAME}"),
    **dict.fromkeys(("copy", "alias"), "{from: NAME, to: [NAME, NAME]}"),
    **dict.fromkeys(("add", "zeros", "new"), "{fill: NAME, shape: [2, 3]}"),
    **dict.fromkeys(OPERATIONS, "{from: NAME, to: NAME, ops: [transpose]}"),
    **dict.fromkeys((*JOINS, *SPLITS), "{from: [NAME, NAME], to: NAME, concat: {dim: 0}}"),
}  # what people write, and what they mean


def _like_a_hole(node: Node) -> bool:
    """Whether YAML has taken an unquoted {i} for a mapping."""
    return isinstance(node.value, dict) and any(item.value == "" for item in node.value.values())


def _taken(takes: Mapping[str, str]) -> str:
    return ", ".join(f"{key}?" if kind.endswith("?") else key for key, kind in takes.items())


@dataclass(slots=True)
class _Reader:
    name: str
    count: int = 0
    globals: set[str] = field(default_factory=set)

    def fail(self, node: Node, message: str, hint: str | None = None) -> NoReturn:
        raise CkptError("rule-invalid", message, self.at(node), hint)

    def at(self, node: Node) -> str:
        return f"{self.name}:{node.line}" if node.line else self.name

    # nodes as what they must be

    def text(self, node: Node) -> str:
        if not isinstance(node.value, str):
            self.fail(node, "a text is expected here", _QUOTE if _like_a_hole(node) else None)
        return node.value

    def items(self, node: Node) -> tuple[Node, ...]:
        """A list, or the one thing that stands for a list of itself."""
        return node.value if isinstance(node.value, tuple) else (node,)

    def mapping(
        self, node: Node, known: tuple[str, ...] | None = None, what: str = "rules"
    ) -> dict[str, Node]:
        if not isinstance(node.value, dict):
            self.fail(node, "a mapping is expected here")
        for key, value in node.value.items():
            if known is not None and key not in known:
                self.unknown(value if value.line else node, key, known, what)
        return node.value

    def unknown(self, node: Node, key: str, known: tuple[str, ...], what: str) -> NoReturn:
        from difflib import get_close_matches

        near = get_close_matches(key, known, 2, 0.5)
        hint = f"meant: {' or '.join(near)}" if near else f"known: {', '.join(known)}"
        self.fail(node, f"{what} have no {key!r}", hint)

    def flag(self, node: Node) -> bool:
        text = self.text(node)
        if text not in ("true", "false"):
            self.fail(node, f"{text!r} is neither true nor false", "these two words, in small letters")
        return text == "true"

    def located(self, node: Node, make: Any, *args: Any) -> Any:
        """What `make` gives; its errors get the node's place."""
        try:
            return make(*args)
        except CkptError as error:
            raise CkptError(error.code, error.message, self.at(node), error.hint) from None

    def expression(self, node: Node) -> Expression:
        found: Expression = self.located(node, parse_expression, self.text(node))
        return found

    def template(self, node: Node, prefix: str = "") -> Template:
        found: Template = self.located(node, template, prefix + self.text(node))
        return found

    # the file

    def file(self, root: Node) -> Parsed:
        if not isinstance(root.value, dict):
            self.fail(root, "this is no rule file", "its first line is ckptkit-rules: 1")
        top = self.mapping(root, TOP, "rule files")
        version = top.get("ckptkit-rules")
        if version is None or version.value != VERSION:
            self.fail(
                version or root, "this is no rule file of version 1", "its first line is ckptkit-rules: 1"
            )
        let: dict[str, tuple[Expression, ...]] = {}
        stated = self.mapping(top["let"]) if "let" in top else {}
        for key, node in stated.items():
            self.identifier(node, key)
            let[key] = tuple(self.expression(item) for item in self.items(node))
        tables = {}
        for key, node in self.mapping(top["tables"]).items() if "tables" in top else ():
            self.identifier(node, key)
            if key in let:
                self.fail(node, f"{key} is under let, too")
            tables[key] = self.table(node)
        self.globals = {*let, *tables, "config"}
        for key, values in let.items():
            self.located(stated[key], named, values, self.globals)
        done = (self.expression(top["done"]),) if "done" in top else ()
        if done:
            self.located(top["done"], named, done, self.globals)
        optional = "optional" in top and self.flag(top["optional"])
        if "rules" not in top and "keep_others" not in top:
            self.fail(root, "a rule file has rules")
        rules = tuple(self.rules(top["rules"], _Scope(optional=optional))) if "rules" in top else ()
        return Parsed(
            name=self.name,
            about=self.text(top["about"]) if "about" in top else "",
            let=let,
            tables=tables,
            unwrap=tuple(self.text(item) for item in self.items(top.get("unwrap", _NOTHING))),
            keep_others="keep_others" in top and self.flag(top["keep_others"]),
            done=done[0] if done else None,
            rules=rules,
        )

    def identifier(self, node: Node, key: str) -> None:
        if not (key.isascii() and key.isidentifier()) or key in (
            "config",
            "not",
            "and",
            "or",
            "true",
            "false",
            "null",
        ):
            self.fail(node, f"{key!r} cannot be a name", "letters, digits and _, and no word of expressions")

    def table(self, node: Node) -> Any:
        def entry(item: Node) -> int | str:
            text = self.text(item)
            return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else text

        if isinstance(node.value, dict):
            return {key: entry(item) for key, item in node.value.items()}
        return [entry(item) for item in self.items(node)]

    def rules(self, node: Node, scope: _Scope) -> Iterator[Rule]:
        if not isinstance(node.value, tuple):
            self.fail(
                node, "a list of rules is expected here", "each rule begins with - on a line of its own"
            )
        readers = {
            "from": self._from, "keep": self._keep, "drop": self._drop,
            "shared": self._shared, "tie": self._tie, "fill": self._fill,
        }  # fmt: skip
        for item in node.value:
            if not isinstance(item.value, dict):
                self.fail(item, "a rule is a mapping", f"such as {_EXAMPLE}")
            fields = item.value
            kind = next((key for key in KEYS if key in fields), None)
            if kind is None:
                hint = next((_INSTEAD[key] for key in fields if key in _INSTEAD), _EXAMPLE)
                self.fail(item, f"a rule begins with {', '.join(KEYS)}", f"such as {hint}")
            known = (kind, *KEYS[kind], *COMMON)
            for key, value in fields.items():
                if key not in known:
                    self.unknown(value if value.line else item, key, known, f"rules with {kind!r}")
            inner = scope
            if "when" in fields:
                inner = replace(inner, when=(*inner.when, *map(self.expression, self.items(fields["when"]))))
            if "optional" in fields:
                inner = replace(inner, optional=self.flag(fields["optional"]))
            if kind in ("scope", "rules"):
                yield from self.scope(item, fields, inner)
                continue
            self.count += 1
            if self.count > RULES:
                raise CkptError("over-budget", f"more than {RULES} rules", self.at(item))
            rule = readers[kind](item, fields, inner)
            if inner.when or inner.optional:
                rule = replace(rule, when=inner.when, optional=inner.optional)
            yield self.located(item, checked, rule, self.globals)

    def scope(self, item: Node, fields: dict[str, Node], scope: _Scope) -> Iterator[Rule]:
        if "rules" not in fields:
            self.fail(item, "a scope has rules")
        if "scope" in fields:
            prefixes = self.mapping(fields["scope"], ("from", "to"), "scopes")
            source, target = (self.text(prefixes[key]) if key in prefixes else "" for key in ("from", "to"))
            scope = replace(scope, source=scope.source + source, target=scope.target + target)
        yield from self.rules(fields["rules"], scope)

    # kinds of rules

    def _from(self, item: Node, fields: dict[str, Node], scope: _Scope) -> Rule:
        if "to" not in fields:
            self.fail(
                item,
                "a rule with from has a to",
                "keep: NAME leaves a name as it is, drop: NAME leaves it out",
            )
        sources = self.sides(fields["from"], scope.source)
        targets = self.sides(fields["to"], scope.target)
        joins = tuple(self.step(key, fields[key], JOINS[key].takes) for key in fields if key in JOINS)
        splits = tuple(self.step(key, fields[key], SPLITS[key]) for key in fields if key in SPLITS)
        ops = self.ops(fields["ops"]) if "ops" in fields else ()
        if "each" in fields:
            each = self.ops(fields["each"])
            many, parts = bool(joins), bool(splits)
            if many == parts:
                self.fail(fields["each"], "each belongs to the sources of a join, or to the parts of a split")
            if many:
                sources = tuple(replace(side, ops=(*side.ops, *each)) for side in sources)
            else:
                targets = tuple(replace(side, ops=(*each, *side.ops)) for side in targets)
        return Rule("move", self.at(item), sources, targets, joins, ops, splits)

    def _keep(self, item: Node, fields: dict[str, Node], scope: _Scope) -> Rule:
        source = Side(self.template(fields["keep"], scope.source))
        target = Side(self.template(fields["keep"], scope.target))
        ops = self.ops(fields["ops"]) if "ops" in fields else ()
        return Rule("move", self.at(item), (source,), (target,), ops=ops)

    def _drop(self, item: Node, fields: dict[str, Node], scope: _Scope) -> Rule:
        other = self.template(fields["same_as"], scope.source) if "same_as" in fields else None
        if other is not None and "value" in fields:
            self.fail(fields["value"], "what is dropped equals another tensor, or holds a value")
        side = Side(self.template(fields["drop"], scope.source))
        made = Made(self.filling(fields["value"])) if "value" in fields else None
        return Rule("drop", self.at(item), (side,), other=other, made=made)

    def _shared(self, item: Node, fields: dict[str, Node], scope: _Scope) -> Rule:
        return Rule("shared", self.at(item), (Side(self.template(fields["shared"], scope.source)),))

    def _tie(self, item: Node, fields: dict[str, Node], scope: _Scope) -> Rule:
        if "to" not in fields:
            self.fail(item, "a tie says to which name")
        side = Side(self.template(fields["tie"], scope.target))
        other = self.template(fields["to"], scope.target)
        return Rule("tie", self.at(item), targets=(side,), other=other)

    def _fill(self, item: Node, fields: dict[str, Node], scope: _Scope) -> Rule:
        if "like" in fields and "over" in fields:
            self.fail(fields["over"], "a fill is like other tensors, or runs over numbers")
        if "shape" not in fields and "like" not in fields:
            self.fail(item, "a fill has a shape, or is like another tensor", "shape: [2, 3], or like: NAME")
        over = self.mapping(fields["over"]) if "over" in fields else {}
        made = Made(
            self.filling(fields["value"]) if "value" in fields else "0",
            tuple(self.expression(e) for e in self.items(fields["shape"])) if "shape" in fields else None,
            self.located(item, dtype, self.text(fields["dtype"])) if "dtype" in fields else None,
            {hole: self.expression(count) for hole, count in over.items()},
        )
        side = Side(self.template(fields["fill"], scope.target))
        other = self.template(fields["like"], scope.target) if "like" in fields else None
        return Rule("fill", self.at(item), targets=(side,), other=other, made=made)

    def filling(self, node: Node) -> str:
        """What fills a tensor: a number or one of a few words."""
        value = self.text(node)
        if value not in _FILLS:
            self.number(node, value)
        return value

    def sides(self, node: Node, prefix: str) -> tuple[Side, ...]:
        found = []
        for item in self.items(node):
            if isinstance(item.value, dict):
                if _like_a_hole(item):
                    self.fail(item, "a name is expected here", _QUOTE)
                fields = self.mapping(item, ("name", "ops"), "sides")
                if "name" not in fields:
                    self.fail(item, "a side has a name")
                ops = self.ops(fields["ops"]) if "ops" in fields else ()
                found.append(Side(self.template(fields["name"], prefix), ops))
            else:
                found.append(Side(self.template(item, prefix)))
        if not found:
            self.fail(node, "an empty list")
        return tuple(found)

    # operations

    def ops(self, node: Node) -> tuple[Op, ...]:
        return tuple(self.op(item) for item in self.items(node))

    def op(self, node: Node) -> Op:
        if isinstance(node.value, dict):
            if len(node.value) != 1:
                self.fail(
                    node, "an operation is one key with its arguments", "several: [{add: 1}, {multiply: 2}]"
                )
            ((name, args),) = node.value.items()
        else:
            name, args = self.text(node), Node({}, node.line)
        row = OPERATIONS.get(name)
        if row is None:
            self.unknown(node, name, tuple(OPERATIONS), "operations")
        if row.short and not isinstance(args.value, dict):
            args = Node({row.short: args}, args.line)
        return self.step(name, args, row.takes)

    def step(self, name: str, node: Node, takes: Mapping[str, str]) -> Op:
        fields = self.mapping(node, tuple(takes), f"arguments of {name!r}")
        args = {key: self.argument(takes[key].rstrip("?"), value) for key, value in fields.items()}
        for key, kind in takes.items():
            if key not in args and not kind.endswith("?"):
                self.fail(node, f"{name!r} needs {key!r}", f"it takes {_taken(takes)}")
            if kind.startswith("word") and args.get(key, WORDS[key][0]) not in WORDS[key]:
                self.unknown(fields[key], args[key], WORDS[key], f"{key} of {name!r}")
        return Op(name, args)

    def argument(self, kind: str, node: Node) -> Any:
        if kind == "int":
            return self.expression(node)
        if kind == "ops":
            return self.ops(node) or self.fail(node, "an empty list")
        if kind == "sizes" and node.value == "equal":
            return "equal"
        if kind in ("ints", "sizes"):
            return tuple(self.expression(item) for item in self.items(node))
        text = self.text(node)
        if kind == "number":
            return self.number(node, text)
        if kind == "flag":
            return self.flag(node)
        if kind == "dtype":
            return self.located(node, dtype, text)
        return text

    def number(self, node: Node, text: str) -> float:
        try:
            found = float(text)
        except ValueError:
            self.fail(node, f"{text!r} is no number")
        return int(found) if found.is_integer() and abs(found) < 1 << 53 else found

"""Rule files as nodes with their lines: every scalar is text, so `no` is no False and `1.10` keeps its zero.

A file is refused before it costs anything: size, depth, number of nodes (those that aliases repeat counted each
time), tags, several documents, a key twice.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ckptkit.core.errors import CkptError

SIZE = 16_000_000  # bytes of a file
DEPTH = 24  # lists and mappings within each other
NODES = 1_000_000

Content = "str | tuple[Node, ...] | dict[str, Node]"


@dataclass(frozen=True, slots=True)
class Node:
    """A text, a list or a mapping, and the line it begins in (0 when it was made in Python)."""

    value: "str | tuple[Node, ...] | dict[str, Node]"
    line: int = 0
    size: int = 1  # nodes in it, itself included


def load(text: str, name: str) -> Node:
    """The one document of a YAML text. Raises CkptError `rule-invalid`, `over-budget`."""
    import yaml

    if len(text) > SIZE:
        raise CkptError("over-budget", f"a rule file of {len(text)} characters", name)
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    builder = _Builder(name)
    try:
        for event in yaml.parse(text, loader):
            builder.event(event)
    except yaml.YAMLError as error:
        raise _broken(error, text, name) from None
    if builder.root is None:
        raise CkptError("rule-invalid", "the file is empty", name)
    return builder.root


def _broken(error: Any, text: str, name: str) -> CkptError:
    """What the parser found, at the line that it is about, and what people mostly meant."""
    problem, context = str(getattr(error, "problem", error)), str(getattr(error, "context", ""))
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return CkptError("rule-invalid", f"this is no YAML: {problem}", name)
    flow = "flow" in context  # something in { } or [ ], which may have begun on a line before
    number = error.context_mark.line if flow else mark.line
    lines = text.splitlines()
    line = lines[number] if number < len(lines) else ""
    plain = re.sub(r"\"[^\"]*\"|'[^']*'", "", line)
    sign = line[mark.column : mark.column + 1] if number == mark.line else ""
    if "\t" in line[: len(line) - len(line.lstrip())]:
        hint = "lines are indented with blanks, not with tabs"
    elif sign and sign in "@`%&*!|>":
        hint = f"texts that begin with {sign} are quoted"
    elif re.search(r"\{[A-Za-z_]\w*(\}|[-+*/%|:][^ {}]*\})", plain):
        hint = 'names with holes are quoted: "layers.{i}.weight"'
    elif flow:
        hint = "within { } and [ ] texts that hold , : # { } [ ] are quoted"
    else:
        hint = "the keys of one rule begin in the same column"
    return CkptError("rule-invalid", f"this is no YAML: {problem}", f"{name}:{number + 1}", hint)


@dataclass(slots=True)
class _Open:
    """A list or mapping that has not ended."""

    kind: str
    line: int
    anchor: str | None
    items: list[Node] = field(default_factory=list)


class _Builder:
    def __init__(self, name: str) -> None:
        self.name = name
        self.root: Node | None = None
        self.stack: list[_Open] = []
        self.anchors: dict[str, Node] = {}
        self.nodes = 0

    def event(self, event: Any) -> None:
        import yaml

        line = event.start_mark.line + 1
        if isinstance(event, yaml.ScalarEvent):
            self._tag(event, line)
            self._add(Node(event.value, line), event.anchor, line)
        elif isinstance(event, yaml.SequenceStartEvent | yaml.MappingStartEvent):
            self._tag(event, line)
            kind = "list" if isinstance(event, yaml.SequenceStartEvent) else "map"
            if len(self.stack) >= DEPTH:
                raise CkptError(
                    "over-budget", f"more than {DEPTH} lists and mappings within each other", self._at(line)
                )
            self.stack.append(_Open(kind, line, event.anchor))
        elif isinstance(event, yaml.SequenceEndEvent | yaml.MappingEndEvent):
            done = self.stack.pop()
            value = tuple(done.items) if done.kind == "list" else self._mapping(done)
            size = 1 + sum(item.size for item in done.items)
            self._add(Node(value, done.line, size), done.anchor, done.line, counted=size - 1)
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in self.anchors:
                hint = "a text that begins with * is quoted"
                raise CkptError(
                    "rule-invalid", f"*{event.anchor} repeats what is not complete", self._at(line), hint
                )
            self._add(self.anchors[event.anchor], None, line)

    def _tag(self, event: Any, line: int) -> None:
        if event.tag not in (None, "!"):
            raise CkptError("rule-invalid", f"the tag {event.tag} is not used here", self._at(line))

    def _add(self, node: Node, anchor: str | None, line: int, counted: int = 0) -> None:
        self.nodes += node.size - counted
        if self.nodes > NODES:
            raise CkptError("over-budget", f"more than {NODES} values", self._at(line))
        if anchor is not None:
            self.anchors[anchor] = node
        if self.stack:
            self.stack[-1].items.append(node)
        elif self.root is None:
            self.root = node
        else:
            raise CkptError("rule-invalid", "a second document", self._at(line))

    def _mapping(self, done: _Open) -> dict[str, Node]:
        found: dict[str, Node] = {}
        for key, value in zip(done.items[::2], done.items[1::2], strict=True):
            if not isinstance(key.value, str):
                raise CkptError(
                    "rule-invalid", "a key is not a text", self._at(key.line), "quote what begins with {"
                )
            if key.value in found:
                message = f"the key {key.value!r} stands twice"
                raise CkptError("rule-invalid", message, self._at(key.line), "one of them, or a list of both")
            # What a key holds stands where the key does, also where an alias repeats it or it begins a line further on.
            found[key.value] = value if value.line == key.line else replace(value, line=key.line)
        return found

    def _at(self, line: int) -> str:
        return f"{self.name}:{line}"


def of(value: Any, depth: int = 0) -> Node:
    """Python values as nodes: numbers and bools become text. Raises CkptError `rule-invalid`, `over-budget`."""
    if depth > DEPTH:
        raise CkptError("over-budget", f"more than {DEPTH} lists and mappings within each other")
    if isinstance(value, bool):
        return Node("true" if value else "false")
    if isinstance(value, str | int | float):
        return Node(str(value))
    if value is None:
        return Node("")
    if isinstance(value, Mapping):
        return Node({str(key): of(item, depth + 1) for key, item in value.items()})
    if isinstance(value, Sequence):
        return Node(tuple(of(item, depth + 1) for item in value))
    raise CkptError("rule-invalid", f"a {type(value).__name__} is nothing that rules consist of")


def data(node: Node) -> Any:
    """The node as texts, lists and dicts."""
    if isinstance(node.value, str):
        return node.value
    if isinstance(node.value, dict):
        return {key: data(item) for key, item in node.value.items()}
    return [data(item) for item in node.value]


def dump(value: Any) -> str:
    """Nested data on one line, in flow style, texts quoted only where they must be."""
    import yaml

    class Plain(yaml.SafeDumper):
        yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - every scalar is text

    dumped = yaml.dump(
        value, Dumper=Plain, sort_keys=False, allow_unicode=True, default_flow_style=True, width=1 << 30
    )
    return str(dumped).removesuffix("\n").removesuffix("\n...")

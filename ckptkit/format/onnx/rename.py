"""Renaming tensors in a model: the definition and every use of the name, as edits of the file.

A name is defined by an initializer, a graph input or a node's output, once per graph. A subgraph sees the names of
the graphs around it unless it defines them itself; a function sees only its own. Uses are node inputs and outputs,
graph inputs and outputs, value_info, quantization annotations and sharding specs. Source: docs/IR.md of onnx 1.23.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ckptkit.core.errors import CkptError
from ckptkit.format.onnx.native import Frame, Native
from ckptkit.format.onnx.patch import Edit
from ckptkit.format.onnx.wire import LENGTH, Span, Wire, encode_field

USE, DEFINITION, BODY = "use", "definition", "body"

# Message → field number → what stands there: a name that is used or defined, a body with its own names
# (`body KIND`), or a message that holds more of them.
_MENTIONS: dict[str, dict[int, str]] = {
    "model": {7: "body graph", 20: "training", 25: "body function"},
    "graph": {
        1: "node",
        5: "tensor",
        11: "input",
        12: "value",
        13: "value",
        14: "annotation",
        15: "sparse tensor",
    },
    "function": {4: DEFINITION, 5: USE, 7: "node", 12: "value"},
    "node": {1: USE, 2: DEFINITION, 5: "attribute", 10: "device"},
    "attribute": {6: "body graph", 11: "body graph"},
    "tensor": {8: DEFINITION},
    "sparse tensor": {1: "tensor"},
    "input": {1: DEFINITION},
    "value": {1: USE},
    "annotation": {1: USE, 2: "pair"},
    "pair": {2: USE},
    "device": {2: "sharding"},
    "sharding": {1: USE},
}

_SPARSE_PARTS = (".values", ".indices")


@dataclass(frozen=True, slots=True)
class _Mention:
    name: str
    frame: Frame
    span: Span
    number: int


@dataclass(slots=True, eq=False)
class _Body:
    """A graph or function: the names it defines, and every place that mentions one."""

    outer: "_Body | None"
    scope: str
    defined: set[str] = field(default_factory=set)
    mentions: list[_Mention] = field(default_factory=list)
    names: Mapping[str, str] = field(default_factory=dict)


def rename_edits(wire: Wire, native: Native, renamed: Mapping[str, str]) -> list[Edit]:
    """The edits for tensors renamed since reading (`renamed`: current name → name in the file).

    Raises CkptError `onnx-rename` for a tensor whose name is not its own (an attribute, a part of a path),
    `name-collision` when the new name means something else in the model.
    """
    wanted = {old: new for new, old in renamed.items() if new != old}
    if not wanted:
        return []
    bodies = _bodies(wire, native)
    local = _local_names(native, wanted)
    _refuse_collisions(bodies, local)
    edits = []
    for body in bodies:  # outer before inner
        seen = body.outer.names if body.outer else {}
        body.names = {old: new for old, new in seen.items() if old not in body.defined} | local.get(
            body.scope, {}
        )
        edits += [
            Edit(
                mention.frame,
                mention.span.at,
                mention.span.end,
                (encode_field(mention.number, body.names[mention.name].encode("utf-8", "replace")),),
            )
            for mention in body.mentions
            if mention.name in body.names
        ]
    return edits


def _local_names(native: Native, wanted: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Scope → name within it → new name within it. Raises CkptError `onnx-rename`."""
    local: dict[str, dict[str, str]] = {}
    for old, new in wanted.items():
        stored = native.tensors[old]
        scope = stored.scope
        if stored.tensor.kind not in ("initializer", "sparse-initializer", "constant"):
            raise CkptError(
                "onnx-rename",
                f"cannot be named {new!r}: this name is made of its node's and its attribute's",
                old,
                "exclude it from the renaming, or convert to .safetensors",
            )
        if not new.startswith(scope) or new == scope:
            raise CkptError(
                "onnx-rename",
                f"cannot be named {new!r}: inside a subgraph or function its name begins with {scope!r}",
                old,
                "exclude it from the renaming, or convert to .safetensors",
            )
        before, after = old[len(scope) :], new[len(scope) :]
        part = next((part for part in _SPARSE_PARTS if old.endswith(part)), "")
        if stored.tensor.note.startswith("sparse") and part:
            before, twin = before.removesuffix(part), old.removesuffix(part)
            if not after.endswith(part) or any(
                wanted.get(twin + other) != new.removesuffix(part) + other for other in _SPARSE_PARTS
            ):
                raise CkptError("onnx-rename", "the two parts of a sparse tensor have one name", old)
            after = after.removesuffix(part)
        local.setdefault(scope, {})[before] = after
    return local


def _bodies(wire: Wire, native: Native) -> list[_Body]:
    """Every graph and function with the names it mentions, outer ones first."""
    model = Frame(Span(-1, 0, wire.size), None)
    bodies: list[_Body] = []
    waiting: list[tuple[str, Frame | None, Span, _Body | None]] = [("model", None, model.span, None)]
    while waiting:
        kind, parent, span, body = waiting.pop()
        frame = None if kind == "model" else Frame(span, parent)
        if kind.startswith(BODY):
            kind = kind.removeprefix("body ")
            body = _Body(body, native.scopes[span.at])
            bodies.append(body)
        elif kind == "training":
            raise CkptError(
                "onnx-rename", "tensors of a model with training info cannot be renamed", native.file.path
            )
        table = _MENTIONS[kind]
        for key, place in wire.fields(span.start, span.end):
            what = table.get(key >> 3)
            if what is None or key & 7 != LENGTH:
                continue
            if what in (USE, DEFINITION):
                assert body is not None
                assert frame is not None
                name = wire.read(place.start, place.end).decode()
                if name:
                    body.mentions.append(_Mention(name, frame, place, key >> 3))
                    if what == DEFINITION:
                        body.defined.add(name)
            else:
                waiting.append((what, frame, place, body))
    return bodies


def _refuse_collisions(bodies: Iterable[_Body], local: Mapping[str, Mapping[str, str]]) -> None:
    """Raise CkptError `name-collision` where a new name would mean something else to a body that can see it."""
    given = {scope: set(names.values()) for scope, names in local.items()}
    for scope, names in local.items():
        if len(given[scope]) < len(names):
            twice = Counter(names.values()).most_common(1)[0][0]
            raise CkptError("name-collision", "two tensors would get this name", scope + twice)
    visible: dict[_Body | None, set[str]] = {None: set()}
    for body in bodies:
        visible[body] = visible[body.outer] | given.get(body.scope, set())
        for name in {mention.name for mention in body.mentions}:
            passed = []
            around: _Body | None = body
            while around is not None and name not in around.defined:
                passed.append(around)
                around = around.outer
            new = local.get(around.scope, {}).get(name) if around else None
            shadowed = any(new in given.get(inner.scope, ()) for inner in passed)
            if shadowed if new is not None else name in visible[body]:
                raise CkptError(
                    "name-collision",
                    "this name has another meaning in the ONNX graph",
                    body.scope + (name if new is None else new),
                )

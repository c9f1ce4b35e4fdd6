"""Where a model mentions names of values: every definition and every use, each with its place in the file.

A name is defined by an initializer, a graph input or a node's output, once per graph. A subgraph sees the names of
the graphs around it unless it defines them itself; a function sees only its own. Uses are node inputs and outputs,
graph inputs and outputs, value_info, quantization annotations and sharding specs. Source: docs/IR.md of onnx 1.23.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ckptkit.core.errors import CkptError
from ckptkit.format.onnx.native import Frame, Native
from ckptkit.format.onnx.wire import LENGTH, Span, Wire

USE, DEFINITION, BODY = "use", "definition", "body"

# Message → field number → what stands there: a name that is used or defined, a body with its own names
# (`body KIND`), or a message that holds more of them.
_MENTIONS: dict[str, dict[int, str]] = {
    "model": {7: "body graph", 20: "training", 25: "body function"},
    "graph": {
        1: "node",
        5: "tensor",
        11: "input",
        12: "output",
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
    "output": {1: USE},
    "value": {1: USE},
    "annotation": {1: USE, 2: "pair"},
    "pair": {2: USE},
    "device": {2: "sharding"},
    "sharding": {1: USE},
}


@dataclass(frozen=True, slots=True)
class Mention:
    """A name where it stands: field `number` at `span` of the message `frame`, which is of this `kind`."""

    name: str
    kind: str
    defines: bool
    frame: Frame
    span: Span
    number: int


@dataclass(slots=True, eq=False)
class Body:
    """A graph or function: the names it defines, and every place that mentions one."""

    frame: Frame
    outer: "Body | None"
    scope: str
    is_function: bool = False
    defined: set[str] = field(default_factory=set)
    mentions: list[Mention] = field(default_factory=list)
    names: Mapping[str, str] = field(default_factory=dict)
    uses: Mapping[str, str] = field(default_factory=dict)

    def definer(self, name: str) -> "Body | None":
        """The body that defines what `name` means here."""
        body: Body | None = self
        while body is not None and name not in body.defined:
            body = body.outer
        return body


def bodies(wire: Wire, native: Native) -> list[Body]:
    """Every graph and function with the names it mentions, outer ones first.

    Raises CkptError `onnx-rename` for a model with training info, which names things in ways of its own.
    """
    model = Frame(Span(-1, 0, wire.size), None)
    found: list[Body] = []
    waiting: list[tuple[str, Frame | None, Span, Body | None]] = [("model", None, model.span, None)]
    while waiting:
        kind, parent, span, body = waiting.pop()
        frame = model if kind == "model" else Frame(span, parent)
        if kind.startswith(BODY):
            kind = kind.removeprefix("body ")
            inner = kind == "function" or (body is not None and body.is_function)
            body = Body(frame, body, native.scopes[span.at], inner)
            found.append(body)
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
                name = wire.read(place.start, place.end).decode()
                if name:
                    body.mentions.append(Mention(name, kind, what == DEFINITION, frame, place, key >> 3))
                    if what == DEFINITION:
                        body.defined.add(name)
            else:
                waiting.append((what, None if kind == "model" else frame, place, body))
    return found

"""Weights stored in another float type than the graph computes with, and Cast nodes that make up for it.

A weight `w` of float32 that is stored as float16 keeps its name; a Cast node gives its users `w.float32`, or a name
like it that is free. Inputs, outputs and everything between them stay as they are. Where Cast nodes are a weight's
only users, as after that, none is added, and those that would do nothing any more are taken out: going back gives the
old graph.

Not touched: what is an input or output of its graph, sparse, an attribute other than a Constant's `value`, in a
function or beside training info, and what has fewer than 256 values, where a node would cost more than it saves.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from ckptkit.core.budgets import DEFAULT_BUDGETS
from ckptkit.core.dtypes import DType
from ckptkit.core.errors import CkptError
from ckptkit.core.graph import TensorGraph
from ckptkit.format.onnx.mentions import Body, Mention, bodies
from ckptkit.format.onnx.native import Frame, Native, Stored
from ckptkit.format.onnx.patch import Edit
from ckptkit.format.onnx.schema import ATTRIBUTE, NODE
from ckptkit.format.onnx.wire import Wire, encode_field

SMALLEST = 256  # values
_STANDARD = ("", "ai.onnx")
# The opset from which on Cast takes a type, by its number. Source: docs/Changelog.md of onnx 1.23
_SINCE = {"float64": 6, "float32": 6, "float16": 6, "bfloat16": 13, "float8_e4m3fn": 19, "float8_e5m2": 19}
_NODE, _NAME, _INT = 1, 3, 2  # GraphProto.node, NodeProto.name; AttributeProto.type of an integer


_User = tuple[Body, Mention]
_Users = dict[tuple[Body | None, str], list[_User]]


@dataclass(frozen=True, slots=True)
class Recast:
    """What storing weights otherwise does to a graph.

    Attributes:
        uses: scope → name in the file → the name that its users are given.
        gone: nodes, and declared types, that are taken out.
        edits: nodes that are put in.
    """

    uses: dict[str, dict[str, str]] = field(default_factory=dict)
    gone: set[Frame] = field(default_factory=set)
    edits: list[Edit] = field(default_factory=list)


def fixed(graph: TensorGraph, dtype: DType) -> frozenset[str]:
    """Names of the weights of an ONNX graph that cannot be stored as `dtype`, or had better not be.

    Raises CkptError `onnx-opset` when the graph's operators know no Cast from it.
    """
    native = graph.native
    assert isinstance(native, Native)
    opset = graph.origin.details["opsets"].get("ai.onnx", 0)
    since = _SINCE.get(dtype.name)
    if since is None or opset < since:
        raise CkptError(
            "onnx-opset",
            f"opset {opset} cannot cast from {dtype}" + (f", which takes opset {since}" if since else ""),
            graph.origin.path,
            "choose another --dtype, or export the model with a newer opset" if since else None,
        )
    if any(routine.op == "training" for routine in native.routines):
        return frozenset(graph)
    with native.file.open() as reader:
        found = bodies(Wire(reader, DEFAULT_BUDGETS), native)
    by_scope = _by_scope(found)
    interface = {
        (body.definer(mention.name), mention.name)
        for body in found
        for mention in body.mentions
        if mention.kind in ("input", "output")
    }
    # Long lists of nodes without a name are called by the node's place, which must stay.
    rigid = {s.scope for s in native.tensors.values() if s.frame is None and s.tensor.kind == "attribute"}
    free = set()
    for name in graph:
        stored = native.tensors.get(graph.renamed.get(name, name))
        body = by_scope.get(stored.scope) if stored else None
        if (
            stored
            and body
            and stored.scope not in rigid
            and _is_value(stored)
            and stored.tensor.size >= SMALLEST
        ):
            local = graph.renamed.get(name, name).removeprefix(stored.scope)
            if (body, local) not in interface:
                free.add(name)
    return frozenset(graph) - free


def recast(
    wire: Wire,
    native: Native,
    found: Iterable[Body],
    changed: Mapping[str, DType],
    renamed: Mapping[str, str],
) -> Recast:
    """How the graph changes when these tensors (by name in the file) are stored as another type.

    `renamed` is current name → name in the file.
    """
    found = list(found)
    by_scope = _by_scope(found)
    now = {old: new for new, old in renamed.items()}
    taken = {mention.name for body in found for mention in body.mentions}
    taken.update(now.get(name, name).removeprefix(native.tensors[name].scope) for name in native.tensors)
    used: _Users = {}
    for body in found:
        for mention in body.mentions:
            if not mention.defines:
                used.setdefault((body.definer(mention.name), mention.name), []).append((body, mention))
    done = Recast()
    leading: dict[str, list[bytes]] = {}
    for name, dtype in changed.items():
        stored = native.tensors[name]
        home, local = by_scope[stored.scope], name.removeprefix(stored.scope)
        new = now.get(name, name).removeprefix(stored.scope)
        users = used.get((home, local), [])
        nodes = [user for user in users if user[1].kind == "node"]
        if all(_cast_to(wire, mention.frame) for _, mention in nodes):
            done.gone.update(mention.frame for _, mention in users if mention.kind == "value")
            for body, mention in nodes:
                output = _output(wire, mention.frame)
                idle = body is home and _cast_to(wire, mention.frame) == dtype.onnx
                if idle and _reach(used.get((home, output), []), home, {local, new}):
                    done.gone.add(mention.frame)
                    done.uses.setdefault(home.scope, {})[output] = new
            continue
        was = stored.tensor.dtype
        wide = f"{new}.{was}"
        while wide in taken:
            wide += "_"
        taken.add(wide)
        done.uses.setdefault(home.scope, {})[local] = wide
        node = encode_field(_NODE, _cast_node(new, wide, was))
        if stored.tensor.kind == "constant":
            at = _node_of(stored.frame)
            done.edits.append(Edit(home.frame, at.span.end, at.span.end, (node,)))
        else:
            leading.setdefault(home.scope, []).append(node)
    for scope, added in leading.items():
        frame = by_scope[scope].frame
        fields = wire.fields(frame.span.start, frame.span.end)
        place = next((span.at for key, span in fields if key >> 3 == _NODE), frame.span.end)
        done.edits.append(Edit(frame, place, place, (b"".join(added),)))
    done.edits.extend(Edit(frame.parent, frame.span.at, frame.span.end) for frame in done.gone)
    moved = {by_scope[native.tensors[name].scope] for name in changed}
    done.edits.extend(_naming(wire, native, found, moved))
    return done


def _naming(wire: Wire, native: Native, found: Iterable[Body], moved: set[Body]) -> Iterator[Edit]:
    """Name the nodes that were called by operator and place, as what they hold has names that begin so.

    More or fewer nodes before them would change that.
    """
    labels: dict[Frame, str] = {}
    for body in found:
        if body.outer in moved and not body.is_function:
            label = body.scope.removeprefix(body.outer.scope).rsplit("/", 2)[0]  # LABEL/ATTRIBUTE/
            labels[_node_of(body.frame)] = label
    scopes = {body.scope for body in moved}
    for name, stored in native.tensors.items():
        if stored.scope in scopes and stored.tensor.kind == "attribute" and stored.frame is not None:
            label = name.removeprefix(stored.scope)
            span = stored.frame.parent.span if stored.frame.parent else stored.frame.span
            attribute = wire.message(span.start, span.end, ATTRIBUTE).get("name", "")
            labels[_node_of(stored.frame)] = label[: label.rfind(f".{attribute}")]
    for node, label in labels.items():
        fields = list(wire.fields(node.span.start, node.span.end))
        named = next((at for key, at in fields if key >> 3 == _NAME), None)
        if named is None:
            place = next((at.at for key, at in fields if key >> 3 > _NAME), node.span.end)
            yield Edit(node, place, place, (encode_field(_NAME, label.encode("utf-8", "replace")),))
        elif wire.read(named.start, named.end) != label.encode("utf-8", "replace"):
            yield Edit(node, named.at, named.end, (encode_field(_NAME, label.encode("utf-8", "replace")),))


def _reach(users: list[_User], home: Body, names: set[str]) -> bool:
    """Whether all users of a value of `home` could use `home`'s own value of these names; an output's name is fixed."""
    for body, mention in users:
        if mention.kind == "output":
            return False
        inner: Body | None = body
        while inner is not None and inner is not home:
            if not names.isdisjoint(inner.defined):
                return False
            inner = inner.outer
    return True


def _by_scope(found: Iterable[Body]) -> dict[str, Body]:
    return {body.scope: body for body in found if not body.is_function}


def _is_value(stored: Stored) -> bool:
    """Whether it is an initializer, or the `value` of a Constant."""
    kind = stored.tensor.kind
    dense = kind in ("initializer", "constant") and not stored.tensor.note.startswith("sparse")
    return dense and stored.frame is not None


def _node_of(frame: Frame | None) -> Frame:
    """The node that holds a tensor or graph: TensorProto or GraphProto, AttributeProto, NodeProto."""
    assert frame is not None
    assert frame.parent is not None
    assert frame.parent.parent is not None
    return frame.parent.parent


def _cast_to(wire: Wire, frame: Frame) -> int | None:
    """The type that a node casts to; None for any other node."""
    message = wire.message(frame.span.start, frame.span.end, NODE)
    if message.get("op_type") != "Cast" or message.get("domain", "") not in _STANDARD:
        return None
    attributes = (wire.message(at.start, at.end, ATTRIBUTE) for at in message.get("attribute", ()))
    return next((a.get("i") for a in attributes if a.get("name") == "to"), None)


def _output(wire: Wire, frame: Frame) -> str:
    """What a node with one output gives."""
    outputs: list[str] = wire.message(frame.span.start, frame.span.end, NODE).get("output", [])
    return outputs[0] if outputs else ""


def _cast_node(source: str, target: str, dtype: DType) -> bytes:
    """NodeProto: `target = Cast(source)`, named as its output."""
    assert dtype.onnx is not None
    to = encode_field(1, b"to") + encode_field(3, dtype.onnx) + encode_field(20, _INT)
    name = target.encode("utf-8", "replace")
    return b"".join(
        encode_field(number, value)
        for number, value in (
            (1, source.encode("utf-8", "replace")),
            (2, name),
            (3, name),
            (4, b"Cast"),
            (5, to),
        )
    )

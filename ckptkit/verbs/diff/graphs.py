"""What differs outside the tensors: metadata, other values, and the structure of ONNX graphs.

Nodes are recognised by name, those without a name of their own by their first output; what lies in subgraphs by
their path. Constants are tensors and compared as such.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ckptkit.core.graph import ArgumentName, Node, Subgraph, TensorGraph, TensorName, Value
from ckptkit.match.usage import routines
from ckptkit.verbs.diff.result import Other


def is_graph(graph: TensorGraph) -> bool:
    """Whether the checkpoint says how to compute something, if only what to give back; not weights alone."""
    return graph.origin.format == "onnx" or bool(graph.nodes)


def others(a: TensorGraph, b: TensorGraph) -> Iterator[Other]:
    """The differences, those of the graph first."""
    if is_graph(a) and is_graph(b):
        yield from _changes("opset", _opsets(a), _opsets(b))
        for what, theirs, ours in (("input", a.inputs, b.inputs), ("output", a.outputs, b.outputs)):
            yield from _changes(what, _values(theirs), _values(ours))
            yield from _order(f"{what}s", theirs, ours)
        yield from _nodes(_flat(a.nodes), _flat(b.nodes))
        yield from _nodes(_flat(routines(a)), _flat(routines(b)))
    elif is_graph(a) or is_graph(b):
        yield Other("graph", "", _count(a), _count(b), counts=False)
    yield from _changes("metadata", a.metadata, b.metadata, counts=False)
    yield from _changes("object", _objects(a), _objects(b), counts=False)


def facts(graph: TensorGraph) -> Iterator[tuple[str, str, Any]]:
    """Everything of one checkpoint that `others` compares: what it is, its name, its value."""
    parts: tuple[tuple[str, Mapping[str, Any]], ...] = (
        ("opset", _opsets(graph)),
        ("input", _values(graph.inputs)),
        ("output", _values(graph.outputs)),
        ("node", _flat(graph.nodes)),
        ("node", _flat(routines(graph))),
        ("metadata", graph.metadata),
        ("object", _objects(graph)),
    )
    for what, named in parts:
        for name, value in named.items():
            yield what, name, value


def _changes(
    what: str, a: Mapping[str, Any], b: Mapping[str, Any], *, counts: bool = True
) -> Iterator[Other]:
    for name in dict.fromkeys((*a, *b)):
        x, y = a.get(name), b.get(name)
        if repr(x) != repr(y):  # as text NaN equals NaN, and 1 is not 1.0
            yield Other(what, name, x, y, counts)


def _order(name: str, a: Sequence[Value], b: Sequence[Value]) -> Iterator[Other]:
    """Those in both, where they do not follow each other in the same order."""
    common = {v.name for v in a} & {v.name for v in b}
    theirs, ours = ([v.name for v in values if v.name in common] for values in (a, b))
    if theirs != ours:
        yield Other("order", name, theirs, ours)


def _opsets(graph: TensorGraph) -> dict[str, Any]:
    return dict(graph.origin.details.get("opsets", {}))


def _values(values: Sequence[Value]) -> dict[str, Any]:
    return {v.name: {"dtype": v.dtype, "shape": None if v.shape is None else list(v.shape)} for v in values}


def _count(graph: TensorGraph) -> dict[str, int] | None:
    return {"nodes": len(graph.nodes)} if is_graph(graph) else None


def _objects(graph: TensorGraph) -> dict[str, Any]:
    return {leaf.path: {"type": leaf.type, "value": leaf.value} for leaf in graph.objects}


def _flat(nodes: tuple[Node, ...]) -> dict[str, dict[str, Any]]:
    """Every node of a graph and of its subgraphs: path → what it is, as plain values."""
    found: dict[str, dict[str, Any]] = {}
    bodies = [("", nodes)]
    for path, body in bodies:  # grows while it runs
        names = Counter(node.name for node in body)
        for index, node in enumerate(body):
            if node.op == "Constant" and any(isinstance(v, TensorName) for v in node.attributes.values()):
                continue
            label = node.name if node.name and names[node.name] == 1 else next(filter(None, node.outputs), "")
            key = f"{path}{label or f'{node.op}_{index}'}"
            key = key if key not in found else f"{key}#{index}"
            attributes = {}
            for name, value in node.attributes.items():
                several = value if isinstance(value, list) else [value]
                attributes[name] = [_plain(item) for item in several] if several is value else _plain(value)
                for number, item in enumerate(several):
                    if isinstance(item, Subgraph):
                        inner = f"{name}.{number}" if several is value else name
                        bodies.append((f"{key}/{inner}/", item.nodes))
            found[key] = {
                "op": f"{node.domain}::{node.op}" if node.domain not in ("", "ai.onnx") else node.op,
                "inputs": list(node.inputs),
                "outputs": list(node.outputs),
                "attributes": attributes,
            }
    return found


def _plain(value: Any) -> Any:
    """An attribute's value for comparing and for JSON; a tensor is compared by itself, under its name."""
    match value:
        case TensorName():
            return "tensor"
        case ArgumentName():
            return {"argument": str(value)}
        case Subgraph():
            return {"inputs": [v.name for v in value.inputs], "outputs": [v.name for v in value.outputs]}
        case tuple():
            return [_plain(item) for item in value]
        case bytes():
            return value.decode("latin-1")
    return value


def _nodes(a: dict[str, dict[str, Any]], b: dict[str, dict[str, Any]]) -> Iterator[Other]:
    for name in dict.fromkeys((*a, *b)):
        x, y = a.get(name), b.get(name)
        if x is None or y is None or x["op"] != y["op"]:
            yield Other("node", name, x, y)
            continue
        for part in ("inputs", "outputs"):
            if x[part] != y[part]:
                yield Other(part, name, x[part], y[part])
        for change in _changes("attribute", x["attributes"], y["attributes"]):
            yield Other("attribute", f"{name}.{change.name}", change.a, change.b)

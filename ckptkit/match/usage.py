"""What the operators of an ONNX graph do with its tensors: which use which, which nothing uses.

Operators that only pass a weight on in another type or layout (Cast, Transpose, …) stand for those that use what
they give. Subgraphs see the tensors of the graphs around them; functions see their own alone.
"""

import re
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ckptkit.core.dtypes import BY_ONNX
from ckptkit.core.graph import Node, Subgraph, TensorGraph, TensorName
from ckptkit.core.tensor import Tensor

# Operators that give their first input again, in another type or layout.
_CARRIERS = frozenset(
    ("Cast", "CastLike", "DequantizeLinear", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
)  # fmt: skip
# Names that exporters give to what they compute: torch's older (onnx::Conv_12, 12, /layer/Add_output_0) and newer one
# (val_12, conv.weight_bias), tf2onnx (const_fold_opt__12).
_MADE_UP = re.compile(
    r"(onnx::\w+_)?\d+|val_\d+|/.*|.*_output_\d+|.*\.weight_bias|const_fold_opt__\d+", re.ASCII
)


@dataclass(frozen=True, slots=True)
class Usage:
    """What the operators do with the tensors.

    Attributes:
        operators: operators that use a tensor, `Conv` or `Gather, MatMul` → (tensors, bytes), the most bytes first.
        casts: (dtype stored, dtype it is cast to) → number of tensors that a Cast gives to its users.
        folded: tensors that the exporter named: weights that it folded, transposed or joined.
        constants: numbers, shapes and indices: what is no tensor of floats.
        unused: tensors that no node uses and that are no output.
    """

    operators: Mapping[str, tuple[int, int]]
    casts: Mapping[tuple[str, str], int]
    folded: tuple[str, ...]
    constants: tuple[str, ...]
    unused: tuple[str, ...]


def usage(graph: TensorGraph) -> Usage | None:
    """How the tensors of a graph are used; None where there is no graph."""
    if not graph.nodes:
        return None
    seen = _Seen(graph.tensors)
    seen.walk(graph)
    shares: dict[str, list[int]] = {}
    unused = []
    for name, tensor in graph.tensors.items():
        base = name.removesuffix(".values").removesuffix(".indices")
        by = (
            seen.users.get(name) or seen.users.get(base) or seen.carriers.get(name) or seen.carriers.get(base)
        )
        if not by:
            unused.append(name)
            continue
        share = shares.setdefault(", ".join(by), [0, 0])
        share[0] += 1
        share[1] += tensor.nbytes
    tensors = graph.tensors
    numbers = {n for n, t in tensors.items() if t.dtype.kind not in ("float", "quantized") or t.size == 1}
    named = {n for n in tensors if _MADE_UP.fullmatch(n.rpartition("/")[2] or n) or _MADE_UP.fullmatch(n)}
    return Usage(
        operators={op: (n, width) for op, (n, width) in sorted(shares.items(), key=lambda s: -s[1][1])},
        casts=Counter((tensors[name].dtype.name, to) for name, to in seen.casts.items()),
        folded=tuple(n for n in tensors if n in named and n not in numbers),
        constants=tuple(n for n in tensors if n in numbers),
        unused=tuple(unused),
    )


def routines(graph: TensorGraph) -> tuple[Node, ...]:
    """The functions and training info of an ONNX graph, each as a node with its bodies among its attributes."""
    if graph.origin.format != "onnx":
        return ()
    from ckptkit.format.onnx.native import Native

    return graph.native.routines if isinstance(graph.native, Native) else ()


class _Seen:
    """What a walk over the nodes of a graph finds out about its tensors."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors
        self.users: dict[str, dict[str, None]] = {}  # tensor → operators, in order
        self.carriers: dict[str, dict[str, None]] = {}
        self.casts: dict[str, str] = {}  # tensor → dtype

    def walk(self, graph: TensorGraph) -> None:
        """All nodes, those of subgraphs, functions and training info included; no recursion."""
        top = _Body(Subgraph("", graph.nodes, graph.inputs, graph.outputs), None)
        waiting = deque([top])
        for routine in routines(graph):
            bodies = (value for value in routine.attributes.values() if isinstance(value, Subgraph))
            waiting.extend(_Body(body, None if routine.op == "function" else top) for body in bodies)
        while waiting:
            body = waiting.popleft()
            for node in body.graph.nodes:
                waiting.extend(self._node(body, node))
            for output in body.graph.outputs:
                if name := self._meant(body, output.name):
                    self.users.setdefault(name, {}).setdefault("output")

    def _node(self, body: "_Body", node: Node) -> Iterator["_Body"]:
        """Note what a node uses; the bodies in it."""
        standard = node.domain in ("", "ai.onnx")
        op = node.op if standard else f"{node.domain}.{node.op}"
        held = [self._meant(body, name) for name in node.inputs]
        if standard and node.op in _CARRIERS and held and held[0] and node.outputs:
            body.carried[node.outputs[0]] = held[0]
            self.carriers.setdefault(held[0], {})[op] = None
            to = BY_ONNX.get(node.attributes.get("to", 0)) if node.op == "Cast" else None
            if to and held[0] in self.tensors:
                self.casts.setdefault(held[0], to.name)
            held = held[1:]
        for name in filter(None, held):
            self.users.setdefault(name, {})[op] = None
        for value in node.attributes.values():
            for part in value if isinstance(value, list) else (value,):
                if isinstance(part, Subgraph):
                    yield _Body(part, body)
                elif isinstance(part, TensorName) and not (standard and node.op == "Constant"):
                    self.users.setdefault(part, {})[op] = None

    def _meant(self, body: "_Body", name: str) -> str | None:
        """The tensor that a name stands for in a graph, or whose elements it holds; a sparse one without its part."""
        around: _Body | None = body if name else None
        while around is not None:
            if name in around.carried:
                return around.carried[name]
            full = around.graph.scope + name
            if full in self.tensors or f"{full}.values" in self.tensors:
                return full
            if name in around.defined:
                return None
            around = around.outer
        return None


@dataclass(slots=True, eq=False)
class _Body:
    """A graph that is walked: the names it defines, and which of them hold the elements of which tensor."""

    graph: Subgraph
    outer: "_Body | None"
    defined: frozenset[str] = frozenset()
    carried: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        outputs = (name for node in self.graph.nodes for name in node.outputs)
        self.defined = frozenset((*outputs, *(value.name for value in self.graph.inputs)))

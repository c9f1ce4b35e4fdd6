"""Another number of classes: what of a graph changes when its last layer is exchanged for a wider or narrower one.

The layer is a Gemm, a MatMul (with an Add) or a Conv whose weight and bias differ from the new ones in the number of
outputs alone. From it the classes are followed to the outputs, operator by operator: an operator passes them on along
an axis that is known, or reduces them, or it is refused, with the reason. A shape that is written into the graph as a
number (a Reshape to 1000 classes) would be wrong, so it is refused too. Source: operator specifications of onnx 1.23.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ckptkit.core.errors import CkptError
from ckptkit.core.graph import Node, Subgraph, TensorGraph

# One input, the same shape out, elements of the classes' axis treated alike.
_SAME = frozenset((
    "Abs", "Cast", "CastLike", "Celu", "Clip", "Dropout", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish",
    "Hardmax", "Identity", "LeakyRelu", "Log", "LogSoftmax", "Mish", "Neg", "Reciprocal", "Relu", "Selu", "Sigmoid",
    "Softmax", "Softplus", "Softsign", "Sqrt", "Tanh",
))  # fmt: skip
_BINARY = frozenset((
    "Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum", "Mean", "Greater", "Less", "GreaterOrEqual",
    "LessOrEqual", "Equal",
))  # fmt: skip
_POOLS = frozenset(("AveragePool", "MaxPool", "GlobalAveragePool", "GlobalMaxPool"))
_REDUCING = frozenset((
    "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSumExp",
    "ReduceSumSquare", "ArgMax", "ArgMin",
))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Along:
    """Where the classes of a value are: axis counted from the end (-1 the last), its rank if known, and whether all
    axes after it are of size 1."""

    axis: int
    rank: int | None = None
    ones: bool = False

    @property
    def place(self) -> int | None:
        """The axis counted from the front."""
        return None if self.rank is None else self.rank + self.axis


class _Stuck(Exception):
    """Why an operator does not work with another number of classes."""


def resized(base: TensorGraph, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, int]]:
    """Value of the main graph → (axis from the end, new size), for all that an exchange of the last layer changes.

    `shapes` gives the new shapes of the layer's weight and bias. Raises CkptError `head-change`.
    """
    old, new = _classes(base, shapes)
    follow = _Follow(base, {name: _axis(base[name].shape, shape) for name, shape in shapes.items()}, old, new)
    for node in base.nodes:
        try:
            follow.step(node)
        except _Stuck as stuck:
            what = f"{node.op} {node.name!r}" if node.name else node.op
            raise CkptError(
                "head-change", f"{what} {stuck}", base.origin.path, "export the new model"
            ) from None
    idle = [name for name in shapes if name not in follow.used]
    if idle:
        raise CkptError(
            "head-change",
            f"{idle[0]!r} is no weight of a last layer",
            base.origin.path,
            "export the new model",
        )
    for value in base.outputs:
        along = follow.along.get(value.name)
        if (
            along
            and value.shape
            and isinstance(value.shape[along.axis], int)
            and value.shape[along.axis] != old
        ):
            what = f"the output {value.name!r} has the shape {list(value.shape)}, where {old} classes were expected"
            raise CkptError("head-change", what, base.origin.path, "export the new model")
    return {name: (along.axis, new) for name, along in follow.along.items()}


def _classes(base: TensorGraph, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
    """The number of classes before and after. Raises CkptError `transplant-shape`."""
    pairs = set()
    for name, shape in shapes.items():
        was = base[name].shape
        if len(shape) == len(was) and sum(a != b for a, b in zip(was, shape, strict=True)) == 1:
            axis = _axis(was, shape)
            pairs.add((was[axis], shape[axis]))
        else:
            pairs.add((0, 0))
    if len(pairs) != 1 or (0, 0) in pairs or any(new < 1 for _, new in pairs):
        what = ", ".join(
            f"{name!r} {list(base[name].shape)} → {list(shape)}" for name, shape in shapes.items()
        )
        raise CkptError(
            "transplant-shape", f"more changes than the number of classes: {what}", base.origin.path
        )
    return pairs.pop()


def _axis(was: Sequence[int], shape: Sequence[int]) -> int:
    """The axis that differs, from the end."""
    return next(k for k, (a, b) in enumerate(zip(was, shape, strict=True)) if a != b) - len(was)


class _Follow:
    """Values that have the classes along an axis, as far as the nodes have been gone through."""

    def __init__(self, base: TensorGraph, weights: Mapping[str, int], old: int, new: int) -> None:
        self.base = base
        self.old, self.new = old, new
        self.along = {name: Along(axis, len(base[name].shape)) for name, axis in weights.items()}
        self.weights = set(weights)  # these, and what is made of them alone
        self.used: set[str] = set()

    def step(self, node: Node) -> None:
        """Follow the classes through one node. Raises _Stuck."""
        if any(name in self.along for name in _captured(node)):
            raise _Stuck("uses the classes within a subgraph")
        here = [name for name in node.inputs if name in self.along]
        if not here:
            return
        rule = _RULES.get(node.op) if node.domain in ("", "ai.onnx") else None
        if rule is None:
            raise _Stuck("is not known to work with another number of classes")
        found = rule(self, node)
        if set(here) <= self.weights and node.op in ("Transpose", "Identity", "Cast"):
            self.weights.update(node.outputs[:1])
        self.used.update(here)
        if found is not None:
            outputs = node.outputs if node.op == "Dropout" else node.outputs[:1]
            self.along.update((name, found) for name in outputs if name)

    def only(self, node: Node, index: int = 0) -> Along:
        """Where the classes are in one input, which must be the only one that has them."""
        if any(name in self.along for k, name in enumerate(node.inputs) if k != index):
            raise _Stuck("takes the classes where it cannot")
        return self.along[node.inputs[index]]

    def constant(self, name: str) -> Any:
        """The values of a constant. Raises _Stuck."""
        if name not in self.base:
            raise _Stuck(f"takes {name!r}, which is computed")
        return self.base[name].numpy()

    def same(self, node: Node) -> Along:
        return self.only(node)

    def gemm(self, node: Node) -> Along:
        one = node.attributes.get("transB", 0)
        return self._layer(node, Along(-2 if one else -1, 2), Along(-1, 2))

    def matmul(self, node: Node) -> Along:
        return self._layer(node, Along(-1, 2), Along(-1))

    def conv(self, node: Node) -> Along:
        weight = self.along.get(node.inputs[1])
        rank = weight.rank if weight else None
        if node.attributes.get("group", 1) != 1 or rank is None:
            raise _Stuck("comes after the layer, or is one of groups")
        return self._layer(node, Along(-rank, rank), Along(1 - rank, rank))

    def _layer(self, node: Node, wanted: Along, out: Along) -> Along:
        """The last layer itself: its weight, and its bias if it has one, in the new size."""
        weight = node.inputs[1]
        if node.inputs[0] in self.along or weight not in self.weights or self.along[weight] != wanted:
            raise _Stuck("takes the classes as its inputs, not its outputs: this is no last layer")
        if len(node.inputs) > 2 and node.inputs[2]:
            self._beside(node.inputs[2], -1)
        return out

    def binary(self, node: Node) -> Along:
        axes = {along.axis for name in node.inputs for along in [self.along.get(name)] if along}
        ranks = [along.rank for name in node.inputs for along in [self.along.get(name)] if along]
        if len(axes) != 1:
            raise _Stuck("joins classes along different axes")
        if all(name in self.weights for name in node.inputs if name in self.along):
            raise _Stuck("adds the weight to what has no classes")
        (axis,) = axes
        for name in node.inputs:
            self._beside(name, axis)
            if name not in self.along:
                ranks.append(len(self.base[name].shape))
        return Along(axis, None if None in ranks else max(r for r in ranks if r is not None))

    def _beside(self, name: str, axis: int) -> None:
        """What is combined with the classes has them along the same axis, or is of size 1 there."""
        if name in self.along:
            if self.along[name].axis != axis:
                raise _Stuck("joins classes along different axes")
            self.used.add(name)
            return
        if name not in self.base:
            raise _Stuck(f"combines the classes with {name!r}, which is computed")
        shape = self.base[name].shape
        if len(shape) >= -axis and shape[axis] != 1:
            raise _Stuck(f"has {name!r} for {shape[axis]} classes, which is not replaced")

    def pool(self, node: Node) -> Along:
        along = self.only(node)
        if along.place != 1:
            raise _Stuck("pools the classes")
        return Along(along.axis, along.rank, node.op.startswith("Global"))

    def reduce(self, node: Node) -> Along | None:
        along = self.only(node)
        if node.op in ("ArgMax", "ArgMin"):
            axes: list[int] | None = [node.attributes.get("axis", 0)]
        elif len(node.inputs) > 1 and node.inputs[1]:
            axes = self.constant(node.inputs[1]).reshape(-1).tolist()
        else:
            axes = list(node.attributes.get("axes", ())) or None
        if axes is None:
            return None
        if along.rank is None and any(axis >= 0 for axis in axes):
            raise _Stuck("reduces an axis of a value of unknown rank")
        ends = [axis if axis < 0 else axis - (along.rank or 0) for axis in axes]
        if along.axis in ends:
            return None
        if node.attributes.get("keepdims", 1):
            return Along(along.axis, along.rank)
        after = sum(axis > along.axis for axis in ends)
        return Along(along.axis + after, None if along.rank is None else along.rank - len(ends))

    def transpose(self, node: Node) -> Along:
        along = self.only(node)
        order = node.attributes.get("perm")
        if order is None:
            if along.rank is None:
                raise _Stuck("reverses the axes of a value of unknown rank")
            order = tuple(reversed(range(along.rank)))
        return Along(order.index(len(order) + along.axis) - len(order), len(order))

    def flatten(self, node: Node) -> Along:
        along = self.only(node)
        if node.attributes.get("axis", 1) != 1 or along.place != 1 or not (along.ones or along.rank == 2):
            raise _Stuck("merges the classes with another axis")
        return Along(-1, 2)

    def reshape(self, node: Node) -> Along:
        along = self.only(node)
        shape = self.constant(node.inputs[1]).reshape(-1).tolist()
        if self.old in shape:
            raise _Stuck(f"has the number of classes, {self.old}, written into its shape {shape}")
        if along.place == 1 and (along.ones or along.rank == 2) and len(shape) == 2 and shape[1] == -1:
            return Along(-1, 2)
        raise _Stuck(f"gives the classes the shape {shape}")

    def squeeze(self, node: Node) -> Along:
        along = self.only(node)
        axes = self._axes(node)
        if along.rank is None:
            if all(axis < along.axis for axis in axes):
                return along
            raise _Stuck("changes the axes of a value of unknown rank")
        if node.op == "Unsqueeze":
            rank = along.rank + len(axes)
            added = {axis % rank for axis in axes}
            kept = [place for place in range(rank) if place not in added]
            return Along(kept[along.rank + along.axis] - rank, rank)
        gone = {axis % along.rank for axis in axes}
        if not axes or along.place in gone:
            raise _Stuck("may squeeze the classes")
        return Along(
            along.axis + sum(axis > along.rank + along.axis for axis in gone), along.rank - len(gone)
        )

    def _axes(self, node: Node) -> list[int]:
        if len(node.inputs) > 1 and node.inputs[1]:
            found: list[int] = self.constant(node.inputs[1]).reshape(-1).tolist()
            return found
        return list(node.attributes.get("axes", ()))

    def resize(self, node: Node) -> Along:
        along = self.only(node)
        scales = self.constant(node.inputs[2]).reshape(-1).tolist() if len(node.inputs) == 3 else []
        if along.place is None or len(scales) != along.rank or scales[along.place] != 1:
            raise _Stuck("has the number of classes in its sizes")
        return Along(along.axis, along.rank)

    def topk(self, node: Node) -> None:
        along = self.only(node)
        axis = node.attributes.get("axis", -1)
        if axis != along.axis and axis != along.place:
            raise _Stuck("chooses along another axis than the classes")
        count = int(self.constant(node.inputs[1]).reshape(-1)[0])
        if count > self.new:
            raise _Stuck(f"takes the best {count} of {self.new} classes")


def _captured(node: Node) -> Iterator[str]:
    """Names that the subgraphs of a node use."""
    waiting = [value for value in node.attributes.values() if isinstance(value, Subgraph | list)]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += [part for part in value if isinstance(part, Subgraph)]
            continue
        yield from (output.name for output in value.outputs)
        for inner in value.nodes:
            yield from inner.inputs
            waiting += [v for v in inner.attributes.values() if isinstance(v, Subgraph | list)]


_RULES: dict[str, Callable[[_Follow, Node], Along | None]] = {
    **dict.fromkeys(_SAME, _Follow.same),
    **dict.fromkeys(_BINARY, _Follow.binary),
    **dict.fromkeys(_POOLS, _Follow.pool),
    **dict.fromkeys(_REDUCING, _Follow.reduce),
    "Gemm": _Follow.gemm,
    "MatMul": _Follow.matmul,
    "Conv": _Follow.conv,
    "Transpose": _Follow.transpose,
    "Flatten": _Follow.flatten,
    "Reshape": _Follow.reshape,
    "Squeeze": _Follow.squeeze,
    "Unsqueeze": _Follow.squeeze,
    "Resize": _Follow.resize,
    "TopK": _Follow.topk,
}

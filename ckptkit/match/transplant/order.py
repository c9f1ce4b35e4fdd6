"""Whether the order of a vector is known where its own values do not tell it.

A vector that holds the same values in several places, such as a bias of zeros, could lie in the graph in another order:
exporters reorder the gates of recurrent layers, split fused projections, and compute tables of zeros of their own. What
tells is the layer that uses it: if its matrix is the weight beside the vector, its rows in their order, then so is the
vector.
"""

from collections.abc import Iterable, Iterator

from ckptkit.core.graph import Node, TensorGraph
from ckptkit.core.names import segments
from ckptkit.core.tensor import Tensor
from ckptkit.match.finder import Cast, Expression, Match, Permute, Source, equal
from ckptkit.match.finder.layout import contiguous, movable, strided

_LINEAR = ("Gemm", "Conv", "ConvTranspose")
GATES = (2, 3, 4)  # equal parts that exporters put into another order


def repeats(tensor: Tensor) -> bool:
    """Whether the tensor would be the same with equal parts of its first axis, or its elements, in another order."""
    axes = [n for n in tensor.shape if n != 1]
    if not axes or not movable(tensor):
        return False
    if len(axes) == 1 and equal(strided(tensor, [tensor.size], [0]), tensor):
        return True
    return any(_has_equal_parts(tensor, count) for count in GATES if axes[0] % count == 0)


def _has_equal_parts(tensor: Tensor, count: int) -> bool:
    size = tensor.size // count
    parts = [strided(tensor, [size], contiguous([size]), part * size) for part in range(count)]
    return any(equal(one, other) for place, one in enumerate(parts) for other in parts[:place])


def vouched(pairs: Iterable[Match], origin: TensorGraph, base: TensorGraph) -> set[str]:
    """Tensors of the graph that are a vector of the checkpoint as it is, because the weight beside it is so as well."""
    plain = {match.target: name for match in pairs if (name := _plain(match, base)) is not None}
    found = set()
    for weight, bias in _layers(base):
        mine, matrix = plain.get(bias, ""), plain.get(weight, "")
        if not mine or not matrix or len(origin[mine].shape) != 1 or len(origin[matrix].shape) < 2:
            continue
        if _module(mine) == _module(matrix) and not repeats(origin[matrix]):
            found.add(bias)
    return found


def _plain(match: Match, base: TensorGraph) -> str | None:
    """The source of a match whose rows lie in their order; a vector has to be the whole of it."""
    inner: Expression = match.expression
    while isinstance(inner, Cast) or (isinstance(inner, Permute) and len(base[match.target].shape) > 1):
        inner = inner.of
    return inner.name if isinstance(inner, Source) else None


def _layers(base: TensorGraph) -> Iterator[tuple[str, str]]:
    """The weight and the bias of each linear layer or convolution."""
    made: dict[str, Node] = {output: node for node in base.nodes for output in node.outputs}
    for node in base.nodes:
        if node.op in _LINEAR and len(node.inputs) > 2:
            yield node.inputs[1], node.inputs[2]
        elif node.op == "Add":
            for one, other in (node.inputs, node.inputs[::-1]):
                before = made.get(one)
                if before is not None and before.op in (*_LINEAR, "MatMul"):
                    yield before.inputs[1], other


def _module(name: str) -> str:
    return "".join(segments(name)[:-1])

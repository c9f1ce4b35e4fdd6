"""The biases of recurrent operators, whose order the weights tell.

ONNX packs both biases of an LSTM, GRU or RNN into one input B: for each direction first those of W, then those of R,
and their gates in the order of these (onnx.ai, operators LSTM, GRU and RNN). Biases that are zeros, or ones for one
gate and zeros for the others, could lie in any order as far as their bytes go. W and R were found by content, so
the order of B is theirs.
"""

from collections.abc import Iterator, Mapping, Sequence

from ckptkit.core.graph import TensorGraph
from ckptkit.core.names import segments
from ckptkit.match.finder import Concat, Expression, Match, Reshape, Slice, Source, Stack, Take, evaluate

PACKED = "in the order of the weights of the operator"
_OPERATORS = ("LSTM", "GRU", "RNN")
_W, _R, _B = 1, 2, 3  # places among the inputs


def packed(pairs: Sequence[Match], origin: TensorGraph, base: TensorGraph) -> Iterator[Match]:
    """How B of each recurrent operator is made of the biases beside the sources of W and R, proved on the bytes."""
    known = {match.target: match for match in pairs}
    for node in base.nodes:
        names = node.inputs[_W : _B + 1]
        if node.op not in _OPERATORS or node.domain not in ("", "ai.onnx") or len(names) < 3:
            continue
        bias = names[_B - _W]
        sides = [_vectors(known[name], origin) for name in names[: _B - _W] if name in known]
        if bias not in base or len(sides) < 2 or not all(sides) or len(sides[0]) != len(sides[1]):
            continue
        both = [Concat((*_parts(w), *_parts(r)), 0) for w, r in zip(*sides, strict=True)]
        made: Expression = Stack(tuple(both), 0) if len(both) > 1 else Reshape(both[0], base[bias].shape)
        match = Match(bias, made, "stack" if len(both) > 1 else "concat", why=PACKED)
        if any(origin[name].dtype is not base[bias].dtype for name in match.sources):
            continue
        size = sum(evaluate(one, origin).size for one in both)
        if size == base[bias].size and evaluate(made, origin).tobytes() == base[bias].tobytes():
            yield match


def _vectors(match: Match, origin: Mapping[str, object]) -> list[Expression]:
    """For each direction of a packed weight the same rows of the biases; nothing where that is not plain."""
    match match.expression:
        case Stack(directions, 0):
            found = [_beside(one, origin) for one in directions]
        case Reshape(one, (1, *_)):
            found = [_beside(one, origin)]
        case _:
            return []
    vectors = [vector for vector in found if vector is not None]
    return vectors if len(vectors) == len(found) else []


def _beside(expression: Expression, origin: Mapping[str, object]) -> Expression | None:
    """The rows that an expression takes of matrices, taken of the bias beside each."""
    match expression:
        case Source(name):
            last = segments(name)[-1]
            bias = name.removesuffix(last) + last.replace("weight", "bias")
            return Source(bias) if bias != name and bias in origin else None
        case Slice(of, 0, start, stop):
            inner = _beside(of, origin)
            return None if inner is None else Slice(inner, 0, start, stop)
        case Take(of, 0, indices):
            inner = _beside(of, origin)
            return None if inner is None else Take(inner, 0, indices)
        case Concat(of, 0):
            parts = [_beside(part, origin) for part in of]
            return None if None in parts else Concat(tuple(part for part in parts if part is not None), 0)
        case _:
            return None


def _parts(vector: Expression) -> tuple[Expression, ...]:
    return vector.of if isinstance(vector, Concat) else (vector,)

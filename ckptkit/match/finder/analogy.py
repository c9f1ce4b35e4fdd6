"""Vectors that go the way of the tensors beside them: the zero biases of a fused projection.

A constant says nothing about where it came from, so it is not searched for in others. But when `qkv.weight` is made
of `q.weight`, `k.weight` and `v.weight`, then `qkv.bias` should be made of their biases; if the bytes agree, it is.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping

from ckptkit.core.names import segments
from ckptkit.core.tensor import Tensor
from ckptkit.match.finder.expressions import (
    Concat,
    Expression,
    Permute,
    Reshape,
    Slice,
    Source,
    Stack,
    evaluate,
)
from ckptkit.match.finder.result import BESIDE, How, Match

LARGEST = 1 << 20  # elements


def analogies(
    targets: Mapping[str, Tensor], sources: Mapping[str, Tensor], matches: Mapping[str, Match]
) -> Iterator[Match]:
    """Vectors among the targets made of vectors beside the sources of a match beside them, proved on the bytes."""
    models: dict[str, list[Match]] = defaultdict(list)
    used: Counter[str] = Counter()
    for match in matches.values():
        used.update(match.sources)
        if match.how in ("slice", "concat", "stack", "permuted"):
            models[_module(match.target)].append(match)
    beside: dict[str, list[str]] = defaultdict(list)
    for name, tensor in sources.items():
        if len(tensor.shape) == 1:
            beside[_module(name)].append(name)
    for name, tensor in targets.items():
        if len(tensor.shape) != 1 or not 0 < tensor.size <= LARGEST:
            continue
        for model in models[_module(name)]:
            expression = _transfer(model.expression, sources, beside, used, tensor)
            if expression is not None:
                values = evaluate(expression, sources)
                if values.shape == tensor.shape and values.tobytes() == tensor.tobytes():
                    how: How = "slice" if isinstance(expression, Slice) else "concat"
                    yield Match(name, expression, how, certain=False, why=BESIDE)
                    break


def _module(name: str) -> str:
    return "".join(segments(name)[:-1])


def _transfer(
    expression: Expression,
    sources: Mapping[str, Tensor],
    beside: Mapping[str, list[str]],
    used: Mapping[str, int],
    target: Tensor,
) -> Expression | None:
    """The expression for vectors: each source replaced by the one free vector beside it, joined end to end."""
    match expression:
        case Source(name):
            free = [
                n for n in beside.get(_module(name), ()) if n != name and sources[n].dtype is target.dtype
            ]
            free = [n for n in free if not used[n]] or free
            return Source(free[0]) if len(free) == 1 and sources[free[0]].size <= LARGEST else None
        case Permute(of) | Reshape(of):
            return _transfer(of, sources, beside, used, target)
        case Slice(of, _, start, stop):
            vector = _transfer(of, sources, beside, used, target)
            return None if vector is None else Slice(vector, 0, start, stop)
        case Concat(parts) | Stack(parts):
            vectors = [_transfer(part, sources, beside, used, target) for part in parts]
            return Concat(tuple(v for v in vectors if v is not None), 0) if None not in vectors else None
        case _:
            return None

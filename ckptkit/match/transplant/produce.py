"""The tensor that an expression of the finder gives, over other values than those it was found on."""

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ckptkit.core.dtypes import dtype as dtype_named
from ckptkit.core.tensor import Buffer, Extent, Tally, Tensor
from ckptkit.match.finder.expressions import (
    Cast,
    Concat,
    Expression,
    Folded,
    Permute,
    Reshape,
    Slice,
    Source,
    Stack,
    Take,
    evaluate,
    sources,
)
from ckptkit.match.finder.layout import cast_to
from ckptkit.ops.join import concat, stack
from ckptkit.ops.layout import narrow, permute, reshape

if TYPE_CHECKING:
    from ckptkit.core.dtypes import DType

Tensors = Mapping[str, Tensor]


def produce(expression: Expression, tensors: Tensors) -> Tensor:
    """The expression's values, streamed; folds and irregular rearrangements are computed one tensor at a time.

    Raises CkptError `op-shape` or `op-dtype` where shapes and dtypes do not allow it; KeyError for a missing source.
    """
    match expression:
        case Source(name):
            return tensors[name]
        case Cast(of, dtype):
            return cast_to(produce(of, tensors), dtype_named(dtype))
        case Reshape(of, shape):
            return reshape(produce(of, tensors), shape)
        case Permute(of, dims):
            return permute(produce(of, tensors), dims)
        case Slice(of, dim, start, stop):
            return narrow(produce(of, tensors), dim, start, stop)
        case Concat(of, dim):
            return concat([produce(part, tensors) for part in of], dim)
        case Stack(of, dim):
            return stack([produce(part, tensors) for part in of], dim)
        case Take(of, dim, indices):
            inner = produce(of, tensors)
            shape = (*inner.shape[:dim], len(indices), *inner.shape[dim + 1 :])
            return _computed(expression, tensors, inner.dtype, shape)
        case Folded(of, _, norm):
            like = tensors[norm.mean] if of is None else produce(of, tensors)
            return _computed(expression, tensors, like.dtype, like.shape)


def _computed(expression: Expression, tensors: Tensors, dtype: "DType", shape: tuple[int, ...]) -> Tensor:
    used = {name: tensors[name] for name in sources(expression)}
    return Tensor(dtype, shape, source=Computed(expression, used))


@dataclass(frozen=True, slots=True, eq=False)
class Computed:
    """The values of an expression, computed whole when they are asked for."""

    expression: Expression
    tensors: Tensors

    @property
    def identity(self) -> Hashable:
        return ("computed", self.expression, tuple(t.storage for t in self.tensors.values()))

    @property
    def extents(self) -> tuple[Extent, ...]:
        return tuple(extent for tensor in self.tensors.values() for extent in tensor.extents)

    def memory(self, limit: int) -> int:
        # Sources, the result, and as many intermediate values in double precision.
        return 5 * sum(tensor.nbytes for tensor in self.tensors.values()) + limit

    def chunks(self, limit: int, tally: Tally | None = None) -> Iterator[Buffer]:
        import numpy as np

        values = np.ascontiguousarray(evaluate(self.expression, self.tensors))
        data = values.reshape(-1).view(np.uint8).data
        step = max(values.itemsize, limit - limit % values.itemsize)
        for at in range(0, len(data), step):
            yield data[at : at + step]

"""How a tensor is made from others: a small tree of layout operations over named sources.

An expression is a value: it can be compared, printed (`describe`), searched for its sources (`sources`) and
computed (`evaluate`). Dimensions are counted from 0; shapes are in elements.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ckptkit.core.arrays import numpy_dtype, unpack
from ckptkit.core.dtypes import DTYPES
from ckptkit.core.dtypes import dtype as dtype_named
from ckptkit.core.storage import MemoryStorage
from ckptkit.core.tensor import Tensor
from ckptkit.core.views import view
from ckptkit.match.finder.layout import cast_to, contiguous

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Source:
    """A tensor of the other checkpoint, as it is."""

    name: str


@dataclass(frozen=True, slots=True)
class Cast:
    """The same values in another dtype, rounded to nearest even where it is narrower (`ops.cast`)."""

    of: "Expression"
    dtype: str


@dataclass(frozen=True, slots=True)
class Reshape:
    """The same elements in row-major order under another shape."""

    of: "Expression"
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Permute:
    """Axes in another order: axis `i` of the result is axis `dims[i]` of the operand."""

    of: "Expression"
    dims: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Slice:
    """Indices `start` to `stop - 1` along `dim`."""

    of: "Expression"
    dim: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Take:
    """The given indices along `dim`, in that order: a rearrangement that follows no simple rule."""

    of: "Expression"
    dim: int
    indices: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Concat:
    """The parts one after another along `dim`."""

    of: tuple["Expression", ...]
    dim: int


@dataclass(frozen=True, slots=True)
class Stack:
    """The parts side by side along a new axis `dim`."""

    of: tuple["Expression", ...]
    dim: int


@dataclass(frozen=True, slots=True)
class Normalization:
    """A batch normalization by the names of its tensors; "" where it has no scale, or no shift."""

    scale: str
    shift: str
    mean: str
    variance: str


@dataclass(frozen=True, slots=True)
class Folded:
    """The weight or bias of a layer with the batch normalization after it multiplied in.

    Attributes:
        of: the layer's own weight or bias; None for a bias if it had none.
        dim: axis of the output channels.
        norm: the normalization.
        eps: what is added to the variance.
        formula: key of `arithmetic.FORMULAS`: the order and precision of the arithmetic.
    """

    of: "Expression | None"
    dim: int
    norm: Normalization
    eps: float
    formula: str


Expression = Source | Cast | Reshape | Permute | Slice | Take | Concat | Stack | Folded


def operands(expression: Expression) -> tuple[Expression, ...]:
    """The expressions directly below."""
    if isinstance(expression, Source):
        return ()
    if isinstance(expression, Concat | Stack):
        return expression.of
    return () if expression.of is None else (expression.of,)


def sources(expression: Expression) -> Iterator[str]:
    """Names of the source tensors, in order; one that is used twice is given twice."""
    if isinstance(expression, Source):
        yield expression.name
    for operand in operands(expression):
        yield from sources(operand)
    if isinstance(expression, Folded):
        norm = expression.norm
        names = (norm.scale, norm.shift, norm.mean, norm.variance)
        yield from (name for name in names if name)


def rename(expression: Expression, names: Mapping[str, str]) -> Expression:
    """The same expression over other sources; names that are not in the mapping stay."""
    return substitute(expression, lambda name: Source(names.get(name, name)))


def substitute(expression: Expression, source: Callable[[str], Expression]) -> Expression:
    """The same expression with each source that is not a normalization's replaced."""
    if isinstance(expression, Source):
        return source(expression.name)
    if isinstance(expression, Concat | Stack):
        return replace(expression, of=tuple(substitute(part, source) for part in expression.of))
    if expression.of is None:
        return expression
    return replace(expression, of=substitute(expression.of, source))


def describe(expression: Expression) -> str:
    """One line for people: `transpose(h.0.attn.weight)`, `concat(q, k, v; dim 0)`."""
    match expression:
        case Source(name):
            return name
        case Cast(of, dtype):
            return f"{dtype}({describe(of)})"
        case Reshape(of, shape):
            return f"reshape({describe(of)}; {'×'.join(map(str, shape)) or 'scalar'})"
        case Permute(of, (1, 0)):
            return f"transpose({describe(of)})"
        case Permute(of, dims):
            return f"permute({describe(of)}; {', '.join(map(str, dims))})"
        case Slice(of, dim, start, stop):
            return f"{describe(of)}[{':, ' * dim}{start}:{stop}]"
        case Take(of, dim, indices):
            return f"take({describe(of)}; dim {dim}, {len(indices)} indices)"
        case Concat(of, dim):
            return f"concat({', '.join(map(describe, of))}; dim {dim})"
        case Stack(of, dim):
            return f"stack({', '.join(map(describe, of))}; dim {dim})"
        case Folded(of, _, norm, eps, formula):
            layer = "no bias" if of is None else describe(of)
            return f"fold({layer}; {norm.mean}, ε {eps:g}, {formula})"


def evaluate(expression: Expression, tensors: Mapping[str, Tensor]) -> "Array":
    """The values of an expression, held in memory. Raises KeyError for a missing source, and what reading raises."""
    import numpy as np

    match expression:
        case Source(name):
            return tensors[name].numpy()
        case Cast(of, dtype):
            return cast_array(evaluate(of, tensors), dtype)
        case Reshape(of, shape):
            return evaluate(of, tensors).reshape(shape)
        case Permute(of, dims):
            return evaluate(of, tensors).transpose(dims)
        case Slice(of, dim, start, stop):
            return evaluate(of, tensors)[(slice(None),) * dim + (slice(start, stop),)]
        case Take(of, dim, indices):
            taken: Array = np.take(evaluate(of, tensors), indices, axis=dim)
            return taken
        case Concat(of, dim):
            return np.concatenate([evaluate(part, tensors) for part in of], dim)
        case Stack(of, dim):
            return np.stack([evaluate(part, tensors) for part in of], dim)
        case Folded():
            from ckptkit.match.finder.arithmetic import compute

            layer = None if expression.of is None else evaluate(expression.of, tensors)
            return compute(expression, layer, tensors)


def cast_array(values: "Array", dtype: str) -> "Array":
    """The array in another dtype, cast as `layout.cast_to` casts tensors."""
    import numpy as np

    target = dtype_named(dtype)
    origin = next(d for d in DTYPES.values() if d.numpy == values.dtype.name and d.kind != "quantized")
    storage = MemoryStorage(np.ascontiguousarray(values).tobytes(), None)
    tensor = cast_to(view(storage, origin, values.shape, contiguous(values.shape), 0), target)
    return unpack(tensor.tobytes(), target, tensor.size).view(numpy_dtype(target)).reshape(values.shape)

"""Arithmetic on tensors, streamed: elementwise functions, sums of several, weight norm, folded batch norm, scales.

Values are computed in float32 (float64 stays float64) and rounded once, to the dtype of the first operand, as torch
does on a CPU. Only floats are computed with: integers, bools and packed types are refused.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from ckptkit.core.dtypes import DTYPES, DType
from ckptkit.core.errors import CkptError
from ckptkit.core.tensor import Buffer, Extent, Tally, Tensor
from ckptkit.ops.cast import cast
from ckptkit.ops.pull import Puller

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

NOT_FINITE = "not-finite"  # the tally's name for finite values of which arithmetic makes infinities or NaN
_FLOATS = ("float64", "float32", "float16", "bfloat16")

UNARY: dict[str, str] = {  # name in rules → numpy's
    "neg": "negative",
    "abs": "absolute",
    "exp": "exp",
    "log": "log",
    "sqrt": "sqrt",
    "square": "square",
    "reciprocal": "reciprocal",
}
BINARY: dict[str, str] = {"add": "add", "subtract": "subtract", "multiply": "multiply", "divide": "divide"}


def elementwise(tensor: Tensor, function: str, operand: float | None = None) -> Tensor:
    """One of `UNARY`, or one of `BINARY` with a number. Raises CkptError `op-dtype` unless the tensor is of floats."""
    wide = widened(tensor)
    source = Mapped((wide,), function, operand)
    return cast(Tensor(wide.dtype, tensor.shape, source=source, kind=tensor.kind), tensor.dtype)


def combine(tensors: Sequence[Tensor], function: str) -> Tensor:
    """`mean`, or one of `BINARY` from the left, over tensors of one shape. Raises CkptError `op-shape`, `op-dtype`."""
    first = tensors[0]
    for tensor in tensors:
        if tensor.shape != first.shape or tensor.dtype is not first.dtype:
            found = f"{first.dtype} {list(first.shape)} and {tensor.dtype} {list(tensor.shape)}"
            raise CkptError("op-shape", f"{found} cannot be combined by {function}")
    wide = tuple(map(widened, tensors))
    source = Mapped(wide, function, None)
    return cast(Tensor(wide[0].dtype, first.shape, source=source, kind=first.kind), first.dtype)


def widened(tensor: Tensor) -> Tensor:
    if tensor.dtype.name not in _FLOATS:
        raise CkptError("op-dtype", f"{tensor.dtype} values are not computed with")
    return tensor if tensor.dtype.name == "float64" else cast(tensor, DTYPES["float32"])


@dataclass(frozen=True, slots=True)
class Mapped:
    """A function of the elements at one place of one or more equally shaped float tensors."""

    origins: tuple[Tensor, ...]
    function: str
    operand: float | None

    @property
    def identity(self) -> Hashable:
        return (self.function, self.operand, tuple(tensor.storage for tensor in self.origins))

    @property
    def extents(self) -> tuple[Extent, ...]:
        return tuple(extent for tensor in self.origins for extent in tensor.extents)

    def memory(self, limit: int) -> int:
        return sum(tensor.memory(limit) for tensor in self.origins) + 3 * limit

    def chunks(self, limit: int, tally: Tally | None = None) -> Iterator[Buffer]:
        import numpy as np

        first = self.origins[0]
        kind = np.dtype(first.dtype.name)
        pulls = [Puller(tensor, limit, tally) for tensor in self.origins]
        step = max(kind.itemsize, limit - limit % kind.itemsize)
        values = np.empty(min(step, first.nbytes) // kind.itemsize, kind)
        other = np.empty_like(values) if len(pulls) > 1 else values
        for at in range(0, first.nbytes, step):
            count = min(step, first.nbytes - at) // kind.itemsize
            out, add = values[:count], other[:count]
            pulls[0].into(out.data.cast("B"))
            finite = None if tally is None else np.isfinite(out)
            with np.errstate(all="ignore"):
                if self.function in UNARY:
                    getattr(np, UNARY[self.function])(out, out=out)
                elif self.operand is not None:
                    getattr(np, BINARY[self.function])(out, kind.type(self.operand), out=out)
                for pull in pulls[1:]:
                    pull.into(add.data.cast("B"))
                    if finite is not None:
                        finite &= np.isfinite(add)
                    getattr(np, BINARY.get(self.function, "add"))(out, add, out=out)
                if self.function == "mean":
                    np.divide(out, kind.type(len(pulls)), out=out)
            if tally is not None and finite is not None:
                tally.add(NOT_FINITE, int(np.count_nonzero(finite & ~np.isfinite(out))))
            yield out.data.cast("B")


def weight_norm(magnitude: Tensor, direction: Tensor) -> Tensor:
    """`g · v / ‖v‖`, the norm over all dimensions in which `magnitude` has size 1, as torch's weight norm.

    Shapes: v any, g of the same rank, one dimension of v's size (or none) and 1 elsewhere. Raises CkptError
    `op-shape`, `op-dtype`.
    """
    rank = len(direction.shape)
    wide = [d for d in range(len(magnitude.shape)) if magnitude.shape[d] != 1]
    fits = len(magnitude.shape) == rank and all(magnitude.shape[d] == direction.shape[d] for d in wide)
    if not fits or len(wide) > 1:
        shapes = f"{list(magnitude.shape)} and direction of shape {list(direction.shape)}"
        raise CkptError("op-shape", f"a weight norm has no magnitude of shape {shapes}")
    dim = wide[0] if wide else next((d for d in range(rank) if direction.shape[d] == 1), None)
    return _scaled("weight_norm", direction, dim, (magnitude,), 0.0)


def batch_norm_weight(weight: Tensor, gamma: Tensor, variance: Tensor, eps: float) -> Tensor:
    """A convolution's weight with the batch norm after it folded in: `w · γ / √(σ² + ε)` for each output."""
    for vector in (gamma, variance):
        if not weight.shape or vector.shape != weight.shape[:1]:
            shapes = f"{list(weight.shape)} and {list(vector.shape)}"
            raise CkptError("op-shape", f"shapes {shapes} are not a weight and its batch norm")
    return _scaled("batch_norm", weight, 0, (gamma, variance), eps)


def batch_norm_bias(
    mean: Tensor, variance: Tensor, gamma: Tensor, beta: Tensor, bias: Tensor | None, eps: float
) -> Tensor:
    """The bias of a convolution with the batch norm after it folded in: `β + (b − μ) · γ / √(σ² + ε)`."""
    centred = elementwise(mean, "neg") if bias is None else combine((bias, mean), "subtract")
    scaled = batch_norm_weight(centred, gamma, variance, eps)
    return combine((scaled, beta), "add")


def _scaled(kind: str, tensor: Tensor, dim: int | None, factors: tuple[Tensor, ...], eps: float) -> Tensor:
    wide = widened(tensor)
    scaled = Scaled(kind, wide, dim, tuple(map(widened, factors)), eps)
    return cast(Tensor(wide.dtype, tensor.shape, source=scaled, kind=tensor.kind), tensor.dtype)


@dataclass(frozen=True, slots=True)
class Scaled:
    """A tensor times one factor for each index of a dimension (None: one factor for all)."""

    kind: str
    origin: Tensor
    dim: int | None
    factors: tuple[Tensor, ...]
    eps: float

    @property
    def identity(self) -> Hashable:
        return (
            self.kind, self.origin.storage, self.dim, tuple(t.storage for t in self.factors), self.eps
        )  # fmt: skip

    @property
    def extents(self) -> tuple[Extent, ...]:
        return tuple(extent for tensor in (self.origin, *self.factors) for extent in tensor.extents)

    def memory(self, limit: int) -> int:
        vectors = sum(tensor.memory() + 2 * tensor.nbytes for tensor in self.factors)
        count = 1 if self.dim is None else self.origin.shape[self.dim]
        return self.origin.memory(limit) + vectors + 6 * limit + 32 * count

    def chunks(self, limit: int, tally: Tally | None = None) -> Iterator[Buffer]:
        import numpy as np

        factor = self._factor(limit, tally)
        for values, index in self._indexed(limit, tally):
            with np.errstate(all="ignore"):
                out = np.multiply(values, factor[index]).astype(values.dtype)
            if tally is not None:
                tally.add(NOT_FINITE, int(np.count_nonzero(np.isfinite(values) & ~np.isfinite(out))))
            yield out.data.cast("B")

    def _factor(self, limit: int, tally: Tally | None) -> "Array":
        """The factor for each index, float64."""
        import numpy as np

        given = [tensor.numpy().reshape(-1).astype(np.float64) for tensor in self.factors]
        with np.errstate(all="ignore"):
            if self.kind == "batch_norm":
                return given[0] / np.sqrt(given[1] + self.eps)
            squares = np.zeros(1 if self.dim is None else self.origin.shape[self.dim])
            for values, index in self._indexed(limit, tally):
                wide = values.astype(np.float64)
                squares += np.bincount(index, wide * wide, len(squares))
            return given[0] / np.sqrt(squares)

    def _indexed(self, limit: int, tally: Tally | None) -> "Iterator[tuple[Array, Array]]":
        """The values in order, and for each its index along the dimension."""
        import numpy as np

        origin = self.origin
        inner = prod(origin.shape[self.dim + 1 :]) if self.dim is not None else max(1, origin.size)
        count = origin.shape[self.dim] if self.dim is not None else 1
        at = 0
        for chunk in origin.chunks(max(8, limit // 8), tally):
            values = np.frombuffer(chunk, origin.dtype.name)
            yield values, np.arange(at, at + len(values)) // inner % count
            at += len(values)


def dequantize(
    weight: Tensor, scale: Tensor, zero: Tensor | None, block: Sequence[int], dtype: DType, inverse: bool
) -> Tensor:
    """`(weight − zero) · scale` (or `/ scale`), a scale for each block of the weight.

    Args:
        weight: float8, int8 or uint8 values.
        scale: floats, one per block in row-major order: its shape is that of the grid of blocks; scalars and
            dimensions of size 1 serve all.
        zero: zero points in the shape of `scale`, or None.
        block: sizes of a block; () when each size follows from the two shapes.
        dtype: float32, float16 or bfloat16.
        inverse: divide by the scale.

    Raises CkptError `op-shape` when the scales do not fit, `op-dtype`.
    """
    if weight.dtype.name not in _QUANTIZED:
        raise CkptError("op-dtype", f"{weight.dtype} values are not dequantised")
    grid = scale.shape if scale.size != 1 else (1,) * len(weight.shape)
    if len(grid) < len(weight.shape) and prod(grid) == prod(weight.shape[: len(grid)]):
        grid = (*grid, *(1,) * (len(weight.shape) - len(grid)))
    sizes = tuple(block) or tuple(-(-n // g) for n, g in zip(weight.shape, grid, strict=False) if g)
    fits = len(sizes) == len(grid) == len(weight.shape) and min(sizes, default=1) > 0
    if not fits or any(g not in (1, -(-n // b)) for n, g, b in zip(weight.shape, grid, sizes, strict=True)):
        shapes = f"{list(scale.shape)} for blocks of {list(sizes)} in a weight of shape {list(weight.shape)}"
        raise CkptError("op-shape", f"scales of shape {shapes}")
    if zero is not None and zero.size != scale.size:
        raise CkptError("op-shape", f"{zero.size} zero points for {scale.size} scales")
    sizes = tuple(n if g == 1 else b for n, g, b in zip(weight.shape, grid, sizes, strict=True))
    source = Dequantized(weight, widened(scale), zero, grid, sizes, inverse)
    return cast(Tensor(DTYPES["float32"], weight.shape, source=source, kind=weight.kind), dtype)


_QUANTIZED = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "int8", "uint8")


@dataclass(frozen=True, slots=True)
class Dequantized:
    """Values of blocks times the blocks' scales, float32."""

    weight: Tensor
    scale: Tensor
    zero: Tensor | None
    grid: tuple[int, ...]
    block: tuple[int, ...]
    inverse: bool

    @property
    def identity(self) -> Hashable:
        zero = self.zero.storage if self.zero else None
        return ("dequantized", self.weight.storage, self.scale.storage, zero, self.block, self.inverse)

    @property
    def extents(self) -> tuple[Extent, ...]:
        parts = (self.weight, self.scale, *((self.zero,) if self.zero else ()))
        return tuple(extent for tensor in parts for extent in tensor.extents)

    def memory(self, limit: int) -> int:
        return self.weight.memory(limit // 4) + self.scale.memory() + 16 * self.scale.size + 8 * limit

    def chunks(self, limit: int, tally: Tally | None = None) -> Iterator[Buffer]:
        import numpy as np

        from ckptkit.core.arrays import numpy_dtype

        scales = self.scale.numpy().reshape(-1).astype(np.float32)
        if self.inverse:
            scales = np.float32(1) / scales
        zeros = self.zero.numpy().reshape(-1).astype(np.float32) if self.zero is not None else None
        kind = numpy_dtype(self.weight.dtype)
        at = 0
        for chunk in self.weight.chunks(max(1, limit // 16), tally):
            values = np.frombuffer(chunk, kind).astype(np.float32)
            place = self._places(at, len(values))
            with np.errstate(all="ignore"):
                if zeros is not None:
                    values -= zeros[place]
                values *= scales[place]
            yield values.data.cast("B")
            at += len(values)

    def _places(self, at: int, count: int) -> "Array":
        """Index of the scale of each of `count` elements from `at` on."""
        import numpy as np

        left = np.arange(at, at + count)
        place = np.zeros(count, np.int64)
        step = 1
        for n, g, b in zip(
            reversed(self.weight.shape), reversed(self.grid), reversed(self.block), strict=True
        ):
            if g > 1:
                place += left % n // b * step
            step *= g
            left //= n
        return place

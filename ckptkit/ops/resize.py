"""Interpolating between grids: position embeddings and patch kernels at another resolution.

The arithmetic of torch's `interpolate` with `align_corners=False`: separable, cubic with a = -0.75, edges repeated;
with `antialias` the kernel is stretched by the ratio when shrinking, and cubic uses a = -0.5, as torch does.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil, floor, prod
from typing import TYPE_CHECKING, Any

from ckptkit.core.errors import CkptError
from ckptkit.core.tensor import Buffer, Extent, Tally, Tensor
from ckptkit.ops.cast import cast
from ckptkit.ops.values import widened

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

MODES = ("nearest", "linear", "cubic")


def resize(tensor: Tensor, dims: Sequence[int], sizes: Sequence[int], mode: str, antialias: bool) -> Tensor:
    """The tensor with these dimensions resampled to these sizes. Raises CkptError `op-shape`, `op-dtype`."""
    from ckptkit.ops.layout import axis

    found = [axis(tensor, dim) for dim in dims]
    if len(found) != len(sizes) or len(set(found)) != len(found) or min(sizes, default=0) < 1:
        raise CkptError("op-shape", f"dimensions {list(dims)} cannot get sizes {list(sizes)}")
    if mode not in MODES or not tensor.size:
        raise CkptError("op-shape", f"a tensor of shape {list(tensor.shape)} is not resized by {mode!r}")
    shape = list(tensor.shape)
    for dim, size in zip(found, sizes, strict=True):
        shape[dim] = size
    if tuple(shape) == tensor.shape:
        return tensor
    wide = widened(tensor)
    source = Resized(wide, tuple(shape), mode, antialias)
    return cast(Tensor(wide.dtype, tuple(shape), source=source, kind=tensor.kind), tensor.dtype)


@dataclass(frozen=True, slots=True)
class Resized:
    """A float tensor resampled to another shape of the same rank; held as a whole."""

    origin: Tensor
    shape: tuple[int, ...]
    mode: str
    antialias: bool

    @property
    def identity(self) -> Hashable:
        return ("resized", self.origin.storage, self.shape, self.mode, self.antialias)

    @property
    def extents(self) -> tuple[Extent, ...]:
        return self.origin.extents

    def memory(self, limit: int) -> int:
        grown = [max(old, new) for old, new in zip(self.origin.shape, self.shape, strict=True)]
        return self.origin.memory() + 3 * 8 * prod(grown)

    def chunks(self, limit: int, tally: Tally | None = None) -> Iterator[Buffer]:
        import numpy as np

        values = self.origin.numpy().astype(np.float64)
        for dim, (old, new) in enumerate(zip(self.origin.shape, self.shape, strict=True)):
            if old != new:
                matrix = _matrix(old, new, self.mode, self.antialias)
                values = np.moveaxis(np.tensordot(matrix, values, (1, dim)), 0, dim)
        data = np.ascontiguousarray(values, self.origin.dtype.name).data.cast("B")
        step = max(8, limit - limit % 8)
        for at in range(0, len(data), step):
            yield data[at : at + step]


def _matrix(old: int, new: int, mode: str, antialias: bool) -> "Array":
    """Weights (new, old) of the old points in each new one."""
    import numpy as np

    matrix = np.zeros((new, old))
    ratio = old / new
    stretch = max(1.0, ratio) if antialias else 1.0
    reach = {"nearest": 0.5, "linear": 1.0, "cubic": 2.0}[mode] * stretch
    for row in range(new):
        if mode == "nearest":
            matrix[row, min(old - 1, floor(row * ratio))] = 1
            continue
        centre = (row + 0.5) * ratio - 0.5
        if mode == "linear" and not antialias:
            centre = max(centre, 0.0)
        for at in range(ceil(centre - reach), floor(centre + reach) + 1):
            weight = _kernel(mode, (at - centre) / stretch, -0.5 if antialias else -0.75)
            if antialias and not 0 <= at < old:
                continue
            matrix[row, min(max(at, 0), old - 1)] += weight
        matrix[row] /= matrix[row].sum()
    return matrix


def _kernel(mode: str, x: float, a: float) -> float:
    x = abs(x)
    if mode == "linear":
        return max(0.0, 1 - x)
    if x <= 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a if x < 2 else 0.0

"""Tensors made of nothing: a number everywhere, counting up, the lower triangle, the diagonal."""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any, Literal

from ckptkit.core.dtypes import DType
from ckptkit.core.errors import CkptError
from ckptkit.core.tensor import Buffer, Extent, Tally, Tensor

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

Fill = Literal["constant", "arange", "causal", "eye"]


def fill(dtype: DType, shape: tuple[int, ...], kind: Fill, value: float = 0) -> Tensor:
    """A tensor made of nothing: a number everywhere, 0, 1, 2, … along the last dimension, the lower triangle or the
    diagonal of the last two. Raises CkptError `op-dtype` for packed types and complex numbers."""
    if dtype.bits % 8 or dtype.kind not in ("float", "int", "uint", "bool") or dtype.numpy is None:
        raise CkptError("op-dtype", f"{dtype} tensors are not filled")
    if kind in ("causal", "eye") and len(shape) < 2:
        raise CkptError("op-shape", f"{kind} needs two dimensions")
    return Tensor(dtype, shape, source=Filled(dtype, shape, kind, value))


@dataclass(frozen=True, slots=True)
class Filled:
    dtype: DType
    shape: tuple[int, ...]
    kind: Fill
    value: float
    identity: Hashable = field(default_factory=object)  # equal values are no shared storage

    @property
    def extents(self) -> tuple[Extent, ...]:
        return ()

    def memory(self, limit: int) -> int:
        count = min(self._step(limit), prod(self.shape))
        return count * (self.dtype.bits // 8 if self.kind == "constant" else 48)

    def _step(self, limit: int) -> int:
        """Elements made at a time."""
        return max(1, limit // 16)

    def chunks(self, limit: int, tally: Tally | None = None) -> Iterator[Buffer]:
        import numpy as np

        from ckptkit.core.arrays import numpy_dtype

        kind = numpy_dtype(self.dtype)
        step = self._step(limit)
        total = prod(self.shape)
        if self.kind == "constant":
            values = np.full(min(step, total), self.value, kind).view(np.uint8)
            for at in range(0, total, step):
                yield values[: min(step, total - at) * kind.itemsize].data
            return
        last = self.shape[-1] if self.shape else 1
        for at in range(0, total, step):
            place = np.arange(at, min(at + step, total))
            column: Array = place % last
            if self.kind != "arange":
                row = place // last % self.shape[-2]
                column = column <= row if self.kind == "causal" else column == row
            yield column.astype(kind).view(np.uint8).data

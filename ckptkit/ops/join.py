"""Several tensors as one: concat and stack. Along the first dimension of plain tensors these are ranges of files."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from math import prod

from ckptkit.core.dtypes import DType
from ckptkit.core.errors import CkptError
from ckptkit.core.tensor import Buffer, Extent, Tally, Tensor
from ckptkit.ops.pull import Puller

_LEAST = 64 << 10  # bytes read at once from each of many parts that take turns


def concat(tensors: Sequence[Tensor], dim: int) -> Tensor:
    """The tensors one after the other along a dimension, as torch's `cat`.

    Raises CkptError `op-shape` unless the other dimensions agree, `op-dtype` unless the dtypes do.
    """
    first = tensors[0]
    rank = len(first.shape)
    if not -rank <= dim < rank:
        raise CkptError("op-shape", f"shape {list(first.shape)} has no dimension {dim}")
    at = dim % rank
    for tensor in tensors:
        others = tensor.shape[:at] + tensor.shape[at + 1 :]
        if len(tensor.shape) != rank or others != first.shape[:at] + first.shape[at + 1 :]:
            shapes = f"{list(first.shape)} and {list(tensor.shape)}"
            raise CkptError("op-shape", f"shapes {shapes} cannot be joined along dimension {dim}")
    total = sum(tensor.shape[at] for tensor in tensors)
    return _join(tensors, (*first.shape[:at], total, *first.shape[at + 1 :]), prod(first.shape[:at]))


def stack(tensors: Sequence[Tensor], dim: int) -> Tensor:
    """The tensors along a new dimension, as torch's `stack`. Raises CkptError `op-shape`, `op-dtype`."""
    first = tensors[0]
    rank = len(first.shape) + 1
    if not -rank <= dim < rank:
        raise CkptError("op-shape", f"shape {list(first.shape)} can get no dimension {dim}")
    at = dim % rank
    for tensor in tensors:
        if tensor.shape != first.shape:
            shapes = f"{list(first.shape)} and {list(tensor.shape)}"
            raise CkptError("op-shape", f"shapes {shapes} cannot be stacked")
    return _join(tensors, (*first.shape[:at], len(tensors), *first.shape[at:]), prod(first.shape[:at]))


def joined(parts: Sequence[Tensor], shape: tuple[int, ...], dtype: DType, kind: str = "") -> Tensor:
    """Tensors whose elements follow each other, under one shape."""
    if not parts:
        return Tensor(dtype, shape, source=Joined((), 1), kind=kind)
    return _join(parts, shape, 1)


def _join(tensors: Sequence[Tensor], shape: tuple[int, ...], outer: int) -> Tensor:
    first = tensors[0]
    for tensor in tensors:
        if tensor.dtype is not first.dtype:
            raise CkptError("op-dtype", f"{first.dtype} and {tensor.dtype} cannot be joined")
    parts: list[Tensor] = []
    for tensor in tensors:
        if tensor.size == 0:
            continue
        if len(tensors) > 1 and tensor.size // outer * tensor.dtype.bits & 7:
            raise CkptError("op-dtype", f"joining {tensor.dtype} divides bytes")
        if outer == 1 and isinstance(tensor.source, Joined) and tensor.source.outer == 1:
            parts += tensor.source.parts
        else:
            parts.append(tensor)
    if len(parts) == 1:
        only = parts[0]
        return Tensor(only.dtype, shape, only.file, only.offset, only.source, first.kind)
    return Tensor(first.dtype, shape, source=Joined(tuple(parts), outer if parts else 1), kind=first.kind)


@dataclass(frozen=True, slots=True)
class Joined:
    """The bytes of several tensors, which take turns: `outer` times an equal share of each."""

    parts: tuple[Tensor, ...]
    outer: int

    @property
    def identity(self) -> Hashable:
        return ("joined", tuple(part.storage for part in self.parts), self.outer)

    @property
    def extents(self) -> tuple[Extent, ...]:
        return tuple(extent for part in self.parts for extent in part.extents)

    def stored_runs(self) -> tuple[Extent, ...] | None:
        """The ranges of files that these bytes are, if they are nothing else."""
        if self.outer != 1 or any(part.file is None for part in self.parts):
            return None
        return self.extents

    def memory(self, limit: int) -> int:
        if self.outer == 1:
            return max((part.memory(limit) for part in self.parts), default=0)
        share = self._share(limit)
        return sum(part.memory(share) for part in self.parts) + 2 * limit

    def chunks(self, limit: int, tally: Tally | None = None) -> Iterator[Buffer]:
        if self.outer == 1:
            for part in self.parts:
                yield from part.chunks(limit, tally)
            return
        widths = [part.nbytes // self.outer for part in self.parts]
        pulls = [Puller(part, self._share(limit), tally) for part in self.parts]
        together = limit // sum(widths)
        if together < 1:
            for _ in range(self.outer):
                for pull, width in zip(pulls, widths, strict=True):
                    yield from pull.pieces(width)
            return
        import numpy as np

        for first in range(0, self.outer, together):
            count = min(together, self.outer - first)
            block = np.empty((count, sum(widths)), np.uint8)
            at = 0
            for pull, width in zip(pulls, widths, strict=True):
                share = np.empty((count, width), np.uint8)
                pull.into(share.data.cast("B"))
                block[:, at : at + width] = share
                at += width
            yield block.data.cast("B")

    def _share(self, limit: int) -> int:
        return max(_LEAST, limit // len(self.parts))

"""Tensors that must be equal, or hold what they are taken to hold: compared while they are streamed."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

from ckptkit.core.errors import CkptError
from ckptkit.core.stream import CHUNK
from ckptkit.core.tensor import Buffer, Extent, Tally, Tensor
from ckptkit.ops.pull import Puller

DROPPED = "values-dropped"  # the tally's name for elements that are left out and are not what they should be


def same(tensors: Sequence[Tensor], names: str = "") -> Tensor:
    """The first of tensors that must be equal byte for byte, which is checked while they are streamed.

    `names` are for messages. Raises CkptError `op-shape` when dtypes or shapes differ; streaming raises
    `replicas-differ`.
    """
    first = tensors[0]
    for tensor in tensors:
        if tensor.shape != first.shape or tensor.dtype is not first.dtype:
            found = f"{first.dtype} {list(first.shape)} and {tensor.dtype} {list(tensor.shape)}"
            raise CkptError("op-shape", f"{found} cannot be equal")
    others = tuple(tensor for tensor in tensors[1:] if tensor.storage != first.storage)
    if not others or not first.nbytes:
        return first
    return Tensor(first.dtype, first.shape, source=Same(first, others, names), kind=first.kind)


@dataclass(frozen=True, slots=True)
class Same:
    """The bytes of `origin`, compared with those of its replicas as they pass."""

    origin: Tensor
    others: tuple[Tensor, ...]
    names: str

    @property
    def identity(self) -> Hashable:
        return ("same", self.origin.storage, tuple(tensor.storage for tensor in self.others))

    @property
    def extents(self) -> tuple[Extent, ...]:
        return self.origin.extents

    def memory(self, limit: int) -> int:
        return self.origin.memory(limit) + sum(tensor.memory(limit) + limit for tensor in self.others)

    def chunks(self, limit: int, tally: Tally | None = None) -> Iterator[Buffer]:
        pulls = [Puller(tensor, limit, tally) for tensor in self.others]
        scratch = memoryview(bytearray(limit))
        for chunk in self.origin.chunks(limit, tally):
            for pull in pulls:
                pull.into(scratch[: len(chunk)])
                if scratch[: len(chunk)] != memoryview(chunk).cast("B"):
                    message = "tensors that must be equal differ in their values"
                    raise CkptError("replicas-differ", message, self.names or None)
            yield chunk


def counted(tensor: Tensor, expected: Tensor) -> Tensor:
    """The tensor, whose elements that differ from those of `expected` are counted in the tally as `values-dropped`.

    Shapes and dtypes are equal; elements of less than a byte are not told apart from their neighbours.
    """
    return Tensor(tensor.dtype, tensor.shape, source=Counted(tensor, expected), kind=tensor.kind)


@dataclass(frozen=True, slots=True)
class Counted:
    """The bytes of `origin`, compared with those of `expected` as they pass."""

    origin: Tensor
    expected: Tensor

    @property
    def identity(self) -> Hashable:
        return ("counted", self.origin.storage, self.expected.storage)

    @property
    def extents(self) -> tuple[Extent, ...]:
        return self.origin.extents

    def memory(self, limit: int) -> int:
        return self.origin.memory(limit) + self.expected.memory(limit) + 3 * limit

    def chunks(self, limit: int, tally: Tally | None = None) -> Iterator[Buffer]:
        import numpy as np

        width = max(1, self.origin.dtype.bits // 8)
        pull = Puller(self.expected, limit)
        scratch = bytearray(limit)
        for chunk in self.origin.chunks(limit, tally):
            found = memoryview(chunk).cast("B")
            wanted = memoryview(scratch)[: len(found)]
            pull.into(wanted)
            if tally is not None and found != wanted:
                differ = np.frombuffer(found, np.uint8) != np.frombuffer(wanted, np.uint8)
                tally.add(DROPPED, int(np.count_nonzero(differ.reshape(-1, width).any(axis=1))))
            yield chunk


def passed(checks: Sequence[tuple[str, Tensor]], tally: Tally) -> list[str]:
    """Stream tensors to nowhere, for what their sources count; the names of those that had something to count.

    Raises what the sources raise.
    """
    found = []
    for name, tensor in checks:
        before = dict(tally.counts)
        for _ in tensor.chunks(CHUNK, tally):
            pass
        if tally.counts != before:
            found.append(name)
    return found


def after(tensor: Tensor, before: Sequence[Tensor]) -> Tensor:
    """The tensor; `before` is streamed, to nowhere, before its own bytes are."""
    return Tensor(tensor.dtype, tensor.shape, source=After(tensor, tuple(before)), kind=tensor.kind)


@dataclass(frozen=True, slots=True)
class After:
    """The bytes of `origin`, once those of the tensors before it have passed."""

    origin: Tensor
    before: tuple[Tensor, ...]

    @property
    def identity(self) -> Hashable:
        return ("after", self.origin.storage, tuple(tensor.storage for tensor in self.before))

    @property
    def extents(self) -> tuple[Extent, ...]:
        return self.origin.extents

    def memory(self, limit: int) -> int:
        return max(tensor.memory(limit) for tensor in (self.origin, *self.before))

    def chunks(self, limit: int, tally: Tally | None = None) -> Iterator[Buffer]:
        for tensor in self.before:
            for _ in tensor.chunks(limit, tally):
                pass
        yield from self.origin.chunks(limit, tally)

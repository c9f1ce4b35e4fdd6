"""Fingerprints of tensors: what no permutation changes and what adds up over concatenation, in one pass.

Each element's bits are taken as an integer x; summed are x and a mixed hash of x, both modulo 2^32. The pair of
sums is the same for every arrangement of the same elements, and the sums of parts add up to that of the whole.
Taken along one axis at a time (`marginals`), they tell which rows went where. The BLAKE3 of the bytes, without
dtype and shape, goes along: equal digests are equal bytes. Fingerprints only propose; `layout.equal` proves.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from ckptkit.core.tensor import Buffer, Tensor

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

BLOCK = 1 << 16  # elements mixed at once: they stay in the processor's cache
READ = 1 << 20  # bytes read at once
ENTRIES = 1 << 18  # most sums kept of one tensor


@dataclass(frozen=True, slots=True)
class Print:
    """A tensor's fingerprint: digest of the bytes, sums (None for elements that are no whole 1 to 8 bytes), and
    whether all elements are the same."""

    digest: bytes
    sums: int | None
    constant: bool


def fingerprint(tensor: Tensor) -> Print:
    """Read a tensor once, in bounded memory, and take its fingerprint. Raises what reading raises."""
    import numpy as np
    from blake3 import blake3

    hasher = blake3()
    kind = _unit(tensor)
    first = second = 0
    constant = True
    value = None
    mixer = Mixer() if kind else None
    width = max(1, tensor.dtype.bits // 8)
    for chunk in tensor.chunks(READ):
        hasher.update(chunk)
        if mixer is None or kind is None:
            if constant and len(chunk):
                rows: Array = np.frombuffer(chunk, np.uint8).reshape(-1, width)
                value = rows[0] if value is None else value
                constant = bool((rows == value).all())
            continue
        values: Array = np.frombuffer(chunk, kind)
        if value is None and len(values):
            value = values[0]
        if constant:
            constant = bool((values == value).all())
        for at in range(0, len(values), BLOCK):
            plain, mixed = mixer.mix(values[at : at + BLOCK])
            first += int(np.add.reduce(plain, dtype=np.uint32))
            second += int(np.add.reduce(mixed, dtype=np.uint32))
    sums = None if kind is None else (first & 0xFFFFFFFF) << 32 | second & 0xFFFFFFFF
    return Print(hasher.digest(), sums, constant)


def _unit(tensor: Tensor) -> str | None:
    bits = tensor.dtype.bits
    return f"u{bits // 8}" if bits in (8, 16, 32, 64) else None


class Mixer:
    """Turns elements' bits into two 32-bit values each: nearly themselves, and well mixed."""

    __slots__ = ("_a", "_b", "_wide")

    def __init__(self) -> None:
        import numpy as np

        self._a = np.empty(BLOCK, np.uint32)
        self._b = np.empty(BLOCK, np.uint32)
        self._wide: Array | None = None

    def mix(self, values: "Array") -> "tuple[Array, Array]":
        """For at most `BLOCK` unsigned integers; the results are valid until the next call."""
        import numpy as np

        count = len(values)
        a, b = self._a[:count], self._b[:count]
        if values.itemsize == 4:
            plain = values
        elif values.itemsize == 8:  # fold both halves into one, so that none is lost
            plain = np.multiply(values, 0x9E3779B97F4A7C15)
            plain ^= values >> np.uint64(29)
            plain = (plain >> np.uint64(32)).astype(np.uint32)
        else:
            plain = values.astype(np.uint32)
        np.right_shift(plain, 15, out=a)
        np.bitwise_xor(a, plain, out=a)
        np.multiply(a, 0x2C1B3C6D, out=a)
        np.right_shift(a, 12, out=b)
        np.bitwise_xor(a, b, out=a)
        np.multiply(a, 0x297A2D39, out=a)
        return plain, a


def marginals(tensor: Tensor, spans: Iterable[tuple[int, int]]) -> "dict[tuple[int, int], Array]":
    """The sums along axes: for each span (first, stop) one 64-bit sum per index of these axes taken as one.

    Spans of too many indices, and some in the midst of a large tensor, are left out. The tensor is read once; it must
    have elements, and sums (`Print.sums`).
    """
    shape = tensor.shape
    axes = len(shape)
    lead = max(j for j in range(axes + 1) if prod(shape[:j]) <= ENTRIES)
    tail = min(k for k in range(axes + 1) if prod(shape[k:]) <= ENTRIES)
    leading, trailing = _both_sums(tensor, prod(shape[lead:]), prod(shape[tail:]))
    found = {}
    for first, stop in spans:
        if stop <= lead:
            found[first, stop] = _reduce(leading, shape[:lead], first, stop)
        elif first >= tail:
            found[first, stop] = _reduce(trailing, shape[tail:], first - tail, stop - tail)
    return found


def _reduce(sums: "Array", shape: Sequence[int], first: int, stop: int) -> "Array":
    import numpy as np

    table = sums.reshape(2, prod(shape[:first]), prod(shape[first:stop]), prod(shape[stop:]))
    one, two = table.sum(axis=(1, 3), dtype=np.uint32)
    both: Array = one.astype(np.uint64) << np.uint64(32) | two
    return both


def _both_sums(tensor: Tensor, run: int, tail: int) -> "tuple[Array, Array]":
    """Sums over each run of `run` elements, and over all elements `tail` apart: (2, entries) each."""
    import numpy as np

    leading = np.zeros((2, tensor.size // run), np.uint32)
    trailing = np.zeros((2, tail), np.uint32)
    for at, values in _aligned(tensor, run, tail):
        for k, part in enumerate(values):
            if run <= part.size:
                stop = (at + part.size) // run
                leading[k, at // run : stop] = part.reshape(-1, run).sum(1, dtype=np.uint32)
            else:
                leading[k, at // run : at // run + 1] += part.sum(dtype=np.uint32)  # wraps, as arrays do
            trailing[k] += part.reshape(-1, tail).sum(0, dtype=np.uint32)
    return leading, trailing


def _aligned(tensor: Tensor, run: int, tail: int) -> "Iterator[tuple[int, tuple[Array, Array]]]":
    """Mixed blocks that hold whole runs, or lie in one, and hold whole tails; with where they begin."""
    import numpy as np

    unit = max(run, tail) if run <= max(ENTRIES, BLOCK) else tail
    size = max(unit, BLOCK // unit * unit)
    if run > size:  # blocks end where a run ends
        starts = [
            (r * run + s, min(size, run - s)) for r in range(tensor.size // run) for s in range(0, run, size)
        ]
    else:
        starts = [(s, min(size, tensor.size - s)) for s in range(0, tensor.size, size)]
    mixer = Mixer()
    kind = _unit(tensor)
    plain, mixed = np.empty((2, size), np.uint32)
    for (start, count), data in zip(starts, _exactly(tensor, [n for _, n in starts], size), strict=True):
        values: Array = np.frombuffer(data, kind)
        for at in range(0, count, BLOCK):
            one, two = mixer.mix(values[at : at + BLOCK])
            plain[at : at + len(one)] = one
            mixed[at : at + len(two)] = two
        yield start, (plain[:count], mixed[:count])


def _exactly(tensor: Tensor, counts: list[int], most: int) -> Iterator[Buffer]:
    """The elements in buffers of these many; without copying where the tensor's own chunks are that long."""
    width = tensor.dtype.bits // 8
    chunks = tensor.chunks(most * width)
    kept = bytearray()
    for count in counts:
        nbytes = count * width
        if not kept:
            chunk = next(chunks)
            if len(chunk) == nbytes:
                yield chunk
                continue
            kept += chunk
        while len(kept) < nbytes:
            kept += next(chunks)
        yield bytes(memoryview(kept)[:nbytes])
        del kept[:nbytes]

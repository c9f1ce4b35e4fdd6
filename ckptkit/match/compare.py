"""Which tensors of two checkpoints hold the same bytes, at the speed of comparing memory.

Bytes decide: NaN payloads, −0.0 and bool bytes other than 0 and 1 count, bits that pad a last byte do not.
"""

import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from ckptkit.core.tensor import Buffer, Tensor
from ckptkit.match.digest import whole_bytes
from ckptkit.match.reading import SEGMENT, Progress, Window, shared


class _Part(NamedTuple):
    """Bytes of a pair of tensors, for one thread."""

    key: Hashable
    a: Tensor
    b: Tensor
    start: int
    stop: int


def differing(pairs: Mapping[str, tuple[Tensor, Tensor]], progress: Progress | None = None) -> frozenset[str]:
    """The names of those pairs whose bytes differ; the two of a pair have equal dtypes and shapes.

    A pair is read up to its first difference, and not at all where both are the same bytes of the same file.
    Two threads share the work. Raises what reading the tensors raises.
    """
    keys: dict[str, Hashable] = {}
    groups: dict[Hashable, tuple[Tensor, Tensor]] = {}
    for name, (a, b) in pairs.items():
        key = (a.storage, b.storage)
        if key[0] != key[1]:
            keys[name] = key
            groups.setdefault(key, (a, b))  # tied on both sides: once
    total = sum(a.nbytes for a, _ in groups.values())
    unequal: set[Hashable] = set()
    lock = threading.Lock()

    @contextmanager
    def worker() -> Iterator[Callable[[list[_Part]], None]]:
        with Window() as left, Window() as right:

            def run(batch: list[_Part]) -> None:
                for part in batch:
                    if part.key not in unequal and not _same(part, left, right):
                        unequal.add(part.key)
                    if progress is not None:
                        with lock:
                            progress(part.stop - part.start)

            yield run

    shared(_batches(groups), worker, total)
    return frozenset(name for name, key in keys.items() if key in unequal)


def same_bytes(a: Iterable[Buffer], b: Iterable[Buffer]) -> bool:
    """Whether two streams hold the same bytes, however they are cut."""
    left, right = filter(len, a), filter(len, b)
    x, y = memoryview(b""), memoryview(b"")
    while True:
        x = x or memoryview(next(left, b""))
        y = y or memoryview(next(right, b""))
        size = min(len(x), len(y))
        if size == 0:
            return len(x) == len(y)
        if x[:size].tobytes() != y[:size].tobytes():  # views would be compared one byte at a time
            return False
        x, y = x[size:], y[size:]


def _batches(groups: Mapping[Hashable, tuple[Tensor, Tensor]]) -> Iterator[list[_Part]]:
    """The pairs in the order of the first file, small ones together, plain large ones cut into segments."""
    batch: list[_Part] = []
    taken = 0
    for key, (a, b) in groups.items():
        nbytes = a.nbytes
        if nbytes != b.nbytes:  # strings of other lengths; of all others the dtype and shape are equal
            yield [_Part(key, a, b, 0, nbytes)]
            continue
        step = SEGMENT if _plain(a) and _plain(b) else nbytes
        for start in range(0, nbytes, step):
            stop = min(start + step, nbytes)
            batch.append(_Part(key, a, b, start, stop))
            taken += stop - start
            if taken >= SEGMENT:
                yield batch
                batch, taken = [], 0
    yield batch


def _plain(tensor: Tensor) -> bool:
    """Whether the bytes lie in a file as they are, the last one filled."""
    return tensor.source is None and not tensor.size * tensor.dtype.bits & 7


def _same(part: _Part, left: Window, right: Window) -> bool:
    _, a, b, start, stop = part
    if not (_plain(a) and _plain(b)):
        return same_bytes(whole_bytes(a, a.chunks()), whole_bytes(b, b.chunks()))
    while start < stop:
        at, size = left.find(a, start, stop)
        there, most = right.find(b, start, stop)
        size = min(size, most)
        # `startswith` compares memory in place, where slices would be copied and views compared byte by byte.
        with memoryview(right.buffer) as view, view[there : there + size] as piece:
            if not left.buffer.startswith(piece, at):
                return False
        start += size
    return True

"""The two threads that read and compare, and the fingerprints they have taken."""

from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar

from ckptkit.core.tensor import Tensor
from ckptkit.match.finder.prints import Print, fingerprint, marginals

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

WORKERS = 2
ENTRIES = 4 << 20  # most sums along axes that are kept: 32 MB; more are taken again when they are needed

T = TypeVar("T")
R = TypeVar("R")


class Workers:
    """Runs functions over many items in threads: reading, hashing and numpy leave each other alone."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """The results in the order of the items; the first error is raised."""
        work = list(items)
        if len(work) < 2:
            return [function(item) for item in work]
        step = min(64, max(1, len(work) // 64))
        batches = [work[at : at + step] for at in range(0, len(work), step)]
        futures = [
            self._pool.submit(lambda batch: [function(item) for item in batch], batch) for batch in batches
        ]
        try:
            return [result for future in futures for result in future.result()]
        finally:
            for future in futures:
                future.cancel()


class Prints:
    """Fingerprints by tensor, taken once for each stored one."""

    def __init__(self, workers: Workers) -> None:
        self.workers = workers
        self._prints: dict[Hashable, Print] = {}
        self._marginals: dict[Hashable, dict[tuple[int, int], Array]] = {}
        self._entries = 0
        self._lock = Lock()

    def take(self, tensors: Iterable[Tensor]) -> None:
        """Take the fingerprints that are not yet there."""
        new = {self._key(t): t for t in tensors if self._key(t) not in self._prints}
        # Large ones first, so that both threads are done at about the same time.
        order = sorted(new.items(), key=lambda item: -item[1].nbytes)
        taken = self.workers.map(fingerprint, [tensor for _, tensor in order])
        self._prints.update(zip((key for key, _ in order), taken, strict=True))

    def __getitem__(self, tensor: Tensor) -> Print:
        return self._prints[self._key(tensor)]

    def measure(self, tensors: Iterable[Tensor]) -> None:
        """Take the sums along single axes of several tensors, in both threads."""
        self.workers.map(lambda t: self.axis(t, 0), {self._key(t): t for t in tensors}.values())

    def axis(self, tensor: Tensor, dim: int) -> "Array | None":
        """One 64-bit sum for each index along the axis; None if there are too many."""
        spans = tuple((d, d + 1) for d in range(len(tensor.shape)))
        return self._sums(tensor, spans).get((dim, dim + 1))

    def leading(self, tensor: Tensor, count: int) -> "Array | None":
        """One sum for each index of the first `count` axes taken as one; None if there are too many."""
        return self._sums(tensor, ((0, count),)).get((0, count))

    def _sums(self, tensor: Tensor, spans: tuple[tuple[int, int], ...]) -> "dict[tuple[int, int], Array]":
        key = (self._key(tensor), spans)
        with self._lock:
            found = self._marginals.pop(key, None)
            if found is not None:
                self._marginals[key] = found  # the last used come last
                return found
        found = marginals(tensor, spans)
        with self._lock:
            self._marginals[key] = found
            self._entries += sum(map(len, found.values()))
            while self._entries > ENTRIES and len(self._marginals) > 1:
                oldest = self._marginals.pop(next(iter(self._marginals)))
                self._entries -= sum(map(len, oldest.values()))
        return found

    @staticmethod
    def _key(tensor: Tensor) -> Hashable:
        place = tensor.storage
        return tensor if place is None else place

"""Values that no trained model has: NaN, infinity, weights that are all zero or all one number. Reads the tensors."""

from collections.abc import Callable, Iterator, Mapping

from ckptkit.core.tensor import Tensor
from ckptkit.verbs.check.report import Misfit

Progress = Callable[[int, int], None]

_SMALLEST = 16  # elements of a weight that should not be all one number


def values(tensors: Mapping[str, Tensor], progress: Progress | None = None) -> Iterator[Misfit]:
    """A finding for each tensor that is not as trained weights are; tied ones are read once.

    `progress` is called with the bytes done and all bytes.

    Biases, norms and buffers may well be constant: only weights of two and more dimensions are judged so.
    """
    from ckptkit.core.numeric import statistics

    seen: set[object] = set()
    done, total = 0, sum(tensor.nbytes for tensor in tensors.values())
    for name, tensor in tensors.items():
        if progress is not None:
            progress(done, total)
        done += tensor.nbytes
        place = tensor.storage
        if place is not None:
            if place in seen:
                continue
            seen.add(place)
        found = statistics(tensor)
        if found is None:
            continue
        if found.nan or found.inf:
            said = f"{found.nan:,} NaN, {found.inf:,} infinite of {tensor.size:,}"
            cause = "training diverged or a cast overflowed"
            yield Misfit("not-finite", "error", name, "finite values", said, cause)
        elif len(tensor.shape) < 2 or tensor.size < _SMALLEST or tensor.dtype.kind != "float":
            continue
        elif found.zeros == tensor.size:
            yield Misfit(
                "all-zero", "warning", name, "trained values", "zeros", "never filled or never trained"
            )
        elif found.minimum == found.maximum:
            said = f"{found.minimum:g} everywhere"
            yield Misfit("constant", "warning", name, "trained values", said, "never trained")

"""Inputs for a model: seeded random ones, edge cases, and those of a .npz file.

Random: floats from a normal distribution, ids evenly over their rows, masks of ones padded with zeros at the end.
`zeros`: floats and ids are zero. `large`: floats a hundred times as large, ids the last of their rows. In both, masks
are all ones. Integers of 8 bits take their whole range (they are pixels or quantised); other integers that nothing
bounds lie between 1 and 4. Strings are of a short list; `zeros` has empty ones.
"""

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import TYPE_CHECKING, Any

from ckptkit.core.dtypes import DTYPES
from ckptkit.core.errors import CkptError
from ckptkit.match.proof.signature import Input, free, sized

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

Arrays = Mapping[str, "Array"]
_TEXTS = ("", "a", "word", "two words", "Zürich", "42")
LARGEST = 1 << 30  # bytes of the inputs of one run
# Sizes tried for free dimensions other than the batch, until the reference runs
SIZES = (8, 16, 32, 64, 128, 224, 256, 512, 1, 4)
BATCHES = (2, 1)
_RUNNABLE = (
    "string",
    "bfloat16",
    "float8_e4m3fn",
    "float8_e5m2",
    "float16",
    "float32",
    "float64",
    "bool",
    *(f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64)),
)


@dataclass(frozen=True, slots=True)
class Sample:
    """Inputs for one run, with what they are called."""

    name: str
    arrays: Arrays


def guesses(inputs: Sequence[Input], fixed: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """Sizes of the free dimensions to try, the likeliest first; those in `fixed` are given.

    Raises CkptError `prove-inputs` when `fixed` names a dimension that is not free.
    """
    labels = free(inputs)
    for label in fixed:
        if label not in labels:
            known = f"free dimensions: {', '.join(labels)}" if labels else "it has none"
            raise CkptError("prove-inputs", "no free dimension of the model has this name", label, known)
    batch = any(counts for label, counts in labels.items() if label not in fixed)
    rest = any(not counts for label, counts in labels.items() if label not in fixed)
    sizes = SIZES if rest else (1,)
    for n, size in product(BATCHES if batch else (1,), sizes):
        yield {label: fixed.get(label, n if counts else size) for label, counts in labels.items()}
    last = {one.shape[-1] for one in inputs if one.shape}
    if rest and any(label not in last for label, counts in labels.items() if not counts):
        for size in sizes:  # a batch in the middle, without a name
            yield {label: fixed.get(label, size if label in last else 1) for label in labels}


def samples(
    inputs: Sequence[Input], sizes: Mapping[str, int], fixed: Mapping[str, int], seed: int, count: int
) -> Iterator[Sample]:
    """`count` random samples, the first of exactly these sizes, then edge cases.

    The other random ones have other sizes, where dimensions are free. Equal arguments give equal samples.
    """
    labels = free(inputs)
    for k in range(count):
        varied = {
            label: size
            if label in fixed or not k
            else (1 + (k - 1) % 3 if labels[label] else size + size // 2 * k)
            for label, size in sizes.items()
        }
        yield _sample(inputs, varied, f"random {k + 1}", seed + k)
    for name in ("zeros", "large"):
        yield _sample(inputs, sizes, name, seed)


def _sample(inputs: Sequence[Input], sizes: Mapping[str, int], name: str, seed: int) -> Sample:
    import numpy as np

    shapes = [sized(one.shape, sizes) for one in inputs]
    nbytes = 0
    for one, shape in zip(inputs, shapes, strict=True):
        if one.dtype not in _RUNNABLE:
            raise CkptError(
                "prove-inputs",
                f"no {one.dtype} input can be made",
                one.name,
                "make an input of another dtype",
            )
        nbytes += prod(shape) * DTYPES[one.dtype].bits // 8
    if nbytes > LARGEST:
        raise CkptError(
            "over-budget",
            f"inputs of {nbytes} bytes, more than {LARGEST}",
            name,
            "--dim sets free dimensions",
        )
    kind = name.split(maxsplit=1)[0]
    made = {}
    for place, (one, shape) in enumerate(zip(inputs, shapes, strict=True)):
        made[one.name] = _values(one, shape, kind, np.random.default_rng((seed, place)))
    return Sample(name, made)


def _values(one: Input, shape: tuple[int, ...], kind: str, random: "np.random.Generator") -> "Array":
    import numpy as np

    from ckptkit.core.arrays import numpy_dtype

    if one.dtype == "string":
        texts = np.array(_TEXTS, object)
        return (
            texts[random.integers(0, len(_TEXTS), shape)] if kind == "random" else np.full(shape, "", object)
        )
    dtype = numpy_dtype(DTYPES[one.dtype])
    is_float = DTYPES[one.dtype].kind == "float"
    if one.is_mask:
        values: Array = np.ones(shape)
        if kind == "random" and values.ndim and shape[-1]:
            kept = random.integers(1, shape[-1] + 1, shape[:-1])
            values = np.arange(shape[-1]) < kept[..., None]
    elif dtype.kind == "b":
        values = random.integers(0, 2, shape) if kind == "random" else np.full(shape, kind == "large")
    elif is_float and one.rows is None:
        values = np.zeros(shape) if kind == "zeros" else random.standard_normal(shape)
        values = values * (100 if kind == "large" else 1)
    else:
        low, high = (0, one.rows or 1) if is_float else _range(one, dtype)
        edge = low if kind == "zeros" else high - 1
        values = random.integers(low, high, shape) if kind == "random" else np.full(shape, edge)
    made: Array = np.asarray(values).astype(dtype)
    return made


def _range(one: Input, dtype: "np.dtype[Any]") -> tuple[int, int]:
    """Least value and the one after the greatest."""
    import numpy as np

    limits = np.iinfo(dtype)
    if one.rows is not None:
        return 0, max(1, min(one.rows, int(limits.max)))
    return (int(limits.min), int(limits.max) + 1) if dtype.itemsize == 1 else (1, 5)


def read_npz(path: str) -> Sample:
    """The arrays of a .npz file; nothing in it is unpickled.

    Raises CkptError `prove-inputs` for what is no such file or too large, and for arrays of objects.
    """
    import numpy as np

    try:
        with zipfile.ZipFile(path) as archive:
            claimed = sum(member.file_size for member in archive.infolist())
        if claimed > LARGEST:
            raise CkptError("over-budget", f"inputs of {claimed} bytes, more than {LARGEST}", path)
        with np.load(path, allow_pickle=False) as held:
            arrays = {name: held[name] for name in held.files}
            return Sample(
                path, {n: a.astype(object) if a.dtype.kind in "US" else a for n, a in arrays.items()}
            )
    except FileNotFoundError:
        raise CkptError("not-found", "no such file", path) from None
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise CkptError("prove-inputs", f"this is no .npz file of arrays: {error}", path) from None


def write_npz(path: str, arrays: Arrays) -> None:
    """Write arrays under any names; `numpy.load` and `read_npz` read them."""
    import numpy as np

    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            if array.dtype.kind == "O":
                array = array.astype(str)
            # A date of its own would make equal arrays unequal files.
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(
                    member, np.ascontiguousarray(array).reshape(array.shape), allow_pickle=False
                )

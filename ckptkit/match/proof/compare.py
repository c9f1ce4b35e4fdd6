"""Comparing two outputs: |a − b| ≤ rtol·|b| + atol·s, where s is the root mean square of b's finite elements.

The scale s makes one tolerance serve logits of ±100 and probabilities of 1e-6 alike. Infinities must be the same, NaN
must stand where NaN stands. Integers, bools and strings must be equal.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


class Tolerance(NamedTuple):
    """Relative to each element, and to the size of the whole output."""

    rtol: float
    atol: float


# By the narrowest dtype that computed the output; ordered from the narrowest. Measured: logits of a small GPT-2 in
# float16 differ by 0.6 % of their root mean square between torch and onnxruntime, and as much from those in float32.
TOLERANCES = {
    "bfloat16": Tolerance(3e-2, 3e-2),
    "float16": Tolerance(1e-2, 1e-2),
    "float32": Tolerance(1e-4, 1e-5),
    "float64": Tolerance(1e-9, 1e-10),
}


@dataclass(frozen=True, slots=True)
class Compared:
    """One output of both models.

    Attributes:
        name: of the output in A.
        a, b: dtype and shape on each side, such as `float32[1,10]`.
        equal: whether all elements are within the tolerance, of one dtype and shape.
        exceeding: number of elements that are not; 0 as well where shapes differ.
        max_abs: greatest |a − b|, inf where only one is finite or NaN; None for strings and other shapes.
        scale: root mean square of the finite elements of b.
        worst: index of the element that is farthest beyond or nearest to its tolerance; None where all are the same.
        worst_a, worst_b: its values.
    """

    name: str
    a: str
    b: str
    equal: bool
    exceeding: int = 0
    max_abs: float | None = None
    scale: float = 0.0
    worst: tuple[int, ...] | None = None
    worst_a: float | int | str | None = None
    worst_b: float | int | str | None = None


def leaves(outputs: Mapping[str, Any]) -> dict[str, "Array"]:
    """The arrays of outputs, which may be lists (sequences) or dicts (maps) of such: `name.0`, `name.key`."""
    import numpy as np

    found: dict[str, Array] = {}
    todo = list(outputs.items())[::-1]
    while todo:
        name, value = todo.pop()
        if isinstance(value, dict):
            todo += [(f"{name}.{key}", value[key]) for key in sorted(value, key=str, reverse=True)]
        elif isinstance(value, list):
            todo += [(f"{name}.{index}", value[index]) for index in reversed(range(len(value)))]
        elif value is not None:  # an optional that holds nothing
            found[name] = np.asarray(value)
    return found


def compare(name: str, a: "Array | None", b: "Array | None", tolerance: Tolerance) -> Compared:
    """How output `a` compares with `b`, the reference; None for one that is not there."""
    import numpy as np

    specs = spec(a), spec(b)
    if a is None or b is None:
        return Compared(name, *specs, equal=False)
    if a.shape != b.shape:
        return Compared(name, *specs, equal=False)
    same_dtype = a.dtype == b.dtype
    a, b = (v.astype(np.float32) if v.dtype.kind == "V" else v for v in (a, b))  # types of ml_dtypes
    if a.dtype.kind not in "biufc" or b.dtype.kind not in "biufc":
        return _texts(name, specs, a, b)
    wide = np.result_type(a.dtype, b.dtype, np.float64) if "f" in (a.dtype.kind, b.dtype.kind) else None
    x, y = (v.astype(wide) if wide is not None else v for v in (a, b))
    unequal = (x != y) & ~((x != x) & (y != y))
    if not unequal.any():
        return Compared(name, *specs, equal=same_dtype, max_abs=0.0, scale=_scale(y))
    with np.errstate(all="ignore"):
        # Integers of 64 bits may differ by more than they hold; a double says how far, if not to the last digit.
        distance = np.abs(
            x.astype(np.complex128) - y if x.dtype.kind == "c" else x.astype(float) - y.astype(float)
        )
        distance = np.where(unequal, np.where(np.isnan(distance), np.inf, distance), 0.0)
        scale = _scale(y)
        exact = wide is None
        allowed = np.zeros(y.shape) if exact else tolerance.rtol * np.abs(y) + tolerance.atol * scale
        allowed = np.where(np.isfinite(allowed), allowed, 0.0)
        beyond = unequal & (distance > allowed if not exact else True)
        excess = np.where(unequal, distance / np.maximum(allowed, 5e-324), 0.0)
    at = np.unravel_index(int(np.argmax(excess)), excess.shape)
    return Compared(
        name,
        *specs,
        equal=same_dtype and not beyond.any(),
        exceeding=int(beyond.sum()),
        max_abs=float(distance.max()),
        scale=scale,
        worst=tuple(map(int, at)),
        worst_a=_plain(a[at]),
        worst_b=_plain(b[at]),
    )


def _texts(name: str, specs: tuple[str, str], a: "Array", b: "Array") -> Compared:
    import numpy as np

    places = np.argwhere(np.asarray(a != b))
    if not len(places):
        return Compared(name, *specs, equal=True)
    at = tuple(map(int, places[0]))
    return Compared(
        name, *specs, equal=False, exceeding=len(places), worst=at, worst_a=str(a[at]), worst_b=str(b[at])
    )


def _scale(values: "Array") -> float:
    import numpy as np

    sizes = np.abs(values.astype(np.complex128 if values.dtype.kind == "c" else np.float64))
    sizes = sizes[np.isfinite(sizes)]
    largest = float(sizes.max(initial=0.0))
    return largest * float(np.sqrt(np.mean((sizes / largest) ** 2))) if largest else 0.0


def _plain(value: Any) -> float | int | str:
    found = value.item()
    return str(found) if isinstance(found, complex) else found


def spec(array: "Array | None") -> str:
    """Dtype and shape of an array: `float32[1,10]`."""
    if array is None:
        return "nothing"
    kind = "string" if array.dtype.kind in "OUS" else array.dtype.name
    return f"{kind}[{','.join(map(str, array.shape))}]"

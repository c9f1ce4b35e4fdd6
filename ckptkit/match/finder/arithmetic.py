"""The arithmetic of folding a batch normalization into the layer before it, as exporters and optimizers do it.

    weight' = weight · γ / √(σ² + ε)        bias' = (bias − μ) · γ / √(σ² + ε) + β

per output channel, in one of several orders and precisions, which differ in the last bits. torch takes square roots
through a library that does not always round correctly (wrong by one unit of the last place in half a percent of
all cases); numpy, and so onnxscript, rounds correctly. A fold by torch is therefore a few units away.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from ckptkit.core.arrays import gather, unpack
from ckptkit.core.tensor import Tensor
from ckptkit.match.finder.expressions import Folded, Normalization

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

# (layer's weight or bias, γ, β, μ, √(σ²+ε)) → folded weight or bias, by the order of the arithmetic.
Formula = Callable[["Array", "Array", "Array", "Array", "Array"], "Array"]
WEIGHT: dict[str, Formula] = {
    "W·(γ/√(σ²+ε))": lambda w, g, b, m, r: w * (g / r),
    "W·(γ·(1/√(σ²+ε)))": lambda w, g, b, m, r: w * (g * (1 / r)),
    "(W·γ)/√(σ²+ε)": lambda w, g, b, m, r: w * g / r,
    "(W/√(σ²+ε))·γ": lambda w, g, b, m, r: w / r * g,
}
BIAS: dict[str, Formula] = {
    "(b−μ)·(γ/√(σ²+ε))+β": lambda w, g, b, m, r: (w - m) * (g / r) + b,
    "(b−μ)·(γ·(1/√(σ²+ε)))+β": lambda w, g, b, m, r: (w - m) * (g * (1 / r)) + b,
    "((b−μ)·(1/√(σ²+ε)))·γ+β": lambda w, g, b, m, r: (w - m) * (1 / r) * g + b,
    "((b−μ)/√(σ²+ε))·γ+β": lambda w, g, b, m, r: (w - m) / r * g + b,
    "((b−μ)·γ)/√(σ²+ε)+β": lambda w, g, b, m, r: (w - m) * g / r + b,
    "b·(γ/√(σ²+ε))+(β−μ·(γ/√(σ²+ε)))": lambda w, g, b, m, r: w * (g / r) + (b - m * (g / r)),
}
PRECISIONS = ("float32", "float64")
FORMULAS = {
    f"{precision} {words}": (precision, formula)
    for table in (WEIGHT, BIAS)
    for words, formula in table.items()
    for precision in PRECISIONS
}
WEIGHT_FORMULAS = tuple(f"{precision} {words}" for words in WEIGHT for precision in PRECISIONS)
BIAS_FORMULAS = tuple(f"{precision} {words}" for words in BIAS for precision in PRECISIONS)


class Norm(NamedTuple):
    """A normalization's vectors; scale and shift are 1 and 0 where it has none."""

    names: Normalization
    scale: "Array"
    shift: "Array"
    mean: "Array"
    variance: "Array"

    @classmethod
    def read(cls, names: Normalization, tensors: Mapping[str, Tensor]) -> "Norm":
        """Raises what reading raises."""
        import numpy as np

        mean, variance = held(tensors[names.mean]), held(tensors[names.variance])
        scale = held(tensors[names.scale]) if names.scale else np.ones_like(mean)
        shift = held(tensors[names.shift]) if names.shift else np.zeros_like(mean)
        return cls(names, scale, shift, mean, variance)

    def of(self, channels: slice) -> "Norm":
        """The same for some channels."""
        return Norm(self.names, *(vector[channels] for vector in self[1:]))


def held(tensor: Tensor) -> "Array":
    """The values in memory: mapped files would stay there, counted as this process's."""
    return unpack(gather(tensor), tensor.dtype, tensor.size).reshape(tensor.shape)


def compute(fold: Folded, layer: "Array | None", tensors: Mapping[str, Tensor]) -> "Array":
    """The folded weight or bias, in the dtype of the layer or, if it has no bias, of the normalization's mean."""
    import numpy as np

    norm = Norm.read(fold.norm, tensors)
    with np.errstate(all="ignore"):
        values = apply(fold.formula, fold.dim, layer, norm, fold.eps)
        return values.astype(norm.mean.dtype if layer is None else layer.dtype)


def apply(formula: str, dim: int, layer: "Array | None", norm: Norm, eps: float) -> "Array":
    """The values of a formula in its own precision; `dim` is the channels' axis, None a layer without a bias."""
    import numpy as np

    precision, function = FORMULAS[formula]
    kind = np.dtype(precision)
    values = np.zeros_like(norm.mean) if layer is None else layer
    shape = [1] * values.ndim
    shape[dim] = -1
    vectors = [v.astype(kind).reshape(shape) for v in (norm.scale, norm.shift, norm.mean, norm.variance)]
    gamma, beta, centre, variance = vectors
    return function(values.astype(kind), gamma, beta, centre, np.sqrt(variance + kind.type(eps)))


def error(values: "Array", expected: "Array") -> float:
    """Greatest difference of the finite ones, relative to the greatest magnitude expected; infinite for none."""
    import numpy as np

    told = np.isfinite(values) & np.isfinite(expected)
    values, expected = values[told], expected[told]
    reach = float(np.abs(expected).max(initial=0))
    return (
        float(np.abs(values - expected).max(initial=0)) / max(reach, 1e-30) if len(expected) else float("inf")
    )


def distance(one: "Array", other: "Array", summand: "Array | None" = None) -> tuple[int, int]:
    """How many elements differ, and by how many units of the last place at most.

    Both zeros are one number; NaN is far from everything else. Where a sum nearly cancels out its last place says
    nothing: the units are then those of `summand`, where that is larger.
    """
    import numpy as np

    bits = one.dtype.itemsize * 8
    low = -(1 << (bits - 1))

    def ordered(values: "Array") -> "Array":
        numbers: Array = np.ascontiguousarray(values).view(f"i{bits // 8}").astype(np.int64)
        return np.where(numbers < 0, low - numbers, numbers)

    apart = np.abs(ordered(one) - ordered(other))
    if bits == 64:  # the difference of numbers of opposite sign may wrap
        apart = np.where(apart < 0, np.iinfo(np.int64).max, apart)
    if summand is not None and one.dtype.kind == "f":
        unit = np.spacing(np.maximum(np.abs(other), np.abs(summand)).astype(one.dtype)).astype(np.float64)
        units = np.ceil(np.abs(one.astype(np.float64) - other.astype(np.float64)) / unit)
        apart = np.where(units < apart, units, apart).astype(np.int64)
    return int(np.count_nonzero(apart)), int(apart.max(initial=0))

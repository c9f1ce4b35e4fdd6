"""Batch normalization folded into the convolution or linear layer before it: which, and by which arithmetic.

    weight' = weight · γ / √(σ² + ε)        bias' = (bias − μ) · γ / √(σ² + ε) + β

per output channel. Exporters and optimizers do the same thing in another order and precision, so the results differ
in the last bits. A weight is recognised by its channels, which folding only scales; the scales tell which normalization
it was, and the folded shift which bias. Then every formula and ε below is computed, and the one that gives most
elements exactly is named, with the greatest distance in units of the last place (ulp). This is arithmetic, not proof:
only a distance of 0 says that the formula gives the very bytes, and beyond `NEAR` ulp a match is not certain.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

from ckptkit.core.arrays import gather, unpack
from ckptkit.core.names import segments
from ckptkit.core.tensor import Tensor
from ckptkit.match.finder.expressions import Expression, Folded, Normalization, Permute, Source
from ckptkit.match.finder.layout import contiguous, strided
from ckptkit.match.finder.result import Match

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

EPSILONS = (1e-5, 1e-3, 1e-4, 1e-6, 1e-8, 1e-12, 0.0, 1e-2)
CLOSE = 1e-3  # relative distance within which scales and biases are the same but for rounding
CLOSE_HALF = 2e-2  # the same for float16 and bfloat16
SAMPLED = 64  # channels of a weight looked at to find candidates,
SAMPLE = 64  # elements of each
BEGINNINGS = 1 << 16  # elements of a weight that formulas are tried on
NEAR = 64  # ulp: what is farther away need not be this formula, nor this ε
NOISE = 8  # of so many differing elements one more is no worse, in half precision
FAR = 1 << 16  # ulp: what is farther away is no fold
PAIRS = 1_000_000  # most pairs of weights looked at
LARGEST = 1 << 27  # bytes: larger weights are not searched for, as two of them are held in memory
CHANNELS = 1 << 20  # of a normalization
AXES = 8  # nor are those of more
FLOATS = ("float64", "float32", "float16", "bfloat16")

# The last parts of the names of a normalization's scale, shift, mean and variance, by framework.
ROLES = (
    ("weight", "bias", "running_mean", "running_var"),
    ("gamma", "beta", "moving_mean", "moving_variance"),
    ("scale", "bias", "mean", "var"),
)

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

        mean, variance = _held(tensors[names.mean]), _held(tensors[names.variance])
        scale = _held(tensors[names.scale]) if names.scale else np.ones_like(mean)
        shift = _held(tensors[names.shift]) if names.shift else np.zeros_like(mean)
        return cls(names, scale, shift, mean, variance)


def compute(fold: Folded, layer: "Array | None", tensors: Mapping[str, Tensor]) -> "Array":
    """The folded weight or bias, in the dtype of the layer or, if it has no bias, of the normalization's mean."""
    import numpy as np

    norm = Norm.read(fold.norm, tensors)
    with np.errstate(all="ignore"):
        values = _apply(fold.formula, fold.dim, layer, norm, fold.eps)
        return values.astype(norm.mean.dtype if layer is None else layer.dtype)


def _apply(formula: str, dim: int, layer: "Array | None", norm: Norm, eps: float) -> "Array":
    import numpy as np

    precision, function = FORMULAS[formula]
    kind = np.dtype(precision)
    values = np.zeros_like(norm.mean) if layer is None else layer
    shape = [1] * values.ndim
    shape[dim] = -1
    vectors = [v.astype(kind).reshape(shape) for v in (norm.scale, norm.shift, norm.mean, norm.variance)]
    gamma, beta, centre, variance = vectors
    return function(values.astype(kind), gamma, beta, centre, np.sqrt(variance + kind.type(eps)))


def normalizations(tensors: Mapping[str, Tensor]) -> Iterator[Normalization]:
    """The batch normalizations among the tensors, told by the last parts of their names."""
    for name, mean in tensors.items():
        last = segments(name)[-1].lstrip("./") if name else ""
        for scale, shift, middle, variance in ROLES:
            stem = name[: len(name) - len(last)]
            found = tensors.get(stem + variance)
            if last == middle and len(mean.shape) == 1 and found is not None and found.shape == mean.shape:
                near = (stem + word for word in (scale, shift))
                gamma, beta = (n if n in tensors and tensors[n].shape == mean.shape else "" for n in near)
                yield Normalization(gamma, beta, name, stem + variance)
                break


def folds(targets: Mapping[str, Tensor], sources: Mapping[str, Tensor]) -> list[Match]:
    """Targets that are a source's weight or bias with a normalization among the sources folded in."""
    import numpy as np

    with np.errstate(all="ignore"):  # weights may hold anything
        return list(_folds(targets, sources))


def _folds(targets: Mapping[str, Tensor], sources: Mapping[str, Tensor]) -> Iterator[Match]:
    norms: defaultdict[int, list[Norm]] = defaultdict(list)
    for names in normalizations(sources):
        if sources[names.mean].dtype.name in FLOATS and sources[names.mean].size <= CHANNELS:
            norms[sources[names.mean].size].append(Norm.read(names, sources))
    weights = {n: t for n, t in targets.items() if _is_weight(t)}
    biases = {n: t for n, t in targets.items() if t.dtype.name in FLOATS and len(t.shape) == 1}
    done: set[str] = set()
    for layer in _layers(weights, sources, norms.keys()):
        free = [norm for norm in norms[layer.channels] if norm.names.mean not in done]
        if layer.target in done or layer.source in done or not free:
            continue
        found = _weight(layer, weights[layer.target], sources[layer.source], free)
        if found is not None:
            match, norm, eps = found
            done.update((layer.target, layer.source, norm.names.mean))
            yield match
            near = {n: t for n, t in biases.items() if n not in done and t.size == layer.channels}
            bias = _bias(layer.source, norm, eps, near, sources)
            if bias is not None:
                done.add(bias.target)
                yield bias


def _is_weight(tensor: Tensor) -> bool:
    return tensor.dtype.name in FLOATS and 1 < len(tensor.shape) <= AXES and 0 < tensor.nbytes <= LARGEST


class _Layer(NamedTuple):
    """A weight that may be another one with its channels scaled."""

    target: str
    source: str
    dims: tuple[int, ...]  # order of the source's axes that gives the target's
    dim: int  # the channels' axis in the source
    channels: int


def _layers(
    targets: Mapping[str, Tensor], sources: Mapping[str, Tensor], channels: Collection[int]
) -> Iterator[_Layer]:
    """Pairs of weights whose channels point in the same directions, whatever their lengths."""
    alike: dict[tuple[str, tuple[int, ...]], list[str]] = defaultdict(list)
    for name, tensor in sources.items():
        if _is_weight(tensor):
            alike[tensor.dtype.name, tensor.shape].append(name)
    known: dict[tuple[str, int], Array] = {}
    looked = 0
    for name, tensor in targets.items():
        found: list[tuple[int, bool, _Layer]] = []
        straight = tuple(range(len(tensor.shape)))
        for dims in (straight, (1, 0)) if len(straight) == 2 else (straight,):
            shape = tuple(tensor.shape[d] for d in dims)
            for dim in (d for d in (0, 1) if shape[d] in channels):
                mine = _directions(tensor, dims, dim)
                for source in alike.get((tensor.dtype.name, shape), ()):
                    looked += 1
                    if looked > PAIRS:
                        return
                    if (source, dim) not in known:
                        known[source, dim] = _directions(sources[source], straight, dim)
                    if _parallel(mine, known[source, dim]):
                        single = prod(shape) == shape[dim]  # channels of one number: any two are parallel
                        found.append((single, source != name, _Layer(name, source, dims, dim, shape[dim])))
        yield from (layer for *_, layer in sorted(found, key=lambda item: item[:2]))


def _directions(tensor: Tensor, dims: tuple[int, ...], dim: int) -> "Array":
    """The beginnings of the first channels, scaled to length 1; zeros stay zeros."""
    import numpy as np

    order = (dims[dim], *(d for axis, d in enumerate(dims) if axis != dim))
    shape = [tensor.shape[d] for d in order]
    strides = contiguous(tensor.shape)
    sizes = [min(SAMPLED, shape[0]), *_first(shape[1:], SAMPLE)]
    sample = (
        _held(strided(tensor, sizes, [strides[d] for d in order])).astype(np.float64).reshape(sizes[0], -1)
    )
    length = np.sqrt((sample * sample).sum(1, keepdims=True))
    directions: Array = np.divide(sample, length, out=np.zeros_like(sample), where=length > 0)
    return directions


def _parallel(one: "Array", other: "Array") -> bool:
    import numpy as np

    likeness = np.abs((one * other).sum(1))
    # A channel scaled by zero, or with infinities, has no direction.
    told = one.any(1) & other.any(1) & np.isfinite(likeness)
    return bool(told.any() and (likeness[told] > 1 - 1e-4).all())


def _weight(
    layer: _Layer, target: Tensor, source: Tensor, norms: list[Norm]
) -> tuple[Match, Norm, float] | None:
    """The normalization, ε and formula that take the source's weight nearest to the target."""
    import numpy as np

    wanted = np.moveaxis(_held(target).transpose(layer.dims), layer.dim, 0)
    origin = np.moveaxis(_held(source), layer.dim, 0)
    some, same = _beginnings(origin), _beginnings(wanted)
    square = (some.astype(np.float64) ** 2).sum(1)
    scale = (some.astype(np.float64) * same.astype(np.float64)).sum(1) / square
    close = CLOSE if source.dtype.bits > 16 else CLOSE_HALF
    guesses: list[tuple[float, int, float]] = []
    for k, norm in enumerate(norms):
        gamma, variance = norm.scale.astype(np.float64), norm.variance.astype(np.float64)
        for eps in EPSILONS:
            expected = gamma / np.sqrt(variance + eps)
            told = np.isfinite(scale) & np.isfinite(expected)
            error = _error(scale[told], expected[told])
            if error < close:
                guesses.append((error, k, eps))
    tried = [
        (_distance(_apply(formula, 0, some, norms[k], eps).astype(some.dtype), same), k, eps, formula)
        for _, k, eps in _likely(guesses)
        for formula in (f"{precision} {words}" for words in WEIGHT for precision in PRECISIONS)
    ]
    if not tried:
        return None
    # Of ε that make no difference the usual one; in half precision the rounding of the inputs leaves noise.
    (count, ulp), k, *_ = min(tried, key=lambda row: (row[0], EPSILONS.index(row[2])))
    if source.dtype.bits <= 16:
        count, ulp = count + count // NOISE, 2 * ulp
    alike = [row for row in tried if row[1] == k and row[0][0] <= count and row[0][1] <= ulp]
    _, k, eps, formula = min(alike, key=lambda row: (EPSILONS.index(row[2]), row[0]))
    distance = 0
    step = max(1, (1 << 20) // max(1, origin[0].size))
    for at in range(0, len(origin), step):
        rows = slice(at, at + step)
        part = Norm(norms[k].names, *(vector[rows] for vector in norms[k][1:]))
        values = _apply(formula, 0, origin[rows], part, eps).astype(origin.dtype)
        distance = max(distance, _distance(values, wanted[rows])[1])
    if distance > FAR:
        return None
    of: Expression = Folded(Source(layer.source), layer.dim, norms[k].names, eps, formula)
    if layer.dims != tuple(sorted(layer.dims)):
        of = Permute(of, layer.dims)  # only (1, 0), which is its own inverse
    return _match(layer.target, of, distance), norms[k], eps


def _likely(guesses: list[tuple[float, int, float]]) -> list[tuple[float, int, float]]:
    """The few nearest, and the ε of the nearest one's normalization that rounding may have kept from being it."""
    nearest = sorted(guesses)[:3]
    if not nearest:
        return []
    error, k, _ = nearest[0]
    return nearest + [
        guess for guess in guesses if guess[1] == k and guess[0] <= 2 * error and guess not in nearest
    ]


def _beginnings(channels: "Array") -> "Array":
    """The first elements of each channel, as a table; enough of them to tell formulas apart."""
    sizes = _first(channels.shape[1:], max(1, BEGINNINGS // max(1, len(channels))))
    return channels[(slice(None), *map(slice, sizes))].reshape(len(channels), -1)


def _first(shape: Sequence[int], count: int) -> list[int]:
    """How much to take of each axis, the last ones first, for about `count` elements."""
    sizes: list[int] = []
    for n in reversed(shape):
        sizes.insert(0, min(n, -(-count // prod(sizes))))
    return sizes


def _held(tensor: Tensor) -> "Array":
    """The values in memory: mapped files would stay there, counted as this process's."""
    return unpack(gather(tensor), tensor.dtype, tensor.size).reshape(tensor.shape)


def _bias(
    weight: str, norm: Norm, eps: float, targets: Mapping[str, Tensor], sources: Mapping[str, Tensor]
) -> Match | None:
    """The bias that belongs to a folded weight: among the targets, the one nearest to what it must be."""
    import numpy as np

    stem, _, last = weight.rpartition(segments(weight)[-1].lstrip("./"))
    own = stem + "bias" + last
    beside = sources[own] if own in sources and sources[own].shape == norm.mean.shape else None
    layer = None if beside is None else _held(beside)
    expected = _apply(f"float64 {next(iter(BIAS))}", 0, layer, norm, eps)
    close = CLOSE if norm.mean.dtype.itemsize > 2 else CLOSE_HALF
    errors = []
    for name, tensor in targets.items():
        found = _held(tensor).astype(np.float64)
        told = np.isfinite(found) & np.isfinite(expected)
        error = _error(found[told], expected[told])
        if error < close:
            errors.append((error, name != own, name))
    if not errors:
        return None
    name = min(errors)[2]
    wanted = _held(targets[name])
    tried: list[tuple[tuple[int, int], int, str]] = []
    for formula in (f"{precision} {words}" for words in BIAS for precision in PRECISIONS):
        values = _apply(formula, 0, layer, norm, eps).astype(wanted.dtype)
        tried.append((_distance(values, wanted), len(tried), formula))
    (_, distance), _, formula = min(tried)
    fold = Folded(None if layer is None else Source(own), 0, norm.names, eps, formula)
    return _match(name, fold, distance)


def _error(values: "Array", expected: "Array") -> float:
    """Greatest difference, relative to the greatest magnitude expected; infinite where there is nothing to see."""
    import numpy as np

    reach = float(np.abs(expected).max(initial=0))
    return (
        float(np.abs(values - expected).max(initial=0)) / max(reach, 1e-30) if len(expected) else float("inf")
    )


def _match(target: str, expression: Expression, distance: int) -> Match:
    why = f"computed, within {distance} ulp" if distance else ""
    if distance > NEAR:
        why = f"near, but {distance} ulp from the formula"
    return Match(target, expression, "folded", certain=distance <= NEAR, why=why, ulp=distance)


def _distance(one: "Array", other: "Array") -> tuple[int, int]:
    """How many elements differ, and by how many units of the last place at most.

    Both zeros are one number; NaN is far from everything else.
    """
    import numpy as np

    bits = one.dtype.itemsize * 8
    low = -(1 << (bits - 1))

    def ordered(values: "Array") -> "Array":
        numbers: Array = np.ascontiguousarray(values).view(f"i{bits // 8}").astype(np.int64)
        return np.where(numbers < 0, low - numbers, numbers)

    distance = np.abs(ordered(one) - ordered(other))
    if bits == 64:  # the difference of numbers of opposite sign may wrap
        distance = np.where(distance < 0, np.iinfo(np.int64).max, distance)
    return int(np.count_nonzero(distance)), int(distance.max(initial=0))

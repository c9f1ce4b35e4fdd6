"""Batch normalization folded into the convolution or linear layer before it: which, and by which arithmetic.

A weight is recognised by its channels, which folding only scales; the scales tell which normalization it was, and the
folded shift which bias. Then the formulas of `arithmetic` are computed with the usual ε, and the one that gives most
elements exactly is named, with the greatest distance in units of the last place (ulp). This is arithmetic, not proof:
only a distance of 0 says that the formula gives the very bytes. A match is not certain beyond `NEAR` ulp, nor where
another layer, normalization or bias fits as well.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

from ckptkit.core.names import segments
from ckptkit.core.tensor import Tensor
from ckptkit.match.finder.arithmetic import (
    BIAS_FORMULAS,
    WEIGHT_FORMULAS,
    Norm,
    apply,
    distance,
    error,
    held,
)
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
ALONE = "the bias that it leaves is not there"
RIVALS = "others would fit as well; chosen by name and place"

# The last parts of the names of a normalization's scale, shift, mean and variance, by framework.
ROLES = (
    ("weight", "bias", "running_mean", "running_var"),
    ("gamma", "beta", "moving_mean", "moving_variance"),
    ("scale", "bias", "mean", "var"),
)


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


def folds(
    targets: Mapping[str, Tensor],
    sources: Mapping[str, Tensor],
    plain: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> list[Match]:
    """Targets that are a source's weight or bias with a normalization among the sources folded in.

    `plain` gives, by source, further targets that hold its very values: a normalization without a mean leaves its shift
    as it is, and that is a folded bias nevertheless.
    """
    import numpy as np

    with np.errstate(all="ignore"):  # weights may hold anything
        return list(_folds(targets, sources, plain or {}))


def _folds(
    targets: Mapping[str, Tensor],
    sources: Mapping[str, Tensor],
    plain: Mapping[str, Mapping[str, Tensor]],
) -> Iterator[Match]:
    norms: defaultdict[int, list[Norm]] = defaultdict(list)
    for names in normalizations(sources):
        if sources[names.mean].dtype.name in FLOATS and sources[names.mean].size <= CHANNELS:
            norms[sources[names.mean].size].append(Norm.read(names, sources))
    if not norms:
        return
    others = [name for some in plain.values() for name in some]
    places = {name: place for place, name in enumerate((*sources, *targets, *others))}
    weights = {n: t for n, t in targets.items() if _is_weight(t)}
    biases = {n: t for n, t in targets.items() if t.dtype.name in FLOATS and len(t.shape) == 1}
    for layers in _layers(weights, sources, norms.keys()):
        fit, sure = _best(layers, weights, sources, norms, places)
        if fit is None:
            continue
        layer, norm = fit.layer, fit.norm
        of: Expression = Folded(Source(layer.source), layer.dim, norm.names, fit.eps, fit.formula)
        if layer.dims != tuple(sorted(layer.dims)):
            of = Permute(of, layer.dims)  # only (1, 0), which is its own inverse
        near = {n: t for n, t in biases.items() if t.size == layer.channels}
        bias = _bias(fit, near | dict(plain.get(norm.names.shift, {})), sources, places)
        yield _match(layer.target, of, fit.ulp, sure, bias is not None)
        if bias is not None:
            biases.pop(bias.target, None)
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
) -> Iterator[list[_Layer]]:
    """For each target the weights whose channels point in the same directions, whatever their lengths."""
    alike: dict[tuple[str, tuple[int, ...]], list[str]] = defaultdict(list)
    for name, tensor in sources.items():
        if _is_weight(tensor):
            alike[tensor.dtype.name, tensor.shape].append(name)
    known: dict[tuple[str, int], Array] = {}
    looked = 0
    for name, tensor in targets.items():
        found: list[_Layer] = []
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
                        found.append(_Layer(name, source, dims, dim, shape[dim]))
        yield found


def _directions(tensor: Tensor, dims: tuple[int, ...], dim: int) -> "Array":
    """The beginnings of the first channels, scaled to length 1; zeros stay zeros."""
    import numpy as np

    order = (dims[dim], *(d for axis, d in enumerate(dims) if axis != dim))
    shape = [tensor.shape[d] for d in order]
    strides = contiguous(tensor.shape)
    sizes = [min(SAMPLED, shape[0]), *_first(shape[1:], SAMPLE)]
    sample = (
        held(strided(tensor, sizes, [strides[d] for d in order])).astype(np.float64).reshape(sizes[0], -1)
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


class _Fit(NamedTuple):
    """What takes a layer's weight to the target."""

    ulp: int
    layer: _Layer
    norm: Norm
    eps: float
    formula: str


def _best(
    layers: Iterable[_Layer],
    targets: Mapping[str, Tensor],
    sources: Mapping[str, Tensor],
    norms: Mapping[int, list[Norm]],
    places: Mapping[str, int],
) -> tuple[_Fit | None, bool]:
    """The nearest of all fits of one target, and whether no other one does as well."""
    fits: list[_Fit] = []
    for layer in layers:
        fits += _fits(layer, targets[layer.target], sources[layer.source], norms[layer.channels])
    if not fits:
        return None, False
    reach = _reach(min(fit.ulp for fit in fits))
    rivals = [fit for fit in fits if fit.ulp <= reach]

    def suits(fit: _Fit) -> tuple[int, bool, int]:
        apart = (
            places[fit.norm.names.mean] - places[fit.layer.source]
        )  # a normalization comes after its layer
        return fit.ulp if fit.ulp > NEAR else 0, fit.layer.source != fit.layer.target, apart % len(places)

    return min(rivals, key=suits), len({(fit.layer, fit.norm.names) for fit in rivals}) == 1


def _reach(ulp: int) -> int:
    """How far away something does as well as what is `ulp` away: nowhere but there if that is exact."""
    return max(ulp, NEAR) if ulp else 0


def _fits(layer: _Layer, target: Tensor, source: Tensor, norms: list[Norm]) -> Iterator[_Fit]:
    """The normalizations that take the source's weight to the target, each with its ε and formula."""
    import numpy as np

    wanted = np.moveaxis(held(target).transpose(layer.dims), layer.dim, 0)
    origin = np.moveaxis(held(source), layer.dim, 0)
    some, same = _beginnings(origin), _beginnings(wanted)
    square = (some.astype(np.float64) ** 2).sum(1)
    scale = (some.astype(np.float64) * same.astype(np.float64)).sum(1) / square
    close = CLOSE if source.dtype.bits > 16 else CLOSE_HALF
    step = max(1, (1 << 20) // max(1, origin[0].size))
    for norm in norms:
        chosen = _formula(some, same, scale, norm, close)
        if chosen is None:
            continue
        eps, formula = chosen
        ulp = 0
        for at in range(0, len(origin), step):
            rows = slice(at, at + step)
            values = apply(formula, 0, origin[rows], norm.of(rows), eps).astype(origin.dtype)
            ulp = max(ulp, distance(values, wanted[rows])[1])
            if ulp > FAR:
                break
        else:
            yield _Fit(ulp, layer, norm, eps, formula)


def _formula(
    some: "Array", same: "Array", scale: "Array", norm: Norm, close: float
) -> tuple[float, str] | None:
    """The ε and formula that take the beginnings of a weight nearest to the target's; None if none comes near."""
    import numpy as np

    gamma, variance = norm.scale.astype(np.float64), norm.variance.astype(np.float64)
    guesses = [(error(scale, gamma / np.sqrt(variance + eps)), eps) for eps in EPSILONS]
    guesses = sorted(guess for guess in guesses if guess[0] < close)
    likely = guesses[:3] + [guess for guess in guesses[3:] if guess[0] <= 2 * guesses[0][0]]
    tried = [
        (distance(apply(formula, 0, some, norm, eps).astype(some.dtype), same), eps, formula)
        for _, eps in likely
        for formula in WEIGHT_FORMULAS
    ]
    if not tried:
        return None
    # Of ε that make no difference the usual one; in half precision the rounding of the inputs leaves noise.
    (count, ulp), *_ = min(tried, key=lambda row: (row[0], EPSILONS.index(row[1])))
    if some.dtype.itemsize <= 2:
        count, ulp = count + count // NOISE, 2 * ulp
    alike = [row for row in tried if row[0][0] <= count and row[0][1] <= ulp]
    _, eps, formula = min(alike, key=lambda row: (EPSILONS.index(row[1]), row[0]))
    return eps, formula


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


def _bias(
    fit: _Fit, targets: Mapping[str, Tensor], sources: Mapping[str, Tensor], places: Mapping[str, int]
) -> Match | None:
    """The bias that belongs to a folded weight: among the targets, the one nearest to what it must be."""
    norm, weight = fit.norm, fit.layer.source
    stem, _, last = weight.rpartition(segments(weight)[-1].lstrip("./"))
    own = stem + "bias" + last
    beside = sources[own] if own in sources and sources[own].shape == norm.mean.shape else None
    layer = None if beside is None else held(beside)
    expected = apply(BIAS_FORMULAS[1], 0, layer, norm, fit.eps)
    close = CLOSE if norm.mean.dtype.itemsize > 2 else CLOSE_HALF
    made = [(apply(formula, 0, layer, norm, fit.eps), formula) for formula in BIAS_FORMULAS]
    tried: list[tuple[int, bool, int, int, str, str]] = []
    for name, tensor in targets.items():
        found = held(tensor)
        if error(found.astype(expected.dtype), expected) < close:
            (_, ulp), order, formula = min(
                (distance(values.astype(found.dtype), found, norm.shift), order, formula)
                for order, (values, formula) in enumerate(made)
            )
            apart = (places[name] - places[fit.layer.target]) % len(places)  # it comes after its weight
            tried.append((ulp, name != own, apart, order, formula, name))
    if not tried:
        return None
    ulp, *_, formula, name = min(tried)
    fold = Folded(None if layer is None else Source(own), 0, norm.names, fit.eps, formula)
    return _match(name, fold, ulp, sum(row[0] <= _reach(ulp) for row in tried) == 1)


def _match(target: str, expression: Expression, ulp: int, sure: bool, whole: bool = True) -> Match:
    why = f"computed, within {ulp} ulp" if ulp else ""
    if ulp > NEAR:
        why = f"near, but {ulp} ulp from the formula"
    elif not sure:
        why = RIVALS
    elif not whole:
        why = ALONE
    return Match(
        target, expression, "folded", certain=not why or why.startswith("computed"), why=why, ulp=ulp
    )

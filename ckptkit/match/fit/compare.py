"""How a checkpoint fits a target: names, dtypes, shapes, ties and what else is demanded. Manifest only."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ckptkit.core.graph import TensorGraph
from ckptkit.core.tensor import Tensor
from ckptkit.match.schemes import unwrapped
from ckptkit.targets.target import Dim, Size, Spec, Target, dtypes_text, weights


class Mismatch(NamedTuple):
    """A tensor that is there and not as expected; `what` is `shape` or `dtype`."""

    name: str
    what: str
    expected: str
    found: str


@dataclass(frozen=True, slots=True)
class Fit:
    """The comparison.

    Attributes:
        tensors: the checkpoint's weights, by name.
        missing: names expected and not there (optional ones left out).
        unexpected: names that nothing expects.
        mismatched: tensors of another dtype or shape.
        dimensions: name → size, those settled by the checkpoint included.
        fitting: how many tensors are exactly as expected.
    """

    tensors: Mapping[str, Tensor]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[Mismatch, ...]
    dimensions: Mapping[str, int]
    fitting: int


def fit(graph: TensorGraph, target: Target) -> Fit:
    """Compare names, dtypes and shapes; names are those that a tensor is loaded under."""
    tensors = weights(graph)
    if target.kind == "contract" and tensors is not graph.tensors:  # constants count where they are named
        tensors = {n: t for n, t in graph.tensors.items() if n in tensors or n in target.tensors}
    if target.loader is not None and (new := target.loader.names(tensors, target.tensors)):
        tensors = {new.get(name, name): tensor for name, tensor in tensors.items()}
    return compare(tensors, target)


def closest(graph: TensorGraph, target: Target) -> Target:
    """Of a target that has others, the one whose names are most like the checkpoint's, wrappers aside."""
    if not target.others:
        return target
    names = {unwrapped(name) for name in weights(graph)}

    def likeness(one: Target) -> float:
        required = {unwrapped(name) for name, spec in one.tensors.items() if not spec.optional}
        return len(names & set(map(unwrapped, one.tensors))) / len(names | required)

    return max((target, *target.others), key=likeness)


def compare(tensors: Mapping[str, Tensor], target: Target) -> Fit:
    """As `fit`, for tensors under whatever names."""
    sizes = _settled(tensors, target)
    missing = []
    mismatched: list[Mismatch] = []
    fitting = 0
    texts: dict[Spec, tuple[tuple[int | None, ...] | None, str]] = {}
    for name, spec in target.tensors.items():
        tensor = tensors.get(name)
        if tensor is None:
            if not spec.optional:
                missing.append(name)
            continue
        if spec not in texts:
            texts[spec] = (concrete(spec, sizes), dtypes_text(spec.dtypes))
        shape, dtypes = texts[spec]
        good = True
        if spec.dtypes and tensor.dtype.name not in spec.dtypes:
            mismatched.append(Mismatch(name, "dtype", dtypes, tensor.dtype.name))
            good = False
        if shape is not None and shape != tensor.shape and not _agrees(shape, tensor.shape):
            mismatched.append(Mismatch(name, "shape", shape_text(shape), shape_text(tensor.shape)))
            good = False
        fitting += good
    unexpected = () if target.unlisted else tuple(name for name in tensors if name not in target.tensors)
    return Fit(tensors, tuple(missing), unexpected, tuple(mismatched), sizes, fitting)


def concrete(spec: Spec, sizes: Mapping[str, int]) -> tuple[int | None, ...] | None:
    """The shape with dimensions replaced by their sizes; None where any size will do."""
    return None if spec.shape is None else tuple(_value(size, sizes) for size in spec.shape)


def shape_text(shape: Iterable[int | None]) -> str:
    """`32000×8192`; `scalar` without dimensions, `?` for any size."""
    return "×".join("?" if size is None else str(size) for size in shape) or "scalar"


def _value(size: Size, sizes: Mapping[str, int]) -> int | None:
    if isinstance(size, Dim):
        known = sizes.get(size.name)
        return None if known is None else known * size.factor
    return size


def _agrees(expected: tuple[int | None, ...], found: tuple[int, ...]) -> bool:
    return len(expected) == len(found) and all(e in (None, f) for e, f in zip(expected, found, strict=True))


def _settled(tensors: Mapping[str, Tensor], target: Target) -> dict[str, int]:
    """The dimensions, those of any size settled by what most tensors say."""
    sizes = {name: size for name, size in target.dimensions.items() if size is not None}
    votes: dict[str, Counter[int]] = {name: Counter() for name in target.dimensions if name not in sizes}
    if votes:
        for name, spec in target.tensors.items():
            tensor = tensors.get(name)
            if tensor is None or spec.shape is None or len(spec.shape) != len(tensor.shape):
                continue
            for size, found in zip(spec.shape, tensor.shape, strict=True):
                if isinstance(size, Dim) and size.name in votes and found % size.factor == 0:
                    votes[size.name][found // size.factor] += 1
        sizes |= {name: vote.most_common(1)[0][0] for name, vote in votes.items() if vote}
    return sizes


def ties(graph: TensorGraph, target: Target) -> list[tuple[str, ...]]:
    """Groups of names that should share their bytes, are all there, and do not."""
    if not target.ties:
        return []
    first = graph.ties()
    broken = []
    for group in target.ties:
        present = [name for name in group if name in graph.tensors]
        if len({first.get(name, name) for name in present}) > 1:
            broken.append(tuple(present))
    return broken

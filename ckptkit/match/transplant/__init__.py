"""Putting new weights into an ONNX graph that was exported from other ones.

Every weight of the graph is explained: by its name in the checkpoint, or, given the checkpoint that the graph was
exported from, by the finder, as an expression over the names of that checkpoint. The expressions are then computed over
the new weights, so that transposes, joins and folded normalizations are repeated as the exporter did them.

Nothing is guessed. What neither side can account for is refused:

- a tensor of the graph that nothing explains is the graph's own if it cannot hold weights (64-bit, 32-bit or 16-bit
  integers, bools, single numbers, tensors of at most two values, such as masks); if every weight of the checkpoint is
  found elsewhere, it may be a table that the exporter computed (anchors, positions): that it stays while weights change
  is a loss, `constants-kept`, and told by a note of that code where it has at most two values;
- a weight of the checkpoint that the graph lacks is left out if its values are those it had at the export; otherwise
  that is a loss, `weights-unused`, as is a weight that was a copy of another one then and is none now;
- a weight that several tensors could have given is a loss, `weights-ambiguous`, if these differ by now; so is one
  whose values are the same however they lie (zeros, an identity), and that might be transposed.

A weight whose ingredients are unchanged keeps the graph's own bytes where they could not be given exactly: so putting
the base weights back gives the base graph, bit for bit.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ckptkit.core.errors import CkptError
from ckptkit.core.findings import Finding
from ckptkit.core.graph import TensorGraph, Value
from ckptkit.core.tensor import Tensor
from ckptkit.match.finder import TWINS, Cast, Correspondence, Match, Permute, Source, equal, find
from ckptkit.match.transplant.doubts import ambiguous, like, listed, partial, placeless
from ckptkit.match.transplant.head import resized
from ckptkit.match.transplant.produce import produce
from ckptkit.match.transplant.recurrent import packed

_QUANTIZED = re.compile(
    r"^(DequantizeLinear|QLinear|QGemm|QAttention|ConvInteger|MatMulInteger|.*NBits|.*BnB4)"
)


@dataclass(frozen=True, slots=True)
class Placed:
    """One weight of the graph.

    Attributes:
        name: of the initializer, Constant or attribute.
        sources: names in the checkpoint.
        operation: how it is made of them, in one line; the name alone where it is that tensor.
        kept: its ingredients are unchanged, and the graph's own bytes stay.
        ulp: how far the operation was from the graph's values on the checkpoint that it was exported from.
    """

    name: str
    sources: tuple[str, ...]
    operation: str
    kept: bool = False
    ulp: int = 0


@dataclass(frozen=True, slots=True)
class Transplant:
    """A graph with new weights.

    Attributes:
        graph: the base graph, its weights replaced.
        weights: every weight of the graph, in its order.
        constants: the graph's own tensors, which stay.
        unused: weights of the checkpoint that the graph has no place for.
        losses, notes: what must be allowed, and what is worth telling.
    """

    graph: TensorGraph
    weights: tuple[Placed, ...]
    constants: tuple[str, ...]
    unused: tuple[str, ...]
    losses: tuple[Finding, ...]
    notes: tuple[Finding, ...]


def transplant(
    weights: TensorGraph, base: TensorGraph, origin: TensorGraph | None = None, *, head_change: bool = False
) -> Transplant:
    """`base` with the weights of `weights`; `origin` is the checkpoint that `base` was exported from.

    `head_change` lets the last layer have another number of classes (`head`). Raises CkptError `graph-needed` when
    `base` is no ONNX model, `transplant-unaccounted`, `transplant-missing`, `transplant-shape`, `head-change`.
    """
    if not base.nodes:
        raise CkptError(
            "graph-needed", "this holds weights only, and no graph to put them into", base.origin.path
        )
    if origin is None:
        return _by_name(weights, base, head_change)
    found = _found(origin, base)
    used = {name for match in found.pairs for name in match.sources}
    lost = [name for name in found.unmatched_a if not _is_index(origin[name])]
    own = [name for name in found.unmatched_b if not _is_own(base[name])]
    filled = [name for name in found.unmatched_b if base[name].dtype.kind == "float" and base[name].size > 1]
    _refuse_quantized(lost, base)
    if own and lost:
        hint = f"is {origin.origin.path} what it was exported from? --exclude leaves out what has no place in the graph"
        raise _unaccounted(own, lost, base, hint)
    _complete(used, weights, origin, base, head_change)
    supply = {name: like(weights[name], origin[name], name) for name in used}
    losses = [
        *ambiguous(found.pairs, supply, origin, base),
        *partial(found.pairs, supply, origin, [base[name] for name in filled]),
    ]
    left = [name for name in weights if name not in used and not _is_index(weights[name])]
    losses += placeless(left, weights, origin, supply, base)
    sizes = _resized(found.pairs, supply, origin, base)
    placed = [_place(match, supply, origin, base, sizes) for match in found.pairs]
    worst = max((p.ulp for p, _ in placed if not p.kept), default=0)
    losses += _tables(own, supply, origin)
    notes = [*_filled([name for name in filled if name not in own])]
    if worst:
        text = f"folds are repeated by the formula that gives the base's values within {worst} ulp"
        notes.append(Finding("fold-inexact", "note", "", text))
    return _result(base, placed, left, losses, notes, sizes)


def _found(origin: TensorGraph, base: TensorGraph) -> Correspondence:
    """What the finder explains; parts and copies of what it found under its own name; packed biases."""
    found = find(origin, base)
    left = {name: base[name] for name in found.unmatched_b if not _is_own(base[name])}
    if left:  # parts of what the graph holds under its own name as well
        axes = {n for tensor in left.values() for n in tensor.shape if n > 1}
        parts = {name: tensor for name, tensor in origin.items() if not axes.isdisjoint(tensor.shape)}
        found = found.with_pairs(find(parts, left).pairs)
    biases = {match.target: match for match in packed(found.pairs, origin, base)}
    placed = {name for match in biases.values() for name in match.sources}
    # Other tensors of one value, such as initial states, seemed to be those biases.
    twins = (match for match in found.pairs if match.why in TWINS and placed.issuperset(match.sources))
    guesses = {match.target for match in twins if _is_two_valued(base[match.target])}
    return found.with_pairs(biases.values(), without=guesses - biases.keys())


def _by_name(weights: TensorGraph, base: TensorGraph, head_change: bool) -> Transplant:
    """Names decide; every weight must have its place, and every place its weight."""
    hint = "--exported-from PATH, the checkpoint that the graph was exported from, finds them by content"
    common = [name for name in base if name in weights]
    lost = [name for name in weights if name not in base and not _is_index(weights[name])]
    own = [name for name in base if name not in weights and not _is_own(base[name])]
    _refuse_quantized(lost, base)
    if lost or not common:
        raise _unaccounted(own, lost, base, hint)
    for name in common:
        if not head_change:
            _fits(name, weights[name], base[name], hint)
    supply = {name: like(weights[name], base[name], name) for name in common}
    pairs = [Match(name, Source(name), "same") for name in common]
    sizes = _resized(pairs, supply, base, base)
    placed = [_place(match, supply, None, base, sizes) for match in pairs]
    text = "weights were matched by name alone; --exported-from proves the match"
    notes = [Finding("matched-by-name", "note", "", text)]
    return _result(base, placed, (), [*_tables(own, supply, base)], notes, sizes)


def _resized(
    pairs: Iterable[Match], supply: Mapping[str, Tensor], origin: TensorGraph, base: TensorGraph
) -> dict[str, tuple[int, int]]:
    """Values of the graph whose declared sizes change, as `head.resized` gives them.

    Raises CkptError `head-change` for a layer whose weights were not merely moved into the graph, and its errors.
    """
    changed = {name for name, tensor in supply.items() if tensor.shape != origin[name].shape}
    shapes = {}
    for match in pairs if changed else ():
        if changed.isdisjoint(match.sources):
            continue
        inner = match.expression
        while isinstance(inner, Permute | Cast):
            inner = inner.of
        if not isinstance(inner, Source):
            what = f"the graph has {match.text}, which does not go with another shape of {match.sources[0]!r}"
            raise CkptError("head-change", what, base.origin.path, "export the new model")
        shapes[match.target] = produce(match.expression, supply).shape
    return resized(base, shapes) if shapes else {}


def _result(
    base: TensorGraph,
    placed: Sequence[tuple[Placed, Tensor]],
    unused: Sequence[str],
    losses: Sequence[Finding],
    notes: Sequence[Finding],
    sizes: Mapping[str, tuple[int, int]],
) -> Transplant:
    new = {entry.name: tensor for entry, tensor in placed}
    graph = replace(base, tensors={name: new.get(name, tensor) for name, tensor in base.items()})
    if sizes:
        graph = replace(
            graph,
            inputs=tuple(_sized(value, sizes) for value in base.inputs),
            outputs=tuple(_sized(value, sizes) for value in base.outputs),
            native=replace(base.native, resized=sizes),
        )
        (size,) = {size for _, size in sizes.values()}
        text = f"the last layer gives {size} classes now; so do the declared shapes of {listed(list(sizes))}"
        notes = [*notes, Finding("head-changed", "note", "", text)]
    constants = tuple(name for name in base if name not in new)
    return Transplant(
        graph, tuple(entry for entry, _ in placed), constants, tuple(unused), tuple(losses), tuple(notes)
    )


def _sized(value: Value, sizes: Mapping[str, tuple[int, int]]) -> Value:
    """The value with its declared shape changed, where it declares a number."""
    axis, size = sizes.get(value.name, (0, 0))
    shape = value.shape
    if not size or shape is None or not isinstance(shape[axis], int):
        return value
    place = len(shape) + axis
    return replace(value, shape=(*shape[:place], size, *shape[place + 1 :]))


def _place(
    match: Match,
    supply: Mapping[str, Tensor],
    origin: TensorGraph | None,
    base: TensorGraph,
    sizes: Mapping[str, tuple[int, int]],
) -> tuple[Placed, Tensor]:
    """A weight of the graph with its new values."""
    name, was = match.target, base[match.target]
    made = produce(match.expression, supply)
    if made.dtype is not was.dtype:
        made = like(made, was, name)
    if made.shape != was.shape and name not in sizes:
        raise CkptError(
            "transplant-shape", f"{list(made.shape)}, where the graph has {list(was.shape)}", name
        )
    if match.ulp and origin is not None:
        kept = all(equal(supply[source], origin[source]) for source in match.sources)
    else:
        kept = was.file is None and equal(made, was)  # in another encoding than the one that would be written
    tensor = was if kept else replace(made, kind=was.kind, note="", loss="")
    return Placed(name, match.sources, match.text, kept, match.ulp), tensor


def _complete(
    used: Iterable[str], weights: TensorGraph, origin: TensorGraph, base: TensorGraph, head_change: bool
) -> None:
    """Refuse weights that lack a tensor of the graph, or have it in another shape, unless that is meant."""
    missing = [name for name in origin if name in set(used) and name not in weights]
    if missing:
        raise CkptError(
            "transplant-missing",
            f"{listed(missing)}, which the graph needs, not there",
            weights.origin.path,
            f"names must be those of {origin.origin.path}; --rules renames",
        )
    for name in () if head_change else used:
        _fits(
            name,
            weights[name],
            origin[name],
            f"the graph of {base.origin.path} is made for that shape; --allow-head-change, if only the number of "
            "classes of its last layer differs",
        )


def _fits(name: str, tensor: Tensor, wanted: Tensor, hint: str) -> None:
    if tensor.shape != wanted.shape:
        text = f"{list(tensor.shape)}, where the graph was made from {list(wanted.shape)}"
        raise CkptError("transplant-shape", text, name, hint)


def _tables(own: Sequence[str], supply: Mapping[str, Tensor], origin: TensorGraph) -> Iterator[Finding]:
    """The loss of keeping, while any weight changes, what may have been computed from it."""
    if own and not all(equal(tensor, origin[name]) for name, tensor in supply.items()):
        text = f"no weight explains {listed(own)} of the graph, which would stay: wrong if trained values are in there"
        hint = "--allow-loss constants-kept, if it is a table such as anchors or positions"
        yield Finding("constants-kept", "warning", own[0], text, hint)


def _filled(own: Sequence[str]) -> Iterator[Finding]:
    if own:
        text = f"no weight explains {listed(own)}, of one or two values each, which stay"
        yield Finding("constants-kept", "note", own[0], text)


def _refuse_quantized(lost: Sequence[str], base: TensorGraph) -> None:
    found = next((node for node in base.nodes if _QUANTIZED.search(node.op)), None)
    if lost and found is not None:
        raise CkptError(
            "transplant-unaccounted",
            f"the graph is quantized ({found.op}): {listed(lost)} of the checkpoint are not in it as they are",
            base.origin.path,
            "put the weights into the graph that was quantized, and quantize that again",
        )


def _unaccounted(own: Sequence[str], lost: Sequence[str], base: TensorGraph, hint: str) -> CkptError:
    parts = []
    if own:
        parts.append(f"{listed(own)} of the graph come from no weight")
    if lost:
        parts.append(f"{listed(lost)} of the checkpoint are nowhere in the graph")
    what = "; ".join(parts) or "no name of the checkpoint is one of the graph"
    return CkptError("transplant-unaccounted", what, base.origin.path, hint)


def _is_index(tensor: Tensor) -> bool:
    """Whether it counts or points: wider integers, bools and strings hold no weights."""
    kind = tensor.dtype.kind
    return kind in ("bool", "string") or (kind in ("int", "uint") and tensor.dtype.bits > 8)


def _is_own(tensor: Tensor) -> bool:
    """Whether a tensor of a graph can be no weight, by what it is and holds."""
    return _is_index(tensor) or tensor.size <= 1 or _is_two_valued(tensor)


def _is_two_valued(tensor: Tensor) -> bool:
    """Whether it holds at most two different values, bit for bit: a mask, a filled tensor."""
    import numpy as np

    width = tensor.dtype.bits // 8
    if width not in (1, 2, 4, 8):
        return False
    seen: set[int] = set()
    for chunk in tensor.chunks():
        seen.update(np.unique(np.frombuffer(chunk, f"u{width}")).tolist()[:3])
        if len(seen) > 2:
            return False
    return True

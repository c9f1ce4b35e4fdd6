"""A checkpoint made to fit a target, for transfer learning: what fits is carried over, the rest treated as told.

Decided on names and shapes alone, before anything is read, and said as rules, which a file could hold as well.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from ckptkit.core.errors import CkptError
from ckptkit.core.graph import TensorGraph
from ckptkit.core.tensor import Tensor
from ckptkit.core.words import plural
from ckptkit.match.fit.causes import is_vocabulary
from ckptkit.match.fit.compare import Fit, closest, compare, concrete, fit, shape_text
from ckptkit.match.fit.renaming import ways
from ckptkit.rules.ruleset import Rules
from ckptkit.rules.spelling import spelled
from ckptkit.rules.template import escaped
from ckptkit.targets.target import Dim, Spec, Target, weights

Mismatched = Literal["drop", "zeros", "keep"]
What = Literal["carried", "extended", "zeros", "kept", "tied", "missing"]
_NAMED = 3  # names that an error tells


class Item(NamedTuple):
    """What becomes of one tensor that the target expects.

    `carried`: as it is, under its new name. `extended`: its rows are kept, more rows of zeros are put behind them.
    `zeros`: it is made anew. `kept`: as it is, although its shape is not that expected. `tied`: the same as another.
    `missing`: the result does not have it.

    Attributes:
        name: in the result.
        source: the tensor of the checkpoint under this name, after renaming; "" if there is none.
        shape: expected; None where nothing is demanded.
        had: the shape of the source; None without one.
        dtype: of what is made anew.
        other: what it is tied to.
        rows: how many are put behind those that it had.
    """

    name: str
    what: What
    source: str = ""
    shape: tuple[int | None, ...] | None = None
    had: tuple[int, ...] | None = None
    dtype: str = ""
    other: str = ""
    rows: int = 0


@dataclass(frozen=True, slots=True)
class Fitting:
    """What becomes of every tensor.

    Attributes:
        target: what it is fitted to.
        items: the target's tensors, in its order; optional ones that are not there are left out.
        dropped: tensors of the checkpoint that the target has no place for.
        rules: the same as rules.
    """

    target: Target
    items: tuple[Item, ...]
    dropped: tuple[str, ...]
    rules: Rules

    def names(self, what: What) -> tuple[str, ...]:
        """The tensors that this becomes of."""
        return tuple(item.name for item in self.items if item.what == what)

    def to_json(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {
            "target": self.target.path,
            "tensors": [
                {
                    "name": item.name,
                    "what": item.what,
                    "source": item.source or None,
                    "shape": item.shape,
                    "source_shape": item.had,
                    "tied_to": item.other or None,
                }
                for item in self.items
            ],
            "dropped": self.dropped,
            "rules": self.rules.text(),
        }


def fitting(graph: TensorGraph, target: Target, mismatched: Mismatched | None = None) -> Fitting:
    """Decide what becomes of every tensor.

    Args:
        graph: the checkpoint.
        target: what it is to fit.
        mismatched: what becomes of tensors of another shape and of those that are missing: `drop` leaves them out,
            `zeros` fills them with zeros, `keep` leaves those of another shape as they are. Rows of a vocabulary that
            has grown are kept with `drop` and `zeros`. None refuses unless there are no such tensors.

    Raises CkptError `fit-nothing` (no tensor but scalars fits), `fit-ambiguous` (by several prefixes equally),
    `fit-undecided` (nothing was said of what does not fit), `fit-open` (a tensor to be filled has no definite shape).
    """
    target = closest(graph, target)
    moves = _moves(graph, target)
    found = compare({new: graph[old] for old, new in moves.items()}, target)
    return _Fitting(graph, target, moves, found, mismatched).decide()


def _moves(graph: TensorGraph, target: Target) -> dict[str, str]:
    """Name in the checkpoint → name in the target, for those that have one."""
    tensors = weights(graph)
    loaded = {} if target.loader is None else target.loader.names(tensors, target.tensors)
    was = fit(graph, target)
    found = ways(was.tensors, target) if was.missing else []
    if len(found) > 1:
        said = " or ".join(way.cause for way in found[:_NAMED])
        hint = f"--rules {' --rules '.join(found[0].rules)} settles it"
        raise CkptError(
            "fit-ambiguous", f"several parts of the checkpoint fit: {said}", graph.origin.path, hint
        )
    moves: dict[str, str] = {}
    for old in tensors:
        name = loaded.get(old, old)
        new = found[0].new(name) if found else name
        if new not in target.tensors:
            new = name
        if new in target.tensors:
            moves[old] = new
    twice = [name for name, count in Counter(moves.values()).items() if count > 1]
    if twice:
        both = " and ".join(repr(old) for old, new in moves.items() if new == twice[0])
        hint = "--exclude leaves one of them out"
        raise CkptError("fit-ambiguous", f"{both} would both become {twice[0]!r}", graph.origin.path, hint)
    return moves


class _Fitting:
    def __init__(
        self,
        graph: TensorGraph,
        target: Target,
        moves: Mapping[str, str],
        found: Fit,
        mismatched: Mismatched | None,
    ) -> None:
        self.graph = graph
        self.target = target
        self.moves = moves
        self.sources = {new: old for old, new in moves.items()}
        self.sizes = found.dimensions
        self.mismatched = mismatched
        self.dtypes = _Dtypes(graph)
        # Names that are one tensor: in the checkpoint, and before all in the target.
        shared = [names for names in graph.storages() if len(names) > 1]
        stored = [[moves[name] for name in names if name in moves] for names in shared]
        self.groups = {name: group for group in (*stored, *target.ties) for name in group}

    def decide(self) -> Fitting:
        items: dict[str, Item] = {}
        for name, spec in self.target.tensors.items():
            item = self.item(name, spec)
            if item is not None:
                items[name] = item
        self.tie(items)
        # Counters of BatchNorm layers fit everywhere.
        if not any(item.what in ("carried", "extended") and item.had for item in items.values()):
            hint = "ckptkit check says how they differ; --rules brings other names over first"
            message = "not one tensor of the checkpoint fits"
            raise CkptError("fit-nothing", message, self.graph.origin.path, hint)
        if self.mismatched is None:
            self.refuse_undecided(items)
        stays = {item.source for item in items.values() if item.what in ("carried", "extended", "kept")}
        gone = [old for old in weights(self.graph) if old not in stays]
        if self.target.unlisted:
            gone = [old for old in gone if old in self.moves]
        dropped = tuple(old for old in gone if old not in self.moves)
        return Fitting(self.target, tuple(items.values()), dropped, self.rules(items, set(gone)))

    def refuse_undecided(self, items: Mapping[str, Item]) -> None:
        left = [item for item in items.values() if item.what in ("missing", "extended")]
        if left:
            told = [f"{item.name} {change(item)}" for item in left[:_NAMED]]
            more = [f"{len(left) - _NAMED} more"] if len(left) > _NAMED else []
            message = f"{plural(len(left), 'tensor')} of the target cannot be carried over: {', '.join([*told, *more])}"
            hint = "--mismatched drop, zeros or keep says what becomes of them"
            raise CkptError("fit-undecided", message, self.graph.origin.path, hint)

    def item(self, name: str, spec: Spec) -> Item | None:
        shape = concrete(spec, self.sizes)
        source = self.sources.get(name, "")
        if not source:
            if spec.optional:
                return None
            if self.mismatched == "zeros":
                return self.filled(name, spec, shape, None)
            return Item(name, "missing", "", shape)
        had = self.graph[source].shape
        if shape is None or _agrees(shape, had):
            return Item(name, "carried", source, shape, had)
        if self.mismatched == "keep":
            return Item(name, "kept", source, shape, had)
        if rows := _grown(name, spec, shape, had):
            return Item(name, "extended", source, shape, had, rows=rows)
        if self.mismatched == "zeros":
            return self.filled(name, spec, shape, self.graph[source], source)
        return Item(name, "missing", source, shape, had)

    def filled(
        self,
        name: str,
        spec: Spec,
        shape: tuple[int | None, ...] | None,
        tensor: Tensor | None,
        source: str = "",
    ) -> Item:
        if shape is None or None in shape:
            said = "no shape" if shape is None else f"the shape {shape_text(shape)}"
            hint = "write its sizes into the contract, or leave it out with --mismatched drop"
            raise CkptError(
                "fit-open", f"the target gives {name!r} {said}, which cannot be filled", None, hint
            )
        made = None if self.target.source is None else self.target.source[name]
        dtype = self.dtypes.choose(name, spec, made, tensor)
        return Item(name, "zeros", source, shape, None if tensor is None else tensor.shape, dtype)

    def tie(self, items: dict[str, Item]) -> None:
        """Names of a group that were not carried over are the same as one that was."""
        for name, group in self.groups.items():
            item = items.get(name)
            if item is None:
                continue
            there = [n for n in group if n in items and items[n].what not in ("missing", "tied")]
            carried = [n for n in there if items[n].what in ("carried", "extended", "kept")]
            first = next(iter(carried or there), name)
            apart = item.what == "carried" or (item.what == "kept" and item.source)
            if first != name and not apart and items[first].shape == item.shape:
                items[name] = item._replace(what="tied", other=first)

    def rules(self, items: Mapping[str, Item], gone: set[str]) -> Rules:
        extended = {item.source: item for item in items.values() if item.what == "extended"}
        moves = {old: None if old in gone else self.moves.get(old, old) for old in self.graph}
        rules = spelled(moves, frozenset(extended))
        for old, item in extended.items():
            pad = {"pad": {"dim": 0, "after": item.rows}}
            rules.append({"from": escaped(old), "to": escaped(item.name), "ops": [pad]})
        for item in items.values():
            if item.what == "zeros":
                made = {"fill": escaped(item.name), "shape": item.shape, "value": 0, "dtype": item.dtype}
                rules.append(made)
            elif item.what == "tied":
                rules.append({"tie": escaped(item.name), "to": escaped(item.other)})
        about = f"fit {self.target.path}"
        return Rules.of(rules, name="fit", about=about, keep_others=True)


def change(item: Item) -> str:
    """The shapes of a tensor, before and after: `1000×512 → 10×512`."""
    wanted = "" if item.shape is None else shape_text(item.shape)
    return wanted if item.had is None else f"{shape_text(item.had)} → {wanted}"


def _agrees(expected: tuple[int | None, ...], found: tuple[int, ...]) -> bool:
    return len(expected) == len(found) and all(e in (None, f) for e, f in zip(expected, found, strict=True))


def _grown(name: str, spec: Spec, expected: tuple[int | None, ...], had: tuple[int, ...]) -> int:
    """By how many rows a vocabulary has grown, if that is all that differs: the others then mean what they meant."""
    if len(expected) != len(had) or not had or not _agrees(expected[1:], had[1:]):
        return 0
    size = spec.shape[0] if spec.shape else None
    named = isinstance(size, Dim) and size.name.startswith("vocab")
    return max(0, (expected[0] or 0) - had[0]) if named or is_vocabulary(name) else 0


class _Dtypes:
    """The element type of a tensor made anew: that of the one in its place, or of its neighbours."""

    def __init__(self, graph: TensorGraph) -> None:
        self.by_end: dict[str, Counter[str]] = {}
        self.floats: Counter[str] = Counter()
        for name, tensor in graph.items():
            self.by_end.setdefault(name.rpartition(".")[2], Counter())[tensor.dtype.name] += 1
            if tensor.dtype.kind == "float":
                self.floats[tensor.dtype.name] += 1

    def choose(self, name: str, spec: Spec, made: Tensor | None, replaced: Tensor | None) -> str:
        alike = self.by_end.get(name.rpartition(".")[2], Counter())
        near = replaced.dtype.name if replaced is not None else next(iter(dict(alike.most_common(1))), "")
        near = near or next(iter(dict(self.floats.most_common(1))), "float32")
        if spec.dtypes and near not in spec.dtypes:
            common = (dtype for dtype, _ in self.floats.most_common() if dtype in spec.dtypes)
            return next(common, spec.dtypes[0])
        if spec.dtypes:
            return near
        if made is None:
            return near
        # A module in float32 takes the weights of a smaller checkpoint; what counts is the kind.
        floats = next(iter(dict(self.floats.most_common(1))), "float32")
        return floats if made.dtype.kind == "float" else made.dtype.name

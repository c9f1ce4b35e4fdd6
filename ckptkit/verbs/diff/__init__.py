"""diff: what changed between two checkpoints, and are they the same.

Names, dtypes, shapes and ties come from the headers. Tensors of one name and shape are then compared byte by byte,
and only where bytes differ, or dtypes do, are values looked at. What has no partner of its name is looked for by
content.
"""

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from ckptkit.core.errors import CkptError
from ckptkit.core.expansion import refuse_to_stream
from ckptkit.core.globs import selected
from ckptkit.core.graph import TensorGraph
from ckptkit.core.tensor import Tally, Tensor
from ckptkit.core.words import plural
from ckptkit.format import read
from ckptkit.match.compare import differing
from ckptkit.match.reading import Window, shared
from ckptkit.match.values import Tolerance, Values, comparable, distance
from ckptkit.ops.equal import passed
from ckptkit.rules.follow import follow
from ckptkit.rules.outcome import Rewrite
from ckptkit.rules.ruleset import Rules
from ckptkit.verbs.diff.graphs import is_graph, others
from ckptkit.verbs.diff.result import Diff, Entry, Kind, Other, Renamed, Side, Spec, Status

__all__ = ["Diff", "Entry", "Other", "Renamed", "Side", "Spec", "diff"]

Checkpoint = TensorGraph | str | os.PathLike[str]
_SETTINGS = ("int64", "int32", "bool")  # what shapes, axes and masks in initializers are
_COUNTER = "num_batches_tracked"  # of a batch norm: counts training steps, no graph has use for it

Progress = Callable[[str, int, int], None]  # phase, bytes done, bytes in all


def diff(
    a: Checkpoint,
    b: Checkpoint,
    *,
    section: str | None = None,
    variant: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    rules: Sequence[str | Rules] = (),
    let: Mapping[str, str | int] | None = None,
    reverse: bool = False,
    approximate: bool = False,
    values: bool = True,
    rtol: float | None = None,
    atol: float | None = None,
    progress: Progress | None = None,
) -> Diff:
    """What changed from A to B, two checkpoints of any readable format.

    Args:
        a, b: a path, or a graph as `read` gives it.
        section, variant: as in `read`, for those given as paths; a path that has no such part is read without.
        include, exclude: shell patterns of tensor names, which select from both.
        rules: rule files, presets, `auto`, `strip:PREFIX` or `add:PREFIX`, applied in order to A before comparing.
            `auto` finds those that lead to B, and what `reverse` leaves open is read off B.
        let, reverse, approximate: as for `ckptkit.convert`.
        values: compare values and look for renamed tensors; else only headers are read.
        rtol, atol: let values be equal that are as close as |a − b| ≤ atol + rtol·|b|, with the defaults 0. Without
            either only equal bits are equal.
        progress: called with the phase, the bytes done and all bytes.

    Raises CkptError when a checkpoint cannot be read, a pattern or rule applies to nothing, two tensors would
    get one name, a tolerance is negative or not finite, or far more values would be read than are stored.
    """
    given = rtol is not None or atol is not None
    tolerance = Tolerance(rtol or 0.0, atol or 0.0) if given else None
    graphs = _read(a, b, section, variant)
    right = graphs[1]
    made = follow(graphs[0], rules, let=let, reverse=reverse, approximate=approximate, like=right)
    left = made.graph
    if values:
        _refuse_unlike_rules(made)
    if include or exclude:
        chosen = set(selected(dict.fromkeys((*left, *right)), include, exclude))
        left, right = (g.select([name for name in g if name in chosen]) for g in (left, right))
    if values:
        for graph in (left, right):
            refuse_to_stream(graph)
    entries = list(_entries(left, right, tolerance, values, progress))
    renamed: list[Renamed] = []
    constants: frozenset[str] = frozenset()
    if values and any(not e.a or not e.b or not {"values", "shape"}.isdisjoint(e.kinds) for e in entries):
        from ckptkit.verbs.diff.moved import explained

        entries, renamed, found = explained(left, right, entries)
        constants = found & _settings(left, right)
    return Diff(
        a=_side(left),
        b=_side(right),
        entries=tuple(entries),
        renamed=tuple(renamed),
        constants=constants,
        other=tuple(others(left, right)),
        tolerance=tolerance,
        read=values,
    )


def _read(a: Checkpoint, b: Checkpoint, section: str | None, variant: str | None) -> list[TensorGraph]:
    """Both checkpoints; what only one has, a section or a variant, is asked of that one."""
    sources = (a, b)
    paths = sum(not isinstance(source, TensorGraph) for source in sources)
    missing: Counter[str] = Counter()

    def one(source: str | os.PathLike[str]) -> TensorGraph:
        wanted = {"section-unknown": section, "variant-missing": variant}
        while True:
            try:
                return read(source, wanted["section-unknown"], variant=wanted["variant-missing"])
            except CkptError as error:
                if wanted.get(error.code) is None:
                    raise
                missing[error.code] += 1
                if missing[error.code] == paths:
                    raise
                wanted[error.code] = None

    return [source if isinstance(source, TensorGraph) else one(source) for source in sources]


def _side(graph: TensorGraph) -> Side:
    origin = graph.origin
    left_out = tuple(s.name for s in origin.sections if origin.section and s.name != origin.section)
    return Side(origin.path, origin.format, len(graph), graph.nbytes, origin.section, left_out)


def _settings(a: TensorGraph, b: TensorGraph) -> frozenset[str]:
    """Names of what one side alone can have, where one has a graph: its shapes and axes, and torch's batch counters."""
    if is_graph(a) == is_graph(b):
        return frozenset()
    graph, other = (a, b) if is_graph(a) else (b, a)
    settings = (n for n, t in graph.items() if t.kind == "constant" or t.dtype.name in _SETTINGS)
    counters = (n for n, t in other.items() if n.rpartition(".")[2] == _COUNTER and not t.shape)
    return frozenset(settings) | frozenset(counters)


def _entries(
    a: TensorGraph, b: TensorGraph, tolerance: Tolerance | None, values: bool, progress: Progress | None
) -> Iterator[Entry]:
    common = [name for name in a if name in b]
    unequal: frozenset[str] = frozenset()
    distances: dict[str, Values | None] = {}
    if values:
        pairs = {name: (a[name], b[name]) for name in common if a[name].shape == b[name].shape}
        alike = {name: pair for name, pair in pairs.items() if pair[0].dtype is pair[1].dtype}
        unequal = differing(alike, _phase("compare", alike, progress))
        apart = {
            name: pair
            for name, pair in pairs.items()
            if name in unequal or (name not in alike and comparable(pair[0].dtype, pair[1].dtype))
        }
        distances = _distances(apart, tolerance, _phase("measure", apart, progress))
    groups = [[names for names in graph.storages() if len(names) > 1] for graph in (a, b)]
    ties = [_ties(some, set(common)) for some in groups]
    firsts = [{name: names[0] for names in some for name in names[1:]} for some in groups]

    def spec(side: int, name: str, tensor: Tensor) -> Spec:
        return Spec(tensor.dtype.name, tensor.shape, firsts[side].get(name), _layout(tensor))

    for name, tensor in a.items():
        other = b.get(name)
        if other is None:
            yield Entry(name, "removed", (), spec(0, name, tensor), None)
            continue
        measured = distances.get(name)
        moved = name in unequal if measured is None else not measured.equal
        facts: tuple[tuple[Kind, bool], ...] = (
            ("dtype", tensor.dtype is not other.dtype),
            ("shape", tensor.shape != other.shape),
            ("layout", _layout(tensor) != _layout(other)),
            ("values", moved),
            ("tie", ties[0].get(name) != ties[1].get(name)),
        )
        kinds = tuple(kind for kind, holds in facts if holds)
        status: Status = "equal"
        if kinds:
            status = "changed"
        elif not values:
            status = "unread"
        elif measured is not None and measured.changed:
            status = "close"
        shown = measured if measured is not None and measured.changed else None
        yield Entry(name, status, kinds, spec(0, name, tensor), spec(1, name, other), shown)
    for name, tensor in b.items():
        if name not in a:
            yield Entry(name, "added", (), None, spec(1, name, tensor))


def _layout(tensor: Tensor) -> str:
    """What the reader says of a part of a sparse, nested or sharded tensor, or of the axis of a quantised one."""
    return tensor.note if tensor.loss or tensor.dtype.kind == "quantized" else ""


def _ties(groups: Sequence[tuple[str, ...]], common: set[str]) -> dict[str, tuple[str, ...]]:
    """Tied name → all names of its group, of those that are in both checkpoints."""
    shared_names = (tuple(sorted(common.intersection(names))) for names in groups)
    return {name: names for names in shared_names if len(names) > 1 for name in names}


def _distances(
    pairs: Mapping[str, tuple[Tensor, Tensor]],
    tolerance: Tolerance | None,
    progress: Callable[[int], None] | None,
) -> dict[str, Values | None]:
    found: dict[str, Values | None] = {}
    lock = threading.Lock()

    @contextmanager
    def worker() -> Iterator[Callable[[str], None]]:
        with Window() as left, Window() as right:

            def measure(name: str) -> None:
                a, b = pairs[name]
                found[name] = distance(a, b, tolerance, (left, right))
                if progress is not None:
                    with lock:
                        progress(a.nbytes)

            yield measure

    largest_first = sorted(pairs, key=lambda name: -pairs[name][0].nbytes)
    shared(largest_first, worker, sum(a.nbytes for a, _ in pairs.values()))
    return found


def _phase(
    name: str, pairs: Mapping[str, tuple[Tensor, Tensor]], progress: Progress | None
) -> Callable[[int], None] | None:
    """A progress of its own for one phase, in bytes of A."""
    if progress is None:
        return None
    total = sum(a.nbytes for a, _ in pairs.values())
    done = 0

    def advance(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        progress(name, done, total)

    return advance


def _refuse_unlike_rules(made: Rewrite) -> None:
    """Raise where rules drop a tensor for what it holds, and it holds something else."""
    tally = Tally()
    names = passed(made.checks, tally)
    for code, count in tally.counts.items():
        message = f"the rules leave out {plural(count, 'value')} that they expect to be others"
        raise CkptError(code, message, ", ".join(names[:5]), "a plain drop leaves them out")

"""What applying rules gives: the new graph, and for each of its names where it came from."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from ckptkit.core.errors import CkptError
from ckptkit.core.findings import Finding
from ckptkit.core.graph import TensorGraph
from ckptkit.core.tensor import Tensor


class RulesError(CkptError):
    """Rules that do not fit a checkpoint. `findings` are all the problems; code and place are those of the first."""

    def __init__(self, findings: Sequence[Finding]) -> None:
        self.findings = tuple(finding for finding in findings if finding.severity == "error")
        first = self.findings[0]
        super().__init__(first.code, first.message, first.where, first.hint or None)

    def __str__(self) -> str:
        return "\n".join(f"{finding.where}: {finding.message}" for finding in self.findings)


class Trace(NamedTuple):
    """How a tensor came to be: `sources` are names as read, `rule` is file:line ("" where nothing was done)."""

    sources: tuple[str, ...]
    rule: str = ""
    operations: tuple[str, ...] = ()


class Product(NamedTuple):
    """A tensor of the new graph: at `place` in its order, the very tensor of its source if `tensor` is None."""

    place: float
    name: str
    sources: tuple[str, ...]
    rule: str
    operations: tuple[str, ...] = ()
    tensor: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Rewrite:
    """What applying rules gave.

    Attributes:
        graph: the graph under its new names; tensors that were only renamed are the same objects.
        trace: new name → where it came from, for every name.
        dropped: names that go nowhere.
        checks: names and tensors to be streamed, to nowhere, for what they compare: what is dropped must be what the
            rules say.
        findings: notes.
    """

    graph: TensorGraph
    trace: Mapping[str, Trace]
    dropped: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    checks: tuple[tuple[str, Tensor], ...] = ()


def unchanged(graph: TensorGraph, note: Finding) -> Rewrite:
    """Nothing to do."""
    return Rewrite(graph, {name: Trace((name,)) for name in graph}, findings=(note,))


def rewritten(
    graph: TensorGraph,
    products: Sequence[Product],
    dropped: Sequence[str],
    findings: Sequence[Finding],
    checks: Sequence[tuple[str, Tensor]],
) -> Rewrite:
    """The graph of these products, which are in order and have different names."""
    single = (p for p in reversed(products) if len(p.sources) == 1 and p.operations != ("tie",))
    names = {p.sources[0]: p.name for p in single}  # of several targets the first
    changed = {old: new for old, new in names.items() if old != new}
    tensors = {p.name: graph[p.sources[0]] if p.tensor is None else p.tensor for p in products}
    if graph.nodes:
        gone = [name for name in graph if name not in names]
        kept = graph.select([name for name in graph if name in names]) if gone else graph
        result = replace(kept.rename(changed), tensors=tensors)
    else:
        renamed = {new: graph.renamed.get(old, old) for old, new in names.items()}
        result = replace(
            graph,
            tensors=tensors,
            renamed={new: first for new, first in renamed.items() if new != first},
            metadata=graph.metadata,
        )
    result = replace(result, metadata=_moved(graph.metadata, changed))
    trace = {p.name: Trace(p.sources, p.rule, p.operations) for p in products}
    notes = tuple(finding for finding in findings if finding.severity != "error")
    return Rewrite(result, trace, tuple(dropped), notes, tuple(checks))


def _moved(metadata: Mapping[str, str], changed: Mapping[str, str]) -> Mapping[str, str]:
    """Module paths in a state dict's `_metadata` move with the names below them ("" is the root module)."""
    if "_metadata" not in metadata or not changed:
        return metadata
    try:
        old = json.loads(metadata["_metadata"])
    except ValueError:  # somebody's own text
        return metadata
    if not isinstance(old, dict):
        return metadata
    paths = _modules(changed.items())
    paths[""] = paths.get("") or ""  # the root stays, unless it moves
    new = {paths.get(path, path): facts for path, facts in old.items() if paths.get(path, path) is not None}
    return {**metadata, "_metadata": json.dumps(new, separators=(",", ":"))}


def _modules(changed: Iterable[tuple[str, str]]) -> dict[str, str | None]:
    """Old module path → new one, for the modules above renamed tensors; None where no module is in its place."""
    paths: dict[str, str | None] = {}
    for old, new in changed:
        before, after = old.split("."), new.split(".")
        same = True
        for depth in range(1, len(before) + 1):
            same = same and depth <= len(after) and before[-depth] == after[-depth]
            path = ".".join(before[:-depth])
            if same:
                paths[path] = ".".join(after[:-depth])
            else:
                paths.setdefault(path, None)
    return paths

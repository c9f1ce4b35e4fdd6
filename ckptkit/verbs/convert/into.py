"""`--into`: the weights go into the graph of another model, instead of a model or file of their own."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ckptkit.core.errors import CkptError
from ckptkit.core.expansion import refuse_to_stream
from ckptkit.core.findings import Finding
from ckptkit.core.globs import matching
from ckptkit.core.graph import TensorGraph
from ckptkit.core.plan import Layout
from ckptkit.core.tensor import Extent, Tensor
from ckptkit.format import read
from ckptkit.match.transplant import Transplant, transplant
from ckptkit.rules.outcome import Rewrite, Trace


@dataclass(frozen=True, slots=True)
class Into:
    """A graph that weights go into, and what was read for it."""

    base: TensorGraph
    origin: TensorGraph | None
    done: Transplant

    @property
    def inputs(self) -> tuple[TensorGraph, ...]:
        """The checkpoints read beside the source."""
        return (self.base,) if self.origin is None else (self.base, self.origin)

    @property
    def head_changed(self) -> bool:
        """Whether the last layer gives another number of classes than in the base."""
        return any(note.code == "head-changed" for note in self.done.notes)

    @property
    def left_out(self) -> tuple[str, ...]:
        if not self.done.unused:
            return ()
        return (f"{len(self.done.unused)} weights that the graph has no place for",)

    def name_map(self) -> dict[str, Any]:
        """Which weight of the graph comes from which of the checkpoint, and how, as JSON-able values."""
        return {
            "schema": "ckptkit.name-map/1",
            "base": self.base.origin.path,
            "exported_from": None if self.origin is None else self.origin.origin.path,
            "weights": [
                {
                    "initializer": placed.name,
                    "sources": placed.sources,
                    "operation": placed.operation,
                    "dtype": self.done.graph[placed.name].dtype.name,
                    "shape": self.done.graph[placed.name].shape,
                    "kept": placed.kept,
                    "ulp": placed.ulp,
                }
                for placed in self.done.weights
            ],
            "constants": self.done.constants,
            "unused": self.done.unused,
        }

    def text(self) -> str:
        """The name map as a JSON document."""
        return json.dumps(self.name_map(), indent=1) + "\n"


def put_into(
    rewrite: Rewrite,
    into: str | os.PathLike[str],
    exported_from: str | os.PathLike[str] | None,
    section: str | None,
    include: Sequence[str],
    exclude: Sequence[str],
    head_change: bool,
) -> tuple[Into, Rewrite]:
    """The rewrite of a source, carried on into the graph of the model `into`.

    `include` and `exclude` apply to the checkpoint `exported_from` as they do to the source, so that what is left out
    of one is no riddle in the other. Raises what `read` and `transplant` raise.
    """
    base = read(os.fspath(into))
    origin = (
        None if exported_from is None else read(os.fspath(exported_from), _section(exported_from, section))
    )
    if origin is not None and (include or exclude):
        kept = _matching(origin, include) if include else set(origin)
        origin = origin.select([name for name in origin if name in kept - _matching(origin, exclude)])
    for graph in filter(None, (base, origin)):
        refuse_to_stream(graph)
    done = transplant(rewrite.graph, base, origin, head_change=head_change)
    trace = {name: Trace(()) for name in base}
    for placed in done.weights:
        before = [rewrite.trace[name] for name in placed.sources]
        sources = tuple(dict.fromkeys(source for step in before for source in step.sources))
        operations = tuple(dict.fromkeys(operation for step in before for operation in step.operations))
        own = () if (placed.operation,) == placed.sources else (placed.operation,)
        rule = before[0].rule if before else ""
        trace[placed.name] = Trace(sources, rule, (*operations, *own))
    findings = (*rewrite.findings, *done.notes)
    return Into(base, origin, done), replace(rewrite, graph=done.graph, trace=trace, findings=findings)


def _matching(names: TensorGraph, patterns: Sequence[str]) -> set[str]:
    """The names that match a pattern. One that matches none is no mistake here, where it does in the source."""
    found: set[str] = set()
    for pattern in patterns:
        try:
            found.update(matching(names, [pattern]))
        except CkptError as error:
            if error.code != "no-match":
                raise
    return found


def _section(path: str | os.PathLike[str], section: str | None) -> str | None:
    """The section of the source, where the other checkpoint has one of that name as well."""
    if section is None:
        return None
    try:
        read(os.fspath(path), section)
    except CkptError as error:
        if error.code == "section-unknown":
            return None
        raise
    return section


def settled(layout: Layout, into: Into) -> tuple[Layout, Finding]:
    """The layout without the loss of ties that the base's graph does not have, and what it leaves of the base."""
    losses = tuple(loss for loss in layout.losses if loss.code != "ties-copied")
    return replace(layout, losses=losses), _unchanged(layout, into)


def _unchanged(layout: Layout, into: Into) -> Finding:
    """What is proved of the model file: which of its bytes are the base's, at the same place."""
    model = layout.files[-1]
    weights = sum(piece.nbytes for piece in model.pieces if isinstance(piece.content, Tensor))
    same = all(
        isinstance(piece.content, Tensor) or _is_base(piece.content, piece.offset, into.base)
        for piece in model.pieces
    )
    if same and model.size == into.base.origin.files[0].size:
        text = f"outside the {weights} bytes of weights every byte of the model is that of {into.base.origin.path}"
    else:
        text = "weights are stored in another place or field than in the base; everything else is copied as it stands"
    return Finding("graph-kept", "note", "", text)


def _is_base(content: bytes | Extent, offset: int, base: TensorGraph) -> bool:
    return isinstance(content, Extent) and content.file == base.origin.files[0] and content.offset == offset


def casts(into: Into, weights: Mapping[str, Tensor]) -> dict[str, str]:
    """Weight of the graph → dtype that its only source has, where that is another one."""
    found = {}
    for placed in into.done.weights:
        had = {weights[name].dtype.name for name in placed.sources}
        now = into.done.graph[placed.name].dtype.name
        if len(had) == 1 and had != {now}:
            found[placed.name] = had.pop()
    return found

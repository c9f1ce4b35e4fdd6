"""contract: write what a checkpoint is into a contract, or bring a contract up to date."""

import os
from dataclasses import replace

from ckptkit.core.errors import CkptError
from ckptkit.core.graph import TensorGraph
from ckptkit.format import read
from ckptkit.match.fit.compare import concrete, fit
from ckptkit.match.stored import stored
from ckptkit.targets import catalogue
from ckptkit.targets.capture import capture, folded
from ckptkit.targets.contract import Contract, Entry
from ckptkit.targets.target import Target


def write_contract(
    source: TensorGraph | str | os.PathLike[str],
    *,
    section: str | None = None,
    variant: str | None = None,
    files: bool = False,
    digest: bool = False,
) -> Contract:
    """The contract that a checkpoint fits exactly.

    Args:
        source: a path, or a graph as `read` gives it; or the name of a published architecture.
        section, variant: as in `read`, for a path.
        files: state SHA-256 and size of each file, so that git-LFS pointers can be checked; reads them.
        digest: state the content digest; reads all tensors.

    Raises CkptError when the checkpoint cannot be read.
    """
    if isinstance(source, str) and not os.path.exists(source):
        if catalogue.is_name(source):
            aim = catalogue.target(source)
            contract = folded((name, spec._replace(head=False)) for name, spec in aim.tensors.items())
            return replace(contract, dimensions=aim.dimensions)
        if near := catalogue.near(source):
            message = "there is neither such a file nor such an architecture"
            raise CkptError("not-found", message, source, f"meant: {', '.join(near)}")
    graph = source if isinstance(source, TensorGraph) else read(source, section, variant=variant)
    contract = capture(graph)
    if files:
        folder = graph.origin.path if os.path.isdir(graph.origin.path) else os.path.dirname(graph.origin.path)
        named = {os.path.relpath(file.path, folder or "."): stored(file.path) for file in graph.origin.files}
        contract = replace(contract, files=named)
    return replace(contract, digest=_digest(graph)) if digest else contract


def update_contract(old: Contract, source: TensorGraph | str | os.PathLike[str]) -> Contract:
    """The contract brought up to date: tensors, ranges, dimensions and ties anew, the rest kept.

    Names that the old contract has as optional stay so; files and digest are stated again where they were. A
    contract that the checkpoint still fits keeps its lines as they are. Raises as `write_contract`.
    """
    graph = source if isinstance(source, TensorGraph) else read(source)
    new = write_contract(graph, files=bool(old.files), digest=bool(old.digest))
    target = old.target()
    if _same(graph, target):
        return replace(old, files=new.files, digest=new.digest)
    optional = {name for name, spec in target.tensors.items() if spec.optional}
    rest = replace(graph, tensors={name: t for name, t in graph.tensors.items() if name not in optional})
    captured = capture(rest)
    kept = tuple(_alone(entry, old) for entry in old.entries if entry.spec.optional)
    order = {entry.pattern: place for place, entry in enumerate(old.entries)}
    fresh = sorted(captured.entries, key=lambda entry: order.get(entry.pattern, len(order)))
    return replace(
        old,
        ranges=captured.ranges,
        dimensions=captured.dimensions,
        entries=(*fresh, *kept),
        ties=captured.ties,
        files=new.files,
        digest=new.digest,
    )


def _same(graph: TensorGraph, target: Target) -> bool:
    """Whether names, dtypes, shapes and ties are still as expected."""
    found = fit(graph, target)
    groups = {frozenset(names) for names in graph.storages() if len(names) > 1}
    tied = {frozenset(names) for names in target.ties}
    return not (found.missing or found.unexpected or found.mismatched) and groups == tied


def _alone(entry: Entry, contract: Contract) -> Entry:
    """An entry that needs neither ranges nor dimensions of its contract."""
    pattern, spec = entry
    for name, numbers in contract.ranges.items():
        pattern = pattern.replace(f"{{{name}}}", f"{{{numbers}}}")
    if spec.shape is None:
        return Entry(pattern, spec)
    sizes = {name: size for name, size in contract.dimensions.items() if size is not None}
    return Entry(pattern, spec._replace(shape=concrete(spec, sizes)))


def _digest(graph: TensorGraph) -> str:
    from ckptkit.match.digest import combine, digests

    return combine(digests(graph.tensors))

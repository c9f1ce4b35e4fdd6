"""JSON that programs read: exact numbers, nothing left out, non-finite numbers as strings."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from json.encoder import encode_basestring_ascii as quote
from typing import TYPE_CHECKING, Any

from ckptkit.core.errors import CkptError
from ckptkit.core.graph import TensorGraph
from ckptkit.core.jsonable import dumps
from ckptkit.core.tensor import Tensor
from ckptkit.verbs.inspect import Summary

if TYPE_CHECKING:
    from ckptkit.core.numeric import Statistics
    from ckptkit.match.usage import Usage

BATCH = 10_000


def error(problem: CkptError, path: str | None = None) -> str:
    """A failure as a `ckptkit.error/1` document."""
    document: dict[str, Any] = {
        "schema": "ckptkit.error/1",
        "code": problem.code,
        "message": problem.message,
        "where": problem.where,
        "hint": problem.hint,
    }
    findings = getattr(problem, "findings", ())  # of rules, all that is wrong
    if findings:
        document["findings"] = findings
    return dumps(document if path is None else {**document, "path": path})


def rows(items: Iterable[str]) -> Iterator[str]:
    """JSON values as the elements of an array, one a line, in large pieces."""
    items = iter(items)
    lead = "\n"
    while batch := list(islice(items, BATCH)):
        yield lead + ",\n".join(batch)
        lead = ",\n"


def tensor_rows(
    tensors: Mapping[str, Tensor], ties: Mapping[str, str], section: Callable[[str], str]
) -> Iterator[str]:
    """Each tensor as an object without its closing brace. Dtypes and shapes repeat, so their text is kept."""
    texts: dict[tuple[str, tuple[int, ...], str], str] = {}
    quoted: dict[str, str] = {}
    for name, tensor in tensors.items():
        key = (tensor.dtype.name, tensor.shape, tensor.kind)
        text = texts.get(key)
        if text is None:
            dimensions = ",".join(map(str, tensor.shape))
            text = (
                f',"dtype":"{tensor.dtype.name}","shape":[{dimensions}],"nbytes":{tensor.nbytes},'
                f'"kind":{quote(tensor.kind)},"section":'
            )
            if tensor.dtype.bits:  # the size of strings varies
                texts[key] = text
        path = section(name)
        place = quoted.get(path)
        if place is None:
            place = quoted[path] = quote(path)
        tie = ties.get(name)
        note = f',"note":{quote(tensor.note)}' if tensor.note else ""
        yield f'{{"name":{quote(name)}{text}{place},"tied_to":{quote(tie) if tie else "null"}{note}'


def inspected(
    graph: TensorGraph,
    summary: Summary,
    section: Callable[[str], str],
    measured: "Mapping[str, Statistics | None] | None",
) -> Iterator[str]:
    """A `ckptkit.inspect/1` document in pieces."""
    origin = graph.origin
    head = {
        "schema": "ckptkit.inspect/1",
        "path": origin.path,
        "format": origin.format,
        "container": origin.container,
        "section": origin.section,
        "sections": origin.sections,
        "files": [{"path": file.path, "nbytes": file.size} for file in origin.files],
        "details": origin.details,
        "summary": {
            "tensors": summary.tensors,
            "nbytes": summary.nbytes,
            "stored": summary.stored,
            "elements": summary.elements,
            "parameters": summary.parameters,
            "dtypes": {
                name: {"tensors": tensors, "nbytes": nbytes}
                for name, (tensors, nbytes) in summary.dtypes.items()
            },
        },
        "naming": {
            "scheme": summary.naming.scheme,
            "family": summary.naming.family,
            "wrappers": summary.naming.wrappers,
            "sizes": dict(summary.naming.sizes),
        },
        "architecture": _architecture(summary),
        "quantized": [
            {"family": q.family, "weights": q.weights, "parameters": q.parameters} for q in summary.quantized
        ],
        "graph": None
        if not graph.nodes
        else {
            "nodes": len(graph.nodes),
            "inputs": graph.inputs,
            "outputs": graph.outputs,
            **_usage(summary.usage),
        },
        "metadata": graph.metadata,
        "objects": graph.objects,
        "findings": graph.findings,
    }
    yield dumps(head)[:-1] + ', "tensors": ['
    yield from rows(_tensors(graph.tensors, summary.ties, section, measured))
    yield "\n]}\n"


def _usage(usage: "Usage | None") -> dict[str, Any]:
    if usage is None:
        return {}
    return {
        "used_by": {op: {"tensors": n, "nbytes": nbytes} for op, (n, nbytes) in usage.operators.items()},
        "casts": [{"stored": stored, "to": to, "tensors": n} for (stored, to), n in usage.casts.items()],
        "folded": usage.folded,
        "constants": usage.constants,
        "unused": usage.unused,
    }


def _architecture(summary: Summary) -> dict[str, object] | None:
    """The published model, null where none is certain."""
    known = summary.naming.known
    if known is None:
        return None
    return {
        "name": known.model.name,
        "title": known.model.title,
        "scheme": known.scheme,
        "head": known.head or "published",
        "differences": known.differences,
    }


def _tensors(
    tensors: Mapping[str, Tensor],
    ties: Mapping[str, str],
    section: Callable[[str], str],
    measured: "Mapping[str, Statistics | None] | None",
) -> Iterator[str]:
    if measured is None:
        for row in tensor_rows(tensors, ties, section):
            yield row + "}"
    else:
        for name, row in zip(tensors, tensor_rows(tensors, ties, section), strict=True):
            yield f'{row},"stats":{dumps(measured[name])}}}'

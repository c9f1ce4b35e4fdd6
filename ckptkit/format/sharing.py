"""Tensors that share bytes, and what no format of plain tensors can keep: overlapping views, parts of larger things."""

from ckptkit.core.errors import CkptError
from ckptkit.core.findings import Finding
from ckptkit.core.graph import TensorGraph
from ckptkit.core.plan import Ties
from ckptkit.core.words import plural


def kept_ties(graph: TensorGraph, ties: Ties) -> dict[str, str]:
    """Tied name → the name under which the one tensor is written; none where every name has its own copy.

    Raises CkptError `tied-tensors` when `ties` is "error" and there are any.
    """
    found = {} if ties == "copy" else graph.ties()
    if found and ties == "error":
        tied, first = next(iter(found.items()))
        raise CkptError(
            "tied-tensors",
            f"{tied!r} and {first!r} are one tensor ({plural(len(found), 'tied name')} in all)",
            graph.origin.path,
            "--ties keep writes it once where the format can, --ties copy once per name",
        )
    return found


def sharing_losses(graph: TensorGraph, ties: Ties) -> tuple[Finding, ...]:
    """The loss of writing overlapping tensors (`w` and its transpose, a slice and the whole) as copies.

    Nothing is lost where copies are asked for (`ties="copy"`); `ties="error"` refuses them: CkptError
    `tied-tensors`.
    """
    pairs = [] if ties == "copy" else overlapping(graph)
    if not pairs:
        return ()
    name, other = pairs[0]
    more = f" ({len(pairs)} such tensors)" if len(pairs) > 1 else ""
    message = f"it shows stored bytes that {other!r} shows, too; each will have its own copy{more}"
    if ties == "error":
        raise CkptError("tied-tensors", message, name, "--ties copy writes them all the same")
    return (Finding("sharing-lost", "warning", name, message, "--ties copy, or --allow-loss sharing-lost"),)


def structure_losses(graph: TensorGraph) -> tuple[Finding, ...]:
    """The losses of writing parts (of sparse or nested tensors, of distributed ones) as tensors of their own, and
    what its reader could not carry into the graph at all."""
    parts: dict[str, list[str]] = {}
    for name, tensor in graph.items():
        if tensor.loss:
            parts.setdefault(tensor.loss, []).append(name)
    unread = (finding for finding in graph.findings if finding.code in _UNREAD)
    return (
        *unread,
        *(
            Finding(
                code,
                "warning",
                names[0],
                f"{graph[names[0]].note}: {_MEANING[code]} ({plural(len(names), 'such tensor')})",
            )
            for code, names in parts.items()
        ),
    )


_UNREAD = frozenset({"tensor-absent"})

_MEANING = {
    "local-shard": "the other ranks' parts of it are not in this file",
    "nested-as-parts": "its parts become tensors of their own",
    "packed-as-parts": "the parts become tensors of their own, the object around them is lost",
    "sparse-as-parts": "its parts become tensors of their own, its dense shape is lost",
}


def overlapping(graph: TensorGraph) -> list[tuple[str, str]]:
    """(name, name of one that it overlaps) in the order of the bytes; ties are not among them.

    Only tensors that fill their stretch of a file count. Strided ones may interleave without meeting.
    """
    if graph.origin.format == "safetensors":
        return []  # the reader has proved that none overlap
    runs = []
    for names in graph.storages():
        tensor = graph[names[0]]
        extents = tensor.extents
        if len(extents) == 1 and 0 < extents[0].nbytes == tensor.nbytes:
            file, begin, nbytes = extents[0]
            runs.append((file.path, begin, begin + nbytes, names[0]))
    runs.sort()
    pairs = []
    holder = ("", 0, 0, "")
    for run in runs:
        same_file = run[0] == holder[0]
        if same_file and run[1] < holder[2]:
            pairs.append((run[3], holder[3]))
        if not same_file or run[2] > holder[2]:
            holder = run
    return pairs

"""digest: the identity of what a checkpoint holds, whatever format, order or layout holds it."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ckptkit.core.expansion import refuse_to_stream
from ckptkit.core.globs import selected
from ckptkit.core.graph import TensorGraph
from ckptkit.format import read
from ckptkit.match.digest import combine, combine_nameless, digests
from ckptkit.verbs.digest.listing import Checked, check

__all__ = ["Checked", "Digest", "check", "digest"]


@dataclass(frozen=True, slots=True)
class Digest:
    """What `digest` gives; `str` is the 64 hexadecimal digits for the whole.

    Attributes:
        path: what was read.
        tensors: name → digest, in the order of the checkpoint.
        digest: of all tensors with their names.
        nameless: of all tensors without; equal where only names differ.
    """

    path: str
    tensors: Mapping[str, str]
    digest: str
    nameless: str

    def __str__(self) -> str:
        return self.digest


def digest(
    source: TensorGraph | str | os.PathLike[str],
    *,
    section: str | None = None,
    variant: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Digest:
    """The content digest of a checkpoint; its definition is in `ckptkit.match.digest`.

    Args:
        source: a path, or a graph as `read` gives it.
        section, variant: as in `read`, for a path.
        include, exclude: shell patterns of tensor names; the digest is of those selected.
        progress: called with the bytes done and all bytes.

    Reads every tensor once, tied ones together. Raises CkptError when the checkpoint cannot be read, a pattern
    matches nothing, or far more would be read than is stored.
    """
    graph = source if isinstance(source, TensorGraph) else read(source, section, variant=variant)
    if include or exclude:
        graph = graph.select(selected(graph, include, exclude))
    refuse_to_stream(graph)
    done, total = 0, graph.nbytes if progress is not None else 0

    def advance(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        assert progress is not None
        progress(done, total)

    found = digests(graph.tensors, advance if progress is not None else None)
    return Digest(graph.origin.path, found, combine(found), combine_nameless(found.values()))

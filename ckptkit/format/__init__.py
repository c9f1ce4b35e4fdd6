"""Formats: reading any checkpoint, and the list of what is read and written."""

import os
from dataclasses import dataclass

from ckptkit.core.budgets import DEFAULT_BUDGETS, Budgets
from ckptkit.core.collector import paused
from ckptkit.core.errors import CkptError
from ckptkit.core.files import File
from ckptkit.core.graph import TensorGraph
from ckptkit.core.options import ReadOptions
from ckptkit.format import registry


@dataclass(frozen=True, slots=True)
class FormatInfo:
    """What ckptkit does with one format. `missing` says what it does not do yet; "" means nothing of note."""

    name: str
    title: str
    suffixes: tuple[str, ...]
    reads: str
    writes: str
    missing: str
    needs: tuple[str, ...]


def read(
    path: str | os.PathLike[str],
    section: str | None = None,
    *,
    variant: str | None = None,
    budgets: Budgets = DEFAULT_BUDGETS,
) -> TensorGraph:
    """Read a checkpoint: a file, a Hugging Face folder, or an index.json. Costs the header, not the weights.

    Args:
        path: what to read; recognised by content, whatever its suffix.
        section: dotted path of the part wanted, `"all"` for everything; by default the weights.
        variant: variant of a folder's files ("fp16").
        budgets: limits on what a file may ask for.

    Returns:
        A mapping name → `Tensor` with everything else the checkpoint holds. Nothing found in it was run.

    Raises:
        CkptError: the file is missing, damaged, hostile, ambiguous or no checkpoint; `code` says which.
    """
    return read_with(os.fspath(path), ReadOptions(section, variant, budgets=budgets))


def read_with(path: str | os.PathLike[str], options: ReadOptions) -> TensorGraph:
    """As `read`, with the options as one value."""
    name = os.fspath(path)
    with paused():
        if os.path.isdir(name):
            from ckptkit.format.folder import read_folder

            return read_folder(name, options)
        if options.variant is not None:
            message = f"a file has no variants, so none called {options.variant!r}"
            raise CkptError("variant-missing", message, name, "name the folder")
        graph = registry.identify(File.at(name)).load().read(name, options)
        if "-of-" in os.path.basename(name):
            from ckptkit.format.shards import note_lone_shard

            return note_lone_shard(graph, name)
        if os.path.basename(name).startswith("consolidated."):
            from ckptkit.format.ranks import note_lone_rank

            return note_lone_rank(graph, name)
        return graph


def formats() -> tuple[FormatInfo, ...]:
    """Every format, plugins included, with what is read, written and not yet done.

    Those that are only recognised, to be named in an error, come last and have neither `reads` nor `writes`.
    """
    from ckptkit.format.foreign import UNREAD

    known = [
        FormatInfo(f.name, f.title, f.suffixes, f.reads, f.writes, f.missing, f.needs)
        for f in registry.every()
    ]
    for name, title, suffixes in UNREAD:
        known.append(FormatInfo(name, title, suffixes, "", "", "recognised, not read yet", ()))
    return tuple(known)

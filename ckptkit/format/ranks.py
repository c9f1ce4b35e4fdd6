"""Rank sets: a model-parallel checkpoint with one file per rank, read as one graph whose names begin with the rank.

Each rank holds a part of every split tensor and a copy of the others, under the same names; which is which, and along
which dimension, only the model's code knows. So `layers.0.wq.weight` of rank 1 becomes `1.layers.0.wq.weight`, and a
rule file says how the parts are joined. Two layouts: `consolidated.00.pth`, … as Meta publishes Llama, and Megatron's
folders `mp_rank_00/` (tensor ranks) or `mp_rank_00_000/` (tensor and pipeline ranks, named `0.0.…`), each with one
file. A set with a gap is refused; that its last ranks are missing only the shapes can show, when rules are applied.
Sources: the file names of meta-llama/llama and NVIDIA/Megatron-LM.
"""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import product

from ckptkit.core.errors import CkptError
from ckptkit.core.files import File
from ckptkit.core.findings import Finding
from ckptkit.core.graph import TensorGraph
from ckptkit.core.options import ReadOptions
from ckptkit.core.words import plural
from ckptkit.format import listing, registry

Rank = tuple[int, ...]

FILE = re.compile(r"consolidated\.(\d{2,5})\.pth")
_FOLDER = re.compile(r"mp_rank_(\d{2,5})(?:_(\d{3,5}))?")
_INSIDE = ("model_optim_rng.pt", "model_rng.pt")


def rank_set(path: str, names: Iterable[str]) -> dict[Rank, str]:
    """Rank → file, relative to the folder, of the rank set in a folder whose files are `names`; {} if there is none."""
    found = {_numbers(match): name for name in names if (match := FILE.fullmatch(name))}
    if not found:
        for folder in listing.folders(path):
            inside = listing.files(os.path.join(path, folder)) if _FOLDER.fullmatch(folder) else ()
            file = next((name for name in _INSIDE if name in inside), None)
            if file is not None and (match := _FOLDER.fullmatch(folder)):
                found[_numbers(match)] = f"{folder}/{file}"
    return dict(sorted(found.items()))


def is_whole(files: Mapping[Rank, str]) -> bool:
    """Whether the only rank there is holds everything: its file is a checkpoint like any other."""
    return len(files) == 1 and not any(next(iter(files)))


def read_ranks(path: str, files: Mapping[Rank, str], options: ReadOptions) -> TensorGraph:
    """One graph of all ranks. Raises CkptError `shard-missing` for a gap, `rank-files` where the ranks were wrapped
    differently, and whatever reading a file raises."""
    _require(path, files)
    graphs = {}
    for rank, name in files.items():
        inner = os.path.join(path, name)
        graphs[rank] = registry.identify(File.at(inner)).load().read(inner, options)
    first = next(iter(graphs.values()))
    for rank, graph in graphs.items():
        if graph.origin.section != first.origin.section:
            message = f"the weights of rank {_dotted(rank)} stand under {graph.origin.section!r}, those of the first"
            raise CkptError("rank-files", f"{message} under {first.origin.section!r}", path, "--section NAME")
    inside = {_dotted(rank): graph for rank, graph in graphs.items()}
    equal = first.metadata.items() & set.intersection(*(set(g.metadata.items()) for g in graphs.values()))
    note = Finding(
        "rank-files", "note", "", f"{len(files)} ranks; names begin with the rank, and rules join the parts"
    )
    origin = replace(
        first.origin,
        path=path,
        container=f"{first.origin.container}, {plural(len(files), 'rank')}",
        files=tuple(file for graph in graphs.values() for file in graph.origin.files),
        details={**first.origin.details, "ranks": len(files)},
    )
    return TensorGraph(
        tensors={
            f"{rank}.{name}": tensor for rank, graph in inside.items() for name, tensor in graph.items()
        },
        origin=origin,
        # Module versions are told by paths without a rank.
        metadata={key: value for key, value in equal if key != "_metadata"},
        objects=tuple(
            replace(leaf, path=f"{rank}.{leaf.path}") for rank, g in inside.items() for leaf in g.objects
        ),
        findings=(
            note,
            *(
                replace(f, where=f"{files[r]} {f.where}".strip())
                for r, g in graphs.items()
                for f in g.findings
            ),
        ),
    )


def note_lone_rank(graph: TensorGraph, path: str) -> TensorGraph:
    """The graph with a note, where the folder of its file holds other ranks of the same checkpoint."""
    folder, name = os.path.split(path)
    files = rank_set(folder or ".", listing.files(folder or "."))
    if len(files) < 2 or name not in files.values():
        return graph
    message = f"this is one of {len(files)} ranks, read by itself: it holds a part of every tensor"
    note = Finding("rank-files", "note", "", message, "name the folder to read all of them")
    return replace(graph, findings=(*graph.findings, note))


def _numbers(match: re.Match[str]) -> Rank:
    return tuple(int(number) for number in match.groups() if number is not None)


def _dotted(rank: Rank) -> str:
    return ".".join(map(str, rank))


def _require(path: str, files: Mapping[Rank, str]) -> None:
    """Raise unless the ranks fill their grid."""
    if len({len(rank) for rank in files}) > 1:
        raise CkptError("rank-files", "some folders name a pipeline rank, others do not", path)
    grid = [range(max(numbers) + 1) for numbers in zip(*files, strict=True)]
    size = 1
    for numbers in grid:
        size *= len(numbers)
    if size == len(files):
        return
    missing = next(rank for rank in product(*grid) if rank not in files)
    message = f"of {size} ranks {size - len(files)} are not there: rank {_dotted(missing)} is the first"
    raise CkptError("shard-missing", message, path, "download the missing files into the same folder")

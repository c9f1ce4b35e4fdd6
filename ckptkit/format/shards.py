"""Sharded checkpoints: an index.json, or a numbered set of files without one, read as one tensor graph.

The index is {"metadata": {"total_size": bytes, …}, "weight_map": {tensor: shard}}. Everything is cross-checked
before anything is trusted: every shard exists beside the index, every tensor is in its shard, no name is claimed
twice. Where one name stands in two shards, the weight map decides and the shadowed copy is reported.

Tensors come in the order of the shards' names, then of each shard. Limits: `Budgets.index_bytes` of index,
`Budgets.entries` shards. Source: transformers 5.23 and huggingface_hub 2.4.
"""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from ckptkit.core.errors import CkptError
from ckptkit.core.files import File, beside_file
from ckptkit.core.findings import Finding
from ckptkit.core.graph import Leaf, Origin, TensorGraph
from ckptkit.core.options import ReadOptions
from ckptkit.core.tensor import Tensor
from ckptkit.core.words import plural
from ckptkit.format import registry, strict_json
from ckptkit.format.tied_names import restore_ties

NUMBERED = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.[A-Za-z0-9]+)")
_SHOWN = 3  # names spelled out in a message


def read(path: str, options: ReadOptions) -> TensorGraph:
    """Read the checkpoint that an index.json describes.

    Raises CkptError `json-invalid`, `duplicate-name`, `over-budget` or `index-invalid` for the index,
    `outside-folder`, `shard-missing` or `not-in-shard` for what it names, and whatever reading a shard raises.
    """
    file = File.at(path)
    index = strict_json.load(file, options.budgets.index_bytes)
    weight_map = _weight_map(index, path)
    shards = sorted(set(weight_map.values()))
    if len(shards) > options.budgets.entries:
        raise CkptError("over-budget", f"the index names {len(shards):,} shards", path)
    paths = {shard: str(beside_file(path, shard)) for shard in shards}
    _require(paths, path)
    graph = _joined(path, {shard: _read_shard(paths[shard], options) for shard in shards}, weight_map)
    findings = list(graph.findings)
    metadata = index.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    tensors = dict(graph.tensors)
    # huggingface_hub records ties in the index, not in the shards.
    restore_ties(tensors, {key: value for key, value in metadata.items() if isinstance(value, str)})
    graph = replace(graph, tensors=tensors)
    total = metadata.get("total_size")
    # Tied names were counted once by some writers and once per name by others.
    sums = {graph.nbytes, sum(t.nbytes for t in tensors.values())}
    if isinstance(total, int | float) and total not in sums:
        message = f"the index says total_size {total:,}, the tensors have {graph.nbytes:,} bytes"
        findings.append(Finding("total-size-mismatch", "warning", os.path.basename(path), message))
    origin = replace(
        graph.origin,
        path=path,
        files=(file, *graph.origin.files),
        container=f"{graph.origin.container}, {plural(len(shards), 'shard')} with an index",
    )
    return replace(graph, origin=origin, findings=tuple(findings))


def read_set(folder: str, names: Iterable[str], options: ReadOptions) -> TensorGraph:
    """Read a numbered set (`model-00001-of-00003.safetensors`, …) that has no index.

    `names` are those of one set that are there. Raises CkptError `shard-missing` unless all of it is,
    `duplicate-name` when two shards hold one name, and whatever reading a shard raises.
    """
    names = sorted(names)
    match = NUMBERED.fullmatch(names[0])
    assert match is not None
    count = int(match["count"])
    if count > options.budgets.entries:
        raise CkptError("over-budget", f"a set of {count:,} shards", os.path.join(folder, names[0]))
    wanted = [f"{match['stem']}-{n:05}-of-{count:05}{match['suffix']}" for n in range(1, count + 1)]
    paths = {name: os.path.join(folder, name) for name in wanted}
    _require(paths, folder)
    graph = _joined(folder, {name: _read_shard(paths[name], options) for name in wanted}, {})
    container = f"{graph.origin.container}, {plural(count, 'shard')} without an index"
    return replace(graph, origin=replace(graph.origin, container=container))


def note_lone_shard(graph: TensorGraph, path: str) -> TensorGraph:
    """The graph with a note, where the file's name says that it is one shard of several."""
    match = NUMBERED.fullmatch(os.path.basename(path))
    if match is None or int(match["count"]) < 2:
        return graph
    message = f"this is shard {int(match['number'])} of {int(match['count'])}, read by itself"
    hint = "name the folder or the index to read all of them"
    return replace(graph, findings=(*graph.findings, Finding("lone-shard", "note", "", message, hint)))


def _weight_map(index: Mapping[str, Any], path: str) -> dict[str, str]:
    found = index.get("weight_map")
    if not isinstance(found, dict):
        hint = "an index has an object weight_map: tensor name → file name"
        raise CkptError("index-invalid", "there is no weight_map", path, hint)
    for name, shard in found.items():
        if not isinstance(shard, str):
            raise CkptError("index-invalid", f"the shard of {ascii(name)[:80]} is no file name", path)
    if not found:
        raise CkptError("index-invalid", "the weight_map is empty", path)
    return found


def _require(paths: Mapping[str, str], where: str) -> None:
    missing = [name for name, path in paths.items() if not os.path.exists(path)]
    if missing:
        raise CkptError(
            "shard-missing",
            f"{len(missing)} of {len(paths)} shards are not there: {_listed(missing)}",
            where,
            "download the missing files into the same folder",
        )


def _read_shard(path: str, options: ReadOptions) -> TensorGraph:
    found = registry.identify(File.at(path))
    if found.module == __name__:
        raise CkptError("index-invalid", "an index names an index as a shard", path)
    return found.load().read(path, options)


def _joined(path: str, shards: Mapping[str, TensorGraph], weight_map: Mapping[str, str]) -> TensorGraph:
    """One graph of all shards; `weight_map` may be empty. Findings of a shard keep its name."""
    _check_placed(path, shards, weight_map)
    tensors: dict[str, Tensor] = {}
    home: dict[str, str] = {}
    metadata: dict[str, str] = {}
    findings: list[Finding] = []
    objects: list[Leaf] = []
    shadowed: list[str] = []
    unlisted: list[str] = []
    differing: list[str] = []
    for shard, graph in shards.items():
        ties = graph.ties()
        for name, tensor in graph.tensors.items():
            placed = weight_map.get(name, shard)
            if placed != shard:
                shadowed.append(name)
                continue
            if name in home:
                message = f"{ascii(name)[:80]} stands in {home[name]} and in {shard}, and no index decides"
                raise CkptError("duplicate-name", message, path)
            if weight_map and name not in weight_map and name not in ties:
                unlisted.append(name)
            home[name] = shard
            tensors[name] = tensor
        for key, value in graph.metadata.items():
            if metadata.setdefault(key, value) != value and key not in differing:
                differing.append(key)
        findings += [replace(f, where=f"{shard} {f.where}".strip()) for f in graph.findings]
        objects += graph.objects
    if shadowed:
        message = f"{_tensors(shadowed)} in a second shard, too, a copy that the index passes over: {_listed(shadowed)}"
        findings.append(Finding("shadowed-copy", "warning", shadowed[0], message))
    if unlisted:
        message = f"{_tensors(unlisted)} in the shards but not in the index: {_listed(unlisted)}"
        findings.append(Finding("not-in-index", "warning", unlisted[0], message, "the index may be stale"))
    if differing:
        message = f"the shards disagree on metadata; the first one's is kept: {_listed(differing)}"
        findings.append(Finding("metadata-differs", "note", differing[0], message))
    first = next(iter(shards.values()))
    files = tuple(file for graph in shards.values() for file in graph.origin.files)
    origin = Origin(
        path, first.origin.format, first.origin.container, files, details=not_run(shards.values())
    )
    return TensorGraph(tensors, origin, metadata=metadata, objects=tuple(objects), findings=tuple(findings))


def not_run(graphs: Iterable[TensorGraph]) -> dict[str, list[str]]:
    """What the pickles of all files name and is no data, as the `classes_not_run` of their details."""
    names = (name for graph in graphs for name in graph.origin.details.get("classes_not_run", ()))
    found = list(dict.fromkeys(names))
    return {"classes_not_run": found} if found else {}


def _check_placed(path: str, shards: Mapping[str, TensorGraph], weight_map: Mapping[str, str]) -> None:
    lost = [name for name, shard in weight_map.items() if name not in shards[shard].tensors]
    if lost:
        message = f"{_tensors(lost)} not in the shard that the index names: {_listed(lost)}"
        hint = "the index does not belong to these shards; download both again"
        raise CkptError("not-in-shard", message, path, hint)


def _listed(names: list[str]) -> str:
    shown = ", ".join(ascii(name)[1:-1][:80] for name in names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


def _tensors(names: list[str]) -> str:
    return "1 tensor is" if len(names) == 1 else f"{len(names)} tensors are"

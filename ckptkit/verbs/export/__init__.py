"""export: a PyTorch module and its weights → an ONNX model, by torch's own exporter.

The module is made by the user's code, which is run, or by transformers from the config.json of a folder.

torch writes the model into a temporary folder; it is then laid out anew, weights inline or beside it, with a record of
the weights that lost their names: the metadata key `ckptkit_weights` holds JSON, initializer → names in the checkpoint
and the operation between them.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ckptkit.core.errors import CkptError
from ckptkit.core.graph import TensorGraph
from ckptkit.core.plan import External, WriteOptions
from ckptkit.core.staging import Staging, check_target, names_beside
from ckptkit.core.stream import write_file
from ckptkit.core.tensor import Tensor
from ckptkit.format import read, registry
from ckptkit.match.finder import Correspondence, find
from ckptkit.match.proof.proving import Proof, Reference
from ckptkit.match.proof.signature import Input
from ckptkit.match.written import check_header
from ckptkit.targets.factory import load_weights, make_module
from ckptkit.verbs.export.exporter import Free, free_axes, to_onnx

RECORD = "ckptkit_weights"


@dataclass(frozen=True, slots=True)
class Exported:
    """What was exported.

    Attributes:
        source, target: as given.
        module: what made the module: the factory as given, or a class and its config.json.
        graph: the model, without the record in its metadata; its tensors are gone with the temporary folder.
        named: initializers that have the name and value of a weight.
        recorded: those that are made of weights, with the names of these; they stand in the metadata.
        merged: weights for which the exporter uses another one that is equal.
        unused: weights that the graph does not use.
        nbytes: of all files written.
        proof: what came of running module and model, None if that was not asked for.
    """

    source: str
    target: str
    module: str
    graph: TensorGraph
    named: tuple[str, ...]
    recorded: Mapping[str, tuple[str, ...]]
    merged: tuple[str, ...]
    unused: tuple[str, ...]
    nbytes: int
    proof: Proof | None = None


def export(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    module: str | None = None,
    inputs: Sequence[Input] = (),
    dynamic: Mapping[str, str] | None = None,
    opset: int | None = None,
    section: str | None = None,
    external: External = "auto",
    prove: bool = False,
    overwrite: bool = False,
) -> Exported:
    """Export a module with the weights of a checkpoint. With `module`, calling this runs the code that it names.

    Args:
        src: the checkpoint; its names are those of the module's state dict, all of them. `section` as in `read`.
        dst: the ONNX model to write; `overwrite` replaces it.
        module: `package.module:factory`, called without arguments; without it, transformers makes the model of the
            config.json in the folder `src`, or beside it.
        inputs: names, dtypes and shapes of what `forward` takes, by name if it has parameters so called, else in
            order; a config.json tells those of text and image models.
        dynamic: `input.axis` → name of the free dimension there.
        opset: version of the standard operators; by default the exporter's.
        external: weights inside the model (`inline`), beside it (`external`, `safetensors`), in the checkpoint as
            far as that lies in the target's folder (`shared`); `auto` goes beside it where one file cannot hold them.
        prove: run module and model on the same inputs; different outputs are an error.

    Raises CkptError `package-missing`, `module-invalid`, `module-misfit`, `inputs-unknown`, `export-failed`,
    `prove-failed`, and what reading and writing raise.
    """
    target = Path(os.path.abspath(dst))
    check_target(target, folder=False, overwrite=overwrite)
    weights = read(os.fspath(src), section)
    if any(os.path.realpath(file.path) == os.path.realpath(target) for file in weights.origin.files):
        raise CkptError("target-is-source", "this is what is being read", target, "write somewhere else")
    made, label, inputs, free = _source(os.fspath(src), weights, module, inputs, dynamic or {})
    made.eval()
    with tempfile.TemporaryDirectory(
        prefix=f".{target.name[:100]}.", suffix=".tmp", dir=target.parent
    ) as folder:
        graph = read(str(to_onnx(made, inputs, free, opset, Path(folder), label)))
        _refuse_passed_on(graph, label)
        found = find(weights, graph)
        named = _named(weights, graph, found)
        recorded = {m.target: m.sources for m in found.pairs if m.target not in set(named)}
        graph = replace(graph, metadata={**graph.metadata, **_record(found, recorded)})
        if external == "shared":
            same = {m.target: weights[m.sources[0]] for m in found.pairs if m.how == "same"}
            graph = replace(graph, tensors={**graph.tensors, **same})
        reference = Reference(module=label, made=made) if prove else None
        nbytes, proof = _write(graph, target, external, reference, overwrite)
    merged, unused = _left(weights, {*named, *(name for names in recorded.values() for name in names)})
    return Exported(
        os.fspath(src), os.fspath(dst), label, graph, named, recorded, merged, unused, nbytes, proof
    )


def _refuse_passed_on(graph: TensorGraph, label: str) -> None:
    """torch gives an output that is an input the name of the input, which makes a model that nothing loads."""
    passed = {value.name for value in graph.inputs} & {value.name for value in graph.outputs}
    if passed:
        message = (
            f"it gives the input {min(passed)!r} back as it is, and torch makes an invalid model of that"
        )
        raise CkptError("export-failed", message, label, "return a copy of it, or leave it out")


def _named(weights: TensorGraph, graph: TensorGraph, found: Correspondence) -> tuple[str, ...]:
    """The initializers with the name and value of a weight. By value alone nobody finds what is all zeros."""
    named = {m.target for m in found.pairs if m.sources == (m.target,) and m.how == "same"}
    paired = {m.target for m in found.pairs}
    rest = [name for name in graph if name in weights and name not in paired]
    named |= {name for name in rest if _content(graph[name]) == _content(weights[name])}
    return tuple(name for name in graph if name in named)


def _left(weights: TensorGraph, used: set[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The weights that have no place of their own in the graph: those equal to one that has, and the others."""
    used = used | {name for group in weights.storages() if not used.isdisjoint(group) for name in group}
    counters = {name for name, tensor in weights.items() if tensor.dtype.kind != "float" and not tensor.shape}
    left = [name for name in weights if name not in used and name not in counters]
    kinds = {(weights[name].dtype, weights[name].shape) for name in left}
    held = {_content(weights[n]) for n in used if (weights[n].dtype, weights[n].shape) in kinds}
    merged = tuple(name for name in left if _content(weights[name]) in held)
    return merged, tuple(name for name in left if name not in set(merged))


def _content(tensor: Tensor) -> tuple[str, tuple[int, ...], bytes]:
    hasher = hashlib.blake2b(digest_size=32)
    for chunk in tensor.chunks():
        hasher.update(chunk)
    return tensor.dtype.name, tensor.shape, hasher.digest()


def _source(
    src: str,
    weights: TensorGraph,
    module: str | None,
    inputs: Sequence[Input],
    dynamic: Mapping[str, str],
) -> tuple[Any, str, Sequence[Input], Free]:
    """The module with its weights, what it is called, its inputs and their free axes."""
    if module is None:
        from ckptkit.verbs.export.pretrained import config_of, from_config

        config = config_of(src)
        if config is None:
            message = "nothing says what module these weights are for"
            hint = "--module package.module:factory makes it; a folder with a config.json of transformers needs none"
            raise CkptError("usage", message, src, hint)
        found = from_config(config, weights, inputs)
        return found.module, found.label, found.inputs, free_axes(found.inputs, {**found.dynamic, **dynamic})
    if not inputs:
        raise CkptError("usage", "a module needs inputs", module, "--input 'x:float32[1,3,224,224]'")
    free = free_axes(inputs, dynamic)
    made = make_module(module)
    load_weights(made, weights, module)
    return made, module, inputs, free


def _record(found: Correspondence, recorded: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    rows = {m.target: {"from": m.sources, "operation": m.text} for m in found.pairs if m.target in recorded}
    return {RECORD: json.dumps(rows, ensure_ascii=False)} if rows else {}


def _write(
    graph: TensorGraph,
    target: Path,
    external: External,
    reference: Reference | None,
    overwrite: bool,
) -> tuple[int, Proof | None]:
    """Lay the model out, check and prove it, put it in place. Returns the bytes written and the proof."""
    small = external == "auto" and sum(file.size for file in graph.origin.files) < LARGEST_INLINE
    options = WriteOptions(
        ties="copy",
        external="inline" if small else external,
        taken=names_beside(target),
        folder=os.path.realpath(target.parent),
    )
    layout = registry.named("onnx").load().layout(graph, target.name, options)
    with Staging(target, folder=False, overwrite=overwrite) as staging:
        for file in layout.files:
            write_file(file, staging.path / file.path, sync=staging.replaces)
        entry = staging.surface(target.name) if layout.links else staging.path / target.name
        check_header(entry, graph)
        proof = None if reference is None else reference.prove(entry)
        staging.publish([file.path for file in layout.files])
    return layout.nbytes, proof


LARGEST_INLINE = 1_000_000_000  # bytes: a larger model keeps its weights beside it

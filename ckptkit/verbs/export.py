"""export: a PyTorch module and its weights → an ONNX model, by torch's own exporter. Runs the user's code.

torch writes the model into a temporary folder; it is then laid out anew, weights inline or beside it, with a record of
the weights that lost their names: the metadata key `ckptkit_weights` holds JSON, initializer → names in the checkpoint
and the operation between them.
"""

import json
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ckptkit.core.dtypes import DTYPES
from ckptkit.core.errors import CkptError
from ckptkit.core.graph import TensorGraph
from ckptkit.core.plan import External, WriteOptions
from ckptkit.core.staging import Staging, check_target, names_beside
from ckptkit.core.stream import write_file
from ckptkit.format import read, registry
from ckptkit.match.finder import Correspondence, find
from ckptkit.match.proof.proving import Proof, Reference
from ckptkit.match.proof.signature import Input
from ckptkit.match.written import check_header
from ckptkit.targets.factory import load_weights, make_module, one_line

RECORD = "ckptkit_weights"


@dataclass(frozen=True, slots=True)
class Exported:
    """What was exported.

    Attributes:
        source, target, module: as given.
        graph: the model, without the record in its metadata; its tensors are gone with the temporary folder.
        named: initializers that have the name and value of a weight.
        recorded: those that are made of weights, with the names of these; they stand in the metadata.
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
    unused: tuple[str, ...]
    nbytes: int
    proof: Proof | None = None


def export(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    module: str,
    inputs: Sequence[Input],
    dynamic: Mapping[str, str] | None = None,
    opset: int | None = None,
    section: str | None = None,
    external: External = "auto",
    prove: bool = False,
    overwrite: bool = False,
) -> Exported:
    """Export a module with the weights of a checkpoint. Calling this runs the code that `module` names.

    Args:
        src: the checkpoint; its names are those of the module's state dict, all of them. `section` as in `read`.
        dst: the ONNX model to write; `overwrite` replaces it.
        module: `package.module:factory`, called without arguments.
        inputs: names, dtypes and shapes of what `forward` takes, by name if it has parameters so called, else in
            order.
        dynamic: `input.axis` → name of the free dimension there.
        opset: version of the standard operators; by default the exporter's.
        external: weights inside the model (`inline`), beside it (`external`, `safetensors`), in the checkpoint as
            far as that lies in the target's folder (`shared`); `auto` goes beside it where one file cannot hold them.
        prove: run module and model on the same inputs; different outputs are an error.

    Raises CkptError `package-missing`, `module-invalid`, `module-misfit`, `export-failed`, `prove-failed`, and what
    reading and writing raise.
    """
    target = Path(os.path.abspath(dst))
    check_target(target, folder=False, overwrite=overwrite)
    weights = read(os.fspath(src), section)
    if any(os.path.realpath(file.path) == os.path.realpath(target) for file in weights.origin.files):
        raise CkptError("target-is-source", "this is what is being read", target, "write somewhere else")
    free = _free(inputs, dynamic or {})
    made = make_module(module)
    load_weights(made, weights, module)
    made.eval()
    with tempfile.TemporaryDirectory(
        prefix=f".{target.name[:100]}.", suffix=".tmp", dir=target.parent
    ) as folder:
        graph = read(str(_export(made, inputs, free, opset, Path(folder), module)))
        found = find(weights, graph)
        named = tuple(m.target for m in found.pairs if m.sources == (m.target,) and m.how == "same")
        recorded = {m.target: m.sources for m in found.pairs if m.target not in set(named)}
        graph = replace(graph, metadata={**graph.metadata, **_record(found, recorded)})
        if external == "shared":
            same = {m.target: weights[m.sources[0]] for m in found.pairs if m.how == "same"}
            graph = replace(graph, tensors={**graph.tensors, **same})
        reference = Reference(module=module, weights=weights) if prove else None
        nbytes, proof = _write(graph, target, external, reference, overwrite)
    used = {name for match in found.pairs for name in match.sources}
    counters = {name for name, tensor in weights.items() if tensor.dtype.kind != "float" and not tensor.shape}
    unused = tuple(name for name in weights if name not in used and name not in counters)
    return Exported(os.fspath(src), os.fspath(dst), module, graph, named, recorded, unused, nbytes, proof)


def _free(inputs: Sequence[Input], dynamic: Mapping[str, str]) -> dict[str, dict[int, str]]:
    """Input → axis → name of the free dimension. Raises CkptError `usage`."""
    ranks = {one.name: len(one.shape) for one in inputs}
    found: dict[str, dict[int, str]] = {name: {} for name in ranks}
    for place, label in dynamic.items():
        name, _, axis = place.rpartition(".")
        if not axis.isdecimal() or int(axis) >= ranks.get(name, 0):
            known = ", ".join(f"{name}.0 … {name}.{rank - 1}" for name, rank in ranks.items() if rank)
            raise CkptError("usage", "no input has this axis", place, f"axes: {known}")
        found[name][int(axis)] = label
    return found


def _export(
    made: Any,
    inputs: Sequence[Input],
    free: Mapping[str, Mapping[int, str]],
    opset: int | None,
    folder: Path,
    module: str,
) -> Path:
    """Let torch export; the model file."""
    from inspect import signature

    import torch

    examples = {one.name: _example(one, free[one.name]) for one in inputs}
    by_name = examples.keys() <= set(signature(made.forward).parameters)
    shapes = {name: dict(axes) for name, axes in free.items()}
    any_free = any(free.values())
    path = folder / "model.onnx"
    try:
        with warnings.catch_warnings(), _silent():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                made,
                () if by_name else tuple(examples.values()),
                str(path),
                kwargs=examples if by_name else None,
                input_names=list(examples),
                opset_version=opset,
                dynamic_shapes=(shapes if by_name else tuple(shapes.values())) if any_free else None,
                dynamo=True,
                verbose=False,
                external_data=True,
            )
    except ImportError as error:
        raise CkptError(
            "package-missing",
            f"torch's exporter needs it: {one_line(error)}",
            module,
            "pip install onnx onnxscript",
        ) from None
    except Exception as error:  # whatever the exporter and the user's code raise
        raise CkptError("export-failed", f"torch cannot export it: {one_line(error)}", module) from error
    return path


def _example(one: Input, free: Mapping[int, str]) -> Any:
    """An input to trace with: integers are 0, which is an id everywhere; a free dimension is at least 2, as torch takes
    sizes of 0 and 1 for fixed."""
    import torch

    if one.dtype not in DTYPES or not isinstance(dtype := getattr(torch, one.dtype, None), torch.dtype):
        raise CkptError("dtype-unknown", "no such dtype", f"{one.name}:{one.dtype}")
    shape = [max(int(n), 2) if axis in free else int(n) for axis, n in enumerate(one.shape)]
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(shape, generator=generator).to(dtype)
        if dtype.is_floating_point
        else torch.zeros(shape, dtype=dtype)
    )


@contextmanager
def _silent() -> Iterator[None]:
    """The exporter prints its progress to stdout, whatever it is told."""
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()):
        yield


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

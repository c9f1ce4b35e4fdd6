"""Writing .safetensors: a layout byte-identical to the reference writer's for the same tensors.

Tensors are sorted by dtype (the reference's rank, descending), then by name in code-point order, and packed
from offset 0; the header is compact JSON, `__metadata__` first, padded with spaces to a multiple of 8. The
reference writes metadata keys in random order; here they are sorted.

Tied tensors are written once; the other names stand in `__metadata__` as `dropped: kept`, as safetensors'
`save_model` records them. A sharded checkpoint is split as huggingface_hub splits it (greedy, in graph order,
counting tensor bytes; a larger tensor gets a shard of its own) and its index is written as transformers writes it.

Limits: a header of 100,000,000 bytes; no complex128, complex32, 4- and 2-bit integers, bits types or strings.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ckptkit.core.budgets import DEFAULT_BUDGETS
from ckptkit.core.dtypes import DType, dtype
from ckptkit.core.errors import CkptError
from ckptkit.core.findings import Finding
from ckptkit.core.graph import TensorGraph
from ckptkit.core.plan import Layout, OutputFile, Piece, WriteOptions
from ckptkit.core.tensor import Tensor
from ckptkit.core.words import plural
from ckptkit.format.safetensors.header import METADATA, PREFIX
from ckptkit.format.sharding import index, shard_names, split
from ckptkit.format.sharing import kept_ties, sharing_losses, structure_losses
from ckptkit.format.tied_names import reads_as_tie

# fmt: off
_ORDER = (
    "U64", "I64", "F64", "C64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16", "F8_E5M2FNUZ", "F8_E4M3FNUZ",
    "F8_E8M0", "F8_E4M3", "F8_E5M2", "I8", "U8", "F6_E3M2", "F6_E2M3", "F4", "BOOL",
)
# fmt: on
_RANK = {name: rank for rank, name in enumerate(_ORDER)}
# Quantised integers whose bytes are those of a plain integer: what is lost is the word "quantised".
_AS_INTEGERS = {dtype("qint32"): "I32", dtype("qint8"): "I8", dtype("quint8"): "U8"}
_CURES = {
    "quantized": "leave it out with --exclude, or dequantize it in torch first",
    "complex": "leave it out with --exclude, or split it into real and imaginary parts first",
    "string": "leave it out with --exclude",
}


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is written under which name: tensors in graph order, and dropped name → kept name."""

    tensors: Mapping[str, Tensor]
    ties: Mapping[str, str]
    metadata: Mapping[str, str]


def layout(graph: TensorGraph, name: str, options: WriteOptions) -> Layout:
    """The files that hold the graph's tensors: one called `name`, or shards and an index named after it.

    `options.max_shard_size` bounds the tensor bytes of one shard; its header comes on top.

    Raises CkptError `dtype-unsupported`, `tied-tensors`, `name-collision`, `name-unwritable` or `header-too-large`.
    """
    losses = (*_losses(graph), *sharing_losses(graph, options.ties), *structure_losses(graph))
    plan = _plan(graph, options)
    shards = split(plan.tensors, options.max_shard_size)
    notes = []
    if plan.ties:
        dropped, kept = next(iter(plan.ties.items()))
        notes.append(
            Finding(
                "ties-in-metadata",
                "note",
                dropped,
                f"tied tensors are written once, and {plural(len(plan.ties), 'other name')} in the metadata "
                f"({dropped} = {kept})",
            )
        )
    if len(shards) == 1:
        return Layout((_file(name, shards[0], plan),), losses, tuple(notes))
    stem = name.removesuffix(".safetensors")
    held = dict(zip(shard_names(stem, ".safetensors", len(shards)), shards, strict=True))
    files = [_file(path, names, plan) for path, names in held.items()]
    files.append(index(f"{stem}.safetensors.index.json", held, plan.tensors))
    return Layout(tuple(files), losses, tuple(notes))


def _plan(graph: TensorGraph, options: WriteOptions) -> _Plan:
    ties = kept_ties(graph, options.ties)
    for key, value in graph.metadata.items():
        if key in ties or reads_as_tie(key, value, graph.tensors):
            raise CkptError(
                "name-collision",
                f"the metadata entry {key!r} would be read as a tied tensor",
                value,
                "remove it",
            )
    metadata = {"format": "pt", **graph.metadata}
    return _Plan({name: t for name, t in graph.tensors.items() if name not in ties}, ties, metadata)


def _losses(graph: TensorGraph) -> tuple[Finding, ...]:
    """Quantised integers as findings. Raises CkptError `dtype-unsupported` for what cannot be written at all."""
    wrong = [name for name, tensor in graph.items() if _spelling(tensor.dtype) is None]
    if wrong:
        found = graph[wrong[0]].dtype
        more = f", and {len(wrong) - 1} more tensors like it" if len(wrong) > 1 else ""
        hint = _CURES.get(found.kind, "leave it out with --exclude")
        if found.kind == "bits":
            hint += ", or write a .pt"
        raise CkptError("dtype-unsupported", f"safetensors has no {found.name}{more}", wrong[0], hint)
    return tuple(
        Finding(
            "quantized-as-integers",
            "warning",
            name,
            f"{tensor.dtype.name} is written as plain {_AS_INTEGERS[tensor.dtype]}, its scale beside it",
        )
        for name, tensor in graph.items()
        if tensor.dtype in _AS_INTEGERS
    )


def _spelling(kind: DType) -> str | None:
    return kind.safetensors or _AS_INTEGERS.get(kind)


def _file(path: str, names: Iterable[str], plan: _Plan) -> OutputFile:
    rows = []
    for name in names:
        if name == METADATA:
            raise CkptError("name-collision", f"safetensors keeps the name {METADATA} for itself", name)
        tensor = plan.tensors[name]
        spelling = _spelling(tensor.dtype)
        assert spelling is not None
        rows.append((_RANK[spelling], name, spelling, tensor))
    rows.sort(key=lambda row: row[:2])
    kept = {row[1] for row in rows}
    metadata = dict(plan.metadata) | {dropped: to for dropped, to in plan.ties.items() if to in kept}
    header: dict[str, object] = {METADATA: dict(sorted(metadata.items()))}
    runs = []
    end = 0
    for _, name, spelling, tensor in rows:
        nbytes = tensor.nbytes
        runs.append((name, tensor, end, nbytes))
        offsets = [end, end + nbytes]
        header[name] = {"dtype": spelling, "shape": list(tensor.shape), "data_offsets": offsets}
        end += nbytes
    text = _encode(header, path)
    start = len(text)
    pieces = [Piece(0, start, text)]
    pieces += [Piece(start + begin, nbytes, tensor, name) for name, tensor, begin, nbytes in runs]
    return OutputFile(path, start + end, tuple(pieces))


def _encode(header: Mapping[str, object], path: str) -> bytes:
    """Length, JSON, padding. Raises CkptError `name-unwritable` or `header-too-large`."""
    try:
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    except UnicodeEncodeError as error:
        near = error.object[max(0, error.start - 20) : error.end]
        raise CkptError("name-unwritable", f"a name or metadata is no valid text: {near!r}", path) from None
    text += b" " * (-len(text) % 8)
    if len(text) > DEFAULT_BUDGETS.header_bytes:
        raise CkptError(
            "header-too-large",
            f"the header would take {len(text):,} bytes; safetensors allows {DEFAULT_BUDGETS.header_bytes:,}",
            path,
            "split it with --max-shard-size, or leave metadata out",
        )
    return len(text).to_bytes(PREFIX, "little") + text

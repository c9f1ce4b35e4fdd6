"""Writing a state dict as the zip archive that `torch.load(weights_only=True, mmap=True)` opens.

    archive/data.pkl            OrderedDict name → tensor, in graph order
    archive/.format_version     1: storages lie in numerical order by torch's own rules
    archive/.storage_alignment  64
    archive/byteorder           little
    archive/data/0, data/1, …   one storage per tie group, in order of first use, contiguous
    archive/version             3

`_metadata` (versions of modules) becomes the attribute it is in torch; other metadata travels beside it as
the attribute `ckptkit_metadata`, a dict of strings, which torch ignores. Equal input gives equal bytes.
"""

from collections import OrderedDict
from collections.abc import Mapping

from ckptkit.core.dtypes import DTYPES, DType
from ckptkit.core.errors import CkptError
from ckptkit.core.findings import Finding
from ckptkit.core.graph import TensorGraph
from ckptkit.core.plan import Layout, OutputFile, WriteOptions
from ckptkit.core.tensor import Tensor
from ckptkit.format.pytorch.pickle_writer import Entry, state_dict
from ckptkit.format.pytorch.zipfile_writer import ALIGNMENT, Member, archive
from ckptkit.format.sharding import index, shard_names, split
from ckptkit.format.sharing import kept_ties, sharing_losses, structure_losses

ROOT = "archive"
METADATA, OWN_METADATA = "_metadata", "ckptkit_metadata"

# Quantised tensors need their scales in the same object; they are written as the integers they hold.
_INTEGERS = {"qint8": "int8", "quint8": "uint8", "qint32": "int32"}


def layout(graph: TensorGraph, name: str, options: WriteOptions) -> Layout:
    """How the graph is written: one .pt file named `name`, or shards named after it with an index.

    Tied names stand in one file. `options.max_shard_size` bounds the tensor bytes of one file.

    Raises CkptError `dtype-unsupported` for element types torch cannot save, `tied-tensors` when
    `options.ties` is "error" and names share storage, `shape-unsupported` for float4 of odd width.
    """
    ties = kept_ties(graph, options.ties)
    losses = [
        *sharing_losses(graph, options.ties),
        *structure_losses(graph),
        *_integer_losses(graph),
    ]
    stored = {label: tensor for label, tensor in graph.items() if label not in ties}
    shards = split(stored, options.max_shard_size)
    if len(shards) == 1:
        return Layout((_file(name, graph, ties),), tuple(losses))
    together: dict[str, list[str]] = {}
    for tied, kept in ties.items():
        together.setdefault(kept, []).append(tied)
    shards = [[n for kept in shard for n in (kept, *together.get(kept, ()))] for shard in shards]
    stem, dot, suffix = name.rpartition(".")
    held = dict(zip(shard_names(stem, dot + suffix, len(shards)), shards, strict=True))
    files = [_file(path, graph.select(names), ties) for path, names in held.items()]
    return Layout((*files, index(f"{name}.index.json", held, stored)), tuple(losses))


def _file(path: str, graph: TensorGraph, ties: Mapping[str, str]) -> OutputFile:
    """One archive with all tensors of the graph; `ties` maps a tied name to the one whose storage it shares."""
    entries: list[Entry] = []
    members: list[Member] = []
    keys: dict[str, str] = {}
    for label, tensor in graph.items():
        owner = ties.get(label, label)
        stored = _stored_dtype(label, tensor)
        nbytes = tensor.nbytes
        if owner == label:
            keys[label] = str(len(members))
            members.append(Member(f"{ROOT}/data/{len(members)}", tensor, nbytes, label))
        shape = _torch_shape(label, tensor)
        storage = f"{stored.storage}Storage" if stored.storage else ""
        length = tensor.size if storage else nbytes
        entries.append(Entry(label, keys[owner], storage, stored.torch or "", length, shape))
    records = {
        "data.pkl": state_dict(entries, _state(graph.metadata)),
        ".format_version": b"1",
        ".storage_alignment": b"%d" % ALIGNMENT,
        "byteorder": b"little",
    }
    before = [Member(f"{ROOT}/{key}", data, len(data)) for key, data in records.items()]
    version = Member(f"{ROOT}/version", b"3\n", 2)
    return archive(path, [*before, *members, version])


def _integer_losses(graph: TensorGraph) -> list[Finding]:
    return [
        Finding("quantized-as-integers", "warning", label, f"{tensor.dtype} is written as {stored}")
        for label, tensor in graph.items()
        if (stored := _stored_dtype(label, tensor)) is not tensor.dtype
    ]


def _stored_dtype(name: str, tensor: Tensor) -> DType:
    dtype = tensor.dtype
    if dtype.kind == "quantized" and dtype.name in _INTEGERS:
        return DTYPES[_INTEGERS[dtype.name]]
    if dtype.torch is None or dtype.kind == "quantized":
        raise CkptError(
            "dtype-unsupported",
            f"a .pt of plain tensors cannot hold {dtype}",
            name,
            "leave it out with --exclude"
            + (", or dequantize it in torch first" if dtype.kind == "quantized" else ""),
        )
    return dtype


def _torch_shape(name: str, tensor: Tensor) -> tuple[int, ...]:
    """Torch counts bytes, not elements, along the last dimension of a float4 tensor."""
    shape = tensor.shape
    if tensor.dtype.bits >= 8:
        return shape
    per_byte = 8 // tensor.dtype.bits
    if not shape or shape[-1] % per_byte:
        raise CkptError(
            "shape-unsupported", f"{tensor.dtype} of shape {list(shape)} does not fill whole bytes", name
        )
    return (*shape[:-1], shape[-1] // per_byte)


def _state(metadata: Mapping[str, str]) -> dict[str, object]:
    """The attributes of the state dict that carry the metadata."""
    own = dict(metadata)
    state: dict[str, object] = {}
    versions = _versions(own.get(METADATA))
    if versions is not None:
        state[METADATA] = versions
        del own[METADATA]
    if own and own != {"format": "pt"}:
        state[OWN_METADATA] = own
    return state


def _versions(text: str | None) -> "OrderedDict[str, object] | None":
    """`_metadata` from its JSON: prefix → dict of scalars; None if it is not that."""
    import json

    if text is None:
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    for values in found.values():
        if not isinstance(values, dict) or not all(_is_scalar(value) for value in values.values()):
            return None
    return OrderedDict(found)


def _is_scalar(value: object) -> bool:
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    return value is None or isinstance(value, str | float)

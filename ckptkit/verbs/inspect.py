"""inspect: what a checkpoint holds, as one value.

Everything comes from the manifest; the tensors themselves are not read.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ckptkit.core.files import File
from ckptkit.core.graph import TensorGraph
from ckptkit.core.tensor import Tensor
from ckptkit.match.published import stated
from ckptkit.match.quantized import Quantized, quantized
from ckptkit.match.schemes import Naming, naming
from ckptkit.match.usage import Usage, usage

# Names of tensors that modules compute or count for themselves; torch calls them buffers.
_BUFFERS = (
    "running_mean",
    "running_var",
    "num_batches_tracked",
    "position_ids",
    "token_type_ids",
    "rotary_emb.inv_freq",
    "masked_bias",
    "relative_position_index",
)
# Integers of these dtypes are counters, indices and shapes; narrower ones may be quantised weights.
_COUNTING = ("int64", "int32", "uint64", "uint32", "bool", "string")


@dataclass(frozen=True, slots=True)
class Summary:
    """What a checkpoint holds.

    Attributes:
        tensors: how many.
        nbytes: logical bytes, tied tensors once.
        stored: bytes of storage behind the tensors; more than `nbytes` where tensors are slices of larger
            storages, less where they are expanded, deflated or overlap.
        files: bytes of all files together.
        elements: number of elements, tied tensors once.
        parameters: logical parameters: the elements of weights (quantised ones as many as they stand for),
            without scales, buffers, counters and indices.
        dtypes: dtype → (tensors, bytes), the largest first; tied tensors count once in the bytes.
        ties: tied name → the first name of its group.
        slices: names whose storage is larger than they are.
        naming: what the names tell.
        stated: the published model that the file itself says it is (`arch: resnet50`); "" if it says none.
        quantized: the families of quantised weights.
        usage: what the operators of an ONNX graph do with the tensors; None without a graph.
    """

    tensors: int
    nbytes: int
    stored: int
    files: int
    elements: int
    parameters: int
    dtypes: Mapping[str, tuple[int, int]]
    ties: Mapping[str, str]
    slices: tuple[str, ...]
    naming: Naming
    stated: str
    quantized: tuple[Quantized, ...]
    usage: Usage | None


def summarise(graph: TensorGraph) -> Summary:
    """What a checkpoint holds; looks at the manifest only."""
    groups = graph.storages()
    tensors = graph.tensors
    families = quantized(tensors)
    members = frozenset[str]().union(*(family.members for family in families))
    shares: dict[str, list[int]] = {}
    sizes: dict[tuple[str, tuple[int, ...]], tuple[int, int]] = {}  # few differ among many tensors
    nbytes = elements = parameters = 0
    for names in groups:
        first = names[0]
        tensor = tensors[first]
        dtype = tensor.dtype.name
        counts = sizes.get((dtype, tensor.shape))
        if counts is None or not tensor.dtype.bits:
            counts = sizes[dtype, tensor.shape] = (tensor.size, tensor.nbytes)
        size, width = counts
        nbytes += width
        elements += size
        if first not in members and _is_parameter(first, tensor):
            parameters += size
        share = shares.setdefault(dtype, [0, 0])
        share[0] += len(names)
        share[1] += width
    stored, slices = _stored(tensors)
    return Summary(
        tensors=len(tensors),
        nbytes=nbytes,
        stored=stored,
        files=graph.origin.stored,
        elements=elements,
        parameters=parameters + sum(family.parameters for family in families),
        dtypes={n: (count, width) for n, (count, width) in sorted(shares.items(), key=lambda s: -s[1][1])},
        ties={name: names[0] for names in groups for name in names[1:]},
        slices=slices,
        naming=naming(tensors),
        stated=stated(graph),
        quantized=families,
        usage=usage(graph),
    )


def section_of(graph: TensorGraph) -> Callable[[str], str]:
    """Tensor name → dotted path of the section it belongs to; "" outside every section."""
    origin = graph.origin
    if origin.section not in ("", "all"):
        return lambda name: origin.section
    paths = sorted((section.name for section in origin.sections if section.name), key=len, reverse=True)
    if not paths:
        return lambda name: ""
    return lambda name: next((p for p in paths if name == p or name.startswith(f"{p}.")), "")


def _is_parameter(name: str, tensor: Tensor) -> bool:
    if tensor.kind == "parameter":
        return True
    return tensor.kind != "buffer" and tensor.dtype.name not in _COUNTING and not name.endswith(_BUFFERS)


def _stored(tensors: Mapping[str, Tensor]) -> tuple[int, tuple[str, ...]]:
    """Bytes of the union of all stored ranges, and the names that see only part of their storage."""
    ranges: dict[File, list[tuple[int, int]]] = {}
    last: File | None = None  # neighbours nearly always lie in one file
    here: list[tuple[int, int]] = []
    slices = []
    for name, tensor in tensors.items():
        if tensor.source is None and tensor.file is not None:
            if tensor.file is not last:
                last = tensor.file
                here = ranges.setdefault(last, [])
            here.append((tensor.offset, tensor.offset + tensor.nbytes))
        else:
            behind = 0
            for file, offset, nbytes in tensor.extents:
                ranges.setdefault(file, []).append((offset, offset + nbytes))
                behind += nbytes
            if behind > tensor.nbytes:
                slices.append(name)
    return sum(map(_covered, ranges.values())), tuple(slices)


def _covered(ranges: list[tuple[int, int]]) -> int:
    """Length of the union of (start, stop) ranges."""
    ranges.sort()
    total = end = 0
    for start, stop in ranges:
        if stop > end:
            total += stop - max(start, end)
            end = stop
    return total

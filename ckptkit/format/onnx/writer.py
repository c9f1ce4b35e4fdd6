"""TensorGraph of an ONNX model → ONNX model: the source's bytes with the weights put elsewhere, renamed or replaced.

Nothing but the data fields of TensorProto, the names of renamed tensors, changed metadata_props and what `casts` adds
is touched; node order, unknown fields and documentation are copied as they stand. Inline data becomes raw_data; tensors
that stay inline keep the field they are in if they are unchanged, or if it holds plain bytes (raw data, packed floats),
which are then replaced in place. External data goes where `placing` says, with entries location, offset, length as onnx
writes them.

A serialised model must stay under 2 GiB. Sources: onnx.in.proto, docs/ExternalData.md of onnx 1.23.
"""

from collections.abc import Iterator

from ckptkit.core.budgets import DEFAULT_BUDGETS
from ckptkit.core.errors import CkptError
from ckptkit.core.graph import TensorGraph
from ckptkit.core.plan import Layout, OutputFile, WriteOptions
from ckptkit.core.tensor import Tensor
from ckptkit.format.onnx.casts import Recast, fixed, recast
from ckptkit.format.onnx.mentions import bodies
from ckptkit.format.onnx.native import Frame, Native
from ckptkit.format.onnx.patch import Edit, patched
from ckptkit.format.onnx.placing import Place, Weight, is_external, lost_ties, place
from ckptkit.format.onnx.rename import rename_edits
from ckptkit.format.onnx.resize import declared, resize_edits
from ckptkit.format.onnx.schema import MODEL, PAIR
from ckptkit.format.onnx.wire import LENGTH, Span, Wire, encode_field, encode_varint
from ckptkit.format.sharing import kept_ties

LIMIT = (1 << 31) - 1  # of a serialised model

_DATA_TYPE, _RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION, _METADATA_PROPS = 2, 9, 13, 14, 14
_DATA_FIELDS = frozenset((4, 5, 6, 7, 9, 10, 11, 13, 14))


def layout(graph: TensorGraph, name: str, options: WriteOptions) -> Layout:
    """The model file called `name`, with the data files to write before it.

    Raises CkptError `graph-needed` for a graph that is no ONNX model, `graph-incomplete` when tensors are missing,
    `graph-typed` when one has another dtype or shape, `onnx-rename`, `name-collision`, `tied-tensors`,
    `onnx-too-large`, `not-sharded`.
    """
    native = graph.native
    if not isinstance(native, Native):
        raise CkptError(
            "graph-needed",
            f"ONNX needs a graph, and {graph.origin.path} holds weights only",
            None,
            "--into base.onnx puts them into an existing model; "
            "ckptkit export --module package.module:factory makes one",
        )
    if options.max_shard_size is not None:
        raise CkptError(
            "not-sharded", "ONNX weights are written to one data file", None, "leave --max-shard-size out"
        )
    ties = kept_ties(graph, options.ties)
    weights = _weights(graph, native)
    placed = place(graph, native, weights, name, options, ties.keys() | set(ties.values()))
    with native.file.open() as reader:
        wire = Wire(reader, DEFAULT_BUDGETS)
        edits: list[Edit] = []
        for weight in weights:
            edits += _data_edits(wire, weight, native, placed.places.get(weight.name))
        edits += _name_edits(wire, native, graph, weights)
        edits += _metadata_edits(wire, native, graph)
        edits += resize_edits(wire, native)
        pieces, size = patched(wire, edits)
    if size > LIMIT:
        raise CkptError(
            "onnx-too-large",
            f"the model would have {size} bytes, and protobuf reads no more than {LIMIT}",
            graph.origin.path,
            "--onnx-data external puts the weights into a file beside it"
            if options.external == "inline"
            else None,
        )
    model = OutputFile(name, size, pieces)
    losses = lost_ties(ties, placed.places) if options.ties == "keep" else ()
    return Layout((*placed.files, model), losses, tuple(placed.notes), placed.links)


def _name_edits(wire: Wire, native: Native, graph: TensorGraph, weights: list[Weight]) -> list[Edit]:
    """What makes names those of the graph, and gives the nodes the types they were made for."""
    stored_as = {
        graph.renamed.get(w.name, w.name): w.tensor.dtype
        for w in weights
        if w.tensor.dtype != w.stored.tensor.dtype
    }
    if not stored_as and not graph.renamed:
        return []
    found = bodies(wire, native)
    changes = recast(wire, native, found, stored_as, graph.renamed) if stored_as else Recast()
    return [*changes.edits, *rename_edits(native, found, graph.renamed, changes)]


def _weights(graph: TensorGraph, native: Native) -> list[Weight]:
    weights = []
    rigid = _rigid(graph, native)
    left = dict(native.tensors)
    for name, tensor in graph.tensors.items():
        stored = left.pop(graph.renamed.get(name, name), None)
        if stored is None:
            raise CkptError("graph-incomplete", "the ONNX graph has no place for this tensor", name)
        was = stored.tensor
        shape = declared(was.shape, native.resized.get(graph.renamed.get(name, name)))
        if tensor.shape != shape or (tensor.dtype != was.dtype and name in rigid):
            raise CkptError(
                "graph-typed",
                f"the graph's nodes expect {_type(was)}, not {_type(tensor)}",
                name,
                "convert to .safetensors or .pt to change weights without their graph",
            )
        changed = tensor is not was and (tensor.storage is None or tensor.storage != was.storage)
        if changed and (stored.frame is None or tensor.dtype.kind == "string") and tensor.size:
            raise CkptError(
                "graph-typed", "a setting of a node, which cannot be replaced like a weight", name
            )
        weights.append(Weight(name, stored, tensor, changed))
    if left:
        raise CkptError(
            "graph-incomplete",
            f"an ONNX graph needs all its tensors, and {len(left)} are left out",
            next(iter(left)),
            "convert to .safetensors or .pt to keep only some of them",
        )
    return weights


def _rigid(graph: TensorGraph, native: Native) -> frozenset[str]:
    """Names that cannot have the dtype they have, as it is not the one they were read with."""
    changed = {}
    for name, tensor in graph.tensors.items():
        stored = native.tensors.get(graph.renamed.get(name, name))
        if stored is not None and stored.tensor.dtype != tensor.dtype:
            changed[name] = (stored.tensor.dtype, tensor.dtype)
    floats = {now for was, now in changed.values() if was.kind == now.kind == "float"}
    held = frozenset[str]().union(*(fixed(graph, dtype) for dtype in floats))
    return held | {name for name, pair in changed.items() if any(dtype.kind != "float" for dtype in pair)}


def _type(tensor: Tensor) -> str:
    return f"{tensor.dtype}{list(tensor.shape)}"


def _data_edits(wire: Wire, weight: Weight, native: Native, place: Place | None) -> Iterator[Edit]:
    """What moves one tensor's data to where it goes."""
    frame = weight.stored.frame
    if frame is None:
        return
    tensor = weight.tensor
    was_external = is_external(weight.stored, native)
    was = weight.stored.tensor
    same_dtype = tensor.dtype == was.dtype
    same = same_dtype and tensor.shape == was.shape
    if place is None and not was_external and was.source is None and tensor.nbytes and same:
        # Raw data, or packed floats, which are the same: new or old values in the same place.
        yield Edit(frame, was.offset, was.offset + was.nbytes, (tensor,), weight.name)
        return
    if place is None and not weight.changed and not was_external:
        return
    fields = list(wire.fields(frame.span.start, frame.span.end))
    if not same_dtype:
        assert tensor.dtype.onnx is not None
        spelled = encode_field(_DATA_TYPE, tensor.dtype.onnx)
        yield from (Edit(frame, at.at, at.end, (spelled,)) for key, at in fields if key >> 3 == _DATA_TYPE)
    content: tuple[bytes | Tensor, ...]
    if place is not None:
        entries = (
            ("location", place.location),
            ("offset", str(place.offset)),
            ("length", str(tensor.nbytes)),
        )
        external = b"".join(
            encode_field(_EXTERNAL_DATA, encode_field(1, key.encode()) + encode_field(2, value.encode()))
            for key, value in entries
        )
        content, number = (external + encode_field(_DATA_LOCATION, 1),), _DATA_LOCATION
    elif tensor.nbytes:
        head = encode_varint(_RAW_DATA << 3 | LENGTH) + encode_varint(tensor.nbytes)
        content, number = (head, tensor), _RAW_DATA
    else:
        content, number = (), _RAW_DATA
    yield from _replace_fields(frame, fields, content, number, weight.name)


def _replace_fields(
    frame: Frame,
    fields: list[tuple[int, Span]],
    content: tuple[bytes | Tensor, ...],
    number: int,
    name: str,
) -> Iterator[Edit]:
    """Take out the data fields of a TensorProto and put others where a serialiser would: ordered by field number."""
    kept = [(key >> 3, span) for key, span in fields if key >> 3 not in _DATA_FIELDS]
    place = next((span.at for other, span in kept if other > number), frame.span.end)
    yield Edit(frame, place, place, content, name)
    for key, span in fields:
        if key >> 3 in _DATA_FIELDS:
            yield Edit(frame, span.at, span.end)


def _metadata_edits(wire: Wire, native: Native, graph: TensorGraph) -> Iterator[Edit]:
    """What makes metadata_props those of the graph: changed and removed in place, new ones after the others."""
    wanted = dict(graph.metadata)
    if wanted == native.metadata:
        return
    place = wire.size
    for span in wire.message(0, wire.size, MODEL).get("metadata_props", []):
        key = wire.message(span.start, span.end, PAIR).get("key", "")
        value = wanted.pop(key, None)
        place = span.end
        if value is None:
            yield Edit(None, span.at, span.end)
        elif value != native.metadata[key]:
            yield Edit(None, span.at, span.end, (_pair(key, value),))
    if wanted:
        yield Edit(None, place, place, tuple(_pair(key, value) for key, value in wanted.items()))


def _pair(key: str, value: str) -> bytes:
    return encode_field(
        _METADATA_PROPS,
        encode_field(1, key.encode("utf-8", "replace")) + encode_field(2, value.encode("utf-8", "replace")),
    )

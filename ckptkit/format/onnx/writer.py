"""TensorGraph of an ONNX model → ONNX model: the source's bytes with the weights put elsewhere, renamed or replaced.

Nothing but the data fields of TensorProto, the names of renamed tensors, changed metadata_props and what `casts` adds
is touched; node order, unknown fields and documentation are copied as they stand. Inline data becomes raw_data; tensors
that stay inline keep the field they are in if they are unchanged, or if it holds plain bytes (raw data, packed floats),
which are then replaced in place. External data goes to one new file, in file order, each
tensor at a multiple of 4096 bytes (of 64 KiB from 1 MiB on, which is what Windows needs to map it), with entries
location, offset, length as onnx writes them. Tensors below 1 KiB stay inline, as in onnx.save, and so do strings,
attributes, sparse parts and what lies in functions and training info, where onnx itself would not look for a file.

A serialised model must stay under 2 GiB. Sources: onnx.in.proto, docs/ExternalData.md of onnx 1.23.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from ckptkit.core.budgets import DEFAULT_BUDGETS
from ckptkit.core.errors import CkptError
from ckptkit.core.findings import Finding
from ckptkit.core.graph import TensorGraph
from ckptkit.core.plan import Layout, OutputFile, Piece, WriteOptions
from ckptkit.core.tensor import Tensor
from ckptkit.core.words import plural
from ckptkit.format.onnx.casts import Recast, fixed, recast
from ckptkit.format.onnx.mentions import bodies
from ckptkit.format.onnx.native import Frame, Native, Stored
from ckptkit.format.onnx.patch import Edit, patched
from ckptkit.format.onnx.rename import rename_edits
from ckptkit.format.onnx.schema import MODEL, PAIR
from ckptkit.format.onnx.wire import LENGTH, Span, Wire, encode_field, encode_varint
from ckptkit.format.sharing import kept_ties

LIMIT = (1 << 31) - 1  # of a serialised model
COMFORTABLE = 2_000_000_000  # beyond it `auto` moves weights out, so that tools have room to add to the model
SMALLEST_EXTERNAL = 1024
PAGE, GRANULARITY, LARGE = 4096, 1 << 16, 1 << 20

_DATA_TYPE, _RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION, _METADATA_PROPS = 2, 9, 13, 14, 14
_DATA_FIELDS = frozenset((4, 5, 6, 7, 9, 10, 11, 13, 14))


@dataclass(frozen=True, slots=True)
class _Weight:
    """One tensor of the output: its name there, where the source has it, what is to be written."""

    name: str
    stored: Stored
    tensor: Tensor
    changed: bool


def layout(graph: TensorGraph, name: str, options: WriteOptions) -> Layout:
    """The model file called `name`, with a data file before it where weights are external.

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
    notes: list[Finding] = []
    outside = _external(ties, native, weights, options, notes)
    data, places = _data_file(_data_name(name, options.taken), outside, options)
    with native.file.open() as reader:
        wire = Wire(reader, DEFAULT_BUDGETS)
        edits: list[Edit] = []
        for weight in weights:
            edits += _data_edits(wire, weight, native, data.path, places.get(weight.name))
        edits += _name_edits(wire, native, graph, weights)
        edits += _metadata_edits(wire, native, graph)
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
    losses = _lost_ties(ties, places) if options.ties == "keep" else ()
    return Layout((data, model) if places else (model,), losses, tuple(notes))


def _name_edits(wire: Wire, native: Native, graph: TensorGraph, weights: list[_Weight]) -> list[Edit]:
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


def _weights(graph: TensorGraph, native: Native) -> list[_Weight]:
    weights = []
    rigid = _rigid(graph, native)
    left = dict(native.tensors)
    for name, tensor in graph.tensors.items():
        stored = left.pop(graph.renamed.get(name, name), None)
        if stored is None:
            raise CkptError("graph-incomplete", "the ONNX graph has no place for this tensor", name)
        was = stored.tensor
        if tensor.shape != was.shape or (tensor.dtype != was.dtype and name in rigid):
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
        weights.append(_Weight(name, stored, tensor, changed))
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


def _is_external(stored: Stored, native: Native) -> bool:
    return stored.tensor.file is not None and stored.tensor.file != native.file


def _external(
    ties: dict[str, str],
    native: Native,
    weights: list[_Weight],
    options: WriteOptions,
    notes: list[Finding],
) -> list[_Weight]:
    """The weights that go to the data file, in file order."""
    if options.external == "inline":
        return []
    tied = ties.keys() | set(ties.values())
    able = [
        weight
        for weight in weights
        if (weight.stored.movable or _is_external(weight.stored, native))
        and weight.tensor.dtype.kind != "string"
        and (weight.tensor.nbytes >= SMALLEST_EXTERNAL or weight.name in tied)
    ]
    if options.external == "external":
        return able
    outside = [weight for weight in able if _is_external(weight.stored, native)]
    inline = sum(w.tensor.nbytes for w in weights if _is_external(w.stored, native))
    inline += native.file.size - sum(w.tensor.nbytes for w in outside)
    if inline <= COMFORTABLE:
        return outside
    message = f"{inline} bytes are too many for one protobuf file: weights go to a data file beside the model"
    notes.append(Finding("weights-external", "note", "", message))
    return able


def _data_name(name: str, taken: frozenset[str]) -> str:
    """A name for the data file that nothing has yet, so that replacing a model never touches the old one's data."""
    names = (f"{name}.data" if n == 1 else f"{name}.{n}.data" for n in range(1, len(taken) + 2))
    return next(candidate for candidate in names if candidate not in taken)


def _data_file(path: str, weights: list[_Weight], options: WriteOptions) -> tuple[OutputFile, dict[str, int]]:
    """The data file, and where in it each tensor starts."""
    pieces = []
    places: dict[str, int] = {}
    shared: dict[object, str] = {}
    end = 0
    for weight in weights:
        tensor = weight.tensor
        key = tensor.storage
        first = shared.setdefault(key, weight.name) if key is not None else weight.name
        if first != weight.name and options.ties == "keep":
            places[weight.name] = places[first]
            continue
        alignment = GRANULARITY if tensor.nbytes >= LARGE else PAGE
        start = -(-end // alignment) * alignment
        places[weight.name] = start
        pieces.append(Piece(start, tensor.nbytes, tensor, weight.name))
        end = start + tensor.nbytes
    return OutputFile(path, end, tuple(pieces)), places


def _data_edits(
    wire: Wire, weight: _Weight, native: Native, data_path: str, place: int | None
) -> Iterator[Edit]:
    """What moves one tensor's data to where it goes."""
    frame = weight.stored.frame
    if frame is None:
        return
    tensor = weight.tensor
    was_external = _is_external(weight.stored, native)
    was = weight.stored.tensor
    same_dtype = tensor.dtype == was.dtype
    if place is None and not was_external and was.source is None and tensor.nbytes and same_dtype:
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
        entries = (("location", data_path), ("offset", str(place)), ("length", str(tensor.nbytes)))
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


def _lost_ties(ties: dict[str, str], places: dict[str, int]) -> tuple[Finding, ...]:
    """Tied tensors that go inline: protobuf has no way to share bytes."""
    lost = [(tied, first) for tied, first in ties.items() if tied not in places or first not in places]
    if not lost:
        return ()
    tied, first = lost[0]
    return (
        Finding(
            "ties-copied",
            "warning",
            tied,
            f"inline weights share nothing: {plural(len(lost), 'copy', 'copies')} of tied tensors ({tied} = {first})",
            "--onnx-data external keeps the sharing, --ties copy accepts the copies",
        ),
    )

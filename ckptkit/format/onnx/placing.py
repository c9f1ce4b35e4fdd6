"""Where the weights of a model to be written go: into it, into a data file beside it, or nowhere, as they lie there.

A data file of our own has each tensor at a multiple of 4096 bytes (of 64 KiB from 1 MiB on, which is what Windows needs
to map it), in file order. A safetensors file is what its own writer makes of the same tensors, under their names: no
gaps, so a tensor starts at a multiple of its element's size and no more, which is all that onnxruntime asks for. And
what lies as it is in a file of the target's folder, such as the checkpoint that the weights come from, can stay there.

Tensors below 1 KiB stay in the model, as in onnx.save, and so do strings, attributes, sparse parts and what lies in
functions and training info, where onnx itself would not look for a file. With safetensors, which is to be of use as a
checkpoint, only short floats and integers stay: those that shape inference may need to know.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from ckptkit.core.errors import CkptError
from ckptkit.core.findings import Finding
from ckptkit.core.graph import TensorGraph
from ckptkit.core.plan import OutputFile, Piece, WriteOptions
from ckptkit.core.tensor import Tensor
from ckptkit.core.words import plural
from ckptkit.format import registry
from ckptkit.format.onnx.native import Native, Stored

COMFORTABLE = 2_000_000_000  # beyond it `auto` moves weights out, so that tools have room to add to the model
SMALLEST_EXTERNAL = 1024
PAGE, GRANULARITY, LARGE = 4096, 1 << 16, 1 << 20
_SHORT = 16  # values: longer floats are weights


@dataclass(frozen=True, slots=True)
class Weight:
    """One tensor of the output: its name there, where the source has it, what is to be written."""

    name: str
    stored: Stored
    tensor: Tensor
    changed: bool


class Place(NamedTuple):
    """Where external data lies: a path relative to the model's folder, and the first byte."""

    location: str
    offset: int


@dataclass(slots=True)
class Placed:
    """Where weights go.

    Attributes:
        places: name → place; the others stay in the model.
        files: the data files to write.
        links: location → path of the files that are used as they lie.
        notes: what is worth telling.
    """

    places: dict[str, Place] = field(default_factory=dict)
    files: tuple[OutputFile, ...] = ()
    links: dict[str, str] = field(default_factory=dict)
    notes: list[Finding] = field(default_factory=list)


def place(
    graph: TensorGraph,
    native: Native,
    weights: list[Weight],
    name: str,
    options: WriteOptions,
    tied: set[str],
) -> Placed:
    """Decide it for a model called `name`. Raises CkptError `not-shared` when no file can be used as it lies."""
    placed = Placed()
    if options.external == "safetensors":
        _safetensors(graph, [w for w in weights if _is_weight(w, native)], name, options, placed)
        return placed
    if options.external == "shared":
        _shared(graph, native, weights, options, placed)
        return placed
    outside = _external(native, weights, options, tied, placed.notes)
    if outside:
        _data_file(_free_name(name, ".data", options.taken), outside, options, placed)
    return placed


def is_external(stored: Stored, native: Native) -> bool:
    """Whether a tensor lies outside the model that it was read from."""
    return stored.tensor.file is not None and stored.tensor.file != native.file


def _external(
    native: Native, weights: list[Weight], options: WriteOptions, tied: set[str], notes: list[Finding]
) -> list[Weight]:
    """The weights that go to a data file of our own, in file order."""
    if options.external == "inline":
        return []
    able = [
        weight
        for weight in weights
        if _may_leave(weight, native) and (weight.tensor.nbytes >= SMALLEST_EXTERNAL or weight.name in tied)
    ]
    if options.external == "external":
        return able
    outside = [weight for weight in able if is_external(weight.stored, native)]
    inline = sum(w.tensor.nbytes for w in weights if is_external(w.stored, native))
    inline += native.file.size - sum(w.tensor.nbytes for w in outside)
    if inline <= COMFORTABLE:
        return outside
    message = f"{inline} bytes are too many for one protobuf file: weights go to a data file beside the model"
    notes.append(Finding("weights-external", "note", "", message))
    return able


def _may_leave(weight: Weight, native: Native) -> bool:
    movable = weight.stored.movable or is_external(weight.stored, native)
    return movable and weight.tensor.dtype.kind != "string"


def _is_weight(weight: Weight, native: Native) -> bool:
    """Whether it may leave the model, and is nothing that shape inference could need."""
    tensor = weight.tensor
    large = tensor.nbytes >= SMALLEST_EXTERNAL or (tensor.dtype.kind == "float" and tensor.size > _SHORT)
    return large and _may_leave(weight, native)


def _free_name(name: str, suffix: str, taken: frozenset[str]) -> str:
    """A name for the data file that nothing has yet, so that replacing a model never touches the old one's data."""
    names = (f"{name}{suffix}" if n == 1 else f"{name}.{n}{suffix}" for n in range(1, len(taken) + 2))
    return next(candidate for candidate in names if candidate not in taken)


def _data_file(path: str, weights: list[Weight], options: WriteOptions, placed: Placed) -> None:
    pieces = []
    shared: dict[object, str] = {}
    end = 0
    for weight in weights:
        tensor = weight.tensor
        key = tensor.storage
        first = shared.setdefault(key, weight.name) if key is not None else weight.name
        if first != weight.name and options.ties == "keep":
            placed.places[weight.name] = placed.places[first]
            continue
        alignment = GRANULARITY if tensor.nbytes >= LARGE else PAGE
        start = -(-end // alignment) * alignment
        placed.places[weight.name] = Place(path, start)
        pieces.append(Piece(start, tensor.nbytes, tensor, weight.name))
        end = start + tensor.nbytes
    placed.files = (OutputFile(path, end, tuple(pieces)),)


def _safetensors(
    graph: TensorGraph, weights: list[Weight], name: str, options: WriteOptions, placed: Placed
) -> None:
    held = [weight for weight in weights if weight.tensor.dtype.safetensors]
    if not held:
        return
    path = _free_name(name, ".safetensors", options.taken)
    alone = replace(graph, tensors={w.name: w.tensor for w in held}, metadata={}, nodes=(), native=None)
    made = registry.named("safetensors").load().layout(alone, path, WriteOptions(ties=options.ties))
    (file,) = placed.files = made.files
    offsets = {piece.name: piece.offset for piece in file.pieces if piece.name}
    offsets |= {tied: offsets[kept] for tied, kept in alone.ties().items() if tied not in offsets}
    placed.places = {weight.name: Place(path, offsets[weight.name]) for weight in held}
    placed.notes += made.notes


def _shared(
    graph: TensorGraph, native: Native, weights: list[Weight], options: WriteOptions, placed: Placed
) -> None:
    """Place what can stay where it lies; the rest goes into the model."""
    nbytes = 0
    seen: dict[str, str | None] = {}
    for weight in weights:
        tensor = weight.tensor
        location = None
        if tensor.file is not None and tensor.file != native.file and _is_weight(weight, native):
            path = tensor.file.path
            if path not in seen:
                seen[path] = _location(path, options.folder)
            location = seen[path]
        if location is None or tensor.file is None or tensor.offset % max(1, tensor.dtype.bits // 8):
            continue
        placed.places[weight.name] = Place(location, tensor.offset)
        placed.links[location] = os.path.realpath(tensor.file.path)
        nbytes += tensor.nbytes
    if not placed.places:
        raise CkptError(
            "not-shared",
            "no weight lies, as it is written, in a file of the folder that the model goes to",
            graph.origin.path,
            "write the model beside its weights, or --onnx-data safetensors copies them",
        )
    message = f"{plural(len(placed.places), 'weight')} of {nbytes} bytes stay in {', '.join(placed.links)}"
    placed.notes.append(
        Finding("weights-shared", "note", "", f"{message}, which the model needs beside it, unchanged")
    )


def _location(path: str, folder: str) -> str | None:
    """The file as a POSIX path from the folder; None if it is not in there."""
    relative = os.path.relpath(os.path.realpath(path), folder) if folder else os.pardir
    if os.path.isabs(relative) or relative.split(os.sep)[0] == os.pardir:
        return None
    return relative.replace(os.sep, "/")


def lost_ties(ties: Mapping[str, str], places: Mapping[str, Place]) -> tuple[Finding, ...]:
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

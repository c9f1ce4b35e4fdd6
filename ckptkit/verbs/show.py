"""show: one tensor's values, as an array or as a .npy file."""

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from ckptkit.core.dtypes import DTYPES
from ckptkit.core.errors import CkptError
from ckptkit.core.expansion import refuse_expansion
from ckptkit.core.graph import TensorGraph
from ckptkit.core.numeric import Statistics, statistics
from ckptkit.core.staging import Staging, refuse_inputs
from ckptkit.core.tensor import Tensor
from ckptkit.match.schemes import unwrapped
from ckptkit.ops.layout import Held, Window, narrow, reshape

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

Index = tuple[Any, ...]  # of slice, int and Ellipsis, as numpy takes it

# Dtypes that numpy itself has, so that any program can load the file.
NATIVE: tuple[str, ...] = ("float64", "float32", "float16", "complex128", "complex64", "bool")
NATIVE += ("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8")
_CANDIDATES = 400  # names compared letter by letter when none is exact
_BLOCK = 1 << 20  # elements written at a time


@dataclass(frozen=True, slots=True)
class Shown:
    """One tensor, or a part of it.

    Attributes:
        graph: what it stands in.
        name: its full name.
        tensor: as stored.
        values: the part asked for, an array of any dtype that numpy and ml_dtypes have.
        statistics: of that part; None if its elements are no real numbers, or if they were not wanted.
    """

    graph: TensorGraph
    name: str
    tensor: Tensor
    values: "Array"
    statistics: Statistics | None


def show(graph: TensorGraph, name: str, index: Index = (), *, measure: bool = True) -> Shown:
    """The values of one tensor, or of a part of it, and unless `measure` is off statistics over them.

    Of a tensor that is a view of its storage, only the part is read. Raises CkptError `no-such-tensor` (the hint
    names what is near), `bad-slice`, `expands` (zero strides make far more of it than is stored),
    `dtype-unsupported` (no array can hold the type), and what reading raises.
    """
    import numpy as np

    tensor = find(graph, name)
    try:
        if tensor.dtype.kind == "string":
            values = _strings(tensor)
            return Shown(graph, name, tensor, np.asarray(values[_spread(tensor, index)], values.dtype), None)
        part, turned = _narrowed(tensor, index)
        _refuse_bomb(part)
        return Shown(
            graph, name, tensor, _values(tensor, part, index, turned), statistics(part) if measure else None
        )
    except CkptError as error:
        raise CkptError(error.code, error.message, error.where or name, error.hint) from None


def find(graph: TensorGraph, name: str) -> Tensor:
    """The tensor of that name. Raises CkptError `no-such-tensor`."""
    if name in graph:
        return graph[name]
    near = nearest(name, graph)
    listed = f"ckptkit inspect {graph.origin.path} lists the names"
    hint = f"did you mean {' or '.join(near)}?" if near else listed
    raise CkptError("no-such-tensor", f"there is no tensor {name!r}", graph.origin.path, hint)


def nearest(name: str, names: Collection[str], limit: int = 3) -> list[str]:
    """The names that were probably meant: the same without wrappers, then endings, then those spelt alike."""
    bare = unwrapped(name)
    same = [n for n in names if unwrapped(n) == bare]
    tail = "." + bare
    same += list(islice((n for n in names if n.endswith(tail) and n not in same), limit))
    if same or not names:
        return same[:limit]
    from difflib import get_close_matches

    words = set(name.replace("/", ".").split("."))
    likely = sorted(
        names,
        key=lambda n: (-len(words.intersection(n.replace("/", ".").split("."))), abs(len(n) - len(name))),
    )
    return get_close_matches(name, likely[:_CANDIDATES], n=limit, cutoff=0.5)


def parse_slice(text: str) -> Index:
    """`0:3,:` → what numpy takes between brackets: integers, slices and `...`. Raises CkptError `bad-slice`."""
    try:
        return tuple(map(_one, text.strip().removeprefix("[").removesuffix("]").split(",")))
    except ValueError:
        raise CkptError("bad-slice", "this is no slice", text, "for example 0:3,: or 0,...,-1") from None


def _one(text: str) -> Any:
    if text.strip() == "...":
        return Ellipsis
    numbers = [int(number) if number.strip() else None for number in text.split(":")]
    if len(numbers) == 1 and numbers[0] is not None:
        return numbers[0]
    if len(numbers) not in (2, 3) or numbers[2:] == [0]:
        raise ValueError(text)
    return slice(*numbers)


def _spread(tensor: Tensor, index: Index) -> Index:
    """An integer or a slice for each dimension. Raises CkptError `bad-slice` where they do not fit."""
    rank = len(tensor.shape)
    dims = "×".join(map(str, tensor.shape)) or "no dimensions"
    message = f"the slice does not fit a tensor of {dims}"
    gap = rank - sum(one is not Ellipsis for one in index)
    at = index.index(Ellipsis) if Ellipsis in index else len(index)
    if gap < 0 or index[at + 1 :].count(Ellipsis):
        raise CkptError("bad-slice", message, None, f"{len(index)} indices are too many")
    spread = (*index[:at], *[slice(None)] * gap, *index[at + 1 :])
    for one, size in zip(spread, tensor.shape, strict=True):
        if isinstance(one, int) and not -size <= one < size:
            raise CkptError("bad-slice", message, None, f"there is no {one} in a dimension of {size}")
    return spread


def _narrowed(tensor: Tensor, index: Index) -> tuple[Tensor, tuple[int, ...]]:
    """The part that an index takes, in ascending order, and those of its dimensions that are to be turned round."""
    part = tensor
    shape: list[int] = []
    turned: list[int] = []
    for axis, one in enumerate(_spread(tensor, index)):
        numbers = range(tensor.shape[axis])[one if isinstance(one, slice) else slice(one, one + 1 or None)]
        if numbers.step < 0:
            turned.append(len(shape))
            numbers = numbers[::-1]
        if isinstance(one, slice):
            shape.append(len(numbers))
        ends = (numbers[0], numbers[-1] + 1) if numbers else (0, 0)
        part = narrow(part, axis, *ends, numbers.step)
    return reshape(part, shape), tuple(turned)


def _values(tensor: Tensor, part: Tensor, index: Index, turned: tuple[int, ...]) -> "Array":
    import numpy as np

    if tensor.source is None and tensor.dtype.kind != "bool":  # mapped: a part of it costs nothing yet
        values = tensor.numpy()
        return np.asarray(values[index], values.dtype)
    return np.flip(part.numpy(), turned)


def _refuse_bomb(part: Tensor) -> None:
    reads = part
    while isinstance(reads.source, Held | Window):  # cut out of what can only be read as a whole
        reads = reads.source.origin
    stored = sum(extent.nbytes for extent in reads.extents)
    refuse_expansion(reads.nbytes, stored, "", "--slice 0:100 shows a part" if reads is part else None)


def _strings(tensor: Tensor) -> "Array":
    """An array of str. Each element is stored as its length (4 bytes, little-endian) and its bytes."""
    import numpy as np

    data = tensor.tobytes()
    texts: list[str] = []
    at = 0
    while at < len(data):
        end = at + 4 + int.from_bytes(data[at : at + 4], "little")
        texts.append(data[at + 4 : end].decode("utf-8", "backslashreplace"))
        at = end
    values = np.empty(len(texts), object)
    values[:] = texts
    return values.reshape(tensor.shape)


def native(values: "Array") -> "Array":
    """The values in a type that numpy itself has: bfloat16 and float8 as float32, narrow integers as int8."""
    import numpy as np

    name = values.dtype.name
    if name in NATIVE or name == "object":
        return values
    kind = DTYPES[name].kind if name in DTYPES else "float"
    return values.astype({"int": np.int8, "uint": np.uint8}.get(kind, np.float32))


def save_npy(
    shown: Shown, path: str | os.PathLike[str], *, upcast: str | None = None, overwrite: bool = False
) -> int:
    """Write the values as a .npy file, whole or not at all, and return its size in bytes.

    `upcast` is the dtype to convert to: needed for bfloat16, float8 and whatever else .npy files cannot hold.
    Raises CkptError `dtype-unsupported`, `target-is-source`, `exists`, `io-error`.
    """
    import numpy as np

    refuse_inputs(shown.graph, [path])
    had = shown.values.dtype.name
    if had == "object":
        raise CkptError("dtype-unsupported", ".npy files hold no strings safely", shown.name)
    if upcast is None and had not in NATIVE:
        raise CkptError(
            "dtype-unsupported", f".npy files have no {had}", shown.name, f"--upcast {_wider(had)}"
        )
    dtype = np.dtype(upcast or had)
    if not np.can_cast(
        native(shown.values[..., :0] if shown.values.ndim else shown.values).dtype, dtype, "safe"
    ):
        raise CkptError(
            "dtype-unsupported", f"{dtype} does not hold all of {had}", shown.name, "a wider --upcast"
        )
    head = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shown.values.shape}
    with Staging(path, folder=False, overwrite=overwrite) as staging:
        name = staging.target.name
        with open(staging.path / name, "wb") as file:
            np.lib.format.write_array_header_1_0(file, head)
            for block in _blocks(shown.values):
                file.write(block.astype(dtype).data)
            written = file.tell()
        staging.publish([name])
    return written


def _wider(name: str) -> str:
    kind = DTYPES[name].kind if name in DTYPES else "float"
    return {"int": "int8", "uint": "uint8"}.get(kind, "float32")


def _blocks(values: "Array") -> "Iterator[Array]":
    """The values in row-major order, some at a time, whatever their strides."""
    import numpy as np

    if values.flags.c_contiguous:
        flat = values.reshape(-1)
        yield from (flat[at : at + _BLOCK] for at in range(0, flat.size, _BLOCK))
    elif values.ndim and values[0].size > _BLOCK:
        for row in values:
            yield from _blocks(row)
    else:
        yield np.ascontiguousarray(values).reshape(-1)

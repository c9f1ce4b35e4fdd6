"""TensorProto and SparseTensorProto → Tensor, everything checked at the door.

Of the fields float_data, int32_data, string_data, int64_data, double_data, uint64_data, raw_data and external_data
exactly one holds the elements, none when there are no elements. raw_data is little-endian row-major; 4- and 2-bit
elements are packed lowest bits first, 6-bit ones likewise as one bit stream, the last byte padded with zeros; its
length is exactly that of the elements. dims are not negative, and neither the number of elements nor of bytes reaches
2^63. Sources: onnx.in.proto, onnx/checker.cc (which is laxer: longer raw data, unknown types, set padding and numbers
out of range pass it).
"""

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

from ckptkit.core.dtypes import BY_ONNX, DType
from ckptkit.core.errors import CkptError
from ckptkit.core.files import File
from ckptkit.core.tensor import Extent, Tensor
from ckptkit.format.onnx.external import DataFiles
from ckptkit.format.onnx.schema import SPARSE, TENSOR
from ckptkit.format.onnx.typed import CODINGS, Coding, Strings, Typed, count, strings_nbytes
from ckptkit.format.onnx.wire import Run, Span, Wire, signed

_STRING = 8
_MAX_RANK = 4096
_CHECKED_AT_ONCE = 1 << 12  # typed data up to this size is decoded when it is read; more is when it is used
_TYPED_FIELDS = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")


class TensorReader:
    """Turns the tensor messages of one model into Tensors."""

    def __init__(self, wire: Wire, data_files: DataFiles) -> None:
        self._wire = wire
        self._file: File = wire.reader.file
        self._data_files = data_files

    def tensor(self, message: dict[str, Any], name: str, kind: str) -> Tensor:
        """The tensor of a decoded TensorProto; `name` is for errors.

        Raises CkptError `dtype-unknown`, `onnx-shape`, `onnx-data-field`, `size-mismatch`, `onnx-value-range`
        and those of external data.
        """
        number = message.get("data_type", 0)
        dtype = BY_ONNX.get(number)
        if dtype is None:
            raise CkptError("dtype-unknown", f"ONNX has no element type {number}", name)
        shape = checked_shape(message.get("dims", ()), dtype, name)
        fields = [field for field in _TYPED_FIELDS if field in message]
        raw: Span | None = message.get("raw_data")
        if raw is not None and raw.end > raw.start:
            fields.append("raw_data")
        if "segment" in message:
            raise CkptError(
                "onnx-data-field", "a tensor stored in segments, which nothing writes or reads", name
            )
        location = message.get("data_location", 0)
        if location > 1:
            raise CkptError("onnx-data-field", f"data at an unknown kind of place ({location})", name)
        if location == 1:
            if fields:
                raise CkptError("onnx-data-field", f"external data and {fields[0]} in one tensor", name)
            if number == _STRING:
                raise CkptError("onnx-data-field", "strings as external data", name)
            place = self._data_files.locate(
                self._wire, message.get("external_data", []), dtype.nbytes(prod(shape)), name
            )
            _check_padding(place, dtype, shape, name)
            return Tensor(dtype, shape, place.file, place.offset, kind=kind)
        return self._inline(message, number, dtype, shape, fields, name, kind)

    def _inline(
        self,
        message: dict[str, Any],
        number: int,
        dtype: DType,
        shape: tuple[int, ...],
        fields: list[str],
        name: str,
        kind: str,
    ) -> Tensor:
        if len(fields) > 1:
            raise CkptError("onnx-data-field", f"{fields[0]} and {fields[1]} in one tensor", name)
        if not prod(shape):
            if fields:
                raise CkptError("onnx-data-field", f"no elements by its shape, and yet {fields[0]}", name)
            if number == _STRING:
                return Tensor(dtype, shape, source=Strings(self._file, (), 0), kind=kind)
            return Tensor(dtype, shape, self._file, 0, kind=kind)
        if not fields:
            raise CkptError("onnx-data-field", "elements by its shape, but no data", name)
        field = fields[0]
        if field == "raw_data" and number != _STRING:
            raw = message["raw_data"]
            need = dtype.nbytes(prod(shape))
            if raw.end - raw.start != need:
                raise CkptError(
                    "size-mismatch",
                    f"{raw.end - raw.start} bytes of raw_data, where dtype and shape need {need}",
                    name,
                )
            place = Extent(self._file, raw.start, need)
            _check_padding(place, dtype, shape, name)
            return Tensor(dtype, shape, self._file, raw.start, kind=kind)
        expected = "string_data" if number == _STRING else CODINGS[number].field
        if field != expected:
            raise CkptError("onnx-data-field", f"{dtype} elements in {field}, which is not for them", name)
        runs = tuple(message[field])
        if number == _STRING:
            return self.strings(runs, shape, name, kind)
        return self.numbers(runs, CODINGS[number], dtype, shape, name, kind)

    def numbers(
        self,
        runs: tuple[Run, ...],
        coding: Coding,
        dtype: DType,
        shape: tuple[int, ...],
        name: str,
        kind: str,
    ) -> Tensor:
        """A tensor whose elements are repeated numbers. Raises CkptError `size-mismatch`, `onnx-value-range`."""
        size = prod(shape)
        need = size if dtype.bits == 6 else dtype.nbytes(size) // coding.width
        have = count(self._wire, runs, coding)
        if have != need:
            stored = f"{have} numbers" if have >= 0 else "a broken number"
            raise CkptError(
                "size-mismatch", f"{stored} in {coding.field}, where dtype and shape need {need}", name
            )
        if len(runs) == 1 and runs[0].packed and coding.code in "fd":
            return Tensor(dtype, shape, self._file, runs[0].start, kind=kind)  # packed floats are raw data
        source = Typed(self._file, runs, coding, dtype, size)
        if sum(run.end - run.start for run in runs) <= _CHECKED_AT_ONCE:
            try:
                for _ in source.decoded(self._wire):
                    pass
            except CkptError as error:
                raise CkptError(error.code, error.message, name, error.hint) from None
        return Tensor(dtype, shape, source=source, kind=kind)

    def strings(self, runs: tuple[Run, ...], shape: tuple[int, ...], name: str, kind: str) -> Tensor:
        """A tensor of byte strings. Raises CkptError `size-mismatch`."""
        have, need = sum(run.fields for run in runs), prod(shape)
        if have != need:
            raise CkptError("size-mismatch", f"{have} strings, where the shape needs {need}", name)
        return Tensor(
            BY_ONNX[_STRING],
            shape,
            source=Strings(self._file, runs, strings_nbytes(self._wire, runs)),
            kind=kind,
        )

    def sparse(self, span: Span, kind: str, default: str) -> tuple[str, dict[str, tuple[Span, Tensor]]]:
        """(name, parts) of a SparseTensorProto: `values` [n], `indices` [n] or [n, rank], each with where it stands.

        `default` names it where its values have no name. Raises CkptError `onnx-sparse` and those of `tensor`.
        """
        wire = self._wire
        message = wire.message(span.start, span.end, SPARSE)
        spans: dict[str, Span] = {part: message[part] for part in ("values", "indices") if part in message}
        decoded = {part: wire.message(at.start, at.end, TENSOR) for part, at in spans.items()}
        name = decoded.get("values", {}).get("name") or default
        if len(spans) < 2:
            raise CkptError("onnx-sparse", "a sparse tensor without values or without indices", name)
        tensors = {part: self.tensor(found, f"{name}.{part}", kind) for part, found in decoded.items()}
        values, indices = tensors["values"], tensors["indices"]
        dense = checked_shape(message.get("dims", ()), values.dtype, name)
        if indices.dtype.name != "int64":
            raise CkptError("onnx-sparse", f"sparse indices of {indices.dtype}, not int64", name)
        if len(values.shape) != 1 or indices.shape not in (values.shape, (*values.shape, len(dense))):
            raise CkptError(
                "onnx-sparse", f"sparse values of shape {values.shape} with indices of {indices.shape}", name
            )
        if values.size > prod(dense):
            raise CkptError("onnx-sparse", f"{values.size} sparse values in a tensor of {prod(dense)}", name)
        note = f"sparse, {'×'.join(map(str, dense))}"
        return name, {
            part: (spans[part], replace(tensors[part], note=note, loss="sparse-as-parts"))
            for part in ("values", "indices")
        }


def _check_padding(place: Extent, dtype: DType, shape: tuple[int, ...], name: str) -> None:
    """Raise CkptError `onnx-value-range` when bits are set after the last element of a type narrower than a byte."""
    unused = -prod(shape) * dtype.bits % 8
    if unused:
        with place.file.open() as reader:
            last = reader.read(place.offset + place.nbytes - 1, 1)[0]
        if last >> 8 - unused:
            raise CkptError("onnx-value-range", "bits are set after the last element", name)


def checked_shape(dims: Sequence[int], dtype: DType, name: str) -> tuple[int, ...]:
    """The shape behind dims as they stand in the file. Raises CkptError `onnx-shape`."""
    shape = tuple(dims)
    if len(shape) > _MAX_RANK:
        raise CkptError("onnx-shape", f"a tensor of {len(shape)} dimensions", name)
    if shape and max(shape) >= 1 << 63:
        raise CkptError("onnx-shape", f"a negative dimension in {[*map(signed, shape[:9])]}", name)
    # Zeros aside, so that no factor hides behind one.
    size = prod(dim or 1 for dim in shape) if 0 in shape else prod(shape)
    if size * max(8, dtype.bits) >= 1 << 66:
        raise CkptError("onnx-shape", f"more elements in {list(shape[:9])} than 63 bits can count", name)
    return shape

"""Tensor data in the typed fields (`float_data`, `int32_data`, …), left in the file until asked for.

Layout: FLOAT and COMPLEX64 in float_data, DOUBLE and COMPLEX128 in double_data (complex as interleaved re, im); INT64
in int64_data; UINT32 and UINT64 in uint64_data; STRING in string_data; all others in int32_data: INT32, every 8- and
16-bit integer, BOOL, the bit patterns of FLOAT16, BFLOAT16, FLOAT8* and FLOAT6*, one number each, and the 4- and 2-bit
types with one packed byte per number. Source: onnx.in.proto, TensorProto; numpy_helper of onnx 1.23.

Stricter than onnx.checker: a number that does not fit its element type is refused, never wrapped. As in protobuf, a
negative int32 may come as five bytes or, as every writer does, as ten.
"""

import sys
from array import array
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from ckptkit.core.budgets import DEFAULT_BUDGETS
from ckptkit.core.dtypes import DType
from ckptkit.core.errors import CkptError
from ckptkit.core.files import File
from ckptkit.core.tensor import Buffer, Extent, Tally
from ckptkit.format.onnx.wire import Run, Wire, unpack_varints

_BLOCK = 1 << 17  # encoded bytes decoded at once; one number takes at least one of them
_BYTES_PER_NUMBER = 48  # what the vectorised decoder holds for each
_VECTOR = 1 << 14  # below this, a plain loop is quicker than importing numpy
_HIGH = bytes(range(128, 256))


class Coding(NamedTuple):
    """How one element type is written in its typed field: `code` is the struct/array letter of one number."""

    field: str
    code: str
    width: int
    low: int = 0
    high: int = 0


def _integers(field: str, code: str, bits: int, *, sign: bool = False, high: int | None = None) -> Coding:
    low = -(1 << bits - 1) if sign else 0
    return Coding(field, code, bits // 8, low, high if high is not None else low + (1 << bits) - 1)


_BYTE = _integers("int32_data", "B", 8)
_PATTERN16 = _integers("int32_data", "H", 16)

# TensorProto.DataType → coding; STRING is apart
CODINGS: dict[int, Coding] = {
    1: Coding("float_data", "f", 4),
    14: Coding("float_data", "f", 4),
    11: Coding("double_data", "d", 8),
    15: Coding("double_data", "d", 8),
    6: _integers("int32_data", "i", 32, sign=True),
    5: _integers("int32_data", "h", 16, sign=True),
    3: _integers("int32_data", "b", 8, sign=True),
    4: _PATTERN16,
    10: _PATTERN16,
    16: _PATTERN16,
    2: _BYTE,
    9: _integers("int32_data", "B", 8, high=1),
    **dict.fromkeys((17, 18, 19, 20, 21, 22, 23, 24, 25, 26), _BYTE),
    **dict.fromkeys(
        (27, 28), _integers("int32_data", "B", 8, high=63)
    ),  # one element per number, not yet packed
    7: _integers("int64_data", "q", 64, sign=True),
    12: _integers("uint64_data", "I", 32),
    13: _integers("uint64_data", "Q", 64),
}


@dataclass(frozen=True, slots=True)
class Typed:
    """Numbers of typed fields as a tensor's `Source`."""

    file: File
    runs: tuple[Run, ...]
    coding: Coding
    dtype: DType
    size: int

    @property
    def nbytes(self) -> int:
        return self.dtype.nbytes(self.size)

    @property
    def identity(self) -> Hashable:
        return (self.file, self.runs, self.coding.code)

    @property
    def extents(self) -> tuple[Extent, ...]:
        return tuple(Extent(self.file, run.start, run.end - run.start) for run in self.runs)

    def memory(self, limit: int) -> int:
        return min(limit, self.nbytes) + _BYTES_PER_NUMBER * _BLOCK

    def chunks(self, limit: int, tally: Tally | None = None) -> Iterator[Buffer]:
        """Raises CkptError `onnx-value-range`, `onnx-malformed`."""
        unit = max(1, self.dtype.bits // 8)
        step = max(limit - limit % unit, unit)
        rest = b""
        with self.file.open() as reader:
            for block in self.decoded(Wire(reader, DEFAULT_BUDGETS)):
                data = rest + block
                whole = len(data) - len(data) % unit
                for start in range(0, whole, step):
                    yield data[start : min(start + step, whole)]
                rest = data[whole:]

    def decoded(self, wire: Wire) -> Iterator[bytes]:
        """The elements, packed, in blocks that may end within one."""
        blocks = map(self._decode, _blocks(wire, self.runs, self.coding))
        last = 0
        for block in _pack_sixes(blocks) if self.dtype.bits == 6 else blocks:
            yield block
            last = block[-1]
        unused = -self.size * self.dtype.bits % 8
        if unused and last >> 8 - unused:
            raise self._error("onnx-value-range", "bits are set after the last element")

    def _decode(self, block: bytes) -> bytes:
        if self.coding.field in ("float_data", "double_data"):
            return block
        try:
            return (_by_loop if len(block) < _VECTOR else _by_vector)(block, self.coding)
        except OverflowError:
            low, high = self.coding.low, self.coding.high
            raise self._error(
                "onnx-value-range", f"a number in {self.coding.field} is not between {low} and {high}"
            ) from None
        except ValueError as error:
            raise self._error("onnx-malformed", str(error)) from None

    def _error(self, code: str, message: str) -> CkptError:
        return CkptError(code, message, f"{self.file.path}, byte {self.runs[0].start}")


@dataclass(frozen=True, slots=True)
class Strings:
    """Elements of string_data as a tensor's `Source`: each as its length (4 bytes, little-endian) and its bytes."""

    file: File
    runs: tuple[Run, ...]
    nbytes: int

    @property
    def identity(self) -> Hashable:
        return (self.file, self.runs)

    @property
    def extents(self) -> tuple[Extent, ...]:
        return tuple(Extent(self.file, run.start, run.end - run.start) for run in self.runs)

    def memory(self, limit: int) -> int:
        return min(max(limit, self.nbytes), 2 * self.nbytes)

    def chunks(self, limit: int, tally: Tally | None = None) -> Iterator[Buffer]:
        with self.file.open() as reader:
            wire = Wire(reader, DEFAULT_BUDGETS)
            pending = bytearray()
            for run in self.runs:
                for start, end in wire.payloads(run.start, run.end):
                    if pending and len(pending) + 4 + end - start > limit:
                        yield bytes(pending)
                        pending.clear()
                    pending += (end - start).to_bytes(4, "little") + wire.read(start, end)
            if pending:
                yield bytes(pending)


def count(wire: Wire, runs: tuple[Run, ...], coding: Coding) -> int:
    """How many numbers the runs hold, found without decoding them; -1 when a packed run is cut inside a number."""
    total = 0
    for run in runs:
        length = run.end - run.start
        if not run.packed:
            total += run.fields
        elif coding.field in ("float_data", "double_data"):
            if length % coding.width:
                return -1
            total += length // coding.width
        else:
            for start in range(run.start, run.end, _BLOCK):
                data = wire.read(start, min(start + _BLOCK, run.end))
                total += len(data.translate(None, _HIGH))
            if wire.read(run.end - 1, run.end) >= b"\x80":
                return -1
    return total


def strings_nbytes(wire: Wire, runs: tuple[Run, ...]) -> int:
    """Bytes that `Strings` yields for the runs."""
    return sum(4 + end - start for run in runs for start, end in wire.payloads(run.start, run.end))


def _blocks(wire: Wire, runs: tuple[Run, ...], coding: Coding) -> Iterator[bytes]:
    """The runs as packed numbers, in blocks that end between two of them."""
    for run in runs:
        if not run.packed:
            block = bytearray()
            for start, end in wire.payloads(run.start, run.end):
                block += wire.read(start, end)
                if len(block) >= _BLOCK:
                    yield bytes(block)
                    block.clear()
            if block:
                yield bytes(block)
            continue
        start = run.start
        while start < run.end:
            data = wire.read(start, min(start + _BLOCK, run.end))
            start += len(data)
            if start < run.end and coding.field not in ("float_data", "double_data"):
                stop = len(data)
                while stop and data[stop - 1] > 127 and len(data) - stop < 10:
                    stop -= 1
                start -= len(data) - stop
                data = data[:stop]
            yield data


def _pack_sixes(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Elements of six bits, one a byte, as a bit stream: four make three bytes, zeros fill up the last four."""
    rest = b""
    for block in blocks:
        data = rest + block
        whole = len(data) - len(data) % 4
        rest = data[whole:]
        if whole:
            yield _bit_stream(data[:whole])
    if rest:
        yield _bit_stream(rest.ljust(4, b"\0"))[: len(rest)]


def _bit_stream(data: bytes) -> bytes:
    fours = (data[i : i + 4] for i in range(0, len(data), 4))
    return b"".join((a | b << 6 | c << 12 | d << 18).to_bytes(3, "little") for a, b, c, d in fours)


def _by_loop(block: bytes, coding: Coding) -> bytes:
    values = unpack_varints(block)
    if coding.low < 0 or coding.field == "int32_data":
        values = [_signed(value, coding.field) for value in values]
    if min(values) < coding.low or max(values) > coding.high:
        raise OverflowError
    numbers = array(coding.code, values)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()


def _signed(value: int, field: str) -> int:
    if value >> 63:
        return value - (1 << 64)
    if field == "int32_data" and value >> 31 == 1:
        return value - (1 << 32)
    return value


def _by_vector(block: bytes, coding: Coding) -> bytes:
    import numpy as np

    data = np.frombuffer(block, np.uint8)
    ends = np.flatnonzero(data < 128)
    if not len(ends) or ends[-1] != len(data) - 1:
        raise ValueError("a number is cut off")
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    longest = int(lengths.max())
    if longest > 10:
        raise ValueError("a number of more than ten bytes")
    values = (data[starts] & 127).astype(np.uint64)
    for k in range(1, longest):
        more = np.flatnonzero(lengths > k)
        part = data[starts[more] + k]
        if k == 9 and (part > 1).any():
            raise ValueError("a number wider than 64 bits")
        values[more] |= (part & 127).astype(np.uint64) << np.uint64(7 * k)
    if coding.field == "uint64_data":
        if int(values.max()) > coding.high:
            raise OverflowError
    else:
        values = values.view(np.int64)
        if coding.field == "int32_data":
            short = (values >> 31) == 1
            values = np.where(short, values - (1 << 32), values)
        if int(values.min()) < coding.low or int(values.max()) > coding.high:
            raise OverflowError
    return values.astype(f"<{np.dtype(coding.code).str[1:]}").tobytes()

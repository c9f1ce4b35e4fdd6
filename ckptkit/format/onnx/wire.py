"""The protobuf wire format, read in place: fields are found and skipped, never copied unless asked for.

A message is a run of fields, each a varint key (field number << 3 | wire type) and a payload: 0 a varint, 1 eight
bytes, 2 a varint length and that many bytes, 5 four bytes. A varint is little-endian in groups of seven bits, the
high bit meaning "more follows", at most ten bytes. Repeated numbers are either one field each or *packed* into
one length-delimited field; a parser must accept both and any mixture. Groups (wire types 3 and 4) never occur in
ONNX. Source: the protobuf encoding specification.

Stricter than protobuf: a singular field may occur only once (protobuf merges or takes the last), varints fit in
64 bits, nothing passes the end of its message.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

from ckptkit.core.budgets import Budgets
from ckptkit.core.errors import CkptError
from ckptkit.core.files import Reader

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5

_WINDOW = 1 << 16
_HEAD = 20  # the longest key and length, ten bytes each
_FREE = 4096  # numbers of one field that are decoded without being counted
_MASK64 = (1 << 64) - 1


class Span(NamedTuple):
    """A length-delimited or fixed-width field: its key lies at `at`, its payload from `start` to `end`."""

    at: int
    start: int
    end: int


class Run(NamedTuple):
    """Repeated values side by side: the payload of one packed field, or `fields` fields with their keys."""

    start: int
    end: int
    packed: bool
    fields: int


# What to keep of a field; the wire types that go with it are in `_WIRE`.
(
    INT,  # one varint, unsigned 64 bit
    TEXT,  # one UTF-8 string
    TEXTS,  # several
    SPAN,  # one payload, left in the file
    SPANS,  # several
    INTS,  # repeated varints, decoded; unsigned 64 bit
    FLOAT,  # one 32-bit float, left in the file as a Span
    VARINT_RUNS,  # repeated numbers or byte strings, left in the file as Runs
    FLOAT_RUNS,
    DOUBLE_RUNS,
    BYTES_RUNS,
) = range(11)

_WIRE = {
    INT: (VARINT,),
    TEXT: (LENGTH,),
    TEXTS: (LENGTH,),
    SPAN: (LENGTH,),
    SPANS: (LENGTH,),
    INTS: (VARINT, LENGTH),
    FLOAT: (FIXED32,),
    VARINT_RUNS: (VARINT, LENGTH),
    FLOAT_RUNS: (FIXED32, LENGTH),
    DOUBLE_RUNS: (FIXED64, LENGTH),
    BYTES_RUNS: (LENGTH,),
}

_TEXTS = (TEXT, TEXTS)
_tuple = tuple.__new__  # makes a Span in a third of the time

Schema = Mapping[int, tuple[str, int]]


def schema(**fields: tuple[int, int]) -> Schema:
    """Key on the wire → (name, what to keep), from name = (field number, what to keep)."""
    return {
        number << 3 | wire: (name, what) for name, (number, what) in fields.items() for wire in _WIRE[what]
    }


@dataclass(slots=True)
class Allowance:
    """What decoding may still cost, shared by all messages of one file: counts of things, bytes of text."""

    entries: int
    text: int


class Wire:
    """The fields of one open protobuf file, seen through a small window that moves with the reading."""

    __slots__ = ("_base", "_data", "allowance", "reader", "size")

    def __init__(self, reader: Reader, budgets: Budgets) -> None:
        self.reader = reader
        self.size = reader.file.size
        self.allowance = Allowance(budgets.entries, budgets.header_bytes)
        self._data = b""
        self._base = 0

    def message(self, start: int, end: int, fields: Schema) -> dict[str, Any]:
        """The wanted fields of the message between two offsets, by name; absent ones are absent.

        Raises CkptError `onnx-malformed`, `truncated`, `onnx-text`, `over-budget`.
        """
        found: dict[str, Any] = {}
        data, base = self._data, self._base
        i, stop = start - base, end - base
        last = self._last(i)
        text = 0
        while i < stop:
            if i > last:
                pos = base + i
                data, base = self._fill(pos), pos
                i, stop = 0, end - pos
                last = self._last(0)
            at = i
            try:
                # The common one-byte varints are spelled out: this loop is where all the time goes.
                key = data[i]
                i += 1
                if key > 127:
                    key, i = varint(data, at)
                kind = key & 7
                if kind == LENGTH:
                    value = data[i]
                    i += 1
                    if value > 127:
                        value, i = varint(data, i - 1)
                    first = i
                    i += value
                elif kind == VARINT:
                    first = i
                    value = data[i]
                    i += 1
                    if value > 127:
                        value, i = varint(data, first)
                elif kind == FIXED32:
                    first, value = i, 4
                    i += 4
                elif kind == FIXED64:
                    first, value = i, 8
                    i += 8
                else:
                    raise ValueError(f"a field of wire type {kind}")
                if i > stop:
                    raise IndexError
                entry = fields.get(key)
                if entry is None:
                    if not 8 <= key < 1 << 32:
                        raise ValueError("a field number out of range")
                    continue
                name, what = entry
                if what in _TEXTS:
                    text += value
                    decoded = (data[first:i] if i <= len(data) else self._long(base + first, value)).decode()
                    if what == TEXTS:
                        if name in found:
                            found[name].append(decoded)
                        else:
                            found[name] = [decoded]
                        continue
                    if name not in found:
                        found[name] = decoded
                        continue
                elif what == SPANS:
                    span = _tuple(Span, (base + at, base + first, base + i))
                    if name in found:
                        found[name].append(span)
                    else:
                        found[name] = [span]
                    continue
                elif what == INTS or what >= VARINT_RUNS:
                    number = value if kind == VARINT else base + first
                    self._repeated(found.setdefault(name, []), what, base + at, number, base + i, kind)
                    continue
                elif name not in found:
                    found[name] = value if what == INT else Span(base + at, base + first, base + i)
                    continue
                raise ValueError(f"{name} occurs twice in one message")
            except UnicodeDecodeError:
                raise CkptError("onnx-text", "a name or text is not UTF-8", self.where(base + at)) from None
            except (IndexError, ValueError) as error:
                self._broken(base + at, end, error)
        if text:
            self.spend_text(text, start)
        return found

    def _last(self, i: int) -> int:
        """The last place in the window where a field's head can be read; less than `i` if the window must move."""
        length = len(self._data)
        if not 0 <= i < length:
            return min(i, 0) - 1
        return length if self._base + length == self.size else length - _HEAD

    def _long(self, start: int, size: int) -> bytes:
        """Text that passes the window, once it is known to be within the allowance."""
        if size > self.allowance.text:
            self.spend_text(size, start)
        return self.reader.read(start, size)

    def _repeated(self, into: list[Any], what: int, pos: int, first: int, after: int, kind: int) -> None:
        packed = kind == LENGTH and what != BYTES_RUNS
        if what == INTS:
            into.extend(self.varints(first, after) if packed else (first,))
            if len(into) > _FREE:
                self.spend(1, pos)
        elif packed:
            if after > first:
                into.append(Run(first, after, True, 0))
                self.spend(1, pos)
        elif into and not into[-1].packed and into[-1].end == pos:
            into[-1] = Run(into[-1].start, after, False, into[-1].fields + 1)
        else:
            into.append(Run(pos, after, False, 1))
            self.spend(1, pos)

    def fields(self, start: int, end: int) -> Iterator[tuple[int, Span]]:
        """(key, place) of each field between two offsets that `message` has found sound; varints have places too."""
        pos = start
        while pos < end:
            i = pos - self._base
            if i < 0 or i + _HEAD > len(self._data):
                self._fill(pos)
                i = 0
            at = pos
            try:
                key, i = varint(self._data, i)
                kind = key & 7
                first = self._base + i
                if kind == LENGTH:
                    length, i = varint(self._data, i)
                    first = self._base + i
                    pos = first + length
                elif kind == VARINT:
                    pos = self._base + varint(self._data, i)[1]
                else:
                    pos = first + (4 if kind == FIXED32 else 8)
            except (IndexError, ValueError) as error:
                self._broken(at, end, error)
            yield key, Span(at, first, pos)

    def payloads(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """(start, end) of the payload of each field, as `fields`."""
        for _, span in self.fields(start, end):
            yield span.start, span.end

    def read(self, start: int, end: int) -> bytes:
        """The bytes between two offsets, from the window if it has them."""
        i = start - self._base
        if i >= 0 and end - self._base <= len(self._data):
            return self._data[i : end - self._base]
        return self.reader.read(start, end - start)

    def spend_text(self, size: int, pos: int) -> None:
        """Count bytes of text kept. Raises CkptError `over-budget` when there are too many."""
        self.allowance.text -= size
        if self.allowance.text < 0:
            raise CkptError(
                "over-budget", "the names and texts of the model exceed the limit", self.where(pos)
            )

    def varints(self, start: int, end: int) -> list[int]:
        """The packed varints between two offsets, unsigned. Raises CkptError `onnx-malformed`, `over-budget`."""
        self.spend(max(0, end - start - _FREE), start)
        return self.unpack(self.read(start, end), start)

    def unpack(self, data: bytes, pos: int) -> list[int]:
        """As `varints`, of bytes at hand that came from `pos`."""
        try:
            return unpack_varints(data)
        except ValueError as error:
            self.malformed(pos, str(error))

    def spend(self, entries: int, pos: int) -> None:
        """Count things decoded. Raises CkptError `over-budget` when there are too many."""
        self.allowance.entries -= entries
        if self.allowance.entries < 0:
            raise CkptError("over-budget", "the model has too many parts", self.where(pos))

    def where(self, pos: int) -> str:
        return f"{self.reader.file.path}, byte {pos}"

    def malformed(self, pos: int, what: str) -> NoReturn:
        raise CkptError("onnx-malformed", f"this is no valid ONNX model: {what}", self.where(pos))

    def _broken(self, pos: int, end: int, error: Exception) -> NoReturn:
        """The field at `pos` passes the end of its message, or its numbers are bad."""
        if isinstance(error, ValueError):
            self.malformed(pos, str(error))
        if end == self.size:
            raise CkptError(
                "truncated",
                "the ONNX model ends before the bytes that it promises",
                self.reader.file.path,
                "fetch it again; the download or copy is incomplete",
            )
        self.malformed(pos, "a field passes the end of the message it lies in")

    def _fill(self, pos: int) -> bytes:
        self._data = self.reader.read(pos, min(_WINDOW, self.size - pos))
        self._base = pos
        return self._data


def varint(data: bytes, i: int) -> tuple[int, int]:
    """(value, index after it) of the varint at `i`. Raises IndexError when it is cut off, ValueError when too long."""
    value = shift = 0
    while True:
        byte = data[i]
        i += 1
        value |= (byte & 127) << shift
        if byte < 128:
            if value > _MASK64:
                raise ValueError("a number wider than 64 bits")
            return value, i
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than ten bytes")


def unpack_varints(data: bytes) -> list[int]:
    """All varints of a packed run, unsigned. Raises ValueError when one is cut off or too long."""
    values = []
    i, end = 0, len(data)
    try:
        while i < end:
            value = data[i]
            i += 1
            if value > 127:
                value, i = varint(data, i - 1)
            values.append(value)
    except IndexError:
        raise ValueError("a number is cut off") from None
    return values


def signed(value: int) -> int:
    """A 64-bit varint as the signed number it stands for."""
    return value - (1 << 64) if value >> 63 else value


def encode_varint(value: int) -> bytes:
    """The shortest varint of a number ≥ 0."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode_field(number: int, payload: bytes | int) -> bytes:
    """One field: a varint for an int ≥ 0, length-delimited for bytes."""
    if isinstance(payload, int):
        return encode_varint(number << 3 | VARINT) + encode_varint(payload)
    return encode_varint(number << 3 | LENGTH) + encode_varint(len(payload)) + payload

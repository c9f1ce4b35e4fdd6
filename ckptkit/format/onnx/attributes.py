"""AttributeProto → a plain value, or the tensors and subgraphs that it holds.

One of the value fields is set and `type` names it; models older than the field leave it out. A list may be empty.
An attribute of a function body that refers to an argument (`ref_attr_name`) has that for its value, a type its bytes.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ckptkit.core.dtypes import DTYPES
from ckptkit.core.errors import CkptError
from ckptkit.core.graph import ArgumentName
from ckptkit.core.tensor import Tensor
from ckptkit.format.onnx.schema import ATTRIBUTE, ATTRIBUTE_TYPES, CONSTANT_INT
from ckptkit.format.onnx.tensors import TensorReader
from ckptkit.format.onnx.typed import CODINGS, count
from ckptkit.format.onnx.wire import Run, Span, Wire, signed

SETTING = 1024  # a list of more numbers is data

_FLOAT, _INT = CODINGS[1], CODINGS[7]
_CONSTANT_FIELDS = {
    "value": "t",
    "sparse_value": "sparse_tensor",
    "value_float": "f",
    "value_floats": "floats",
    "value_int": "i",
    "value_ints": "ints",
    "value_string": "s",
    "value_strings": "strings",
}


@dataclass(slots=True)
class Attribute:
    """One attribute. `value` is plain; tensors and graphs are spans yet to be read, `numbers` data left in the file."""

    name: str
    value: Any = None
    tensors: Sequence[Span] = ()
    sparse: Sequence[Span] = ()
    graphs: Sequence[Span] = ()
    numbers: tuple[Run, ...] | None = None
    dtype: str = ""
    shape: tuple[int, ...] = ()

    @property
    def plain(self) -> bool:
        """Whether the value is all there is."""
        return not (self.tensors or self.sparse or self.graphs) and self.numbers is None


class AttributeReader:
    """Reads the attributes of one model."""

    def __init__(self, wire: Wire, tensors: TensorReader) -> None:
        self._wire = wire
        self._tensors = tensors

    def read(self, span: Span, node: str, constant: bool) -> Attribute:
        """One attribute of `node`; the values of a `Constant` are data however short.

        Raises CkptError `onnx-attribute`.
        """
        message = self._wire.message(span.start, span.end, ATTRIBUTE)
        name = message.pop("name", "")
        if not name:
            raise CkptError("onnx-attribute", "an attribute without a name", node)
        where = f"{node}.{name}"
        number = message.pop("type", 0)
        refers = message.pop("ref_attr_name", "")
        found = list(message)
        if len(found) > 1:
            raise CkptError("onnx-attribute", f"two values, {found[0]} and {found[1]}", where)
        stated = ATTRIBUTE_TYPES.get(number, "")
        if number and not stated:
            raise CkptError("onnx-attribute", f"an attribute of unknown type {number}", where)
        if found and stated and found[0] != stated:
            raise CkptError("onnx-attribute", f"a value in {found[0]}, where the type says {stated}", where)
        held = found[0] if found else stated
        if refers:
            if found:
                raise CkptError("onnx-attribute", "a value and a reference to an argument", where)
            return Attribute(name, ArgumentName(refers))
        if constant and _CONSTANT_FIELDS.get(name) != held:
            raise CkptError(
                "onnx-constant", f"a Constant with the attribute {name!r} in {held or 'nothing'}", where
            )
        return self._value(name, held, message.get(held), constant, span, where)

    def tensor(self, attribute: Attribute, name: str, kind: str) -> Tensor:
        """The tensor of an attribute whose data was left in the file."""
        runs = attribute.numbers or ()
        if attribute.dtype == "string":
            return self._tensors.strings(runs, attribute.shape, name, kind)
        coding = _FLOAT if attribute.dtype == "float32" else _INT
        return self._tensors.numbers(runs, coding, DTYPES[attribute.dtype], attribute.shape, name, kind)

    def _value(self, name: str, held: str, value: Any, constant: bool, span: Span, where: str) -> Attribute:
        match held:
            case "t" | "sparse_tensor" | "g":
                if value is None:
                    raise CkptError("onnx-attribute", f"no value, where the type says {held}", where)
                return _holding(Attribute(name), held, (value,))
            case "tensors" | "sparse_tensors" | "graphs":
                return _holding(Attribute(name, [None] * len(value or ())), held, value or ())
            case "floats" | "ints":
                return self._numbers(name, held, tuple(value or ()), constant, where)
            case "i":
                if constant and value is not None:
                    runs = self._wire.message(span.start, span.end, CONSTANT_INT)["i"]
                    return Attribute(name, numbers=tuple(runs), dtype="int64")
                return Attribute(name, signed(value or 0))
            case "f":
                # A lone float is a packed run of one: its four bytes.
                run = Run(value.start, value.end, True, 0) if value else None
                if constant and run:
                    return Attribute(name, numbers=(run,), dtype="float32")
                return Attribute(name, self._floats((run,))[0] if run else 0.0)
            case "s":
                if constant and value:
                    return Attribute(name, numbers=(Run(value.at, value.end, False, 1),), dtype="string")
                return Attribute(name, self._text(value.start, value.end) if value else "")
            case "strings":
                runs = tuple(value or ())
                if constant:
                    shape = (sum(run.fields for run in runs),)
                    return Attribute(name, numbers=runs, dtype="string", shape=shape)
                places = (at for run in runs for at in self._wire.payloads(run.start, run.end))
                return Attribute(name, tuple(self._text(*at) for at in places))
            case "tp" | "type_protos":
                spans = (value or ()) if held == "type_protos" else (value,) if value else ()
                return Attribute(name, tuple(self._message(at) for at in spans))
        return Attribute(name)

    def _numbers(self, name: str, held: str, runs: tuple[Run, ...], constant: bool, where: str) -> Attribute:
        coding = _FLOAT if held == "floats" else _INT
        length = count(self._wire, runs, coding)
        if length < 0:
            raise CkptError("onnx-attribute", "a list that ends within a number", where)
        if constant or length > SETTING:
            dtype = "float32" if held == "floats" else "int64"
            return Attribute(name, numbers=runs, dtype=dtype, shape=(length,))
        return Attribute(name, self._floats(runs) if held == "floats" else self._ints(runs))

    def _ints(self, runs: tuple[Run, ...]) -> tuple[int, ...]:
        wire = self._wire
        values: list[int] = []
        for run in runs:
            data = wire.read(run.start, run.end)
            if run.packed:
                values += wire.unpack(data, run.start)
            elif len(data) == 2 * run.fields:  # a key and a small number each
                values += data[1::2]
            else:
                values += (wire.unpack(wire.read(*at), at[0])[0] for at in wire.payloads(run.start, run.end))
        return tuple(map(signed, values))

    def _floats(self, runs: tuple[Run, ...]) -> tuple[float, ...]:
        wire = self._wire
        data = b"".join(
            wire.read(*at)
            for run in runs
            for at in ([(run.start, run.end)] if run.packed else wire.payloads(run.start, run.end))
        )
        return struct.unpack(f"<{len(data) // 4}f", data)

    def _message(self, span: Span) -> bytes:
        """A message as it stands."""
        self._wire.spend_text(span.end - span.start, span.at)
        return bytes(self._wire.read(span.start, span.end))

    def _text(self, start: int, end: int) -> str | bytes:
        """A string attribute: text if it is UTF-8, else its bytes."""
        self._wire.spend_text(end - start, start)
        data = self._wire.read(start, end)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return data


def _holding(attribute: Attribute, held: str, spans: Sequence[Span]) -> Attribute:
    if held in ("t", "tensors"):
        attribute.tensors = spans
    elif held in ("g", "graphs"):
        attribute.graphs = spans
    else:
        attribute.sparse = spans
    return attribute

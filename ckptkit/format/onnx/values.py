"""ValueInfoProto → Value: the declared type of a graph's input or output."""

from ckptkit.core.dtypes import BY_ONNX
from ckptkit.core.graph import Value
from ckptkit.format.onnx.schema import DIMENSION, ELEMENT_TYPE, MAP_TYPE, SHAPE, TENSOR_TYPE, TYPE, VALUE
from ckptkit.format.onnx.wire import Span, Wire, signed

_DEPTH = 8  # of sequences of maps of …
_CONTAINERS = {"sequence_type": "sequence(", "optional_type": "optional("}


def value_info(wire: Wire, span: Span) -> Value:
    """Name, element type and shape; a type in words and no shape for sequences, maps and optionals."""
    message = wire.message(span.start, span.end, VALUE)
    name = message.get("name", "")
    at = message.get("type")
    kinds = wire.message(at.start, at.end, TYPE) if at else {}
    at = kinds.get("tensor_type") or kinds.get("sparse_tensor_type")
    if at is None:
        return Value(name, _container(wire, kinds), None)
    tensor = wire.message(at.start, at.end, TENSOR_TYPE)
    shape: tuple[int | str | None, ...] | None = None
    if "shape" in tensor:
        at = tensor["shape"]
        dims = wire.message(at.start, at.end, SHAPE).get("dim", [])
        wire.spend(len(dims), at.at)
        shape = tuple(_dimension(wire, dim) for dim in dims)
    return Value(name, _element(tensor.get("elem_type", 0)), shape)


def _container(wire: Wire, kinds: dict[str, Span]) -> str:
    """`sequence(float32)`, `map(int64, sequence(string))`; "" if nothing is known."""
    text = ""
    for depth in range(_DEPTH + 1):
        inner: Span | None = None
        for kind, at in kinds.items():
            if kind in _CONTAINERS:
                text += _CONTAINERS[kind]
                inner = wire.message(at.start, at.end, ELEMENT_TYPE).get("elem_type")
            elif kind == "map_type":
                pair = wire.message(at.start, at.end, MAP_TYPE)
                text += f"map({_element(pair.get('key_type', 0))}, "
                inner = pair.get("value_type")
            else:
                element = wire.message(at.start, at.end, TENSOR_TYPE).get("elem_type", 0)
                return f"{text}{_element(element)}{')' * depth}"
            break
        if inner is None:
            return f"{text}{')' * (depth + 1)}" if text and kinds else f"{text}{')' * depth}"
        kinds = wire.message(inner.start, inner.end, TYPE)
    return f"{text}…{')' * (_DEPTH + 1)}"


def _element(number: int) -> str:
    dtype = BY_ONNX.get(number)
    return dtype.name if dtype else ""


def _dimension(wire: Wire, span: Span) -> int | str | None:
    message = wire.message(span.start, span.end, DIMENSION)
    if "dim_value" in message:
        return signed(message["dim_value"])
    return message.get("dim_param") or None

"""ValueInfoProto → Value: the declared type of a graph's input or output."""

from ckptkit.core.dtypes import BY_ONNX
from ckptkit.core.graph import Value
from ckptkit.format.onnx.schema import DIMENSION, SHAPE, TENSOR_TYPE, TYPE, VALUE
from ckptkit.format.onnx.wire import Span, Wire, signed


def value_info(wire: Wire, span: Span) -> Value:
    """Name, element type and shape; no type and no shape for sequences, maps and optionals."""
    message = wire.message(span.start, span.end, VALUE)
    name = message.get("name", "")
    at = message.get("type")
    kinds = wire.message(at.start, at.end, TYPE) if at else {}
    at = kinds.get("tensor_type") or kinds.get("sparse_tensor_type")
    if at is None:
        return Value(name, "", None)
    tensor = wire.message(at.start, at.end, TENSOR_TYPE)
    dtype = BY_ONNX.get(tensor.get("elem_type", 0))
    shape: tuple[int | str | None, ...] | None = None
    if "shape" in tensor:
        at = tensor["shape"]
        dims = wire.message(at.start, at.end, SHAPE).get("dim", [])
        wire.spend(len(dims), at.at)
        shape = tuple(_dimension(wire, dim) for dim in dims)
    return Value(name, dtype.name if dtype else "", shape)


def _dimension(wire: Wire, span: Span) -> int | str | None:
    message = wire.message(span.start, span.end, DIMENSION)
    if "dim_value" in message:
        return signed(message["dim_value"])
    return message.get("dim_param") or None

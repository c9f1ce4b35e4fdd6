"""Declared shapes that change with the number of classes: of initializers, inputs, outputs and value_info.

Only the one number is replaced where it stands; a size that is symbolic, or not declared, stays as it is. A shape that
a value_info declares without the axis is left alone.
"""

from collections.abc import Iterator

from ckptkit.format.onnx.native import Frame, Native
from ckptkit.format.onnx.patch import Edit
from ckptkit.format.onnx.schema import MODEL, SHAPE, TENSOR_TYPE, TYPE, VALUE
from ckptkit.format.onnx.wire import LENGTH, VARINT, Wire, encode_field

_DIMS, _DIM_VALUE = 1, 1
_VALUES = frozenset((11, 12, 13))  # GraphProto.input, .output, .value_info


def declared(shape: tuple[int, ...], change: tuple[int, int] | None) -> tuple[int, ...]:
    """The shape after a change (axis counted from the end, new size)."""
    if change is None or len(shape) < -change[0]:
        return shape
    axis, size = change
    sizes = list(shape)
    sizes[axis] = size
    return tuple(sizes)


def resize_edits(wire: Wire, native: Native) -> Iterator[Edit]:
    """The edits that give the values of `native.resized` their new sizes."""
    if not native.resized:
        return
    for name, stored in native.tensors.items():
        if name in native.resized and stored.frame is not None:
            yield from _dims(wire, stored.frame, declared(stored.tensor.shape, native.resized[name]))
    at = wire.message(0, wire.size, MODEL)["graph"]
    graph = Frame(at, None)
    for key, span in wire.fields(at.start, at.end):
        if key >> 3 in _VALUES and key & 7 == LENGTH:
            yield from _size(wire, native, Frame(span, graph))


def _dims(wire: Wire, frame: Frame, shape: tuple[int, ...]) -> Iterator[Edit]:
    """TensorProto.dims, one after the other, in the place of the first."""
    fields = [span for key, span in wire.fields(frame.span.start, frame.span.end) if key >> 3 == _DIMS]
    for index, span in enumerate(fields):
        content = b"".join(encode_field(_DIMS, size) for size in shape) if index == 0 else b""
        yield Edit(frame, span.at, span.end, (content,) if content else ())


def _size(wire: Wire, native: Native, value: Frame) -> Iterator[Edit]:
    """ValueInfoProto.type.tensor_type.shape.dim[axis].dim_value, if the value has another size now."""
    message = wire.message(value.span.start, value.span.end, VALUE)
    change = native.resized.get(message.get("name", ""))
    if change is None or "type" not in message:
        return
    frame = value
    for schema, part in ((VALUE, "type"), (TYPE, "tensor_type"), (TENSOR_TYPE, "shape")):
        span = wire.message(frame.span.start, frame.span.end, schema).get(part)
        if span is None:
            return
        frame = Frame(span, frame)
    axis, size = change
    dims = wire.message(frame.span.start, frame.span.end, SHAPE).get("dim", [])
    if len(dims) < -axis:
        return
    dim = Frame(dims[axis], frame)
    for key, span in wire.fields(dim.span.start, dim.span.end):
        if key == (_DIM_VALUE << 3 | VARINT):
            yield Edit(dim, span.at, span.end, (encode_field(_DIM_VALUE, size),))

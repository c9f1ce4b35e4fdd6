"""What onnx itself reads from a model, under the names that ckptkit gives; written recursively, on protobuf objects."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

Content = tuple[str, tuple[int, ...], bytes]

# onnx's name → numpy's, where they differ
_NAMES = {
    "float": "float32",
    "double": "float64",
    "float8e4m3fn": "float8_e4m3fn",
    "float8e4m3fnuz": "float8_e4m3fnuz",
    "float8e5m2": "float8_e5m2",
    "float8e5m2fnuz": "float8_e5m2fnuz",
    "float8e8m0": "float8_e8m0fnu",
    "float6e2m3": "float6_e2m3fn",
    "float6e3m2": "float6_e3m2fn",
    "float4e2m1": "float4_e2m1fn",
}
_PACKED = {
    "float6_e2m3fn": 6,
    "float6_e3m2fn": 6,
    "float4_e2m1fn": 4,
    "int4": 4,
    "uint4": 4,
    "int2": 2,
    "uint2": 2,
}


def contents(path: Path | str) -> dict[str, Content]:
    """Name → (dtype name, shape, packed little-endian bytes) of every tensor of the main graph and its subgraphs."""
    import onnx

    return dict(_graph(onnx.load(str(path)).graph, ""))


def content(tensor: Any) -> Content:
    """A TensorProto, by numpy_helper; elements below a byte packed low bits first."""
    import numpy as np
    import onnx
    from onnx import numpy_helper

    name = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
    name = _NAMES.get(name, name)
    array = numpy_helper.to_array(tensor)
    shape = tuple(array.shape)
    if name == "string":
        texts = [text.encode() if isinstance(text, str) else text for text in array.reshape(-1).tolist()]
        return name, shape, b"".join(len(text).to_bytes(4, "little") + text for text in texts)
    bits = _PACKED.get(name)
    if bits:
        stream = 0
        for index, element in enumerate(array.reshape(-1).view(np.uint8).tolist()):
            stream |= (element & ((1 << bits) - 1)) << bits * index
        return name, shape, stream.to_bytes((array.size * bits + 7) // 8, "little")
    return name, shape, array.tobytes()


def _graph(graph: Any, scope: str) -> Iterator[tuple[str, Content]]:
    for tensor in graph.initializer:
        yield scope + tensor.name, content(tensor)
    for sparse in graph.sparse_initializer:
        yield from _sparse(scope + sparse.values.name, sparse)
    taken = set()
    for index, node in enumerate(graph.node):
        label = node.name if node.name and node.name not in taken else f"{node.op_type}_{index}"
        if node.attribute:
            taken.add(label)
        for attribute in node.attribute:
            constant = node.op_type == "Constant" and node.domain in ("", "ai.onnx")
            base = scope + (node.output[0] if constant else f"{label}.{attribute.name}")
            yield from _attribute(attribute, base, f"{scope}{label}/{attribute.name}", constant)


def _attribute(attribute: Any, base: str, path: str, constant: bool) -> Iterator[tuple[str, Content]]:
    from onnx import helper

    if attribute.HasField("t"):
        yield base, content(attribute.t)
    if attribute.HasField("sparse_tensor"):
        yield from _sparse(base, attribute.sparse_tensor)
    if attribute.HasField("g"):
        yield from _graph(attribute.g, f"{path}/")
    for index, tensor in enumerate(attribute.tensors):
        yield f"{base}.{index}", content(tensor)
    for index, sparse in enumerate(attribute.sparse_tensors):
        yield from _sparse(f"{base}.{index}", sparse)
    for index, graph in enumerate(attribute.graphs):
        yield from _graph(graph, f"{path}.{index}/")
    values = helper.get_attribute_value(attribute)
    kind = {2: 7, 7: 7, 1: 1, 6: 1, 3: 8, 8: 8}.get(attribute.type)
    many = attribute.type in (6, 7, 8)
    if kind and (constant or (many and kind != 8 and len(values) > 1024)):
        flat = list(values) if many else [values]
        yield base, content(helper.make_tensor("", kind, [len(flat)] if many else [], flat))


def _sparse(name: str, sparse: Any) -> Iterator[tuple[str, Content]]:
    yield f"{name}.values", content(sparse.values)
    yield f"{name}.indices", content(sparse.indices)

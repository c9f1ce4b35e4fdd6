"""What torch, safetensors and onnx read from a file: name → (dtype name, shape, little-endian bytes)."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Content = tuple[str, tuple[int, ...], bytes]


def of_torch(tensor: Any) -> Content:
    """Any dense torch tensor, views and lazy bits resolved."""
    import torch

    name = str(tensor.dtype).removeprefix("torch.")
    dense = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    raw = dense.reshape(-1).view(torch.uint8).numpy().tobytes() if dense.numel() else b""
    return name, tuple(tensor.shape), raw


def walk(value: Any, path: str = "") -> Iterator[tuple[str, Content]]:
    """Every tensor of a loaded checkpoint under its dotted path."""
    import torch

    if isinstance(value, torch.Tensor):
        yield path, of_torch(value)
    elif isinstance(value, torch.nn.Module):
        yield from walk(value.state_dict(), path)
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from walk(part, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from walk(part, f"{path}.{index}" if path else str(index))


def pytorch(path: Path) -> dict[str, Content]:
    import torch

    return dict(walk(torch.load(path, map_location="cpu", weights_only=False)))


def torchscript(path: Path) -> dict[str, Content]:
    import torch

    return dict(walk(torch.jit.load(str(path), map_location="cpu").state_dict()))


def safetensors(path: Path) -> dict[str, Content]:
    from safetensors.torch import load_file

    return {name: of_torch(tensor) for name, tensor in load_file(path).items()}


def onnx_initializers(path: Path) -> dict[str, Content]:
    """The top-level initializers and Constant nodes, as onnx reads them."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(path)).graph
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            found |= {name: a.t for a in node.attribute if a.name == "value" for name in node.output}
    result = {}
    for name, tensor in found.items():
        array = numpy_helper.to_array(tensor)
        dtype = {1: "float32", 6: "int32", 7: "int64", 9: "bool", 11: "float64"}[tensor.data_type]
        result[name] = (dtype, tuple(array.shape), array.tobytes())
    return result

"""The safetensors format: `read`, `layout` and the judgement of the reference library."""

from ckptkit.core.graph import TensorGraph
from ckptkit.core.plan import Layout, WriteOptions
from ckptkit.format.safetensors.reader import read

__all__ = ["layout", "open_with_reference", "read"]


def layout(graph: TensorGraph, name: str, options: WriteOptions) -> Layout:
    """The files that hold the graph; see `ckptkit.format.safetensors.writer`, loaded when something is written."""
    from ckptkit.format.safetensors import writer

    return writer.layout(graph, name, options)


def open_with_reference(path: str) -> None:
    """Let the safetensors library open a written file; an index beside shards is not its business."""
    if not path.endswith(".safetensors"):
        return
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        for name in file.keys():  # noqa: SIM118 - this is no mapping
            file.get_slice(name).get_shape()

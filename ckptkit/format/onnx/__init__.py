"""ONNX models: weights and graph, inline or with external data, read lazily and written without touching the rest.

A model is one protobuf message (ModelProto). Nothing of it is loaded as a whole: the reader walks the wire format in
place (`wire`), knows the messages by a table (`schema`), and remembers where each tensor's bytes lie; models past
protobuf's own limit of 2 GiB are read alike. The writer (`writer`) copies the file around the weights.
"""

from ckptkit.core.graph import TensorGraph
from ckptkit.core.options import ReadOptions
from ckptkit.core.plan import Layout, WriteOptions


def read(path: str, options: ReadOptions) -> TensorGraph:
    """The tensor graph of a model file. Raises CkptError; see `ckptkit.format.onnx.reader`."""
    from ckptkit.format.onnx.reader import read

    return read(path, options)


def layout(graph: TensorGraph, name: str, options: WriteOptions) -> Layout:
    """How the graph is written to a file of that name. Raises CkptError; see `ckptkit.format.onnx.writer`."""
    from ckptkit.format.onnx.writer import layout

    return layout(graph, name, options)


def open_with_reference(path: str) -> None:
    """Let onnx check a model file, external data included; data files themselves are passed over.

    Raises whatever onnx raises; ImportError where it is not installed.
    """
    import onnx

    if not path.endswith((".data", ".safetensors")):
        onnx.checker.check_model(path)

"""A format as a plugin would bring it, all in one module.

Layout: `RAW1`, u32 little-endian length, JSON [[name, dtype, shape], …], then the tensors' bytes one after another.
"""

import json

from ckptkit.core.dtypes import DTYPES
from ckptkit.core.errors import CkptError
from ckptkit.core.files import File
from ckptkit.core.graph import Origin, TensorGraph
from ckptkit.core.options import ReadOptions
from ckptkit.core.plan import Layout, OutputFile, Piece, WriteOptions
from ckptkit.core.tensor import Tensor
from ckptkit.format.registry import Format

RAW = Format(
    name="raw",
    title="Raw arrays",
    suffixes=(".raw",),
    module=__name__,
    matches=lambda head: head.data.startswith(b"RAW1"),
    reads="arrays",
    writes="arrays",
)


def read(path: str, options: ReadOptions) -> TensorGraph:
    """The arrays of one file. Raises CkptError `truncated`, `bytes-unclaimed` or `header-invalid`."""
    file = File.at(path)
    with file.open() as reader:
        length = int.from_bytes(reader.read(4, 4), "little")
        if 8 + length > file.size:
            raise CkptError("truncated", "the header is cut off", path)
        text = reader.read(8, length)
    tensors = {}
    end = 8 + length
    try:
        for name, dtype, shape in json.loads(text):
            if not all(type(size) is int and 0 <= size < 1 << 32 for size in shape) or name in tensors:
                raise CkptError("header-invalid", "no shape", path)
            tensors[str(name)] = Tensor(DTYPES[dtype], tuple(shape), file, end)
            end += tensors[str(name)].nbytes
    except (ValueError, TypeError, KeyError, RecursionError):
        raise CkptError("header-invalid", "not what RAW1 says", path) from None
    if end != file.size:
        raise CkptError("truncated" if end > file.size else "bytes-unclaimed", "another size", path)
    return TensorGraph(tensors, Origin(path, "raw", "raw", (file,)))


def layout(graph: TensorGraph, name: str, options: WriteOptions) -> Layout:
    """One file; tied tensors are written once per name."""
    if graph.ties() and options.ties == "error":
        raise CkptError("tied-tensors", "tied tensors", graph.origin.path)
    text = json.dumps([[key, t.dtype.name, t.shape] for key, t in graph.items()]).encode()
    head = b"RAW1" + len(text).to_bytes(4, "little") + text
    pieces, end = [Piece(0, len(head), head)], len(head)
    for key, tensor in graph.items():
        pieces.append(Piece(end, tensor.nbytes, tensor, key))
        end += tensor.nbytes
    return Layout((OutputFile(name, end, tuple(pieces)),))


def open_with_reference(path: str) -> None:
    """There is no other library."""
    raise ImportError

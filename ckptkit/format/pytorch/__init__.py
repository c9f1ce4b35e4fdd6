"""PyTorch checkpoints of every era: zip archives, legacy streams, tar, TorchScript, torch.export, bare pickles."""

from ckptkit.core.graph import TensorGraph
from ckptkit.core.options import ReadOptions
from ckptkit.core.plan import Layout, WriteOptions


def read(path: str, options: ReadOptions) -> TensorGraph:
    """The tensor graph of one file, whatever its container and suffix; nothing in it is run. Raises CkptError."""
    from ckptkit.format.pytorch import reader

    return reader.read(path, options)


def layout(graph: TensorGraph, name: str, options: WriteOptions) -> Layout:
    """How the graph is written as one .pt file. Raises CkptError; see `writer.layout`."""
    from ckptkit.format.pytorch import writer

    return writer.layout(graph, name, options)


def open_with_reference(path: str) -> None:
    """Let torch open a written file; an index beside shards is not its business.

    Raises ImportError without torch, and what torch raises.
    """
    if path.endswith(".index.json"):
        return
    import torch

    torch.load(path, map_location="cpu", weights_only=True, mmap=True)

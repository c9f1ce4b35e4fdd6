"""PyTorch checkpoints of every era: zip archives, legacy streams, tar, TorchScript, torch.export, bare pickles."""

from ckptkit.core.graph import TensorGraph
from ckptkit.core.plan import Layout, WriteOptions


def layout(graph: TensorGraph, name: str, options: WriteOptions) -> Layout:
    from ckptkit.format.pytorch import writer

    return writer.layout(graph, name, options)

"""Reading .safetensors: the header proved, each tensor a run of bytes of the file.

Tensors stand in offset order. A `__metadata__` entry `dropped: kept`, as safetensors' `save_model` writes for tied
tensors, is restored as a second name of the same bytes. Sharded checkpoints are `ckptkit.format.shards`.
"""

from ckptkit.core.files import File
from ckptkit.core.graph import Origin, TensorGraph
from ckptkit.core.options import ReadOptions
from ckptkit.core.tensor import Tensor
from ckptkit.format.safetensors.header import read_header

# A key that every loader gives another meaning, should a tensor be called "pt".
_RESERVED = ("format",)


def read(path: str, options: ReadOptions) -> TensorGraph:
    """The tensors of one file. `options.section` has no meaning here: there is one state dict.

    Raises CkptError as `read_header` does, and `not-found`, `not-a-file`, `io-error`.
    """
    file = File.at(path)
    header = read_header(file, options.budgets)
    start = header.start
    tensors = {
        name: Tensor(dtype, shape, file, start + begin) for begin, _, name, dtype, shape in header.entries
    }
    metadata = restore_ties(tensors, header.metadata)
    origin = Origin(str(path), "safetensors", "safetensors", (file,))
    return TensorGraph(tensors, origin, metadata=metadata)


def restore_ties(tensors: dict[str, Tensor], metadata: dict[str, str]) -> dict[str, str]:
    """Add the names that `metadata` records as ties to `tensors`; returns the metadata that remains."""
    ties = {
        dropped: tensors[kept]
        for dropped, kept in metadata.items()
        if kept in tensors and dropped not in tensors and dropped not in _RESERVED
    }
    tensors.update(ties)
    return {key: value for key, value in metadata.items() if key not in ties}

"""Reading .safetensors: the header proved, each tensor a run of bytes of the file.

Tensors stand in offset order. A `__metadata__` entry `dropped: kept`, as safetensors' `save_model` writes for tied
tensors, is restored as a second name of the same bytes. Sharded checkpoints are `ckptkit.format.shards`.
"""

from collections.abc import Mapping

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


def restore_ties(tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """Add the names that `metadata` records as ties to `tensors`; returns the metadata that remains."""
    ties = {key: tensors[value] for key, value in metadata.items() if reads_as_tie(key, value, tensors)}
    tensors.update(ties)
    return {key: value for key, value in metadata.items() if key not in ties}


def reads_as_tie(key: str, value: str, tensors: Mapping[str, Tensor]) -> bool:
    """Whether a metadata entry is another name (`key`) of a tensor that is there (`value`)."""
    return value in tensors and key not in tensors and key not in _RESERVED

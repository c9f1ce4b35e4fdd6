"""Reading .safetensors: the header proved, each tensor a run of bytes of the file.

Tensors stand in offset order. A `__metadata__` entry `dropped: kept`, as safetensors' `save_model` writes for tied
tensors, is restored as a second name of the same bytes. Sharded checkpoints are `ckptkit.format.shards`.
"""

from ckptkit.core.errors import CkptError
from ckptkit.core.files import File, Reader
from ckptkit.core.findings import Finding
from ckptkit.core.graph import Origin, TensorGraph
from ckptkit.core.options import ReadOptions
from ckptkit.core.tensor import Tensor
from ckptkit.format.safetensors.header import read_header
from ckptkit.format.tied_names import restore_ties

_TAIL = 1 << 20  # bytes at the end of a file that are never all zeros in a whole one of four times that size


def read(path: str, options: ReadOptions) -> TensorGraph:
    """The tensors of one file, which holds one state dict and no other section.

    Raises CkptError as `header.read_header` does, and `not-found`, `not-a-file`, `io-error`, `section-unknown`.
    """
    file = File.at(path)
    if options.section not in (None, "", "all"):
        message = f"a safetensors file has no sections, so none called {options.section!r}"
        raise CkptError("section-unknown", message, file.path)
    with file.open() as reader:
        header = read_header(reader, options.budgets)
        findings = _zero_tail(reader)
    start = header.start
    tensors = {
        name: Tensor(dtype, shape, file, start + begin) for begin, _, name, dtype, shape in header.entries
    }
    metadata = restore_ties(tensors, header.metadata)
    origin = Origin(str(path), "safetensors", "safetensors", (file,))
    return TensorGraph(tensors, origin, metadata=metadata, findings=findings)


def _zero_tail(reader: Reader) -> tuple[Finding, ...]:
    """A warning where a download seems to have stopped: the size is right, the end is zeros."""
    size = reader.file.size
    if size < 4 * _TAIL or reader.read(size - 4096, 4096).strip(b"\0"):
        return ()
    if reader.read(size - _TAIL, _TAIL).strip(b"\0"):
        return ()
    message = f"the last {_TAIL:,} bytes are zeros: a download may have stopped before them"
    return (
        Finding("zero-filled", "warning", "", message, "compare the file's checksum with the published one"),
    )

"""What the reader remembers so that the writer can write the model again: where each tensor message stands."""

from dataclasses import dataclass

from ckptkit.core.files import File
from ckptkit.core.tensor import Tensor
from ckptkit.format.onnx.wire import Span


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """A message within the model and the one around it (None: the model itself). Compared by identity."""

    span: Span
    parent: "Frame | None"


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor of the graph.

    Attributes:
        tensor: as it was read.
        frame: its TensorProto; None for values that are no TensorProto (`value_float`, `value_ints`, …).
        scope: what its name begins with because of where it stands ("If_0/then_branch/"; "" in the main graph).
    """

    tensor: Tensor
    frame: Frame | None
    scope: str = ""


@dataclass(frozen=True, slots=True)
class Native:
    """A model as read: its file, and each tensor by the name it has there."""

    file: File
    tensors: dict[str, Stored]

"""What the reader remembers so that the writer can write the model again: where each tensor message stands."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ckptkit.core.files import File
from ckptkit.core.graph import Node
from ckptkit.core.tensor import Tensor
from ckptkit.format.onnx.wire import Span


@dataclass(frozen=True, slots=True)
class Frame:
    """A message within the model and the one around it (None: the model itself). Its place alone identifies it."""

    span: Span
    parent: "Frame | None" = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor of the graph.

    Attributes:
        tensor: as it was read.
        frame: its TensorProto; None for values that are no TensorProto (`value_float`, `value_ints`, …).
        scope: what its name begins with because of where it stands ("If_0/then_branch/"; "" in the main graph).
        movable: its bytes may lie in a data file: an initializer of the main graph or its subgraphs, where
            every consumer looks.
    """

    tensor: Tensor
    frame: Frame | None
    scope: str = ""
    movable: bool = False


@dataclass(frozen=True, slots=True)
class Native:
    """A model as read: its file, each tensor by the name it has there, its metadata_props, and its scopes.

    `routines` are model-local functions and training info, each as a node: its signature, its bodies as attributes.
    `resized` gives values of the main graph whose declared shape changes: axis counted from the end, new size.
    `scopes` maps where each graph or function starts to what the names of its tensors begin with.
    """

    file: File
    tensors: dict[str, Stored]
    metadata: dict[str, str]
    scopes: dict[int, str]
    routines: tuple[Node, ...] = ()
    resized: Mapping[str, tuple[int, int]] = field(default_factory=dict)

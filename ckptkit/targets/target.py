"""A target: what is expected of a checkpoint, whatever it was made from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ckptkit.core.graph import TensorGraph
from ckptkit.core.tensor import Tensor


class Dim(NamedTuple):
    """`factor` times the dimension called `name`."""

    name: str
    factor: int = 1

    def __str__(self) -> str:
        return self.name if self.factor == 1 else f"{self.factor}*{self.name}"


Size = int | Dim | None  # None: any


class Spec(NamedTuple):
    """What is expected of one tensor.

    Attributes:
        dtypes: names of the element types allowed; empty for any.
        shape: the size of each dimension; None for any shape.
        optional: it may be missing.
    """

    dtypes: tuple[str, ...] = ()
    shape: tuple[Size, ...] | None = None
    optional: bool = False


class Stored(NamedTuple):
    """A file as it must be: SHA-256 in hexadecimal digits, size in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Policies:
    """What must hold for all tensors, or the checkpoint as a whole.

    Attributes:
        dtypes: element types that may occur; empty for any.
        max_bytes: most bytes of its files; None for any.
        finite: no value may be NaN or infinite; checking it reads the values.
    """

    dtypes: tuple[str, ...] = ()
    max_bytes: int | None = None
    finite: bool = False


@dataclass(frozen=True, slots=True)
class Target:
    """What is expected.

    Attributes:
        path: what the target was made from.
        kind: `contract` or `checkpoint`.
        tensors: name → what is expected of it.
        dimensions: name → size; None where any size will do, as long as all tensors agree.
        ties: groups of names that share their bytes.
        metadata: key → value; None for any value.
        forbidden: shell patterns of names that must not occur.
        unlisted: whether tensors may occur that are not named.
        policies: of the whole.
        digest: content digest; "" for any.
        files: file name → what it must be.
        source: the checkpoint it was made from, if it was one.
    """

    path: str
    kind: str
    tensors: Mapping[str, Spec]
    dimensions: Mapping[str, int | None] = field(default_factory=dict)
    ties: tuple[tuple[str, ...], ...] = ()
    metadata: Mapping[str, str | None] = field(default_factory=dict)
    forbidden: tuple[str, ...] = ()
    unlisted: bool = False
    policies: Policies = field(default_factory=Policies)
    digest: str = ""
    files: Mapping[str, Stored] = field(default_factory=dict)
    source: TensorGraph | None = None

    @classmethod
    def of(cls, graph: TensorGraph) -> "Target":
        """Another checkpoint as target: names and shapes of its weights, and which of them are tied."""
        tensors = weights(graph)
        specs = {name: Spec(shape=tensor.shape) for name, tensor in tensors.items()}
        ties = tuple(names for names in graph.storages() if len(names) > 1 and set(names) <= specs.keys())
        return cls(graph.origin.path, "checkpoint", specs, ties=ties, source=graph)


def weights(graph: TensorGraph) -> Mapping[str, Tensor]:
    """The tensors without the constants that an ONNX graph computes with."""
    if not graph.nodes:
        return graph.tensors
    return {name: tensor for name, tensor in graph.tensors.items() if tensor.kind != "constant"}

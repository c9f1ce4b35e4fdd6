"""A target: what is expected of a checkpoint, whatever it was made from."""

import re
from collections.abc import Collection, Iterator, Mapping
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


MADE = ("module", "config")  # kinds of targets that are modules, which tie their weights themselves

Size = int | Dim | None  # None: any


FLOATS = ("float64", "float32", "float16", "bfloat16")  # written `float`: what models are trained and kept in


class Spec(NamedTuple):
    """What is expected of one tensor.

    Attributes:
        dtypes: names of the element types allowed; empty for any.
        shape: the size of each dimension; None for any shape.
        optional: it may be missing.
        head: it belongs to the outputs of the model.
    """

    dtypes: tuple[str, ...] = ()
    shape: tuple[Size, ...] | None = None
    optional: bool = False
    head: bool = False


def dtypes_text(dtypes: tuple[str, ...]) -> str:
    """Element types as a contract has them."""
    return "float" if dtypes == FLOATS else "|".join(dtypes) or "any"


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
        globals: classes and functions (`module.name`) that pickles may name beside those that are plain data; None
            for any.
    """

    dtypes: tuple[str, ...] = ()
    max_bytes: int | None = None
    finite: bool = False
    globals: tuple[str, ...] | None = None


class Loader(NamedTuple):
    """What the library that loads a checkpoint does to names before it compares them.

    Attributes:
        name: of the library.
        prefix: of the inner model, which is taken off or put before a name where that is expected; "" for none.
        ignored: regular expressions of names that it passes over.
    """

    name: str
    prefix: str = ""
    ignored: tuple[str, ...] = ()

    def names(self, found: Collection[str], expected: Collection[str]) -> Mapping[str, str]:
        """Name in the checkpoint → name it is loaded under, for those that are not the same."""
        new = {}
        for name in found:
            if name not in expected:
                loaded = next((n for n in self._spellings(name) if n in expected and n not in found), name)
                if loaded != name:
                    new[name] = loaded
        return {} if len(set(new.values())) < len(new) else new

    def _spellings(self, name: str) -> Iterator[str]:
        for old, instead in _OLDER:
            if name.endswith(old):
                name = name.removesuffix(old) + instead
                yield name
                break
        if self.prefix:
            yield name.removeprefix(self.prefix) if name.startswith(self.prefix) else self.prefix + name

    def ignores(self, name: str) -> bool:
        """Whether a name that nothing expects is passed over without a word."""
        return any(re.search(pattern, name) for pattern in self.ignored)


# Spellings of older checkpoints that transformers takes, in every model (5.23).
_OLDER = (
    ("LayerNorm.gamma", "LayerNorm.weight"),
    ("LayerNorm.beta", "LayerNorm.bias"),
    (".weight_g", ".parametrizations.weight.original0"),
    (".weight_v", ".parametrizations.weight.original1"),
)


@dataclass(frozen=True, slots=True)
class Target:
    """What is expected.

    Attributes:
        path: what the target was made from.
        kind: `contract`, `checkpoint`, `architecture` (of the catalogue), `module` (of the user) or `config` (a model
            of transformers).
        tensors: name → what is expected of it.
        dimensions: name → size; None where any size will do, as long as all tensors agree.
        ties: groups of names that share their bytes.
        metadata: key → value; None for any value.
        forbidden: shell patterns of names that must not occur.
        unlisted: whether tensors may occur that are not named.
        policies: of the whole.
        digest: content digest; "" for any.
        files: file name → what it must be.
        source: the checkpoint it was made from, or the module's tensors, without bytes.
        loader: the library that loads it, if that is known.
        made: what a module is, in words; notes: what is worth telling of it.
        dtype: the element type that its configuration states; it is no error if weights have another.
        others: what would do as well: the same model in other names, or with another head.
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
    loader: Loader | None = None
    made: str = ""
    notes: tuple[str, ...] = ()
    dtype: str = ""
    others: "tuple[Target, ...]" = ()

    @classmethod
    def of(cls, graph: TensorGraph) -> "Target":
        """Another checkpoint as target: names and shapes of its weights, and which of them are tied.

        A float may have another precision; what is quantised is no float.
        """
        tensors = weights(graph)
        specs = {name: Spec(_alike(tensor), tensor.shape) for name, tensor in tensors.items()}
        ties = tuple(names for names in graph.storages() if len(names) > 1 and set(names) <= specs.keys())
        return cls(graph.origin.path, "checkpoint", specs, ties=ties, source=graph)


def _alike(tensor: Tensor) -> tuple[str, ...]:
    """The element types that mean the same numbers."""
    return FLOATS if tensor.dtype.name in FLOATS else ()


def weights(graph: TensorGraph) -> Mapping[str, Tensor]:
    """The tensors without the constants that an ONNX graph computes with."""
    if not graph.nodes:
        return graph.tensors
    return {name: tensor for name, tensor in graph.tensors.items() if tensor.kind != "constant"}

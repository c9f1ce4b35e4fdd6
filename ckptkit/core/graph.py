"""The TensorGraph: what every reader makes and every other part of ckptkit works on."""

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from ckptkit.core.errors import CkptError
from ckptkit.core.files import File
from ckptkit.core.findings import Finding
from ckptkit.core.tensor import Tensor


class TensorName(str):
    """The value of an attribute that is a tensor: its name in the graph's mapping."""

    __slots__ = ()


class ArgumentName(str):
    """The value of an attribute in the body of a function that is an argument of the function: its name."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Node:
    """One operator of an ONNX graph. Edges are names of values; "" marks an input left out.

    `attributes` maps name → plain value: int, float, str (bytes where it is no UTF-8, and of types), tuples of
    them, a `TensorName` or a `Subgraph` (control flow), lists of these, or an `ArgumentName`.
    """

    name: str
    op: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Value:
    """An input or output of a graph: dtype name ("" if unknown), dimensions (str symbolic, None unknown).

    What is no tensor has a dtype such as `sequence(float32)`, `map(int64, float32)`, and no dimensions.
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None


@dataclass(frozen=True, slots=True)
class Subgraph:
    """The body of a control-flow attribute.

    Its nodes use names as the file has them; a tensor defined in it is in the graph's mapping under `scope`
    (`If_0/then_branch/`) and that name. Names that it does not define are those of the graph around it.
    """

    name: str
    nodes: tuple[Node, ...]
    inputs: tuple[Value, ...] = ()
    outputs: tuple[Value, ...] = ()
    scope: str = ""


@dataclass(frozen=True, slots=True)
class Leaf:
    """A non-tensor value found in a checkpoint.

    Attributes:
        path: dotted path from the root.
        type: type name as the file spells it (`int`, `str`, `numpy.float64`, `argparse.Namespace`).
        value: the value where JSON can hold it, else None.
        opaque: True for a class that is not known and was therefore not run.
    """

    path: str
    type: str
    value: Any = None
    opaque: bool = False


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a trainer checkpoint: dotted path, role (weights, ema, optimizer, other) and size."""

    name: str
    role: str
    tensors: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a graph came from.

    Attributes:
        path: what the user named: a file, a folder or an index.
        format: registry name of the format (`pytorch`, `safetensors`, `onnx`).
        container: container and era in words for people ("zip, torch 2.7 or newer").
        files: every file that holds bytes of the tensors, the named one first.
        section: dotted path of the section that was selected; "" when the whole file is the state dict.
        sections: all sections found, in file order; empty when there is just one state dict.
        details: further facts for `inspect`, JSON-able.
    """

    path: str
    format: str
    container: str = ""
    files: tuple[File, ...] = ()
    section: str = ""
    sections: tuple[Section, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def stored(self) -> int:
        """Bytes of all files together."""
        return sum(f.size for f in self.files)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class TensorGraph(Mapping[str, Tensor]):
    """A frozen mapping name → Tensor in file order, with everything else the checkpoint holds.

    Attributes:
        tensors: the tensors; `graph[name]` is `graph.tensors[name]`.
        nodes, inputs, outputs: the ONNX graph, empty for weights-only formats.
        metadata: string metadata (safetensors `__metadata__`, ONNX metadata_props, `_metadata` of a state
            dict as JSON under the key `_metadata`).
        objects: non-tensor leaves of the checkpoint.
        origin: where it came from.
        findings: what the reader noticed.
        renamed: current name → name in the file, for tensors renamed since reading.
        native: the reader's own handle, which its format's writer needs to write the graph again; opaque.
    """

    tensors: Mapping[str, Tensor]
    origin: Origin
    nodes: tuple[Node, ...] = ()
    inputs: tuple[Value, ...] = ()
    outputs: tuple[Value, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    objects: tuple[Leaf, ...] = ()
    findings: tuple[Finding, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    native: Any = None

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __repr__(self) -> str:
        return f"<TensorGraph {self.origin.path!r}: {len(self)} tensors, {self.nbytes} bytes>"

    @property
    def nbytes(self) -> int:
        """Logical bytes: each tie group counted once."""
        return sum(self.tensors[names[0]].nbytes for names in self.storages())

    @property
    def parameters(self) -> int:
        """Number of elements: each tie group counted once."""
        return sum(self.tensors[names[0]].size for names in self.storages())

    def storages(self) -> list[tuple[str, ...]]:
        """Names grouped by shared storage and layout, in file order; a group of one is an untied tensor."""
        groups: dict[object, list[str]] = {}
        place: File | None = None  # plain tensors nearly always lie in the file of the one before
        number = 0
        numbers: dict[File, int] = {}
        for name, tensor in self.tensors.items():
            key: object
            if tensor.source is None and tensor.file is not None and 0 not in tensor.shape:
                if tensor.file is not place:
                    place = tensor.file
                    number = numbers.setdefault(place, len(numbers))
                key = (number, tensor.offset, tensor.dtype.name, tensor.shape)
            else:
                storage = tensor.storage
                key = (name,) if storage is None else storage
            groups.setdefault(key, []).append(name)
        return [tuple(names) for names in groups.values()]

    def ties(self) -> dict[str, str]:
        """Tied name → the first name in file order of the group it belongs to."""
        return {name: names[0] for names in self.storages() for name in names[1:]}

    def select(self, names: Sequence[str]) -> "TensorGraph":
        """The same graph with only these tensors, in the order given. Raises KeyError for an unknown name."""
        return replace(self, tensors={name: self.tensors[name] for name in names})

    def rename(self, names: Mapping[str, str]) -> "TensorGraph":
        """The same graph with tensors renamed (old → new; others keep theirs), edges of nodes rewired.

        Raises CkptError `name-collision` when two tensors would share a name.
        """
        tensors: dict[str, Tensor] = {}
        renamed: dict[str, str] = {}
        for old, tensor in self.tensors.items():
            new = names.get(old, old)
            if new in tensors:
                raise CkptError("name-collision", f"two tensors would be named {new!r}", old)
            tensors[new] = tensor
            first = self.renamed.get(old, old)
            if new != first:
                renamed[new] = first
        return replace(
            self,
            tensors=tensors,
            renamed=renamed,
            nodes=_rewired(self.nodes, self.tensors, names) if self.nodes else (),
            inputs=tuple(replace(v, name=names.get(v.name, v.name)) for v in self.inputs),
            outputs=tuple(replace(v, name=names.get(v.name, v.name)) for v in self.outputs),
        )


def _rewired(nodes: tuple[Node, ...], tensors: Container[str], names: Mapping[str, str]) -> tuple[Node, ...]:
    """The nodes with tensors renamed, in subgraphs too: there a name means the innermost definition around it."""
    top = Subgraph("", nodes)
    bodies: list[tuple[Subgraph, tuple[_Scope, ...]]] = [(top, (_Scope("", frozenset()),))]
    for body, scopes in bodies:  # grows while it runs: outer bodies first
        for node in body.nodes:
            for inner in _subgraphs(node):
                outputs = (output for n in inner.nodes for output in n.outputs)
                defined = frozenset((*outputs, *(v.name for v in inner.inputs)))
                bodies.append((inner, (_Scope(inner.scope, defined), *scopes)))
    done: dict[int, Subgraph] = {}
    for body, scopes in reversed(bodies):

        def now(name: str, scopes: tuple[_Scope, ...] = scopes) -> str:
            for scope in scopes:
                full = scope.prefix + name
                if full in tensors or f"{full}.values" in tensors:
                    return _new(full, names).removeprefix(scope.prefix)
                if name in scope.defined:
                    return name
            return names.get(name, name)

        done[id(body)] = replace(
            body,
            nodes=tuple(
                replace(
                    node,
                    inputs=tuple(map(now, node.inputs)),
                    outputs=tuple(map(now, node.outputs)),
                    attributes={key: _renamed(value, names, done) for key, value in node.attributes.items()},
                )
                for node in body.nodes
            ),
            inputs=tuple(replace(v, name=now(v.name)) for v in body.inputs),
            outputs=tuple(replace(v, name=now(v.name)) for v in body.outputs),
        )
    return done[id(top)].nodes


class _Scope(NamedTuple):
    """Names visible in a body: tensors called `prefix` and the name, and the values that it defines."""

    prefix: str
    defined: frozenset[str]


def _subgraphs(node: Node) -> Iterator[Subgraph]:
    for value in node.attributes.values():
        if isinstance(value, Subgraph):
            yield value
        elif isinstance(value, list):
            yield from (v for v in value if isinstance(v, Subgraph))


def _renamed(value: Any, names: Mapping[str, str], done: Mapping[int, Subgraph]) -> Any:
    """An attribute's value with tensor names replaced and subgraphs exchanged for their new selves."""
    if isinstance(value, TensorName):
        return TensorName(_new(value, names))
    if isinstance(value, Subgraph):
        return done[id(value)]
    return [_renamed(v, names, done) for v in value] if isinstance(value, list) else value


def _new(name: str, names: Mapping[str, str]) -> str:
    """The new name of a tensor; a sparse one is known by its parts."""
    part = f"{name}.values"
    return names[part].removesuffix(".values") if part in names else names.get(name, name)

"""What the inputs of an ONNX graph may be: dtypes, free dimensions, and the rows that integers look up.

A number that reaches a Gather as its index, unchanged but for its shape and type, is an id below the number of
rows gathered from; so are the ids of onnxruntime's EmbedLayerNormalization. Other integers are not bounded by the
graph. A dimension spelt as a sum (`past + sequence`) follows from its terms.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ckptkit.core.errors import CkptError
from ckptkit.core.graph import Node, TensorGraph, Value

# Operators whose output holds elements of their inputs, and no others.
_CARRIES = {
    "Cast", "Concat", "Expand", "Flatten", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Tile", "Transpose",
    "Unsqueeze", "Where",
}  # fmt: skip
# Those whose output has the rows of their first input.
_KEEPS_ROWS = {"Cast", "Identity", "DequantizeLinear"}
# EmbedLayerNormalization of com.microsoft: place of ids → place of the table
_EMBED = {0: 2, 1: 4, 8: 3}


@dataclass(frozen=True, slots=True)
class Input:
    """One input of a model.

    Attributes:
        name, dtype: as the graph declares them.
        shape: a number where the dimension is fixed, else the label of a free dimension; dimensions of one label
            are equal, and a dimension without a name of its own is called `input.axis`.
        rows: the ids that it holds are below this; None if nothing bounds it.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    rows: int | None = None

    @property
    def is_mask(self) -> bool:
        """Whether it tells by ones and zeros which positions count."""
        return "mask" in self.name.lower()


def signature(graph: TensorGraph) -> tuple[Input, ...]:
    """The inputs that have no default.

    Raises CkptError `graph-needed` without a graph, `prove-inputs` for an input that is no tensor of known rank.
    """
    if not graph.nodes:
        raise CkptError("graph-needed", "only a model with a graph can be run", graph.origin.path)
    rows = _rows(graph)
    found = []
    for value in graph.inputs:
        if not value.dtype or value.shape is None:
            raise CkptError(
                "prove-inputs",
                f"the input {value.name!r} is {_what(value)}, and only tensors of known type and rank are made",
                graph.origin.path,
                None if "(" in value.dtype else "--inputs FILE.npz gives the inputs to run with",
            )
        shape = tuple(_label(value.name, axis, size) for axis, size in enumerate(value.shape))
        found.append(Input(value.name, value.dtype, shape, rows.get(value.name)))
    return tuple(found)


def _what(value: Value) -> str:
    if not value.dtype:
        return "of no known type"
    return value.dtype if "(" in value.dtype else f"{value.dtype} of no known rank"


def free(inputs: Iterable[Input]) -> dict[str, bool]:
    """Label of each free dimension → whether it counts a batch: the first axis, or so named. Sums left out."""
    labels: dict[str, bool] = {}
    for one in inputs:
        for axis, size in enumerate(one.shape):
            if isinstance(size, str):
                for term in _terms(size):
                    if not term.isdecimal():
                        leads = axis == 0 and term == size
                        labels[term] = labels.get(term, False) or leads or "batch" in term.lower()
    return labels


def sized(shape: Sequence[int | str], sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape with its free dimensions set. Raises KeyError for a label without a size."""
    return tuple(
        size if isinstance(size, int) else sum(int(t) if t.isdecimal() else sizes[t] for t in _terms(size))
        for size in shape
    )


def _label(name: str, axis: int, size: int | str | None) -> int | str:
    if size is None or (isinstance(size, int) and size < 0) or size == "?":
        return f"{name}.{axis}"
    return size


def _terms(label: str) -> list[str]:
    """The terms of a sum, or the label itself when it is none that is understood."""
    terms = [term.strip() for term in label.split("+")]
    plain = all((term.isidentifier() or term.isdecimal()) and term.isascii() for term in terms)
    return (
        terms
        if plain and len(terms) > 1 and all(len(t) < 10 or not t.isdecimal() for t in terms)
        else [label]
    )


def _rows(graph: TensorGraph) -> dict[str, int]:
    """Input → number of rows of the smallest table that it indexes."""
    carried: dict[str, frozenset[str]] = {value.name: frozenset((value.name,)) for value in graph.inputs}
    tables = {name: tensor.shape for name, tensor in graph.tensors.items() if tensor.shape}
    rows: dict[str, int] = {}
    for node in graph.nodes:
        standard = node.domain in ("", "ai.onnx")
        for table, ids, axis in _lookups(node):
            shape = tables.get(table)
            if shape is not None and -len(shape) <= axis < len(shape):
                for name in carried.get(ids, ()):
                    rows[name] = min(rows.get(name, shape[axis]), shape[axis])
        if standard and node.op in _CARRIES:
            found = frozenset[str]().union(*(carried.get(name, ()) for name in node.inputs))
            if found:
                carried.update(dict.fromkeys(node.outputs, found))
        if standard and node.op in _KEEPS_ROWS and node.inputs and node.inputs[0] in tables:
            tables.update(dict.fromkeys(node.outputs, tables[node.inputs[0]]))
    return rows


def _lookups(node: Node) -> Iterator[tuple[str, str, int]]:
    """(table, ids, axis) of what a node looks up."""
    if node.op == "Gather" and node.domain in ("", "ai.onnx") and len(node.inputs) == 2:
        axis = node.attributes.get("axis", 0)
        if isinstance(axis, int):
            yield node.inputs[0], node.inputs[1], axis
    elif node.op == "EmbedLayerNormalization" and node.domain == "com.microsoft":
        for ids, table in _EMBED.items():
            if max(ids, table) < len(node.inputs):
                yield node.inputs[table], node.inputs[ids], 0

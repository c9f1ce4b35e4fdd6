"""ModelProto → TensorGraph: walks every place that can hold weights, without recursion and without reading them.

Weights live in initializers, sparse initializers, `Constant` nodes, and any other attribute of any node, in the main
graph, the subgraphs of control flow, model-local functions and training info. Names:

- initializer: its name; a sparse one gives `name.values` and `name.indices`; `Constant`: its output
- other attributes: `node.attribute`, `node.attribute.0` in a list; a list of more than 1024 numbers is data and
  listed as a tensor, a shorter one is a setting of the node
- inside subgraphs: `node/attribute/` before the name (`node/attribute.0/` in a list of graphs), inside functions
  `domain.function/`, inside training info `training_info.0/initialization/`
- a node without a name, or with one that another has, is called by operator and index (`If_3`)
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ckptkit.core.errors import CkptError
from ckptkit.core.files import File
from ckptkit.core.findings import Finding
from ckptkit.core.graph import Node, Origin, Subgraph, TensorGraph, TensorName, Value
from ckptkit.core.options import ReadOptions
from ckptkit.core.tensor import Tensor
from ckptkit.format.onnx.attributes import AttributeReader
from ckptkit.format.onnx.external import DataFiles
from ckptkit.format.onnx.native import Frame, Native, Stored
from ckptkit.format.onnx.schema import BINDINGS, FUNCTION, GRAPH, MODEL, NODE, OPSET, PAIR, TENSOR, TRAINING
from ckptkit.format.onnx.tensors import TensorReader
from ckptkit.format.onnx.values import value_info
from ckptkit.format.onnx.wire import Span, Wire, signed

NEWEST_IR = 14
_NO_ATTRIBUTES: dict[str, Any] = {}  # shared by all nodes that have none; nobody changes it
_INPUTS_APART = 4  # from this IR version on, an initializer need not be a graph input


@dataclass(slots=True, eq=False)
class _Body:
    """A graph or function still to be walked: where it is, and the slot of its node that it goes into."""

    frame: Frame
    scope: str
    depth: int
    main: bool = True
    is_function: bool = False
    slot: tuple[Any, Any] | None = None
    name: str = ""
    nodes: tuple[Node, ...] = ()
    inputs: tuple[Value, ...] = ()
    outputs: tuple[Value, ...] = ()


def read(path: str, options: ReadOptions) -> TensorGraph:
    """The tensor graph of an ONNX model file. Reads its structure, not its weights.

    Raises CkptError: `onnx-malformed`, `truncated`, `not-onnx`, and what `tensors`, `external` and `wire` raise.
    """
    file = File.at(path)
    with file.open() as reader:
        try:
            return _Model(Wire(reader, options.budgets), options).graph()
        except CkptError as error:
            if error.where is None or error.where.startswith(path):
                raise
            # What is wrong with one tensor or node names only that; here is where its file is known.
            raise CkptError(error.code, error.message, f"{path}: {error.where!r}", error.hint) from None


class _Model:
    def __init__(self, wire: Wire, options: ReadOptions) -> None:
        self._wire = wire
        self._file = wire.reader.file
        self._nesting = options.budgets.nesting
        self._data_files = DataFiles(self._file)
        self._tensor_reader = TensorReader(wire, self._data_files)
        self._attribute_reader = AttributeReader(wire, self._tensor_reader)
        self._found: dict[str, Stored] = {}
        self._positions: dict[str, int] = {}
        self._scopes: dict[int, str] = {}
        self._operators: Counter[str] = Counter()
        self._waiting: list[_Body] = []
        self._routines: list[Node] = []
        self._ir_version = 0

    def graph(self) -> TensorGraph:
        model = self._wire.message(0, self._file.size, MODEL)
        self._ir_version = model.get("ir_version", 0)
        if not self._ir_version or "graph" not in model:
            raise CkptError(
                "not-onnx",
                "this is no ONNX model: it has no IR version or no graph",
                self._file.path,
                "a lone TensorProto (.pb) and the text forms of ONNX are not read",
            )
        main = self._bodies(model)
        order = sorted(self._positions, key=self._positions.__getitem__)
        stored = {name: self._found[name] for name in order}
        metadata = self._pairs(model.get("metadata_props", []), "metadata_props")
        return TensorGraph(
            tensors={name: entry.tensor for name, entry in stored.items()},
            origin=self._origin(model, main),
            nodes=main.nodes,
            inputs=main.inputs,
            outputs=main.outputs,
            metadata=metadata,
            findings=tuple(self._findings()),
            native=Native(self._file, stored, dict(metadata), self._scopes, tuple(self._routines)),
        )

    def _bodies(self, model: dict[str, Any]) -> _Body:
        """Walk every graph and function; the main graph's body."""
        main = _Body(Frame(model["graph"], None), "", 0)
        self._waiting.append(main)
        for span in model.get("functions", []):
            slot: tuple[Any, Any] = ({}, "body")
            self._waiting.append(_Body(Frame(span, None), "", 0, main=False, is_function=True, slot=slot))
        for index, span in enumerate(model.get("training_info", [])):
            frame, label = Frame(span, None), f"training_info.{index}"
            parts = self._bindings(span)
            self._routines.append(Node(label, "training", "", (), (), parts))
            for part, at in self._wire.message(span.start, span.end, TRAINING).items():
                slot = (parts, part)
                self._waiting.append(_Body(Frame(at, frame), f"{label}/{part}/", 0, main=False, slot=slot))
        done = []
        while self._waiting:
            body = self._waiting.pop()
            if body.is_function:
                self._function(body)
            else:
                self._graph(body)
            self._scopes[body.frame.span.at] = body.scope
            done.append(body)
        for body in reversed(done):  # those found later lie within earlier ones: innermost first
            if body.slot is not None:
                container, key = body.slot
                container[key] = Subgraph(body.name, body.nodes, body.inputs, body.outputs, body.scope)
        return main

    def _graph(self, body: _Body) -> None:
        wire, scope, frame = self._wire, body.scope, body.frame
        message = wire.message(frame.span.start, frame.span.end, GRAPH)
        wire.spend(len(message.get("input", ())) + len(message.get("output", ())), frame.span.at)
        inputs = [value_info(wire, span) for span in message.get("input", [])]
        input_names = {value.name for value in inputs}
        overridable = "default of a graph input" if self._ir_version >= _INPUTS_APART else ""
        own = set()
        for span in message.get("initializer", []):
            proto = wire.message(span.start, span.end, TENSOR)
            local = proto.get("name", "")
            if not local:
                raise CkptError("onnx-name", "an initializer without a name", wire.where(span.at))
            tensor = self._tensor_reader.tensor(proto, scope + local, "initializer")
            if local in input_names and overridable:
                tensor = replace(tensor, note=overridable)
            own.add(local)
            self._add(scope + local, Stored(tensor, Frame(span, frame), scope, body.main), span.at)
        for span in message.get("sparse_initializer", []):
            name, parts = self._tensor_reader.sparse(span, "sparse-initializer", "")
            if not name:
                raise CkptError("onnx-name", "a sparse initializer without a name", wire.where(span.at))
            own.add(name)
            self._add_sparse(scope + name, parts, Frame(span, frame), scope)
        body.name = message.get("name", "")
        body.nodes = tuple(self._nodes(body, message.get("node", [])))
        body.inputs = tuple(value for value in inputs if value.name not in own)
        body.outputs = tuple(value_info(wire, span) for span in message.get("output", []))

    def _function(self, body: _Body) -> None:
        wire, frame = self._wire, body.frame
        message = wire.message(frame.span.start, frame.span.end, FUNCTION)
        body.name = ".".join(filter(None, (message.get(key) for key in ("domain", "name", "overload"))))
        body.scope = f"{body.name}/"
        arguments = dict.fromkeys(message.get("attribute", ()))
        arguments |= self._attributes(body, body.name, message.get("attribute_proto", []), frame)
        body.nodes = tuple(self._nodes(body, message.get("node", [])))
        assert body.slot is not None
        parts = body.slot[0]
        parts |= {f"argument {name}": value for name, value in arguments.items()}
        parts |= {f"opset {domain}": version for domain, version in self._opsets(message).items()}
        signature = tuple(message.get("input", ())), tuple(message.get("output", ()))
        self._routines.append(Node(body.name, "function", "", *signature, parts))

    def _bindings(self, span: Span) -> dict[str, Any]:
        """Which values training puts into which tensors."""
        found = self._wire.message(span.start, span.end, BINDINGS)
        pairs = {
            key: [self._wire.message(at.start, at.end, PAIR) for at in spans] for key, spans in found.items()
        }
        return {
            key: tuple((p.get("key", ""), p.get("value", "")) for p in some) for key, some in pairs.items()
        }

    def _nodes(self, body: _Body, spans: list[Span]) -> Iterator[Node]:
        wire, operators = self._wire, self._operators
        wire.spend(len(spans), body.frame.span.at)
        taken: set[str] = set()
        spans.reverse()
        for index in range(len(spans)):
            span = spans.pop()  # places are let go as nodes are made
            message = wire.message(span.start, span.end, NODE)
            op, domain = message.get("op_type", ""), message.get("domain", "")
            operators[f"{domain}.{op}" if domain and domain != "ai.onnx" else op] += 1
            name = message.get("name", "")
            outputs = tuple(message.get("output", ()))
            if not op:
                raise CkptError("onnx-name", "a node without an operator", wire.where(span.at))
            attributes = _NO_ATTRIBUTES
            if "attribute" in message:
                label = name if name and name not in taken else f"{op}_{index}"
                while label in taken:  # another node's own name
                    label += "_"
                taken.add(label)
                constant = op == "Constant" and domain in ("", "ai.onnx")
                if constant and len(outputs) != 1:
                    raise CkptError(
                        "onnx-constant", "a Constant without exactly one output", wire.where(span.at)
                    )
                attributes = self._attributes(
                    body, label, message["attribute"], Frame(span, body.frame), outputs[0] if constant else ""
                )
            yield Node(name, op, domain, tuple(message.get("input", ())), outputs, attributes)

    def _attributes(
        self, body: _Body, label: str, spans: list[Span], parent: Frame, constant: str = ""
    ) -> dict[str, Any]:
        """The attributes of one node. Adds the tensors among them, puts the subgraphs on the waiting list."""
        self._wire.spend(len(spans), parent.span.at)
        values: dict[str, Any] = {}
        where = body.scope + label
        for span in spans:
            attribute = self._attribute_reader.read(span, where, bool(constant))
            name = attribute.name
            if name in values:
                raise CkptError("duplicate-name", f"two attributes named {name!r} on one node", where)
            values[name] = attribute.value
            if attribute.plain:
                continue
            frame = Frame(span, parent)
            base = body.scope + (constant or f"{label}.{name}")
            kind = "constant" if constant else "attribute"
            many = isinstance(attribute.value, list)
            into: Any = attribute.value if many else values
            keys: Sequence[Any] = range(len(into)) if many else (name,)
            for key, at in zip(keys, attribute.tensors, strict=False):
                title = f"{base}.{key}" if many else base
                proto = self._wire.message(at.start, at.end, TENSOR)
                tensor = self._tensor_reader.tensor(proto, title, kind)
                self._add(title, Stored(tensor, Frame(at, frame), body.scope), at.at)
                into[key] = TensorName(title)
            for key, at in zip(keys, attribute.sparse, strict=False):
                title = f"{base}.{key}" if many else base
                _, parts = self._tensor_reader.sparse(at, kind, title)
                self._add_sparse(title, parts, Frame(at, frame), body.scope)
                into[key] = TensorName(title)
            if attribute.numbers is not None:
                tensor = self._attribute_reader.tensor(attribute, base, kind)
                self._add(base, Stored(tensor, None, body.scope), span.at)
                values[name] = TensorName(base)
            for key, at in zip(keys, attribute.graphs, strict=False):
                if body.depth >= self._nesting:
                    raise CkptError("over-budget", "subgraphs nested too deep", self._wire.where(at.at))
                scope = f"{body.scope}{label}/{name}.{key}/" if many else f"{body.scope}{label}/{name}/"
                self._wire.spend_text(len(scope), at.at)
                slot = (into, key)
                self._waiting.append(_Body(Frame(at, frame), scope, body.depth + 1, body.main, slot=slot))
        return values

    def _add_sparse(self, name: str, parts: dict[str, tuple[Span, Tensor]], frame: Frame, scope: str) -> None:
        for part, (span, tensor) in parts.items():
            self._add(f"{name}.{part}", Stored(tensor, Frame(span, frame), scope), span.at)

    def _add(self, name: str, stored: Stored, at: int) -> None:
        self._wire.spend(1, at)
        self._wire.spend_text(len(name), at)
        if name in self._found:
            raise CkptError("duplicate-name", "two tensors of the model have one name", name)
        self._found[name] = stored
        self._positions[name] = at

    def _pairs(self, spans: list[Span], what: str) -> dict[str, str]:
        pairs: dict[str, str] = {}
        for span in spans:
            pair = self._wire.message(span.start, span.end, PAIR)
            key = pair.get("key", "")
            if key in pairs:
                raise CkptError(
                    "duplicate-name", f"two {what} with the key {key!r}", self._wire.where(span.at)
                )
            pairs[key] = pair.get("value", "")
        return pairs

    def _opsets(self, message: dict[str, Any]) -> dict[str, int]:
        """Domain → version, of a model or a function."""
        opsets = {}
        for span in message.get("opset_import", []):
            found = self._wire.message(span.start, span.end, OPSET)
            opsets[found.get("domain", "") or "ai.onnx"] = signed(found.get("version", 0))
        return opsets

    def _origin(self, model: dict[str, Any], main: _Body) -> Origin:
        opsets = self._opsets(model)
        producer = " ".join(filter(None, (model.get("producer_name"), model.get("producer_version"))))
        data_files = self._data_files.files
        words = [f"IR {self._ir_version}"]
        words += [f"opset {opsets['ai.onnx']}"] if "ai.onnx" in opsets else []
        words += [f"by {producer}"] if producer else []
        words += [f"weights in {len(data_files)} data file{'s'[: len(data_files) > 1]}"] if data_files else []
        return Origin(
            path=self._file.path,
            format="onnx",
            container=", ".join(words),
            files=(self._file, *(file for file in data_files if file != self._file)),
            details={
                "ir_version": self._ir_version,
                "opsets": opsets,
                "producer": producer,
                "graph": main.name,
                "domain": model.get("domain", ""),
                "model_version": signed(model.get("model_version", 0)),
                "operators": dict(self._operators.most_common()),
                "functions": len(model.get("functions", [])),
                "data_files": [file.path for file in data_files],
                "checksums": dict(self._data_files.checksums),
            },
        )

    def _findings(self) -> Iterator[Finding]:
        if self._ir_version > NEWEST_IR:
            yield Finding(
                "onnx-newer",
                "note",
                "",
                f"IR version {self._ir_version} is newer than {NEWEST_IR}, the newest known here",
            )
        yield from self._data_files.findings()

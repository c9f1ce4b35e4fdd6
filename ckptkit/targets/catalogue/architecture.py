"""Published architectures as files: one for a family of models, sized by a row of numbers for each model.

    ckptkit-architecture: 1
    about: GPT-2
    family: GPT-2                             # as `ckptkit.match.schemes` calls it
    dimensions: {layers: 12, d: 768, vocab: 50257}    # defaults; numbers, lists, or expressions of earlier ones
    open: [vocab]                             # may differ without making it another model
    ranges: {i: 0..layers-1}                  # in braces in a name; ends are expressions, of earlier ranges too
    models:
      gpt2: {title: GPT-2 small, also: [gpt2-small]}
      gpt2-medium: {title: GPT-2 medium, layers: 24, d: 1024}
    schemes:                                  # whose names
      hf:
        root: transformer.                    # before every name of the body, or nothing before any
        body:
          wte.weight: float [vocab, d]
          h.{i}.attn.c_attn: conv1d [d, 3*d]
          h.{i}.attn.bias: optional any
        heads:                                # only where the root stands before the names; one of them
          language model:
            lm_head.weight: optional float [vocab, d]

Names are patterns as in contracts, but what stands in their braces may be an expression of ranges and dimensions
(`{s-1}`); sizes are expressions as in rules. What stands before the sizes is a dtype, or a kind of module, which
stands for the tensors that it has (`KINDS`).
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ckptkit.core.errors import CkptError
from ckptkit.rules.expressions import Bound, Expression
from ckptkit.rules.expressions import parse as parse_expression
from ckptkit.rules.nodes import Node, load
from ckptkit.targets.parsing import WIDER, Parser
from ckptkit.targets.pattern import NAMES, expand
from ckptkit.targets.target import FLOATS, Dim, Spec

VERSION = "1"
_HEAD = "ckptkit-architecture"
_KEYS = (_HEAD, "about", "family", "dimensions", "open", "ranges", "models", "schemes")
_SCHEME = ("also", "families", "models", "root", "body", "heads")
_LINE = re.compile(r"(optional\s+)?([^\s\[\]]+)\s*(?:\[(.*)\])?")
_HOLE = re.compile(r"\{((?:(?!\.\.)[^{},])+)\}")  # alternatives have commas or dots, and are left to `expand`

# Kind of module → its tensors: end of the name, which of the sizes are its shape, whether it may be missing.
_ALL, _FIRST, _LAST = slice(None), slice(1), slice(-1, None)
_COUNTER = "num_batches_tracked"  # an int64 scalar, which torch did not save before 0.4.1
KINDS: Mapping[str, tuple[tuple[str, slice], ...]] = {
    "linear": (("weight", _ALL), ("bias", _FIRST)),
    "conv": (("weight", _ALL), ("bias", _FIRST)),
    "conv1d": (("weight", _ALL), ("bias", _LAST)),  # transformers' Conv1D: [in, out]
    "norm": (("weight", _ALL), ("bias", _ALL)),
    "batchnorm": (("weight", _ALL), ("bias", _ALL), ("running_mean", _ALL), ("running_var", _ALL)),
    "convbn": (
        ("conv.weight", _ALL),
        *((f"bn.{part}", _FIRST) for part in ("weight", "bias", "running_mean", "running_var")),
    ),
}

Value = Any  # a whole number, or a list of values


class Line(NamedTuple):
    """One line of a body or head; `where` is its file and line."""

    pattern: str
    holes: tuple[Expression, ...]
    kind: str
    sizes: tuple[Expression, ...] | None
    optional: bool
    where: str


class Model(NamedTuple):
    """One row of sizes; `also` are other names of the same model."""

    name: str
    title: str
    also: tuple[str, ...]
    values: Mapping[str, Node]


class Scheme(NamedTuple):
    """The names that one library gives; `also` are other libraries with the same names, `models` those it has.

    `families` are what `ckptkit.match.schemes` may take the names for.
    """

    name: str
    also: tuple[str, ...]
    families: tuple[str, ...]
    models: tuple[str, ...]
    root: str
    body: tuple[Line, ...]
    heads: Mapping[str, tuple[Line, ...]]


@dataclass(frozen=True, slots=True)
class Architecture:
    """A family of models, as its file says it."""

    about: str
    family: str
    dimensions: Mapping[str, Node]
    open: tuple[str, ...]
    ranges: Mapping[str, tuple[Expression, ...]]
    models: Mapping[str, Model]
    schemes: Mapping[str, Scheme]

    @classmethod
    def parse(cls, text: str, path: str) -> "Architecture":
        """Raises CkptError `contract-invalid` at the first thing that is not understood."""
        return _Reader(path).architecture(load(text, path))

    def sizes(self, model: str, given: Mapping[str, int] | None = None) -> dict[str, Value]:
        """The dimensions of a model, those given from outside first. Raises CkptError `rule-value`."""
        row = self.models[model].values
        found: dict[str, Value] = {}
        for name, default in self.dimensions.items():
            if given is not None and name in given:
                found[name] = given[name]
            else:
                found[name] = _value(row.get(name, default), found)
        return found

    def body(self, scheme: str, sizes: Mapping[str, Value]) -> dict[str, Spec]:
        """The tensors without those of a head; names without the root."""
        return self._tensors(self.schemes[scheme].body, sizes, head=False)

    def head(
        self, scheme: str, head: str, sizes: Mapping[str, Value], *, loose: Iterable[str] = ()
    ) -> dict[str, Spec]:
        """The tensors of one head; dimensions that are `loose` stay dimensions, for any size to do."""
        lines = self.schemes[scheme].heads[head]
        found = self._tensors(lines, sizes, head=True)
        for dimension in loose:
            larger = self._tensors(lines, {**sizes, dimension: sizes[dimension] + 1}, head=True)
            for name, axes in standing(found, larger).items():
                shape = list(found[name].shape or ())
                for axis, factor in axes.items():
                    shape[axis] = Dim(dimension, factor)
                found[name] = found[name]._replace(shape=tuple(shape))
        return found

    def _tensors(self, lines: Iterable[Line], sizes: Mapping[str, Value], *, head: bool) -> dict[str, Spec]:
        found: dict[str, Spec] = {}
        for line in lines:
            for name, spec in self._line(line, sizes):
                if name in found:
                    raise CkptError("contract-invalid", f"{name!r} is expected twice", line.where)
                found[name] = spec._replace(head=head)
            if len(found) > NAMES:
                raise CkptError("over-budget", f"more than {NAMES:,} names", line.where)
        return found

    def _line(self, line: Line, sizes: Mapping[str, Value]) -> Iterator[tuple[str, Spec]]:
        for bound in self._bindings(line, sizes):
            known = Bound(_NOTHING, bound)
            numbers = iter([str(hole.integer(known)) for hole in line.holes])
            pattern = _HOLE.sub(lambda _, numbers=numbers: next(numbers), line.pattern)  # type: ignore[misc]
            shape = None if line.sizes is None else tuple(size.integer(known) for size in line.sizes)
            for name in expand(pattern, {}):
                yield from _module(name, line, shape)

    def _bindings(self, line: Line, sizes: Mapping[str, Value]) -> list[Mapping[str, Value]]:
        """The dimensions with each combination of numbers of the ranges that a line uses, or that those use."""
        used = {name for part in (*line.holes, *(line.sizes or ())) for name in part.names}
        for name in reversed(tuple(self.ranges)):  # a range uses those before it
            if name in used:
                used |= {other for end in self.ranges[name] for other in end.names}
        bindings: list[Mapping[str, Value]] = [sizes]
        for name, ends in self.ranges.items():
            if name in used:
                bindings = [{**bound, name: number} for bound in bindings for number in _numbers(ends, bound)]
        return bindings


def standing(before: Mapping[str, Spec], after: Mapping[str, Spec]) -> dict[str, dict[int, int]]:
    """Name → axis → by how much it grew, for those that did. A dimension stands where its growing by one shows."""
    found: dict[str, dict[int, int]] = {}
    for name, spec in before.items():
        for axis, (one, other) in enumerate(zip(spec.shape or (), after[name].shape or (), strict=True)):
            if isinstance(one, int) and isinstance(other, int) and one != other:
                found.setdefault(name, {})[axis] = other - one
    return found


def _module(name: str, line: Line, shape: tuple[int, ...] | None) -> Iterator[tuple[str, Spec]]:
    """The tensors that a name and its kind stand for."""
    parts = KINDS.get(line.kind)
    if parts is None or shape is None:
        yield name, Spec(WIDER.get(line.kind, (line.kind,)), shape, line.optional)
        return
    for end, part in parts:
        yield f"{name}.{end}", Spec(FLOATS, shape[part], line.optional)
        if end.endswith("running_var"):
            yield f"{name}.{end.removesuffix('running_var')}{_COUNTER}", Spec(("int64",), (), True)


class _Nothing:
    """An environment in which nothing has a value."""

    def value(self, name: str) -> Value:
        raise CkptError("contract-invalid", f"there is no dimension {name!r}")

    def call(self, function: str, template: str, dim: int | None) -> Value:
        raise CkptError("contract-invalid", f"{function}() is not for architectures")


_NOTHING = _Nothing()


def _value(node: Node, known: Mapping[str, Value]) -> Value:
    """A number or list as written, by way of expressions."""
    if isinstance(node.value, tuple):
        return [_value(item, known) for item in node.value]
    return parse_expression(str(node.value)).value(Bound(_NOTHING, known))


def _numbers(ends: tuple[Expression, ...], bound: Mapping[str, Value]) -> Iterable[int]:
    """From the first end to the last, both included; or what the one expression lists."""
    known = Bound(_NOTHING, bound)
    if len(ends) == 1:
        return list(ends[0].value(known))
    start, stop = (end.integer(known) for end in ends)
    if stop - start >= NAMES:
        raise CkptError("over-budget", f"more than {NAMES:,} numbers")
    return range(start, stop + 1)


class _Reader(Parser):
    """The file's own mistakes, each with its line."""

    def architecture(self, root: Node) -> Architecture:
        top = self.mapping(root, _KEYS)
        if _HEAD not in top or top[_HEAD].value != VERSION:
            self.fail(root, "this is no architecture", f"its first line is {_HEAD}: {VERSION}")
        nothing = Node({})
        dimensions = self.mapping(top.get("dimensions", nothing))
        family = self.text(top["family"])
        return Architecture(
            self.text(top["about"]),
            family,
            dimensions,
            self.texts(top.get("open", Node(()))),
            {name: self.range(node) for name, node in self.mapping(top.get("ranges", nothing)).items()},
            {name: self.model(name, node, dimensions) for name, node in self.mapping(top["models"]).items()},
            {
                name: self.scheme(name, node, family, tuple(self.mapping(top["models"])))
                for name, node in self.mapping(top["schemes"]).items()
            },
        )

    def range(self, node: Node) -> tuple[Expression, ...]:
        ends = self.text(node).split("..")
        if len(ends) > 2:
            self.fail(node, "a range has two ends", "such as 0..layers-1")
        return tuple(self.located(node, parse_expression, end) for end in ends)

    def model(self, name: str, node: Node, dimensions: Mapping[str, Node]) -> Model:
        row = dict(self.mapping(node, ("title", "also", *dimensions)))
        title = self.text(row.pop("title")) if "title" in row else name
        return Model(name, title, self.texts(row.pop("also", Node(()))), row)

    def scheme(self, name: str, node: Node, family: str, models: tuple[str, ...]) -> Scheme:
        given = self.mapping(node, _SCHEME)
        heads = self.mapping(given.get("heads", Node({})))
        return Scheme(
            name,
            self.texts(given.get("also", Node(()))),
            self.texts(given["families"]) if "families" in given else (family,),
            self.texts(given["models"]) if "models" in given else models,
            self.text(given["root"]) if "root" in given else "",
            self.lines(given["body"]),
            {head: self.lines(lines) for head, lines in heads.items()},
        )

    def lines(self, node: Node) -> tuple[Line, ...]:
        return tuple(self.line(pattern, value) for pattern, value in self.mapping(node).items())

    def line(self, pattern: str, node: Node) -> Line:
        match = _LINE.fullmatch(self.text(node).strip())
        if match is None:
            self.fail(node, f"{self.text(node)!r} is no kind and shape", "such as linear [d, 4*d]")
        kind = match[2]
        if kind not in KINDS and kind not in WIDER:
            self.dtype(node, kind)
        sizes = match[3]
        parsed = None
        if sizes is not None:
            parts = [part for part in _COMMAS.split(sizes) if part.strip()]
            parsed = tuple(self.located(node, parse_expression, part.strip()) for part in parts)
        elif kind in KINDS:
            self.fail(node, f"{kind} has sizes")
        holes = tuple(self.located(node, parse_expression, hole) for hole in _HOLE.findall(pattern))
        return Line(pattern, holes, kind, parsed, match[1] is not None, self.at(node))


_COMMAS = re.compile(r",(?![^\[]*\])")  # not those within an index

"""From the sources of a rule to its targets: operations, joins, splits, all lazy."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from ckptkit.core.errors import CkptError
from ckptkit.core.tensor import Tensor
from ckptkit.ops.layout import axis
from ckptkit.rules.expressions import Bound, Environment, Expression, Value
from ckptkit.rules.joins import JOINS, split, unstack
from ckptkit.rules.matcher import option
from ckptkit.rules.model import Op, Rule, Side
from ckptkit.rules.operations import OPERATIONS
from ckptkit.rules.outcome import Product
from ckptkit.rules.values import Sizes

MOST = 100_000  # tensors that one rule may make of one, or of none


class Key(NamedTuple):
    """A source's place in its group: the side, and the values of the holes that joins run over."""

    side: int
    over: tuple[Value, ...]


@dataclass(slots=True)
class Group:
    """The sources that make one result."""

    bound: dict[str, Value]
    names: dict[Key, str] = field(default_factory=dict)


class Proof(Protocol):
    """What making needs to know of the whole."""

    @property
    def env(self) -> Environment: ...
    @property
    def rules(self) -> tuple[Rule, ...]: ...
    @property
    def order(self) -> Mapping[str, int]:
        """Source → its place."""

    @property
    def holes(self) -> Mapping[int, tuple[list[str], list[str]]]:
        """Rule → its own holes, and those that its joins run over."""

    @property
    def told(self) -> Mapping[int, tuple[str, ...]]:
        """Rule → its operations in words."""

    def source(self, name: str) -> Tensor: ...


class Maker:
    """The products of one group of sources."""

    def __init__(self, proof: Proof, number: int, group: Group) -> None:
        self.proof = proof
        self.number = number
        self.rule = rule = proof.rules[number]
        self.group = group
        self.bound = {hole: group.bound[hole] for hole in proof.holes[number][0] if hole in group.bound}
        self.joined = [str(step.args["over"]) for step in rule.joins if "over" in step.args]
        self.sources: list[str] = []

    def make(self) -> list[Product]:
        rule = self.rule
        tensor = self.assemble(len(rule.joins) - 1, {}, 0)
        tensor = self.apply(rule.ops, tensor, self.bound)
        place = min(self.proof.order[name] for name in self.group.names.values())
        sources = tuple(self.sources)
        products: list[Product] = []
        for side, part, bound, note in self.spread(tensor, 0, self.bound):
            if len(products) == MOST:
                raise CkptError("rule-value", f"more than {MOST} tensors of one")
            part = self.apply(side.ops, part, bound)
            name = side.template.fill(bound, self.proof.env)
            notes = (*self.proof.told[self.number], *note, *map(str, side.ops))
            products.append(Product(place + len(products) / 1e6, name, sources, rule.where, notes, part))
        return products

    # several into one

    def assemble(self, level: int, fixed: dict[str, Value], side: int) -> Tensor:
        if level < 0:
            return self.read(side, fixed)
        step = self.rule.joins[level]
        args = self.evaluate(step, self.bound)
        if "over" not in step.args:
            parts = [self.assemble(level - 1, fixed, place) for place in range(len(self.rule.sources))]
            self.check_parts(step, args, len(parts))
            return self.join(step, parts, args)
        hole = str(step.args["over"])
        parts = [self.assemble(level - 1, {**fixed, hole: value}, side) for value in self.values(hole, args)]
        return self.join(step, parts, args)

    def join(self, step: Op, parts: Sequence[Tensor], args: Mapping[str, Any]) -> Tensor:
        return JOINS[step.name].run(parts, args)

    def values(self, hole: str, args: Mapping[str, Any]) -> list[Value]:
        """The values that a join runs over, in order."""
        for side in self.rule.sources:
            for found in side.template.holes:
                if found.name == hole and found.kind in ("one", "map"):
                    values = [option(text) for text in found.options]
                    self.check_parts(None, args, len(values))
                    return values
        place = self.joined.index(hole)
        start = args.get("start", 0)
        numbers = sorted({key.over[place] for key in self.group.names})
        wanted = list(range(start, start + args.get("parts", len(numbers))))
        if numbers != wanted:
            missing = sorted(set(range(start, max(numbers) + 1)) - set(numbers))
            gap = (
                f"{hole} = {missing[0]} is missing"
                if missing
                else f"{len(numbers)} where {len(wanted)} were stated"
            )
            raise CkptError(
                "rule-gap", f"the numbers of {{{hole}}} do not run from {start} without gaps: {gap}"
            )
        return list(numbers)

    def check_parts(self, step: Op | None, args: Mapping[str, Any], count: int) -> None:
        if args.get("parts", count) != count:
            raise CkptError("rule-incomplete", f"{count} parts where {args['parts']} were stated")

    def read(self, place: int, fixed: dict[str, Value]) -> Tensor:
        side = self.rule.sources[place]
        name = self.group.names.get(Key(place, tuple(fixed[hole] for hole in self.joined)))
        bound = {**self.bound, **fixed}
        if name is None:
            wanted = side.template.fill(bound, self.proof.env)
            raise CkptError("rule-incomplete", f"{wanted!r} is missing for {self.rule}")
        self.sources.append(name)
        return self.apply(side.ops, self.proof.source(name), bound)

    # one into several

    def spread(
        self, tensor: Tensor, level: int, bound: dict[str, Value]
    ) -> Iterator[tuple[Side, Tensor, dict[str, Value], tuple[str, ...]]]:
        rule = self.rule
        if level == len(rule.splits):
            for side in rule.targets:
                yield side, tensor, bound, ("copy",) if len(rule.targets) > 1 else ()
            return
        step = rule.splits[level]
        args = self.evaluate(step, bound, tensor)
        if "over" not in step.args:
            for place, (side, part) in enumerate(
                zip(rule.targets, self.parts(step, args, tensor, len(rule.targets)), strict=True)
            ):
                yield side, part, bound, (f"{step}[{place}]",)
            return
        hole = str(step.args["over"])
        values = self.targets_of(hole, step, args, tensor)
        for value, part in zip(values, self.parts(step, args, tensor, len(values)), strict=True):
            for side, piece, inner, notes in self.spread(part, level + 1, {**bound, hole: value}):
                yield side, piece, inner, (f"{step}[{value}]", *notes)

    def targets_of(self, hole: str, step: Op, args: Mapping[str, Any], tensor: Tensor) -> list[Value]:
        for side in self.rule.targets:
            for found in side.template.holes:
                if found.name == hole and found.kind in ("one", "map"):
                    return [option(text) for text in found.options]
        start = args.get("start", 0)
        if "parts" in args:
            count = args["parts"]
        elif step.name == "unstack":
            count = tensor.shape[axis(tensor, args["dim"])]
        else:
            raise CkptError("rule-invalid", f"split over {hole} does not say into how many parts")
        if not 0 <= count <= MOST:
            raise CkptError("rule-value", f"{count} parts")
        return list(range(start, start + count))

    def parts(self, step: Op, args: Mapping[str, Any], tensor: Tensor, count: int) -> list[Tensor]:
        if step.name == "split":
            return split(tensor, args["dim"], count, args.get("sizes", "equal"))
        size = tensor.shape[axis(tensor, args["dim"])]
        if size != count:
            raise CkptError("op-shape", f"a dimension of size {size} gives no {count} tensors")
        return [unstack(tensor, args["dim"], index) for index in range(size)]

    # operations

    def apply(self, ops: Sequence[Op], tensor: Tensor, bound: Mapping[str, Value]) -> Tensor:
        for op in ops:
            tensor = self.step(op, tensor, self.evaluate(op, bound, tensor))
        return tensor

    def step(self, op: Op, tensor: Tensor, args: Mapping[str, Any]) -> Tensor:
        return OPERATIONS[op.name].run(tensor, args)

    def evaluate(self, op: Op, bound: Mapping[str, Value], tensor: Tensor | None = None) -> dict[str, Any]:
        env = Bound(self.proof.env, bound) if tensor is None else Sizes(self.proof.env, bound, tensor)
        found: dict[str, Any] = {}
        for key, value in op.args.items():
            if isinstance(value, Expression):
                found[key] = value.integer(env)
            elif isinstance(value, tuple) and value and isinstance(value[0], Op):
                found[key] = lambda part, ops=value: self.apply(ops, part, bound)
            elif isinstance(value, tuple):
                found[key] = tuple([item.integer(env) for item in value])
            else:
                found[key] = value
        return found

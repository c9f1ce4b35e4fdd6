"""What a rule file says, as values: sides, steps and rules; and those written out again as data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ckptkit.core.dtypes import DType
from ckptkit.rules.expressions import Expression
from ckptkit.rules.joins import JOINS, SPLITS
from ckptkit.rules.operations import OPERATIONS
from ckptkit.rules.template import Template

Kind = Literal["move", "drop", "fill", "tie", "shared"]


@dataclass(frozen=True, slots=True)
class Op:
    """An operation with its arguments as written."""

    name: str
    args: Mapping[str, Any]

    def data(self) -> Any:
        """As it is written in a file."""
        if not self.args:
            return self.name
        takes = OPERATIONS[self.name].takes if self.name in OPERATIONS else {}
        short = OPERATIONS[self.name].short if takes else ""
        if short and set(self.args) == {short}:
            return {self.name: written(self.args[short])}
        return {self.name: {key: written(value) for key, value in self.args.items()}}

    def __str__(self) -> str:
        inside = ", ".join(f"{key}={_plain(value)}" for key, value in self.args.items())
        return f"{self.name}({inside})" if inside else self.name


@dataclass(frozen=True, slots=True)
class Side:
    """A name on one side of a rule, and what happens to its tensor alone: after reading it, before giving it."""

    template: Template
    ops: tuple[Op, ...] = ()

    def data(self) -> Any:
        if not self.ops:
            return self.template.text
        return {"name": self.template.text, "ops": [op.data() for op in self.ops]}


@dataclass(frozen=True, slots=True)
class Made:
    """What `fill` makes; shape and dtype are those of the tensor that it is like where they are None."""

    value: str
    shape: tuple[Expression, ...] | None = None
    dtype: DType | None = None
    over: Mapping[str, Expression] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule.

    Attributes:
        where: file and line.
        sources, targets: the sides of a move; the one template of drop, shared (source), fill and tie (target).
        joins: from several sources to one tensor, innermost first; splits: to several targets, outermost first.
        ops: what happens in between.
        when: all must hold. optional: it may match nothing.
        other: the target that a tie repeats, or that a fill is like; the source that a dropped tensor must equal.
        made: of a fill; of a drop, what the tensor must hold.
    """

    kind: Kind
    where: str
    sources: tuple[Side, ...] = ()
    targets: tuple[Side, ...] = ()
    joins: tuple[Op, ...] = ()
    ops: tuple[Op, ...] = ()
    splits: tuple[Op, ...] = ()
    when: tuple[Expression, ...] = ()
    optional: bool = False
    other: Template | None = None
    made: Made | None = None

    @property
    def renames(self) -> bool:
        """Whether it only gives a new name."""
        sides = (*self.sources, *self.targets)
        return self.kind == "move" and len(sides) == 2 and not (
            self.joins or self.ops or self.splits or any(side.ops for side in sides)
        )  # fmt: skip

    @property
    def over(self) -> tuple[frozenset[str], frozenset[str]]:
        """Holes that joins, and that splits, run over."""
        joined, parts = (
            frozenset(str(step.args["over"]) for step in steps if "over" in step.args)
            for steps in (self.joins, self.splits)
        )
        return joined, parts

    def __str__(self) -> str:
        sources = ", ".join(side.template.text for side in self.sources)
        targets = ", ".join(side.template.text for side in self.targets)
        if self.kind == "move":
            return f"{sources} → {targets}"
        return f"{self.kind}: {sources or targets}"

    def data(self) -> dict[str, Any]:
        """As it is written in a file."""
        found: dict[str, Any]
        if self.kind == "move":
            found = {"from": _sides(self.sources), "to": _sides(self.targets)}
            found |= {op.name: _args(op) for op in self.joins}
            if self.ops:
                found["ops"] = [op.data() for op in self.ops]
            found |= {op.name: _args(op) for op in self.splits}
        elif self.kind in ("drop", "shared"):
            found = {self.kind: self.sources[0].template.text}
            if self.other is not None:
                found["same_as"] = self.other.text
            if self.made is not None:
                found["value"] = self.made.value
        else:
            found = {self.kind: self.targets[0].template.text}
            if self.other is not None:
                found["like" if self.kind == "fill" else "to"] = self.other.text
            if self.made is not None:
                found["value"] = self.made.value
                if self.made.shape is not None:
                    found["shape"] = written(self.made.shape)
                if self.made.dtype is not None:
                    found["dtype"] = self.made.dtype.name
                if self.made.over:
                    found["over"] = {name: str(count) for name, count in self.made.over.items()}
        if self.when:
            found["when"] = _plain(self.when[0]) if len(self.when) == 1 else [str(e) for e in self.when]
        if self.optional:
            found["optional"] = "true"
        return found


def _sides(sides: tuple[Side, ...]) -> Any:
    return sides[0].data() if len(sides) == 1 else [side.data() for side in sides]


def _args(op: Op) -> Any:
    assert op.name in JOINS or op.name in SPLITS
    return {key: written(value) for key, value in op.args.items()}


def written(value: Any) -> Any:
    """An argument as it is written in a file."""
    if isinstance(value, tuple):
        return [written(item) for item in value]
    if isinstance(value, Op):
        return value.data()
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _plain(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_plain, value))}]"
    return str(value) if isinstance(value, Op) else str(written(value))

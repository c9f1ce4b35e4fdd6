"""What names and questions in rules mean for one checkpoint: `let`, tables, config files, shapes, presence."""

import os
import re
from collections.abc import Mapping
from typing import Any

from ckptkit.core.budgets import DEFAULT_BUDGETS
from ckptkit.core.errors import CkptError
from ckptkit.core.files import File
from ckptkit.core.graph import TensorGraph
from ckptkit.core.tensor import Tensor
from ckptkit.format import strict_json
from ckptkit.rules.expressions import Bound, Environment, Expression, Value
from ckptkit.rules.matcher import Matcher
from ckptkit.rules.template import template

_CONFIGS = ("config.json", "params.json")
_DEEPEST = 32  # names under let that need each other
_LONGEST = 500  # characters of the reasons why one has no value


class Values:
    """The environment of a rule file over a graph. Values are worked out when they are asked for, once."""

    def __init__(
        self,
        graph: TensorGraph,
        let: Mapping[str, tuple[Expression, ...]],
        tables: Mapping[str, Value],
        given: Mapping[str, str | int],
    ) -> None:
        unknown = sorted(set(given) - set(let))
        if unknown:
            raise CkptError(
                "rule-value",
                f"the rules declare no {', '.join(unknown)}",
                None,
                f"declared under let: {', '.join(sorted(let))}" if let else "they declare no names",
            )
        self.graph = graph
        self.let = let
        self.tables = tables
        self.known: dict[str, Value] = {name: _number(text) for name, text in given.items()}
        self.failed: dict[str, CkptError] = {}
        self.depth = 0
        self._config: dict[str, Any] | None = None
        self._counts: dict[str, int] = {}
        self._places: dict[str, dict[tuple[int, ...], int]] = {}

    def value(self, name: str) -> Value:
        if name in self.known:
            return self.known[name]
        if name in self.failed:
            raise self.failed[name]
        if name in self.tables:
            return self.tables[name]
        if name.startswith("config."):
            return self._setting(name.removeprefix("config."))
        if name not in self.let:
            raise CkptError("rule-value", f"{name} has no value here")
        if self.depth > _DEEPEST:
            raise CkptError("rule-value", f"{name} is defined by itself")
        self.depth += 1
        reasons = []
        try:
            for alternative in self.let[name]:
                try:
                    found = alternative.value(self)
                except CkptError as error:
                    reasons.append(error.message)
                    continue
                if found is not None:
                    self.known[name] = found
                    return found
                reasons.append(f"{alternative} is null")
        finally:
            self.depth -= 1
        why = "; ".join(reasons[:3])[:_LONGEST]
        unknown = CkptError("rule-value", f"{name} has no value: {why}", None, f"--let {name}=… states it")
        self.failed[name] = unknown  # asked for once: alternatives of alternatives would multiply
        raise unknown

    def call(self, function: str, text: str, dim: int | None) -> Value:
        if function == "dim":
            assert dim is not None
            return size(self._named(text), text, dim)
        if function == "count":
            if text not in self._counts:
                self._counts[text] = self._count(text)
            return self._counts[text]
        if function == "place":
            if text not in self._places:
                self._places[text] = self._numbered(text)
            return self._places[text]
        there = self._present(text)
        return there if function == "present" else not there

    def _named(self, text: str) -> Tensor:
        found = self.graph.get(text)
        if found is None and "{" in text:
            literal = template(text).literal
            found = self.graph.get(literal) if literal is not None else None
        if found is None:
            raise CkptError("rule-value", f"there is no tensor {text!r} to take a size of")
        return found

    def _present(self, text: str) -> bool:
        found = template(text)
        if found.literal is not None:
            return found.literal in self.graph
        matcher = Matcher(found, self, (*self.let, *self.tables))
        return any(map(matcher.pattern.fullmatch, self.graph))

    def _count(self, text: str) -> int:
        holes = template(text).holes
        if len(holes) != 1 or not holes[0].name:
            raise CkptError("rule-value", f"count needs one hole to count: {text!r}")
        return len(self._beginning(text))

    def _numbered(self, text: str) -> dict[tuple[int, ...], int]:
        """Values of the holes → place, for what begins with the template."""
        if any(hole.kind != "int" for hole in template(text).holes):
            raise CkptError("rule-value", f"place counts over numbers: {text!r}")
        found = sorted(tuple(map(int, values)) for values in self._beginning(text))
        return {values: place for place, values in enumerate(found)}

    def _beginning(self, text: str) -> set[tuple[str, ...]]:
        """What the holes of a template stand for in the names that begin with it."""
        matcher = Matcher(template(text), self, ())
        beginning = re.compile(matcher.pattern.pattern + r"(?:[./].*)?", re.DOTALL)
        found = {match.groups() for match in map(beginning.fullmatch, self.graph) if match}
        if not found:
            raise CkptError("rule-value", f"no name begins with {text}")
        return found

    def _setting(self, path: str) -> Value:
        if self._config is None:
            self._config = _configuration(self.graph.origin.path)
        found: Any = self._config
        for key in path.split("."):
            if not isinstance(found, dict) or key not in found:
                raise CkptError(
                    "rule-value", f"no config.json or params.json beside the checkpoint has {path!r}"
                )
            found = found[key]
        if isinstance(found, dict):
            raise CkptError("rule-value", f"config.{path} is no single value")
        return found


def size(tensor: Tensor, name: str, dim: int) -> int:
    """A size of a tensor; `dim` may count from the end."""
    rank = len(tensor.shape)
    if not -rank <= dim < rank:
        raise CkptError(
            "rule-value", f"{name or 'the tensor'} has shape {list(tensor.shape)} and no dimension {dim}"
        )
    return tensor.shape[dim]


class Sizes(Bound):
    """An environment in which `dim(D)` asks about one tensor."""

    __slots__ = ("tensor",)

    def __init__(self, outer: Environment, bound: Mapping[str, Value], tensor: Tensor) -> None:
        super().__init__(outer, bound)
        self.tensor = tensor

    def call(self, function: str, template: str, dim: int | None) -> Value:
        if function == "dim" and not template and dim is not None:
            return size(self.tensor, "", dim)
        return super().call(function, template, dim)


def _number(text: str | int) -> Value:
    return int(text) if isinstance(text, str) and re.fullmatch(r"-?[0-9]{1,18}", text) else text


def _configuration(path: str) -> dict[str, Any]:
    """The settings beside a checkpoint; those of config.json count before those of params.json."""
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    found: dict[str, Any] = {}
    for name in _CONFIGS:
        place = os.path.join(folder, name)
        if os.path.isfile(place):
            found = {**strict_json.load(File.at(place), DEFAULT_BUDGETS.index_bytes), **found}
    return found

"""What a rule file leaves open, read off a checkpoint that it applies to, so that it can be undone.

A join does not say how large its parts are, nor a reshape what the shape was before; on a real checkpoint both are
known. Where they are the same for everything that a rule matches they are written into it; where they differ, the rule
becomes one for each result. Names under `let` get what they are worth there as a last alternative, and guards that ask
about the checkpoint as a whole are decided.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ckptkit.core.errors import CkptError
from ckptkit.core.graph import TensorGraph
from ckptkit.core.tensor import Tensor
from ckptkit.ops.layout import axis
from ckptkit.rules.compose import Group, Maker
from ckptkit.rules.expressions import Environment, Expression, Value, constant
from ckptkit.rules.expressions import parse as parse_expression
from ckptkit.rules.language import Parsed
from ckptkit.rules.model import Op, Rule, Side
from ckptkit.rules.outcome import RulesError
from ckptkit.rules.rewrite import Proof
from ckptkit.rules.template import Hole, Template, escaped
from ckptkit.rules.values import Values

Place = tuple[str, int, int]  # "sources", "joins", "ops" or "targets"; the side; the operation there
Facts = dict[Place, dict[str, Any]]  # operation → arguments that it lacks


def settled(parsed: Parsed, graph: TensorGraph, given: Mapping[str, str | int]) -> Parsed:
    """The rules with what this graph tells filled in. Raises RulesError unless they apply to it."""
    env = Values(graph, parsed.let, parsed.tables, given)
    proof = Proof(replace(parsed, done=None), graph, env)
    made, findings = proof.run()
    if made is None:
        raise RulesError(findings)
    rules: list[Rule] = []
    for number, rule in enumerate(parsed.rules):
        if number not in proof.off:
            rule = replace(rule, when=proof.guarded.get(number, ()))
            groups = list(proof.groups.get(number, {}).values())
            rules += _settled(proof, number, rule, groups) if groups else [rule]
    let = {name: (*values, *_worth(name, env)) for name, values in parsed.let.items()}
    return replace(parsed, let=let, rules=tuple(rules))


def _worth(name: str, env: Values) -> Iterator[Expression]:
    try:
        value = env.value(name)
    except CkptError:
        return
    if isinstance(value, bool) or value is None:
        return
    if isinstance(value, int):
        yield constant(value)
    elif isinstance(value, str) and '"' not in value:
        yield parse_expression(f'"{value}"')


def _settled(proof: Proof, number: int, rule: Rule, groups: Sequence[Group]) -> list[Rule]:
    """The rule with its open arguments filled in, or one for each group where these differ."""
    makers = [_Watching(proof, number, group) for group in groups]
    for maker in makers:
        maker.make()
    found = [maker.facts for maker in makers]
    if not any(found):
        return [rule]
    if all(facts == found[0] for facts in found):
        return [_filled(rule, found[0])]
    known = {*proof.parsed.let, *proof.parsed.tables, "config"}
    return [_pinned(_filled(rule, m.facts), m.bound, known, proof.env) for m in makers]


class _Watching(Maker):
    """Notes what operations lack."""

    def __init__(self, proof: Proof, number: int, group: Group) -> None:
        super().__init__(proof, number, group)
        self.facts: Facts = {}
        rule = self.rule
        steps: list[tuple[str, int, Sequence[Op]]] = [("joins", 0, rule.joins), ("ops", 0, rule.ops)]
        for part, sides in (("sources", rule.sources), ("targets", rule.targets)):
            steps += [(part, place, side.ops) for place, side in enumerate(sides)]
        self.places = {id(op): (part, side, at) for part, side, ops in steps for at, op in enumerate(ops)}

    def note(self, op: Op, facts: dict[str, Any]) -> None:
        """Keep what is not stated; a step that runs several times with different facts stays open."""
        place = self.places[id(op)]
        if facts and self.facts.setdefault(place, facts) != facts:
            self.facts[place] = {}

    def join(self, step: Op, parts: Sequence[Tensor], args: Mapping[str, Any]) -> Tensor:
        facts: dict[str, Any] = {}
        if step.name == "concat" and "sizes" not in step.args:
            sizes = [part.shape[axis(part, args["dim"])] for part in parts]
            facts["sizes"] = "equal" if len(set(sizes)) == 1 else _constants(sizes)
        if step.name == "concat" and "over" in step.args and "parts" not in step.args:
            facts["parts"] = constant(len(parts))
        self.note(step, facts)
        return super().join(step, parts, args)

    def step(self, op: Op, tensor: Tensor, args: Mapping[str, Any]) -> Tensor:
        facts: dict[str, Any] = {}
        if op.name in ("reshape", "cast") and "from" not in op.args:
            facts["from"] = tensor.dtype if op.name == "cast" else _constants(tensor.shape)
        if any(item.tree[0] != "value" for item in op.args.get("order", ())):
            facts["order"] = _constants(args["order"])
        self.note(op, facts)
        return super().step(op, tensor, args)


def _constants(numbers: Sequence[int]) -> tuple[Expression, ...]:
    return tuple(map(constant, numbers))


def _filled(rule: Rule, facts: Facts) -> Rule:
    def ops(part: str, place: int, found: tuple[Op, ...]) -> tuple[Op, ...]:
        return tuple(
            Op(op.name, {**op.args, **facts.get((part, place, at), {})}) for at, op in enumerate(found)
        )

    def sides(part: str, found: tuple[Side, ...]) -> tuple[Side, ...]:
        return tuple(Side(side.template, ops(part, place, side.ops)) for place, side in enumerate(found))

    return replace(
        rule,
        sources=sides("sources", rule.sources),
        targets=sides("targets", rule.targets),
        joins=ops("joins", 0, rule.joins),
        ops=ops("ops", 0, rule.ops),
    )


def _pinned(rule: Rule, bound: Mapping[str, Value], known: set[str], env: Environment) -> Rule:
    """The rule for these values of its holes alone."""

    def pinned(template: Template) -> Template:
        parts = [
            Template("", (part,)).fill(bound, env)
            if isinstance(part, Hole) and part.expression.names - known <= bound.keys()
            else part
            for part in template.parts
        ]
        text = "".join(escaped(part) if isinstance(part, str) else f"{{{part.text}}}" for part in parts)
        return Template(text, tuple(parts), template.domains)

    return replace(
        rule,
        when=(),  # it held for these values
        sources=tuple(Side(pinned(side.template), side.ops) for side in rule.sources),
        targets=tuple(Side(pinned(side.template), side.ops) for side in rule.targets),
    )

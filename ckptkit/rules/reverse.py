"""Rules backwards: a rule file for the other direction, or every reason why there is none.

Names turn around by exchanging the sides (the arithmetic of a hole is solved when matching), operations by
their inverses. Questions about the source (`dim`, `count`, `present`) are asked of the name that it becomes.
What is dropped cannot come back; it is absent from the result of the reversed rules.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ckptkit.core.errors import CkptError
from ckptkit.core.findings import Finding
from ckptkit.rules.expressions import Call, Expression, Value
from ckptkit.rules.expressions import parse as parse_expression
from ckptkit.rules.joins import JOINS
from ckptkit.rules.language import Parsed
from ckptkit.rules.matcher import Matcher
from ckptkit.rules.model import Made, Op, Rule, Side
from ckptkit.rules.operations import OPERATIONS, Irreversible
from ckptkit.rules.outcome import RulesError
from ckptkit.rules.template import Template, escaped, template

_UNTOLD = ""  # instead of a name where the result does not tell what was asked of the source
_STAND_IN = 917_531_000  # numbers that stand for the holes of a question while it is matched

# Operations after which every dimension has the size that it had.
_SAME_SHAPE = frozenset(
    ("heads", "blocks", "flip", "part", "cast", "add", "subtract", "multiply", "divide", "neg", "exp", "log", "sqrt",
     "square", "reciprocal", "abs")
)  # fmt: skip
_WIDER = {
    "float16": ("float32", "float64"),
    "bfloat16": ("float32", "float64"),
    "float32": ("float64",),
    "float64": (),
}


def backwards(parsed: Parsed, approximate: bool) -> Parsed:
    """The rules that undo these. Raises RulesError `rule-lossy`, `rule-approximate`."""
    return _Reverser(parsed, approximate).run()


class _Reverser:
    def __init__(self, parsed: Parsed, approximate: bool) -> None:
        self.parsed = parsed
        self.approximate = approximate
        self.known = {*parsed.let, *parsed.tables, "config"}
        self.copies = self.shared()

    def run(self) -> Parsed:
        problems: list[Finding] = []
        if self.parsed.unwrap:
            message = f"where {' and '.join(self.parsed.unwrap)} stood in names is not recorded"
            problems.append(Finding("rule-lossy", "error", self.parsed.name, message))
        rules: list[Rule] = []
        for rule in self.parsed.rules:
            try:
                rules += self.rule(rule)
            except Irreversible as reason:
                problems.append(
                    Finding("rule-lossy", "error", rule.where, f"{rule} cannot be undone: {reason}")
                )
            except _Approximate as reason:
                hint = "--approximate accepts rounding"
                message = f"{rule} can only be undone up to rounding: {reason}"
                problems.append(Finding("rule-approximate", "error", rule.where, message, hint))
        if problems:
            raise RulesError(problems)
        about = f"{self.parsed.about} (reversed)" if self.parsed.about else ""
        let = {name: self.alternatives(values) for name, values in self.parsed.let.items()}
        name = f"{self.parsed.name} (reversed)"
        return replace(self.parsed, name=name, about=about, let=let, done=None, rules=tuple(rules))

    def rule(self, rule: Rule) -> list[Rule]:
        kept = replace(rule, when=tuple(self.guard(guard) for guard in rule.when))
        if rule.kind == "drop":
            if rule.other is None:
                return []
            return [replace(kept, kind="tie", sources=(), targets=rule.sources)]
        if rule.kind == "tie":
            return [replace(kept, kind="drop", sources=rule.targets, targets=())]
        if rule.kind == "fill":
            assert rule.made is not None
            made = Made(rule.made.value)
            return [replace(kept, kind="drop", sources=rule.targets, targets=(), made=made, other=None)]
        if rule.kind == "shared":
            return []
        first = self.copies.get(id(rule))
        if first is not None:
            if not rule.renames:
                raise Irreversible("it takes a shared tensor, and does more than rename it")
            return [replace(kept, kind="drop", sources=rule.targets, targets=(), other=first)]
        return self.move(kept)

    def move(self, rule: Rule) -> list[Rule]:
        sources, more = rule.targets, []
        if len(rule.targets) > 1 and not rule.splits:
            main, *copies = rule.targets
            if any(side.ops for side in rule.targets):
                raise Irreversible("its targets are changed differently")
            sources = (main,)
            more = [
                Rule("drop", rule.where, (side,), when=rule.when, optional=rule.optional, other=main.template)
                for side in copies
            ]
        joined, _ = rule.over
        lost = {name for side in rule.sources for name in side.template.names} - self.known - joined
        for side in sources:
            missing = sorted(lost - side.template.names)
            if missing:
                raise Irreversible(f"the target does not tell {', '.join(missing)}")
        back = replace(
            rule,
            sources=tuple(self.side(side) for side in sources),
            targets=tuple(self.side(side) for side in rule.sources),
            joins=tuple(self.join(step) for step in reversed(rule.splits)),
            ops=self.ops(rule.ops),
            splits=tuple(self.split(step, rule) for step in reversed(rule.joins)),
        )
        self.solvable(back)
        return [back, *more]

    def solvable(self, rule: Rule) -> None:
        """Raise Irreversible unless the new sources can be matched, as far as that shows without a checkpoint."""
        for side in rule.sources:
            try:
                Matcher(side.template, _Nothing(), self.known)
            except CkptError as error:
                if error.code == "rule-invalid":
                    raise Irreversible(error.message) from None

    def side(self, side: Side) -> Side:
        return Side(side.template, self.ops(side.ops))

    def ops(self, ops: tuple[Op, ...]) -> tuple[Op, ...]:
        found = []
        for op in reversed(ops):
            row = OPERATIONS[op.name]
            if op.name not in _SAME_SHAPE and any(map(_of_itself, _expressions(op))):
                raise Irreversible(f"sizes in {op} are those of the tensor before it")
            name, args = row.inverse(op.args)
            exact = row.exact == "exact" or (op.name == "cast" and _widens(op.args))
            if not exact and not self.approximate:
                raise _Approximate(str(op))
            if "ops" in args:
                args["ops"] = self.ops(args["ops"])
            found.append(Op(name, args))
        return tuple(found)

    def join(self, step: Op) -> Op:
        """What undoes a split."""
        if any(map(_of_itself, _expressions(step))):
            raise Irreversible(f"sizes in {step} are those of the tensor before it")
        if step.name == "unstack":
            return Op("stack", step.args)
        return Op("concat", {**step.args, "sizes": step.args.get("sizes", "equal")})

    def split(self, step: Op, rule: Rule) -> Op:
        """What undoes a join."""
        inverse = JOINS[step.name].inverse
        if not inverse:
            raise Irreversible(f"{step.name} cannot be undone")
        if step.name == "concat":
            if "sizes" not in step.args:
                raise Irreversible("the sizes of the parts are not stated (sizes: equal, or a list)")
            over = step.args.get("over")
            listed = any(
                hole.name == over and hole.kind in ("one", "map")
                for s in rule.sources
                for hole in s.template.holes
            )
            if over is not None and not listed and "parts" not in step.args:
                raise Irreversible("the number of parts is not stated (parts)")
        return Op(inverse, step.args)

    # questions about the source

    def alternatives(self, values: tuple[Expression, ...]) -> tuple[Expression, ...]:
        found = []
        for value in values:
            try:
                found.append(self.asked(value))
            except Irreversible:
                continue  # the value is to be given, or has another alternative
        return tuple(found)

    def guard(self, guard: Expression) -> Expression:
        return self.asked(guard)

    def asked(self, value: Expression) -> Expression:
        """The expression with its questions asked of the new names."""
        text = value.text
        for call in sorted(value.calls, key=lambda call: -call.start):
            text = text[: call.start] + self.question(call) + text[call.stop :]
        return parse_expression(text) if value.calls else value

    def question(self, call: Call) -> str:
        moves = [(side, rule) for rule in self.parsed.rules if rule.kind == "move" for side in rule.sources]
        if call.function == "count":
            asked = [move for move in moves if _overlap(call.template, move[0].template.text)]
            told = [self.counted(call, *move) for move in asked]
            always = {new for new, (_, rule) in zip(told, asked, strict=True) if not rule.when}
            found = told[0] if told and None not in told and len(always) < 2 else None
        else:
            names = {new for move in moves if (new := self.renamed(call, *move)) is not None}
            found = names.pop() if len(names) == 1 else None
            if names or found == _UNTOLD:
                raise Irreversible(f"{call.function}({call.template}) has no one answer in the result")
        if found is not None:
            return f'"{found}"' if set(found) & set("(), '") else found
        if self.of_target(call):
            return call.template
        raise Irreversible(f"{call.function}({call.template}) cannot be asked of the result")

    def of_target(self, call: Call) -> bool:
        """Whether the question is about a name that the rules make, not about one of the source."""
        for rule in self.parsed.rules:
            for side in rule.targets:
                if side.template.text.startswith(call.template):
                    return True
                try:
                    literal = template(call.template).literal
                    if literal and Matcher(side.template, _Nothing(), self.known).match(literal) is not None:
                        return True
                except CkptError:
                    continue
        return False

    def renamed(self, call: Call, side: Side, rule: Rule) -> str | None:
        """The name under which a tensor can be asked about; None where the rule does not take it."""
        several = bool(rule.joins or rule.splits)
        target = rule.targets[0].template
        if call.function == "dim":
            ops = (*side.ops, *rule.ops, *rule.targets[0].ops)
            several = several or not all(op.name in _SAME_SHAPE for op in ops)
            if call.template == side.template.text and several:
                return _UNTOLD
        if call.template == side.template.text:
            return target.text
        asked = template(call.template)
        stand_ins = {hole.name: _STAND_IN + n for n, hole in enumerate(asked.holes) if hole.name}
        try:
            bound = Matcher(side.template, _Nothing(), self.known).match(asked.fill(stand_ins, _Nothing()))
            if bound is None:
                return None
            if several:
                return _UNTOLD
            new = escaped(target.fill(bound, _Nothing()))
        except CkptError:
            return None
        for name, number in stand_ins.items():
            if str(number) not in new:
                return _UNTOLD
            new = new.replace(str(number), f"{{{name}}}")
        return new

    def counted(self, call: Call, side: Side, rule: Rule) -> str | None:
        """The beginning of the target that has the same number as the beginning of the source."""
        text = side.template.text
        if text != call.template and not text.startswith((call.template + ".", call.template + "/")):
            return None
        hole = template(call.template).holes[0].name
        if any(hole in guard.names or f"{{{hole}}}" in guard.text for guard in rule.when):
            return None  # it takes only some of them
        beginning = ""
        for part in rule.targets[0].template.parts:
            if isinstance(part, str):
                beginning += escaped(part)
            elif hole in part.expression.names and part.kind in ("int", "expression"):
                return f"{beginning}{{{hole}}}"
            else:
                return None
        return None

    def shared(self) -> dict[int, Template]:
        """For the second and later rules that take a shared tensor: the target of the first."""
        found: dict[int, Template] = {}
        for shared in self.parsed.rules:
            if shared.kind != "shared":
                continue
            text = shared.sources[0].template.text
            takers = [
                rule for rule in self.parsed.rules
                if rule.kind == "move" and any(side.template.text == text for side in rule.sources)
            ]  # fmt: skip
            takers.sort(key=lambda rule: not rule.renames)
            found.update((id(rule), takers[0].targets[0].template) for rule in takers[1:])
        return found


def _expressions(op: Op) -> Iterator[Expression]:
    for value in op.args.values():
        yield from (
            item for item in (value if isinstance(value, tuple) else (value,)) if isinstance(item, Expression)
        )


def _of_itself(value: Expression) -> bool:
    """Whether it asks for a size of the tensor that an operation works on."""
    trees = [value.tree]
    while trees:
        tree = trees.pop()
        if tree[:3] == ("call", "dim", ""):
            return True
        trees += [part for part in tree if isinstance(part, tuple)]
    return False


def _overlap(beginning: str, name: str) -> bool:
    """Whether names of a template can begin so, as far as their segments tell."""
    for wanted, found in zip(_segments(beginning), _segments(name), strict=False):
        if re.search(r"\{rest|[.*/]", found):
            return True  # a hole of several segments
        if "{" not in wanted and not re.fullmatch(_loosely(found), wanted):
            return False
        if "{" not in found and not re.fullmatch(_loosely(wanted), found):
            return False
    return True


def _segments(text: str) -> list[str]:
    return re.split(r"[./](?![^{}]*\})", text)


def _loosely(segment: str) -> str:
    """A pattern for the texts that a segment can stand for; of holes only listed texts are told apart."""
    pattern = ""
    for part in re.split(r"(\{[^{}]*\})", segment):
        kind = part[1:-1].partition(":")[2] if part.startswith("{") else ""
        if kind:
            pattern += "(?:" + "|".join(map(re.escape, kind.split("|"))) + ")"
        else:
            pattern += ".*" if part.startswith("{") else re.escape(part)
    return pattern


class _Approximate(Exception):
    """An operation that can only be undone up to rounding."""


@dataclass(frozen=True, slots=True)
class _Nothing:
    """An environment without a checkpoint."""

    def value(self, name: str) -> Value:
        raise CkptError("rule-value", f"{name} is not known without a checkpoint")

    def call(self, function: str, template: str, dim: int | None) -> Value:
        raise CkptError("rule-value", f"{function}({template}) is not known without a checkpoint")


def _widens(args: Mapping[str, Any]) -> bool:
    return "from" in args and args["to"].name in _WIDER.get(args["from"].name, ())

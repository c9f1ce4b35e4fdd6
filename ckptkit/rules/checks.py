"""What must hold within one rule before any checkpoint is seen: names that mean something, joins that add up."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NoReturn

from ckptkit.core.errors import CkptError
from ckptkit.rules.expressions import Expression
from ckptkit.rules.model import Op, Rule, Side
from ckptkit.rules.template import Hole, Template

Known = frozenset[str] | set[str]  # names under let and tables, and config


def checked(rule: Rule, known: Known) -> Rule:
    """The rule with its bare holes declared. Raises CkptError `rule-invalid`."""
    if (
        rule.renames
        and not rule.when
        and all(side.template.literal for side in (*rule.sources, *rule.targets))
    ):
        return rule  # one name for another: there may be a hundred thousand of these
    rule, declared = _declared(rule, known)
    sides = (*rule.sources, *rule.targets)
    for side in sides:
        _texts(side.template, declared)
    if rule.kind == "move":
        _sources(rule, known)
        _steps(rule.joins, rule.sources, rule.joins[:1], "the first", "sources")
        _steps(rule.splits, rule.targets, rule.splits[-1:], "the last", "targets")
    _given(rule, known)
    holes = {name for side in sides for name in side.template.names}
    holes |= rule.other.names if rule.other else set()
    named(_expressions(rule), holes | known)
    return rule


def named(expressions: Iterable[Expression], known: Known) -> None:
    """Raise CkptError `rule-invalid` for a name that nothing gives a value."""
    for expression in expressions:
        for name in sorted(expression.names - known):
            where = f", in {expression}" if expression.text != name else ""
            _fail(f"nothing gives {name!r} a value{where}", _nearest(name, known))


def _fail(message: str, hint: str | None = None) -> NoReturn:
    raise CkptError("rule-invalid", message, None, hint)


def _nearest(name: str, known: Known) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, sorted(known - {"config"}), 2, 0.5)
    return f"meant: {' or '.join(near)}" if near else f"a hole of the other side, or let: {{{name}: …}}"


def _declared(rule: Rule, known: Known) -> tuple[Rule, dict[str, Hole]]:
    templates = [side.template for side in (*rule.sources, *rule.targets)]
    declared: dict[str, Hole] = {}
    for found in templates + ([rule.other] if rule.other else []):
        for name, hole in found.declarations().items():
            if name in known:
                _fail(f"the hole {name!r} has the name of something under let or tables")
            before = declared.setdefault(name, hole)
            if (before.kind, before.options, before.width) != (hole.kind, hole.options, hole.width):
                _fail(f"the hole {name!r} is declared twice, differently", "once declared, it is written {x}")
    sources, targets = (
        tuple(replace(side, template=side.template.declared(declared)) for side in sides)
        for sides in (rule.sources, rule.targets)
    )
    other = rule.other.declared(declared) if rule.other else None
    return replace(rule, sources=sources, targets=targets, other=other), declared


def _texts(found: Template, declared: dict[str, Hole]) -> None:
    """A map from one of a few texts has a text for each of them and for nothing else."""
    for hole in found.holes:
        of = declared.get(hole.name)
        if hole.kind != "map" or of is None or of.kind != "one":
            continue
        for option in of.options:
            if option not in hole.options:
                _fail(f"{{{hole.text}}} says nothing for {option!r}", f"{option}=…, or {option} if it stays")
        for option in hole.options:
            if option not in of.options:
                _fail(f"{{{hole.name}}} is never {option!r}", f"it is one of {', '.join(of.options)}")


def _given(rule: Rule, known: Known) -> None:
    joined, parts = rule.over
    bound = {name for side in rule.sources for name in side.template.names} - joined | parts
    if rule.made is not None:
        bound |= set(rule.made.over)
    if rule.kind in ("tie", "fill") and rule.other is not None:
        bound |= rule.other.names
    if rule.kind in ("drop", "shared"):
        uses = rule.other.names if rule.other else frozenset[str]()
    else:
        uses = frozenset(name for side in rule.targets for name in side.template.names)
    for name in sorted(uses - bound - known):
        _fail(f"nothing gives the hole {name!r} a value", _nearest(name, bound | known))


def _sources(rule: Rule, known: Known) -> None:
    joined, _ = rule.over
    if len(rule.sources) > 1 and not any("over" not in step.args for step in rule.joins):
        _fail("several sources need concat, stack or another way to become one tensor")
    holes = [side.template.names - known - joined for side in rule.sources]
    if any(names != holes[0] for names in holes):
        _fail("the sources of one rule have different holes")
    if rule.splits and len(rule.targets) > 1 and all("over" in step.args for step in rule.splits):
        _fail("several targets need a split without over")


def _steps(steps: Sequence[Op], sides: Sequence[Side], end: Sequence[Op], which: str, what: str) -> None:
    """Joins with their sources, or splits with their targets; `end` is the one that can speak of the list."""
    for step in steps:
        over = step.args.get("over")
        if over is None:
            if step not in end or sum("over" not in other.args for other in steps) > 1:
                _fail(
                    f"only {which} of several steps can speak of the list of {what}; the others say over what"
                )
            if len(sides) < 2:
                _fail(
                    f"{step.name} needs several {what}",
                    "a list of names, or over: a hole that lists them",
                )
            count: int | None = len(sides)
        else:
            count = _options(str(over), sides)
        sizes = step.args.get("sizes")
        if isinstance(sizes, tuple) and count is not None and len(sizes) != count:
            _fail(f"{step.name} has {len(sizes)} sizes for {count} {what}")


def _options(over: str, sides: Sequence[Side]) -> int | None:
    """How many values a hole has that a step runs over; None for numbers."""
    found = [hole for side in sides for hole in side.template.holes if over in hole.expression.names]
    if not found:
        holes = sorted({name for side in sides for name in side.template.names})
        _fail(f"no hole {over!r} to run over", f"holes there: {', '.join(holes)}" if holes else None)
    if any(hole.kind in ("segment", "rest") for hole in found):
        _fail(f"the order of {{{found[0].text}}} is not known", "list the texts: {x:q|k|v}")
    return next(
        (len(hole.options) for hole in found if hole.kind in ("one", "map") and hole.name == over), None
    )


def _expressions(rule: Rule) -> Iterator[Expression]:
    """Every expression outside names."""
    yield from rule.when
    if rule.made is not None:
        yield from (*(rule.made.shape or ()), *rule.made.over.values())
    for op in (*rule.joins, *rule.ops, *rule.splits):
        yield from _arguments(op)
    for side in (*rule.sources, *rule.targets):
        for op in side.ops:
            yield from _arguments(op)


def _arguments(op: Op) -> Iterator[Expression]:
    for value in op.args.values():
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, Expression):
                yield item
            elif isinstance(item, Op):
                yield from _arguments(item)

"""Several rule files one after the other, as `--rules` gives them, and the way of each tensor through all of them."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from ckptkit.core.errors import CkptError
from ckptkit.core.graph import TensorGraph
from ckptkit.rules.outcome import Rewrite, RulesError, Trace
from ckptkit.rules.ruleset import Rules

AUTO = "auto"


def follow(
    graph: TensorGraph,
    rules: Sequence[str | Rules],
    *,
    let: Mapping[str, str | int] | None = None,
    reverse: bool = False,
    approximate: bool = False,
    like: TensorGraph | None = None,
) -> Rewrite:
    """The graph after the rules, in order; with `reverse` undone, the last one first.

    Args:
        rules: paths of rule files, names of presets, `auto`, `strip:PREFIX`, `add:PREFIX`, or Rules.
        let: values for names that one of them declares.
        approximate: undo operations that can only be undone up to rounding.
        like: what the result is meant to be like, which is not checked: the last `auto` finds the rules that give it,
            and what rules to be undone do not state, such as the sizes of joined parts, is read off it.

    Raises CkptError as `Rules.load`, `Rules.reversed`, `Rules.apply` and `recognised` do.
    """
    if reverse and not rules:
        raise CkptError(
            "usage", "there are no rules to reverse", None, "--rules FILE or PRESET with --reverse"
        )
    if approximate and not reverse:
        hint = "--reverse with --approximate"
        raise CkptError("usage", "only what is reversed is approximate", None, hint)
    given = dict(let or {})
    declared: set[str] = set()
    result = Rewrite(graph, {name: Trace((name,)) for name in graph})
    for place, name in enumerate(() if reverse else rules):
        target = like if place == len(rules) - 1 else None
        for rule in loaded(name, result.graph, given, target):
            declared.update(rule.parsed.let)
            result = after(result, rule.apply(result.graph))
    if reverse:
        forwards = [rule for name in rules for rule in loaded(name, graph, given, None, reverse=True)]
        declared.update(*(rule.parsed.let for rule in forwards))
        for rule in backwards(forwards, approximate, like):
            result = after(result, rule.apply(result.graph))
    unknown = sorted(set(given) - declared)
    if unknown:
        names = ", ".join(unknown)
        raise CkptError(
            "rule-value", f"no rules declare {names}", None, "names are declared under let in a rule file"
        )
    return result


def loaded(
    name: str | os.PathLike[str] | Rules,
    graph: TensorGraph,
    given: Mapping[str, str | int],
    target: TensorGraph | None = None,
    *,
    reverse: bool = False,
) -> tuple[Rules, ...]:
    """What a name stands for, with those of the values given that it declares. `auto` may be none, or several."""
    if isinstance(name, Rules):
        found: tuple[Rules, ...] = (name,)
    elif os.fspath(name) != AUTO:
        found = (Rules.load(name),)
    elif reverse:
        raise CkptError("usage", "auto finds the direction by itself", None, "leave --reverse out")
    else:
        from ckptkit.rules.recognise import recognised

        found = recognised(graph, given, target)
    return tuple(rules.given(given) for rules in found)


def backwards(rules: Sequence[Rules], approximate: bool, like: TensorGraph | None = None) -> Iterator[Rules]:
    """The rules that undo these, the last one first; `like` is what all of them were applied to, or would be."""
    before: list[TensorGraph | None] = [like]
    for rule in rules[:-1]:
        graph = before[-1]
        made = None if graph is None else rule.applied(graph)[0]
        before.append(None if made is None else made.graph)
    for rule, graph in zip(reversed(rules), reversed(before), strict=True):
        yield _undone(rule, approximate, graph)


def _undone(rules: Rules, approximate: bool, on: TensorGraph | None) -> Rules:
    """Backwards, on a graph that they may apply to: one that has lost what they drop is still of the same sizes."""
    if on is not None:
        try:
            return rules.reversed(approximate=approximate, on=on)
        except RulesError as error:
            unfit = error.findings
            try:
                return rules.reversed(approximate=approximate)
            except RulesError as lossy:
                raise RulesError((*lossy.findings, *unfit)) from None
    return rules.reversed(approximate=approximate)


def after(first: Rewrite, second: Rewrite) -> Rewrite:
    """Both in one: the sources are those of the first."""
    trace = {}
    for name, step in second.trace.items():
        if len(step.sources) == 1 and not step.operations:
            before = first.trace[step.sources[0]]
            trace[name] = before._replace(rule=before.rule or step.rule)
            continue
        befores = [first.trace[source] for source in step.sources]
        sources = tuple(dict.fromkeys(source for before in befores for source in before.sources))
        operations = tuple(dict.fromkeys(op for before in befores for op in before.operations))
        trace[name] = Trace(sources, step.rule, (*operations, *step.operations))
    dropped = tuple(source for name in second.dropped for source in first.trace[name].sources)
    findings = (*first.findings, *second.findings)
    checks = (*first.checks, *second.checks)
    return replace(second, trace=trace, dropped=(*first.dropped, *dropped), findings=findings, checks=checks)

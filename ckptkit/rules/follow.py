"""Several rule files one after the other, as `--rules` gives them, and the way of each tensor through all of them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ckptkit.core.errors import CkptError
from ckptkit.core.graph import TensorGraph
from ckptkit.rules.outcome import Rewrite, Trace
from ckptkit.rules.ruleset import Rules

AUTO = "auto"


def follow(
    graph: TensorGraph,
    rules: Sequence[str | Rules],
    *,
    let: Mapping[str, str | int] | None = None,
    reverse: bool = False,
    approximate: bool = False,
) -> Rewrite:
    """The graph after the rules, in order; with `reverse` undone, the last one first.

    Args:
        rules: paths of rule files, names of presets, `auto`, `strip:PREFIX`, `add:PREFIX`, or Rules.
        let: values for names that one of them declares.
        approximate: undo operations that can only be undone up to rounding.

    Raises CkptError as `Rules.load`, `Rules.reversed` and `Rules.apply` do.
    """
    given = dict(let or {})
    result = Rewrite(graph, {name: Trace((name,)) for name in graph})
    for name in reversed(rules) if reverse else rules:
        loaded = _loaded(name, result.graph, given)
        declared = loaded.parsed.let
        mine = {key: value for key, value in given.items() if key in declared}
        applied = (loaded.reversed(approximate=approximate) if reverse else loaded).apply(
            result.graph, **mine
        )
        result = _after(result, applied)
        for key in mine:
            given.pop(key)
    if given:
        names = ", ".join(sorted(given))
        raise CkptError(
            "rule-value", f"no rules declare {names}", None, "names are declared under let in a rule file"
        )
    return result


def _loaded(name: str | Rules, graph: TensorGraph, given: Mapping[str, str | int]) -> Rules:
    if isinstance(name, Rules):
        return name
    if name == AUTO:
        from ckptkit.rules.recognise import recognised

        return recognised(graph, given)
    return Rules.load(name)


def _after(first: Rewrite, second: Rewrite) -> Rewrite:
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
    return replace(second, trace=trace, dropped=(*first.dropped, *dropped), findings=findings)

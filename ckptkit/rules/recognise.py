"""Choosing a preset by the names of a checkpoint."""

from collections.abc import Mapping

from ckptkit.core.errors import CkptError
from ckptkit.core.graph import TensorGraph
from ckptkit.rules.ruleset import Rules, presets


def candidates(
    graph: TensorGraph, given: Mapping[str, str | int], target: TensorGraph | None = None
) -> list[tuple[str, Rules]]:
    """The presets, forwards and backwards, that account for every tensor; with a target, those that give it."""
    found = []
    for name in presets():
        rules = Rules.preset(name)
        for label, way in _ways(name, rules):
            mine = {key: value for key, value in given.items() if key in way.parsed.let}
            findings = way.check(graph, target, **mine)
            codes = {finding.code for finding in findings if finding.severity != "warning"}
            if codes <= {"rule-value"}:  # a value that the user may state
                found.append((label, way))
    return found


def recognised(
    graph: TensorGraph, given: Mapping[str, str | int], target: TensorGraph | None = None
) -> Rules:
    """The one preset that fits. Raises CkptError `rules-unknown`, `rules-ambiguous` (the hint lists them)."""
    found = candidates(graph, given, target)
    if len(found) == 1:
        return found[0][1]
    if not found:
        raise CkptError(
            "rules-unknown",
            "no preset accounts for every tensor",
            graph.origin.path,
            "ckptkit rules list names the presets; ckptkit rules check PRESET --on SRC tells what one lacks",
        )
    ready = "\n".join(f"--rules {label}" for label, _ in found)
    raise CkptError("rules-ambiguous", f"{len(found)} presets fit", graph.origin.path, ready)


def _ways(name: str, rules: Rules) -> list[tuple[str, Rules]]:
    ways = [(name, rules)] if _tells(rules) else []
    try:
        back = rules.reversed()
    except CkptError:
        return ways
    return [*ways, (f"{name} --reverse", back)] if _tells(back) else ways


def _tells(rules: Rules) -> bool:
    """Whether the names that the rules take are particular: putting a prefix before all names fits everything."""
    return not any(
        [hole.kind for hole in side.template.holes] == ["rest"] and len(side.template.parts) == 1
        for rule in rules.parsed.rules
        for side in rule.sources
    )

"""Choosing a preset by the names of a checkpoint, and of what it should become if that is given.

A preset, forwards or backwards, is recognised when it accounts for every tensor and changes something; with a target,
when it also gives the target's names and shapes. One that keeps other names as they are is meant only where none
accounts for all, and without a target only if it does no more than rename. Which can do so at all is told from the
kinds of names alone, their digits left out.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ckptkit.core.errors import CkptError
from ckptkit.core.graph import TensorGraph
from ckptkit.core.words import plural
from ckptkit.rules import coupled
from ckptkit.rules.matching import Index, kind
from ckptkit.rules.ruleset import Rules, compare, presets
from ckptkit.rules.values import Values

_NEAR = 3  # presets named when none fits
_NEAR_ENOUGH = 0.5  # share of the tensors that a preset must account for to be named


class Candidate(NamedTuple):
    """Rules that fit, and what follows `--rules` to name them."""

    label: str
    rules: tuple[Rules, ...]


def candidates(
    graph: TensorGraph, given: Mapping[str, str | int], target: TensorGraph | None = None
) -> list[Candidate]:
    """The presets that account for every tensor; with a target, those that give it, alone or in two steps."""
    return _Search(graph, given, target).run()


def recognised(
    graph: TensorGraph, given: Mapping[str, str | int], target: TensorGraph | None = None
) -> tuple[Rules, ...]:
    """The rules of the one preset that fits; () where the names are those of the target already.

    Raises CkptError `rules-unknown` (the hint names the nearest), `rules-ambiguous` (the hint lists them).
    """
    if target is not None and all(finding.severity != "error" for finding in compare(graph, target)):
        return ()
    search = _Search(graph, given, target)
    found = search.run() or search.nearest()
    if len(found) == 1:
        return found[0].rules
    path = graph.origin.path
    if not found:
        what = "no preset accounts for every tensor"
        if target is not None:
            what += f" and gives those of {target.origin.path}"
        hint = "\n".join(search.near()) or "ckptkit rules list names the presets"
        raise CkptError("rules-unknown", what, path, hint)
    ready = "\n".join(f"--rules {candidate.label}" for candidate in found)
    more = "" if target is not None else "; a target decides, or one of these"
    raise CkptError("rules-ambiguous", f"{len(found)} presets fit{more}", path, ready)


@dataclass(frozen=True, slots=True)
class _Near:
    """Rules that nearly fit: the share of tensors accounted for, and what is wrong."""

    share: float
    label: str
    problem: str


class _Search:
    def __init__(
        self, graph: TensorGraph, given: Mapping[str, str | int], target: TensorGraph | None
    ) -> None:
        self.graph = graph
        self.given = given
        self.target = target
        self.failed: list[_Near] = []
        self.unsure: list[Rules] = []  # fit, if a value is stated

    def run(self) -> list[Candidate]:
        ways = list(_ways())
        found = [Candidate(label, (rules,)) for label, rules in self.fitting(self.graph, ways, self.target)]
        if self.target is not None:
            found = [candidate for candidate in found if candidate.rules[0] not in self.unsure] or found
        whole = [candidate for candidate in found if not candidate.rules[0].parsed.keep_others]
        if self.target is None:
            return whole or [candidate for candidate in found if _renames(candidate.rules[0])]
        if found:
            return whole or found
        told = self.failed
        for label, rules in self.fitting(self.graph, ways, None):
            made = rules.applied(self.graph, **self.mine(rules))[0]
            if made is not None:
                pairs = self.fitting(made.graph, ways, self.target)
                found += [
                    Candidate(f"{label} --rules {more}", (rules, then))
                    for more, then in pairs
                    if then not in self.unsure
                ]
        self.failed = told
        return found

    def nearest(self) -> list[Candidate]:
        """Where nothing gives the target exactly: of what fits the source, that which gives most of its names."""
        if self.target is None:
            return []
        shared: list[tuple[int, Candidate]] = []
        for candidate in _Search(self.graph, self.given, None).run():
            made = candidate.rules[0].applied(self.graph, **self.mine(candidate.rules[0]))[0]
            if made is not None:
                shared.append((len(made.graph.keys() & self.target.keys()), candidate))
        most = max((count for count, _ in shared), default=0)
        return [candidate for count, candidate in shared if count == most > 0]

    def fitting(
        self, graph: TensorGraph, ways: list[tuple[str, Rules]], target: TensorGraph | None
    ) -> Iterator[tuple[str, Rules]]:
        """Those of the ways that fit; notes how near the others came."""
        kinds: dict[str, list[str]] = {}
        for name in graph:
            kinds.setdefault(kind(name), []).append(name)
        for label, rules in ways:
            missed = self.missed(rules, graph, kinds)
            if missed and not rules.parsed.keep_others:
                left = sum(len(kinds[key]) for key in missed)
                problem = f"leaves {plural(left, 'tensor')}, such as {kinds[missed[0]][0]}"
                self.failed.append(_Near(1 - left / len(graph), label, problem))
            if missed:
                continue
            made, findings = rules.applied(graph, **self.mine(rules))
            if made is not None:
                if dict(made.graph) == dict(graph):
                    continue  # nothing to do, so not meant
                findings = compare(made.graph, target) if target is not None else []
            errors = [finding for finding in findings if finding.severity == "error"]
            if {finding.code for finding in errors} <= {"rule-value"}:  # a value that the user may state
                if errors:
                    self.unsure.append(rules)
                yield label, rules
            elif not rules.parsed.keep_others:
                self.failed.append(_Near(1, label, f"{errors[0].message} ({errors[0].where})"))

    def missed(self, rules: Rules, graph: TensorGraph, kinds: Mapping[str, list[str]]) -> list[str]:
        """Kinds of names that none of the rules can match."""
        parsed = rules.parsed
        if parsed.unwrap or parsed.done is not None:
            return []
        known = {*parsed.let, *parsed.tables, "config"}
        index = Index()
        try:
            env = Values(graph, parsed.let, parsed.tables, self.mine(rules))
            for number, rule in enumerate(parsed.rules):
                for place, side in enumerate(rule.sources):
                    index.add(number, place, side.template, env, known)
        except CkptError:
            return []  # the proof will tell
        missed = [
            key
            for key, names in kinds.items()
            if not index.able(key) and not any(name in index.literal for name in names)
        ]
        if parsed.keep_others:
            return missed if len(missed) == len(kinds) else []
        return [key for key in missed if not any(coupled.companion(kinds[key][0], graph))]

    def mine(self, rules: Rules) -> dict[str, str | int]:
        return {key: value for key, value in self.given.items() if key in rules.parsed.let}

    def near(self) -> list[str]:
        """The presets that came nearest, with what is wrong."""
        found = [one for one in sorted(self.failed, key=lambda one: -one.share) if one.share >= _NEAR_ENOUGH]
        best = {one.label: f"--rules {one.label}: {_one_line(one.problem)}" for one in reversed(found)}
        return list(reversed(best.values()))[:_NEAR]


def _ways() -> Iterator[tuple[str, Rules]]:
    """Every preset forwards, and backwards where that is exact."""
    for name in presets():
        rules = Rules.preset(name)
        if _tells(rules):
            yield name, rules
        try:
            back = rules.reversed()
        except CkptError:
            continue
        if _tells(back):
            yield f"{name} --reverse", back


def _one_line(text: str) -> str:
    """Names may hold anything, and each preset has a line."""
    return text.replace("\n", "\\n")


def _renames(rules: Rules) -> bool:
    return all(rule.renames for rule in rules.parsed.rules)


def _tells(rules: Rules) -> bool:
    """Whether the names that the rules take are particular: putting a prefix before all names fits everything."""
    return not any(
        [hole.kind for hole in side.template.holes] == ["rest"] and len(side.template.parts) == 1
        for rule in rules.parsed.rules
        for side in rule.sources
    )

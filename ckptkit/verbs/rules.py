"""rules: prove a rule file on a checkpoint, before anything is converted."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ckptkit.core.errors import CkptError
from ckptkit.core.findings import Finding
from ckptkit.core.graph import TensorGraph
from ckptkit.format import read
from ckptkit.rules.follow import backwards, loaded
from ckptkit.rules.outcome import Rewrite, Trace
from ckptkit.rules.ruleset import Rules, compare


@dataclass(frozen=True, slots=True)
class Report:
    """What a proof found.

    Attributes:
        rules: the name of the rules; source: path of the checkpoint they were proved on; target: path or None.
        rewrite: the result, if there are no errors in the rules themselves.
        findings: every problem, and notes.
        kinds: how many tensors are kept, renamed, changed, made of several, filled, dropped.
        tensors: tensors of the source.
    """

    rules: str
    source: str
    target: str | None
    rewrite: Rewrite | None
    findings: tuple[Finding, ...]
    kinds: Mapping[str, int]
    tensors: int

    @property
    def holds(self) -> bool:
        """Whether there is no error."""
        return not any(finding.severity == "error" for finding in self.findings)

    def explain(self, name: str) -> tuple[tuple[str, Trace], ...]:
        """(target, its trace) for a name of the result, or for each result that a name of the source goes into.

        () for one that is dropped, and for all names where the rules do not hold. Raises CkptError `no-such-tensor`
        for a name of neither.
        """
        if self.rewrite is None:
            return ()
        trace = self.rewrite.trace
        if name in trace:
            return ((name, trace[name]),)
        found = tuple((target, step) for target, step in trace.items() if name in step.sources)
        if not found and name not in self.rewrite.dropped:
            raise CkptError("no-such-tensor", "neither the source nor the result has this name", name)
        return found


def check_rules(
    rules: str | os.PathLike[str] | Rules,
    on: str | os.PathLike[str],
    *,
    target: str | os.PathLike[str] | None = None,
    let: Mapping[str, str | int] | None = None,
    reverse: bool = False,
    approximate: bool = False,
    section: str | None = None,
    variant: str | None = None,
) -> Report:
    """Prove rules on a checkpoint: every source consumed once, every target made once, operations that fit.

    Args:
        rules: a path, the name of a preset, `auto`, `strip:PREFIX`, `add:PREFIX`, or Rules.
        on: the source; target: a checkpoint whose names, shapes and dtypes the result should have.
        let: values for names that the rules declare.
        reverse, approximate: prove the rules backwards; accept rounding in that.
        section, variant: as for `ckptkit.read`, for the source.

    Raises CkptError when rules or checkpoints cannot be read; what does not hold is in the findings.
    """
    source = read(on, section, variant=variant)
    wanted = read(target) if target is not None else None
    given = dict(let or {})
    found = loaded(rules, source, given, wanted, reverse=reverse)
    if len(found) != 1:
        labels = " and then ".join(one.parsed.name for one in found)
        problem = (
            f"the target is reached by {labels}" if found else "the source has the target's names already"
        )
        raise CkptError("rules-ambiguous", problem, os.fspath(on), "prove one rule file at a time")
    chosen = next(backwards(found, approximate, wanted)) if reverse else found[0]
    rewrite, findings = chosen.applied(source, **given)
    if rewrite is not None and wanted is not None:
        findings = [*findings, *compare(rewrite.graph, wanted)]
    return Report(
        rules=chosen.parsed.name,
        source=os.fspath(on),
        target=None if target is None else os.fspath(target),
        rewrite=rewrite,
        findings=tuple(findings),
        kinds=_kinds(source, rewrite),
        tensors=len(source),
    )


def _kinds(source: TensorGraph, rewrite: Rewrite | None) -> dict[str, int]:
    if rewrite is None:
        return {}
    counts = Counter(_kind(name, step, rewrite, source) for name, step in rewrite.trace.items())
    if rewrite.dropped:
        counts["dropped"] = len(rewrite.dropped)
    return dict(counts)


def _kind(name: str, step: Trace, rewrite: Rewrite, source: TensorGraph) -> str:
    if len(step.sources) != 1:
        return "joined" if step.sources else "filled"
    if rewrite.graph[name] is not source[step.sources[0]]:
        return "changed"
    if step.operations == ("tie",):
        return "tied"
    return "kept" if name == step.sources[0] else "renamed"


def reversed_text(
    rules: str,
    *,
    approximate: bool = False,
    on: str | os.PathLike[str] | None = None,
    let: Mapping[str, str | int] | None = None,
    section: str | None = None,
    variant: str | None = None,
) -> str:
    """The YAML of the rules that undo these; sizes that they do not state are those of the checkpoint `on`, which they
    apply to. Raises CkptError as `Rules.reversed`."""
    graph = None if on is None else read(on, section, variant=variant)
    return Rules.load(rules, let).reversed(approximate=approximate, on=graph).text()


def findings_in_order(findings: Sequence[Finding]) -> list[Finding]:
    """Errors first, then warnings, then notes."""
    rank = {"error": 0, "warning": 1, "note": 2}
    return sorted(findings, key=lambda finding: rank[finding.severity])

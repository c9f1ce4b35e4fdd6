"""The answer: what differs once the names are brought together, how bad that is, and the commands that mend it."""

import re
from collections.abc import Callable, Iterable, Sequence
from fnmatch import translate
from typing import Any, NamedTuple

from ckptkit.core.findings import Severity
from ckptkit.core.graph import TensorGraph
from ckptkit.match.fit import naming
from ckptkit.match.fit.causes import FEWER, GAP, MORE, Causes, Reason, covers, is_head_name, same_shapes
from ckptkit.match.fit.compare import Fit, closest, compare, fit, shape_text
from ckptkit.match.fit.renaming import ways
from ckptkit.match.published import other_family, other_model
from ckptkit.targets.target import MADE, Target
from ckptkit.verbs.check.fixes import Case, fixes
from ckptkit.verbs.check.report import CheckReport, Misfit
from ckptkit.verbs.check.whole import demands

_KNOWN = 0.5  # of the expected tensors fit: below that it is another architecture


class Allowed(NamedTuple):
    """Shell patterns of names whose absence, presence or other dtype or shape is no error."""

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatch: tuple[str, ...] = ()


_NOTHING = Allowed()


def judge(
    graph: TensorGraph, target: Target, allowed: Allowed = _NOTHING, findings: Iterable[Misfit] = ()
) -> CheckReport:
    """The report on a checkpoint that was read; `findings` are those made before."""
    target = closest(graph, target)
    found = was = fit(graph, target)
    found_ways = ways(found.tensors, target) if found.missing and found.unexpected else []
    renamed = found_ways[0] if found_ways else None
    if renamed is not None:
        found = compare({renamed.new(name): tensor for name, tensor in found.tensors.items()}, target)
        if found.missing and covers(was, target):  # each name by itself explains more than a prefix does
            renamed, found, found_ways = None, was, []
    tensors = list(_tensors(graph, found, Causes(graph, found, target), target, allowed))
    kept = [item for item in tensors if item is not None]
    errors = [item for item in kept if item.severity == "error"]
    others = [*findings, *demands(graph, target)]
    others += [
        Misfit(f.code, f.severity, f.where, found=f.message, hint=f.hint)
        for f in graph.findings
        if f.severity != "note"
    ]
    demanded = [item for item in others if item.severity == "error"]
    presets: list[str] = []
    names = bool(found.missing and found.unexpected)
    shapes = any(item.what == "shape" for item in found.mismatched)
    if errors and (names or shapes):
        presets = naming.presets(graph, target, found.dimensions, names=names)
        if presets:  # they give every name, the prefix only some
            renamed, found, found_ways = None, was, []
    case = Case(graph, target, was, found, renamed, tuple(presets), tuple(errors), tuple(found_ways[1:]))
    summary = _summary(case, bool(demanded))
    cause = renamed.cause if renamed else ""
    if case.others:
        cause += f"; fitting as well: {', '.join(repr(way.strip) for way in case.others)}"
    if presets:  # every name differs: one finding says it
        label = presets[0].replace(" --rules ", " with ")
        cause = f"other names or layouts, which the preset {label} brings over: {naming.about(presets[0])}"
        kept, errors = [], []
    notes = [Misfit("names-differ", "error", "", cause=cause)] if cause else []
    everything = [*notes, *errors, *demanded]
    everything += [item for item in (*kept, *others) if item.severity != "error"]
    fits = not (notes or errors or demanded)
    return CheckReport(
        path=graph.origin.path,
        target=target.path,
        verdict="fits" if fits else "does not fit",
        summary=summary,
        findings=tuple(everything),
        fixes=() if fits else tuple(fixes(case)),
        tensors=len(found.tensors),
        fitting=found.fitting,
        expected=sum(not spec.optional or name in found.tensors for name, spec in target.tensors.items()),
        allowed=tensors.count(None),
    )


def _tensors(
    graph: TensorGraph, found: Fit, causes: Causes, target: Target, allowed: Allowed
) -> Iterable[Misfit | None]:
    """Each difference of names, dtypes and shapes; None for one that is allowed."""
    may_lack, may_have, may_differ = map(_matcher, allowed)
    for item in found.mismatched:
        if may_differ(item.name):
            yield None
            continue
        reason = causes.mismatch(item)
        code = "shape-differs" if item.what == "shape" else "dtype-differs"
        head = causes.is_head(item)
        yield Misfit(code, "error", item.name, item.expected, item.found, **_why(reason), head=head)
    defaulted = "_metadata" not in graph.metadata  # torch fills in what old BatchNorm layers did not save
    for name in found.missing:
        if may_lack(name):
            yield None
        elif defaulted and name.endswith(".num_batches_tracked") and name not in causes.alike:
            yield Misfit(
                "buffer-defaulted", "note", name, "a counter", "nothing", "older torch did not save it"
            )
        else:
            reason = causes.missing(name)
            tied = reason.cause.startswith("tied to ")
            code = "tie-dropped" if tied else "tensor-missing"
            # A module ties its weights itself, whatever was saved of them.
            severity: Severity = "note" if tied and target.kind in MADE else "error"
            head = is_head_name(name) and severity == "error"
            yield Misfit(code, severity, name, "a tensor", "nothing", **_why(reason), head=head)
    for name in found.unexpected:
        if may_have(name):
            yield None
            continue
        tensor = found.tensors[name]
        there = f"{tensor.dtype.name} {shape_text(tensor.shape)}"
        if target.loader is not None and target.loader.ignores(name):
            cause = f"{target.loader.name} passes it over: newer code computes it and no longer saves it"
            hint = "convert --exclude leaves it out"
            yield Misfit("tensor-unexpected", "warning", name, "nothing", there, cause, hint, "drop")
            continue
        reason = causes.unexpected(name)
        yield Misfit(
            "tensor-unexpected", "error", name, "nothing", there, **_why(reason), head=is_head_name(name)
        )


_HINTS = {
    "drop": "convert --exclude leaves it out, check --allow-unexpected accepts it",
    "folder": "check the folder or its index.json",
}


def _why(reason: Reason) -> dict[str, Any]:
    """Cause, mend and hint of a misfit."""
    cast = reason.step.removeprefix("dtype:")
    hint = _HINTS.get(reason.step, "") if cast == reason.step else f"convert --dtype {cast}"
    return {"cause": reason.cause, "step": reason.step, "hint": hint, "rule": reason.rule}


def _matcher(patterns: Sequence[str]) -> Callable[[str], bool]:
    compiled = [re.compile(translate(pattern)).match for pattern in patterns]
    return lambda name: any(match(name) for match in compiled)


def _summary(case: Case, demanded: bool) -> str:
    """The answer in words."""
    renamed = case.renamed
    if not case.errors:
        if renamed:
            return f"right model under another naming: {renamed.cause}"
        return "not as the contract demands" if demanded else "fits"
    said = _kind(case)
    return f"{said}; {renamed.cause}" if renamed else said


def _kind(case: Case) -> str:
    if other := other_model(case.graph, case.target):
        return f"wrong architecture: this is {other}"
    found, expected = case.found, max(1, len(case.target.tensors))
    shapes = sum(item.what == "shape" for item in found.mismatched)
    share = (len(case.target.tensors) - len(found.missing) - shapes) / expected  # whatever their dtypes
    if case.presets or (share < _KNOWN and same_shapes(found, case.target)):
        return "right model under another naming"
    if all(item.head for item in case.errors):
        return "fits except the head"
    if {item.code for item in case.errors} == {"dtype-differs"}:
        return "right names, other dtypes"
    if share >= _KNOWN or found.fitting >= _KNOWN * max(1, len(found.tensors)):
        if {item.cause for item in case.errors} <= {FEWER, GAP, MORE}:
            return "the same architecture, with another number of layers"
        if not found.missing and not found.unexpected:
            return "right names, other shapes"
        return "right architecture, with differences"
    if 1 - len(found.missing) / expected >= _KNOWN:  # the names are there, whatever their shapes
        return "right names, other sizes"
    other = other_family(case.graph, case.target)
    return f"wrong architecture: this looks like {other}" if other else "wrong architecture"

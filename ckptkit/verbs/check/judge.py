"""The answer: what differs once the names are brought together, how bad that is, and the commands that mend it."""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from fnmatch import translate
from typing import NamedTuple

from ckptkit.core.errors import CkptError
from ckptkit.core.graph import TensorGraph
from ckptkit.core.options import ReadOptions
from ckptkit.format import read_with
from ckptkit.match import naming
from ckptkit.match.causes import FEWER, MORE, Causes, Reason, Renaming, is_head_name, renaming, same_shapes
from ckptkit.match.fit import Fit, compare, fit
from ckptkit.targets.target import Target
from ckptkit.verbs.check.commands import command, output
from ckptkit.verbs.check.report import CheckReport, Misfit
from ckptkit.verbs.check.whole import demands

_KNOWN = 0.5  # of the expected tensors fit: below that it is another architecture
_EXCLUDED = 12  # patterns that one command is given


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
    found = fit(graph, target)
    renamed = renaming(found.tensors, target) if found.missing and found.unexpected else None
    if renamed is not None:
        found = compare({renamed.new(name): tensor for name, tensor in found.tensors.items()}, target)
    causes = Causes(graph, found, target)
    tensors = list(_tensors(graph, found, causes, allowed))
    kept = [item for item in tensors if item is not None]
    errors = [item for item in kept if item.severity == "error"]
    others = [*findings, *demands(graph, target)]
    others += [
        Misfit(f.code, f.severity, f.where, found=f.message, hint=f.hint)
        for f in graph.findings
        if f.severity != "note"
    ]
    demanded = [item for item in others if item.severity == "error"]
    report = _Answer(graph, target, found, renamed, errors, demanded)
    cause = renamed.cause if renamed else ""
    if report.presets:  # every name differs: one finding says it
        cause = f"another library's names and layouts; the preset {report.presets[0]} gives the target's"
        kept, errors = [], []
    notes = [Misfit("names-differ", "error", "", cause=cause)] if cause else []
    everything = [*notes, *errors, *demanded]
    everything += [item for item in (*kept, *others) if item.severity != "error"]
    fits = not (notes or errors or demanded)
    return CheckReport(
        path=graph.origin.path,
        target=target.path,
        verdict="fits" if fits else "does not fit",
        summary=report.summary(),
        findings=tuple(everything),
        fixes=() if fits else tuple(report.fixes()),
        tensors=len(found.tensors),
        fitting=found.fitting,
        expected=sum(not spec.optional for spec in target.tensors.values()),
        allowed=tensors.count(None),
    )


def _tensors(graph: TensorGraph, found: Fit, causes: Causes, allowed: Allowed) -> Iterable[Misfit | None]:
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
        elif defaulted and name.endswith(".num_batches_tracked"):
            yield Misfit(
                "buffer-defaulted", "note", name, "a counter", "nothing", "older torch did not save it"
            )
        else:
            reason = causes.missing(name)
            code = "tie-dropped" if reason.cause.startswith("tied to ") else "tensor-missing"
            yield Misfit(code, "error", name, "a tensor", "nothing", **_why(reason), head=is_head_name(name))
    for name in found.unexpected:
        if may_have(name):
            yield None
            continue
        tensor = found.tensors[name]
        shape = "×".join(map(str, tensor.shape)) or "scalar"
        reason = causes.unexpected(name)
        yield Misfit(
            "tensor-unexpected", "error", name, "nothing", f"{tensor.dtype.name} {shape}", **_why(reason),
            head=is_head_name(name),
        )  # fmt: skip


_HINTS = {
    "drop": "convert --exclude leaves it out, check --allow-unexpected accepts it",
    "folder": "check the folder or its index.json",
    "transpose": "a rule file with the operation transpose turns it",
}


def _why(reason: Reason) -> dict[str, str]:
    """Cause, mend and hint of a misfit."""
    cast = reason.mend.removeprefix("dtype:")
    hint = _HINTS.get(reason.mend, "") if cast == reason.mend else f"convert --dtype {cast}"
    return {"cause": reason.cause, "mend": reason.mend, "hint": hint}


def _matcher(patterns: Sequence[str]) -> Callable[[str], bool]:
    compiled = [re.compile(translate(pattern)).match for pattern in patterns]
    return lambda name: any(match(name) for match in compiled)


class _Answer:
    """What is said of the whole, and the commands."""

    def __init__(
        self,
        graph: TensorGraph,
        target: Target,
        found: Fit,
        renamed: Renaming | None,
        errors: list[Misfit],
        demanded: list[Misfit],
    ) -> None:
        self.graph = graph
        self.target = target
        self.found = found
        self.renamed = renamed
        self.errors = errors
        self.demanded = demanded
        shapes = sum(item.what == "shape" for item in found.mismatched)
        there = len(target.tensors) - len(found.missing) - shapes
        self.share = there / max(1, len(target.tensors))  # whatever their dtypes
        self.presets: list[str] = []
        if errors and renamed is None and found.missing and found.unexpected:
            self.presets = naming.presets(graph, target, found.dimensions)

    def summary(self) -> str:
        """The answer in words."""
        if not self.errors:
            if self.renamed:
                return f"right model under another naming: {self.renamed.cause}"
            return "not as the contract demands" if self.demanded else "fits"
        said = self._kind()
        return f"{said}; {self.renamed.cause}" if self.renamed else said

    def _kind(self) -> str:
        if self.presets or (self.share < _KNOWN and same_shapes(self.found, self.target)):
            return "right model under another naming"
        if all(item.head for item in self.errors):
            return "fits except the head"
        causes = {item.cause for item in self.errors}
        if {item.code for item in self.errors} == {"dtype-differs"}:
            return "right names, other dtypes"
        if self.share >= _KNOWN or self.found.fitting >= _KNOWN * max(1, len(self.found.tensors)):
            if causes <= {FEWER, MORE}:
                return "the same architecture, with another number of layers"
            if not self.found.missing and not self.found.unexpected:
                return "right names, other shapes"
            return "right architecture, with differences"
        if self._names() >= _KNOWN:
            return "right names, other sizes"
        return "wrong architecture"

    def _names(self) -> float:
        """The share of the expected names that are there, whatever their shapes."""
        return 1 - len(self.found.missing) / max(1, len(self.target.tensors))

    def fixes(self) -> Iterable[str]:
        """Commands, best first."""
        path = self.graph.origin.path
        if self.errors:
            yield from self._sections()
        if any(item.mend == "folder" for item in self.errors):
            yield command("check", os.path.dirname(path) or ".", "--target", self.target.path)
            return
        if self.presets:
            for label in self.presets:
                yield command("convert", path, output(path), "--rules", *label.split())
            return
        if self.errors and not self.renamed and all(item.head for item in self.errors):
            yield self._accepting()
        unknown = self.errors and self.share < _KNOWN
        if unknown or (self.renamed and not self.renamed.rules):
            return
        rules = [part for rule in (self.renamed.rules if self.renamed else ()) for part in ("--rules", rule)]
        casts = {item.mend for item in self.errors if item.code == "dtype-differs"}
        cast = (
            ["--dtype", next(iter(casts)).removeprefix("dtype:")] if len(casts) == 1 and casts != {""} else []
        )
        lacking = [
            item for item in self.errors if item.code in ("tensor-missing", "tie-dropped", "shape-differs")
        ]
        extra = [item for item in self.errors if item.code == "tensor-unexpected"]
        drop = []
        if not lacking and all(item.cause != MORE for item in extra):
            before = self.renamed.before if self.renamed else str
            globs = _globs([item.name for item in extra], self.found)
            drop = [part for name in map(before, globs[:_EXCLUDED]) for part in ("--exclude", name)]
        options = [*drop, *rules, *cast]
        if options:
            yield command("convert", path, output(path), *options)

    def _accepting(self) -> str:
        """The check that takes another head for what it is."""
        options = []
        for kind, codes in _ALLOWING.items():
            names = [item.name for item in self.errors if item.code in codes]
            options += [part for glob in _globs(names, self.found)[:_EXCLUDED] for part in (kind, glob)]
        return command("check", self.graph.origin.path, "--target", self.target.path, *options)

    def _sections(self) -> Iterable[str]:
        """Another section of the file that fits better."""
        origin = self.graph.origin
        for section in origin.sections:
            if section.name == origin.section or section.role not in ("weights", "ema"):
                continue
            try:
                other = read_with(origin.path, ReadOptions(section.name))
            except CkptError:  # it is no way out
                continue
            if fit(other, self.target).fitting > self.found.fitting:
                yield command("check", origin.path, "--target", self.target.path, "--section", section.name)


_ALLOWING = {
    "--allow-mismatch": ("shape-differs",),
    "--allow-missing": ("tensor-missing",),
    "--allow-unexpected": ("tensor-unexpected",),
}


def _globs(names: list[str], found: Fit) -> list[str]:
    """The names as few shell patterns: by their prefix where all that has it goes."""
    gone = set(names)
    patterns: dict[str, None] = {}
    for name in names:
        head = name.split(".")[0] + "."
        if all(other in gone for other in found.tensors if other.startswith(head)) and head != name + ".":
            patterns[head + "*"] = None
        else:
            patterns[re.sub(r"([*?[])", r"[\1]", name)] = None
    return list(patterns)

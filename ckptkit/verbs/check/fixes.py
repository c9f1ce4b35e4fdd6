"""The commands that mend what does not fit, tried on the manifest before they are offered."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ckptkit.core.errors import CkptError
from ckptkit.core.graph import TensorGraph
from ckptkit.core.options import ReadOptions
from ckptkit.format import read_with
from ckptkit.match.fit import mending
from ckptkit.match.fit.causes import CASTS, MORE
from ckptkit.match.fit.compare import Fit, fit
from ckptkit.match.fit.mending import Mend
from ckptkit.match.fit.renaming import Renaming
from ckptkit.targets.target import Target
from ckptkit.verbs.check.commands import command, output
from ckptkit.verbs.check.report import Misfit

_KNOWN = 0.5  # of the expected tensors fit after mending: below that it is another architecture
_EXCLUDED = 12  # patterns that one command is given
_ALLOWING = {
    "--allow-mismatch": ("shape-differs",),
    "--allow-missing": ("tensor-missing",),
    "--allow-unexpected": ("tensor-unexpected",),
}


@dataclass(frozen=True, slots=True)
class Case:
    """What does not fit, and how it was compared.

    Attributes:
        was: the comparison of the names as they are.
        found: the comparison under `renamed`; the same as `was` without one.
        presets: rules that bring another library's names and layouts to the target's.
        errors: the findings to mend.
        others: ways for other parts of the checkpoint, which fit as well as that which `renamed` is for.
    """

    graph: TensorGraph
    target: Target
    was: Fit
    found: Fit
    renamed: Renaming | None
    presets: tuple[str, ...]
    errors: tuple[Misfit, ...]
    others: tuple[Renaming, ...] = ()

    @property
    def path(self) -> str:
        return self.graph.origin.path


def fixes(case: Case) -> Iterator[str]:
    """Commands, best first."""
    if case.errors:
        yield from _sections(case)
    if any(item.step == "folder" for item in case.errors):
        yield command("check", os.path.dirname(case.path) or ".", "--target", case.target.path)
    elif case.presets:
        for label in case.presets:
            yield command("convert", case.path, output(case.path), "--rules", *label.split())
    else:
        commands = list(_conversion(case))
        if case.errors and not case.renamed and all(item.head for item in case.errors):
            commands.insert(sum("--fit" not in one for one in commands), _accepting(case))
        yield from commands
        for way in case.others:
            if way.strip and not way.unwrap:
                part = (part for rule in way.rules for part in ("--rules", rule))
                yield command("convert", case.path, output(case.path), "--include", f"{way.strip}*", *part)


def _conversion(case: Case) -> Iterator[str]:
    """One convert; it must leave less amiss than there is."""
    cast, casts = _casts(case)
    mends = [item.rule for item in case.errors if item.rule is not None] + casts
    if mending.doubtful(mends, case.found.tensors):
        mends = casts
    before = case.renamed.rules if case.renamed else ()
    try:
        rules, found = mending.tried(case.graph, case.target, before, mends)
    except CkptError:  # names would collide: it is no way out
        return
    wrong = {item.name for item in case.errors}
    fine = {
        *case.found.missing,
        *case.found.unexpected,
        *(item.name for item in case.found.mismatched),
    } - wrong
    lacking = [*found.missing, *(item.name for item in found.mismatched if item.what == "shape")]
    lacking = [name for name in lacking if name not in fine]
    extra = [name for name in found.unexpected if name not in fine]
    drop = [] if lacking else _drop(case, extra)
    left = len(lacking) + (0 if drop else len(extra))
    left += 0 if cast else sum(item.what == "dtype" and item.name not in fine for item in found.mismatched)
    options = [*drop, *(part for rule in rules for part in ("--rules", rule)), *cast]
    steps = {item.name: item.step for item in case.errors}
    first = [] if tuple(rules) == tuple(before) else rules  # --fit finds prefixes itself
    if lacking and all(steps.get(name) == "fit" for name in lacking) and _fits_then(case, first):
        code = ("--allow-code",) if case.target.kind == "module" else ()
        fit_to = ("--fit", case.target.path, *code, "--mismatched", "zeros")
        told = (part for rule in first for part in ("--rules", rule))
        yield command("convert", case.path, output(case.path), *told, *fit_to, *cast)
    elif options and left < mending.amiss(case.was) and len(lacking) <= _KNOWN * len(case.target.tensors):
        yield command("convert", case.path, output(case.path), *options)


def _fits_then(case: Case, rules: Sequence[str]) -> bool:
    """Whether `convert --fit` takes the target by its name, and has something to carry over and shapes to fill."""
    from ckptkit.match.fit.fitting import fitting  # rules are loaded only where something does not fit
    from ckptkit.rules.follow import follow

    if case.target.kind not in ("module", "architecture") and not os.path.exists(case.target.path):
        return False
    try:
        fitting(follow(case.graph, rules).graph if rules else case.graph, case.target, "zeros")
    except CkptError:
        return False
    return True


def _casts(case: Case) -> tuple[list[str], list[Mend]]:
    """The option that gives all tensors the dtypes expected, or, where one dtype does not do, a rule for each."""
    wanted = {item.name: item.step[6:] for item in case.errors if item.step.startswith("dtype:")}
    if not wanted:
        return [], []
    dtypes = set(wanted.values())
    specs = case.target.tensors
    floats = [
        name for name, tensor in case.found.tensors.items() if tensor.dtype.name in CASTS and name in specs
    ]
    if all(not specs[name].dtypes or dtypes <= set(specs[name].dtypes) for name in floats):
        return ["--dtype", dtypes.pop()], []
    return [], [mending.operated(name, {"cast": dtype}) for name, dtype in wanted.items()]


def _drop(case: Case, unexpected: list[str]) -> list[str]:
    """The options that leave out what nothing expects. Deeper layers are no mere extra."""
    if any(item.cause == MORE for item in case.errors):
        return []
    extra = set(unexpected)
    now = case.renamed.new if case.renamed else str
    names = [name for name in case.was.tensors if now(name) in extra]
    return [part for glob in _globs(names, case.was)[:_EXCLUDED] for part in ("--exclude", glob)]


def _accepting(case: Case) -> str:
    """The check that takes another head for what it is."""
    options = []
    for kind, codes in _ALLOWING.items():
        names = [item.name for item in case.errors if item.code in codes]
        globs = _globs(names, case.found)
        if len(globs) > _EXCLUDED:  # a head of many tensors: all that begins as they do
            globs = [f"{os.path.commonprefix(names).rpartition('.')[0]}.*".lstrip(".")]
        options += [part for glob in globs for part in (kind, glob)]
    return command("check", case.path, "--target", case.target.path, *options)


def _sections(case: Case) -> Iterator[str]:
    """Another section of the file that fits better."""
    origin = case.graph.origin
    for section in origin.sections:
        if section.name == origin.section or section.role not in ("weights", "ema"):
            continue
        try:
            other = read_with(origin.path, ReadOptions(section.name))
        except CkptError:  # it is no way out
            continue
        if fit(other, case.target).fitting > case.found.fitting:
            yield command("check", origin.path, "--target", case.target.path, "--section", section.name)


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

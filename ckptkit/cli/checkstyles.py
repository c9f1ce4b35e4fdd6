"""Reports of `check` as text, JSON, Markdown, GitHub annotations, SARIF and JUnit XML."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ckptkit.cli import report as report_error
from ckptkit.cli.text import Terminal, clean, emit
from ckptkit.core.words import plural

if TYPE_CHECKING:
    from ckptkit.cli.check import Outcome
    from ckptkit.verbs.check import CheckReport, Misfit

_SHOWN = 30  # lines of findings of one report
_KINDS = {
    "tensor-missing": "missing", "tensor-unexpected": "unexpected", "shape-differs": "shape", "dtype-differs": "dtype",
    "tie-dropped": "tie", "tie-broken": "tie", "names-differ": "names", "metadata-missing": "metadata",
    "metadata-other": "metadata", "name-forbidden": "forbidden", "dtype-refused": "dtype", "too-large": "size",
    "not-finite": "values", "lfs-bypassed": "git", "global-refused": "global", "digest-differs": "digest",
    "file-missing": "file", "file-differs": "file",
}  # fmt: skip


class Line(NamedTuple):
    """Findings that differ in their names alone, on one line."""

    first: "Misfit"
    names: str
    times: int

    @property
    def kind(self) -> str:
        return _KINDS.get(self.first.code, self.first.severity)

    @property
    def said(self) -> str:
        """What was expected and found."""
        item = self.first
        if item.code in ("tensor-missing", "tie-dropped", "names-differ"):
            return ""
        if item.expected in ("", "nothing"):
            return item.found
        return f"expected {item.expected}, found {item.found}"

    @property
    def text(self) -> str:
        """Everything but the next step."""
        times = f" ×{self.times}" if self.times > 1 else ""
        facts = [fact for fact in (self.names + times, self.said, self.first.cause) if fact]
        return clean("   ".join(facts))


def lines(found: "CheckReport") -> Iterator[Line]:
    """The findings, folded by layer, in the order of their first."""
    from ckptkit.targets.capture import patterns
    from ckptkit.targets.pattern import expand

    groups: dict[tuple[str, ...], list[Misfit]] = {}
    for item in found.findings:
        key = (item.code, item.severity, item.expected, item.found, item.cause, item.hint)
        groups.setdefault(key, []).append(item)
    for members in groups.values():
        names = list(dict.fromkeys(item.name for item in members))
        if len(names) == 1:
            yield Line(members[0], names[0], 1)
            continue
        for pattern, _ in patterns((name, 0) for name in names):
            yield Line(members[0], pattern, len(expand(pattern, {})))


def text(outcomes: "Iterable[Outcome]", *, quiet: bool, several: bool) -> None:
    """For people: the answer, what it rests on, the next step."""
    counts = {0: 0, 1: 0, 2: 0}
    for outcome in outcomes:
        counts[outcome.code] += 1
        if outcome.report is None:
            sys.stdout.flush()
            assert outcome.error is not None
            report_error(outcome.error)
        elif not (quiet and outcome.report.fits):
            emit(_text(outcome.report, Terminal.of(sys.stdout), quiet))
    if several and not quiet:
        said = [f"{counts[0]} fit", f"{counts[1]} do not", f"{counts[2]} could not be read"]
        told = [part for part, number in zip(said, counts.values(), strict=True) if number]
        emit([" · ".join(told) or "nothing to check: no contract, and no weights"])


def _text(found: "CheckReport", terminal: Terminal, quiet: bool) -> Iterator[str]:
    alone = not found.target or found.summary == found.verdict
    answer = found.summary if alone else f"{found.verdict} · {found.summary}"
    path = terminal.paint(clean(found.path), "bold")
    yield f"{path}   {clean(answer)}{_counts(found)}"
    if quiet:
        return
    listed = list(lines(found))
    hints = set()
    for line in listed[:_SHOWN]:
        if line.first.code == "names-differ" and line.first.cause in found.summary:
            continue
        yield from terminal.prose(line.kind, line.text)
        if line.first.hint and line.first.hint not in hints:
            hints.add(line.first.hint)
            yield from terminal.prose("", clean(line.first.hint))
    if len(listed) > _SHOWN:
        yield from terminal.prose("", f"and {len(listed) - _SHOWN} more lines, which --json lists")
    for number, fix in enumerate(found.fixes):
        # Not wrapped: it is to be copied.
        yield f"{terminal.paint('' if number else 'next', 'bold')}{' ' * (12 if number else 8)}{clean(fix)}"


def _counts(found: "CheckReport") -> str:
    facts = []
    if found.target and found.expected and not found.fits:
        facts.append(f"{found.fitting} of {plural(found.expected, 'tensor')} fit")
    elif found.tensors:
        facts.append(plural(found.tensors, "tensor"))
    if found.allowed:
        facts.append(f"{plural(found.allowed, 'difference')} allowed")
    return "".join(f" · {fact}" for fact in facts)


def _json(outcomes: "Iterable[Outcome]", several: bool) -> Iterator[str]:
    from ckptkit.cli import jsontext
    from ckptkit.core.jsonable import dumps

    documents = (
        jsontext.error(outcome.error, outcome.path)
        if outcome.error is not None
        else dumps(_document(outcome.report))  # type: ignore[arg-type]
        for outcome in outcomes
    )
    if not several:
        yield from documents
        return
    lead = "["
    for document in documents:
        yield lead + document
        lead = ","
    yield "[]" if lead == "[" else "]"


def _document(found: "CheckReport") -> dict[str, Any]:
    findings = [
        {
            "code": item.code,
            "severity": item.severity,
            "name": item.name,
            "expected": item.expected,
            "found": item.found,
            "cause": item.cause,
            "hint": item.hint,
        }
        for item in found.findings
    ]
    return {
        "schema": "ckptkit.check/1",
        "path": found.path,
        "target": found.target or None,
        "verdict": found.verdict,
        "summary": found.summary,
        "findings": findings,
        "fixes": found.fixes,
        "tensors": found.tensors,
        "fitting": found.fitting,
        "expected": found.expected,
        "allowed": found.allowed,
    }


def _markdown(outcomes: "Iterable[Outcome]", several: bool) -> Iterator[str]:
    from ckptkit.cli.markdown import escape, table

    for outcome in outcomes:
        if outcome.error is not None:
            error = outcome.error
            yield f"### {escape(outcome.path)}: could not be read\n"
            yield f"{escape(error.message)} (`{error.code}`)\n"
            continue
        found = outcome.report
        assert found is not None
        yield f"### {escape(found.path)}: {escape(found.verdict)}\n"
        yield f"{escape(found.summary)}{escape(_counts(found))}\n"
        rows = [(line.kind, escape(line.text), escape(line.first.hint)) for line in lines(found)]
        if rows:
            yield from table(("what", "finding", "next step"), rows)
            yield ""
        for fix in found.fixes:
            yield f"    {clean(fix)}"
        if found.fixes:
            yield ""


def _github(outcomes: "Iterable[Outcome]", several: bool) -> Iterator[str]:
    """Workflow commands, which GitHub shows at the file."""
    levels = {"error": "error", "warning": "warning", "note": "notice"}
    for outcome in outcomes:
        where = _property(outcome.path)
        if outcome.error is not None:
            said = " — ".join(filter(None, (outcome.error.message, outcome.error.hint)))
            yield f"::error file={where},title={outcome.error.code}::{_data(said)}"
            continue
        found = outcome.report
        assert found is not None
        for line in lines(found):
            said = " — ".join(filter(None, (line.text, line.first.hint)))
            yield f"::{levels[line.first.severity]} file={where},title={line.first.code}::{_data(said)}"
        if not found.fits:
            said = "\n".join((f"{found.path}: {found.verdict} · {found.summary}", *found.fixes))
            yield f"::error file={where},title=check::{_data(said)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _sarif(outcomes: "Iterable[Outcome]", several: bool) -> Iterator[str]:
    """What code scanning services show; what cannot be read is an error like others."""
    from ckptkit.cli.sarif import document, located
    from ckptkit.core.jsonable import dumps

    results = []
    for outcome in outcomes:
        if outcome.error is not None:
            error = outcome.error
            said = " — ".join(filter(None, (error.message, error.where, error.hint)))
            results.append(located(error.code, "error", clean(said), outcome.path))
            continue
        found = outcome.report
        assert found is not None
        next_steps = [f"next: {fix}" for fix in found.fixes]
        for line in lines(found):
            said = "\n".join(filter(None, (line.text, line.first.hint, *next_steps)))
            results.append(located(line.first.code, line.first.severity, said, found.path, line.names))
    yield dumps(document(results))


def _junit(outcomes: "Iterable[Outcome]", several: bool) -> Iterator[str]:
    """A test case for each checkpoint: a misfit is a failure, what cannot be read an error."""
    from xml.sax.saxutils import escape, quoteattr

    cases = []
    counts = {0: 0, 1: 0, 2: 0}
    for outcome in outcomes:
        counts[outcome.code] += 1
        name = quoteattr(clean(outcome.path))
        body = ""
        if outcome.error is not None:
            message = quoteattr(clean(outcome.error.message))
            body = f"<error type={quoteattr(outcome.error.code)} message={message}/>"
        elif outcome.report is not None and not outcome.report.fits:
            said = [f"{line.first.code}: {line.text}" for line in lines(outcome.report)]
            said += map(clean, outcome.report.fixes)
            message = quoteattr(clean(outcome.report.summary))
            body = f"<failure message={message}>{escape(chr(10).join(said))}</failure>"
        cases.append(f'  <testcase classname="ckptkit.check" name={name}>{body}</testcase>')
    yield '<?xml version="1.0" encoding="UTF-8"?>'
    total = sum(counts.values())
    yield f'<testsuite name="ckptkit check" tests="{total}" failures="{counts[1]}" errors="{counts[2]}">'
    yield from cases
    yield "</testsuite>"


_Style = Callable[["Iterable[Outcome]", bool], Iterator[str]]
STYLES: dict[str, _Style] = {
    "json": _json,
    "markdown": _markdown,
    "github": _github,
    "sarif": _sarif,
    "junit": _junit,
}

__all__: Sequence[str] = ["STYLES", "lines", "text"]

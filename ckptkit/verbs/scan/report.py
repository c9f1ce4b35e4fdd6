"""What a scan found, as values."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from ckptkit.core.findings import Severity
from ckptkit.verbs.scan.verdicts import Verdict

Kind = Literal["code", "unknown", "trick", "unread", "note"]
Outcome = Literal["clean", "unsafe", "unread"]

_SEVERITY: dict[Kind, Severity] = {
    "code": "error", "unknown": "warning", "trick": "warning", "unread": "error", "note": "note",
}  # fmt: skip
_UNSAFE = ("code", "unknown", "trick")


@dataclass(frozen=True, slots=True)
class ScanFinding:
    """One thing worth telling.

    Attributes:
        kind: `code` and `unknown` would be run by a loader that runs what a file names; a `trick` makes readers
            disagree about what the file holds; `unread` could not be looked at; a `note` changes no verdict.
        code: as in `ckptkit.core.codes.CODES`.
        where: file, member in it and byte.
        message: what it is, in one sentence, with the call and its arguments.
        name: the class or function named, "" if it is about something else.
        called: whether the file calls it.
    """

    kind: Kind
    code: str
    where: str
    message: str
    name: str = ""
    called: bool = False

    @property
    def severity(self) -> Severity:
        return _SEVERITY[self.kind]


@dataclass(frozen=True, slots=True)
class Named:
    """A class or function that pickles of the file name, what it is, and how many streams name it."""

    name: str
    verdict: Verdict
    called: bool
    streams: int


@dataclass(frozen=True, slots=True)
class ScanReport:
    """What would run, were the file (or a file of the folder) loaded unsafely.

    Attributes:
        path: what was scanned.
        verdict: `unsafe` if anything would run that is not known to be data, or the file plays tricks; else
            `unread` if any part could not be looked at; else `clean`.
        findings: in the order of the file.
        names: every class and function that any pickle in it names, data included.
        files: how many files and members of archives were looked at.
    """

    path: str
    verdict: Outcome
    findings: tuple[ScanFinding, ...]
    names: tuple[Named, ...]
    files: int

    def __bool__(self) -> bool:
        return self.verdict == "clean"


def outcome(findings: Iterable[ScanFinding]) -> Outcome:
    """The verdict: what was seen is never erased by what could not be read, and an error never clears."""
    kinds = {finding.kind for finding in findings}
    if not kinds.isdisjoint(_UNSAFE):
        return "unsafe"
    return "unread" if "unread" in kinds else "clean"

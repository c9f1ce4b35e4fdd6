"""Which findings of a report count, and how bad each is: by code, as a project or a command line says."""

from collections.abc import Iterable
from dataclasses import replace
from fnmatch import fnmatchcase

from ckptkit.core.errors import CkptError
from ckptkit.targets.configuration import Settings
from ckptkit.verbs.check.report import CheckReport, Misfit


def counted(code: str, settings: Settings) -> bool:
    """Whether findings of this code are told."""
    chosen = not settings.select or _matches(code, settings.select)
    return chosen and not _matches(code, settings.ignore)


def select(report: CheckReport, settings: Settings) -> CheckReport:
    """The report with only the findings that count, each as bad as it is said to be; the verdict follows."""
    if not (settings.select or settings.ignore or settings.severity):
        return report
    order = {"error": 0, "warning": 1, "note": 2}
    kept = [_weighed(item, settings) for item in report.findings if counted(item.code, settings)]
    kept.sort(key=lambda item: order[item.severity])
    return concluded(report, kept, len(report.findings) - len(kept))


def concluded(report: CheckReport, findings: Iterable[Misfit], left_out: int = 0) -> CheckReport:
    """The report with these findings: errors make it unfit, none make it fit."""
    found = tuple(findings)
    fits = not any(item.severity == "error" for item in found)
    summary = report.summary
    if fits != report.fits or (not report.target and found != report.findings):
        warned = ", with warnings" if any(item.severity == "warning" for item in found) else ""
        words = ("fits", "not as demanded") if report.target else ("healthy" + warned, "unhealthy")
        summary = words[not fits]
    return replace(
        report,
        verdict="fits" if fits else "does not fit",
        summary=summary,
        findings=found,
        fixes=report.fixes if found else (),
        allowed=report.allowed + left_out,
    )


def unread(path: str, error: CkptError) -> CheckReport:
    """The report on what could not be read, where that does not count."""
    summary = f"not checked: {error.message} ({error.code}, ignored)"
    return CheckReport(path, "", "fits", summary, (), allowed=1)


def _weighed(item: Misfit, settings: Settings) -> Misfit:
    severity = settings.severity.get(item.code, item.severity)
    return item if severity == item.severity else replace(item, severity=severity)


def _matches(code: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(code, pattern) for pattern in patterns)

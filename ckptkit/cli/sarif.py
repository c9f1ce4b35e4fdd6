"""Findings in SARIF 2.1.0, the format that code scanning services show."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ckptkit.core.codes import CODES
from ckptkit.core.version import VERSION

if TYPE_CHECKING:
    from ckptkit.verbs.scan import ScanFinding

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def document(results: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """One run with these results and the rules that they mention."""
    listed = list(results)
    rules = sorted({result["ruleId"] for result in listed})
    driver = {
        "name": "ckptkit",
        "version": VERSION,
        "rules": [{"id": rule, "shortDescription": {"text": CODES.get(rule, rule)}} for rule in rules],
    }
    for result in listed:
        result["ruleIndex"] = rules.index(result["ruleId"])
    run = {"tool": {"driver": driver}, "results": listed}
    return {"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}


def result(finding: "ScanFinding", path: str) -> dict[str, Any]:
    """A finding as a result, placed in the file that holds it."""
    from urllib.parse import quote

    file, _, inner = finding.where.removeprefix(path).partition(":")
    file = path + file.split(", byte ")[0] if finding.where.startswith(path) else path
    location: dict[str, Any] = {"physicalLocation": {"artifactLocation": {"uri": quote(_posix(file))}}}
    if inner:
        location["logicalLocations"] = [{"fullyQualifiedName": inner.strip()}]
    return {
        "ruleId": finding.code,
        "level": finding.severity,
        "message": {"text": f"{finding.message} — {finding.where}"},
        "locations": [location],
        "properties": {"kind": finding.kind, "name": finding.name, "called": finding.called},
    }


def _posix(path: str) -> str:
    return path.replace("\\", "/")

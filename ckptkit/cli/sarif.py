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
    """A finding of `scan` as a result, placed in the file that holds it."""
    file, _, inner = finding.where.removeprefix(path).partition(":")
    file = path + file.split(", byte ")[0] if finding.where.startswith(path) else path
    properties = {"kind": finding.kind, "name": finding.name, "called": finding.called}
    text = f"{finding.message} — {finding.where}"
    return located(finding.code, finding.severity, text, file, inner.strip(), properties)


def located(
    code: str, level: str, text: str, path: str, inner: str = "", properties: dict[str, Any] | None = None
) -> dict[str, Any]:
    """A result at a file, and at what is named in it. Files here have no lines: services show it at the first."""
    from os import fsencode
    from urllib.parse import quote

    place = {
        "artifactLocation": {"uri": quote(fsencode(path.replace("\\", "/")))},
        "region": {"startLine": 1},
    }
    location: dict[str, Any] = {"physicalLocation": place}
    if inner:
        location["logicalLocations"] = [{"fullyQualifiedName": inner}]
    found: dict[str, Any] = {
        "ruleId": code,
        "level": level,
        "message": {"text": text},
        "locations": [location],
    }
    return found if properties is None else {**found, "properties": properties}

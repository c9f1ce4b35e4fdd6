"""What would run, were a file loaded unsafely: every class and function that its pickles name and what is done with
them, archives that readers understand differently, references that leave the folder, operators of unknown origin.

Nothing is run or imported to find out, and no weights are read.
"""

import os
from collections.abc import Iterable

from ckptkit.core.budgets import DEFAULT_BUDGETS, Budgets
from ckptkit.core.collector import paused
from ckptkit.core.errors import CkptError
from ckptkit.verbs.scan.files import Scanner, walk_folder
from ckptkit.verbs.scan.ledger import Ledger
from ckptkit.verbs.scan.report import Named, ScanFinding, ScanReport, outcome

__all__ = ["Named", "ScanFinding", "ScanReport", "scan"]


def scan(
    path: str | os.PathLike[str],
    *,
    crc: bool = False,
    allow: Iterable[str] = (),
    budgets: Budgets = DEFAULT_BUDGETS,
) -> ScanReport:
    """Scan a file, or every file below a folder.

    Args:
        crc: also compare members of zip archives and data files of ONNX models with their checksums; costs the
            weights.
        allow: exact names of classes (`module.name`) to take for data beside those that are known to be.

    Raises CkptError `not-found` if there is nothing at the path; whatever else goes wrong is a finding of kind
    `unread`.
    """
    name = os.fspath(path)
    ledger = Ledger(budgets, frozenset(allow))
    scanner = Scanner(ledger, crc=crc)
    if not os.path.lexists(name):
        raise CkptError("not-found", "no such file or folder", name)
    with paused():
        if os.path.isdir(name):
            for inner in walk_folder(name, ledger):
                scanner.path(inner, lenient=True)
        else:
            scanner.path(name)
    findings = tuple(ledger.findings)
    names = tuple(sorted(ledger.names.values(), key=lambda named: named.name))
    return ScanReport(name, outcome(findings), findings, names, ledger.files)

"""`ckptkit scan`: what would run, were it loaded unsafely."""

import sys
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from ckptkit.cli import options
from ckptkit.cli.several import each
from ckptkit.cli.text import Terminal, clean, emit
from ckptkit.core.words import plural

if TYPE_CHECKING:
    from ckptkit.verbs.scan import ScanReport
    from ckptkit.verbs.scan.report import Kind

_SHOWN = 40  # findings of one path that are printed one by one
_CODES = {"clean": 0, "unsafe": 1, "unread": 2}
_COLOURS = {"unsafe": "red", "unread": "yellow", "clean": "bold"}
_WORDS: "dict[Kind, str]" = {
    "code": "of code that would run", "unknown": "of unknown classes or operators", "trick": "of tricks",
    "unread": "of parts not read",
}  # fmt: skip


@click.command(
    epilog=options.examples(
        "ckptkit scan model.pt",
        "ckptkit scan downloads/ --format sarif > scan.sarif",
        "ckptkit scan model.ckpt --allow project.config.Config",
    )
)
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=click.Path())
@click.option(
    "--crc", is_flag=True, help="Compare zip members and ONNX data files with their checksums; reads all."
)
@click.option(
    "--allow", metavar="NAME", multiple=True, help="A class (module.name) to take for data. Repeatable."
)
@options.no_plugins
@options.output("text", "json", "sarif")
@options.quiet
def command(paths: tuple[str, ...], crc: bool, allow: tuple[str, ...], style: str | None, quiet: bool) -> int:
    """What would run, were a file loaded unsafely.

    Calls in pickles, tricks in archives, ways out of the folder: nothing is run to find out. Folders are
    scanned with all below them. What is not known to be data is at least unknown. Exit code 0: clean; 1:
    unsafe; 2: some of it could not be read, which is not clean either.
    """
    from ckptkit.core.jsonable import dumps
    from ckptkit.verbs.scan import scan

    reports: list[ScanReport] = []

    def tell(found: "ScanReport", position: int) -> int:
        if style == "sarif":
            reports.append(found)
        elif style == "json":
            sys.stdout.write(dumps(_document(found)) + "\n")
        else:
            emit(_text(found, Terminal.of(sys.stdout), quiet))
        return _CODES[found.verdict]

    code = each(paths, style, lambda path: scan(path, crc=crc, allow=allow), tell)
    if style == "sarif":
        from ckptkit.cli import sarif

        results = (sarif.result(finding, found.path) for found in reports for finding in found.findings)
        sys.stdout.write(dumps(sarif.document(results)) + "\n")
    return code


def _text(found: "ScanReport", terminal: Terminal, quiet: bool) -> Iterator[str]:
    """The verdict with what it rests on, then each finding."""
    counts = Counter(finding.kind for finding in found.findings)
    facts = [clean(found.path)]
    facts += [f"{counts[kind]} {words}" for kind, words in _WORDS.items() if counts[kind]]
    data = sum(named.verdict == "data" for named in found.names)
    if found.names:
        facts.append(f"{plural(len(found.names), 'name')}, {data} of them data")
    if found.files > 1:
        facts.append(f"{found.files} files and members")
    key, *more = terminal.fact(found.verdict, facts)
    yield terminal.paint(key, _COLOURS[found.verdict]) if terminal.colour else key
    yield from more
    if quiet:
        return
    for finding in found.findings[:_SHOWN]:
        where = finding.where.removeprefix(found.path).lstrip(":, /") or finding.where
        yield from terminal.prose(finding.kind, f"{clean(finding.message)} — {clean(where)}")
    if len(found.findings) > _SHOWN:
        yield from terminal.prose("", f"and {len(found.findings) - _SHOWN} more, which --json lists")


def _document(found: "ScanReport") -> dict[str, Any]:
    return {
        "schema": "ckptkit.scan/1",
        "path": found.path,
        "verdict": found.verdict,
        "findings": [
            {
                "code": f.code,
                "severity": f.severity,
                "kind": f.kind,
                "where": f.where,
                "message": f.message,
                "name": f.name or None,
                "called": f.called,
            }
            for f in found.findings
        ],
        "names": found.names,
        "files": found.files,
    }

"""`ckptkit digest`: the content identity of checkpoints."""

import sys
from collections.abc import Mapping
from itertools import chain
from typing import Any

import click

from ckptkit.cli import options, report
from ckptkit.cli.progress import Bar
from ckptkit.cli.several import each
from ckptkit.cli.text import clean, emit, say
from ckptkit.core.words import plural
from ckptkit.verbs.digest import Checked, Digest, check, digest
from ckptkit.verbs.digest.listing import LONGEST, SCHEMA, Listed, line, load, parse


@click.command(
    epilog=options.examples(
        "ckptkit digest model.pt model.safetensors",
        "ckptkit digest llama/ --tensors > llama.digests",
        "ckptkit digest --check llama.digests",
        "ssh host ckptkit digest model.pt | ckptkit digest --check -",
        "ckptkit digest --ignore-names model.pt model.onnx",
    )
)
@click.argument("paths", metavar="PATH...", nargs=-1, type=click.Path())
@click.option("--tensors", is_flag=True, help="List the digest of each tensor too.")
@click.option("--ignore-names", is_flag=True, help="Digest the tensors without their names.")
@click.option(
    "--check", "listing", metavar="FILE", type=click.Path(),
    help="Verify saved digests: this command's output, its --json, or a receipt of convert; - for stdin.",
)  # fmt: skip
@click.option(
    "--textconv", is_flag=True, help="One line per tensor for git diff; exit code 0 whatever happens."
)
@options.include
@options.exclude
@options.section
@options.variant
@options.output("text", "json")
@options.quiet
def command(
    paths: tuple[str, ...],
    tensors: bool,
    listing: str | None,
    textconv: bool,
    style: str | None,
    **chosen: Any,
) -> int:
    """Identify content: the same digest in every format.


    Each line is a BLAKE3 digest, two blanks and PATH. Two checkpoints with the same tensors under the same names
    have the same digest, bit for bit; metadata does not count.

    --check compares with what FILE says; a PATH given with it is read in the place of the one that FILE names. A line
    that is no digest is told, and the others are checked.
    """
    if textconv:
        from ckptkit.cli import textconv as lines

        return lines.convert(paths, chosen["section"], chosen["variant"])
    if listing is not None:
        return _check(listing, paths, style, chosen)
    if not paths:
        raise click.UsageError("missing argument 'PATH...'")

    def tell(found: Digest, position: int) -> int:
        path, whole = paths[position], _whole(found, chosen)
        if style == "json":
            from ckptkit.core.jsonable import dumps

            document = {"schema": SCHEMA, "path": path, "digest": whole, "tensors": found.tensors}
            sys.stdout.write(dumps(document) + "\n")
        else:
            emit([line(path, None, whole)])
            if tensors:
                emit(line(path, name, value) for name, value in found.tensors.items())
        return 0

    return each(paths, style, lambda path: _digest(path, chosen), tell)


def _digest(path: str, chosen: Mapping[str, Any]) -> Digest:
    with Bar(1, quiet=chosen["quiet"]) as bar:
        wanted = {key: chosen[key] for key in ("section", "variant", "include", "exclude")}
        return digest(path, progress=bar.of, **wanted)


def _whole(found: Digest, chosen: Mapping[str, Any]) -> str:
    return found.nameless if chosen["ignore_names"] else found.digest


def _check(listing: str, paths: tuple[str, ...], style: str | None, chosen: Mapping[str, Any]) -> int:
    """Compare with saved digests: 0 all as saved, 1 some are not, 2 something could not be read."""
    if listing == "-":
        saved, malformed = parse(sys.stdin.buffer.read(LONGEST + 1), "stdin")
    else:
        saved, malformed = load(listing)
    if paths:
        listed = list(dict.fromkeys(item.path for item in saved))
        if len(paths) != len(listed):
            says = f"{listing} lists {plural(len(listed), 'checkpoint')}, and {len(paths)} were given"
            raise click.UsageError(says)
        now = dict(zip(listed, paths, strict=True))
        saved = [item._replace(path=now[item.path]) for item in saved]

    wholes = {item for item in saved if item.name is None}

    def compute(path: str) -> tuple[str, Mapping[str, str]]:
        found = _digest(path, chosen)
        if Listed(path, None, found.nameless) in wholes:  # it was saved with --ignore-names
            return found.nameless, found.tensors
        return _whole(found, chosen), found.tensors

    results: list[Checked] = []
    bad_lines = (Checked(error.where or "", None, "unread", error) for error in malformed)
    for result in chain(check(saved, compute), bad_lines):
        results.append(result)
        if style != "json":
            _tell(result, chosen["quiet"])
    bad = [r for r in results if r.status != "ok"]
    if style == "json":
        from ckptkit.core.jsonable import dumps

        rows = [{"path": r.path, "name": r.name, "status": r.status} for r in results]
        verdict = "different" if bad else "equal"
        document = {"schema": "ckptkit.digest-check/1", "verdict": verdict, "results": rows}
        sys.stdout.write(dumps(document) + "\n")
    elif bad:
        sys.stdout.flush()
        say([f"{len(bad)} of {plural(len(results), 'digest')} did not match"])
    return 2 if any(r.status == "unread" for r in bad) else int(bool(bad))


_WORDS = {"ok": "OK", "failed": "FAILED", "missing": "MISSING", "unread": "FAILED to read"}


def _tell(result: Checked, quiet: bool) -> None:
    """One line for each checkpoint, and for each tensor that is not as saved."""
    if result.status == "ok" and (quiet or result.name is not None):
        return
    name = f"  {clean(result.name)}" if result.name is not None else ""
    emit([f"{clean(result.path)}{name}: {_WORDS[result.status]}"])
    if result.error is not None:
        sys.stdout.flush()
        report(result.error)

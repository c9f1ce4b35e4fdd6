"""`ckptkit diff`: what changed between two checkpoints."""

import sys
from collections.abc import Iterator
from typing import Any

import click

from ckptkit.cli import difftext, options
from ckptkit.cli.progress import Bar
from ckptkit.cli.text import Terminal, clean, emit
from ckptkit.verbs.diff import Diff, Entry, Spec, diff


@click.command(
    epilog=options.examples(
        "ckptkit diff base.safetensors tuned.pt",
        "ckptkit diff model.pth model.onnx",
        "ckptkit diff a.pt b.pt --rtol 1e-3 --sort change",
        "ckptkit diff ddp.pt plain.pt --rules strip:module.",
    )
)
@click.argument("a", type=click.Path())
@click.argument("b", type=click.Path())
@click.option("--no-values", is_flag=True, help="Compare headers only: names, dtypes, shapes, ties, graph.")
@click.option("--rtol", type=float, metavar="X", help="Equal within |a − b| ≤ atol + X·|b|.")
@click.option("--atol", type=float, metavar="X", help="Equal within |a − b| ≤ X + rtol·|b|.")
@options.rules
@options.let
@options.reverse
@options.approximate
@click.option("--stat", is_flag=True, help="One line per group of modules.")
@click.option(
    "--sort", type=click.Choice(["file", "name", "change"]), default="file", show_default=True,
    help="Order of changed tensors.",
)  # fmt: skip
@options.include
@options.exclude
@options.section
@options.variant
@options.output("text", "lines", "json", "markdown")
@options.quiet
def command(a: str, b: str, style: str | None, **chosen: Any) -> int:
    """What changed between two checkpoints, of any formats.

    Tensors are equal when every bit is; --rtol and --atol allow more. Tensors of other names or layouts are found by
    content. Metadata alone makes no difference. Exit code: 0 equal, 1 different, 2 could not compare.

    Lines are: status, name, kinds of change, dtype and shape in A and in B, max |Δ|, separated by tabs.
    """
    with Bar(1, quiet=chosen["quiet"]) as bar:
        wanted = (
            "section",
            "variant",
            "include",
            "exclude",
            "rules",
            "reverse",
            "approximate",
            "rtol",
            "atol",
        )
        found = diff(
            a,
            b,
            values=not chosen["no_values"],
            let=dict(chosen["let"]),
            progress=bar.phase,
            **{key: chosen[key] for key in wanted},
        )
    emit(_STYLES[style or "text"](found, chosen))
    return int(not found.equal)


def _text(found: Diff, chosen: dict[str, Any]) -> Iterator[str]:
    return difftext.text(found, Terminal.of(sys.stdout), sort=chosen["sort"], stat=chosen["stat"])


def _markdown(found: Diff, chosen: dict[str, Any]) -> Iterator[str]:
    return difftext.markdown(found, sort=chosen["sort"], stat=chosen["stat"])


def _lines(found: Diff, chosen: dict[str, Any]) -> Iterator[str]:
    for entry in found.entries:
        cells = [
            entry.status,
            _field(entry.name),
            ",".join(entry.kinds) or "-",
            _spec(entry.a),
            _spec(entry.b),
        ]
        yield "\t".join([*cells, repr(entry.values.max_abs) if entry.values else "-"])
    for move in found.renamed:
        yield "\t".join(["renamed", _field(move.target), move.how, *map(_field, move.sources)])


def _field(name: str) -> str:
    """A name that reads back: what does not print as an escape, and backslashes doubled."""
    return clean(name.replace("\\", "\\\\"))


def _spec(spec: Spec | None) -> str:
    return "-" if spec is None else f"{spec.dtype}[{','.join(map(str, spec.shape))}]"


def _json(found: Diff, chosen: dict[str, Any]) -> Iterator[str]:
    from ckptkit.core.jsonable import dumps

    yield dumps(
        {
            "schema": "ckptkit.diff/1",
            "verdict": found.verdict,
            "a": found.a,
            "b": found.b,
            "read": found.read,
            "tolerance": found.tolerance,
            "unrelated": found.unrelated,
            "identical": found.identical,
            "close": [e.name for e in found.entries if e.status == "close"],
            "added": found.added,
            "removed": found.removed,
            "constants": found.constants,
            "changed": [_changed(entry) for entry in found.changed.values()],
            "renamed": [
                {
                    "from": move.sources,
                    "to": move.target,
                    "how": move.how,
                    "text": move.text,
                    "certain": move.certain,
                    "why": move.why,
                    "ulp": move.ulp,
                    "backward": move.backward,
                }
                for move in found.renamed
            ],
            "other": found.other,
        }
    )


def _changed(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "kinds": entry.kinds,
        "a": entry.a and entry.a._asdict(),
        "b": entry.b and entry.b._asdict(),
        "values": entry.values,
        "how": entry.how,
    }


_STYLES = {"text": _text, "markdown": _markdown, "lines": _lines, "json": _json}

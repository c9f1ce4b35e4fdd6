"""`ckptkit convert`: any readable checkpoint to any writable format."""

import re
import sys
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from ckptkit.cli import options
from ckptkit.cli.progress import Bar
from ckptkit.cli.text import KEY, Terminal, clean, emit, finding_text, size
from ckptkit.core.words import plural

if TYPE_CHECKING:
    from ckptkit.match.fit.fitting import Fitting
    from ckptkit.verbs.convert import Plan, Receipt

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 1 << 10, "MI": 1 << 20, "GI": 1 << 30}
_SHOWN = 6  # ties and notes printed one by one
_TOLD = 24  # tensors of a target that are not carried over


def _size(text: str) -> int:
    """Bytes: `5GB`, `500MB`, `1GiB`, `1000000`."""
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?)\s*([KMGT]?I?)B?", text.strip().upper(), re.ASCII)
    nbytes = int(float(match[1]) * _UNITS[match[2]]) if match and match[2] in _UNITS else 0
    if nbytes < 1:
        raise click.BadParameter(f"{text!r} is no size; for example 5GB, 500MB, 1GiB")
    return nbytes


@click.command(
    cls=options.Grouped,
    headings={
        "What to take": "section variant include exclude",
        "What to change": "rules let reverse approximate dtype keep_dtype ties metadata no_metadata",
        "Another model": "fit mismatched allow_code time_limit",
        "ONNX": "into exported_from allow_head_change name_map external prove module",
        "What may be lost": "allow_loss max_expand",
        "How to write": "to max_shard_size with_code sidecar receipt verify dry_run overwrite",
        "How to print": "style quiet help",
    },
    epilog=options.examples(
        "ckptkit convert model.pt model.safetensors",
        "ckptkit convert last.ckpt model.safetensors --rules strip:model. --dtype bfloat16 -n",
        "ckptkit convert vit.pth hf.safetensors --rules auto --like google-vit/",
        "ckptkit convert llama/ llama-bf16/ --dtype bfloat16 --max-shard-size 5GB",
        "ckptkit convert model.onnx big.onnx --onnx-data external",
        "ckptkit convert resnet50.pt start.pt --fit my-resnet.ckpt.yaml --mismatched zeros",
        "ckptkit convert tuned.pt tuned.onnx --into base.onnx --exported-from base.pt",
    ),
)
@click.argument("src", type=click.Path())
@click.argument("dst", type=click.Path())
@click.option("--to", metavar="FORMAT", help="Format to write; else DST's suffix says it.")
@options.include
@options.exclude
@options.section
@options.variant
@options.rules
@options.let
@options.reverse
@options.approximate
@click.option(
    "--like", metavar="PATH", type=click.Path(), help="Refuse a result without the names and shapes of PATH."
)
@click.option("--dtype", metavar="DTYPE", help="Cast float64, float32, float16 and bfloat16 tensors to this.")
@click.option(
    "--keep-dtype", metavar="GLOB", multiple=True, help="Tensors that --dtype leaves alone. Repeatable."
)
@click.option(
    "--ties",
    type=click.Choice(["keep", "copy", "error"]),
    default="keep",
    show_default=True,
    help="Tensors that share bytes: once, once per name, or refuse.",
)
@click.option(
    "--max-shard-size", metavar="SIZE", type=_size, help="Split into files of at most 5GB, 500MB, … each."
)
@click.option(
    "--fit",
    metavar="T",
    type=click.Path(),
    help="Carry over what fits this target (as for check), and drop what it has no place for.",
)
@click.option(
    "--mismatched",
    type=click.Choice(["drop", "zeros", "keep"]),
    help="With --fit: what becomes of tensors of another shape, and of missing ones.",
)
@options.allow_code
@options.time_limit
@options.onnx_data
@click.option(
    "--into", metavar="BASE.onnx", type=click.Path(), help="Put the weights into the graph of this model."
)
@click.option(
    "--exported-from",
    metavar="PATH",
    type=click.Path(),
    help="The checkpoint that BASE.onnx was exported from.",
)
@click.option(
    "--allow-head-change", is_flag=True, help="With --into: its last layer may get another number of classes."
)
@click.option(
    "--name-map", metavar="FILE.json", type=click.Path(), help="With --into: write which weight went where."
)
@click.option(
    "--prove", is_flag=True, help="Run the ONNX model written, and SRC or --module; refuse other outputs."
)
@click.option(
    "--module", metavar="P:F", help="With --prove: the module of the weights, package.module:factory."
)
@click.option(
    "--metadata",
    metavar="KEY=VALUE",
    type=options.pair,
    multiple=True,
    help="Set a metadata key. Repeatable.",
)
@click.option("--no-metadata", is_flag=True, help="Drop the metadata of the source.")
@click.option(
    "--allow-loss", metavar="CODE", multiple=True, help="Accept what an error of this code says. Repeatable."
)
@click.option(
    "--max-expand",
    metavar="FACTOR",
    type=click.FloatRange(min=1),
    default=16.0,
    show_default=True,
    help="Refuse to write more than this many times the stored bytes.",
)
@click.option(
    "--sidecar", metavar="FILE.json", type=click.Path(), help="Write the values that are no tensors here."
)
@click.option(
    "--receipt", metavar="FILE.json", type=click.Path(), help="Record what came from where, with digests."
)
@click.option("--with-code", is_flag=True, help="Copy the *.py files of a folder too.")
@click.option("-n", "--dry-run", is_flag=True, help="Print the plan and stop.")
@click.option("-y", "--overwrite", is_flag=True, help="Replace an existing target.")
@click.option(
    "--verify", is_flag=True, help="Read back and compare every byte; open with the reference library."
)
@options.output("text", "json")
@options.quiet
def command(
    src: str,
    dst: str,
    metadata: tuple[tuple[str, str], ...],
    let: tuple[tuple[str, str], ...],
    receipt: str | None,
    dry_run: bool,
    overwrite: bool,
    verify: bool,
    style: str | None,
    quiet: bool,
    **chosen: Any,
) -> int:
    """Convert any readable checkpoint to any writable format.

    Everything is decided before the first byte is written; --dry-run prints the plan. The target appears whole or
    not at all. What cannot be carried is an error until --allow-loss accepts it. A DST without a suffix is a folder.
    """
    from ckptkit.verbs.convert import check, plan, write

    decided = plan(src, dst, metadata=dict(metadata) or None, let=dict(let), **chosen)
    if style != "json" and not quiet:
        emit(_planned(decided, Terminal.of(sys.stdout)))
        sys.stdout.flush()
    if dry_run:
        check(decided, overwrite=overwrite, receipt=receipt)
        if style == "json":
            emit([_plan_json(decided)])
        elif decided.fit is not None and not quiet:
            emit(decided.fit.rules.text().splitlines())
        return 0
    with Bar(decided.nbytes, quiet=quiet) as bar:
        done = write(decided, overwrite=overwrite, verify=verify, receipt=receipt, progress=bar.phase)
    if style == "json":
        from ckptkit.core.jsonable import dumps

        emit([dumps(done.to_json())])
    elif not quiet:
        emit(_wrote(done, decided, Terminal.of(sys.stdout)))
    return 0


def _planned(decided: "Plan", terminal: Terminal) -> Iterator[str]:
    """What will happen: the answer, then what is left out, changed or worth knowing."""
    facts = [plural(len(decided.graph), "tensor"), f"{size(decided.source.nbytes)} → {size(decided.nbytes)}"]
    casts = Counter((had, decided.graph[name].dtype.name) for name, had in decided.cast.items())
    facts += [
        f"{had} → {now}" + (f" ×{n}" if n < len(decided.graph) else "") for (had, now), n in casts.items()
    ]
    if len(decided.files) > 1:
        facts.append(plural(len(decided.files), "file"))
    facts.append(f"memory ≤ {size(decided.memory)}")
    yield from terminal.fact("plan", facts)
    if decided.fit is not None:
        yield from _fitted(decided.fit, terminal)
    details = []
    if decided.into is not None:
        details.append(_into(decided))
    if decided.left_out:
        details.append(f"left out: {', '.join(map(clean, decided.left_out))}")
    ties = decided.graph.ties()
    details += [f"tie: {clean(name)} = {clean(first)}" for name, first in list(ties.items())[:_SHOWN]]
    if len(ties) > _SHOWN:
        details.append(f"and {len(ties) - _SHOWN} more ties")
    details += [f"loss[{loss.code}]: {finding_text(loss)}" for loss in decided.losses]
    details += [f"{note.severity}: {finding_text(note)}" for note in decided.notes[:_SHOWN]]
    if len(decided.notes) > _SHOWN:
        details.append(f"and {len(decided.notes) - _SHOWN} more notes")
    for detail in details:
        yield from terminal.prose("", detail) if terminal.width else [" " * KEY + detail]


_BECOMES = {
    "extended": "rows of zeros put behind",
    "zeros": "zeros",
    "kept": "kept in its own shape",
    "tied": "the same as",
    "missing": "left out",
}


def _fitted(fit: "Fitting", terminal: Terminal) -> Iterator[str]:
    """What of a target is carried over, and every tensor of it that is not."""
    from ckptkit.match.fit.fitting import change

    carried = sum(item.what == "carried" for item in fit.items)
    facts = [
        clean(fit.target.path),
        f"{carried} of {plural(len(fit.items), 'tensor')} carried over as they are",
    ]
    if fit.dropped:
        facts.append(f"{len(fit.dropped)} dropped that it has no place for")
    yield from terminal.fact("fit", facts)
    rest = [
        (item.name, change(item), f"{_BECOMES[item.what]} {clean(item.other)}".strip())
        for item in fit.items
        if item.what != "carried"
    ]
    rest += [(name, "", "dropped") for name in fit.dropped]
    names, shapes = (max((len(row[at]) for row in rest[:_TOLD]), default=0) for at in (0, 1))
    for name, shape, said in rest[:_TOLD]:
        line = f"{clean(name):{min(names, 48)}}  {shape:{shapes}}  {said}"
        yield from terminal.prose("", line) if terminal.width else [" " * KEY + line]
    if len(rest) > _TOLD:
        yield " " * KEY + f"and {len(rest) - _TOLD} more (--json tells all)"


def _into(decided: "Plan") -> str:
    """How the weights come into the graph, in one line."""
    assert decided.into is not None
    done = decided.into.done
    ways = Counter(
        placed.operation.partition("(")[0] for placed in done.weights if len(placed.operation.split("(")) > 1
    )
    ways_text = "".join(f", {n} by {clean(way)}" for way, n in ways.most_common())
    kept = sum(placed.kept for placed in done.weights)
    text = f"into {clean(decided.into.base.origin.path)}: {plural(len(done.weights), 'weight')}{ways_text}"
    text += f", {kept} unchanged" if kept else ""
    return f"{text}; {plural(len(done.constants), 'constant')} of the graph stay" if done.constants else text


def _wrote(done: "Receipt", decided: "Plan", terminal: Terminal) -> Iterator[str]:
    facts = [clean(decided.target), size(sum(file.nbytes for file in done.outputs))]
    if not done.verified:
        facts.append("header checked (--verify compares every byte)")
    elif done.reference:
        facts.append("every byte compared, and opened with the reference library")
    else:
        facts.append("every byte compared")
    if done.proved is not None:
        facts.append(f"same outputs as {clean(done.proved)}")
    elif done.ran:
        facts.append("runs, with outputs of the new size (--prove compares them)")
    elif decided.into is not None and decided.into.head_changed:
        facts.append("not run, as onnxruntime is missing or has no inputs for it")
    facts += [f"allowed {clean(code)} ×{n}" for code, n in done.losses.items()]
    yield from terminal.fact("wrote", facts)


def _plan_json(decided: "Plan") -> str:
    from ckptkit.core.jsonable import dumps

    return dumps(
        {
            "schema": "ckptkit.plan/1",
            "source": decided.source.origin.path,
            "target": decided.target,
            "folder": decided.folder,
            "format": decided.format,
            "files": [{"path": file.path, "nbytes": file.size} for file in decided.files],
            "nbytes": decided.nbytes,
            "memory": decided.memory,
            "tensors": [
                {
                    "name": name,
                    "source": decided.names[name],
                    "dtype": tensor.dtype.name,
                    "source_dtype": decided.cast.get(name, tensor.dtype.name),
                    "shape": tensor.shape,
                    "sources": decided.trace[name].sources,
                    "rule": decided.trace[name].rule,
                    "operations": decided.trace[name].operations,
                }
                for name, tensor in decided.graph.items()
            ],
            "fit": None if decided.fit is None else decided.fit.to_json(),
            "into": None if decided.into is None else decided.into.name_map(),
            "ties": decided.graph.ties(),
            "left_out": decided.left_out,
            "losses": decided.losses,
            "notes": decided.notes,
        }
    )

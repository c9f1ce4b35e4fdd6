"""`ckptkit show`: the values of one tensor."""

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from ckptkit.cli import options
from ckptkit.cli.text import Terminal, clean, count, emit, number, say, shape, size

if TYPE_CHECKING:
    from ckptkit.verbs.show import Shown

UPCASTS: tuple[str, ...] = ("float64", "float32", "float16", "complex128", "int64", "int32", "int16", "int8")
UPCASTS += ("uint64", "uint32", "uint16", "uint8")
MANY = 1000  # elements; more are shown by their ends
MOST = 1_000_000  # elements of a slice in JSON


@click.command(
    epilog=options.examples(
        "ckptkit show model.pt fc.weight",
        "ckptkit show model.pt fc.weight --slice 0:3,:",
        "ckptkit show model.safetensors fc.weight -o fc.npy --upcast float32",
    )
)
@click.argument("path", type=click.Path())
@click.argument("name")
@click.option("--slice", "part", metavar="SLICE", help="A part of it, as numpy writes it: 0:3,:")
@click.option(
    "-o", "--output", metavar="FILE.npy", type=click.Path(), help="Write the values as a .npy file."
)
@click.option(
    "--upcast", metavar="DTYPE", type=click.Choice(UPCASTS), help="Convert to this dtype in the .npy file."
)
@click.option("-y", "--overwrite", is_flag=True, help="Replace an existing file.")
@options.section
@options.variant
@options.output("text", "json")
@options.quiet
def command(
    path: str,
    name: str,
    part: str | None,
    output: str | None,
    upcast: str | None,
    overwrite: bool,
    section: str | None,
    variant: str | None,
    style: str | None,
    quiet: bool,
) -> int:
    """Values and statistics of one tensor.

    Statistics are over what is shown: the tensor or a --slice of it, of which only that part is read. Min, max, mean
    and std are of the finite values. Many values are shown by their ends; JSON has all values of a tensor of up to
    1,000 elements and of a --slice of up to 1,000,000, else null.
    """
    from ckptkit.core.options import ReadOptions
    from ckptkit.format import read_with
    from ckptkit.verbs.show import parse_slice, save_npy, show

    graph = read_with(path, ReadOptions(section, variant))
    index = parse_slice(part) if part is not None else ()
    shown = show(graph, name, index, measure=output is None)
    if output is not None:
        written = save_npy(shown, output, upcast=upcast, overwrite=overwrite)
        if not quiet:
            say([f"wrote  {clean(output)} · {shape(shown.values.shape)} · {size(written)}"])
    elif style == "json":
        sys.stdout.write(_json(path, shown, part) + "\n")
    else:
        emit(_text(shown, part))
    return 0


def _text(shown: "Shown", part: str | None) -> list[str]:
    import numpy as np

    from ckptkit.verbs.show import native

    terminal = Terminal.of(sys.stdout)
    tensor, stats = shown.tensor, shown.statistics
    facts = [tensor.dtype.name, shape(tensor.shape), size(tensor.nbytes)]
    facts += [clean(text) for text in (tensor.kind, tensor.note) if text]
    lines = [f"{terminal.paint(clean(shown.name), 'bold')}   {' · '.join(facts)}"]
    if part is not None:
        lines += terminal.fact("slice", [f"[{clean(part)}] → {shape(shown.values.shape)}"])
    if stats is not None:
        measures = {"min": stats.minimum, "max": stats.maximum, "mean": stats.mean, "std": stats.std}
        counts = {"zero" if stats.zeros == 1 else "zeros": stats.zeros, "NaN": stats.nan, "Inf": stats.inf}
        texts = [f"{what} {number(value)}" for what, value in measures.items()]
        if stats.nan or stats.inf:
            texts[-1] += " (of the finite values)"
        texts += [f"{count(value)} {what}" for what, value in counts.items() if value]
        lines += terminal.fact("statistics", texts)
    width = terminal.width or 120
    values = native(shown.values)
    lines.append(np.array2string(values, threshold=MANY, max_line_width=width, separator=", "))
    return lines


def _json(path: str, shown: "Shown", part: str | None) -> str:
    from ckptkit.core.jsonable import dumps
    from ckptkit.verbs.show import native

    tensor = shown.tensor
    whole = shown.values.size <= (MANY if part is None else MOST)
    return dumps(
        {
            "schema": "ckptkit.show/1",
            "path": path,
            "name": shown.name,
            "dtype": tensor.dtype.name,
            "shape": tensor.shape,
            "nbytes": tensor.nbytes,
            "kind": tensor.kind,
            "note": tensor.note,
            "statistics": None if shown.statistics is None else asdict(shown.statistics),
            "slice": part,
            "values": native(shown.values).tolist() if whole else None,
        }
    )

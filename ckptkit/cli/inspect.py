"""`ckptkit inspect`: what is in a checkpoint."""

import sys
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

import click

from ckptkit.cli import options, render
from ckptkit.cli.facts import facts
from ckptkit.cli.progress import Bar
from ckptkit.cli.several import each
from ckptkit.cli.text import Terminal, clean, emit
from ckptkit.core.globs import selected
from ckptkit.core.graph import TensorGraph
from ckptkit.core.names import natural
from ckptkit.core.options import ReadOptions
from ckptkit.core.tensor import Tensor
from ckptkit.format import read_with, registry
from ckptkit.verbs.inspect import section_of, summarise

if TYPE_CHECKING:
    from ckptkit.core.numeric import Statistics

Measured = dict[str, "Statistics | None"]


@click.command(
    epilog=options.examples(
        "ckptkit inspect model.safetensors",
        "ckptkit inspect checkpoint.pt --section optimizer --objects",
        "ckptkit inspect llama/ --include '*.layers.0.*' --stats",
        "ckptkit inspect *.pt --lines --sort size | head",
    )
)
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=click.Path())
@click.option(
    "--stats",
    is_flag=True,
    help="Read the tensors: zeros, NaN, Inf, and min, max, mean, std of the finite.",
)
@click.option(
    "--objects", is_flag=True, help="List every value that is no tensor; with --stats after the tensors."
)
@click.option(
    "--sort",
    type=click.Choice(["file", "name", "size"]),
    default="file",
    show_default=True,
    help="Order of tensors.",
)
@options.include
@options.exclude
@options.section
@options.variant
@options.output("text", "lines", "json", "markdown")
@options.quiet
def command(paths: tuple[str, ...], style: str | None, **chosen: Any) -> int:
    """What is in a checkpoint.

    PATH is a file, a folder or an index.json; several are reported one after the other. Only headers are read,
    and nothing found in a file is run. Repeated layers are folded: layers.{0..31}. Lines are: name, dtype, shape,
    bytes, separated by tabs; with --stats also min, max, mean, std, zeros, NaN, Inf. Min, max, mean and std are of the
    finite values: null in JSON, - in lines where there are none.
    """
    style = style or "text"
    chosen["several"] = len(paths) > 1

    def tell(found: "tuple[TensorGraph, Measured | None]", position: int) -> int:
        if position and style in ("text", "markdown"):
            sys.stdout.write("\n")
        _STYLES[style](*found, chosen)
        return 0

    return each(paths, style, lambda path: _look(path, chosen), tell)


def _look(path: str, chosen: dict[str, Any]) -> tuple[TensorGraph, Measured | None]:
    """Read one checkpoint, choose and order its tensors, and measure them if that is asked for."""
    wanted = ReadOptions(chosen["section"], chosen["variant"], ambiguous="all")
    graph = read_with(path, wanted)
    names = list(graph)
    if chosen["include"] or chosen["exclude"]:
        names = selected(names, chosen["include"], chosen["exclude"])
    if chosen["sort"] == "name":
        names.sort(key=natural)
    elif chosen["sort"] == "size":
        names.sort(key=lambda name: -graph.tensors[name].nbytes)
    if names != list(graph):
        graph = graph.select(names)
    if not chosen["stats"]:
        return graph, None
    from ckptkit.core.expansion import refuse_to_stream
    from ckptkit.core.numeric import statistics

    refuse_to_stream(graph)
    with Bar(sum(tensor.nbytes for tensor in graph.values()), quiet=chosen["quiet"]) as bar:
        measured: Measured = {}
        for name, tensor in graph.items():
            measured[name] = statistics(tensor)
            bar.advance(tensor.nbytes)
    return graph, measured


def _text(graph: TensorGraph, measured: Measured | None, chosen: dict[str, Any]) -> None:
    terminal = Terminal.of(sys.stdout)
    summary = summarise(graph)
    emit(facts(graph, summary, _title(graph), terminal, chosen["quiet"]))
    if measured is not None:
        emit(render.measured_table(graph.tensors, measured, terminal))
    if chosen["objects"]:
        emit(render.objects(graph.objects, terminal))
    elif measured is None:
        emit(render.table(render.tree(graph.tensors, summary.ties), terminal))


def _markdown(graph: TensorGraph, measured: Measured | None, chosen: dict[str, Any]) -> None:
    from ckptkit.cli import markdown

    emit(markdown.document(graph, summarise(graph), _title(graph), measured, objects=chosen["objects"]))


def _lines(graph: TensorGraph, measured: Measured | None, chosen: dict[str, Any]) -> None:
    from ckptkit.core.jsonable import dumps

    lead = f"{clean(graph.origin.path)}\t" if chosen["several"] else ""
    if measured is not None or not chosen["objects"]:
        texts: dict[tuple[str, tuple[int, ...]], str] = {}
        emit(_line(lead, name, tensor, texts, measured) for name, tensor in graph.items())
    if chosen["objects"]:
        emit(f"{lead}{clean(o.path)}\t{clean(o.type)}\t{dumps(o.value)}" for o in graph.objects)


def _line(
    lead: str,
    name: str,
    tensor: Tensor,
    texts: dict[tuple[str, tuple[int, ...]], str],
    measured: Measured | None,
) -> str:
    key = (tensor.dtype.name, tensor.shape)
    text = texts.get(key)
    if text is None or not tensor.dtype.bits:
        text = texts[key] = f"{key[0]}\t[{','.join(map(str, key[1]))}]\t{tensor.nbytes}"
    line = f"{lead}{clean(name)}\t{text}"
    if measured is None:
        return line
    values = measured[name]
    numbers = ["-"] * 7 if values is None else ["-" if v is None else repr(v) for v in astuple(values)]
    return "\t".join([line, *numbers])


def _json(graph: TensorGraph, measured: Measured | None, chosen: dict[str, Any]) -> None:
    from ckptkit.cli import jsontext

    for piece in jsontext.inspected(graph, summarise(graph), section_of(graph), measured):
        sys.stdout.write(piece)


def _title(graph: TensorGraph) -> str:
    return registry.named(graph.origin.format).title


_STYLES = {"text": _text, "markdown": _markdown, "lines": _lines, "json": _json}

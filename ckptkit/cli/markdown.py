"""A checkpoint as Markdown, for pull requests and model cards."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from ckptkit.cli import render
from ckptkit.cli.facts import facts
from ckptkit.cli.text import Terminal, clean, number
from ckptkit.core.graph import TensorGraph
from ckptkit.verbs.inspect import Summary

if TYPE_CHECKING:
    from ckptkit.core.numeric import Statistics

_PLAIN = Terminal()


def document(
    graph: TensorGraph,
    summary: Summary,
    title: str,
    measured: "Mapping[str, Statistics | None] | None",
    *,
    objects: bool,
) -> Iterator[str]:
    """The facts as a list, then the tensors (or the other values) as a table."""
    answer, *rest = facts(graph, summary, title, _PLAIN, quiet=False)
    path, _, said = answer.partition("   ")
    yield f"### {code(path)}\n"
    yield f"{escape(said)}\n"
    for line in rest:
        yield f"- {escape(line)}"
    if rest:
        yield ""
    if measured is not None:
        yield from table(
            ("tensor", "min", "max", "mean", "std", "zeros", "NaN", "Inf"),
            ((code(clean(name)), *_cells(values)) for name, values in measured.items()),
        )
        if any(map(render.odd, measured.values())):
            yield f"\n{render.FINITE}"
    if objects:
        yield from ("",) if measured is not None else ()
        yield from table(
            ("path", "type", "value"),
            ((code(clean(o.path)), code(clean(o.type)), escape(render.value(o))) for o in graph.objects),
        )
    elif measured is None:
        rows = render.tree(graph.tensors, summary.ties)
        yield from table(
            ("tensor", "dtype", "shape", "size", ""),
            ((_indented(row.label), row.dtype, row.shape, row.nbytes, escape(row.more)) for row in rows),
        )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """A table in the dialect of GitHub."""
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def escape(text: str) -> str:
    """Text that Markdown shows as it is."""
    return "".join("\\" + c if c in "\\`*_{}[]<>#|!~" else c for c in clean(text))


def code(text: str) -> str:
    """A name as code; pipes would end the cell and backticks the code."""
    return f"`{text.replace('|', chr(92) + '|')}`" if "`" not in text else escape(text)


def _indented(label: str) -> str:
    name = label.lstrip(" ")
    return "&emsp;" * ((len(label) - len(name)) // 2) + code(name)


def _cells(values: "Statistics | None") -> list[str]:
    if values is None:
        return [""] * 7
    measures = (values.minimum, values.maximum, values.mean, values.std)
    return [*map(number, measures), str(values.zeros), str(values.nan), str(values.inf)]

"""A checkpoint as lines of text, for `git diff`: what git calls a textconv driver.

git gives the path of a file and shows the difference of what two such runs print; a driver that fails aborts the
whole diff, so this one never does. Tensors come first, by name: name, dtype, shape and the first 16 digits of the
content digest. Then, marked, what is no tensor.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import click

from ckptkit.cli.text import clean, emit
from ckptkit.core.errors import CkptError
from ckptkit.core.expansion import refuse_to_stream
from ckptkit.core.graph import TensorGraph
from ckptkit.core.names import natural
from ckptkit.core.options import ReadOptions
from ckptkit.format import read_with
from ckptkit.match.digest import digests

_DIGITS = 16
_WIDTH = 200  # characters


def convert(paths: Sequence[str], section: str | None, variant: str | None) -> int:
    """Print one file; exit code 0 whatever it holds. A usage error, which no file can cause, is one."""
    if len(paths) != 1:
        raise click.UsageError("--textconv takes one PATH")
    try:
        graph = read_with(paths[0], ReadOptions(section, variant, ambiguous="all"))
        lines = list(_lines(graph))
    except CkptError as error:
        # Not `where`: git's temporary files have another name each time.
        lines = [f"{error.code}: {clean(error.message)}"]
    except Exception as error:  # noqa: BLE001 — a defect must not abort git's diff either
        lines = [f"internal: {type(error).__name__}"]
    emit(lines)
    return 0


def _lines(graph: TensorGraph) -> Iterator[str]:
    refuse_to_stream(graph)
    found = digests(graph.tensors)
    for name in sorted(graph, key=natural):
        tensor = graph[name]
        shape = "×".join(map(str, tensor.shape)) or "scalar"
        yield f"{clean(name)}\t{tensor.dtype}\t{shape}\t{found[name][:_DIGITS]}"
    for tied, first in graph.ties().items():
        yield f"# tie\t{clean(tied)}\t{clean(first)}"
    from ckptkit.verbs.diff.graphs import facts

    for what, name, value in facts(graph):
        yield f"# {what}\t{clean(name)}\t{_text(value)}"


def _text(value: Any) -> str:
    """The value in one line; of a long one the beginning, and a digest that tells whether the rest is the same."""
    match value:
        case {"type": kind, "value": None}:
            text = str(kind)
        case {"type": kind, "value": inner}:
            text = f"{kind} {inner}"
        case _:
            text = str(value)
    if len(text) > _WIDTH:
        from blake3 import blake3

        text = f"{text[:_WIDTH]}… {blake3(text.encode('utf-8', 'surrogatepass')).hexdigest()[:_DIGITS]}"
    return clean(text)

"""A checkpoint as lines of text, for `git diff`: what git calls a textconv driver.

git gives the path of a file and shows the difference of what two such runs print; a driver that fails aborts the
whole diff, so this one never does. Tensors come first, by name: name, dtype, shape and the first 16 digits of the
content digest. Then, marked, what is no tensor.
"""

from collections.abc import Iterator, Sequence

import click

from ckptkit.cli.text import clean, emit, shorten
from ckptkit.core.errors import CkptError
from ckptkit.core.graph import TensorGraph
from ckptkit.core.names import natural
from ckptkit.core.options import ReadOptions
from ckptkit.format import read_with
from ckptkit.match.digest import digests

_DIGITS = 16
_WIDTH = 400


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
    found = digests(graph.tensors)
    for name in sorted(graph, key=natural):
        tensor = graph[name]
        shape = "×".join(map(str, tensor.shape)) or "scalar"
        yield f"{clean(name)}\t{tensor.dtype}\t{shape}\t{found[name][:_DIGITS]}"
    for tied, first in graph.ties().items():
        yield f"# tie\t{clean(tied)}\t{clean(first)}"
    from ckptkit.verbs.diff.graphs import facts

    for what, name, value in facts(graph):
        yield shorten(f"# {what}\t{clean(name)}\t{clean(str(value))}", _WIDTH)

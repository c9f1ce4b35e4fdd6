"""`ckptkit architectures`: the published models that checkpoints are held to by name."""

import sys
from collections.abc import Iterable

import click

from ckptkit.cli import options
from ckptkit.cli.text import Terminal, columns, emit
from ckptkit.core.errors import CkptError
from ckptkit.targets.catalogue import Published, architectures


@click.command(
    epilog=options.examples(
        "ckptkit architectures", "ckptkit architectures llama", "ckptkit architectures --json"
    )
)
@click.argument("words", metavar="[WORD]...", nargs=-1)
@options.output("text", "json", "markdown")
def command(words: tuple[str, ...], style: str | None) -> int:
    """Published architectures, targets of `check` by name.

    There is a contract for each. With WORDs, those that have one of them in their names. A target is NAME,
    NAME@SCHEME for the names of one library, and NAME,DIMENSION=SIZE for another size: resnet50@hf,classes=10.
    `ckptkit contract NAME` prints the contract.
    """
    found = [model for model in architectures() if not words or _has(model, words)]
    if not found:
        raise CkptError("not-found", "no architecture has that in its name", " ".join(words))
    if style == "json":
        from ckptkit.core.jsonable import dumps

        sys.stdout.write(dumps({"schema": "ckptkit.architectures/1", "architectures": found}) + "\n")
    elif style == "markdown":
        from ckptkit.cli.markdown import escape, table

        rows = ([f"`{m.name}`", escape(m.title), ", ".join(m.schemes), ", ".join(m.also)] for m in found)
        emit(table(("name", "model", "names", "also"), rows))
    else:
        terminal = Terminal.of(sys.stdout)
        wide = max(len(model.name) for model in found) + 2
        title = max(columns(model.title) for model in found) + 2
        for model in found:
            name = terminal.paint(model.name.ljust(wide), "bold")
            emit([f"{name}{model.title.ljust(title)}{', '.join(model.schemes)}"])
    return 0


def _has(model: Published, words: Iterable[str]) -> bool:
    text = " ".join((model.name, model.title, *model.also)).lower()
    return any(word.lower() in text for word in words)

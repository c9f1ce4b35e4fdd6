"""`ckptkit formats`: what is read and written."""

import sys

import click

from ckptkit.cli import options
from ckptkit.cli.text import Terminal, emit
from ckptkit.format import FormatInfo, formats


@click.command(epilog=options.examples("ckptkit formats", "ckptkit formats --json"))
@options.output("text", "json", "markdown")
def command(style: str | None) -> int:
    """What is read and written.

    What each format needs, and what is not done yet. The names are what `convert --to` takes. Files are
    recognised by content, whatever their suffix.
    """
    known = formats()
    if style == "json":
        from ckptkit.core.jsonable import dumps

        sys.stdout.write(dumps({"schema": "ckptkit.formats/1", "formats": known}) + "\n")
    elif style == "markdown":
        from ckptkit.cli.markdown import escape, table

        emit(table(("name", *_FACTS), ([f"`{f.name}`", *map(escape, _facts(f).values())] for f in known)))
    else:
        terminal = Terminal.of(sys.stdout)
        for info in known:
            emit([terminal.paint(f"{info.name}   {info.title}", "bold")])
            for key, text in _facts(info).items():
                if text:
                    emit(terminal.prose(f"  {key}", text))
    return 0


_FACTS = ("reads", "writes", "not yet", "needs", "suffixes")


def _facts(info: FormatInfo) -> dict[str, str]:
    texts = (info.reads, info.writes, info.missing, ", ".join(info.needs), " ".join(info.suffixes))
    return dict(zip(_FACTS, texts, strict=True))

"""Options that mean the same in every command."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def output(*formats: str) -> Callable[[F], F]:
    """`--format` with these choices, and `--json` and `--lines` for short; the command gets `style`."""

    def decorate(command: F) -> F:
        for flag in reversed([name for name in ("json", "lines") if name in formats]):
            command = click.option(f"--{flag}", "style", flag_value=flag, help=f"Short for --format {flag}.")(
                command
            )
        return click.option(
            "--format", "style", type=click.Choice(formats), help="How to print.  [default: text]"
        )(command)

    return decorate


section = click.option(
    "--section", metavar="NAME", help="Part of a trainer checkpoint; `all` for everything."
)
variant = click.option("--variant", metavar="NAME", help="Variant of a folder's files, such as fp16.")
include = click.option(
    "--include", metavar="GLOB", multiple=True, help="Only tensors whose name matches. Repeatable."
)
exclude = click.option(
    "--exclude", metavar="GLOB", multiple=True, help="No tensors whose name matches. Repeatable."
)
quiet = click.option("-q", "--quiet", is_flag=True, help="No notes and no progress.")


def examples(*lines: str) -> str:
    """The end of a command's help."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)

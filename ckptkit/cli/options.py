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


def pair(text: str) -> tuple[str, str]:
    """`KEY=VALUE`."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise click.BadParameter(f"{text!r} is not KEY=VALUE")
    return key, value


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
rules = click.option(
    "--rules",
    metavar="RULES",
    multiple=True,
    help="Rules to apply: a .yaml file, a preset, auto, strip:PREFIX or add:PREFIX. Repeatable.",
)
let = click.option(
    "--let", metavar="NAME=VALUE", type=pair, multiple=True, help="A value for the rules. Repeatable."
)
reverse = click.option("--reverse", is_flag=True, help="Apply the rules backwards.")
approximate = click.option("--approximate", is_flag=True, help="With --reverse: accept rounding.")
onnx_data = click.option(
    "--onnx-data",
    "external",
    type=click.Choice(["auto", "inline", "external"]),
    default="auto",
    show_default=True,
    help="ONNX weights inside the model or beside it.",
)
quiet = click.option("-q", "--quiet", is_flag=True, help="No notes and no progress.")


def examples(*lines: str) -> str:
    """The end of a command's help."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)

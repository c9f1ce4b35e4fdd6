"""Options that mean the same in every command."""

import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

F = TypeVar("F", bound=Callable[..., Any])


class Grouped(click.Command):
    """A command with many options: its help lists them under headings, what has none under the last one."""

    def __init__(self, *args: Any, headings: Mapping[str, str], **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.headings = {name: title for title, names in headings.items() for name in names.split()}

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        titles = dict.fromkeys(self.headings.values())
        rest = list(titles)[-1]
        rows: dict[str, list[tuple[str, str]]] = {title: [] for title in titles}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is not None:
                rows[self.headings.get(parameter.name or "", rest)].append(record)
        for title, records in rows.items():
            with formatter.section(title):
                formatter.write_dl(records)


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


def architectures(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Shell completion of a target: published architectures, and files."""
    from ckptkit.targets import catalogue

    known = [model for model in catalogue.architectures() if model.name.startswith(incomplete.lower())]
    return [
        CompletionItem(incomplete, type="file"),
        *(CompletionItem(model.name, help=model.title) for model in known if incomplete),
    ]


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
    help="Rules to apply: a .yaml file, a preset, auto, strip:PREFIX, add:PREFIX, or '{from: A, to: B}'. "
    "Repeatable.",
)
let = click.option(
    "--let", metavar="NAME=VALUE", type=pair, multiple=True, help="A value for the rules. Repeatable."
)
reverse = click.option("--reverse", is_flag=True, help="Apply the rules backwards.")
approximate = click.option("--approximate", is_flag=True, help="With --reverse: accept rounding.")
onnx_data = click.option(
    "--onnx-data",
    "external",
    type=click.Choice(["auto", "inline", "external", "safetensors", "shared"]),
    default="auto",
    show_default=True,
    help="ONNX weights inside the model, beside it, or where they lie.",
)


def _never_in_hooks(context: click.Context, parameter: click.Parameter, value: bool) -> bool:
    if value and os.environ.get("PRE_COMMIT"):  # which pre-commit sets for its hooks
        raise click.BadParameter("no hook runs code of yours")
    return value


allow_code = click.option(
    "--allow-code",
    is_flag=True,
    callback=_never_in_hooks,
    help="Let package.module:factory run its code.",
)
time_limit = click.option(
    "--time-limit",
    metavar="SECONDS",
    type=click.FloatRange(min=0, min_open=True),
    help="Give up making a model as target after this.  [default: 60]",
)


def _without_plugins(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from ckptkit.format.registry import without_plugins

        context.with_resource(without_plugins())


no_plugins = click.option(
    "--no-plugins",
    is_flag=True,
    callback=_without_plugins,
    expose_value=False,
    help="Load no formats of other packages, as the hooks do.",
)
quiet = click.option("-q", "--quiet", is_flag=True, help="No notes and no progress.")


def examples(*lines: str) -> str:
    """The end of a command's help."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)

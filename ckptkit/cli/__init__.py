"""The command line: `ckptkit COMMAND`. Each command is a module here, imported when it is used.

Only this package prints, knows click, and turns errors into exit codes: 0 fine, 1 findings or differences,
2 could not, 130 interrupted, 128 + n ended by signal n.
"""

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click

from ckptkit.cli.process import Stopped, mute, prepare_streams, stoppable
from ckptkit.cli.text import Terminal, clean, finding_text, say
from ckptkit.core.collector import paused
from ckptkit.core.errors import CkptError
from ckptkit.core.files import io_error
from ckptkit.core.version import VERSION

_COMMANDS = {
    "inspect": "Look",
    "show": "Look",
    "diff": "Compare",
    "digest": "Compare",
    "check": "Gate",
    "contract": "Gate",
    "scan": "Gate",
    "convert": "Change",
    "rules": "Change",
    "export": "Deploy",
    "prove": "Deploy",
    "architectures": "About",
    "formats": "About",
}
_CHOICES = (
    "ambiguous-section",
    "rules-ambiguous",
    "rules-unknown",
)  # errors whose hint has a line for each; names are in others
_EPILOG = """\b
Shell completion (bash; also zsh and fish):
  eval "$(_CKPTKIT_COMPLETE=bash_source ckptkit)"
"""


class Commands(click.Group):
    """The commands, imported by name, listed in groups."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command = import_module(f"ckptkit.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what ends it from outside is an exit code, and not for click to comment on."""
        try:
            code = super().invoke(ctx)
            sys.stdout.flush()
        except KeyboardInterrupt:
            say([""] if sys.stderr.isatty() else [])
            raise click.exceptions.Exit(130) from None
        except BrokenPipeError:
            mute()
            raise click.exceptions.Exit(141) from None
        return code

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title in dict.fromkeys(_COMMANDS.values()):
            found = [
                (name, self.get_command(ctx, name)) for name, group in _COMMANDS.items() if group == title
            ]
            with formatter.section(title):
                formatter.write_dl([(name, c.get_short_help_str(60)) for name, c in found if c is not None])


@click.group(
    cls=Commands,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(VERSION, message="ckptkit %(version)s")
def group() -> None:
    """Inspect and convert model checkpoints: PyTorch, safetensors, ONNX.

    Nothing found in a file is ever run, and no weights are read unless their values are asked for.
    """


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    args = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    prepare_streams()
    try:
        with paused(), stoppable():
            code = group.main(args, prog_name="ckptkit", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except Stopped as stopped:
        return stopped.code
    except CkptError as error:
        return _fail(error, args)
    except click.ClickException as error:
        return _fail(_usage(error), args)
    except OSError as error:  # reading and writing files raise CkptError: this is stdout, on a full disk say
        mute()
        report(io_error(error))
        return 2
    except Exception as error:  # a defect is said in one line too
        if os.environ.get("CKPTKIT_DEBUG"):
            raise
        kind = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        hint = "this is a defect of ckptkit; CKPTKIT_DEBUG=1 shows where it happened"
        return _fail(CkptError("internal", kind, None, hint), args)


def report(error: CkptError) -> None:
    """Say a failure on stderr."""
    terminal = Terminal.of(sys.stderr)
    where = f" — {clean(error.where)}" if error.where else ""
    lines = [f"{terminal.paint(f'error[{error.code}]:', 'red')} {clean(error.message)}{where}"]
    hints = error.hint.split("\n") if error.hint and error.code in _CHOICES else [error.hint]
    for number, hint in enumerate(filter(None, hints)):
        lines.append(f"{'     ' if number else terminal.paint('hint:', 'bold')} {clean(hint)}")
    lines += [
        f"{terminal.paint(f'error[{finding.code}]:', 'red')} {finding_text(finding)}"
        for finding in getattr(error, "findings", ())[1:]
    ]
    say(lines)


def _fail(error: CkptError, args: Sequence[str]) -> int:
    if error.code == "ambiguous-section" and error.hint:
        from ckptkit.core.escaping import shell_word

        typed = " ".join(map(shell_word, args))  # one ready command per candidate
        ready = [f"ckptkit {typed} {option}" for option in error.hint.split("\n")]
        error = CkptError(error.code, error.message, error.where, "\n".join(ready))
    if {"--json", "--format=json"} & set(args) or "--format json" in " ".join(args):
        from ckptkit.cli import jsontext

        sys.stdout.write(jsontext.error(error) + "\n")
        sys.stdout.flush()
    else:
        report(error)
    return 2


def _usage(error: click.ClickException) -> CkptError:
    context = error.ctx if isinstance(error, click.UsageError) else None
    command = context.command_path if context else "ckptkit"
    message = error.format_message().rstrip(".")
    return CkptError("usage", message[:1].lower() + message[1:], None, f"{command} --help")

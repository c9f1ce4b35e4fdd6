"""`ckptkit check`: does a checkpoint fit what it is meant for?"""

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ckptkit.cli import options
from ckptkit.cli.progress import Bar
from ckptkit.cli.text import emit
from ckptkit.core.errors import CkptError

if TYPE_CHECKING:
    from ckptkit.targets.configuration import Configuration, Settings
    from ckptkit.targets.target import Target
    from ckptkit.verbs.check import CheckReport, Misfit


class Outcome(NamedTuple):
    """The answer for one path: a report, or why there is none."""

    path: str
    report: "CheckReport | None"
    error: CkptError | None

    @property
    def code(self) -> int:
        return 2 if self.report is None else int(not self.report.fits)


class _Job(NamedTuple):
    path: str
    target: str | None
    error: CkptError | None = None


@click.command(
    epilog=options.examples(
        "ckptkit check model.safetensors --target model.ckpt.yaml",
        "ckptkit check tuned.pt --target base.safetensors --allow-mismatch 'fc.*'",
        "ckptkit check llama/ --target llama/config.json",
        "ckptkit check model.pt --target my.models:build --allow-code",
        "ckptkit check tuned.pt --target resnet50,classes=10",
        "ckptkit check last.ckpt",
        "ckptkit check --all --format github",
    )
)
@click.argument("paths", metavar="PATH...", nargs=-1, type=click.Path())
@click.option(
    "--target",
    metavar="T",
    type=click.Path(),
    shell_complete=options.architectures,
    help="A contract, checkpoint, ONNX model or config.json, by its path; package.module:factory; or a published "
    "architecture, such as resnet50.",
)
@options.allow_code
@options.time_limit
@click.option("--all", "everything", is_flag=True, help="Every contract here and below, with its checkpoint.")
@click.option(
    "--allow-missing", metavar="GLOB", multiple=True, help="Tensors that may be missing. Repeatable."
)
@click.option(
    "--allow-unexpected", metavar="GLOB", multiple=True, help="Tensors that nothing expects. Repeatable."
)
@click.option(
    "--allow-mismatch", metavar="GLOB", multiple=True, help="Tensors of another dtype or shape. Repeatable."
)
@click.option(
    "--select", metavar="CODE", multiple=True, help="Only findings of this code or pattern. Repeatable."
)
@click.option(
    "--ignore", metavar="CODE", multiple=True, help="No findings of this code or pattern. Repeatable."
)
@click.option(
    "--staged",
    is_flag=True,
    help="Also how git has the files staged: .gitattributes may give them to git-LFS.",
)
@click.option(
    "--values", is_flag=True, help="Read the tensors too: NaN, infinity, weights that are all one number."
)
@options.section
@options.variant
@options.no_plugins
@options.output("text", "json", "github", "sarif", "junit", "markdown")
@options.quiet
def command(
    paths: tuple[str, ...],
    target: str | None,
    everything: bool,
    allow_code: bool,
    time_limit: float | None,
    select: tuple[str, ...],
    ignore: tuple[str, ...],
    staged: bool,
    style: str | None,
    quiet: bool,
    **chosen: Any,
) -> int:
    """Does a checkpoint fit what it is meant for?

    Without --target, PATH is checked against the contract that belongs to it: NAME.ckpt.yaml beside it, or the one
    that .ckptkit.toml names; without one, its health is judged. A contract as PATH stands for its checkpoint. Exit
    code 0: all fit; 1: some do not; 2: some could not be read.
    """
    if not paths and not everything:
        raise click.UsageError("missing argument 'PATH...'")
    if everything and target is not None:
        raise click.UsageError("--all takes each contract with its own checkpoint, and no --target")
    from ckptkit.cli import checkstyles
    from ckptkit.targets.configuration import Configuration, Settings, codes

    configured = Configuration.load()
    if target is not None:
        jobs = [_Job(path, target) for path in paths]
    else:
        jobs = list(_jobs(paths, everything, configured))
    code = 0
    said = Settings(codes(select, None), codes(ignore, None))
    # What a configuration names as target is never code, whatever the command line allows.
    limits = {"allow_code": allow_code and target is not None, "time_limit": time_limit}
    outcomes = _settled(
        _run(jobs, chosen, limits, configured, quiet), configured, said, _staged(jobs, staged)
    )

    def counted() -> Iterator[Outcome]:
        nonlocal code
        for outcome in outcomes:
            code = max(code, outcome.code)
            yield outcome

    several = len(jobs) != 1
    if style in (None, "text"):
        checkstyles.text(counted(), quiet=quiet, several=several)
    else:
        emit(checkstyles.STYLES[str(style)](counted(), several))
        sys.stdout.flush()
    return code


def _jobs(paths: tuple[str, ...], everything: bool, configured: "Configuration") -> Iterator[_Job]:
    """Each checkpoint once, with the contract that belongs to it."""
    from ckptkit.targets.belonging import all_of, checkpoint_of, contract_of, model_of
    from ckptkit.targets.configuration import CONFIGURATION
    from ckptkit.targets.resolve import is_contract

    seen: set[str] = set()
    everything = everything or any(os.path.normpath(path) == configured.path for path in paths)
    named = [path for path in paths if os.path.basename(path) not in CONFIGURATION]
    for path in (*named, *(all_of(configured.contracts) if everything else ())):
        try:
            contract = path if is_contract(path) else None
            model = checkpoint_of(path) if contract else model_of(path)
            if model is None:  # the configuration of something that is no checkpoint
                continue
            contract = contract or contract_of(model, configured.contracts)
        except CkptError as error:
            yield _Job(path, None, error)
            continue
        key = os.path.realpath(model)
        if key not in seen:
            seen.add(key)
            yield _Job(model, contract)


def _run(
    jobs: Iterable[_Job],
    chosen: Mapping[str, Any],
    limits: Mapping[str, Any],
    configured: "Configuration",
    quiet: bool,
) -> Iterator[Outcome]:
    """One after the other; a target is read once, and one that cannot be read hides no other."""
    from ckptkit.format import read
    from ckptkit.targets.resolve import resolve
    from ckptkit.verbs.check import check
    from ckptkit.verbs.check.health import health

    target: Target | None = None
    last: str | None = None
    for path, named, error in jobs:
        with Bar(1, quiet=quiet) as bar:
            try:
                if error is not None:
                    raise error
                if named is None:
                    graph = read(path, chosen["section"], variant=chosen["variant"])
                    found = health(graph, values=chosen["values"], progress=bar.of)
                else:
                    if target is None or named != last:
                        target, last = resolve(named, **limits), named
                    found = check(
                        path, target, **_allowing(chosen, configured.settings(path)), progress=bar.of
                    )
            except CkptError as failure:
                outcome = Outcome(path, None, failure)
            else:
                outcome = Outcome(path, found, None)
        yield outcome


def _allowing(chosen: Mapping[str, Any], settings: "Settings") -> Mapping[str, Any]:
    """The options with what the project allows for the path."""
    more = {"missing": settings.missing, "unexpected": settings.unexpected, "mismatch": settings.mismatch}
    return {**chosen, **{f"allow_{kind}": (*chosen[f"allow_{kind}"], *globs) for kind, globs in more.items()}}


def _staged(jobs: Iterable[_Job], wanted: bool) -> "Mapping[str, tuple[Misfit, ...]]":
    if not wanted:
        return {}
    from ckptkit.verbs.check.staged import staged

    return staged([job.path for job in jobs if os.path.exists(job.path)])


def _settled(
    outcomes: Iterable[Outcome],
    configured: "Configuration",
    said: "Settings",
    staged: "Mapping[str, tuple[Misfit, ...]]",
) -> Iterator[Outcome]:
    """The outcomes with what git has staged, and with only the findings that count here."""
    from ckptkit.verbs.check.selection import concluded, counted, select, unread

    for path, found, error in outcomes:
        settings = configured.settings(path) + said
        if error is not None and not counted(error.code, settings):
            found, error = unread(path, error), None
        if found is not None:
            more = staged.get(path, ())
            found = select(concluded(found, (*more, *found.findings)) if more else found, settings)
        yield Outcome(path, found, error)


__all__ = ["Outcome", "command"]

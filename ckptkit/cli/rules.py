"""`ckptkit rules`: prove, look up and reverse rule files."""

import os
import sys
from collections.abc import Iterator
from typing import Any

import click

from ckptkit.cli import options
from ckptkit.cli.text import Terminal, clean, emit
from ckptkit.core.words import plural
from ckptkit.rules.ruleset import SUFFIXES, Rules, preset_text, presets
from ckptkit.verbs.rules import Report, check_rules, findings_in_order, reversed_text

_SHOWN = 200  # problems printed one by one


@click.group()
def command() -> None:
    """Rule files: how one naming scheme becomes another.

    A rule file is YAML that is proved complete before it runs; presets come with ckptkit.
    """


@command.command(
    "check",
    epilog=options.examples(
        "ckptkit rules check mine.yaml --on model.pt",
        "ckptkit rules check vit-timm-hf --on timm.safetensors --target hf/",
        "ckptkit rules check auto --on model.pt --target other.safetensors",
        "ckptkit rules check mine.yaml --on model.pt --explain layers.0.wq.weight",
    ),
)
@click.argument("rules")
@click.option(
    "--on", "on", metavar="SRC", type=click.Path(), required=True, help="The checkpoint to prove it on."
)
@click.option(
    "--target", metavar="DST", type=click.Path(), help="A checkpoint that the result should be like."
)
@click.option(
    "--explain", metavar="NAME", multiple=True, help="Where a tensor comes from or goes to. Repeatable."
)
@options.let
@options.reverse
@options.approximate
@options.section
@options.variant
@options.output("text", "json")
def check(
    rules: str, let: tuple[tuple[str, str], ...], explain: tuple[str, ...], style: str | None, **chosen: Any
) -> int:
    """Prove rules on a checkpoint: every tensor accounted for, every operation fitting. Reads no weights.

    Exit code: 0 it holds, 1 it does not, 2 could not check.
    """
    report = check_rules(rules, let=dict(let), **chosen)
    emit(_json(report, explain) if style == "json" else _text(report, explain))
    return int(not report.holds)


@command.command("list")
@options.output("text", "json")
def list_presets(style: str | None) -> int:
    """The presets, with what each converts."""
    found = {name: Rules.preset(name).about for name in presets()}
    if style == "json":
        from ckptkit.core.jsonable import dumps

        emit([dumps({"schema": "ckptkit.rules/1", "presets": found})])
        return 0
    width = max(map(len, found), default=0)
    emit(f"{name:{width}}  {about}" for name, about in found.items())
    return 0


@command.command("show")
@click.argument("rules")
def show(rules: str) -> int:
    """The text of a preset, or of a rule file once it is understood."""
    loaded = Rules.load(rules)
    is_file = rules.endswith(SUFFIXES) or os.sep in rules
    text = preset_text(rules) if not is_file and rules in presets() else loaded.text()
    emit(text.rstrip("\n").split("\n"))
    return 0


@command.command(
    "reverse",
    epilog=options.examples(
        "ckptkit rules reverse vit-timm-hf", "ckptkit rules reverse mine.yaml --on model.pt > back.yaml"
    ),
)
@click.argument("rules")
@click.option(
    "--on", "on", metavar="SRC", type=click.Path(),
    help="A checkpoint that the rules apply to: sizes that they do not state are taken from it.",
)  # fmt: skip
@options.let
@click.option("--approximate", is_flag=True, help="Accept rounding.")
@options.section
@options.variant
def reverse(rules: str, let: tuple[tuple[str, str], ...], **chosen: Any) -> int:
    """The rules that undo these, as a rule file on stdout."""
    emit(reversed_text(rules, let=dict(let), **chosen).rstrip("\n").split("\n"))
    return 0


def _text(report: Report, explain: tuple[str, ...]) -> Iterator[str]:
    terminal = Terminal.of(sys.stdout)
    found = findings_in_order(report.findings)
    errors = sum(finding.severity == "error" for finding in found)
    if report.rewrite is not None:
        facts = [f"{plural(report.tensors, 'tensor')} → {len(report.rewrite.graph)}"]
        facts += [f"{count} {kind}" for kind, count in report.kinds.items()]
        if report.holds and report.target is not None:
            facts.append("as the target has them")
        yield from terminal.fact("holds" if report.holds else "differs", [clean(report.rules), *facts])
    else:
        yield from terminal.fact("fails", [clean(report.rules), plural(errors, "problem")])
    for finding in found[:_SHOWN]:
        colour = "red" if finding.severity == "error" else "yellow"
        head = terminal.paint(f"{finding.severity}[{finding.code}]:", colour)
        where = f" — {clean(finding.where)}" if finding.where else ""
        yield f"{head} {clean(finding.message)}{where}"
        if finding.hint:
            yield f"  {terminal.paint('hint:', 'bold')} {clean(finding.hint)}"
    if len(found) > _SHOWN:
        yield f"and {len(found) - _SHOWN} more (--json lists all)"
    for name in explain if report.rewrite is not None else ():
        yield from _explained(report, name)


def _explained(report: Report, name: str) -> Iterator[str]:
    found = report.explain(name)
    if not found:
        yield f"{clean(name)} is dropped"
    for target, step in found:
        yield clean(target)
        yield f"  from  {', '.join(map(clean, step.sources)) or 'nothing'}"
        if step.operations:
            yield f"  by    {', '.join(map(clean, step.operations))}"
        if step.rule:
            yield f"  rule  {clean(step.rule)}"


def _json(report: Report, explain: tuple[str, ...]) -> Iterator[str]:
    from ckptkit.core.jsonable import dumps

    trace = report.rewrite.trace if report.rewrite else {}
    shown = {target: step for name in explain for target, step in report.explain(name)} if explain else trace
    yield dumps(
        {
            "schema": "ckptkit.rules/1",
            "rules": report.rules,
            "verdict": "holds" if report.holds else "does not hold",
            "source": report.source,
            "target": report.target,
            "kinds": report.kinds,
            "findings": findings_in_order(report.findings),
            "tensors": [{"name": name, **step._asdict()} for name, step in shown.items()],
            "dropped": report.rewrite.dropped if report.rewrite else (),
        }
    )

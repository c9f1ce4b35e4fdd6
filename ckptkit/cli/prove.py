"""`ckptkit prove`: do two models give the same outputs?"""

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from ckptkit.cli import options
from ckptkit.cli.text import Terminal, clean, emit, number
from ckptkit.core.words import plural

if TYPE_CHECKING:
    from ckptkit.match.proof.compare import Compared
    from ckptkit.verbs.prove import Proof, Run

_SHOWN = 8  # outputs that differ, shown one by one for each run


def _dim(text: str) -> tuple[str, int]:
    """`NAME=SIZE`."""
    name, _, digits = text.rpartition("=")
    if not name or not (digits.isascii() and digits.isdecimal()) or len(digits) > 9:
        raise click.BadParameter(f"{text!r} is not NAME=SIZE")
    return name, int(digits)


@click.command(
    epilog=options.examples(
        "ckptkit prove tuned.onnx --against base.onnx",
        "ckptkit prove model.onnx --against export.onnx --inputs batch.npz --save runs/",
        "ckptkit prove model.onnx --module my.models:build --weights model.pt --allow-code",
    )
)
@click.argument("a", type=click.Path())
@click.option("--against", metavar="B.onnx", type=click.Path(), help="The reference, an ONNX model.")
@click.option("--module", metavar="P:F", help="The reference, a PyTorch module: package.module:factory.")
@click.option("--weights", metavar="PATH", type=click.Path(), help="Checkpoint for the module.")
@options.allow_code
@click.option(
    "--inputs", metavar="FILE.npz", type=click.Path(), multiple=True, help="Run on these. Repeatable."
)
@click.option(
    "--dim", "dims", metavar="NAME=SIZE", type=_dim, multiple=True, help="Size of a free dimension."
)
@click.option(
    "--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Of random inputs."
)
@click.option(
    "--count", type=click.IntRange(1, 1000), default=3, show_default=True, help="Number of random inputs."
)
@click.option("--rtol", type=click.FloatRange(min=0), metavar="X", help="Tolerance relative to each element.")
@click.option(
    "--atol", type=click.FloatRange(min=0), metavar="X", help="Tolerance relative to a whole output."
)
@click.option(
    "--time-limit",
    metavar="SECONDS",
    type=click.FloatRange(min=0, min_open=True),
    default=300.0,
    show_default=True,
    help="Give up when one run of an ONNX model takes longer.",
)
@click.option("--save", metavar="FOLDER", type=click.Path(), help="Write inputs and outputs here, as .npz.")
@click.option("-y", "--overwrite", is_flag=True, help="Replace an existing folder.")
@options.section
@options.output("text", "json")
def command(a: str, style: str | None, dims: tuple[tuple[str, int], ...], **chosen: Any) -> int:
    """Run two models on the same inputs and compare.

    Inputs are made by the graph's own signature: seeded random ones and edge cases, ids within the tables that they
    look up, masks, free dimensions of several sizes. Floats are equal within rtol·|b| + atol·s, where s is the root
    mean square of the reference's output; the defaults go by dtype (float32: 1e-4, 1e-5). Integers must be equal.
    Exit code: 0 equal, 1 different, 2 could not compare.
    """
    from ckptkit.verbs.prove import prove

    proof = prove(a, dims=dict(dims), **chosen)
    if style == "json":
        from ckptkit.core.jsonable import dumps

        emit([dumps(document(proof))])
    else:
        emit(text(proof, Terminal.of(sys.stdout)))
    return int(not proof.equal)


def document(proof: "Proof") -> dict[str, Any]:
    """The proof as JSON-able values, with its schema."""
    return {
        "schema": "ckptkit.prove/1",
        "verdict": proof.verdict,
        "a": proof.a,
        "b": proof.b,
        "seed": proof.seed,
        "tolerance": proof.tolerance._asdict(),
        "runs": [
            {
                "name": run.name,
                "equal": run.equal,
                "inputs": run.inputs,
                "refused": run.refused,
                "outputs": run.outputs,
            }
            for run in proof.runs
        ],
        "skipped": proof.skipped,
        "notes": proof.notes,
        "saved": proof.saved,
    }


def text(proof: "Proof", terminal: Terminal) -> Iterator[str]:
    """The verdict, then a line per run, with the worst element of each output that differs.

    Differences are relative to the root mean square of the reference's output.
    """
    outputs = max((len(run.outputs) for run in proof.runs), default=0)
    facts = [f"{plural(outputs, 'output')} over {plural(len(proof.runs), 'run')}"]
    worst = max((_relative(o) for run in proof.runs for o in run.outputs), default=0.0)
    facts.append(
        "same bits" if not worst and proof.equal else f"max |Δ| {number(worst)} relative to the output"
    )
    facts.append(f"rtol {proof.tolerance.rtol:g}, atol {proof.tolerance.atol:g}")
    yield from terminal.fact(proof.verdict, facts)
    for run in proof.runs:
        yield from _run(run, terminal)
    for name, reason in proof.skipped.items():
        yield from terminal.prose("skipped", f"{clean(name)}: the reference refuses it: {clean(reason)}")
    for note in proof.notes:
        yield from terminal.prose("note", clean(note))
    if proof.saved:
        yield from terminal.fact("wrote", [f"{clean(proof.saved)}: inputs and outputs of each run"])


def _run(run: "Run", terminal: Terminal) -> Iterator[str]:
    facts = [f"{clean(name)} {clean(spec)}" for name, spec in run.inputs.items()]
    if run.refused:
        yield from terminal.fact(clean(run.name), facts)
        yield from terminal.prose("", f"refused by A, taken by B: {clean(run.refused)}")
        return
    furthest = max(map(_relative, run.outputs), default=0.0)
    yield from terminal.fact(
        clean(run.name), [*facts, f"max |Δ| {number(furthest)}" if furthest else "same bits"]
    )
    differing = [output for output in run.outputs if not output.equal]
    for output in differing[:_SHOWN]:
        yield from terminal.fact("", [_difference(output)])
    if len(differing) > _SHOWN:
        yield from terminal.fact("", [f"and {len(differing) - _SHOWN} more outputs"])


def _difference(output: "Compared") -> str:
    name = clean(output.name)
    if output.a != output.b:
        return f"{name}: {output.a}, and {output.b} in B"
    place = ",".join(map(str, output.worst or ()))
    values = " and ".join(clean(_value(v)) for v in (output.worst_a, output.worst_b))
    return f"{name}: {plural(output.exceeding, 'element')} beyond; the worst, [{place}], is {values} in B"


def _value(value: float | int | str | None) -> str:
    return f"{value:.9g}" if isinstance(value, float) else str(value)


def _relative(output: "Compared") -> float:
    return (output.max_abs or 0.0) / (output.scale or 1.0)

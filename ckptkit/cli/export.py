"""`ckptkit export`: a PyTorch module and its weights → ONNX."""

import logging
import re
import sys
from typing import TYPE_CHECKING, Any

import click

from ckptkit.cli import options
from ckptkit.cli.text import Terminal, clean, emit, size
from ckptkit.core.words import plural

if TYPE_CHECKING:
    from ckptkit.match.proof.signature import Input


def _input(text: str) -> "Input":
    """`NAME:DTYPE[1,3,224,224]`."""
    from ckptkit.match.proof.signature import Input

    match = re.fullmatch(r"([^:]+):(\w+)\[([\d,\s]*)\]", text.strip(), re.ASCII)
    sizes = [part.strip() for part in match[3].split(",") if part.strip()] if match else []
    if not match or not all(part.isdecimal() and len(part) < 10 for part in sizes):
        raise click.BadParameter(f"{text!r} is not NAME:DTYPE[SIZES]; for example x:float32[1,3,224,224]")
    return Input(match[1], match[2], tuple(map(int, sizes)))


@click.command(
    epilog=options.examples(
        "ckptkit export model.safetensors model.onnx --module my.models:build --input 'x:float32[1,3,224,224]'",
        "ckptkit export tuned.pt tuned.onnx --module my.models:build --input 'x:float32[2,3,224,224]' "
        "--dynamic x.0=batch --prove",
        "ckptkit export bert/ bert.onnx --prove",
    )
)
@click.argument("src", type=click.Path())
@click.argument("dst", type=click.Path())
@click.option("--module", metavar="P:F", help="What makes the module: package.module:factory. Runs it.")
@click.option(
    "--input", "inputs", metavar="NAME:DTYPE[SIZES]", type=_input, multiple=True,
    help="An input of forward. Repeatable.",
)  # fmt: skip
@click.option(
    "--dynamic",
    metavar="NAME.AXIS=LABEL",
    type=options.pair,
    multiple=True,
    help="A free dimension. Repeatable.",
)
@click.option("--opset", type=click.IntRange(7, 100), metavar="N", help="Version of the standard operators.")
@options.onnx_data
@click.option("--prove", is_flag=True, help="Run module and model on the same inputs; refuse other outputs.")
@click.option("-y", "--overwrite", is_flag=True, help="Replace an existing target.")
@options.section
@options.output("text", "json")
def command(
    src: str, dst: str, inputs: tuple["Input", ...], dynamic: tuple[tuple[str, str], ...], style: str | None,
    **chosen: Any,
) -> int:  # fmt: skip
    """Make an ONNX model of a PyTorch module and weights.

    --module runs the code of the module. Without it, transformers makes the model of the config.json in the folder SRC,
    which also tells the inputs of text and image models. torch's exporter makes the graph; weights that lose their
    names in it are recorded in the metadata of the model, under ckptkit_weights.
    """
    from ckptkit.verbs.export import export

    logging.disable(logging.WARNING)  # torch tells of packages that the module does not use
    try:
        done = export(src, dst, inputs=inputs, dynamic=dict(dynamic), **chosen)
    finally:
        logging.disable(logging.NOTSET)
    if style == "json":
        from ckptkit.core.jsonable import dumps

        document = {
            "schema": "ckptkit.export/1",
            "source": done.source,
            "target": done.target,
            "module": done.module,
            "nbytes": done.nbytes,
            "inputs": done.graph.inputs,
            "outputs": done.graph.outputs,
            "named": done.named,
            "recorded": done.recorded,
            "merged": done.merged,
            "unused": done.unused,
            "proved": done.proof is not None,
        }
        emit([dumps(document)])
        return 0
    facts = [clean(done.target), size(done.nbytes), f"{plural(len(done.named), 'weight')} by name"]
    if done.recorded:
        facts.append(f"{len(done.recorded)} recorded in the metadata")
    if done.proof is not None:
        facts.append(f"same outputs as {clean(done.module)}")
    terminal = Terminal.of(sys.stdout)
    emit(terminal.fact("wrote", facts))
    for names, what in (
        (done.merged, "equal to others, which stand for them"),
        (done.unused, "not used by the graph"),
    ):
        if names:
            shown = ", ".join(map(clean, names[:4])) + (" …" if len(names) > 4 else "")
            emit(terminal.prose("note", f"{plural(len(names), 'weight')} {what}: {shown}"))
    return 0

"""`ckptkit contract`: write what a checkpoint is into a file for review."""

import os
import sys
from collections.abc import Iterator
from dataclasses import replace

import click

from ckptkit.cli import options
from ckptkit.cli.text import clean, emit, say
from ckptkit.core.words import plural


@click.command(
    epilog=options.examples(
        "ckptkit contract model.safetensors -o model.ckpt.yaml",
        "ckptkit contract llama/ --files -o llama.ckpt.yaml",
        "ckptkit contract model.safetensors -o model.ckpt.yaml --update",
        "ckptkit contract resnet50,classes=10",
    )
)
@click.argument("path", type=click.Path(), shell_complete=options.architectures)
@click.option("-o", "--output", metavar="FILE", type=click.Path(), help="Where to write it; else to stdout.")
@click.option("--update", is_flag=True, help="Bring the existing FILE up to date and show what changes.")
@click.option("--files", is_flag=True, help="State SHA-256 and size of the files, for git-LFS pointers.")
@click.option("--digest", is_flag=True, help="State the content digest; reads all tensors.")
@options.section
@options.variant
@click.option("-n", "--dry-run", is_flag=True, help="With --update: show what would change and stop.")
@click.option("-y", "--overwrite", is_flag=True, help="Replace an existing FILE.")
@options.quiet
def command(
    path: str,
    output: str | None,
    update: bool,
    files: bool,
    digest: bool,
    section: str | None,
    variant: str | None,
    dry_run: bool,
    overwrite: bool,
    quiet: bool,
) -> int:
    """Write down what a checkpoint must be, for check.

    A contract lists names, dtypes, shapes and ties, repeated layers folded. `check` holds checkpoints to it.
    --update replaces tensors, ranges, dimensions and ties, and keeps all else that was written by hand; a
    contract that still fits stays as it is.
    """
    from ckptkit.format import read
    from ckptkit.targets.contract import Contract
    from ckptkit.verbs.contract import update_contract, write_contract

    if dry_run and not update:
        raise click.UsageError("--dry-run needs --update")
    if update and output is None:
        raise click.UsageError("--update needs -o FILE")
    if update:
        if files or digest:
            raise click.UsageError("--update states files and digest again where FILE has them")
        assert output is not None
        old = Contract.load(output)
        new = update_contract(old, read(path, section, variant=variant))
        before, after = old.text(), new.text()
        if before == after:
            if not quiet:
                say([f"{clean(output)} still fits"])
            return 0
        emit(_difference(before, after, output))
        if not dry_run:
            new.save(output, overwrite=True)
        return 0
    contract = write_contract(path, section=section, variant=variant, files=files, digest=digest)
    if output is None:
        sys.stdout.write(contract.text())
        return 0
    if os.path.exists(path):
        contract = replace(contract, checkpoint=_relative(path, output))
    contract.save(output, overwrite=overwrite)
    if not quiet:
        names = len(contract.target().tensors)
        say([f"wrote {clean(output)}: {plural(names, 'tensor')} in {plural(len(contract.entries), 'line')}"])
    return 0


def _relative(path: str, output: str) -> str:
    """The checkpoint from the contract's folder; "" where it does not lie there or below."""
    found = os.path.relpath(path, os.path.dirname(output) or ".").replace(os.sep, "/")
    return "" if found.startswith("../") or found in ("..", ".") or os.path.isabs(found) else found


def _difference(before: str, after: str, name: str) -> Iterator[str]:
    from difflib import unified_diff

    found = unified_diff(before.splitlines(), after.splitlines(), name, f"{name} (updated)", lineterm="")
    return map(clean, found)

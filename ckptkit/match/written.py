"""Checking what was written, before anyone sees it: the header always, every byte on request."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from ckptkit.core.errors import CkptError
from ckptkit.core.graph import TensorGraph
from ckptkit.core.options import ReadOptions
from ckptkit.format import read_with, registry
from ckptkit.match.compare import differing

Progress = Callable[[str, int, int], None]


def check_header(path: Path, expected: TensorGraph) -> TensorGraph:
    """Read the output with our own reader and compare names, shapes and sizes with what was planned.

    Returns the graph read. Raises CkptError `write-check` on any difference: a defect of the writer, never of
    the input.
    """
    written = read_with(path, ReadOptions(section="all"))
    names = sorted(expected.keys() ^ written.keys())
    if names:
        raise CkptError("write-check", "the names read back differ from those planned", names[0])
    for name, tensor in expected.items():
        back = written[name]
        kept = back.dtype == tensor.dtype or tensor.dtype.kind == "quantized"
        if back.shape != tensor.shape or back.nbytes != tensor.nbytes or not kept:
            raise CkptError("write-check", "dtype or shape read back differ from those planned", name)
    return written


def compare_bytes(written: TensorGraph, expected: TensorGraph, progress: Progress | None) -> None:
    """Compare every byte of the output with its source. Raises CkptError `verify-failed`."""
    pairs = {name: (written[name], tensor) for name, tensor in expected.items()}
    places = {(back.storage, tensor.storage): tensor.nbytes for back, tensor in pairs.values()}
    total, done = sum(places.values()), 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress("verify", done, total)

    unequal = differing(pairs, advance)
    if unequal:
        first = next(name for name in expected if name in unequal)
        raise CkptError("verify-failed", "the bytes written differ from their source", first)


def open_with_reference(format_name: str, files: Sequence[Path]) -> bool:
    """Let the format's own library open the output; False when it is not installed.

    Raises CkptError `verify-failed` when it refuses the file.
    """
    opener = registry.named(format_name).load().open_with_reference
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a library's advice on its own dtypes is no finding
            for path in files:
                opener(str(path))
    except ImportError:
        return False
    except Exception as error:
        raise CkptError(
            "verify-failed", f"the reference library refuses the output: {error}", files[-1].name
        ) from error
    return True

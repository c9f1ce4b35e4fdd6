"""Checking what was written, before anyone sees it: the header always, every byte on request."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ckptkit.core.errors import CkptError
from ckptkit.core.graph import TensorGraph
from ckptkit.core.options import ReadOptions
from ckptkit.core.tensor import DEFAULT_CHUNK, Tensor
from ckptkit.format import read_with, registry

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
    total, done = sum(t.nbytes for t in expected.values()), 0
    for name, tensor in expected.items():
        for count in compare(written[name], tensor, name):
            done += count
            if progress is not None:
                progress("verify", done, total)


def compare(a: Tensor, b: Tensor, name: str) -> Iterator[int]:
    """Yield the number of bytes found equal, run by run. Raises CkptError `verify-failed` at a difference."""
    left, right = a.chunks(DEFAULT_CHUNK), b.chunks(DEFAULT_CHUNK)
    x, y = memoryview(b""), memoryview(b"")
    while True:
        x = x or memoryview(next(left, b""))
        y = y or memoryview(next(right, b""))
        size = min(len(x), len(y))
        if size == 0:
            if len(x) != len(y):
                raise CkptError(
                    "verify-failed", "the tensor written has another length than its source", name
                )
            return
        if x[:size].tobytes() != y[:size].tobytes():  # views would be compared one byte at a time
            raise CkptError("verify-failed", "the bytes written differ from their source", name)
        x, y = x[size:], y[size:]
        yield size


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

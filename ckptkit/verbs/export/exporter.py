"""torch's own exporter: a module and its inputs → an ONNX file. Runs the user's code."""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ckptkit.core.dtypes import DTYPES
from ckptkit.core.errors import CkptError
from ckptkit.match.proof.signature import Input
from ckptkit.targets.factory import one_line, users_code

Free = Mapping[str, Mapping[int, str]]


def free_axes(inputs: Sequence[Input], dynamic: Mapping[str, str]) -> dict[str, dict[int, str]]:
    """Input → axis → name of the free dimension, from `input.axis` → name. Raises CkptError `usage`."""
    ranks = {one.name: len(one.shape) for one in inputs}
    found: dict[str, dict[int, str]] = {name: {} for name in ranks}
    for place, label in dynamic.items():
        name, _, axis = place.rpartition(".")
        if not axis.isdecimal() or int(axis) >= ranks.get(name, 0):
            known = ", ".join(f"{name}.0 … {name}.{rank - 1}" for name, rank in ranks.items() if rank)
            raise CkptError("usage", "no input has this axis", place, f"axes: {known}")
        found[name][int(axis)] = label
    return found


def to_onnx(
    made: Any, inputs: Sequence[Input], free: Free, opset: int | None, folder: Path, module: str
) -> Path:
    """Let torch export a module into the folder; the model file.

    Raises CkptError `export-failed`, `package-missing`, `dtype-unknown`.
    """
    from inspect import signature

    import torch

    examples = {one.name: _example(one, free[one.name]) for one in inputs}
    by_name = examples.keys() <= set(signature(made.forward).parameters)
    shapes = {name: dict(axes) for name, axes in free.items()}
    any_free = any(free.values())
    path = folder / "model.onnx"
    try:
        with torch.no_grad(), users_code():
            given = made(**examples) if by_name else made(*examples.values())
        with warnings.catch_warnings(), _silent():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                made,
                () if by_name else tuple(examples.values()),
                str(path),
                kwargs=examples if by_name else None,
                input_names=list(examples),
                output_names=_names(given, examples.keys()),
                opset_version=opset,
                dynamic_shapes=(shapes if by_name else tuple(shapes.values())) if any_free else None,
                dynamo=True,
                verbose=False,
                external_data=True,
            )
    except ImportError as error:
        raise CkptError(
            "package-missing",
            f"torch's exporter needs it: {one_line(error)}",
            module,
            "pip install onnx onnxscript",
        ) from None
    except Exception as error:  # whatever the exporter and the user's code raise
        cause = error.__cause__ or error  # torch's own advice stands around it
        message = f"torch cannot export it: {type(cause).__name__}: {one_line(cause)}"
        raise CkptError("export-failed", message, module) from error
    return path


def _names(given: Any, inputs: Iterable[str]) -> list[str] | None:
    """Names for what a module gives in a dict, nested or not: `logits`, `states.0`. None leaves them to torch."""
    from torch import Tensor
    from torch.utils import _pytree

    if not isinstance(given, Mapping):
        return None
    leaves = [pair for pair in _pytree.tree_flatten_with_path(dict(given))[0] if pair[1] is not None]
    names = [
        ".".join(str(getattr(key, "key", getattr(key, "idx", ""))) for key in path) for path, _ in leaves
    ]
    usable = all(isinstance(leaf, Tensor) for _, leaf in leaves) and len(set(names)) == len(names)
    return names if usable and all(names) and not set(names) & set(inputs) else None


def _example(one: Input, free: Mapping[int, str]) -> Any:
    """An input to trace with: masks are ones, other integers 0, which is an id everywhere; a free dimension is at least
    2, as torch takes sizes of 0 and 1 for fixed."""
    import torch

    if one.dtype not in DTYPES or not isinstance(dtype := getattr(torch, one.dtype, None), torch.dtype):
        raise CkptError("dtype-unknown", "no such dtype", f"{one.name}:{one.dtype}")
    shape = [max(int(n), 2) if axis in free else int(n) for axis, n in enumerate(one.shape)]
    generator = torch.Generator().manual_seed(0)
    if one.is_mask:
        return torch.ones(shape, dtype=dtype)
    return (
        torch.randn(shape, generator=generator).to(dtype)
        if dtype.is_floating_point
        else torch.zeros(shape, dtype=dtype)
    )


@contextmanager
def _silent() -> Iterator[None]:
    """The exporter prints its progress to stdout, and graphs to stderr, whatever it is told."""
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield

"""Several tensors into one, and one into several: what each step takes, what it makes, and what undoes it.

Two tables beside `OPERATIONS`: `JOINS` and `SPLITS`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ckptkit.core.dtypes import DTYPES
from ckptkit.core.errors import CkptError
from ckptkit.core.tensor import Tensor
from ckptkit.ops import join, layout, values
from ckptkit.ops.equal import same
from ckptkit.rules.operations import DIM, Arguments, split_sizes


@dataclass(frozen=True, slots=True)
class Join:
    """A row of `JOINS`: several tensors into one. `inverse` is the split that undoes it, "" if there is none."""

    run: Callable[[Sequence[Tensor], Arguments], Tensor]
    takes: Mapping[str, str]
    inverse: str
    about: str


def _concat(tensors: Sequence[Tensor], args: Arguments) -> Tensor:
    if "sizes" in args and tensors:
        dim = layout.axis(tensors[0], args["dim"])
        found = [tensor.shape[dim] for tensor in tensors]
        wanted = split_sizes(sum(found), len(found), args["sizes"])
        if list(wanted) != found:
            raise CkptError("op-shape", f"parts of {found} are joined where {list(wanted)} were stated")
    return join.concat(tensors, args["dim"])


def _weight_norm(tensors: Sequence[Tensor], args: Arguments) -> Tensor:
    magnitude, direction = _exactly(tensors, 2, "a magnitude and a direction")
    return values.weight_norm(magnitude, direction)


def _dequantize(tensors: Sequence[Tensor], args: Arguments) -> Tensor:
    if len(tensors) not in (2, 3):
        raise CkptError("op-shape", "dequantize takes a weight, its scales and perhaps zero points")
    zero = tensors[2] if len(tensors) == 3 else None
    dtype = args.get("dtype", DTYPES["bfloat16"])
    return values.dequantize(
        tensors[0], tensors[1], zero, args.get("block", ()), dtype, args.get("inverse", False)
    )


def _fold_weight(tensors: Sequence[Tensor], args: Arguments) -> Tensor:
    weight, gamma, variance = _exactly(tensors, 3, "a weight, gamma and the running variance")
    return values.batch_norm_weight(weight, gamma, variance, args.get("eps", 1e-5))


def _fold_bias(tensors: Sequence[Tensor], args: Arguments) -> Tensor:
    if len(tensors) not in (4, 5):
        raise CkptError("op-shape", "fold_bias takes gamma, beta, mean, variance and perhaps a bias")
    gamma, beta, mean, variance = tensors[:4]
    bias = tensors[4] if len(tensors) == 5 else None
    return values.batch_norm_bias(mean, variance, gamma, beta, bias, args.get("eps", 1e-5))


def _exactly(tensors: Sequence[Tensor], count: int, what: str) -> Sequence[Tensor]:
    if len(tensors) != count:
        raise CkptError("op-shape", f"{len(tensors)} tensors instead of {what}")
    return tensors


_OVER = {"over": "name?", "start": "int?", "parts": "int?"}
# fmt: off
JOINS: dict[str, Join] = {
    "concat": Join(_concat, DIM | _OVER | {"sizes": "sizes?"}, "split", "one after the other along a dimension"),
    "stack": Join(lambda t, a: join.stack(t, a["dim"]), DIM | _OVER, "unstack", "side by side along a new dimension"),
    "same": Join(lambda t, a: same(t), _OVER, "", "equal tensors, compared, as one"),
    "combine": Join(lambda t, a: values.combine(t, a["with"]), {"with": "word"} | _OVER, "", "mean, add, subtract, multiply or divide"),
    "weight_norm": Join(_weight_norm, {}, "", "g · v / ‖v‖"),
    "dequantize": Join(_dequantize, {"block": "ints?", "dtype": "dtype?", "inverse": "flag?"}, "", "(weight − zero point) · scale"),
    "fold_weight": Join(_fold_weight, {"eps": "number?"}, "", "a weight with the batch norm after it folded in"),
    "fold_bias": Join(_fold_bias, {"eps": "number?"}, "", "a bias with the batch norm after it folded in"),
}
SPLITS: dict[str, Mapping[str, str]] = {
    "split": DIM | _OVER | {"sizes": "sizes?"},
    "unstack": DIM | _OVER,
}
# fmt: on


def split(tensor: Tensor, dim: int, parts: int, sizes: Sequence[int] | str) -> list[Tensor]:
    """The parts of a tensor along a dimension."""
    at = layout.axis(tensor, dim)
    found = []
    start = 0
    for size in split_sizes(tensor.shape[at], parts, sizes):
        found.append(layout.narrow(tensor, at, start, start + size))
        start += size
    return found


def unstack(tensor: Tensor, dim: int, index: int) -> Tensor:
    """One entry of a dimension, without it."""
    at = layout.axis(tensor, dim)
    shape = (*tensor.shape[:at], *tensor.shape[at + 1 :])
    return layout.reshape(layout.narrow(tensor, at, index, index + 1), shape)

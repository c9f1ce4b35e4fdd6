"""The operations that rules know: what each takes, what it makes of a tensor, and what undoes it.

Three tables: `OPERATIONS` turn one tensor into one, `JOINS` several into one, `SPLITS` one into several. A row is all
there is to an operation here; its arithmetic lies in `ckptkit.ops`. Sizes and indices are expressions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import Any, Literal

from ckptkit.core.dtypes import DTYPES, DType
from ckptkit.core.errors import CkptError
from ckptkit.core.tensor import Tensor
from ckptkit.ops import join, layout, resize, values
from ckptkit.ops.cast import cast
from ckptkit.rules.expressions import Expression

Exactness = Literal["exact", "approximate", "lossy"]
Arguments = Mapping[str, Any]  # evaluated: int, tuple of int, float, str, bool, function of a tensor
Written = Mapping[str, Any]  # as written: Expression, tuple of them, float, str, bool, tuple of operations

GATHERED = 100_000  # indices of one gather

# Kinds of parameters: int, ints, number, word, flag, dtype; sizes is ints or the word "equal"; ops are operations,
# which arrive as one function of a tensor.
Inverse = Callable[[Written], tuple[str, dict[str, Any]]]


class Irreversible(Exception):
    """Why an operation has no inverse."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One row.

    Attributes:
        run: the result from the tensor and the evaluated arguments; reads nothing.
        takes: parameter → kind; those with `?` may be left out.
        short: the parameter that a bare value stands for; "" if there is none.
        inverse: name and arguments of what undoes it; raises Irreversible.
        exact: whether undoing gives the same bits.
        about: one line for people.
    """

    run: Callable[[Tensor, Arguments], Tensor]
    takes: Mapping[str, str]
    short: str
    inverse: Inverse
    exact: Exactness
    about: str


def _lossy(reason: str) -> Inverse:
    def inverse(args: Written) -> tuple[str, dict[str, Any]]:
        raise Irreversible(reason)

    return inverse


def _undone_by(name: str) -> Inverse:
    return lambda args: (name, dict(args))


def _reshape(tensor: Tensor, args: Arguments) -> Tensor:
    before = args.get("from")
    if before is not None:
        shape = layout.reshape(tensor, before).shape
        if shape != tensor.shape:
            raise CkptError("op-shape", f"shape {list(tensor.shape)} is not {list(before)}")
    return layout.reshape(tensor, args["to"])


def _unreshape(args: Written) -> tuple[str, dict[str, Any]]:
    if "from" not in args:
        raise Irreversible("the shape before is not stated (from)")
    return "reshape", {"from": args["to"], "to": args["from"]}


def _flatten(tensor: Tensor, args: Arguments) -> Tensor:
    first = layout.axis(tensor, args["dim"])
    sizes = args["sizes"]
    last = first + len(sizes)
    found = tensor.shape[first:last]
    if len(found) != len(sizes) or any(n not in (-1, size) for n, size in zip(sizes, found, strict=False)):
        raise CkptError("op-shape", f"sizes {list(sizes)} are not those of shape {list(tensor.shape)}")
    return layout.reshape(tensor, (*tensor.shape[:first], prod(found), *tensor.shape[last:]))


def _unflatten(tensor: Tensor, args: Arguments) -> Tensor:
    at = layout.axis(tensor, args["dim"])
    return layout.reshape(
        tensor, (*tensor.shape[:at], *_sizes(tensor.shape[at], args["sizes"]), *tensor.shape[at + 1 :])
    )


def _sizes(total: int, sizes: Sequence[int]) -> tuple[int, ...]:
    """Factors of a dimension, of which one may be -1."""
    known = prod(n for n in sizes if n != -1)
    found = tuple(total // known if n == -1 and known else n for n in sizes)
    if prod(found) != total or min(found, default=0) < 0:
        raise CkptError("op-shape", f"{total} is not the product of {list(sizes)}")
    return found


def _squeeze(tensor: Tensor, args: Arguments) -> Tensor:
    dims = {layout.axis(tensor, dim) for dim in args["dims"]}
    if any(tensor.shape[dim] != 1 for dim in dims):
        raise CkptError("op-shape", f"dimensions {sorted(dims)} of shape {list(tensor.shape)} are not all 1")
    return layout.reshape(tensor, [n for dim, n in enumerate(tensor.shape) if dim not in dims])


def _unsqueeze(tensor: Tensor, args: Arguments) -> Tensor:
    rank = len(tensor.shape) + len(args["dims"])
    dims = {dim % rank for dim in args["dims"] if -rank <= dim < rank}
    if len(dims) != len(args["dims"]):
        raise CkptError(
            "op-shape", f"dimensions {list(args['dims'])} cannot be added to {list(tensor.shape)}"
        )
    rest = iter(tensor.shape)
    return layout.reshape(tensor, [1 if dim in dims else next(rest) for dim in range(rank)])


def _transpose(tensor: Tensor, args: Arguments) -> Tensor:
    if "dims" not in args:
        if len(tensor.shape) != 2:
            raise CkptError("op-shape", f"shape {list(tensor.shape)} has not two dimensions to exchange")
        return layout.permute(tensor, (1, 0))
    if len(args["dims"]) != 2:
        raise CkptError("op-shape", "transpose exchanges two dimensions")
    a, b = (layout.axis(tensor, dim) for dim in args["dims"])
    order = list(range(len(tensor.shape)))
    order[a], order[b] = b, a
    return layout.permute(tensor, order)


def _heads(tensor: Tensor, args: Arguments) -> Tensor:
    at = layout.axis(tensor, args["dim"])
    sizes = _sizes(tensor.shape[at], args["view"])
    order = args["order"]
    if sorted(order) != list(range(len(sizes))):
        raise CkptError("op-shape", f"{list(order)} does not order {len(sizes)} factors")
    split = layout.reshape(tensor, (*tensor.shape[:at], *sizes, *tensor.shape[at + 1 :]))
    rest = range(at + len(sizes), len(split.shape))
    return layout.reshape(layout.permute(split, (*range(at), *(at + n for n in order), *rest)), tensor.shape)


def _constants(items: Sequence[Expression]) -> list[int]:
    found = [item.tree[1] if item.tree[0] == "value" else None for item in items]
    if any(type(n) is not int for n in found):
        raise Irreversible("its order is not written out")
    return [n for n in found if n is not None]


def _numbers(items: Sequence[int]) -> tuple[Expression, ...]:
    from ckptkit.rules.expressions import constant

    return tuple(map(constant, items))


def _backwards(order: Sequence[int]) -> list[int]:
    return sorted(range(len(order)), key=order.__getitem__)


def _unpermute(args: Written) -> tuple[str, dict[str, Any]]:
    return "permute", {"order": _numbers(_backwards(_constants(args["order"])))}


def _unheads(args: Written) -> tuple[str, dict[str, Any]]:
    order = _constants(args["order"])
    view = tuple(args["view"][n] for n in order)
    return "heads", {**args, "view": view, "order": _numbers(_backwards(order))}


def _blocks(tensor: Tensor, args: Arguments) -> Tensor:
    at = layout.axis(tensor, args["dim"])
    order = args["order"]
    sizes = split_sizes(tensor.shape[at], len(order), args.get("sizes", "equal"))
    if sorted(order) != list(range(len(sizes))):
        raise CkptError("op-shape", f"{list(order)} does not order {len(sizes)} blocks")
    starts = list(accumulate(sizes, initial=0))
    return join.concat([layout.narrow(tensor, at, starts[n], starts[n] + sizes[n]) for n in order], at)


def _unblocks(args: Written) -> tuple[str, dict[str, Any]]:
    order = _constants(args["order"])
    found = {**args, "order": _numbers(_backwards(order))}
    if isinstance(args.get("sizes"), tuple):
        found["sizes"] = tuple(args["sizes"][n] for n in order)
    return "blocks", found


def _slice(tensor: Tensor, args: Arguments) -> Tensor:
    size = tensor.shape[layout.axis(tensor, args["dim"])]
    return layout.narrow(
        tensor, args["dim"], args.get("start", 0), args.get("stop", size), args.get("step", 1)
    )


def _gather(tensor: Tensor, args: Arguments) -> Tensor:
    index = list(args["index"])
    size = tensor.shape[layout.axis(tensor, args["dim"])]
    if len(index) > GATHERED:
        raise CkptError(
            "op-shape", f"{len(index):,} indices, where at most {GATHERED:,} are taken one by one"
        )
    if not index or not all(0 <= n < size for n in index):
        raise CkptError("op-shape", f"the indices do not lie in dimension {args['dim']} of size {size}")
    runs: list[list[int]] = []
    for n in index:
        if runs and runs[-1][1] == n:
            runs[-1][1] = n + 1
        else:
            runs.append([n, n + 1])
    return join.concat([layout.narrow(tensor, args["dim"], first, stop) for first, stop in runs], args["dim"])


def _flip(tensor: Tensor, args: Arguments) -> Tensor:
    size = tensor.shape[layout.axis(tensor, args["dim"])]
    return _gather(tensor, {"dim": args["dim"], "index": range(size - 1, -1, -1)})


def _pad(tensor: Tensor, args: Arguments) -> Tensor:
    at = layout.axis(tensor, args["dim"])
    parts = []
    for count in (args.get("before", 0), args.get("after", 0)):
        if count < 0:
            raise CkptError("op-shape", f"padding by {count}")
        shape = (*tensor.shape[:at], count, *tensor.shape[at + 1 :])
        parts.append(values.fill(tensor.dtype, shape, "constant", args.get("value", 0)))
    return join.concat([parts[0], tensor, parts[1]], at)


def _unpad(args: Written) -> tuple[str, dict[str, Any]]:
    from ckptkit.rules.expressions import parse

    found: dict[str, Any] = {"dim": args["dim"]}
    if "before" in args:
        found["start"] = args["before"]
    if "after" in args:
        found["stop"] = parse(f"dim({args['dim'].text})-({args['after'].text})")
    return "slice", found


def _part(tensor: Tensor, args: Arguments) -> Tensor:
    at = layout.axis(tensor, args["dim"])
    size = tensor.shape[at]
    start, stop = args.get("start", 0), args.get("stop", size)
    before, part, after = (
        layout.narrow(tensor, at, first, last) for first, last in ((0, start), (start, stop), (stop, size))
    )
    changed = args["ops"](part)
    if changed.shape != part.shape or changed.dtype is not part.dtype:
        found = f"{changed.dtype} {list(changed.shape)}"
        raise CkptError("op-shape", f"a part of {part.dtype} {list(part.shape)} has become {found}")
    return join.concat([before, changed, after], at)


def _resize(tensor: Tensor, args: Arguments) -> Tensor:
    return resize.resize(
        tensor, args["dims"], args["to"], args.get("mode", "cubic"), args.get("antialias", False)
    )


def _resize_grid(tensor: Tensor, args: Arguments) -> Tensor:
    """Positions in one dimension, after some that have no place: split, unfold, resample, fold, join."""
    at = layout.axis(tensor, args["dim"])
    skip = args.get("skip", 0)
    head = layout.narrow(tensor, at, 0, skip)
    body = layout.narrow(tensor, at, skip, tensor.shape[at])
    grid, to = args["from"], args["to"]
    if len(grid) != len(to):
        raise CkptError("op-shape", f"a grid of {list(grid)} cannot become {list(to)}")
    unfolded = layout.reshape(body, (*body.shape[:at], *_sizes(body.shape[at], grid), *body.shape[at + 1 :]))
    dims = range(at, at + len(grid))
    new = resize.resize(unfolded, dims, to, args.get("mode", "cubic"), args.get("antialias", False))
    folded = layout.reshape(new, (*body.shape[:at], prod(to), *body.shape[at + 1 :]))
    return join.concat([head, folded], at) if skip else folded


def _cast(tensor: Tensor, args: Arguments) -> Tensor:
    if "from" in args and tensor.dtype is not args["from"]:
        raise CkptError("op-dtype", f"the tensor is {tensor.dtype}, not {args['from']}")
    return cast(tensor, args["to"])


def _uncast(args: Written) -> tuple[str, dict[str, Any]]:
    if "from" not in args:
        raise Irreversible("the dtype before is not stated (from)")
    return "cast", {"from": args["to"], "to": args["from"]}


def _function(name: str) -> Callable[[Tensor, Arguments], Tensor]:
    return lambda tensor, args: values.elementwise(tensor, name, args.get("by"))


_DIM = {"dim": "int"}
# fmt: off
OPERATIONS: dict[str, Operation] = {
    "reshape": Operation(_reshape, {"to": "ints", "from": "ints?"}, "to", _unreshape, "exact", "another shape, the same order; one size may be -1"),
    "flatten": Operation(_flatten, _DIM | {"sizes": "ints"}, "", _undone_by("unflatten"), "exact", "merge neighbouring dimensions of these sizes into one"),
    "unflatten": Operation(_unflatten, _DIM | {"sizes": "ints"}, "", _undone_by("flatten"), "exact", "one dimension into several"),
    "squeeze": Operation(_squeeze, {"dims": "ints"}, "dims", _undone_by("unsqueeze"), "exact", "take out dimensions of size 1"),
    "unsqueeze": Operation(_unsqueeze, {"dims": "ints"}, "dims", _undone_by("squeeze"), "exact", "put in dimensions of size 1"),
    "transpose": Operation(_transpose, {"dims": "ints?"}, "dims", _undone_by("transpose"), "exact", "exchange two dimensions; a matrix needs none named"),
    "permute": Operation(lambda t, a: layout.permute(t, a["order"]), {"order": "ints"}, "order", _unpermute, "exact", "dimensions in another order"),
    "heads": Operation(_heads, _DIM | {"view": "ints", "order": "ints"}, "", _unheads, "exact", "cut a dimension into factors, reorder these, merge them again"),
    "blocks": Operation(_blocks, _DIM | {"order": "ints", "sizes": "sizes?"}, "", _unblocks, "exact", "cut a dimension into blocks and reorder these"),
    "flip": Operation(_flip, _DIM, "dim", _undone_by("flip"), "exact", "a dimension backwards"),
    "slice": Operation(_slice, _DIM | {"start": "int?", "stop": "int?", "step": "int?"}, "", _lossy("a slice forgets the rest"), "lossy", "part of a dimension"),
    "gather": Operation(_gather, _DIM | {"index": "ints"}, "", _lossy("a gather may forget rows"), "lossy", "these indices of a dimension"),
    "pad": Operation(_pad, _DIM | {"before": "int?", "after": "int?", "value": "number?"}, "", _unpad, "exact", "more of a dimension, filled with a number"),
    "part": Operation(_part, _DIM | {"start": "int?", "stop": "int?", "ops": "ops"}, "", _undone_by("part"), "exact", "operations on part of a dimension; the rest stays"),
    "resize": Operation(_resize, {"dims": "ints", "to": "ints", "mode": "word?", "antialias": "flag?"}, "", _lossy("resampling cannot be undone"), "lossy", "resample dimensions: nearest, linear, cubic"),
    "resize_grid": Operation(_resize_grid, _DIM | {"from": "ints", "to": "ints", "skip": "int?", "mode": "word?", "antialias": "flag?"}, "", _lossy("resampling cannot be undone"), "lossy", "resample positions that lie in one dimension"),
    "cast": Operation(_cast, {"to": "dtype", "from": "dtype?"}, "to", _uncast, "approximate", "another floating-point dtype"),
    "add": Operation(_function("add"), {"by": "number"}, "by", _undone_by("subtract"), "approximate", "add a number"),
    "subtract": Operation(_function("subtract"), {"by": "number"}, "by", _undone_by("add"), "approximate", "subtract a number"),
    "multiply": Operation(_function("multiply"), {"by": "number"}, "by", _undone_by("divide"), "approximate", "multiply by a number"),
    "divide": Operation(_function("divide"), {"by": "number"}, "by", _undone_by("multiply"), "approximate", "divide by a number"),
    "neg": Operation(_function("neg"), {}, "", _undone_by("neg"), "exact", "change the sign"),
    "exp": Operation(_function("exp"), {}, "", _undone_by("log"), "approximate", "e to the power"),
    "log": Operation(_function("log"), {}, "", _undone_by("exp"), "approximate", "natural logarithm"),
    "sqrt": Operation(_function("sqrt"), {}, "", _undone_by("square"), "approximate", "square root"),
    "square": Operation(_function("square"), {}, "", _lossy("a square forgets the sign"), "lossy", "square"),
    "reciprocal": Operation(_function("reciprocal"), {}, "", _undone_by("reciprocal"), "approximate", "1 / x"),
    "abs": Operation(_function("abs"), {}, "", _lossy("an absolute value forgets the sign"), "lossy", "absolute value"),
}
# fmt: on


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
    "concat": Join(_concat, _DIM | _OVER | {"sizes": "sizes?"}, "split", "one after the other along a dimension"),
    "stack": Join(lambda t, a: join.stack(t, a["dim"]), _DIM | _OVER, "unstack", "side by side along a new dimension"),
    "same": Join(lambda t, a: values.same(t), _OVER, "", "equal tensors, compared, as one"),
    "combine": Join(lambda t, a: values.combine(t, a["with"]), {"with": "word"} | _OVER, "", "mean, add, subtract, multiply or divide"),
    "weight_norm": Join(_weight_norm, {}, "", "g · v / ‖v‖"),
    "dequantize": Join(_dequantize, {"block": "ints?", "dtype": "dtype?", "inverse": "flag?"}, "", "(weight − zero point) · scale"),
    "fold_weight": Join(_fold_weight, {"eps": "number?"}, "", "a weight with the batch norm after it folded in"),
    "fold_bias": Join(_fold_bias, {"eps": "number?"}, "", "a bias with the batch norm after it folded in"),
}
SPLITS: dict[str, Mapping[str, str]] = {
    "split": _DIM | _OVER | {"sizes": "sizes?"},
    "unstack": _DIM | _OVER,
}
# fmt: on
WORDS: dict[str, tuple[str, ...]] = {
    "with": ("mean", *values.BINARY),
    "mode": resize.MODES,
}  # parameter → its words


def split_sizes(total: int, parts: int, sizes: Sequence[int] | str) -> tuple[int, ...]:
    """The sizes of the parts of a dimension. Raises CkptError `op-shape`."""
    if sizes == "equal":
        if parts < 1 or total % parts:
            raise CkptError("op-shape", f"{total} cannot be divided into {parts} equal parts")
        return (total // parts,) * parts
    found = [int(size) for size in sizes]
    if found.count(-1) == 1:
        found[found.index(-1)] = total - sum(found) - 1
    if len(found) != parts or min(found, default=0) < 0 or sum(found) != total:
        raise CkptError("op-shape", f"{total} cannot be divided into {parts} parts of {list(sizes)}")
    return tuple(found)


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


def dtype(name: str) -> DType:
    """Raises CkptError `dtype-unknown`."""
    found = DTYPES.get(name)
    if found is None:
        from difflib import get_close_matches

        short = name.removeprefix("torch.")
        near = [_SHORT[short]] if short in _SHORT else get_close_matches(short, DTYPES, 2, 0.6)
        hint = f"meant: {' or '.join(near)}" if near else f"known: {', '.join(DTYPES)}"
        raise CkptError("dtype-unknown", f"no dtype is called {name!r}", None, hint)
    return found


_SHORT = {"fp16": "float16", "half": "float16", "bf16": "bfloat16", "fp32": "float32", "float": "float32",
          "fp64": "float64", "double": "float64", "long": "int64", "int": "int32"}  # fmt: skip

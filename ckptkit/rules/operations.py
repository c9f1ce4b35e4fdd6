"""The operations that rules know on one tensor: what each takes, what it makes, and what undoes it.

A row of `OPERATIONS` is all there is to an operation here; its arithmetic lies in `ckptkit.ops`. Sizes and indices are
expressions. What makes one tensor of several, or several of one, is in `ckptkit.rules.joins`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import isfinite, prod
from typing import Any, Literal

from ckptkit.core.dtypes import DTYPES, DType
from ckptkit.core.errors import CkptError
from ckptkit.core.tensor import Tensor
from ckptkit.ops import join, layout, resize, values
from ckptkit.ops.cast import cast
from ckptkit.ops.equal import after, counted
from ckptkit.ops.fill import fill
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


def _undone_with(name: str) -> Inverse:
    """By the opposite arithmetic with the same number."""

    def inverse(args: Written) -> tuple[str, dict[str, Any]]:
        by = args["by"]
        if not isfinite(by) or (name in ("multiply", "divide") and not by):
            raise Irreversible(f"every value comes out alike by {by}")
        return name, dict(args)

    return inverse


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
        parts.append(fill(tensor.dtype, shape, "constant", args.get("value", 0)))
    return join.concat([parts[0], tensor, parts[1]], at)


def _unpad(tensor: Tensor, args: Arguments) -> Tensor:
    """Without what `pad` adds, which is compared with that once the rest is read."""
    at = layout.axis(tensor, args["dim"])
    size = tensor.shape[at]
    before, rest = args.get("before", 0), args.get("after", 0)
    if min(before, rest, size - before - rest) < 0 or (tensor.size and size == before + rest):
        raise CkptError("op-shape", f"a dimension of size {size} has no padding of {before} and {rest}")
    margins = [layout.narrow(tensor, at, *ends) for ends in ((0, before), (size - rest, size))]
    watched = [
        counted(cut, fill(cut.dtype, cut.shape, "constant", args.get("value", 0)))
        for cut in margins
        if cut.size
    ]
    middle = layout.narrow(tensor, at, before, size - rest)
    return after(middle, watched) if watched else middle


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


DIM = {"dim": "int"}
# fmt: off
OPERATIONS: dict[str, Operation] = {
    "reshape": Operation(_reshape, {"to": "ints", "from": "ints?"}, "to", _unreshape, "exact", "another shape, the same order; one size may be -1"),
    "flatten": Operation(_flatten, DIM | {"sizes": "ints"}, "", _undone_by("unflatten"), "exact", "merge neighbouring dimensions of these sizes into one"),
    "unflatten": Operation(_unflatten, DIM | {"sizes": "ints"}, "", _undone_by("flatten"), "exact", "one dimension into several"),
    "squeeze": Operation(_squeeze, {"dims": "ints"}, "dims", _undone_by("unsqueeze"), "exact", "take out dimensions of size 1"),
    "unsqueeze": Operation(_unsqueeze, {"dims": "ints"}, "dims", _undone_by("squeeze"), "exact", "put in dimensions of size 1"),
    "transpose": Operation(_transpose, {"dims": "ints?"}, "dims", _undone_by("transpose"), "exact", "exchange two dimensions; a matrix needs none named"),
    "permute": Operation(lambda t, a: layout.permute(t, a["order"]), {"order": "ints"}, "order", _unpermute, "exact", "dimensions in another order"),
    "heads": Operation(_heads, DIM | {"view": "ints", "order": "ints"}, "", _unheads, "exact", "cut a dimension into factors, reorder these, merge them again"),
    "blocks": Operation(_blocks, DIM | {"order": "ints", "sizes": "sizes?"}, "", _unblocks, "exact", "cut a dimension into blocks and reorder these"),
    "flip": Operation(_flip, DIM, "dim", _undone_by("flip"), "exact", "a dimension backwards"),
    "slice": Operation(_slice, DIM | {"start": "int?", "stop": "int?", "step": "int?"}, "", _lossy("a slice forgets the rest"), "lossy", "part of a dimension"),
    "gather": Operation(_gather, DIM | {"index": "ints"}, "", _lossy("a gather may forget rows"), "lossy", "these indices of a dimension"),
    "pad": Operation(_pad, DIM | {"before": "int?", "after": "int?", "value": "number?"}, "", _undone_by("unpad"), "exact", "more of a dimension, filled with a number"),
    "unpad": Operation(_unpad, DIM | {"before": "int?", "after": "int?", "value": "number?"}, "", _undone_by("pad"), "exact", "a dimension without its padding, which is compared"),
    "part": Operation(_part, DIM | {"start": "int?", "stop": "int?", "ops": "ops"}, "", _undone_by("part"), "exact", "operations on part of a dimension; the rest stays"),
    "resize": Operation(_resize, {"dims": "ints", "to": "ints", "mode": "word?", "antialias": "flag?"}, "", _lossy("resampling cannot be undone"), "lossy", "resample dimensions: nearest, linear, cubic"),
    "resize_grid": Operation(_resize_grid, DIM | {"from": "ints", "to": "ints", "skip": "int?", "mode": "word?", "antialias": "flag?"}, "", _lossy("resampling cannot be undone"), "lossy", "resample positions that lie in one dimension"),
    "cast": Operation(_cast, {"to": "dtype", "from": "dtype?"}, "to", _uncast, "approximate", "another floating-point dtype"),
    "add": Operation(_function("add"), {"by": "number"}, "by", _undone_with("subtract"), "approximate", "add a number"),
    "subtract": Operation(_function("subtract"), {"by": "number"}, "by", _undone_with("add"), "approximate", "subtract a number"),
    "multiply": Operation(_function("multiply"), {"by": "number"}, "by", _undone_with("divide"), "approximate", "multiply by a number"),
    "divide": Operation(_function("divide"), {"by": "number"}, "by", _undone_with("multiply"), "approximate", "divide by a number"),
    "neg": Operation(_function("neg"), {}, "", _undone_by("neg"), "exact", "change the sign"),
    "exp": Operation(_function("exp"), {}, "", _undone_by("log"), "approximate", "e to the power"),
    "log": Operation(_function("log"), {}, "", _undone_by("exp"), "approximate", "natural logarithm"),
    "sqrt": Operation(_function("sqrt"), {}, "", _undone_by("square"), "approximate", "square root"),
    "square": Operation(_function("square"), {}, "", _lossy("a square forgets the sign"), "lossy", "square"),
    "reciprocal": Operation(_function("reciprocal"), {}, "", _undone_by("reciprocal"), "approximate", "1 / x"),
    "abs": Operation(_function("abs"), {}, "", _lossy("an absolute value forgets the sign"), "lossy", "absolute value"),
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

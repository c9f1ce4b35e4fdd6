"""Records of tensors that are made of several: quantised, sparse, nested. The records are listed in `rebuild`."""

import struct
from typing import TYPE_CHECKING, Any

from ckptkit.core.dtypes import DTYPES
from ckptkit.core.tensor import Tensor
from ckptkit.core.views import view
from ckptkit.format.pytorch.nodes import Dict, Global, Object
from ckptkit.format.pytorch.records import Parts, attributes_of, noted, sizes, text, wrong_arguments
from ckptkit.format.pytorch.refs import invalid, short

if TYPE_CHECKING:
    from ckptkit.format.pytorch.rebuild import Rebuilder

_CODES = {"float64": "d", "float32": "f", "int64": "q"}

_SPARSE = {
    "torch.sparse_coo": ("indices", "values"),
    "torch.sparse_csr": ("crow_indices", "col_indices", "values"),
    "torch.sparse_bsr": ("crow_indices", "col_indices", "values"),
    "torch.sparse_csc": ("ccol_indices", "row_indices", "values"),
    "torch.sparse_bsc": ("ccol_indices", "row_indices", "values"),
}

_SCRIPTED_LAYOUTS = {1: "torch.sparse_coo", 2: "torch.sparse_csr"}  # numbers of c10::Layout


def quantized(rebuilder: "Rebuilder", obj: Object) -> Parts:
    args = obj.args
    if len(args) != 7 or type(args[4]) is not tuple or not args[4]:
        raise wrong_arguments(obj)
    ref, start, scheme = rebuilder.ref(args[0]), args[1], args[4]
    shape, strides = sizes(args[2]), sizes(args[3])
    if ref.dtype is None or ref.dtype.kind != "quantized":
        raise invalid("a quantised tensor has a storage of plain numbers")
    name = scheme[0].name if type(scheme[0]) is Global and scheme[0].module == "torch" else ""
    if name == "per_tensor_affine" and len(scheme) == 3:
        return Parts(
            (
                ("", rebuilder.view(ref, ref.dtype, shape, strides, start)),
                ("scale", number(rebuilder, scheme[1], "float64")),
                ("zero_point", number(rebuilder, scheme[2], "int64")),
            )
        )
    if name not in {"per_channel_affine", "per_channel_affine_float_qparams"} or len(scheme) != 4:
        raise invalid(f"quantisation scheme {short(scheme[0])} is not one of torch's")
    _, scales, zeros, axis = scheme
    if type(axis) is not int or not 0 <= axis < len(shape):
        raise invalid("the axis of a quantised tensor is not one of its dimensions")
    types = ("float64", "int64") if name == "per_channel_affine" else ("float32", "float32")
    parts = [
        numbers(rebuilder, found, dtype) if type(found) is list else rebuilder.plain(found)
        for found, dtype in zip((scales, zeros), types, strict=True)
    ]
    if any(part.size != shape[axis] for part in parts):
        raise invalid("a quantised tensor has not one scale and zero point for each channel")
    weight = rebuilder.view(ref, ref.dtype, shape, strides, start)
    return Parts(
        (
            ("", noted(weight, f"quantised along axis {axis}")),
            ("scale", parts[0]),
            ("zero_point", parts[1]),
        )
    )


def sparse(rebuilder: "Rebuilder", obj: Object) -> Parts:
    args = obj.args
    if args and type(args[0]) is int:  # TorchScript
        layout = _SCRIPTED_LAYOUTS.get(args[0])
        data: object = (*args[3:-1], *args[1:2])
    else:
        layout = text(args[0]) if len(args) == 2 else None
        data = args[1] if layout else None
    names = _SPARSE.get(layout or "")
    if names is None or type(data) is not tuple or not len(names) < len(data) <= 4:
        raise wrong_arguments(obj)
    shape = "×".join(map(str, sizes(data[len(names)])))
    kind = (layout or "").removeprefix("torch.sparse_").upper()
    parts = [(name, rebuilder.plain(part)) for name, part in zip(names, data, strict=False)]
    return Parts(
        tuple((name, noted(part, f"sparse {kind} of {shape}", "sparse-as-parts")) for name, part in parts)
    )


def nested_tensor(rebuilder: "Rebuilder", obj: Object) -> Parts:
    if len(obj.args) != 4:
        raise wrong_arguments(obj)
    names = ("values", "sizes", "strides", "offsets")
    return Parts(
        tuple(
            (name, noted(rebuilder.plain(part), "nested", "nested-as-parts"))
            for name, part in zip(names, obj.args, strict=True)
        )
    )


def jagged(rebuilder: "Rebuilder", obj: Object) -> Parts:
    if len(obj.args) != 1 or type(obj.args[0]) is not Dict:
        raise wrong_arguments(obj)
    found = attributes_of(obj.args[0])
    names = [name for name in ("values", "offsets", "lengths") if found.get(name) is not None]
    return Parts(
        tuple((name, noted(rebuilder.plain(found[name]), "nested", "nested-as-parts")) for name in names)
    )


def number(rebuilder: "Rebuilder", value: object, dtype: str) -> Tensor:
    return _packed(rebuilder, [value], dtype, ())


def numbers(rebuilder: "Rebuilder", values: list[Any], dtype: str) -> Tensor:
    return _packed(rebuilder, values, dtype, (len(values),))


def _packed(rebuilder: "Rebuilder", values: list[Any], dtype: str, shape: tuple[int, ...]) -> Tensor:
    try:
        data = struct.pack(f"<{len(values)}{_CODES[dtype]}", *values)
    except (struct.error, OverflowError):
        raise invalid("a scale or zero point is not a number") from None
    return view(rebuilder.held(data), DTYPES[dtype], shape, (1,) * len(shape), 0)

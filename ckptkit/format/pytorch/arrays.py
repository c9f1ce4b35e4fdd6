"""Pickled numpy arrays and scalars, read without numpy.

Layout: an array is `_reconstruct(ndarray, (0,), b'b')` with the state `(1, shape, dtype, is_fortran, raw)`, or
`_frombuffer(raw, dtype, shape, order)` since protocol 5; a scalar is `scalar(dtype, raw)`. A dtype is
`dtype('f4', False, True)` with the state `(3, '<', None, None, None, -1, -1, 0)`, whose second item is the byte
order, third a subarray, and fourth and fifth the names and fields of a record. The types of ml_dtypes
(bfloat16, float8_*) are classes in place of 'f4'. numpy 2 renamed the module numpy.core to numpy._core.

Limits: arrays of numbers and bools. Records, subarrays, text, dates and objects are not arrays of numbers; for
these `array` is None and the caller treats the record as any other object.
"""

import struct
from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

from ckptkit.core.dtypes import DTYPES, DType
from ckptkit.core.errors import CkptError
from ckptkit.format.pytorch.nodes import Global, Object, raw_bytes

_NAMES = {
    "b1": "bool", "i1": "int8", "i2": "int16", "i4": "int32", "i8": "int64",
    "u1": "uint8", "u2": "uint16", "u4": "uint32", "u8": "uint64",
    "f2": "float16", "f4": "float32", "f8": "float64", "c8": "complex64", "c16": "complex128",
}  # fmt: skip
_ML_DTYPES = {d.name for d in DTYPES.values() if d.numpy == d.name and d.bits >= 8} - set(_NAMES.values())
_FORMATS = {
    "bool": "?", "int8": "b", "int16": "h", "int32": "i", "int64": "q", "uint8": "B", "uint16": "H",
    "uint32": "I", "uint64": "Q", "float16": "e", "float32": "f", "float64": "d",
}  # fmt: skip

_BYTES = {(m, n) for m in ("builtins", "__builtin__") for n in ("bytes", "bytearray")}


class Array(NamedTuple):
    """An array's parts; `data` has exactly the bytes that dtype and shape need."""

    dtype: DType
    shape: tuple[int, ...]
    data: bytes
    fortran: bool
    swap: bool


def array(obj: Object, read: Callable[[object], bytes | None]) -> Array | None:
    """The array that the object is; None if its elements are no numbers or it is something else.

    `read` gives the bytes of a node, or None.

    Raises CkptError `tensor-invalid` when shape and bytes disagree.
    """
    if obj.state is None and obj.name[1] == "_frombuffer" and len(obj.args) == 4:
        raw, dtype, shape, order = obj.args
        fortran = order == "F" if isinstance(order, str) else False
    elif type(obj.state) is tuple and len(obj.state) == 5:
        _, shape, dtype, fortran, raw = obj.state
    else:
        return None
    found = numpy_dtype(dtype)
    if found is None:
        return None
    data = read(raw)
    if data is None or type(shape) is not tuple or len(shape) > 64:
        raise _invalid("an array has no bytes or no shape")
    if any(type(n) is not int or n < 0 for n in shape) or prod(shape) * (found[0].bits // 8) != len(data):
        raise _invalid("an array has another number of bytes than its shape needs")
    return Array(found[0], shape, data, bool(fortran), found[1])


def scalar(obj: Object) -> tuple[str, object]:
    """Type name and value of a numpy scalar; the value is None if it is no single number or bool."""
    found = numpy_dtype(obj.args[0]) if obj.args else None
    if found is None:
        return "numpy.generic", None
    dtype, swap = found
    name = f"numpy.{dtype.name}" if dtype.name in _NAMES.values() else f"ml_dtypes.{dtype.name}"
    held = payload(obj.args[1]) if len(obj.args) == 2 else None
    data = raw_bytes(held) if held is not None and len(held) <= 2 * dtype.bits else None
    code = _FORMATS.get(dtype.name)
    if data is None or len(data) != dtype.bits // 8:
        raise _invalid("a scalar has another number of bytes than its type needs")
    return name, struct.unpack((">" if swap else "<") + code, data)[0] if code else None


def numpy_dtype(node: object) -> tuple[DType, bool] | None:
    """Element type and whether it is big-endian; None for anything but numbers and bools."""
    if type(node) is not Object or node.name != ("numpy", "dtype") or not node.args:
        return None
    spelled = node.args[0]
    if type(spelled) is Global and spelled.module == "ml_dtypes" and spelled.name in _ML_DTYPES:
        name: str | None = spelled.name
    elif isinstance(spelled, str):
        name = _NAMES.get(spelled.lstrip("<>|="), spelled if spelled in _NAMES.values() else None)
    else:
        name = None
    state: Any = node.state
    order = "="
    if type(state) is tuple and len(state) >= 5:
        order = state[1]
        if any(part is not None for part in state[2:5]):
            return None
    elif isinstance(spelled, str) and spelled[:1] in "<>":
        order = spelled[:1]
    if name is None:
        return None
    dtype = DTYPES[name]
    return dtype, order == ">" and dtype.parts > 1


def payload(node: object) -> str | bytes | bytearray | None:
    """What holds the bytes of pickled bytes: themselves, or the text of `_codecs.encode(text, 'latin1')` as
    protocols 0 to 2 have it, perhaps within the call of a type. None for anything else."""
    for _ in range(3):
        if type(node) is not Object:
            return node if isinstance(node, str | bytes | bytearray) else None
        if node.name == ("_codecs", "encode"):
            latin = len(node.args) == 2 and node.args[1] in ("latin1", "latin-1")
            return node.args[0] if latin and isinstance(node.args[0], str) else None
        if node.name not in _BYTES or node.state is not None or len(node.args) > 2:
            return None
        if node.items or node.pairs:  # a bytearray that is changed after it was made
            return None
        node = node.args[0] if node.args else b""
    return None


def _invalid(message: str) -> CkptError:
    return CkptError("tensor-invalid", message)

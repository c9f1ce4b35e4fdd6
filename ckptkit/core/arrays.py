"""Tensors as numpy arrays: mapped where the bytes lie ready, elements narrower than a byte unpacked.

Types that numpy lacks come from ml_dtypes. Packed elements fill bytes from the lowest bits upwards: int4, uint4 and
float4 the low nibble first, int2 and uint2 four to a byte, float6 four in three bytes.
"""

import mmap
import sys
from functools import cache
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from ckptkit.core.dtypes import DType
from ckptkit.core.errors import CkptError
from ckptkit.core.files import File
from ckptkit.core.tensor import Buffer, Tensor

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

_DIMENSIONS = 64  # numpy's limit


@cache
def numpy_dtype(dtype: DType) -> "np.dtype[Any]":
    """The numpy or ml_dtypes type of one element. Raises CkptError `dtype-unsupported` if there is none."""
    import numpy as np

    if dtype.numpy is None:
        raise CkptError("dtype-unsupported", f"numpy has no type for {dtype}")
    if hasattr(np, dtype.numpy):
        scalar: type[Any] = getattr(np, dtype.numpy)
    else:
        import ml_dtypes

        scalar = getattr(ml_dtypes, dtype.numpy)
    return np.dtype(scalar)


def to_numpy(tensor: Tensor) -> "Array":
    """The values as a read-only array of the tensor's shape.

    A plain tensor is mapped, not read, wherever it lies in its file; anything else is gathered into memory. Quantised
    types give their stored integers. Bools are an array of bool if every byte is 0 or 1; other bytes have no meaning
    as numpy bools, so such a tensor is given as uint8, as it is stored.

    Raises CkptError `dtype-unsupported` (complex32, strings), `shape-unsupported` (more than 64 dimensions, which
    numpy cannot have), and what reading raises.
    """
    import numpy as np

    dtype = numpy_dtype(tensor.dtype)
    if len(tensor.shape) > _DIMENSIONS:
        raise CkptError("shape-unsupported", f"numpy has no arrays of {len(tensor.shape)} dimensions")
    if tensor.nbytes == 0:
        array = np.empty(tensor.shape, dtype)
    elif tensor.file is not None and not tensor.dtype.bits & 7:
        _check_host()
        stored = np.dtype("u1") if tensor.dtype.kind == "bool" else dtype
        if tensor.offset + tensor.nbytes > tensor.file.size:
            raise CkptError("truncated", "the file ends before the tensor does", tensor.file.path)
        array = np.ndarray(tensor.shape, stored, _map(tensor.file), tensor.offset)
    else:
        _check_host()
        packed = gather(tensor)
        array = unpack(packed, tensor.dtype, tensor.size).reshape(tensor.shape)
    if tensor.dtype.kind == "bool" and array.dtype != dtype and not (array > 1).any():
        array = array.view(dtype)
    array.flags.writeable = False
    return array


def gather(tensor: Tensor) -> "Array":
    """The tensor's bytes, packed row-major little-endian, in one new uint8 array; raises as `Tensor.chunks`."""
    import numpy as np

    data = np.empty(tensor.nbytes, np.uint8)
    done = 0
    for chunk in tensor.chunks():
        data[done : done + len(chunk)] = np.frombuffer(chunk, np.uint8)
        done += len(chunk)
    if done != len(data):
        raise CkptError("source-length", f"a source gave {done} bytes instead of {len(data)}")
    return data


def unpack(data: "Buffer | Array", dtype: DType, count: int) -> "Array":
    """`count` elements from their packed bytes, one per item; a view of `data` where nothing is to be unpacked.

    Bools are given as uint8: what they hold is for the caller to judge.
    """
    import numpy as np

    packed: Array = np.frombuffer(data, np.uint8)
    if dtype.kind == "bool":
        return packed[:count]
    kind = numpy_dtype(dtype)
    bits = dtype.bits
    if not bits & 7:
        return packed[: count * bits // 8].view(kind)
    if bits == 6:
        return _unpack_six(packed, count).view(kind)
    per = 8 // bits
    out = np.empty((len(packed), per), np.uint8)
    for k in range(per):
        np.right_shift(packed, k * bits, out=out[:, k])
    out &= (1 << bits) - 1
    values: Array = out.reshape(-1)[:count]
    if dtype.kind == "int":  # ml_dtypes keeps the sign in the upper bits too
        sign = 1 << (bits - 1)
        values ^= sign
        values -= sign
    return values.view(kind)


def pack(array: "Array", dtype: DType) -> bytes:
    """The packed little-endian bytes of an array, row-major; the last byte padded with zeros. Inverse of `unpack`."""
    import numpy as np

    bits = dtype.bits
    values: Array = np.ascontiguousarray(array).reshape(-1)
    if not bits & 7:
        return values.tobytes()
    values = values.view(np.uint8) & ((1 << bits) - 1)
    per = 4 if bits == 6 else 8 // bits
    padded = np.zeros((-(-len(values) // per), per), np.uint8)
    padded.reshape(-1)[: len(values)] = values
    if bits == 6:
        word = sum(padded[:, k].astype(np.uint32) << (6 * k) for k in range(4))
        triples = np.asarray(word, "<u4").reshape(-1, 1).view(np.uint8)[:, :3]
        return triples.tobytes()[: dtype.nbytes(len(values))]
    out = np.zeros(len(padded), np.uint8)
    for k in range(per):
        out |= padded[:, k] << (k * bits)
    return out.tobytes()


def _unpack_six(packed: "Array", count: int) -> "Array":
    """Four elements from each three bytes."""
    import numpy as np

    padded = np.zeros(-(-len(packed) // 3) * 3, np.uint8)
    padded[: len(packed)] = packed
    first, second, third = padded.reshape(-1, 3).T
    out = np.empty((len(first), 4), np.uint8)
    out[:, 0] = first & 63
    out[:, 1] = (first >> 6) | ((second & 15) << 2)
    out[:, 2] = (second >> 4) | ((third & 3) << 4)
    out[:, 3] = third >> 2
    return out.reshape(-1)[:count]


_maps: WeakValueDictionary[File, mmap.mmap] = WeakValueDictionary()


def _map(file: File) -> mmap.mmap:
    """The file mapped, once for all arrays that look at it: a process may only have so many maps."""
    with file.open() as reader:
        found = _maps.get(file)
        if found is None:
            found = _maps[file] = reader.map()
    return found


def _check_host() -> None:
    """Tensors are little-endian, and ml_dtypes knows only the machine's own order."""
    if sys.byteorder != "little":
        raise CkptError("dtype-unsupported", "numpy arrays need a little-endian machine")

"""How a pickle refers to storages and names their types.

Layout: a storage is a persistent id, `('storage', class, key, location, length)`; its length counts elements of
the class, or bytes for an untyped one. Legacy streams add a sixth item, None or `(view key, offset, length)` in
elements. An element type is the global `torch.<dtype>`.
"""

from dataclasses import dataclass
from typing import NamedTuple, cast

from ckptkit.core.dtypes import BY_STORAGE, BY_TORCH, DType
from ckptkit.core.errors import CkptError
from ckptkit.core.storage import Storage
from ckptkit.format.pytorch.nodes import UNKNOWN, Global


@dataclass(slots=True, eq=False)
class StorageRef:
    """A storage that the pickle refers to.

    Attributes:
        storage: its bytes; None until the container knows where they are (legacy streams: after the pickle).
        dtype: element type of its class; None for an untyped storage.
        nbytes: length that the pickle claims.
        swap: whether its numbers are big-endian.
        location: device it was saved from; of no consequence.
        key: its key in the container.
    """

    storage: Storage | None
    dtype: DType | None
    nbytes: int
    swap: bool = False
    location: str = ""
    key: str = ""


class StorageId(NamedTuple):
    """A persistent id of a storage, checked. `view` is a legacy view of it: (key, offset, length) in elements."""

    key: str
    dtype: DType | None
    location: str
    nbytes: int
    view: tuple[str, int, int] | None = None


# Storage classes by the modules that ever defined them.
_STORAGE_MODULES = ("torch", "torch.cuda", "torch.storage", "torch.xpu", "torch.mps")
_MOST = 1 << 63
_SHOWN = 100  # characters of a path within a file
_UNTYPED = {"UntypedStorage", "_UntypedStorage"}

# TorchScript names a storage after its element type in C++, also where Python has no class of that name.
_SCRIPTED = {
    "ComplexHalf": "complex32", "UInt16": "uint16", "UInt32": "uint32", "UInt64": "uint64",
    "Float8_e4m3fn": "float8_e4m3fn", "Float8_e4m3fnuz": "float8_e4m3fnuz", "Float8_e5m2": "float8_e5m2",
    "Float8_e5m2fnuz": "float8_e5m2fnuz", "Float8_e8m0fnu": "float8_e8m0fnu",
    "Float4_e2m1fn_x2": "float4_e2m1fn_x2",
    "Bits1x8": "bits1x8", "Bits2x4": "bits2x4", "Bits4x2": "bits4x2", "Bits8": "bits8", "Bits16": "bits16",
}  # fmt: skip
_CLASSES = BY_STORAGE | {name: BY_TORCH[dtype] for name, dtype in _SCRIPTED.items()}


def storage_dtype(cls: object) -> DType | None:
    """Element type of a storage class, None for an untyped one. Raises CkptError `tensor-invalid` for any other."""
    if type(cls) is not Global:
        raise invalid(f"{short(cls)} is no storage class")
    if cls.element is UNKNOWN:
        cls.element = _element(cls)
    if cls.element is UNKNOWN:
        raise invalid(f"{short(cls)} is no storage class")
    return cast(DType | None, cls.element)


def _element(cls: Global) -> object:
    if cls.module not in _STORAGE_MODULES:
        return UNKNOWN
    if cls.name in _UNTYPED:
        return None
    name = cls.name.removesuffix("Storage")
    return UNKNOWN if name == cls.name else _CLASSES.get(name, UNKNOWN)


def storage_id(pid: object) -> StorageId:
    """The parts of a persistent id. Raises CkptError `tensor-invalid` unless it is one of a storage."""
    if type(pid) is not tuple or len(pid) not in (5, 6) or pid[0] != "storage":
        raise invalid("a persistent id is not one of a storage")
    cls, key, location, length = pid[1:5]
    if type(key) is int and 0 <= key < _MOST:
        key = str(key)
    if not isinstance(key, str) or type(length) is not int or not 0 <= length < _MOST:
        raise invalid("a persistent id has no key or no length")
    dtype = storage_dtype(cls)
    width = 1 if dtype is None else max(1, dtype.bits // 8)
    place = location if isinstance(location, str) else ""
    part = _part(pid[5]) if len(pid) == 6 else None
    return StorageId(key, dtype, place, length * width, part)


def _part(node: object) -> tuple[str, int, int] | None:
    """The view of a storage in a legacy id."""
    if node is None:
        return None
    if type(node) is not tuple or len(node) != 3 or not isinstance(node[0], str | int):
        raise invalid("a view of a storage is not (key, offset, length)")
    if any(type(n) is not int or not 0 <= n < _MOST for n in node[1:]):
        raise invalid("a view of a storage has no offset or no length")
    return str(node[0]), node[1], node[2]


def torch_dtype(value: object) -> DType:
    """The element type that a `torch.<dtype>` names. Raises CkptError `dtype-unknown`."""
    if type(value) is Global and value.module == "torch":
        found = BY_TORCH.get(value.name)
        if found is not None:
            return found
    raise CkptError("dtype-unknown", f"{short(value)} is not an element type of torch")


def short(value: object) -> str:
    return str(value)[:100] if type(value) is Global or isinstance(value, str) else type(value).__name__


def shortened(path: str) -> str:
    """A path within a file that fits on a line; its beginning and its end are kept."""
    return path if len(path) <= _SHOWN else f"{path[: _SHOWN // 2]}…{path[1 - _SHOWN // 2 :]}"


def invalid(message: str) -> CkptError:
    return CkptError("tensor-invalid", message)

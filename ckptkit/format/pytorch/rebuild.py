"""torch's rebuild records as tensors: what `torch._utils._rebuild_…(…)` would have made, without calling it.

Layout: a pickled tensor is a call with a storage, an offset, sizes and strides in elements. The storage is a
persistent id, `('storage', class, key, location, length)`, which the container turns into a `StorageRef`; its
length counts elements of the class, or bytes for an untyped one. Legacy streams add a sixth item, None or
`(view key, offset, length)`. What the calls mean:

    _rebuild_tensor(storage, offset, size, stride)                                   of the type of its storage
    _rebuild_tensor_v2(…, requires_grad, hooks[, {'conj': True, 'neg': True}])
    _rebuild_tensor_v3(…, requires_grad, hooks, dtype[, metadata])                   of a type without storage class
    _rebuild_qtensor(…, (scheme, scale, zero point[, axis]), requires_grad, hooks)   w, w.scale, w.zero_point
    _rebuild_sparse_tensor(layout, (indices, values, size[, coalesced]) or
                           (compressed, plain, values, size))                        w.indices, w.values, …
    _rebuild_nested_tensor(values, sizes, strides, offsets), _rebuild_njt            w.values, w.offsets, …
    _rebuild_parameter[_with_state](tensor, requires_grad, hooks[, state])           the tensor
    _rebuild_device_tensor_from_numpy / _from_cpu_tensor(data, dtype, device, …)     the data
    _rebuild_meta_tensor_no_storage(dtype, size, stride, …)                          `Absent`: there are no data
    _rebuild_from_type_v2(func, type, args, state)                                   func(*args) with attributes
    _rebuild_wrapper_subclass and DTensor                                            the local shard in the state
    torch.Tensor, torch.nn.Parameter, … with BUILD, before torch 0.4                 the state's tensor

Limits. Every count is checked by `core.views`; a record whose arguments are of another kind than torch writes is
`tensor-invalid`. A shape of float4 pairs is doubled in its last dimension, because shapes count elements here.
Source: torch 2.13 `torch/_utils.py`, `torch/_tensor.py`, `torch/serialization.py`.
"""

import struct
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, cast

from ckptkit.core.dtypes import DTYPES, DType
from ckptkit.core.errors import CkptError
from ckptkit.core.storage import MemoryStorage
from ckptkit.core.tensor import Tensor
from ckptkit.core.views import view
from ckptkit.format.pytorch.arrays import Array, array, payload
from ckptkit.format.pytorch.nodes import Dict, Global, Object, raw_bytes
from ckptkit.format.pytorch.refs import StorageRef, invalid, short, torch_dtype


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """What stands at one place: tensors by suffix ("" is the place itself), and attributes that came with them."""

    tensors: tuple[tuple[str, Tensor], ...]
    attributes: object = None


@dataclass(frozen=True, slots=True, eq=False)
class Absent:
    """A tensor without data: on the meta device, or not initialised when it was saved."""

    type: str
    dtype: str = ""
    shape: tuple[int, ...] | None = None


Rebuilt = Tensor | Parts | Absent | None

_RANK = 100  # dimensions of a tensor; torch's own kernels stop at 64
_ATTRIBUTES = 100  # of a tensor subclass or its metadata
_WRAPPED = 20  # a parameter of a DTensor of a tensor with attributes is 4 deep


class Rebuilder:
    """Turns records of one pickle into tensors.

    Args:
        label: tells this pickle's in-memory data from that of others (the file).
        nested: value of a legacy torch file given as bytes (`torch.storage._load_from_bytes`), or None to refuse.
    """

    def __init__(self, label: Hashable = None, nested: Callable[[bytes], object] | None = None) -> None:
        self.label = label
        self.nested = nested
        self.handlers: dict[Global, Callable[[Rebuilder, Object], Rebuilt] | None] = {}
        self.memory = 0  # arrays held so far; their identities
        self.kept: dict[int, tuple[object, object]] = {}  # id of a node → the node and what was made of it
        self.depth = 0  # records within records, which are as deep as torch wraps and no deeper

    def handler(self, cls: object) -> "Callable[[Rebuilder, Object], Rebuilt] | None":
        """What rebuilds calls of this function, or None if it makes no tensor."""
        if type(cls) is not Global:
            return None
        try:
            return self.handlers[cls]
        except KeyError:
            found = self.handlers[cls] = _TABLE.get((cls.module, cls.name))
            return found

    def rebuild(self, obj: Object) -> Rebuilt:
        """The tensor(s) that the object is, or None if it is something else."""
        handler = self.handler(obj.cls)
        if handler is None:
            return None
        if self.depth >= _WRAPPED:
            raise invalid(f"a tensor is wrapped more than {_WRAPPED} times")
        self.depth += 1
        try:
            return handler(self, obj)
        finally:
            self.depth -= 1

    def ref(self, node: object) -> StorageRef:
        """The storage of a tensor: one of the container, or one pickled as a torch file of its own."""
        if type(node) is StorageRef:
            return node
        if type(node) is Object and self.handler(node.cls) is Rebuilder.from_bytes:
            found = self.opened(node)
            if type(found) is StorageRef:
                return found
        raise invalid("a tensor has no storage")

    def raw(self, node: object) -> bytes | None:
        """The bytes that a node stands for. What shares them in the pickle shares them here."""
        held = payload(node)
        if held is None or type(held) is bytes:
            return held
        if id(held) not in self.kept:
            self.kept[id(held)] = (held, raw_bytes(held))
        return cast(bytes | None, self.kept[id(held)][1])

    def opened(self, obj: Object) -> object:
        """The value of a torch file within the pickle; opened once, so that what shares it is tied."""
        if id(obj) not in self.kept:
            data = self.raw(obj.args[0]) if len(obj.args) == 1 else None
            if data is None:
                raise _arguments(obj)
            if self.nested is None:
                raise invalid("a torch file lies within the pickle where none is expected")
            if id(data) not in self.kept:
                self.kept[id(data)] = (data, self.nested(data))
            self.kept[id(obj)] = (obj, self.kept[id(data)][1])
        return self.kept[id(obj)][1]

    def storage(self, ref: StorageRef) -> Tensor:
        """A storage that stands alone, as a tensor of one dimension."""
        return self.view(ref, ref.dtype or DTYPES["uint8"], None, None, 0)

    def held(self, data: bytes | bytearray) -> MemoryStorage:
        """Bytes that were in the pickle itself."""
        self.memory += 1
        return MemoryStorage(data, ("pickle", self.label, self.memory))

    def view(
        self,
        ref: object,
        dtype: DType,
        shape: Any,
        strides: Any,
        start: Any,
        metadata: Any = None,
        kind: str = "",
    ) -> Tensor:
        ref = self.ref(ref)
        storage = ref.storage
        if storage is None:
            raise CkptError("storage-missing", f"the file holds no storage {ref.key!r}")
        if shape is None:
            shape = ((ref.nbytes * 8 // dtype.bits),)
            strides = (1,)
        elif dtype.name == "float4_e2m1fn":
            shape, strides, start = _pairs(shape, strides, start)
        flags = _flags(metadata) if metadata else {}
        if ref.swap and dtype.parts > 1:
            flags["swap"] = True
        return view(storage, dtype, shape, strides, start, kind=kind, **flags)

    # One method per kind of record. Each checks what it takes from the arguments.

    def tensor(self, obj: Object, kind: str = "") -> Tensor:
        """_rebuild_tensor, _rebuild_tensor_v2: the most frequent record by far."""
        args = obj.args
        if len(args) < 4:
            raise _arguments(obj)
        ref, start, shape, strides = args[:4]
        if type(shape) is not tuple or type(strides) is not tuple or len(shape) > _RANK:
            shape, strides = _sizes(shape), _sizes(strides)
        if type(ref) is not StorageRef:
            ref = self.ref(ref)
        metadata = args[6] if len(args) > 6 else None
        if metadata is None and not ref.swap and ref.storage is not None and ref.dtype is not None:
            return view(ref.storage, ref.dtype, shape, strides, start, kind=kind)
        return self.view(ref, ref.dtype or DTYPES["uint8"], shape, strides, start, metadata, kind)

    def tensor_v3(self, obj: Object, kind: str = "") -> Tensor:
        args = obj.args
        if len(args) not in (7, 8):
            raise _arguments(obj)
        metadata = args[7] if len(args) > 7 else None
        return self.view(
            args[0], torch_dtype(args[6]), _sizes(args[2]), _sizes(args[3]), args[1], metadata, kind
        )

    def parameter(self, obj: Object) -> Rebuilt:
        args = obj.args
        if not args or type(args[0]) is not Object:
            raise _arguments(obj)
        data = args[0]
        handler = self.handler(data.cls)
        if handler is Rebuilder.tensor:
            inner: Rebuilt = self.tensor(data, "parameter")
        elif handler is Rebuilder.tensor_v3:
            inner = self.tensor_v3(data, "parameter")
        else:
            inner = self.rebuild(data)
        if inner is None:
            raise invalid("a parameter holds no tensor")
        return _with(inner, args[3]) if len(args) > 3 else inner

    def from_type(self, obj: Object) -> Rebuilt:
        """_rebuild_from_type_v2: a subclass of Tensor, or one with Python attributes. None for an unknown one."""
        if len(obj.args) != 4 or type(obj.args[2]) is not tuple:
            raise _arguments(obj)
        func, _, args, state = obj.args
        made = Object(func, args)
        made.state = state
        handler = self.handler(func)
        if handler is Rebuilder.wrapper or handler is Rebuilder.jagged:
            return self.rebuild(made)  # the state is the tensor
        made.state = None
        return _with(self.rebuild(made), state)

    def wrapper(self, obj: Object) -> Rebuilt:
        """DTensor: the shard of this rank, with its global shape as a note. Other wrappers stay opaque."""
        local = _attributes(obj.state).get("_local_tensor")
        if type(local) is not Object:
            return None
        shard = self.plain(local)
        shape = obj.args[2] if len(obj.args) > 2 else ()
        whole = "×".join(map(str, _sizes(shape)))
        return _noted(shard, f"local shard of {whole}" if whole else "local shard")

    def quantized(self, obj: Object) -> Parts:
        args = obj.args
        if len(args) != 7 or type(args[4]) is not tuple or not args[4]:
            raise _arguments(obj)
        ref, start, shape, strides, scheme = (
            self.ref(args[0]),
            args[1],
            _sizes(args[2]),
            _sizes(args[3]),
            args[4],
        )
        if ref.dtype is None or ref.dtype.kind != "quantized":
            raise invalid("a quantised tensor has a storage of plain numbers")
        name = scheme[0].name if type(scheme[0]) is Global and scheme[0].module == "torch" else ""
        if name == "per_tensor_affine" and len(scheme) == 3:
            return Parts(
                (
                    ("", self.view(ref, ref.dtype, shape, strides, start)),
                    ("scale", self.number(scheme[1], "float64")),
                    ("zero_point", self.number(scheme[2], "int64")),
                )
            )
        if name not in {"per_channel_affine", "per_channel_affine_float_qparams"} or len(scheme) != 4:
            raise invalid(f"quantisation scheme {short(scheme[0])} is not one of torch's")
        _, scales, zeros, axis = scheme
        if type(axis) is not int or not 0 <= axis < len(shape):
            raise invalid("the axis of a quantised tensor is not one of its dimensions")
        types = ("float64", "int64") if name == "per_channel_affine" else ("float32", "float32")
        parts = [
            self.numbers(found, dtype) if type(found) is list else self.plain(found)
            for found, dtype in zip((scales, zeros), types, strict=True)
        ]
        if any(part.size != shape[axis] for part in parts):
            raise invalid("a quantised tensor has not one scale and zero point for each channel")
        weight = self.view(ref, ref.dtype, shape, strides, start)
        return Parts(
            (
                ("", _noted(weight, f"quantised along axis {axis}")),
                ("scale", parts[0]),
                ("zero_point", parts[1]),
            )
        )

    def sparse(self, obj: Object) -> Parts:
        layout = _text(obj.args[0]) if len(obj.args) == 2 else None
        data = obj.args[1] if layout else None
        names = _SPARSE.get(layout or "")
        if names is None or type(data) is not tuple or not len(names) < len(data) <= 4:
            raise _arguments(obj)
        shape = "×".join(map(str, _sizes(data[len(names)])))
        kind = (layout or "").removeprefix("torch.sparse_").upper()
        parts = [(name, self.plain(part)) for name, part in zip(names, data, strict=False)]
        return Parts(tuple((name, _noted(part, f"sparse {kind} of {shape}")) for name, part in parts))

    def nested_tensor(self, obj: Object) -> Parts:
        if len(obj.args) != 4:
            raise _arguments(obj)
        names = ("values", "sizes", "strides", "offsets")
        return Parts(
            tuple(
                (name, _noted(self.plain(part), "nested")) for name, part in zip(names, obj.args, strict=True)
            )
        )

    def jagged(self, obj: Object) -> Parts:
        if len(obj.args) != 1 or type(obj.args[0]) is not Dict:
            raise _arguments(obj)
        found = _attributes(obj.args[0])
        names = [name for name in ("values", "offsets", "lengths") if found.get(name) is not None]
        return Parts(tuple((name, _noted(self.plain(found[name]), "nested")) for name in names))

    def on_device(self, obj: Object) -> Rebuilt:
        """The data of a backend without storages, carried as a numpy array or as a tensor of the CPU."""
        if len(obj.args) != 4:
            raise _arguments(obj)
        data, dtype = self.plain(obj.args[0]), torch_dtype(obj.args[1])
        if data.dtype is dtype:
            return data
        from ckptkit.ops import cast as casting

        return casting.cast(data, dtype)

    def meta(self, obj: Object) -> Absent:
        if len(obj.args) != 4:
            raise _arguments(obj)
        return Absent("torch.Tensor", torch_dtype(obj.args[0]).name, _sizes(obj.args[1]))

    def old(self, obj: Object) -> Rebuilt:
        """torch.Tensor, torch.nn.Parameter, torch.FloatTensor …, instantiated and perhaps given a state."""
        state = obj.state
        if obj.args and type(obj.args[0]) is Object:  # Parameter(data) · (requires_grad, volatile, hooks)
            return self.parameter(obj)
        if type(state) is tuple and len(state) == 4:  # storage, offset, size, stride
            return self.tensor(Object(obj.cls, state))
        if type(state) is tuple and len(state) == 5:  # data, grad, hooks, requires_grad, volatile
            return self.parameter(Object(obj.cls, state[:1]))
        if state is None:
            return Absent(str(obj.cls))
        raise invalid(f"the state of a {short(obj.cls)} is not that of a tensor")

    def typed_storage(self, obj: Object) -> Rebuilt:
        """torch.storage.TypedStorage, a pair of an untyped storage and a dtype."""
        found = _attributes(obj.state)
        ref = found.get("_untyped_storage", found.get("_storage"))
        if type(ref) is not StorageRef:
            return None
        return self.view(ref, torch_dtype(found.get("dtype")), None, None, 0)

    def from_bytes(self, obj: Object) -> Rebuilt:
        """torch.storage._load_from_bytes: a whole legacy file within the pickle."""
        value = self.opened(obj)
        if type(value) is StorageRef:
            return self.storage(value)
        found = Rebuilder(self.label, None).rebuild(value) if type(value) is Object else None
        if found is None:
            raise invalid("a torch file within the pickle holds no tensor")
        return found

    def ndarray(self, obj: Object) -> Rebuilt:
        if id(obj) not in self.kept:
            found = array(obj, self.raw)
            self.kept[id(obj)] = (obj, None if found is None else self.from_array(found))
        return cast(Tensor | None, self.kept[id(obj)][1])

    def from_array(self, found: Array) -> Tensor:
        shape = found.shape
        strides, step = [], 1
        for n in shape if found.fortran else reversed(shape):
            strides.append(step)
            step *= n
        if not found.fortran:
            strides.reverse()
        return view(self.held(found.data), found.dtype, shape, strides, 0, swap=found.swap)

    def plain(self, node: object) -> Tensor:
        """A part of another record: a tensor without parts of its own."""
        found = self.rebuild(node) if type(node) is Object else None
        if type(found) is Parts and len(found.tensors) == 1:
            found = found.tensors[0][1]
        if type(found) is not Tensor:
            raise invalid("a part of a tensor is not a tensor")
        return found

    def number(self, value: object, dtype: str) -> Tensor:
        return self._packed([value], dtype, ())

    def numbers(self, values: list[Any], dtype: str) -> Tensor:
        return self._packed(values, dtype, (len(values),))

    def _packed(self, values: list[Any], dtype: str, shape: tuple[int, ...]) -> Tensor:
        try:
            data = struct.pack(f"<{len(values)}{_CODES[dtype]}", *values)
        except (struct.error, OverflowError):
            raise invalid("a scale or zero point is not a number") from None
        return view(self.held(data), DTYPES[dtype], shape, (1,) * len(shape), 0)


_OLD_TENSORS = (
    "Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool",
)  # fmt: skip

_TABLE: dict[tuple[str, str], Callable[[Rebuilder, Object], Rebuilt]] = {
    ("torch._utils", "_rebuild_tensor_v2"): Rebuilder.tensor,
    ("torch._utils", "_rebuild_tensor"): Rebuilder.tensor,
    ("torch._utils", "_rebuild_tensor_v3"): Rebuilder.tensor_v3,
    ("torch._utils", "_rebuild_parameter"): Rebuilder.parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): Rebuilder.parameter,
    ("torch._utils", "_rebuild_qtensor"): Rebuilder.quantized,
    ("torch._utils", "_rebuild_sparse_tensor"): Rebuilder.sparse,
    ("torch._utils", "_rebuild_nested_tensor"): Rebuilder.nested_tensor,
    ("torch.nested._internal.nested_tensor", "_rebuild_njt"): Rebuilder.jagged,
    ("torch._utils", "_rebuild_device_tensor_from_numpy"): Rebuilder.on_device,
    ("torch._utils", "_rebuild_device_tensor_from_cpu_tensor"): Rebuilder.on_device,
    ("torch._utils", "_rebuild_xla_tensor"): Rebuilder.on_device,
    ("torch._utils", "_rebuild_meta_tensor_no_storage"): Rebuilder.meta,
    ("torch._utils", "_rebuild_wrapper_subclass"): Rebuilder.wrapper,
    ("torch._tensor", "_rebuild_from_type_v2"): Rebuilder.from_type,
    ("torch.tensor", "_rebuild_from_type_v2"): Rebuilder.from_type,
    ("torch", "Tensor"): Rebuilder.old,
    ("torch._tensor", "Tensor"): Rebuilder.old,
    ("torch.tensor", "Tensor"): Rebuilder.old,
    ("torch.autograd.variable", "Variable"): Rebuilder.old,
    ("torch.nn.parameter", "Parameter"): Rebuilder.old,
    ("torch.nn.parameter", "Buffer"): Rebuilder.old,
    ("torch.nn.parameter", "UninitializedParameter"): Rebuilder.old,
    ("torch.nn.parameter", "UninitializedBuffer"): Rebuilder.old,
    ("torch.storage", "TypedStorage"): Rebuilder.typed_storage,
    ("torch.storage", "_TypedStorage"): Rebuilder.typed_storage,
    ("torch.storage", "_load_from_bytes"): Rebuilder.from_bytes,
    ("numpy.core.multiarray", "_reconstruct"): Rebuilder.ndarray,
    ("numpy._core.multiarray", "_reconstruct"): Rebuilder.ndarray,
    ("numpy.core.numeric", "_frombuffer"): Rebuilder.ndarray,
    ("numpy._core.numeric", "_frombuffer"): Rebuilder.ndarray,
    ("numpy", "ndarray"): Rebuilder.ndarray,
}
_TABLE |= {(m, f"{t}Tensor"): Rebuilder.old for m in ("torch", "torch.cuda") for t in _OLD_TENSORS}

_CODES = {"float64": "d", "float32": "f", "int64": "q"}

_SPARSE = {
    "torch.sparse_coo": ("indices", "values"),
    "torch.sparse_csr": ("crow_indices", "col_indices", "values"),
    "torch.sparse_bsr": ("crow_indices", "col_indices", "values"),
    "torch.sparse_csc": ("ccol_indices", "row_indices", "values"),
    "torch.sparse_bsc": ("ccol_indices", "row_indices", "values"),
}


def _sizes(value: object) -> tuple[int, ...]:
    """Sizes or strides: a tuple, a list, or a torch.Size around one. What is in it is for `view` to check."""
    if type(value) is Object and value.name == ("torch", "Size") and len(value.args) == 1:
        value = value.args[0]
    if type(value) is not tuple and type(value) is not list:
        raise invalid("sizes or strides are not a tuple")
    if len(value) > _RANK:
        raise invalid(f"a tensor has {len(value)} dimensions")
    for n in value:
        if type(n) is not int or n < 0:
            raise CkptError("view-invalid", "sizes and strides must be counts")
    return tuple(value)


def _pairs(shape: Any, strides: Any, start: Any) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Shape and strides of float4 elements, given those of torch's pairs of them."""
    if type(start) is not int or len(shape) != len(strides):
        raise invalid("a tensor's start is not a count")
    if not shape:
        return (2,), (1,), start * 2
    if strides[-1] != 1 and shape[-1] > 1:
        raise CkptError("dtype-unsupported", "float4 elements lie apart along the last dimension")
    return (*shape[:-1], shape[-1] * 2), (*(2 * s for s in strides[:-1]), 1), start * 2


def _flags(metadata: object) -> dict[str, Any]:
    """The lazy bits of a tensor: {'conj': True}, {'neg': True}."""
    flags = {}
    for key, value in _attributes(metadata).items():
        if key not in {"conj", "neg"} or type(value) is not bool:
            raise invalid(f"a tensor carries the unknown bit {key[:40]!r}")
        if value:
            flags[key] = True
    return flags


def _attributes(state: object) -> dict[str, Any]:
    """Attributes by name: a dict, or a pair of dicts of which the second holds slots."""
    parts = state if type(state) is tuple and len(state) == 2 else (state,)
    return {
        key: value
        for part in parts
        if type(part) is Dict and len(part) <= 2 * _ATTRIBUTES
        for key, value in part.entries()
        if isinstance(key, str)
    }


def _with(inner: Rebuilt, state: object) -> Rebuilt:
    """The same with further attributes."""
    if not state or not isinstance(inner, Tensor | Parts):
        return inner
    if isinstance(inner, Tensor):
        return Parts((("", inner),), state)
    return Parts(inner.tensors, [inner.attributes, state] if inner.attributes else state)


def _noted(tensor: Tensor, note: str) -> Tensor:
    from dataclasses import replace

    return replace(tensor, note=note)


def _text(node: object) -> str | None:
    """A str, or the str within a `_get_layout('torch.sparse_coo')`."""
    if type(node) is Object and node.name == ("torch.serialization", "_get_layout") and len(node.args) == 1:
        node = node.args[0]
    if type(node) is Global and node.module == "torch":
        return str(node)
    return node if isinstance(node, str) else None


def _arguments(obj: Object) -> CkptError:
    return invalid(f"{short(obj.cls)} was not given what it takes")

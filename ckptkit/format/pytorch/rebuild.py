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
        of TorchScript: (1, size, requires_grad, indices, values, hooks) or
                        (2, size, requires_grad, compressed, plain, values, hooks)
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

from collections.abc import Callable, Hashable
from typing import Any, cast

from ckptkit.core.dtypes import DTYPES, DType
from ckptkit.core.errors import CkptError
from ckptkit.core.storage import MemoryStorage
from ckptkit.core.tensor import Tensor
from ckptkit.core.views import view
from ckptkit.format.pytorch import composites
from ckptkit.format.pytorch.arrays import Array, array, payload
from ckptkit.format.pytorch.nodes import Global, Object, raw_bytes
from ckptkit.format.pytorch.records import (
    RANK,
    Absent,
    Parts,
    Rebuilt,
    attributes_of,
    flags,
    noted,
    pairs,
    sizes,
    with_attributes,
    wrong_arguments,
)
from ckptkit.format.pytorch.refs import StorageRef, invalid, short, torch_dtype

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
        if obj.pairs or obj.items:  # `torch.load` does that, and its strict way refuses it; no writer does
            raise invalid("the elements of a tensor are changed after it was made")
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
                raise wrong_arguments(obj)
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
            shape, strides, start = pairs(shape, strides, start)
        bits = {} if metadata is None else flags(metadata)
        if ref.swap and dtype.parts > 1:
            bits["swap"] = True
        return view(storage, dtype, shape, strides, start, kind=kind, **bits)

    # One method per kind of record. Each checks what it takes from the arguments.

    def tensor(self, obj: Object, kind: str = "") -> Tensor:
        """_rebuild_tensor, _rebuild_tensor_v2: the most frequent record by far."""
        args = obj.args
        if len(args) < 4:
            raise wrong_arguments(obj)
        ref, start, shape, strides = args[:4]
        if type(shape) is not tuple or type(strides) is not tuple or len(shape) > RANK:
            shape, strides = sizes(shape), sizes(strides)
        if type(ref) is not StorageRef:
            ref = self.ref(ref)
        metadata = args[6] if len(args) > 6 else None
        dtype = ref.dtype
        if metadata is None and not ref.swap and ref.storage is not None and dtype and dtype.bits >= 8:
            return view(ref.storage, dtype, shape, strides, start, kind=kind)
        return self.view(ref, dtype or DTYPES["uint8"], shape, strides, start, metadata, kind)

    def tensor_v3(self, obj: Object, kind: str = "") -> Tensor:
        args = obj.args
        if len(args) not in (7, 8):
            raise wrong_arguments(obj)
        metadata = args[7] if len(args) > 7 else None
        return self.view(
            args[0], torch_dtype(args[6]), sizes(args[2]), sizes(args[3]), args[1], metadata, kind
        )

    def parameter(self, obj: Object) -> Rebuilt:
        args = obj.args
        if not args or type(args[0]) is not Object:
            raise wrong_arguments(obj)
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
        return with_attributes(inner, args[3]) if len(args) > 3 else inner

    def from_type(self, obj: Object) -> Rebuilt:
        """_rebuild_from_type_v2: a subclass of Tensor, or one with Python attributes. None for an unknown one."""
        if len(obj.args) != 4 or type(obj.args[2]) is not tuple:
            raise wrong_arguments(obj)
        func, _, args, state = obj.args
        made = Object(func, args)
        made.state = state
        handler = self.handler(func)
        if handler is Rebuilder.wrapper or handler is composites.jagged:
            return self.rebuild(made)  # the state is the tensor
        made.state = None
        return with_attributes(self.rebuild(made), state)

    def wrapper(self, obj: Object) -> Rebuilt:
        """DTensor: the shard of this rank, with its global shape as a note. Other wrappers stay opaque.

        A shard that is the whole (replicated, or of a world of one) is a plain tensor; a partial sum is not.
        """
        state = attributes_of(obj.state)
        local = state.get("_local_tensor")
        if type(local) is not Object:
            return None
        shard = self.plain(local)
        shape = obj.args[2] if len(obj.args) > 2 else ()
        spec = state.get("_spec")
        placements = attributes_of(spec.state).get("placements") if type(spec) is Object else None
        partial = type(placements) is not tuple or any(
            type(place) is not Object or "Partial" in place.name[1] for place in placements
        )
        if shard.shape == sizes(shape) and not partial:
            return shard
        whole = "×".join(map(str, sizes(shape)))
        return noted(shard, f"local shard of {whole}" if whole else "local shard", "local-shard")

    def on_device(self, obj: Object) -> Rebuilt:
        """The data of a backend without storages, carried as a numpy array or as a tensor of the CPU."""
        if len(obj.args) != 4:
            raise wrong_arguments(obj)
        data, dtype = self.plain(obj.args[0]), torch_dtype(obj.args[1])
        if data.dtype is dtype:
            return data
        from ckptkit.ops import cast as casting

        return casting.cast(data, dtype)

    def meta(self, obj: Object) -> Absent:
        if len(obj.args) != 4:
            raise wrong_arguments(obj)
        return Absent("torch.Tensor", torch_dtype(obj.args[0]).name, sizes(obj.args[1]))

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
        found = attributes_of(obj.state)
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


_OLD_TENSORS = (
    "Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool",
)  # fmt: skip

_TABLE: dict[tuple[str, str], Callable[[Rebuilder, Object], Rebuilt]] = {
    ("torch._utils", "_rebuild_tensor_v2"): Rebuilder.tensor,
    ("torch._utils", "_rebuild_tensor"): Rebuilder.tensor,
    ("torch._utils", "_rebuild_tensor_v3"): Rebuilder.tensor_v3,
    ("torch._utils", "_rebuild_parameter"): Rebuilder.parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): Rebuilder.parameter,
    ("torch._utils", "_rebuild_qtensor"): composites.quantized,
    ("torch._utils", "_rebuild_sparse_tensor"): composites.sparse,
    ("torch._utils", "_rebuild_nested_tensor"): composites.nested_tensor,
    ("torch.nested._internal.nested_tensor", "_rebuild_njt"): composites.jagged,
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

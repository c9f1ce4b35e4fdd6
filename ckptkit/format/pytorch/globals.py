"""Classes and functions that are plain data in disguise, by exact module and name.

A handler looks at the record of a call and returns what the call would give, as nodes of the machine: `Dict`,
`Set`, list, tuple, str, bytes, or a `Value` for what has no node of its own. Nothing is imported or called.
What is not in this table, nor in `ckptkit.format.pytorch.rebuild`, stays an opaque `Object`.
"""

from collections.abc import Callable
from typing import Any

from ckptkit.format.pytorch.arrays import scalar
from ckptkit.format.pytorch.nodes import Dict, Global, Object, Set, Value, untagged

SCALARS = frozenset({str, int, float, bool, type(None)})


def simplify(obj: Object) -> object:
    """What the object is, if it is plain data; else the object itself."""
    cls = obj.cls
    if type(cls) is not Global:
        return obj
    handler = _TABLE.get((cls.module, cls.name))
    if handler is not None:
        return handler(obj)
    return _enumerated(obj) if obj.state is None and obj.args else obj


def is_plain(cls: Global) -> bool:
    """Whether calling it makes plain data."""
    return (cls.module, cls.name) in _TABLE


def is_mapping(obj: Object) -> bool:
    """Whether it is a dict with attributes, such as the OrderedDict of a state dict."""
    return obj.name in _MAPPINGS


def attributes(obj: Object) -> Dict:
    """What BUILD sets on it: a dict, or a pair of dicts of which the second holds slots."""
    state = obj.state
    if type(state) is Dict:
        return state
    if type(state) is tuple and len(state) == 2 and all(s is None or type(s) is Dict for s in state):
        return Dict(item for part in state if part for item in part)
    return Dict(("state", state)) if state is not None else Dict()


def entries(node: object, most: int | None = None) -> dict[str, Any] | None:
    """A dict by its text keys; None for anything else, and for one of more than `most` entries."""
    node = untagged(node)
    if type(node) is Object and is_mapping(node) and not (most and len(node.pairs or ()) > 2 * most):
        node = simplify(node)
    if type(node) is not Dict or (most is not None and len(node) > 2 * most):
        return None
    return {key: value for key, value in node.entries() if isinstance(key, str)}


def _mapping(obj: Object) -> Dict:
    """dict, OrderedDict, defaultdict, Counter: built from pairs or from a dict, then filled."""
    found = Dict()
    for arg in obj.args:
        if type(arg) is Dict:
            found += arg
        elif type(arg) is list:
            for pair in arg:
                if type(pair) in (list, tuple) and len(pair) == 2:
                    found += pair
    found += obj.pairs or ()
    return found


def _sequence(obj: Object) -> list[Any]:
    found: list[Any] = []
    for arg in obj.args[:1]:
        if type(arg) in (list, tuple, Set):
            found += arg
    found += obj.items or ()
    return found


def _set(obj: Object) -> Set:
    return Set(_sequence(obj))


def _tuple(obj: Object) -> object:
    return tuple(_sequence(obj))


def _first(obj: Object) -> object:
    return obj.args[0] if len(obj.args) == 1 else obj


def _bytes(obj: Object) -> Value:
    return Value("bytes", None)


def _complex(obj: Object) -> Value:
    return Value("complex", None)


def _range(obj: Object) -> Value:
    plain = all(type(arg) in SCALARS for arg in obj.args)
    return Value(obj.type.rpartition(".")[2], list(obj.args) if plain else None)


def _path(obj: Object) -> object:
    if not all(isinstance(part, str) for part in obj.args):
        return obj
    parts = [str(part) for part in obj.args]
    root = parts.pop(0) if parts and parts[0].endswith(("/", "\\")) else ""
    return Value(obj.type, root + "/".join(parts) or ".")


def _device(obj: Object) -> object:
    if not obj.args or not isinstance(obj.args[0], str):
        return obj
    return Value("torch.device", ":".join(str(a) for a in obj.args if type(a) in (str, int)))


def _reconstructed(obj: Object) -> object:
    """copyreg._reconstructor(cls, base, state): an instance, whose base class takes the state."""
    if len(obj.args) != 3:
        return obj
    made = Object(obj.args[0], () if obj.args[2] is None else (obj.args[2],))
    made.state, made.items, made.pairs = obj.state, obj.items, obj.pairs
    return made


def _new(obj: Object) -> object:
    """copyreg.__newobj__(cls, …)."""
    if not obj.args:
        return obj
    made = Object(obj.args[0], obj.args[1:])
    made.state, made.items, made.pairs = obj.state, obj.items, obj.pairs
    return made


def _subclass(obj: Object) -> object:
    """torch._tensor._rebuild_from_type_v2(func, type, args, state), where no tensor can be rebuilt."""
    if len(obj.args) != 4 or type(obj.args[2]) is not tuple:
        return obj
    made = Object(obj.args[1], obj.args[2])
    made.state = obj.args[3]
    return made


def _scalar(obj: Object) -> Value:
    return Value(*scalar(obj))


def _enumerated(obj: Object) -> object:
    """An instance made of plain values alone, such as a member of an enumeration: shown with them."""
    if obj.items or obj.pairs or obj.extra or not all(type(arg) in SCALARS for arg in obj.args):
        return obj
    return Opaque(obj.type, obj.args[0] if len(obj.args) == 1 else list(obj.args))


class Opaque(Value):
    """As `Value`, of a class that is not known."""

    __slots__ = ()


_BUILTINS = ("builtins", "__builtin__")
_MAPPINGS = {
    ("collections", "OrderedDict"), ("collections", "defaultdict"), ("collections", "Counter"),
    ("builtins", "dict"), ("__builtin__", "dict"),
}  # fmt: skip

_TABLE: dict[tuple[str, str], Callable[[Object], object]] = {
    ("collections", "deque"): _sequence,
    ("_codecs", "encode"): _bytes,
    ("copyreg", "_reconstructor"): _reconstructed,
    ("copy_reg", "_reconstructor"): _reconstructed,
    ("copyreg", "__newobj__"): _new,
    ("copy_reg", "__newobj__"): _new,
    ("torch", "Size"): _first,
    ("torch._tensor", "_rebuild_from_type_v2"): _subclass,
    ("torch", "device"): _device,
    ("torch.serialization", "_get_layout"): _first,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("__builtin__", "xrange"): _range,
    ("torch.jit._pickle", "restore_type_tag"): untagged,
}
_TABLE |= dict.fromkeys(_MAPPINGS, _mapping)
for _module in _BUILTINS:
    _TABLE |= {
        (_module, "set"): _set,
        (_module, "frozenset"): _set,
        (_module, "list"): _sequence,
        (_module, "tuple"): _tuple,
        (_module, "bytes"): _bytes,
        (_module, "bytearray"): _bytes,
        (_module, "str"): _first,
        (_module, "int"): _first,
        (_module, "float"): _first,
        (_module, "complex"): _complex,
        (_module, "range"): _range,
        (_module, "slice"): _range,
    }
_TABLE |= {("torch.jit._pickle", f"build_{kind}list"): _first for kind in ("int", "double", "bool", "tensor")}
for _module in ("pathlib", "pathlib._local"):
    _TABLE |= {
        (_module, name): _path
        for name in ("Path", "PosixPath", "PurePath", "PurePosixPath", "PureWindowsPath", "WindowsPath")
    }

"""The pickle of a state dict, opcode for opcode as torch.save writes it (protocol 2).

    collections.OrderedDict() · {name: tensor, …} in batches of 1,000 · BUILD with `_metadata` and the like
    tensor = torch._utils._rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict())
             torch._utils._rebuild_tensor_v3(storage, 0, shape, strides, False, OrderedDict(), dtype)
    storage = persistent id ('storage', storage class, key, 'cpu', length)

Version 3 serves the types without a storage class of their own; its storage is untyped and its length counts
bytes. Like pickle's own, this writer memoizes every tuple, string and container it writes, so the bytes equal
torch's for the same tensors. Only this shape of object is written; it is a text with holes, not a pickler.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from struct import pack
from typing import NamedTuple

_ORDERED_DICT = "collections OrderedDict"
_BATCH = 1_000


class Entry(NamedTuple):
    """One name of the state dict: contiguous, at the start of the storage `key` of `length` elements.

    `storage` is the storage class without its module ("FloatStorage"), or "" for an untyped storage, whose
    `length` counts bytes and which needs the name of the `dtype` ("uint16").
    """

    name: str
    key: str
    storage: str
    dtype: str
    length: int
    shape: tuple[int, ...]


def state_dict(entries: Iterable[Entry], state: Mapping[str, object]) -> bytes:
    """The pickle of an OrderedDict of tensors whose instance attributes are `state`.

    `state` consists of dicts and OrderedDicts with string keys, and of str, int, float, bool and None.
    """
    write = _Writer()
    write.ordered_dict()
    write.batches(((entry.name, entry) for entry in entries), write.string)
    if state:
        write.value(dict(state))
        write.out.append(b"b")
    write.out.append(b".")
    return b"".join(write.out)


class _Writer:
    """Collects opcodes and numbers what pickle memoizes."""

    def __init__(self) -> None:
        self.out: list[bytes] = [b"\x80\x02"]
        self.memo: dict[tuple[str, str], bytes] = {}  # (kind, text) → opcode that fetches it
        self.count = 0

    def put(self) -> bytes:
        """The opcode that memoizes the top of the stack."""
        number = self.count
        self.count = number + 1
        return b"q%c" % number if number < 256 else b"r" + number.to_bytes(4, "little")

    def shared(self, kind: str, value: str) -> bytes:
        """A global ("module name") or a string that pickle meets as one object each time."""
        known = self.memo.get((kind, value))
        if known is not None:
            return known
        number = self.count
        get = b"h%c" % number if number < 256 else b"j" + number.to_bytes(4, "little")
        self.memo[kind, value] = get
        body = text(value) if kind == "str" else b"c%s\n" % value.replace(" ", "\n").encode()
        return body + self.put()

    def string(self, value: str) -> bytes:
        """A string that is an object of its own."""
        return text(value) + self.put()

    def sizes(self, values: tuple[int, ...]) -> bytes:
        """A tuple of sizes or strides."""
        return _sizes(values) + self.put() if values else b")"

    def ordered_dict(self) -> None:
        self.out += (self.shared("global", _ORDERED_DICT), b")R", self.put())

    def batches(self, items: Iterable[tuple[str, object]], key: Callable[[str], bytes]) -> None:
        """Set the items of the dict on top of the stack, a thousand at a time, one alone without a mark."""
        out = self.out
        pending = iter(items)
        item = next(pending, None)
        while item is not None:
            start, size = len(out), 0
            out.append(b"(")
            while item is not None and size < _BATCH:
                out.append(key(item[0]))
                self.value(item[1])
                size += 1
                item = next(pending, None)
            if size == 1:
                out[start] = b""
            out.append(b"s" if size == 1 else b"u")

    def value(self, value: object) -> None:
        if isinstance(value, Entry):
            self.tensor(value)
        elif isinstance(value, OrderedDict):
            self.ordered_dict()
            self.batches(value.items(), self.string)
        elif isinstance(value, dict):
            self.out += (b"}", self.put())
            self.batches(value.items(), self.attribute)
        elif isinstance(value, str):
            self.out.append(self.string(value))
        else:
            self.out.append(_constant(value))

    def attribute(self, name: str) -> bytes:
        """A string that recurs as the same object: an identifier."""
        return self.shared("str", name)

    def tensor(self, entry: Entry) -> None:
        shared, put = self.shared, self.put
        self.out += (
            shared("global", f"torch._utils _rebuild_tensor_v{2 if entry.storage else 3}"),
            b"((",
            shared("str", "storage"),
            shared("global", f"torch {entry.storage}" if entry.storage else "torch.storage UntypedStorage"),
            shared("str", entry.key),
            shared("str", "cpu"),
            integer(entry.length),
            b"t" + put() + b"QK\0",
            self.sizes(entry.shape),
            self.sizes(contiguous_strides(entry.shape)),
            b"\x89",
            shared("global", _ORDERED_DICT),
            b")R" + put(),
            b"" if entry.storage else shared("global", f"torch {entry.dtype}"),
            b"t" + put() + b"R" + put(),
        )


_TUPLES = (b")", b"\x85", b"\x86", b"\x87")
_CONSTANTS = {None: b"N", True: b"\x88", False: b"\x89"}


def text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + len(data).to_bytes(4, "little") + data


def integer(value: int) -> bytes:
    """The shortest opcode that holds it."""
    if 0 <= value < 256:
        return b"K%c" % value
    if 0 <= value < 65536:
        return b"M" + value.to_bytes(2, "little")
    if -(2**31) <= value < 2**31:
        return b"J" + value.to_bytes(4, "little", signed=True)
    size = value.bit_length() // 8 + 1
    return b"\x8a%c" % size + value.to_bytes(size, "little", signed=True)


@lru_cache(4_096)  # shapes recur
def _sizes(values: tuple[int, ...]) -> bytes:
    body = b"".join(map(integer, values))
    return body + _TUPLES[len(values)] if len(values) <= 3 else b"(" + body + b"t"


def _constant(value: object) -> bytes:
    if isinstance(value, float):
        return b"G" + pack(">d", value)
    if isinstance(value, int) and not isinstance(value, bool):
        return integer(value)
    return _CONSTANTS[value]  # type: ignore[index]


@lru_cache(4_096)
def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Row-major strides in elements; a dimension of size 0 counts as 1, as in torch."""
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))

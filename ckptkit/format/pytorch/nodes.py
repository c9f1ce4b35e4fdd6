"""What the pickle machine makes of a stream, besides plain values: names, calls, dicts, sets."""

from collections.abc import Iterator
from typing import Any, NamedTuple

UNKNOWN = object()  # nothing worked out yet


class Global:
    """A class or function that the stream names. One instance per name and stream.

    `called` tells whether the stream calls it; `element` holds what `refs` worked out of a storage class.
    """

    __slots__ = ("called", "element", "module", "name")

    def __init__(self, module: str, name: str) -> None:
        self.module = module
        self.name = name
        self.called = False
        self.element: object = UNKNOWN

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"

    __repr__ = __str__


class Object:
    """What a call or an instantiation would have made.

    Attributes:
        cls: what would be called, usually a `Global`.
        args: its positional arguments.
        state: what BUILD would set afterwards; None if it does not. Where it does so repeatedly, the last.
        items: what would be appended or added to it.
        pairs: what would be set in it: key, value, key, value, …
        extra: keyword arguments (`Dict`) of NEWOBJ_EX, or None.
    """

    __slots__ = ("args", "cls", "extra", "items", "pairs", "state")

    def __init__(self, cls: object, args: tuple[Any, ...]) -> None:
        self.cls = cls
        self.args = args
        self.state: Any = None
        self.items: list[Any] | None = None
        self.pairs: list[Any] | None = None
        self.extra: Any = None

    @property
    def name(self) -> tuple[str, str]:
        """Module and name of what would be called; ("", "") for what the stream does not name."""
        cls = self.cls
        return (cls.module, cls.name) if type(cls) is Global else ("", "")

    @property
    def type(self) -> str:
        """The name in one word, for people."""
        return str(self.cls) if type(self.cls) is Global else "object"

    def __repr__(self) -> str:
        return f"<{self.type} object>"


class Dict(list[Any]):
    """A dict as a flat list: key, value, key, value, … in stream order; keys may recur (the last one counts)."""

    __slots__ = ()

    def entries(self) -> Iterator[tuple[Any, Any]]:
        it = iter(self)
        return zip(it, it, strict=True)


class Set(list[Any]):
    """A set or frozenset as a list; items may recur."""

    __slots__ = ()


class Value(NamedTuple):
    """A plain value with the type name that the file gives it; `value` is None where JSON has no such value."""

    type: str
    value: Any


class Text(str):
    """A Python-2 byte string that is not ASCII, decoded; `raw` is what was stored."""

    __slots__ = ("raw",)
    raw: bytes


_TAGGED = ("torch.jit._pickle", "restore_type_tag")


def untagged(node: Any) -> Any:
    """The container within TorchScript's `restore_type_tag(container, 'Dict[str, bool]')`; else the node."""
    return node.args[0] if type(node) is Object and node.name == _TAGGED and len(node.args) == 2 else node


def decode(raw: bytes) -> str:
    """A Python-2 byte string as str: ASCII, UTF-8 or else Latin-1; `raw_bytes` gives it back."""
    try:
        return str(raw, "ascii")
    except UnicodeDecodeError:
        pass
    try:
        text = Text(raw, "utf-8")
    except UnicodeDecodeError:
        text = Text(raw, "latin-1")
    text.raw = raw
    return text


def raw_bytes(value: object) -> bytes | None:
    """The bytes of bytes, bytearray or a Python-2 byte string (Latin-1 of other text); None if it has none."""
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    if isinstance(value, Text):
        return value.raw
    if isinstance(value, str):
        try:
            return value.encode("latin-1")
        except UnicodeEncodeError:
            return None
    return None

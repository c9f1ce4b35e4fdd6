"""Arguments of opcodes as values, whatever the bytes say: what is not what it claims to be becomes `UNKNOWN`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ckptkit.format.pytorch.arguments import unescaped
from ckptkit.format.pytorch.nodes import Dict, Global, Object, Set, decode


class Unknown:
    """A value that the walk cannot know."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "?"


UNKNOWN = Unknown()


@dataclass(frozen=True, slots=True)
class Persistent:
    """What a loader would put in the place of a persistent id."""

    pid: Any

    def __repr__(self) -> str:
        return "<storage>"


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogatepass")


def _quoted(line: bytes) -> object:
    raw = line.strip()
    if len(raw) > 1 and raw[:1] == raw[-1:] and raw[:1] in b"'\"":
        raw = raw[1:-1]
    try:
        return decode(unescaped(raw))
    except ValueError:
        return decode(raw)


def _number(line: bytes) -> object:
    digits = line.strip().removesuffix(b"L")
    if line in (b"00", b"01"):
        return line == b"01"
    try:
        return int(digits) if len(digits) < 100 else UNKNOWN
    except ValueError:
        return UNKNOWN


def _real(line: bytes) -> object:
    try:
        return float(line)
    except ValueError:
        return UNKNOWN


def _escaped(line: bytes) -> object:
    return line.decode("raw-unicode-escape", "backslashreplace")


def _array(raw: bytes) -> Object:
    """A bytearray, which opcodes may change after it is made: the record of a call keeps what they do."""
    return Object(Global("builtins", "bytearray"), (raw,))


def paired(items: list[Any]) -> Dict:
    """DICT: keys and values in turn; a last key gets a value."""
    return Dict([*items, UNKNOWN] if len(items) % 2 else items)


def index(text: str) -> int:
    """A memo index as loaders understand it (`+1_0` is 10, and so is `10` before a zero byte); −1 if it is none."""
    digits = text.partition("\0")[0]
    try:
        return max(int(digits), -1) if len(digits) < 40 else -1
    except ValueError:
        return -1


COUNTED: dict[int, tuple[int, Callable[[bytes], object]]] = {
    0x58: (4, _text), 0x8C: (1, _text), 0x8D: (8, _text),  # BINUNICODE, SHORT_BINUNICODE, BINUNICODE8
    0x42: (4, bytes), 0x43: (1, bytes), 0x8E: (8, bytes),  # BINBYTES, SHORT_BINBYTES, BINBYTES8
    0x96: (8, _array),  # BYTEARRAY8
    0x54: (4, decode), 0x55: (1, decode),  # BINSTRING, SHORT_BINSTRING
}  # fmt: skip
MARKED: dict[int, Callable[[list[Any]], object]] = {0x6C: list, 0x64: paired, 0x91: Set}
FRESH: dict[int, Callable[[], object]] = {0x7D: Dict, 0x5D: list, 0x8F: Set}
CONSTANTS: dict[int, object] = {0x29: (), 0x4E: None, 0x88: True, 0x89: False}
LINES: dict[int, Callable[[bytes], object]] = {
    0x49: _number, 0x4C: _number, 0x46: _real, 0x53: _quoted, 0x56: _escaped,
}  # fmt: skip
EXTENSIONS = {0x82: 1, 0x83: 2, 0x84: 4}

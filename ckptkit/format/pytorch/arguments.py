"""The arguments of the rarer opcodes: text lines of protocol 0, counted strings, long integers.

Positions are byte offsets into the pickle; each method returns the value and the position after it. All raise
CkptError `truncated`, `pickle-invalid` or `over-budget`.
"""

import re
from collections.abc import Callable
from typing import Any

from ckptkit.core.budgets import Budgets
from ckptkit.core.errors import CkptError
from ckptkit.format.pytorch.nodes import Value, decode

_HUGE = Value("int", None)  # an integer of more bytes than the budget
LINE = 4_096  # bytes of one line of text: a module, a class, a number


class Arguments:
    """Reads arguments from a pickle."""

    __slots__ = ("budgets", "data")

    def __init__(self, data: bytes, budgets: Budgets) -> None:
        self.data = data
        self.budgets = budgets

    def line(self, i: int, longest: int = LINE) -> tuple[str, int]:
        end = self.data.find(b"\n", i, i + longest)
        if end < 0:
            if len(self.data) - i < longest:
                raise truncated()
            raise budget(f"holds a line of more than {longest} bytes")
        return str(self.data[i:end], "utf-8"), end + 1

    def index(self, text: str) -> int:
        if not text.isdecimal() or len(text) > 19:
            raise invalid("a memo index is not a number")
        return int(text)

    def integer(self, i: int, n: int) -> "int | Value":
        """A little-endian two's complement number of `n` bytes; a longer one than the budget is not worked out."""
        if i + n > len(self.data):
            raise truncated()
        if n > self.budgets.integer_bytes:
            return _HUGE
        return int.from_bytes(self.data[i : i + n], "little", signed=True)

    def decimal(self, i: int) -> "tuple[int | bool | Value, int]":
        """INT or LONG: a line of digits; 00 and 01 are False and True."""
        text, i = self.line(i, self.budgets.string_bytes)
        digits = text.removesuffix("L")
        if text in ("00", "01"):
            return text == "01", i
        if not digits.removeprefix("-").isdecimal() or not digits.isascii():
            raise invalid("an integer is not made of digits")
        if len(digits) > self.budgets.integer_bytes * 5 // 2:
            return _HUGE, i
        return int(digits), i

    def long4(self, i: int) -> "tuple[int | Value, int]":
        n = int.from_bytes(self.data[i : i + 4], "little", signed=True)
        if n < 0:
            raise invalid("an integer has a negative length")
        return self.integer(i + 4, n), i + 4 + n

    def real(self, i: int) -> tuple[float, int]:
        text, i = self.line(i)
        try:
            return float(text), i
        except ValueError:
            raise invalid("a number is not one") from None

    def counted(self, i: int, width: int) -> tuple[bytes, int]:
        """What follows a length of `width` bytes."""
        start = i + width
        if start > len(self.data):
            raise truncated()
        n = int.from_bytes(self.data[i:start], "little")
        if start + n > len(self.data) or n > self.budgets.string_bytes:
            raise too_long(start + n, len(self.data))
        return self.data[start : start + n], start + n

    def unicode(self, i: int, width: int) -> tuple[str, int]:
        raw, i = self.counted(i, width)
        return str(raw, "utf-8", "surrogatepass"), i

    def array(self, i: int) -> tuple[bytearray, int]:
        raw, i = self.counted(i, 8)
        return bytearray(raw), i

    def text(self, i: int, width: int) -> tuple[str, int]:
        """A Python-2 byte string after its length."""
        raw, i = self.counted(i, width)
        return decode(raw), i

    def quoted(self, i: int) -> tuple[str, int]:
        """A Python-2 byte string as a line of source text."""
        end = self.data.find(b"\n", i)
        if end < 0:
            raise truncated()
        line = self.data[i:end].strip()
        if len(line) > self.budgets.string_bytes:
            raise budget("holds a string that is too long")
        if len(line) < 2 or line[:1] not in (b"'", b'"') or line[-1:] != line[:1]:
            raise invalid("a string has no quotes around it")
        try:
            raw = unescaped(line[1:-1])
        except ValueError:
            raise invalid("a string holds a broken escape") from None
        return decode(raw), end + 1

    def escaped(self, i: int) -> tuple[str, int]:
        """UNICODE: a line in raw-unicode-escape."""
        end = self.data.find(b"\n", i)
        if end < 0:
            raise truncated()
        if end - i > self.budgets.string_bytes:
            raise budget("holds a string that is too long")
        return str(self.data[i:end], "raw-unicode-escape"), end + 1


_ESCAPE = re.compile(rb"\\(?:([0-7]{1,3})|x([0-9a-fA-F]{2})|(x)|(.)|$)", re.DOTALL)
_MEANT = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"a": b"\a", b"b": b"\b", b"f": b"\f", b"v": b"\v"}
_MEANT |= {b"\n": b"", b"\\": b"\\", b"'": b"'", b'"': b'"'}


def unescaped(text: bytes) -> bytes:
    """What the escapes of a Python byte string stand for. Raises ValueError for a broken one."""
    return _ESCAPE.sub(_meant, text)


def _meant(match: re.Match[bytes]) -> bytes:
    octal, digits, broken, letter = match.groups()
    if octal:
        return bytes([int(octal, 8) & 0xFF])
    if digits:
        return bytes([int(digits, 16)])
    if broken or not letter:
        raise ValueError("a broken escape")
    return _MEANT.get(letter, match[0])  # an unknown escape is no escape


LITERALS: dict[int, Callable[[Arguments, int], tuple[Any, int]]] = {
    0x49: Arguments.decimal,  # INT
    0x4C: Arguments.decimal,  # LONG
    0x46: Arguments.real,  # FLOAT
    0x53: Arguments.quoted,  # STRING
    0x56: Arguments.escaped,  # UNICODE
    0x54: lambda m, i: m.text(i, 4),  # BINSTRING
    0x55: lambda m, i: m.text(i, 1),  # SHORT_BINSTRING
    0x42: lambda m, i: m.counted(i, 4),  # BINBYTES
    0x43: lambda m, i: m.counted(i, 1),  # SHORT_BINBYTES
    0x8E: lambda m, i: m.counted(i, 8),  # BINBYTES8
    0x8D: lambda m, i: m.unicode(i, 8),  # BINUNICODE8
    0x96: Arguments.array,  # BYTEARRAY8
    0x8B: Arguments.long4,  # LONG4
}


def invalid(message: str) -> CkptError:
    return CkptError("pickle-invalid", f"the pickle cannot be run: {message}")


def no_memo(index: int) -> CkptError:
    return invalid(f"memo entry {index} was never set")


def budget(message: str) -> CkptError:
    return CkptError("over-budget", f"the pickle {message}")


def too_many() -> CkptError:
    return budget("makes more objects than its size allows")


def truncated() -> CkptError:
    return CkptError("truncated", "the pickle ends before it says so")


def too_long(end: int, size: int) -> CkptError:
    return truncated() if end > size else budget("holds a string that is too long")

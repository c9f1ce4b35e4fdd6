"""Words and numbers for people: units, shapes, safe printing, and what the terminal can show."""

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TextIO

from ckptkit.core.escaping import printable
from ckptkit.core.findings import Finding

_BYTES = ("B", "kB", "MB", "GB", "TB", "PB", "EB")
_COUNTS = ("", "k", "M", "B", "T", "Q")
_CODES = {"bold": "1", "dim": "2", "red": "31", "yellow": "33"}
KEY = 12  # width of the words at the start of a line of facts

clean = printable


def size(nbytes: int) -> str:
    """Bytes in decimal units, three digits: `134 MB`."""
    return _scaled(nbytes, _BYTES)


def count(number: int) -> str:
    """A number of things in thousands, millions, billions: `68.9 B`; exact below ten thousand."""
    return str(number) if number < 10_000 else _scaled(number, _COUNTS)


def _scaled(number: int, units: Sequence[str]) -> str:
    if number < 1000:
        return f"{number} {units[0]}".rstrip()
    value, unit = float(number), 0
    while value >= 999.5 and unit < len(units) - 1:
        value /= 1000
        unit += 1
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{digits}f} {units[unit]}"


def shape(dimensions: Iterable[int | str | None]) -> str:
    """`32000×8192`; `scalar` without dimensions."""
    return "×".join("?" if d is None else clean(str(d)) for d in dimensions) or "scalar"


def number(value: float | None, digits: int = 4) -> str:
    """A value of a tensor with so many significant digits; `–` where there is none."""
    return "–" if value is None else f"{value:.{digits}g}"


def columns(text: str) -> int:
    """Columns the text takes in a terminal: wide characters take two, combining ones none."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(c) else 2 if east_asian_width(c) in "WF" else 1 for c in text)


def shorten(text: str, width: int) -> str:
    """The text in at most `width` columns, its middle left out if need be."""
    if columns(text) <= width:
        return text
    room = max(width - 1, 2)
    head = room // 3
    start, end = "", ""
    for c in text:
        if columns(start + c) > head:
            break
        start += c
    for c in reversed(text):
        if columns(start + end) + columns(c) > room:
            break
        end = c + end
    return f"{start}…{end}"


def pad(text: str, width: int, *, right: bool = False) -> str:
    """The text filled with blanks to `width` columns."""
    blanks = " " * max(0, width - columns(text))
    return blanks + text if right else text + blanks


@dataclass(frozen=True, slots=True)
class Terminal:
    """What a stream can show: its width in columns (None: a file or pipe, anything goes), and colour."""

    width: int | None = None
    colour: bool = False

    @classmethod
    def of(cls, stream: TextIO) -> "Terminal":
        try:
            if not stream.isatty():
                return cls()
            width = int(os.environ.get("COLUMNS") or 0) or os.get_terminal_size(stream.fileno()).columns
        except (OSError, ValueError):
            return cls()
        plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        return cls(max(width, 40), not plain)

    def paint(self, text: str, style: str) -> str:
        """The text in bold, dim, red or yellow, where colour can be shown."""
        return f"\x1b[{_CODES[style]}m{text}\x1b[0m" if self.colour and text else text

    def fact(self, key: str, values: Sequence[str], separator: str = " · ") -> list[str]:
        """`key` and its values on one line, or on as many as the width needs, broken between values."""
        lines: list[str] = []
        line = ""
        room = None if self.width is None else self.width - KEY
        for value in values:
            if room is not None:
                value = shorten(value, max(room, 20))
            if line and room is not None and columns(line) + columns(separator) + columns(value) > room:
                lines.append(line)
                line = value
            else:
                line = f"{line}{separator}{value}" if line else value
        lines.append(line)
        key = self.paint(key, "bold") + " " * max(KEY - columns(key), 0)
        return [f"{key if i == 0 else ' ' * KEY}{line}".rstrip() for i, line in enumerate(lines)]

    def prose(self, key: str, text: str) -> list[str]:
        """`key` and a sentence, broken between words."""
        return self.fact(key, text.split(" ") if self.width else [text], " ")


def finding_text(finding: Finding) -> str:
    """A finding in one line."""
    where = f" — {clean(finding.where)}" if finding.where else ""
    hint = f" ({' or '.join(map(clean, finding.hint.split(chr(10))))})" if finding.hint else ""
    return f"{clean(finding.message)}{where}{hint}"


def emit(lines: Iterable[str]) -> None:
    """Write lines to stdout in large pieces."""
    batch: list[str] = []
    for line in lines:
        batch.append(line)
        if len(batch) == 10_000:
            sys.stdout.write("\n".join(batch) + "\n")
            batch.clear()
    if batch:
        sys.stdout.write("\n".join(batch) + "\n")


def say(lines: Iterable[str]) -> None:
    """Talk to the user on stderr."""
    sys.stderr.write("".join(f"{line}\n" for line in lines))

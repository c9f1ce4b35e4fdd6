"""numpy's .npy files: whether the elements are numbers, beyond doubt, and where the array ends.

numpy evaluates the header as a Python expression and gives its `descr` to `numpy.dtype`, which understands an array
of objects in a dozen spellings. So the question is not whether it says objects: what is not plainly numbers or text,
in the words that writers use, may be a pickle.
"""

import re
from math import prod
from typing import NamedTuple

from ckptkit.format.pytorch.source import Source
from ckptkit.verbs.scan.parts import head

MAGIC = b"\x93NUMPY"
_LONGEST = 1 << 20  # bytes of a header
_TYPE = rb"[<>|=]?([?bBiufcSUVMm])(\d{1,9})(?:\[\w{1,9}\])?"
_SHAPE = rb"\(([\d, L]{0,400})\)"
_FIELD = rb"\(\s*'[^'\\]*'\s*,\s*'" + _TYPE + rb"'\s*(?:,\s*" + _SHAPE + rb"\s*)?\)"
_HEADER = re.compile(
    rb"\{\s*'descr'\s*:\s*(?:'" + _TYPE + rb"'|\[([^\]]*)\])\s*,\s*'fortran_order'\s*:\s*(?:True|False)\s*,"
    rb"\s*'shape'\s*:\s*" + _SHAPE + rb"\s*,?\s*\}\s*"
)
_FIELDS = re.compile(rb"\s*(?:" + _FIELD + rb"\s*(?:,\s*|$))+")


def may_run(begin: bytes) -> bool:
    """Whether numbers that begin so may be something else: a pickle, or an array that numpy.load takes objects from."""
    return begin[:1] == b"\x80" or begin.startswith(MAGIC)


class Npy(NamedTuple):
    """One array: where its elements begin, and where they end, None if they may be anything but numbers and text."""

    start: int
    end: int | None


def read_npy(source: Source) -> Npy | None:
    """The array at the beginning of a source; None if its header is damaged."""
    first = head(source, 12)
    version = first[6] if len(first) == 12 else 0
    wide = version > 1
    size = int.from_bytes(first[8:12] if wide else first[8:10], "little")
    start = 12 if wide else 10
    if version not in (1, 2, 3) or first[7] or size > _LONGEST or start + size > source.size:
        return None
    start += size
    match = _HEADER.fullmatch(source.read(start - size, size))
    if match is None:
        return Npy(start, None)
    kind, digits, fields, shape = match.groups()
    width = _width(kind, digits) if kind else _struct(fields)
    return Npy(start, None if width is None else start + width * prod(_numbers(shape)))


def _width(kind: bytes, digits: bytes) -> int:
    return 8 if kind in b"Mm" else int(digits) * (4 if kind == b"U" else 1)


def _struct(fields: bytes) -> int | None:
    """Bytes of a record; None unless all of its fields are plain."""
    if not _FIELDS.fullmatch(fields):
        return None
    parts = (match.groups() for match in re.finditer(_FIELD, fields))
    return sum(_width(kind, digits) * prod(_numbers(shape or b"")) for kind, digits, shape in parts)


def _numbers(shape: bytes) -> list[int]:
    return [int(number) for number in re.findall(rb"\d+", shape)]

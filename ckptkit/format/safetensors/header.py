"""The safetensors header: parsed and proved in one place, so that what stands behind it needs no checks.

Layout: 8 bytes little-endian N, N bytes of UTF-8 JSON, then the tensors' bytes to the end of the file. The JSON is
an object name → {"dtype", "shape", "data_offsets": [begin, end]}, offsets counted from the end of the header,
with an optional `__metadata__` object of strings. Sorted by offset the tensors tile the buffer exactly.

Accepted and refused is what the reference (safetensors 0.8, `tensor.rs`) accepts and refuses, its oddities
included: blanks around the object, a null `__metadata__`, unknown fields, a tensor written as the array
[dtype, shape, data_offsets]. Stricter where the format's text is: no name twice, neither of tensors nor of fields
nor in the metadata. Stricter also on a dtype spelled as the object {"F32": null}.

Limits: N ≤ 100,000,000 (`Budgets.header_bytes`), every number below 2^64.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple, NoReturn

from ckptkit.core.budgets import DEFAULT_BUDGETS, Budgets
from ckptkit.core.dtypes import BY_SAFETENSORS, DType
from ckptkit.core.errors import CkptError
from ckptkit.core.files import Reader

PREFIX = 8  # bytes of the length
METADATA = "__metadata__"
_LIMIT = 1 << 64
_FLOAT64 = 1 << 1024
_INFINITIES = (float("inf"), float("-inf"))
_DEPTH = 125  # of containers within an unknown field: serde's limit of 128 less those around it
_FIELDS = ("dtype", "shape", "data_offsets")
_MINUS = re.compile(rb"[\[,:\s]-")
_DENSE = 1 << 20  # bytes of header from which the density of brackets is looked at


class Entry(NamedTuple):
    """One tensor of a header; offsets in bytes from the end of the header."""

    begin: int
    end: int
    name: str
    dtype: DType
    shape: tuple[int, ...]


class Header(NamedTuple):
    """A proved header: entries in offset order, string metadata, and where the tensors' bytes start."""

    entries: list[Entry]
    metadata: dict[str, str]
    start: int


def read_header(reader: Reader, budgets: Budgets = DEFAULT_BUDGETS) -> Header:
    """Read and prove the header of an open file. Costs the header, never the tensors.

    Raises CkptError `truncated`, `header-too-large`, `header-invalid`, `duplicate-name`, `dtype-unknown`,
    `size-mismatch`, `tensors-overlap` or `bytes-unclaimed`.
    """
    raw = header_bytes(reader, budgets)
    start = PREFIX + len(raw)
    return parse(raw, reader.file.size - start, reader.file.path)


def header_bytes(reader: Reader, budgets: Budgets) -> bytes:
    """The JSON text of the header, unproved. Raises CkptError `truncated` or `header-too-large`."""
    file = reader.file
    if file.size < PREFIX:
        raise CkptError(
            "truncated", f"a safetensors file has at least 8 bytes, this one {file.size}", file.path, DOWNLOAD
        )
    length = int.from_bytes(reader.read(0, PREFIX), "little")
    if length > budgets.header_bytes:
        raise CkptError(
            "header-too-large",
            f"the header claims {length:,} bytes; at most {budgets.header_bytes:,} are allowed",
            file.path,
            "this may be no safetensors file, or its first bytes are damaged",
        )
    if PREFIX + length > file.size:
        raise CkptError(
            "truncated",
            f"the header needs {PREFIX + length:,} bytes; the file has {file.size:,}",
            file.path,
            DOWNLOAD,
        )
    return reader.read(PREFIX, length)


DOWNLOAD = "download or copy it again"


def parse(raw: bytes, available: int, where: str) -> Header:
    """Prove a header's JSON text against the number of bytes that follow it. Raises as `read_header`."""
    top = _scan(raw, where)
    metadata: dict[str, str] | None = None
    entries: list[Entry] = []
    append = entries.append
    names: set[str] = set()
    dtypes = BY_SAFETENSORS
    for name, value in top:
        if name == METADATA:
            if metadata is not None:
                _refuse("duplicate-name", f"{METADATA} stands twice in the header", where)
            metadata = _metadata(value, where)
            continue
        try:
            (first, kind), (second, shape), (third, (begin, end)) = value
            plain = (first, second, third) == _FIELDS and type(value) is tuple
        except (TypeError, ValueError):
            plain = False
        if not plain:
            kind, shape, (begin, end) = _fields(value, name, where)
        try:
            dtype = dtypes[kind]
        except (KeyError, TypeError):
            _refuse("dtype-unknown", f"the dtype {_brief(kind)} is not known", where, name)
        if type(shape) is not list:
            _refuse("header-invalid", "the shape is no list", where, name)
        bits = dtype.bits
        count = 1
        for size in shape:
            if type(size) is not int or not 0 <= size < _LIMIT:
                _refuse("header-invalid", f"{_brief(size)} is no dimension", where, name)
            count *= size
            if count >= _LIMIT:
                _refuse("header-invalid", "the number of elements passes 2^64", where, name)
        if type(begin) is not int or type(end) is not int or not 0 <= begin < _LIMIT or not 0 <= end < _LIMIT:
            _refuse("header-invalid", "data_offsets are no pair of sizes", where, name)
        if count * bits != (end - begin) * 8:
            _refuse(
                "size-mismatch",
                f"{dtype.name}{shape} needs {_bytes(count * bits)}; data_offsets give {end - begin}",
                where,
                name,
            )
        append(Entry(begin, end, name, dtype, tuple(shape)))
        names.add(name)
    if len(names) != len(entries):
        twice = next(name for name, count in Counter(e.name for e in entries).items() if count > 1)
        _refuse("duplicate-name", "the name stands twice in the header", where, twice)
    if b"\\u" in raw:
        _check_surrogates(names, metadata or {}, where)
    if not _tiles(entries, available):
        entries.sort(key=_offsets)
        if not _tiles(entries, available):
            _explain(entries, available, where, PREFIX + len(raw))
    return Header(entries, metadata or {}, PREFIX + len(raw))


def _scan(raw: bytes, where: str) -> tuple[tuple[str, Any], ...]:
    """The top object as pairs. Every object becomes a tuple of pairs (so nothing is lost or hashed), every
    array a list, every number that is not an integer `_FRACTION`.

    `tuple` as the pairs hook is called from C, which makes the strict reading as fast as the lax one.
    """
    if len(raw) > _DENSE and raw.count(b"[") * 5 > len(raw):
        # The densest entry has a bracket per six bytes; nested empty arrays would take twenty times their text.
        _refuse("header-invalid", "more brackets than tensors could need", where)
    try:
        top = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=tuple,
            parse_int=_integer if _MINUS.search(raw) else None,  # None is quicker
            parse_float=_fraction,
            parse_constant=_no_constant,
        )
    except UnicodeDecodeError as error:
        _refuse("header-invalid", f"the header is not UTF-8 (byte {PREFIX + error.start})", where)
    except json.JSONDecodeError as error:
        _refuse("header-invalid", f"the header is not JSON: {error.msg} (character {error.pos})", where)
    except RecursionError:
        _refuse("header-invalid", "the header is nested too deeply", where)
    except ValueError as error:
        # A forbidden constant, or a number of thousands of digits; Python's advice on those is not for users.
        _refuse("header-invalid", f"the header is not JSON: {str(error).split(':')[0]}", where)
    if type(top) is not tuple:
        _refuse("header-invalid", "the header is no JSON object", where)
    return top


class _Fraction:
    """Stands for every number that is no integer: a header has no use for its value."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "a fraction"


_FRACTION = _Fraction()


def _fraction(text: str) -> _Fraction:
    if float(text) in _INFINITIES:
        raise ValueError("a number is beyond float64")
    return _FRACTION


def _integer(text: str) -> int | _Fraction:
    """As `int`, but "-0" is no integer to the reference, which reads it as the float −0.0."""
    return _FRACTION if text == "-0" else int(text)


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON value")


def _fields(value: Any, name: str, where: str) -> tuple[Any, Any, tuple[Any, Any]]:
    """dtype, shape and offsets of an entry that is not in the usual form."""
    if type(value) is list and len(value) == 3:
        found = dict(zip(_FIELDS, value, strict=True))
    elif type(value) is tuple:
        found = dict(value)
        if len(found) != len(value):
            _refuse("duplicate-name", "a field stands twice in the tensor's entry", where, name)
    else:
        _refuse("header-invalid", "the tensor's entry is no object", where, name)
    for field in _FIELDS:
        if field not in found:
            _refuse("header-invalid", f"the tensor's entry has no {field}", where, name)
    for field, extra in found.items():
        if field not in _FIELDS:
            _check_unknown([field, extra], name, where)
    offsets = found["data_offsets"]
    if type(offsets) is not list or len(offsets) != 2:
        _refuse("header-invalid", "data_offsets are no pair of sizes", where, name)
    return found["dtype"], found["shape"], (offsets[0], offsets[1])


def _check_unknown(level: list[Any], name: str, where: str) -> None:
    """What the reference refuses within unknown fields too, level by level: depth, huge numbers, half characters."""
    for _ in range(_DEPTH + 1):
        below: list[Any] = []
        nested = False
        for value in level:
            if type(value) is str:
                if not _is_text(value):
                    _refuse("header-invalid", "half a surrogate pair in an unknown field", where, name)
            elif type(value) is int:
                if not -_FLOAT64 < value < _FLOAT64:
                    _refuse("header-invalid", "a number beyond float64 in an unknown field", where, name)
            elif type(value) is list or type(value) is tuple:
                nested = True
                for item in value:  # of an object its pairs, side by side
                    below += item if type(value) is tuple else (item,)
        if not nested:
            return
        level = below
    _refuse("header-invalid", "an unknown field is nested too deeply", where, name)


def _metadata(value: Any, where: str) -> dict[str, str]:
    if value is None:
        return {}
    if type(value) is not tuple:
        _refuse("header-invalid", f"{METADATA} is no object", where)
    found = dict(value)
    if len(found) != len(value):
        _refuse("duplicate-name", f"a key stands twice in {METADATA}", where)
    if not {*map(type, found.values())} <= {str}:
        wrong = next(key for key, text in found.items() if type(text) is not str)
        _refuse("header-invalid", f"the value of {_brief(wrong)} in {METADATA} is no string", where)
    return found


def _check_surrogates(names: Iterable[str], metadata: dict[str, str], where: str) -> None:
    """Python lets `\\ud800` alone pass as an escape; it is no character and cannot be written again."""
    for text in (*names, *metadata, *metadata.values()):
        if not _is_text(text):
            _refuse("header-invalid", f"half a surrogate pair in {_brief(text)}", where)


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _offsets(entry: Entry) -> tuple[int, int]:
    return entry[:2]


def _tiles(entries: list[Entry], available: int) -> bool:
    """Do the entries, in this order, cover the buffer without hole or overlap?"""
    end = 0
    for entry in entries:
        if entry[0] != end:
            return False
        end = entry[1]
    return end == available


def _explain(entries: list[Entry], available: int, where: str, start: int) -> NoReturn:
    """Say why entries in offset order do not tile the buffer."""
    last = max((e.end for e in entries), default=0)
    if last > available:
        raise CkptError(
            "truncated",
            f"the header promises {start + last:,} bytes; the file has {start + available:,}",
            where,
            DOWNLOAD,
        )
    end = 0
    for entry in entries:
        if entry.begin < end:
            _refuse("tensors-overlap", f"it starts at byte {entry.begin}, before {end}", where, entry.name)
        if entry.begin > end:
            _refuse("bytes-unclaimed", f"no tensor claims the bytes {end} to {entry.begin}", where)
        end = entry.end
    _refuse("bytes-unclaimed", f"{available - end:,} bytes follow the last tensor", where)


def _bytes(bits: int) -> str:
    return f"{bits // 8} bytes" if bits % 8 == 0 else f"{bits} bits, no whole bytes"


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _refuse(code: str, message: str, where: str, name: str | None = None) -> NoReturn:
    raise CkptError(code, message, where if name is None else f"{where}: {_brief(name)}")

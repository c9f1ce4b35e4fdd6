"""The directory of a zip archive, read without its members: names, sizes, methods and where the bytes lie.

    member    local header (30 bytes: signature PK 03 04, flags, method, sizes, lengths) · name · extra ·
              bytes · data descriptor if flag bit 3
    central   per member a header (46 bytes: PK 01 02, method, sizes, local offset) · name · extra · comment
    end       [zip64 record PK 06 06 · zip64 locator PK 06 07] · record of 22 bytes (PK 05 06) · comment

Sizes or offsets of 0xFFFFFFFF stand in the zip64 extra field (id 1): size, packed size, offset, each only if
it is saturated. Where a member's bytes start is known only from its *local* header, whose extra field torch
uses for alignment and the central one does not repeat; so every local header is read and compared.

Refused, because readers disagree about them: two end records, members that overlap or share a header, two
members of one name, local and central headers that contradict each other, encrypted members, methods other
than stored (0) and deflated (8), bytes before the archive, anything outside the file. Checksums are ignored,
as torch does: it can be told not to write them. Sources: PKWARE APPNOTE 6.3; torch's inline_container, miniz.
"""

from dataclasses import dataclass
from struct import Struct
from struct import error as StructError
from typing import NamedTuple

from ckptkit.core.budgets import Budgets
from ckptkit.core.errors import CkptError
from ckptkit.core.files import File
from ckptkit.core.findings import Finding
from ckptkit.format.pytorch.source import Span

STORED, DEFLATED = 0, 8

_END = Struct("<4sHHHHIIH")
_LOCATOR = Struct("<4sIQI")
_END64 = Struct("<4sQHHIIQQQQ")
# signature, flags, method, crc, packed, size, name, extra, comment, local offset
_CENTRAL = Struct("<4s4xHH4xIIIHHH8xI")
_LOCAL = Struct("<4s2xHH8xII")  # signature, flags, method, packed, size; lengths of name and extra follow
_PAIR = Struct("<HH")

_MAX_COMMENT = 0xFFFF
_SATURATED = 0xFFFFFFFF
_HIDDEN = 0x2061  # encrypted, patched, strongly encrypted, masked headers
_STREAMED = 0x0008  # sizes follow in a data descriptor

_WINDOW = 256 << 10  # bytes of neighbouring small members read at once for their local headers
_NEAR = 2 << 10  # mean distance of local headers below which that beats one read each


class Entry(NamedTuple):
    """One member: `method` STORED or DEFLATED, `packed` bytes in the file from `offset`, `size` inflated."""

    method: int
    packed: int
    size: int
    offset: int


@dataclass(frozen=True, slots=True)
class Directory:
    """A checked zip directory.

    Attributes:
        file: the file that holds the archive.
        entries: name → Entry in central order, offsets counted from the start of the file;
            folders (names ending in `/`) are left out.
        checksums: False when every CRC-32 in the directory is zero.
        findings: oddities that do not change what the members are.
    """

    file: File
    entries: dict[str, Entry]
    checksums: bool
    findings: tuple[Finding, ...] = ()


def read_directory(span: Span, budgets: Budgets) -> Directory:
    """Read and check the directory; costs the central directory and one local header per member.

    Raises CkptError `truncated` (no end record: a half download), `zip-damaged`, `zip-ambiguous`,
    `zip-duplicate`, `zip-overlap`, `zip-mismatch`, `zip-encrypted`, `zip-method`, `over-budget`.
    """
    file = span.file
    start, size, count, findings = _end_records(span)
    if count > budgets.entries:
        raise CkptError("over-budget", f"the archive claims {count} members", file.path)
    raw, checksums = _central(file, span.read(start, size), count)
    return Directory(file, _locate(span, raw, start), checksums, findings)


def _damaged(file: File, what: str) -> CkptError:
    return CkptError("zip-damaged", f"the zip archive is damaged: {what}", file.path)


def _end_records(span: Span) -> tuple[int, int, int, tuple[Finding, ...]]:
    """Offset and size of the central directory, number of members, findings."""
    file = span.file
    base = max(0, span.size - _MAX_COMMENT - _END.size)
    tail = span.read(base, span.size - base)
    at = tail.rfind(b"PK\5\6", 0, len(tail) - _END.size + 4)
    if at < 0:
        raise CkptError(
            "truncated",
            "the zip archive ends without its central directory: the file is incomplete",
            file.path,
            "download or copy it again and compare sizes",
        )
    other = at
    while (other := tail.rfind(b"PK\5\6", 0, other)) >= 0:
        if other + _END.size + int.from_bytes(tail[other + 20 : other + 22], "little") == len(tail):
            raise CkptError("zip-ambiguous", "the archive's comment holds a second end record", file.path)
    _, disk, first_disk, here, count, size, start, comment = _END.unpack_from(tail, at)
    end = base + at
    after = len(tail) - at - _END.size - comment
    if after < 0:
        raise _damaged(file, "its comment passes the end of the file")
    if disk not in {0, 0xFFFF} or first_disk not in {0, 0xFFFF} or here != count:
        raise _damaged(file, "it is one part of several")

    if end >= _LOCATOR.size:
        locator = _LOCATOR.unpack(span.read(end - _LOCATOR.size, _LOCATOR.size))
        if locator[0] == b"PK\6\7":
            wide = _zip64_record(span, locator[2], end - _LOCATOR.size)
            for name, narrow, value, full in (
                ("number of members", count, wide[0], 0xFFFF),
                ("directory size", size, wide[1], _SATURATED),
                ("directory offset", start, wide[2], _SATURATED),
            ):
                if narrow not in {value, full}:
                    raise CkptError("zip-ambiguous", f"two end records disagree on the {name}", file.path)
            count, size, start = wide
            end = locator[2]
    if start + size != end:
        if start + size < end:
            raise CkptError(
                "zip-ambiguous",
                f"{end - start - size} bytes lie before the archive or between its directory and its end",
                file.path,
            )
        raise _damaged(file, "its central directory passes the end record")
    if count * _CENTRAL.size > size:
        raise _damaged(file, "its central directory is too small for its members")
    found: tuple[Finding, ...] = ()
    if after:
        found = (Finding("bytes-unclaimed", "warning", "", f"{after} bytes follow the end of the archive"),)
    return start, size, count, found


def _zip64_record(span: Span, at: int, end: int) -> tuple[int, int, int]:
    """Number of members, size and offset of the central directory from the zip64 end record at `at`."""
    if at + _END64.size > end:
        raise _damaged(span.file, "its zip64 locator points outside the file")
    sign, length, _, _, disk, first_disk, here, count, size, start = _END64.unpack(span.read(at, _END64.size))
    if sign != b"PK\6\6" or at + 12 + length != end:
        raise _damaged(span.file, "its zip64 locator does not point to a zip64 end record")
    if disk or first_disk or here != count:
        raise _damaged(span.file, "it is one part of several")
    return count, size, start


_Raw = tuple[int, int, int, int, int, bytes, str]  # local offset, flags, method, packed, size, name, text


def _central(file: File, data: bytes, count: int) -> tuple[list[_Raw], bool]:
    """The members as the central directory tells them; whether any has a checksum."""
    unpack, header = _CENTRAL.unpack_from, _CENTRAL.size
    found: list[_Raw] = []
    add = found.append
    at = checks = 0
    try:
        for _ in range(count):
            sign, flags, method, crc, packed, size, name_len, extra_len, comment, offset = unpack(data, at)
            if sign != b"PK\1\2":
                raise _damaged(file, "an entry of its central directory is not one")
            name_end = at + header + name_len
            name = data[at + header : name_end]
            at = name_end + extra_len + comment
            if packed == _SATURATED or size == _SATURATED or offset == _SATURATED:
                extra = data[name_end : name_end + extra_len]
                size, packed, offset = _widen(file, extra, size, packed, offset)
            checks |= crc
            add((offset, flags, method, packed, size, name, str(name, "utf-8", "surrogateescape")))
    except StructError:
        raise _damaged(file, "its central directory ends early") from None
    if at != len(data):
        raise _damaged(file, "its central directory and its number of members disagree")
    return found, checks != 0


def _widen(file: File, extra: bytes, *narrow: int) -> tuple[int, int, int]:
    """Size, packed size and offset with the saturated ones taken from the zip64 extra field."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = _PAIR.unpack_from(extra, at)
        if kind == 1 and at + 4 + length <= len(extra):
            field = extra[at + 4 : at + 4 + length]
            values = [int.from_bytes(field[i : i + 8], "little") for i in range(0, length - 7, 8)]
            saturated = sum(value == _SATURATED for value in narrow)
            if len(values) < saturated:
                break
            wide = iter(values)
            size, packed, offset = (next(wide) if value == _SATURATED else value for value in narrow)
            return size, packed, offset
        at += 4 + length
    raise _damaged(file, "a member of more than 4 GiB lacks its zip64 sizes")


def _locate(span: Span, found: list[_Raw], limit: int) -> dict[str, Entry]:
    """Read every local header, compare it with the central one, and prove that no two members overlap."""
    file = span.file
    lengths, header = _PAIR.unpack_from, _LOCAL.size + _PAIR.size
    entries = dict.fromkeys(
        [raw[6] for raw in found], Entry(STORED, 0, 0, 0)
    )  # in central order; filled below
    if len(entries) != len(found):
        raise _duplicate(file, found)
    first = span.base
    window, base, stop = b"", 0, 0
    previous = 0
    # torch's local headers, whose sizes follow the bytes, are all alike: what equals the last one found right
    # needs no second look.
    usual: tuple[bytes, int] = (b"", 0)
    ordered = sorted(found)
    for index, (at, flags, method, packed, size, raw_name, name) in enumerate(ordered):
        if at < previous:
            raise CkptError("zip-overlap", f"member {name!r} overlaps another one", file.path)
        need = header + len(raw_name)
        if at + need > stop:
            if at + need > limit:
                raise CkptError("zip-damaged", f"member {name!r} starts outside the archive", file.path)
            ahead = ordered[min(index + 16, len(ordered) - 1)][0]
            near = ahead - at <= 16 * _NEAR
            base, stop = at, min(limit, at + (_WINDOW if near else need))
            window = span.read(base, stop - base)
        place = at - base
        local = window[place : place + 26]
        name_len, extra_len = lengths(window, place + 26)
        if usual != (local, flags) or method != STORED or packed != size:
            streamed = _compare(file, name, (flags, method, packed, size), local)
            usual = (local, flags) if streamed else (b"", 0)
        place += header
        if name_len != len(raw_name) or window[place : place + name_len] != raw_name:
            raise _mismatch(file, name)
        start = at + need + extra_len
        previous = start + packed
        if previous > limit:
            raise CkptError("zip-damaged", f"member {name!r} passes the end of the archive", file.path)
        entries[name] = Entry(method, packed, size, first + start)
    folders = [name for name in entries if name.endswith("/")]
    for name in folders:
        if entries[name].size:
            raise CkptError("zip-damaged", f"the folder {name!r} has contents of its own", file.path)
        del entries[name]
    return entries


def _compare(file: File, name: str, central: tuple[int, int, int, int], local: bytes) -> bool:
    """Compare flags, method and sizes of a member with its local header; whether its sizes follow its bytes."""
    flags, method, packed, size = central
    sign, local_flags, local_method, local_packed, local_size = _LOCAL.unpack(local)
    if sign != b"PK\3\4":
        raise CkptError("zip-damaged", f"member {name!r} has no local header", file.path)
    if local_method != method or (method == STORED and packed != size):
        raise _mismatch(file, name)
    if (flags | local_flags) & _HIDDEN:
        raise CkptError("zip-encrypted", f"member {name!r} is encrypted", file.path)
    if method not in {STORED, DEFLATED}:
        raise CkptError("zip-method", f"member {name!r} is compressed by method {method}", file.path)
    if local_flags & _STREAMED and not local_size and not local_packed:
        return True
    wide = _SATURATED in (local_packed, local_size)
    if not wide and (local_packed != packed or local_size != size):
        raise _mismatch(file, name)
    return False


def _duplicate(file: File, found: list[_Raw]) -> CkptError:
    seen: set[bytes] = set()
    for raw in found:
        if raw[5] in seen:
            break
        seen.add(raw[5])
    name = found[len(seen)][5].decode("utf-8", "replace")
    return CkptError("zip-duplicate", f"two members are named {name!r}", file.path)


def _mismatch(file: File, name: str) -> CkptError:
    return CkptError(
        "zip-mismatch", f"local and central header of member {name!r} contradict each other", file.path
    )

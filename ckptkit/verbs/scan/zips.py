"""Zip archives as any reader might understand them: every directory, every member, listed or not.

Readers disagree: the first or the last of two members of one name, the local or the central header, a directory
found from the end or from the beginning, encrypted bits believed or not. So all members of all directories are
looked at where each reader would find them, and each disagreement is a trick that is told.
"""

import zlib
from collections.abc import Callable, Iterable, Iterator
from struct import Struct
from typing import NamedTuple

from ckptkit.format.pytorch.source import Source
from ckptkit.verbs.scan.arrays import may_run
from ckptkit.verbs.scan.inflating import DAMAGED, Inflation, Make, method_name
from ckptkit.verbs.scan.inflating import member as undoes
from ckptkit.verbs.scan.ledger import Ledger
from ckptkit.verbs.scan.parts import head, part, unpack

_END = Struct("<4s4xHHIIH")  # signature, members here and in all, directory size and offset, comment
_CENTRAL = Struct("<4s4xHH4xIIIHHH8xI")
_LOCAL = Struct("<4s2xHH4xIIIHH")  # signature, flags, method, crc, packed, size, name, extra
_TAIL = 22 + 0xFFFF
_FULL = 0xFFFFFFFF
_HIDDEN = 0x2061  # encrypted, patched, strongly encrypted, masked headers
_STREAMED = 0x0008
_GAP = 24  # bytes of a data descriptor, which may stand behind a member
_SEARCHED = 1 << 20  # bytes between members that are searched for others
_DIRECTORY = 1 << 28  # bytes of a directory that are read
_PIECE = 1 << 20


class Member(NamedTuple):
    """One entry of a directory; `at` is where its local header should be."""

    at: int
    name: str
    flags: int
    method: int
    crc: int
    packed: int
    size: int


# Told of a member's bytes (unpacked or not), where it is, its name and whether a storage of torch has that name.
Visit = Callable[[Source, str, str, bool], None]


class Zip:
    """One archive: its tricks, and its members given to `visit`."""

    def __init__(self, source: Source, where: str, ledger: Ledger, visit: Visit, crc: bool) -> None:
        self.source = source
        self.where = where
        self.ledger = ledger
        self.visit = visit
        self.crc = crc
        self.names: set[str] = set()

    def scan(self) -> None:
        ends = list(_ends(self.source))
        seen: dict[int, Member] = {}
        regions: list[tuple[int, int]] = []
        directories = 0
        for end in ends:
            found = self.directory(end, regions)
            directories += found is not None
            for member in found or ():
                if member.at in seen:
                    if len(ends) == 1:
                        self.trick(
                            "zip-overlap", f"two members share the header at byte {member.at}", member.name
                        )
                    continue
                seen[member.at] = member
        if not directories:
            self.unlisted(0, self.source.size)
            self.ledger.add(
                "unread", "truncated", self.where, "the zip archive has no directory: it is incomplete"
            )
            return
        if directories > 1:
            self.trick("zip-ambiguous", "the archive has two directories, of which readers take either")
        self.names = {member.name for member in seen.values()}
        previous = 0
        for member in sorted(seen.values()):
            if not self.ledger.open(self.where):
                return
            stop = self.member(member)
            if member.at < previous:
                self.trick("zip-overlap", "a member overlaps another one", member.name)
            previous = max(previous, stop)
            regions.append((member.at, stop))
        self.gaps(regions)

    def trick(self, code: str, text: str, name: str | None = None) -> None:
        self.ledger.add("trick", code, self.where if name is None else f"{self.where}: {name}", text)

    def directory(self, end: int, regions: list[tuple[int, int]]) -> list[Member] | None:
        """The members of the directory that the end record at an offset tells of; None if there is none."""
        source = self.source
        _, _, count, size, offset, comment = _END.unpack(source.read(end, 22))
        regions.append((end, end + 22 + comment))
        bottom = end
        if end >= 20:
            locator = source.read(end - 20, 20)
            if locator.startswith(b"PK\6\7"):
                wide = int.from_bytes(locator[8:16], "little")
                if wide != end - 76:
                    self.trick("zip-ambiguous", "the wide end record is not where its readers look for it")
                if wide + 56 <= end and source.read(wide, 4) == b"PK\6\6":
                    record = source.read(wide, 56)
                    wide_count, wide_size, wide_offset = (
                        int.from_bytes(record[i : i + 8], "little") for i in (32, 40, 48)
                    )
                    pairs = (
                        (count, wide_count, 0xFFFF),
                        (size, wide_size, _FULL),
                        (offset, wide_offset, _FULL),
                    )
                    if any(narrow not in (value, full) for narrow, value, full in pairs):
                        self.trick("zip-ambiguous", "the two end records of the archive disagree")
                    count, size, offset, bottom = wide_count, wide_size, wide_offset, wide
                    regions.append((wide, end))
        shift = bottom - size - offset
        found = None
        for start, moved in dict.fromkeys(((offset, 0), (bottom - size, shift))):
            if not 0 <= start < bottom or source.read(start, min(4, source.size - start)) != b"PK\1\2":
                continue
            if found is not None:
                self.trick(
                    "zip-ambiguous", "the directory stands at two places, of which readers take either"
                )
            members, stop = self.entries(start, min(bottom, source.size), moved)
            regions.append((start, stop))
            found = [*(found or ()), *members]
            if len(members) != count:
                self.trick(
                    "zip-ambiguous",
                    f"the directory has {len(members)} members, and its end record says {count}",
                )
        if found is not None and shift:
            self.trick("zip-ambiguous", f"{shift} bytes stand before the archive or its end record")
        if found is None and count == 0 and size == 0:
            return []
        return found

    def entries(self, at: int, end: int, shift: int) -> tuple[list[Member], int]:
        """The entries of a directory, and where they end."""
        data = self.source.read(at, min(end - at, _DIRECTORY))
        members: list[Member] = []
        names: set[str] = set()
        folded: set[str] = set()
        i = 0
        while i + 46 <= len(data) and data[i : i + 4] == b"PK\1\2":
            _, flags, method, crc, packed, size, name_len, extra_len, comment, offset = _CENTRAL.unpack_from(
                data, i
            )
            raw = data[i + 46 : i + 46 + name_len]
            extra = data[i + 46 + name_len : i + 46 + name_len + extra_len]
            size, packed, offset = _wide(extra, size, packed, offset)
            name = raw.decode("utf-8", "backslashreplace")
            i += 46 + name_len + extra_len + comment
            if name in names:
                self.trick(
                    "zip-duplicate", "two members have this name; loaders take the first or the last", name
                )
            elif name.lower() in folded and "/code/" not in name:
                self.trick(
                    "zip-duplicate", "two members have this name but for upper case, as torch sees it", name
                )
            names.add(name)
            folded.add(name.lower())
            if _renamed(extra, raw):
                self.trick("zip-mismatch", "an extra field gives the member another name", name)
            if _escapes(name):
                self.trick("outside-folder", "a member names a place outside the archive", name)
            members.append(Member(offset + shift, name, flags, method, crc, packed, size))
            if len(members) > self.ledger.budgets.entries:
                self.ledger.add("unread", "over-budget", self.where, "the archive has too many members")
                break
        return members, at + i

    def member(self, member: Member) -> int:
        """Check the headers of a member against each other and look at its bytes. Where they end."""
        source, at, name = self.source, member.at, member.name
        if not 0 <= at <= source.size - 30:
            self.ledger.add(
                "unread", "zip-damaged", f"{self.where}: {name}", "a member lies outside the archive"
            )
            return at
        near = source.read(at, min(30 + len(name.encode("utf-8", "replace")) + 4, source.size - at))
        sign, flags, method, _, packed, size, name_len, extra_len = _LOCAL.unpack_from(near)
        if sign != b"PK\3\4":
            self.ledger.add("unread", "zip-damaged", f"{self.where}: {name}", "a member has no local header")
            return at
        local = source.read(at + 30, min(name_len, source.size - at - 30)).decode("utf-8", "backslashreplace")
        if local != name:
            self.trick("zip-mismatch", f"the member's own header calls it {local[:100]!r}", name)
        if method != member.method:
            self.trick("zip-mismatch", "two headers of a member disagree on how it is compressed", name)
        if (flags | member.flags) & _HIDDEN:
            self.trick(
                "zip-encrypted", "the member is marked as encrypted or masked; some loaders do not care", name
            )
        full = _FULL in (packed, size)
        if (
            not full
            and not (flags & _STREAMED and not packed)
            and (packed, size) != (member.packed, member.size)
        ):
            self.trick("zip-mismatch", "two headers of a member disagree on its size", name)
        start = at + 30 + name_len + extra_len
        stop = start + member.packed
        if stop > source.size:
            self.ledger.add(
                "unread", "truncated", f"{self.where}: {name}", "a member passes the end of the archive"
            )
        for how in dict.fromkeys((member.method, method)):
            self.content(member, start, max(member.packed, 0 if how else member.size), how)
        return min(int(stop), source.size)

    def content(self, member: Member, start: int, size: int, method: int) -> None:
        """Look at a member's bytes, unpacked by the method."""
        where = f"{self.where}: {member.name}"
        if not size:
            return
        packed = part(self.source, start, size)
        storage = is_storage(member.name, self.names)
        make = undoes(method, member.flags, member.size)
        if method and make is None:
            text = f"the member is compressed by {method_name(method)}, which a scan does not undo"
            self.ledger.add("unread", "zip-method", where, text)
            return
        if self.crc:
            self.check(member, packed, make, where)
        if make is None:
            self.visit(packed, where, member.name, storage)
        elif not storage or _begins_as_pickle(packed, make):
            for piece in unpack(packed, make, self.ledger, where):
                self.visit(piece, where, member.name, storage)

    def check(self, member: Member, packed: Source, make: Make | None, where: str) -> None:
        """Compare a member with its checksum, in small pieces."""
        if not member.crc:
            return
        value = 0
        for piece in _pieces(packed, make, member.size):
            value = zlib.crc32(piece, value)
        if value != member.crc:
            text = "the member's bytes are not those that its checksum was made of"
            self.ledger.add("trick", "checksum-mismatch", where, text)

    def gaps(self, regions: list[tuple[int, int]]) -> None:
        """Bytes that belong to nothing, and members in them that no directory lists."""
        previous = 0
        for start, stop in sorted([*regions, (self.source.size, self.source.size)]):
            if start - previous > _GAP:
                data = self.source.read(previous, min(start - previous, _SEARCHED))
                if data.strip(b"\0"):
                    text = f"{start - previous} bytes at byte {previous} belong to no member"
                    self.ledger.add("trick", "bytes-unclaimed", self.where, text)
                    self.unlisted(previous, previous + len(data))
            elif start > previous and (previous == 0 or start == self.source.size):
                data = self.source.read(previous, start - previous)
                if data.strip(b"\0\r\n "):
                    text = f"{start - previous} bytes stand around the archive"
                    self.ledger.add("trick", "bytes-unclaimed", self.where, text)
            previous = max(previous, stop)

    def unlisted(self, at: int, end: int) -> None:
        """Members by their local headers alone, as readers that do not seek find them, and pickles between."""
        data = self.source.read(at, min(end - at, _SEARCHED))
        i = data.find(b"PK\3\4")
        for _ in range(100):
            if i < 0 or i + 30 > len(data):
                break
            _, flags, method, _, packed, size, name_len, extra_len = _LOCAL.unpack_from(data, i)
            name = data[i + 30 : i + 30 + name_len].decode("utf-8", "backslashreplace")
            start = at + i + 30 + name_len + extra_len
            if flags & _STREAMED and not packed:
                packed = size = end - start
            if self.ledger.open(self.where):
                member = Member(at + i, f"{name} (not listed)", flags, method, 0, packed, size)
                self.content(member, start, min(packed, max(0, self.source.size - start)), method)
            i = data.find(b"PK\3\4", i + 4)
        if data and not data.startswith(b"PK"):
            self.visit(part(self.source, at, len(data)), f"{self.where}, byte {at}", "", False)


def _ends(source: Source) -> Iterator[int]:
    """Offsets of all end records within reach of a comment, last first."""
    base = max(0, source.size - _TAIL)
    tail = source.read(base, source.size - base)
    at = len(tail)
    for _ in range(16):
        at = tail.rfind(b"PK\5\6", 0, max(at + 3, 0))
        if at < 0:
            return
        if at + 22 <= len(tail):
            yield base + at


def is_zip(source: Source) -> bool:
    """Whether any reader would take it for a zip archive."""
    if head(source, 4) == b"PK\3\4":
        return True
    for end in _ends(source):
        _, _, _, size, offset, _ = _END.unpack(source.read(end, 22))
        for start in (offset, end - size):
            if 0 <= start <= source.size - 4 and source.read(start, 4) == b"PK\1\2":
                return True
    return False


def is_storage(name: str, names: set[str]) -> bool:
    """Whether torch keeps numbers in a member of that name: `ROOT/data/KEY` beside `ROOT/data.pkl`, and alike."""
    folder, _, key = name.rpartition("/")
    root, _, last = folder.rpartition("/")
    if last in ("weights", "constants") and root.endswith("data"):
        return key.startswith(("weight_", "tensor_"))
    below = f"{root}/" if root else ""
    return last in ("data", "constants") and f"{below}data.pkl" in names and "." not in key


def _begins_as_pickle(packed: Source, make: Make) -> bool:
    """Whether a compressed storage may be something else, by its first bytes."""
    try:
        begin = make().decompress(head(packed), 64)
    except DAMAGED:  # it is looked at, and said to be damaged
        return True
    return may_run(bytes(begin))


def _escapes(name: str) -> bool:
    parts = name.replace("\\", "/").split("/")
    return ".." in parts or name.startswith(("/", "\\")) or (len(name) > 1 and name[1] == ":") or "\0" in name


def _renamed(extra: bytes, raw: bytes) -> bool:
    """Whether an extra field (Info-ZIP's Unicode path) names a member otherwise."""
    i = 0
    while i + 4 <= len(extra):
        kind, length = extra[i] | extra[i + 1] << 8, extra[i + 2] | extra[i + 3] << 8
        if kind == 0x7075 and extra[i + 9 : i + 4 + length] != raw:
            return True
        i += 4 + length
    return False


def _wide(extra: bytes, *narrow: int) -> tuple[int, int, int]:
    """Size, packed size and offset with the saturated ones taken from the zip64 extra field."""
    size, packed, offset = narrow
    i = 0
    while _FULL in narrow and i + 4 <= len(extra):
        kind, length = extra[i] | extra[i + 1] << 8, extra[i + 2] | extra[i + 3] << 8
        if kind == 1:
            values = iter(
                int.from_bytes(extra[k : k + 8], "little") for k in range(i + 4, i + 4 + length - 7, 8)
            )
            size, packed, offset = (next(values, value) if value == _FULL else value for value in narrow)
            break
        i += 4 + length
    return size, packed, offset


def _pieces(packed: Source, make: Make | None, size: int) -> Iterator[bytes]:
    """A member's bytes in small pieces, unpacked; never more than it claims to have."""
    pieces: Iterable[bytes] = Inflation(packed, make) if make is not None else _plain(packed)
    left = size
    for piece in pieces:
        yield piece[:left]
        left -= len(piece)
        if left <= 0:
            return


def _plain(source: Source) -> Iterator[bytes]:
    for at in range(0, source.size, _PIECE):
        yield source.read(at, min(_PIECE, source.size - at))

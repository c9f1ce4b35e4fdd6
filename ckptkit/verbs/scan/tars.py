"""Tar archives as any reader might understand them: every member by its header, whatever extended headers say."""

from collections.abc import Callable

from ckptkit.format.pytorch.source import Source
from ckptkit.verbs.scan.ledger import Ledger
from ckptkit.verbs.scan.parts import part

_BLOCK = 512
_MEMBERS = 100_000
_EXTENDED = 64 << 10

Visit = Callable[[Source, str, str], None]


def scan_tar(source: Source, where: str, ledger: Ledger, visit: Visit) -> None:
    """Tell the tricks of an archive and give its members to `visit`."""
    at = 0
    names: set[str] = set()
    for _ in range(_MEMBERS):
        if at + _BLOCK > source.size:
            ledger.add("unread", "truncated", where, "the tar archive does not end")
            return
        block = source.read(at, _BLOCK)
        if block == bytes(_BLOCK):
            break
        size = _number(block[124:136])
        if size is None or (_number(block[148:156]) or 0) != sum(block[:148]) + sum(block[156:]) + 8 * 32:
            ledger.add("unread", "tar-invalid", where, f"the header at byte {at} is damaged")
            return
        name = block[:100].split(b"\0")[0].decode("utf-8", "backslashreplace")
        prefix = block[345:500].split(b"\0")[0].decode("utf-8", "backslashreplace")
        name = f"{prefix}/{name}" if prefix and block[257:262] == b"ustar" else name
        kind, start = block[156:157], at + _BLOCK
        at = start + size + -size % _BLOCK
        place = f"{where}: {name}"
        if not ledger.open(place):
            return
        if kind in b"xgLK":
            extended = source.read(start, min(size, _EXTENDED, max(0, source.size - start)))
            if kind in b"LK" or any(word in extended for word in (b" path=", b" size=", b" linkpath=")):
                ledger.add(
                    "trick", "tar-invalid", place, "an extended header changes the name or size of a member"
                )
        elif kind in b"12":
            ledger.add("trick", "tar-invalid", place, "a member is a link")
        elif kind not in b"05\0":
            ledger.add("trick", "tar-invalid", place, "a member is no regular file")
        if ".." in name.replace("\\", "/").split("/") or name.startswith(("/", "\\")):
            ledger.add("trick", "outside-folder", place, "a member names a place outside the archive")
        if name in names and kind in b"0\0":
            ledger.add("trick", "duplicate-name", place, "two members have this name; loaders take the last")
        names.add(name)
        if start + size > source.size:
            ledger.add("unread", "truncated", place, "a member passes the end of the archive")
        if size and kind in b"0\0xgLK":
            visit(part(source, start, size), place, name.removeprefix("./") if kind in b"0\0" else "")
    if at < source.size:
        left = source.read(at, min(source.size - at, 1 << 20))
        if left.strip(b"\0"):
            ledger.add("trick", "bytes-unclaimed", where, f"{source.size - at} bytes follow the archive")
            visit(part(source, at, source.size - at), f"{where}, byte {at}", "")


def _number(field: bytes) -> int | None:
    """A number in octal, or in base 256 where it is long."""
    if field[:1] >= b"\x80":
        value = int.from_bytes(field[1:], "big")
        return None if field[:1] == b"\xff" else value
    text = field.strip(b" \0")
    if not text:
        return 0
    try:
        return int(text, 8) if not text.startswith((b"-", b"+", b"_")) else None
    except ValueError:
        return None

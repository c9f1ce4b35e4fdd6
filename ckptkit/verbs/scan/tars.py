"""Tar archives as any reader might understand them: every member by its header, whatever extended headers say."""

import re
from collections.abc import Callable

from ckptkit.format.pytorch.source import Source
from ckptkit.format.pytorch.tar import EXTENDED, is_passed_over
from ckptkit.format.sniff import tar_checksums, tar_number
from ckptkit.verbs.scan.ledger import Ledger
from ckptkit.verbs.scan.parts import part

_BLOCK = 512
_MEMBERS = 100_000
_PLAIN = re.compile(rb"[ \0]*[0-7]*[ \0]*")

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
        size, stated = tar_number(block[124:136]), tar_number(block[148:156])
        if size is None or stated not in tar_checksums(block):
            ledger.add("unread", "tar-invalid", where, f"the header at byte {at} is damaged")
            return
        if size > 0o77777777777 or not (
            _PLAIN.fullmatch(block[124:136]) and _PLAIN.fullmatch(block[148:156])
        ):
            text = f"the header at byte {at} spells numbers so that readers disagree on them"
            ledger.add("trick", "tar-invalid", where, text)
        elif stated != tar_checksums(block)[0]:
            text = f"the header at byte {at} has a checksum that only some readers accept"
            ledger.add("trick", "tar-invalid", where, text)
        name = block[:100].split(b"\0")[0].decode("utf-8", "backslashreplace")
        prefix = block[345:500].split(b"\0")[0].decode("utf-8", "backslashreplace")
        name = f"{prefix}/{name}" if prefix and block[257:262] == b"ustar" else name
        kind, start = block[156:157], at + _BLOCK
        at = start + size + -size % _BLOCK
        place = f"{where}: {name}"
        if not ledger.open(place):
            return
        if kind in b"xgLK":
            extended = source.read(start, min(size, EXTENDED, max(0, source.size - start)))
            if kind in b"LK" or size > EXTENDED or not is_passed_over(extended):
                text = "an extended header changes the name, the size or the place of a member"
                ledger.add("trick", "tar-invalid", place, text)
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

"""A zip archive laid out byte for byte as torch lays out its own, as pieces to be streamed.

Every member is stored, its bytes start on an aligned offset, its sizes and checksum follow in a data
descriptor (16 bytes; 24 where size or local offset reach 4 GiB; none for an empty member), and the padding
stands in the local header's extra field "FB". A zip64 end record is always there. torch computes storage
offsets from exactly these rules when a file says `.format_version`, so they are kept to the byte.

Checksums of tensors are known only once they are streamed: `ZipSeal` writes them and the central directory.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from struct import Struct
from zlib import crc32

from ckptkit.core.plan import OutputFile, Piece
from ckptkit.core.tensor import Tensor

ALIGNMENT = 64

_LOCAL = Struct("<4sHHHHHIIIHH")
_CENTRAL = Struct("<4sHHHHHHIIIHHHHHII")
_END64 = Struct("<4sQHHIIQQQQ4sIQI4sHHHHIIH")
_DESCRIPTOR = Struct("<4sIII")
_DESCRIPTOR64 = Struct("<4sIQQ")
_WIDE = 0xFFFFFFFF
_UTF8, _STREAMED = 0x0800, 0x0808
_CRC_IN_CENTRAL = 16
_CRC_IN_DESCRIPTOR = 4


@dataclass(frozen=True, slots=True)
class Member:
    """One file of the archive: `content` is its bytes, or the tensor `label` that yields `nbytes` bytes."""

    name: str
    content: bytes | Tensor
    nbytes: int
    label: str = ""


@dataclass(frozen=True, slots=True)
class ZipSeal:
    """Writes the central directory and the data descriptors of streamed members.

    `marks` holds for each of them: index of its piece, file offset of its descriptor's checksum, and where
    its checksum stands in `directory`.
    """

    offset: int
    directory: bytes
    marks: tuple[tuple[int, int, int], ...]

    def patches(self, checksums: Sequence[int]) -> Iterator[tuple[int, bytes]]:
        directory = bytearray(self.directory)
        for piece, descriptor, central in self.marks:
            crc = checksums[piece].to_bytes(4, "little")
            directory[central : central + 4] = crc
            yield descriptor, crc
        yield self.offset, bytes(directory)


def archive(path: str, members: Sequence[Member], alignment: int = ALIGNMENT) -> OutputFile:
    """The archive of these members, in this order, as an output file named `path`."""
    pieces: list[Piece] = []
    marks: list[tuple[int, int, int]] = []
    central: list[bytes] = []
    pending: list[bytes] = []  # structure since the last tensor
    pending_at = cursor = directory_size = 0
    for member in members:
        name, nbytes, content = member.name.encode(), member.nbytes, member.content
        local_at = cursor
        wide = _zip64_extra(nbytes, local_at)
        flags = _STREAMED if nbytes else _UTF8
        start = local_at + _LOCAL.size + len(name) + len(wide) + 4
        padding = -start % alignment
        extra = wide + b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
        pending.append(
            _LOCAL.pack(b"PK\3\4", 0, flags, 0, 0, 0, 0, 0, 0, len(name), len(extra)) + name + extra
        )
        cursor = start + padding + nbytes
        crc = 0
        if isinstance(content, bytes):
            crc = crc32(content)
            pending.append(content)
        elif nbytes:
            header = b"".join(pending)
            pieces.append(Piece(pending_at, len(header), header))
            marks.append((len(pieces), cursor + _CRC_IN_DESCRIPTOR, directory_size + _CRC_IN_CENTRAL))
            pieces.append(Piece(cursor - nbytes, nbytes, content, member.label))
            pending, pending_at = [], cursor
        if nbytes:
            shape = _DESCRIPTOR64 if wide else _DESCRIPTOR
            pending.append(shape.pack(b"PK\7\10", crc, nbytes, nbytes))
            cursor += shape.size
        short = min(nbytes, _WIDE)
        header = _CENTRAL.pack(
            *(b"PK\1\2", 0, 0, flags, 0, 0, 0, crc, short, short, len(name), len(wide)),
            *(0, 0, 0, 0, min(local_at, _WIDE)),
        )
        central.append(header + name + wide)
        directory_size += _CENTRAL.size + len(name) + len(wide)
    if pending:
        header = b"".join(pending)
        pieces.append(Piece(pending_at, len(header), header))
    end = _end_records(len(members), cursor, directory_size)
    at = cursor + directory_size  # what lies before is the directory, which the seal writes
    pieces.append(Piece(at, len(end), end))
    seal = ZipSeal(cursor, b"".join(central), tuple(marks))
    return OutputFile(path, at + len(end), tuple(pieces), seal)


def _zip64_extra(nbytes: int, local_at: int) -> bytes:
    """Extra field 1 with the sizes and the offset, each only where it does not fit into 32 bits."""
    values = [nbytes, nbytes] * (nbytes >= _WIDE) + [local_at] * (local_at >= _WIDE)
    if not values:
        return b""
    data = b"".join(value.to_bytes(8, "little") for value in values)
    return b"\1\0" + len(data).to_bytes(2, "little") + data


def _end_records(count: int, start: int, size: int) -> bytes:
    short = min(count, 0xFFFF)
    return _END64.pack(
        *(b"PK\6\6", 44, 0x031E, 45, 0, 0, count, count, size, start),
        *(b"PK\6\7", 0, start + size, 1),
        *(b"PK\5\6", 0, 0, short, short, min(size, _WIDE), min(start, _WIDE), 0),
    )

"""Recognising our own formats by content; suffixes decide nothing.

Each `is_…` looks at the first 4 KiB, and where a container needs it at a few more places: the names in a zip's
central directory, the member names of a tar, the top-level fields of a protobuf. A damaged file is still claimed
where its beginning leaves no doubt, so that its reader can say what is wrong.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from ckptkit.core.files import Reader

HEAD = 4096
_ZIP_TAIL = 22 + 65_535  # end record and the longest comment
_ZIP_DIRECTORY = 64 << 20  # bytes of a central directory that are looked at
_ZIP_NAMES = 20_000  # names in it


class Head:
    """The first bytes of an open file; `reader` is for what lies further."""

    __slots__ = ("data", "path", "reader", "size")

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.path = reader.file.path
        self.size = reader.file.size
        self.data = reader.read(0, min(HEAD, self.size))

    def at(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset`, fewer at the end of the file."""
        if offset + size <= len(self.data):
            return self.data[offset : offset + size]
        return self.reader.read(offset, max(0, min(size, self.size - offset)))


class Begun(Protocol):
    """What most of the questions below need of a `Head`."""

    @property
    def data(self) -> bytes: ...

    @property
    def size(self) -> int: ...

    def at(self, offset: int, size: int) -> bytes: ...


def is_safetensors(head: Begun) -> bool:
    """A length below 2^40, then an object: also where that length passes the end of the file."""
    return head.data[5:8] == b"\0\0\0" and head.data[8:].lstrip(b" \t\r\n").startswith(b"{")


def is_index(head: Head) -> bool:
    """An object with a weight map (huggingface's `*.index.json`); the map may stand behind much metadata."""
    if not head.data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        return False
    return b'"weight_map"' in head.data or head.path.endswith(".index.json")


# Protocol 2 to 5 say so; 0 and 1 begin with the opcode of a container, a class or torch's magic number.
_PICKLE = re.compile(
    rb"\x80[\x02-\x05]|L119547037146038801333356L\n|\(?[dl]p\d+\n|\(i[\w.]+\n|c[A-Za-z_][\w.]*\n[A-Za-z_][\w.]*\n"
    rb"|[\]}]q.|\((?:lp|dp)\d|\)q."
)
_TORCH_MEMBERS = {"data.pkl", "constants.pkl", "archive_format", "serialized_exported_program.json"}
_TAR_MEMBERS = {"sys_info", "storages", "tensors", "pickle"}


def is_pytorch(head: Head) -> bool:
    """A zip archive with a pickle where torch keeps it, a legacy stream or tar, or a bare pickle."""
    if head.data.startswith(b"PK\x03\x04"):
        return _is_torch_zip(head)
    if is_tar(head):
        return not _TAR_MEMBERS.isdisjoint(tar_names(head))
    return _PICKLE.match(head.data) is not None


def _is_torch_zip(head: Head) -> bool:
    first = zip_first(head)
    if _base(first) in _TORCH_MEMBERS:
        return True
    directory = zip_directory(head)
    if not directory:  # cut off, or not where the end record says
        return not first.endswith((".npy", ".h5", ".xml", ".json"))
    if not any(member.encode() in directory for member in _TORCH_MEMBERS):
        return False
    names = zip_names(directory)
    return len(names) == _ZIP_NAMES or any(_base(name) in _TORCH_MEMBERS for name in names)


def _base(name: str) -> str:
    return name.rpartition("/")[2]


# Field number → wire type of a ModelProto, and the first bytes that a GraphProto can have.
_MODEL = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2, 26: 2}
_GRAPH = b"\x0a\x12\x2a\x52\x5a\x62\x6a\x72\x7a\x82"


def is_onnx(head: Head) -> bool:
    """Only ModelProto fields up to a graph that begins like one; the graph may pass the end of the file."""
    seen = set()
    for field in protobuf_fields(head):
        if _MODEL.get(field.number) != field.wire:
            return False
        if field.number == 7:
            begins = head.at(field.start, 1)
            return begins[:1] in _GRAPH if begins else field.length == 0 or 1 in seen
        if field.start + field.length > head.size:
            return False
        seen.add(field.number)
    return {1, 8} <= seen


class Field(NamedTuple):
    """A top-level protobuf field: `start` and `length` of its content (a varint's value is not kept)."""

    number: int
    wire: int
    start: int
    length: int


def protobuf_fields(head: Begun, limit: int = 64) -> Iterator[Field]:
    """The first `limit` top-level fields; a field of wire type −1 where the bytes are no protobuf."""
    at = 0
    for _ in range(limit):
        if at >= head.size:
            return
        window = head.at(at, 20)
        tag, used = _varint(window, 0)
        wire = tag & 7
        value, after = _varint(window, used) if wire in (0, 2) else (0, used)
        if min(used, after) < 0 or wire not in (0, 1, 2, 5) or not 0 < tag >> 3 < 1 << 29:
            yield Field(0, -1, at, 0)
            return
        length = {0: 0, 1: 8, 5: 4}.get(wire, value)
        yield Field(tag >> 3, wire, at + after, length)
        at += after + length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Value and position behind it; −1 as position where none stands."""
    value = 0
    for shift in range(0, 70, 7):
        if at < 0 or at >= len(data):
            break
        value |= (data[at] & 127) << shift
        at += 1
        if data[at - 1] < 128:
            return value, at
    return 0, -1


def zip_first(head: Head) -> str:
    """Name of a zip's first member, by its local header."""
    length = int.from_bytes(head.data[26:28], "little")
    return head.data[30 : 30 + length].decode("utf-8", "replace")


def zip_directory(head: Head) -> bytes:
    """The central directory where the end record says it is; b"" where none is. Proves nothing."""
    size = min(head.size, _ZIP_TAIL)
    tail = head.at(head.size - size, size)
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or end + 22 > len(tail):
        return b""
    length = int.from_bytes(tail[end + 12 : end + 16], "little")
    begin = int.from_bytes(tail[end + 16 : end + 20], "little")
    wide = tail.rfind(b"PK\x06\x06", 0, end)
    if wide >= 0 and 0xFFFFFFFF in (length, begin):
        length = int.from_bytes(tail[wide + 40 : wide + 48], "little")
        begin = int.from_bytes(tail[wide + 48 : wide + 56], "little")
    if begin > head.size:
        return b""
    data = head.at(begin, min(length, _ZIP_DIRECTORY))
    return data if data.startswith(b"PK\x01\x02") else b""


def zip_names(directory: bytes) -> list[str]:
    """The first member names of a central directory."""
    names: list[str] = []
    at = 0
    while directory[at : at + 4] == b"PK\x01\x02" and len(names) < _ZIP_NAMES:
        sizes = (directory[at + k : at + k + 2] for k in (28, 30, 32))
        name, extra, comment = (int.from_bytes(size, "little") for size in sizes)
        names.append(directory[at + 46 : at + 46 + name].decode("utf-8", "replace"))
        at += 46 + name + extra + comment
    return names


def is_tar(head: Begun) -> bool:
    """A tar header: by its magic, or, as before 1988, by its checksum alone."""
    block = head.data[:512]
    if len(block) < 512 or (block[0] == 0 and not any(block)):
        return False
    return block[257:262] == b"ustar" or tar_number(block[148:156]) in tar_checksums(block)


def tar_number(field: bytes) -> int | None:
    """A number of a tar header as Python's tarfile understands it: octal as `int` takes it, or base 256."""
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:], "big")
    try:
        return int(field.split(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        return None


def tar_checksums(block: bytes) -> tuple[int, int]:
    """What a header's checksum may be: old writers summed up signed bytes."""
    block = block[:148] + b" " * 8 + block[156:512]
    return sum(block), sum(block) - 256 * sum(byte > 127 for byte in block)


def tar_names(head: Head, limit: int = 16) -> list[str]:
    """Names of a tar's first members. Proves nothing."""
    names = []
    at = 0
    for _ in range(limit):
        if at + 512 > head.size:
            break
        block = head.at(at, 512)
        size = block[124:136].strip(b" \0")
        if block[0] == 0 or not re.fullmatch(rb"[0-7]+", size):
            break
        names.append(block[:100].split(b"\0")[0].decode("utf-8", "replace").removeprefix("./"))
        at += 512 + (int(size, 8) + 511) // 512 * 512
    return names

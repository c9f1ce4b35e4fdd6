"""Recognising files by content: our own formats, and what people take for a checkpoint but is none."""

from ckptkit.core.errors import CkptError
from ckptkit.core.files import Reader

HEAD = 4096


class Head:
    """The first bytes of an open file; `reader` is for what lies further."""

    __slots__ = ("data", "path", "reader", "size")

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.path = reader.file.path
        self.size = reader.file.size
        self.data = reader.read(0, min(HEAD, self.size))


def is_safetensors(head: Head) -> bool:
    """A length that can be one, then an object: also where the length passes the end of the file."""
    return head.data[5:8] == b"\0\0\0" and head.data[8:].lstrip(b" \t\r\n").startswith(b"{")


def is_pytorch(head: Head) -> bool:
    return head.data.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"))


def is_onnx(head: Head) -> bool:
    return head.data.startswith(b"\x08")


def foreign(head: Head) -> CkptError:
    return CkptError("format-unknown", "this is no checkpoint of a known format", head.path)

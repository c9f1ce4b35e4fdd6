"""Editing a protobuf file without decoding it: replace runs of bytes inside messages, mend the lengths around them.

A message's length is written before it, so an edit deep inside changes the length of every message around it, and a
length that needs another byte lengthens the next one out. Everything else is copied as it stands.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from ckptkit.core.errors import CkptError
from ckptkit.core.files import File
from ckptkit.core.plan import Piece
from ckptkit.core.tensor import Extent, Tensor
from ckptkit.format.onnx.native import Frame
from ckptkit.format.onnx.wire import Wire, encode_varint, varint

Content = bytes | Tensor


@dataclass(frozen=True, slots=True)
class Edit:
    """Replace the bytes from `start` to `end`, which lie in the message `frame` (None: the model itself).

    `name` is the output name of the tensor that `content` ends with, if it does.
    """

    frame: Frame | None
    start: int
    end: int
    content: tuple[Content, ...] = ()
    name: str = ""

    @property
    def growth(self) -> int:
        return sum(map(_size, self.content)) - (self.end - self.start)


def patched(wire: Wire, edits: list[Edit]) -> tuple[tuple[Piece, ...], int]:
    """The pieces of the edited file, and its size in bytes. The edits must not overlap."""
    file = wire.reader.file
    edits = [*edits, *_lengths(wire, edits)]
    # Insertions at one place are ends of messages: the innermost, which starts last, comes first.
    edits.sort(key=lambda edit: (edit.start, edit.end, -(edit.frame.span.at if edit.frame else -1)))
    pieces: list[Piece] = []
    size = 0
    for content, name in _contents(file, edits):
        nbytes = content.nbytes if isinstance(content, Extent) else _size(content)
        if nbytes:
            pieces.append(Piece(size, nbytes, content, name))
        size += nbytes
    return tuple(pieces), size


def _contents(file: File, edits: list[Edit]) -> Iterator[tuple[Content | Extent, str]]:
    """The new file from front to back: runs of the old one and what replaces the rest; adjacent bytes are joined."""
    at = 0
    pending = bytearray()
    for edit in edits:
        if edit.start < at:
            raise CkptError("plan-invalid", "edits overlap", f"{file.path}, byte {edit.start}")
        if edit.start > at:
            if pending:
                yield bytes(pending), ""
                pending.clear()
            yield Extent(file, at, edit.start - at), ""
        at = edit.end
        for content in edit.content:
            if isinstance(content, bytes):
                pending += content
                continue
            if pending:
                yield bytes(pending), ""
                pending.clear()
            yield content, edit.name
    if pending:
        yield bytes(pending), ""
    if at < file.size:
        yield Extent(file, at, file.size - at), ""


def _lengths(wire: Wire, edits: list[Edit]) -> Iterator[Edit]:
    """The edits that mend the lengths of all messages around the given ones."""
    growth: dict[Frame, int] = {}
    for edit in edits:
        if edit.frame is not None:
            growth[edit.frame] = growth.get(edit.frame, 0) + edit.growth
    for frame in list(growth):
        outer = frame.parent
        while outer is not None and outer not in growth:
            growth[outer] = 0
            outer = outer.parent
    for frame in sorted(growth, key=lambda frame: -frame.span.at):  # inner messages start after outer ones
        grown = growth[frame]
        if not grown:
            continue
        at, start, end = frame.span
        place = at + varint(wire.read(at, start), 0)[1]
        length = encode_varint(end - start + grown)
        mended = Edit(frame.parent, place, start, (length,))
        if frame.parent is not None:
            growth[frame.parent] += grown + mended.growth
        yield mended


def _size(content: Content) -> int:
    return len(content) if isinstance(content, bytes) else content.nbytes

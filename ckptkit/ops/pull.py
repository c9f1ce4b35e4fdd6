"""Taking as many bytes of a tensor as one likes, whatever chunks its source gives."""

from collections.abc import Iterator

from ckptkit.core.errors import CkptError
from ckptkit.core.tensor import Buffer, Tally, Tensor


class Puller:
    """A tensor's bytes in order. Holds one chunk of at most `limit` bytes."""

    __slots__ = ("chunks", "rest")

    def __init__(self, tensor: Tensor, limit: int, tally: Tally | None = None) -> None:
        self.chunks: Iterator[Buffer] = tensor.chunks(limit, tally)
        self.rest = memoryview(b"")

    def piece(self, most: int) -> memoryview:
        """The next bytes: at least one, at most `most`, valid until the next call. Raises CkptError `source-length`."""
        while not self.rest:
            chunk = next(self.chunks, None)
            if chunk is None:
                raise CkptError("source-length", "a tensor's source ended early")
            self.rest = memoryview(chunk).cast("B")
        piece, self.rest = self.rest[:most], self.rest[most:]
        return piece

    def pieces(self, nbytes: int) -> Iterator[memoryview]:
        """The next `nbytes` bytes, piece by piece."""
        while nbytes:
            piece = self.piece(nbytes)
            nbytes -= len(piece)
            yield piece

    def skip(self, nbytes: int) -> None:
        for _ in self.pieces(nbytes):
            pass

    def into(self, buffer: memoryview) -> None:
        """Fill a byte buffer."""
        done = 0
        for piece in self.pieces(len(buffer)):
            buffer[done : done + len(piece)] = piece
            done += len(piece)

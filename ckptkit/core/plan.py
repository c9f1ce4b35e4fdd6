"""What will be written, decided completely before the first byte is: pieces, output files, layouts.

A format's writer turns a TensorGraph into a `Layout`: for every output file its size and the pieces it
consists of, each a literal, a run of an input file, or a tensor. `ckptkit.core.stream` then moves the bytes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from ckptkit.core.errors import CkptError
from ckptkit.core.findings import Finding
from ckptkit.core.tensor import DEFAULT_CHUNK, Extent, Tensor

Ties = Literal["keep", "copy", "error"]
External = Literal["auto", "inline", "external", "safetensors", "shared"]


@dataclass(frozen=True, slots=True)
class WriteOptions:
    """How a graph is to be written.

    Attributes:
        ties: tied tensors are written once where the format can (`keep`), once per name (`copy`), or refused.
        max_shard_size: greatest size of one output file in bytes; None for a single file.
        external: for ONNX, where weights go: `inline`, `external`, `safetensors`, `shared` (where they lie, as far
            as that is in `folder`), or `auto` (as the source has it; external once the file would pass the 2 GiB
            limit of protobuf).
        taken: names in the target's folder that no companion of a file target may have.
        folder: the real path of that folder; "" where the target is a folder itself.
    """

    ties: Ties = "keep"
    max_shard_size: int | None = None
    external: External = "auto"
    taken: frozenset[str] = frozenset()
    folder: str = ""


@dataclass(frozen=True, slots=True)
class Piece:
    """`nbytes` bytes of an output file at `offset`. `name` is the tensor's output name, "" for structure."""

    offset: int
    nbytes: int
    content: bytes | Extent | Tensor
    name: str = ""


class Seal(Protocol):
    """Bytes that depend on what was streamed: checksums of a zip archive."""

    def patches(self, checksums: Sequence[int]) -> Iterator[tuple[int, bytes]]:
        """(offset, bytes) to write once all pieces are; `checksums[i]` is the CRC-32 of `pieces[i]`."""


@dataclass(frozen=True, slots=True)
class OutputFile:
    """One file to write: an independent, picklable job.

    `path` is relative to the target folder (just the file name for a single file). Pieces are in offset
    order, do not overlap; gaps are zeros. With a `seal`, the CRC-32 of every piece is computed.
    """

    path: str
    size: int
    pieces: tuple[Piece, ...]
    seal: Seal | None = None

    def check(self) -> None:
        """Raise CkptError `plan-invalid` unless the pieces lie in order within the file."""
        end = 0
        for piece in self.pieces:
            if piece.offset < end or piece.nbytes < 0:
                raise CkptError("plan-invalid", "planned pieces overlap", f"{self.path} {piece.name}")
            end = piece.offset + piece.nbytes
        if end > self.size:
            raise CkptError("plan-invalid", "a planned piece passes the end of its file", self.path)

    def memory(self, limit: int = DEFAULT_CHUNK) -> int:
        """Upper bound in bytes of what streaming this file holds at once."""
        tensors = [p.content.memory(limit) for p in self.pieces if isinstance(p.content, Tensor)]
        return max([limit, *tensors])


@dataclass(frozen=True, slots=True)
class Layout:
    """Everything a conversion writes.

    Attributes:
        files: the output files. For a folder target any number, placed as a whole. For a file target the last
            one is the target itself and the ones before it (external data) are placed first.
        losses: what of the graph cannot be carried; each must be allowed by its code.
        notes: what is worth telling (kept ties, metadata left behind).
        links: path relative to a file target → file there that is part of the output and is not written, but used as
            it lies.
    """

    files: tuple[OutputFile, ...]
    losses: tuple[Finding, ...] = ()
    notes: tuple[Finding, ...] = ()
    links: Mapping[str, str] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        return sum(f.size for f in self.files)


def stored_runs(content: bytes | Extent | Tensor) -> tuple[Extent, ...] | None:
    """The file ranges that a piece's content is, one after the other; None if its bytes must be produced.

    A source may offer `stored_runs() -> tuple[Extent, ...] | None`, as concatenations of stored tensors do.
    """
    if isinstance(content, Extent):
        return (content,)
    if isinstance(content, Tensor) and content.nbytes:
        if content.source is None:
            return content.extents
        offered = getattr(content.source, "stored_runs", None)
        found: tuple[Extent, ...] | None = None if offered is None else offered()
        return found
    return None

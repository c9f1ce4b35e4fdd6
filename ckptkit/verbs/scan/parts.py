"""Parts of files: a range of one, or bytes that were unpacked from it within the allowance."""

import zlib
from collections.abc import Callable
from typing import Any

from ckptkit.format.pytorch.source import Held, Source, Span
from ckptkit.verbs.scan.ledger import Ledger

_PIECE = 1 << 20
_DICTIONARY = 128 << 20  # memory of an xz decoder


def part(source: Source, offset: int, size: int) -> Source:
    """The range of a source, cut where the source ends."""
    offset = min(max(offset, 0), source.size)
    size = max(0, min(size, source.size - offset))
    if isinstance(source, Span):
        return Span(source.reader, source.base + offset, size)
    return Held(source.read(offset, size), source.where, (source.where, offset))


def head(source: Source, size: int = 4096) -> bytes:
    return source.read(0, min(size, source.size))


def raw_deflate() -> Any:
    return zlib.decompressobj(-zlib.MAX_WBITS)


def gunzip() -> Any:
    return zlib.decompressobj(31)


def bunzip2() -> Any:
    import bz2

    return bz2.BZ2Decompressor()


def unxz() -> Any:
    import lzma

    class Decompressor:
        """lzma's own, with an error that is told apart without importing it."""

        def __init__(self) -> None:
            self.inner = lzma.LZMADecompressor(memlimit=_DICTIONARY)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        def decompress(self, data: bytes, room: int) -> bytes:
            try:
                return self.inner.decompress(data, room)
            except lzma.LZMAError as error:
                raise ValueError(str(error)) from None

    return Decompressor()


# What decompressors raise.
DAMAGED = (zlib.error, OSError, EOFError, ValueError)


# First bytes of a compressed file → what undoes it.
COMPRESSED: tuple[tuple[bytes, Callable[[], Any]], ...] = (
    (b"\x1f\x8b\x08", gunzip),
    (b"BZh", bunzip2),
    (b"\xfd7zXZ\0", unxz),
    (b"\x78\x01", zlib.decompressobj),
    (b"\x78\x5e", zlib.decompressobj),
    (b"\x78\x9c", zlib.decompressobj),
    (b"\x78\xda", zlib.decompressobj),
)


def unpack(source: Source, make: Callable[[], Any], ledger: Ledger, where: str) -> Held:
    """What a compressed source holds, as far as it can be had: up to damage, up to the allowance.

    Members that follow each other are joined, as the loaders of such files do.
    """
    pieces: list[bytes] = []
    inflator = make()
    at = 0
    feed = piece = b""
    while True:
        if inflator.eof:
            feed = inflator.unused_data
            if not feed.startswith(head(source, 2)) or make is raw_deflate:
                break
            inflator = make()
        else:
            feed = getattr(inflator, "unconsumed_tail", b"")  # bz2 and lzma keep it to themselves
            if not feed and getattr(inflator, "needs_input", True):
                if at == source.size and not piece:
                    ledger.add("unread", "truncated", where, "the compressed data end early")
                    break
                feed = source.read(at, min(_PIECE, source.size - at))
                at += len(feed)
        if ledger.unpacked <= 0:
            ledger.add("unread", "over-budget", where, "it unpacks to more than a scan unpacks")
            break
        try:
            piece = inflator.decompress(feed, min(_PIECE, ledger.unpacked))
        except DAMAGED as error:
            ledger.add("unread", "deflate-invalid", where, f"the compressed data are damaged: {error}")
            break
        pieces.append(piece)
        ledger.unpacked -= len(piece)
    return Held(b"".join(pieces), where, where)

"""Unpacking what is compressed, in small pieces: gzip, zlib, bzip2, xz and LZMA, alone and as members of zip archives.

What else compresses (Zstandard, LZ4, 7-Zip, RAR, …) needs a library that Python does not have: it is known by its
first bytes, so that it is told as unread and never passed over.
"""

import re
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from ckptkit.format.pytorch.source import Source

_PIECE = 1 << 20
_DICTIONARY = 128 << 20  # memory of an xz or LZMA decoder
_PADDING = 16 << 20  # zeros between streams that are passed over
_PROPERTIES = 5  # bytes that describe an LZMA stream: lc, lp and pb in one, size of the dictionary

# What decompressors raise.
DAMAGED = (zlib.error, OSError, EOFError, ValueError)

Make = Callable[[], Any]  # of a decompressor as zlib, bz2 and lzma have them


def raw_deflate() -> Any:
    return zlib.decompressobj(-zlib.MAX_WBITS)


def gunzip() -> Any:
    return zlib.decompressobj(zlib.MAX_WBITS | 16)


def bunzip2() -> Any:
    import bz2

    return bz2.BZ2Decompressor()


def unxz() -> Any:
    import lzma

    return _Lzma(lzma.FORMAT_XZ)


def unlzma() -> Any:
    import lzma

    return _Lzma(lzma.FORMAT_ALONE)


def zip_lzma(size: int | None) -> Any:
    """LZMA in a zip archive; `size` where the stream has no mark at its end."""
    return _ZipLzma(size)


class _Lzma:
    """lzma's own decompressor, with an error that is told apart without importing it."""

    def __init__(self, container: int) -> None:
        import lzma

        self.damage = lzma.LZMAError
        self.inner = lzma.LZMADecompressor(container, memlimit=_DICTIONARY)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def decompress(self, data: bytes, room: int) -> bytes:
        try:
            return bytes(self.inner.decompress(data, room))
        except self.damage as error:
            raise ValueError(str(error)) from None


class _ZipLzma(_Lzma):
    """A zip member begins with a version and the length of the properties; an .lzma file has these and the size."""

    def __init__(self, size: int | None) -> None:
        import lzma

        super().__init__(lzma.FORMAT_ALONE)
        self.size = (1 << 64) - 1 if size is None else size
        self.begin: bytes | None = b""

    def decompress(self, data: bytes, room: int) -> bytes:
        if self.begin is None:
            return super().decompress(data, room)
        data = self.begin + data
        if len(data) < 4 + _PROPERTIES:
            self.begin = data
            return b""
        if data[2:4] != _PROPERTIES.to_bytes(2, "little"):
            raise ValueError("the properties of LZMA are of another length")
        self.begin = None
        return super().decompress(data[4:9] + self.size.to_bytes(8, "little") + data[9:], room)


# First bytes of a compressed file → what undoes it.
COMPRESSED: tuple[tuple[bytes, Make], ...] = (
    (b"\x1f\x8b\x08", gunzip),
    (b"BZh", bunzip2),
    (b"\xfd7zXZ\0", unxz),
    (b"\x5d\0", unlzma),
    (b"\x78\x01", zlib.decompressobj),
    (b"\x78\x5e", zlib.decompressobj),
    (b"\x78\x9c", zlib.decompressobj),
    (b"\x78\xda", zlib.decompressobj),
)
# Before the zlib stream in old files of joblib: its unpacked size.
ZFILE = re.compile(rb"ZF0x[0-9a-fA-F]{1,17}L? * ?(?=\x78)")
# First bytes of what is not undone here → its name.
PACKED: tuple[tuple[bytes, str], ...] = (
    (b"\x28\xb5\x2f\xfd", "a Zstandard file"),
    (b"\x04\x22\x4d\x18", "an LZ4 file"),
    (b"\x02\x21\x4c\x18", "an LZ4 file"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"MSCF\0\0\0\0", "a cabinet file"),
    (b"\xff\x06\0\0sNaPpY", "a Snappy file"),
    (b"LZIP", "an lzip file"),
    (b"\x1f\x9d", "a file packed by compress"),
)
_MEMBERS: dict[int, Make] = {8: raw_deflate, 12: bunzip2, 95: unxz}
_LZMA = 14
_NAMES = {1: "Shrink", 6: "Implode", 9: "Deflate64", 20: "Zstandard", 93: "Zstandard", 98: "PPMd", 99: "AES"}
_MARKED = 0x0002  # flag of a zip member: its LZMA stream has a mark at its end


def member(method: int, flags: int, size: int) -> Make | None:
    """What undoes a method of zip archives; None for one that nothing here undoes."""
    if method == _LZMA:
        return partial(zip_lzma, None if flags & _MARKED else size)
    return _MEMBERS.get(method)


def method_name(method: int) -> str:
    return f"{_NAMES[method]} (method {method})" if method in _NAMES else f"method {method}"


class Inflation:
    """Iterates over what a source holds, a megabyte at a time, up to its end or the first damage.

    Streams of one kind that follow each other, zeros between them or not, are joined as the loaders of such files
    do. Afterwards `end` is where the packed bytes ended, and `problem` why they did so early: (code, text).
    """

    def __init__(self, source: Source, make: Make) -> None:
        self.source = source
        self.make = make
        self.end = 0
        self.problem: tuple[str, str] | None = None

    def __iter__(self) -> Iterator[bytes]:
        source, size = self.source, self.source.size
        inflator = self.make()
        magic = source.read(0, min(2, size))
        piece = b""
        while True:
            feed = b""
            if inflator.eof:
                self.end -= len(inflator.unused_data)
                if self.make not in _JOINED or not self._another(magic):
                    return
                inflator = self.make()
            else:
                feed = getattr(inflator, "unconsumed_tail", b"")  # bz2 and lzma keep it to themselves
            if not feed and getattr(inflator, "needs_input", True):
                if self.end == size and not piece:
                    self.problem = ("truncated", "the compressed data end early")
                    return
                feed = source.read(self.end, min(_PIECE, size - self.end))
                self.end += len(feed)
            try:
                piece = inflator.decompress(feed, _PIECE)
            except DAMAGED as error:
                self.problem = ("deflate-invalid", f"the compressed data are damaged: {error}")
                return
            yield piece

    def _another(self, magic: bytes) -> bool:
        """Whether another stream begins behind the one that ended; zeros before it are passed over."""
        at, size = self.end, self.source.size
        while at < min(size, self.end + _PADDING):
            data = self.source.read(at, min(_PIECE, size - at))
            left = data.lstrip(b"\0")
            at += len(data) - len(left)
            if left:
                break
        if self.source.read(at, min(2, size - at)) != magic:
            return False
        self.end = at
        return True


_JOINED = (gunzip, bunzip2, unxz, unlzma, zlib.decompressobj)

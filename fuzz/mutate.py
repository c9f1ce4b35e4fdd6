"""Mutations that know the formats: opcodes of pickles, numbers of headers, fields of archives and protobufs."""

import random
import re
import struct
import zlib

_NUMBERS = [0, 1, 2, 7, 63, 64, 127, 128, 255, 256]
_NUMBERS += [2**k - d for k in (15, 16, 31, 32, 63, 64) for d in (1, 0)]
_OPCODES = bytes(range(0x28, 0x7E)) + bytes(range(0x80, 0x99))
_TOKENS = [
    b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n", b"cos\nsystem\n", b"X\x02\0\0\0os",
    b"ctorch\nFloatStorage\n", b"cnumpy\nndarray\n", b"}(", b"(t", b"u.", b")R", b"\x81", b"b", b"Q",
    b"h\x00", b"q\x00", b"r\xff\xff\xff\x7f",
    b"\x8a\xff", b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"PK\1\2", b"PK\3\4", b"PK\5\6", b"PK\6\6", b"PK\6\7", b"\x80\x02",
    b"\x80\x04\x95",
    b'"dtype":"F32"', b'"shape":[', b'"data_offsets":[0,0]', b"__metadata__", b"1e400", b"-0", b"\\ud800", b"NaN",
    b"null",
    b"[" * 40, b"{" * 40, b'"a":', b"../../x", b"\x93NUMPY\1\0", b"location", b"offset", b"\x1b[31m", b"data/0",
]  # fmt: skip
_DIGITS = re.compile(rb"\d+")
LONGEST = 64 << 10


def mutate(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """One to six mutations of some bytes; `other` is what is spliced in."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        rng.choice(_MUTATIONS)(out, other, rng)
    return bytes(out[:LONGEST])


def _at(out: bytearray, rng: random.Random) -> int:
    return rng.randrange(len(out) + 1)


def _flip(out: bytearray, other: bytes, rng: random.Random) -> None:
    if out:
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)


def _byte(out: bytearray, other: bytes, rng: random.Random) -> None:
    if out:
        out[rng.randrange(len(out))] = rng.choice((0, 255, rng.randrange(256)))


def _opcode(out: bytearray, other: bytes, rng: random.Random) -> None:
    at = _at(out, rng)
    out[at : at + rng.randrange(2)] = bytes([rng.choice(_OPCODES)])


def _token(out: bytearray, other: bytes, rng: random.Random) -> None:
    at = _at(out, rng)
    out[at:at] = rng.choice(_TOKENS)


def _cut(out: bytearray, other: bytes, rng: random.Random) -> None:
    at = _at(out, rng)
    del out[at : at + rng.choice((1, 4, 16, len(out)))]


def _copy(out: bytearray, other: bytes, rng: random.Random) -> None:
    start = _at(out, rng)
    piece = out[start : start + rng.choice((1, 4, 16, 64, 256))]
    at = _at(out, rng)
    out[at:at] = piece * rng.choice((1, 1, 2, 20))


def _splice(out: bytearray, other: bytes, rng: random.Random) -> None:
    if other:
        start = rng.randrange(len(other))
        at = _at(out, rng)
        out[at : at + rng.choice((0, 8, len(out)))] = other[start : start + rng.choice((4, 32, 256, 4096))]


def _number(out: bytearray, other: bytes, rng: random.Random) -> None:
    width, code = rng.choice(((1, "<B"), (2, "<H"), (4, "<I"), (8, "<Q")))
    if len(out) >= width:
        at = rng.randrange(len(out) - width + 1)
        out[at : at + width] = struct.pack(code, rng.choice(_NUMBERS) % (1 << 8 * width))


def _digits(out: bytearray, other: bytes, rng: random.Random) -> None:
    """A number written in decimal."""
    found = list(_DIGITS.finditer(out[:4096]))
    if found:
        match = rng.choice(found)
        out[match.start() : match.end()] = str(rng.choice(_NUMBERS) - rng.choice((0, 0, 1))).encode()


def _header(out: bytearray, other: bytes, rng: random.Random) -> None:
    """Let a safetensors length agree with where its object ends, so that what lies behind is reached."""
    end = out.rfind(b"}")
    if len(out) > 8 and end > 8:
        out[:8] = struct.pack("<Q", end - 7)


def _end(out: bytearray, other: bytes, rng: random.Random) -> None:
    """Let a zip's end record point to its directory again, after something was inserted."""
    end, start = out.rfind(b"PK\5\6"), out.find(b"PK\1\2")
    if 0 <= start < end and end + 22 <= len(out):
        out[end + 12 : end + 20] = struct.pack("<II", end - start, start)


def _crc(out: bytearray, other: bytes, rng: random.Random) -> None:
    at = _at(out, rng)
    out[at : at + 4] = struct.pack("<I", zlib.crc32(bytes(out[at : at + 64])))


_MUTATIONS = (
    _flip, _flip, _byte, _byte, _opcode, _opcode, _token, _token, _cut, _copy, _splice, _splice, _number, _number,
    _digits, _digits, _header, _end, _crc,
)  # fmt: skip

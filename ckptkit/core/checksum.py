"""CRC-32 of a run from the CRC-32s of its parts, so that threads may take parts in any order.

The CRC of A+B is the CRC of A advanced by len(B) zero bytes, xor the CRC of B. Advancing is multiplication
by x^(8·len) modulo the CRC polynomial over GF(2), bit-reflected (ITU-T V.42, as in zip and zlib).
"""

from functools import lru_cache

_POLYNOMIAL = 0xEDB88320
_ONE = 1 << 31  # the polynomial "1" in reflected order


def _times(a: int, b: int) -> int:
    product = 0
    while a:
        if a & _ONE:
            product ^= b
        a = (a << 1) & 0xFFFFFFFF
        b = (b >> 1) ^ _POLYNOMIAL if b & 1 else b >> 1
    return product


@lru_cache(maxsize=64)
def _advance(nbytes: int) -> int:
    """x^(8·nbytes) modulo the polynomial, by repeated squaring."""
    power, square = _ONE, 1 << 23  # x^0 and x^8
    while nbytes:
        if nbytes & 1:
            power = _times(power, square)
        square = _times(square, square)
        nbytes >>= 1
    return power


def combine_crc32(first: int, second: int, second_nbytes: int) -> int:
    """CRC-32 of two runs one after the other, from theirs; `second_nbytes` is the length of the second."""
    return _times(_advance(second_nbytes), first) ^ second

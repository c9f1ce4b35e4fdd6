"""CRC-32 of a whole from its parts equals zlib's."""

import zlib

from hypothesis import given
from hypothesis import strategies as st

from ckptkit.core.checksum import combine_crc32


@given(st.lists(st.binary(max_size=300), max_size=8))
def test_combining_parts_gives_the_crc_of_the_whole(parts: list[bytes]) -> None:
    total = 0
    for part in parts:
        total = combine_crc32(total, zlib.crc32(part), len(part))
    assert total == zlib.crc32(b"".join(parts))


def test_a_long_second_part_costs_no_more_than_its_length_in_bits() -> None:
    zeros = zlib.crc32(bytes(1 << 20))
    total = zlib.crc32(b"x")
    for _ in range(3):
        total = combine_crc32(total, zeros, 1 << 20)
    assert total == zlib.crc32(b"x" + bytes(3 << 20))

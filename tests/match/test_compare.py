"""Comparing and digesting the bytes of many tensors: nothing is missed, however they lie, and little is read."""

import os
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptkit.core.dtypes import DTYPES
from ckptkit.core.errors import CkptError
from ckptkit.core.files import File
from ckptkit.core.storage import FileStorage, MemoryStorage
from ckptkit.core.tensor import Tensor
from ckptkit.core.views import View, view
from ckptkit.match.compare import differing, same_bytes
from ckptkit.match.digest import combine, combine_nameless, digests, tensor_digest
from ckptkit.match.reading import WINDOW, Window, shared

U8 = DTYPES["uint8"]


def file(path: Path, data: bytes) -> File:
    path.write_bytes(data)
    return File.at(path)


@pytest.mark.parametrize("place", [0, 1, WINDOW - 1, WINDOW, 3 * WINDOW + 5, 9_000_000, 10_000_002])
def test_one_flipped_bit_is_found_wherever_it_is(tmp_path: Path, place: int) -> None:
    """In small tensors, in large ones that two threads share, and when the two files are laid out differently."""
    data = bytearray(os.urandom(10_000_003))
    a = file(tmp_path / "a", bytes(data))
    data[place] ^= 1
    b = file(tmp_path / "b", bytes(17) + data)
    cuts = [0, 1, 2, 100, 5000, WINDOW + 7, 9_500_000, 10_000_003]
    runs = list(pairwise(cuts))
    pairs = {
        f"t{start}": (Tensor(U8, (stop - start,), a, start), Tensor(U8, (stop - start,), b, start + 17))
        for start, stop in runs
    }
    (hit,) = [start for start, stop in runs if start <= place < stop]
    assert differing(pairs) == {f"t{hit}"}
    backwards = dict(reversed(pairs.items()))
    assert differing(backwards) == {f"t{hit}"}
    changed = digests({name: pair[1] for name, pair in pairs.items()})
    assert {n for n, d in digests({n: p[0] for n, p in pairs.items()}).items() if d != changed[n]} == {
        f"t{hit}"
    }


@given(st.data())
def test_a_view_equals_the_same_elements_stored_plainly(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    rows, columns = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    folder = tmp_path_factory.mktemp("views")
    content = os.urandom(rows * columns)
    turned = bytes(content[r * columns + c] for c in range(columns) for r in range(rows))
    a = view(FileStorage(file(folder / "a", content), 0, len(content)), U8, (columns, rows), (1, columns), 0)
    b = Tensor(U8, (columns, rows), file(folder / "b", turned))
    assert differing({"x": (a, b), "y": (b, a)}) == frozenset()
    assert digests({"x": a}) == {"x": tensor_digest(b)}
    place = data.draw(st.integers(0, len(turned) - 1))
    c = Tensor(
        U8, b.shape, file(folder / "c", turned[:place] + bytes([turned[place] ^ 128]) + turned[place + 1 :])
    )
    assert differing({"x": (a, c), "y": (c, b)}) == {"x", "y"}


def test_progress_adds_up_to_all_bytes(tmp_path: Path) -> None:
    a, b = (file(tmp_path / name, bytes(3_000_000)) for name in "ab")
    pairs = {str(k): (Tensor(U8, (1_000_000,), a, k), Tensor(U8, (1_000_000,), b, k)) for k in range(3)}
    seen: list[int] = []
    assert differing(pairs, seen.append) == frozenset()
    assert sum(seen) == 3_000_000
    seen.clear()
    digests({name: pair[0] for name, pair in pairs.items()}, seen.append)
    assert sum(seen) == 3_000_000


def test_the_same_place_is_not_read(tmp_path: Path) -> None:
    a = file(tmp_path / "a", bytes(10))
    pair = (Tensor(U8, (10,), a), Tensor(U8, (10,), a))
    (tmp_path / "a").unlink()
    assert differing({"x": pair}) == frozenset()


def test_empty_tensors_are_equal_and_strings_of_other_lengths_differ(tmp_path: Path) -> None:
    a = file(tmp_path / "a", b"")
    assert differing({"x": (Tensor(U8, (0,), a), Tensor(U8, (0,), a, 0))}) == frozenset()

    def text(content: bytes) -> Tensor:
        whole = View(MemoryStorage(content, object()), U8, ((len(content), 1),), 0, False, False, False)

        class Strings:
            nbytes = len(content)
            identity = extents = (content,)
            chunks = whole.chunks

        return Tensor(DTYPES["string"], (1,), source=Strings())  # type: ignore[arg-type]

    assert differing({"x": (text(b"ab"), text(b"ab"))}) == frozenset()
    assert differing({"x": (text(b"ab"), text(b"abc")), "y": (text(b""), text(b"a"))}) == {"x", "y"}


def test_bits_beyond_the_last_element_do_not_count(tmp_path: Path) -> None:
    dtype = DTYPES["int4"]
    contents = (b"\x21\x03", b"\x21\xf3", b"\x21\x04")
    a, b, c = (Tensor(dtype, (3,), file(tmp_path / str(k), data)) for k, data in enumerate(contents))
    assert differing({"x": (a, b), "y": (a, c)}) == {"y"}
    assert tensor_digest(a) == tensor_digest(b) != tensor_digest(c)
    assert digests({"x": b})["x"] == tensor_digest(a)


def test_a_file_that_changes_under_way_is_an_error(tmp_path: Path) -> None:
    a, b = (file(tmp_path / name, bytes(100)) for name in "ab")
    tensors = Tensor(U8, (100,), a), Tensor(U8, (100,), b)
    os.utime(tmp_path / "a", ns=(1, 1))
    with pytest.raises(CkptError) as caught:
        differing({"x": tensors})
    assert caught.value.code == "changed-on-disk"
    with pytest.raises(CkptError) as caught:
        digests({"x": tensors[0]})
    assert caught.value.code == "changed-on-disk"


def test_a_failure_in_either_thread_is_raised() -> None:
    def worker():  # type: ignore[no-untyped-def]
        from contextlib import nullcontext

        def do(number: int) -> None:
            if number == 50:
                raise CkptError("io-error", "fifty")

        return nullcontext(do)

    with pytest.raises(CkptError, match="fifty"):
        shared(range(100), worker, 1 << 30)


@given(st.lists(st.binary(max_size=5)), st.data())
def test_streams_are_equal_however_they_are_cut(pieces: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(pieces)
    cut = data.draw(st.integers(0, len(whole)))
    assert same_bytes(pieces, [whole[:cut], whole[cut:]])
    assert not same_bytes(pieces, [whole, b"x"])
    assert not same_bytes([b"x"], [b"y"])


def test_a_window_reads_ahead_only_when_reading_goes_forward(tmp_path: Path) -> None:
    source = file(tmp_path / "a", os.urandom(1 << 20))
    with Window() as window:
        for start in (900_000, 10, 500_000, 3):  # jumping about: exactly what is asked for
            window.find(Tensor(U8, (10,), source, start), 0, 10)
            assert window.stop - window.start == 10
        for start in range(13, 100_000, 10):
            _, size = window.find(Tensor(U8, (10,), source, start), 0, 10)
            assert size == 10 or start + 10 > window.stop
        assert window.stop - window.start == WINDOW


def test_digests_do_not_depend_on_order_and_nameless_ones_not_on_names() -> None:
    found = {"b": "11" * 32, "a": "22" * 32}
    assert combine(found) == combine(dict(reversed(found.items())))
    assert combine_nameless(found.values()) == combine_nameless(reversed(found.values()))
    assert combine(found) != combine({"b": "22" * 32, "a": "11" * 32})

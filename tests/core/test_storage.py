"""Storages give the bytes they promise, or say what is wrong with them."""

import pickle
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptkit.core import storage as module
from ckptkit.core.budgets import Budgets
from ckptkit.core.dtypes import dtype
from ckptkit.core.errors import CkptError
from ckptkit.core.files import File
from ckptkit.core.storage import FileStorage, InflatedStorage, MemoryStorage, Storage
from ckptkit.core.views import view


def deflate(data: bytes, level: int = 6) -> bytes:
    packer = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


def inflated(path: Path, packed: bytes, nbytes: int, budgets: Budgets = Budgets()) -> InflatedStorage:  # noqa: B008
    path.write_bytes(b"before" + packed + b"after")
    return InflatedStorage(File.at(path), 6, len(packed), nbytes, budgets)


def everything(storage: Storage, limit: int = 1000) -> bytes:
    return b"".join(bytes(piece) for piece in storage.stream(0, storage.nbytes, limit))


@pytest.fixture(scope="module")
def data() -> bytes:
    """Compressible, but not trivially."""
    rng = np.random.default_rng(3)
    return (np.cumsum(rng.integers(-2, 3, 60_000)) & 0xFF).astype(np.uint8).tobytes()


@pytest.fixture(scope="module", params=["file", "memory", "deflated", "stored blocks", "marks"])
def storage(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> Iterator[Storage]:
    path = tmp_path_factory.mktemp("storage") / "file"
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "file":
            path.write_bytes(b"before" + data + b"after")
            yield FileStorage(File.at(path), 6, len(data))
        elif request.param == "memory":
            yield MemoryStorage(data, "x")
        elif request.param == "stored blocks":
            yield inflated(path, deflate(data, 0), len(data))
        else:
            if request.param == "marks":  # as many places to resume as a large member has
                patch.setattr(module, "_MARK_EVERY", 500)
                patch.setattr(module, "_PIECE", 300)
                patch.setattr(module, "_PACKED", 100)
            yield inflated(path, deflate(data), len(data))


@given(
    reads=st.lists(st.tuples(st.integers(0, 60_000), st.integers(0, 60_000)), max_size=6),
    limit=st.integers(1, 50_000),
)
def test_every_read_gives_the_bytes(
    storage: Storage, data: bytes, reads: list[tuple[int, int]], limit: int
) -> None:
    """In whatever order: a deflated storage goes on from where it was, or from an earlier place."""
    with storage.open() as cursor:
        for pair in reads:
            start, stop = sorted(pair)
            assert bytes(storage.read(start, stop - start)) == data[start:stop]
            buffer = bytearray(stop - start)
            cursor.read_into(start, memoryview(buffer))
            assert buffer == data[start:stop]
            if limit * 200 > stop - start:
                pieces = [bytes(piece) for piece in storage.stream(start, stop, limit)]
                assert b"".join(pieces) == data[start:stop]
                assert all(len(piece) == limit for piece in pieces[:-1])


def test_places_to_resume_spare_inflating_again(
    tmp_path: Path, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand views of one deflated storage, in any order, cost about one pass, not a thousand."""
    monkeypatch.setattr(module, "_MARK_EVERY", 1000)
    monkeypatch.setattr(module, "_PACKED", 64)
    member = inflated(tmp_path / "file", deflate(data), len(data))
    used = 0
    inner = module._InflatingCursor._inflate

    def counted(self: module._InflatingCursor, most: int) -> bytes:
        nonlocal used
        piece = inner(self, most)
        used += len(piece)
        return piece

    monkeypatch.setattr(module._InflatingCursor, "_inflate", counted)
    for start in range(0, len(data), 60):
        assert bytes(member.read(start, 60)) == data[start : start + 60]
    assert used <= len(data) + 60
    used = 0
    for start in range(len(data) - 60, -1, -600):
        assert bytes(member.read(start, 60)) == data[start : start + 60]
    assert used < len(data) * 3


@pytest.mark.parametrize(
    "shape", [((300, 200), (200, 1), 0), ((200, 300), (1, 200), 0), ((100, 5), (3, 600), 7)]
)
def test_views_of_a_deflated_storage(
    tmp_path: Path, data: bytes, shape: tuple[tuple[int, ...], tuple[int, ...], int]
) -> None:
    member = inflated(tmp_path / "file", deflate(data), len(data))
    whole = view(MemoryStorage(data, "x"), dtype("uint8"), *shape)
    assert view(member, dtype("uint8"), *shape).tobytes() == whole.tobytes()


def test_a_view_of_a_deflated_storage_beyond_the_window(
    tmp_path: Path, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ckptkit.core.views.WINDOW", 4096)
    member = inflated(tmp_path / "file", deflate(data), len(data))
    expected = view(MemoryStorage(data, "x"), dtype("uint8"), (200, 300), (1, 200), 0).tobytes()
    assert view(member, dtype("uint8"), (200, 300), (1, 200), 0).tobytes() == expected


def test_inflating_is_lazy_and_bounded(tmp_path: Path) -> None:
    """A thousandfold member is refused nothing, and streams in a few buffers."""
    nbytes = 200 << 20
    member = inflated(tmp_path / "file", deflate(bytes(nbytes)), nbytes)
    stream = member.stream(0, nbytes, 1 << 16)
    assert len(next(stream)) == 1 << 16
    assert member.memory(1 << 16) < 8 << 20
    tensor = view(member, dtype("float32"), (nbytes // 4,), (1,), 0)
    assert sum(map(len, tensor.chunks(1 << 20))) == nbytes


def code(storage: Storage) -> str:
    with pytest.raises(CkptError) as caught:
        everything(storage)
    return caught.value.code


def test_damage_is_said(tmp_path: Path, data: bytes) -> None:
    path, packed, size = tmp_path / "file", deflate(data), len(data)
    assert everything(inflated(path, packed, size)) == data
    assert code(inflated(path, packed, size - 1)) == "deflate-invalid"  # gives more than declared
    assert code(inflated(path, packed, size + 1)) == "deflate-invalid"  # gives less
    assert code(inflated(path, packed[:-1], size)) == "deflate-invalid"  # cut short
    assert code(inflated(path, packed[: len(packed) // 2], size)) == "deflate-invalid"
    assert code(inflated(path, packed + b"x", size)) == "deflate-invalid"  # bytes that belong to nothing
    assert code(inflated(path, packed + packed, size)) == "deflate-invalid"  # a second stream
    assert code(inflated(path, b"\xff" + packed, size)) == "deflate-invalid"  # no such block type
    assert code(inflated(path, zlib.compress(data), size)) == "deflate-invalid"  # zlib, not raw deflate
    middle = len(packed) // 2
    damaged = packed[:middle] + bytes(b ^ 0xFF for b in packed[middle : middle + 40]) + packed[middle + 40 :]
    assert code(inflated(path, damaged, size)) == "deflate-invalid"


def test_a_file_cut_short_is_said(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(deflate(data)[:100])
    assert code(InflatedStorage(File.at(path), 0, len(deflate(data)), len(data))) == "truncated"
    assert code(FileStorage(File.at(path), 50, 51)) == "truncated"


@pytest.mark.parametrize(
    ("packed", "nbytes", "budgets"),
    [
        (10, 10 * 1100 + 1, Budgets()),
        (0, 1, Budgets()),
        (1 << 40, 1 << 40, Budgets()),
        (100, 101, Budgets(inflate_bytes=100)),
    ],
)
def test_bombs_are_refused_before_they_go_off(
    tmp_path: Path, packed: int, nbytes: int, budgets: Budgets
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"")
    with pytest.raises(CkptError) as caught:
        InflatedStorage(File.at(path), 0, packed, nbytes, budgets)
    assert caught.value.code == "archive-bomb"


def test_an_empty_member(tmp_path: Path) -> None:
    assert everything(inflated(tmp_path / "file", deflate(b""), 0)) == b""


def test_storages_survive_pickling(storage: Storage, data: bytes) -> None:
    again = pickle.loads(pickle.dumps(storage))
    assert again.identity == storage.identity
    assert again.extents == storage.extents
    assert everything(again) == data


def test_few_storages_keep_places_to_resume(tmp_path: Path, data: bytes) -> None:
    """An inflator holds its last 32 KB: a checkpoint of many deflated tensors must not keep one for each."""
    members = [inflated(tmp_path / str(i), deflate(data), len(data)) for i in range(20)]
    for member in members:
        member.read(0, 100)
    assert sum(member.nearest(len(data)).position > 0 for member in members) < 5
    assert all(everything(member) == data for member in members)

"""Planned files come out byte for byte, whatever their pieces are, and failures surface."""

import os
import zlib
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptkit.core import files
from ckptkit.core.dtypes import DTYPES
from ckptkit.core.errors import CkptError
from ckptkit.core.files import File
from ckptkit.core.plan import OutputFile, Piece
from ckptkit.core.stream import SEGMENT, memory_bound, write_file
from ckptkit.core.tensor import Buffer, Extent, Tally, Tensor

U8 = DTYPES["uint8"]


@dataclass(frozen=True)
class Produced:
    """A source that gives these bytes, in chunks, and reports losses."""

    data: bytes
    lost: int = 0
    identity: Hashable = "produced"
    extents: tuple[Extent, ...] = ()

    def memory(self, limit: int) -> int:
        return min(limit, len(self.data))

    def chunks(self, limit: int, tally: Tally | None = None) -> Iterator[Buffer]:
        for start in range(0, len(self.data), 7):
            yield self.data[start : start + 7]
        if tally is not None:
            tally.add("overflow", self.lost)


def source_file(folder: Path, size: int) -> tuple[File, bytes]:
    data = os.urandom(1 << 16) * (size // (1 << 16) + 1)
    path = folder / "source"
    path.write_bytes(data[:size])
    return File.at(path), data[:size]


@pytest.fixture(params=[True, False], ids=["by-the-system", "by-hand"], autouse=True)
def copied_by(request: pytest.FixtureRequest) -> Iterator[None]:
    """Plain runs are copied by the system where it can; everything must hold where it cannot, too."""
    with pytest.MonkeyPatch.context() as patch:
        if not request.param:
            patch.setattr(files, "_copy_file_range", None)
        yield


@pytest.mark.parametrize(
    "answers", [[0], [OSError(18, "cross-device link")], [3, OSError(5, "input/output")], [1, 1, 0]]
)
def test_the_system_may_stop_copying_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: list[int | OSError]
) -> None:
    """What it leaves is read and written; it never answers for more than it has done."""
    file, data = source_file(tmp_path, 5000)
    left = list(answers)

    def partly(source: int, target: int, size: int, offset: int, at: int) -> int:
        answer = left.pop(0) if left else 0
        if isinstance(answer, OSError):
            raise answer
        return os.pwrite(target, os.pread(source, answer, offset), at)

    monkeypatch.setattr(files, "_copy_file_range", partly)
    planned = OutputFile("out", 4020, (Piece(20, 4000, Extent(file, 20, 4000), "w"),))
    write_file(planned, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == bytes(20) + data[20:4020]
    assert not left


pieces = st.lists(
    st.tuples(
        st.integers(0, 5),  # gap before
        st.sampled_from(["literal", "extent", "tensor", "produced", "next"]),
        st.integers(0, 900),  # where in the source
        st.integers(0, 100),  # length
    ),
    max_size=12,
)


@given(pieces)
def test_any_mix_of_pieces(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, str, int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("mix")
    file, data = source_file(folder, 1000)
    planned: list[Piece] = []
    expected = bytearray()
    after = 0
    for gap, kind, at, size in rows:
        start = after if kind == "next" and after + size <= 1000 else at
        gap = 0 if kind == "next" else gap
        expected += bytes(gap)
        content: bytes | Extent | Tensor = data[start : start + size]
        if kind in ("extent", "next"):
            content = Extent(file, start, size)
        elif kind == "tensor":
            content = Tensor(U8, (size,), file, start)
        elif kind == "produced":
            content = Tensor(U8, (size,), source=Produced(data[start : start + size]))
        planned.append(Piece(len(expected), size, content, f"t{len(planned)}"))
        expected += data[start : start + size]
        after = start + size
    plan = OutputFile("out", len(expected) + 3, tuple(planned))
    progress: list[int] = []
    write_file(plan, folder / "out", progress=progress.append)
    assert (folder / "out").read_bytes() == expected + bytes(3)
    assert sum(progress) == sum(p.nbytes for p in planned)


def test_long_runs_are_shared_out_and_checksummed(tmp_path: Path) -> None:
    size = 2 * SEGMENT + 12_345
    file, data = source_file(tmp_path, size)

    @dataclass(frozen=True)
    class Seal:
        def patches(self, checksums: Sequence[int]) -> Iterator[tuple[int, bytes]]:
            for i, checksum in enumerate(checksums):
                yield size + 4 * i, checksum.to_bytes(4, "little")

    parts = (Piece(0, 5, data[:5]), Piece(5, size - 5, Extent(file, 5, size - 5)), Piece(size, 0, b""))
    write_file(OutputFile("out", size + 12, parts, Seal()), tmp_path / "out")
    written = (tmp_path / "out").read_bytes()
    assert written[:size] == data
    sums = [int.from_bytes(written[size + 4 * i :][:4], "little") for i in range(3)]
    assert sums == [zlib.crc32(data[:5]), zlib.crc32(data[5:]), 0]


def test_observers_see_each_tensor_in_order(tmp_path: Path) -> None:
    file, data = source_file(tmp_path, 3 << 20)
    parts = (
        Piece(0, 2 << 20, Tensor(U8, (2 << 20,), file, 0), "a"),
        Piece(2 << 20, 1 << 20, Tensor(U8, (1 << 20,), source=Produced(data[2 << 20 :])), "b"),
    )
    seen: dict[str, bytearray] = {}

    class Collect:
        def __init__(self, name: str) -> None:
            self.into = seen.setdefault(name, bytearray())

        def update(self, chunk: Buffer, /) -> None:
            self.into.extend(chunk)

    write_file(OutputFile("out", 3 << 20, parts), tmp_path / "out", observe=lambda piece: Collect(piece.name))
    assert seen == {"a": data[: 2 << 20], "b": data[2 << 20 :]}


def test_losses_seen_while_streaming_are_summed(tmp_path: Path) -> None:
    parts = tuple(Piece(4 * i, 4, Tensor(U8, (4,), source=Produced(b"abcd", lost=i))) for i in range(4))
    done = write_file(OutputFile("out", 16, parts), tmp_path / "out")
    assert done.tally.counts == {"overflow": 6}


@pytest.mark.parametrize("given_bytes", [b"abc", b"abcde", b""])
def test_a_source_of_the_wrong_length_fails(tmp_path: Path, given_bytes: bytes) -> None:
    tensor = Tensor(U8, (4,), source=Produced(given_bytes))
    with pytest.raises(CkptError) as caught:
        write_file(OutputFile("out", 8, (Piece(0, 4, tensor, "w"),)), tmp_path / "out")
    assert caught.value.code == "source-length"
    assert caught.value.where == "w"


def test_a_source_that_shrinks_is_an_error_not_a_short_file(tmp_path: Path) -> None:
    file, _ = source_file(tmp_path, 1000)
    os.truncate(file.path, 500)
    with pytest.raises(CkptError) as caught:
        write_file(OutputFile("out", 1000, (Piece(0, 1000, Extent(file, 0, 1000)),)), tmp_path / "out")
    assert caught.value.code == "changed-on-disk"


def test_a_source_that_changes_while_it_is_copied_is_an_error(tmp_path: Path) -> None:
    file, _ = source_file(tmp_path, 1000)

    def meddle(_: int) -> None:
        with open(file.path, "r+b") as handle:
            handle.write(b"?")
        os.utime(file.path, ns=(1, 1))

    with pytest.raises(CkptError) as caught:
        write_file(
            OutputFile("out", 1000, (Piece(0, 1000, Extent(file, 0, 1000)),)),
            tmp_path / "out",
            progress=meddle,
        )
    assert caught.value.code == "changed-on-disk"


@pytest.mark.parametrize(
    "parts",
    [
        (Piece(0, 4, b"abcd"), Piece(3, 1, b"x")),
        (Piece(0, 9, b"abcdefghi"),),
        (Piece(4, 2, b"ab"), Piece(0, 2, b"ab")),
    ],
)
def test_an_impossible_plan_writes_nothing(tmp_path: Path, parts: tuple[Piece, ...]) -> None:
    with pytest.raises(CkptError) as caught:
        write_file(OutputFile("out", 8, parts), tmp_path / "out")
    assert caught.value.code == "plan-invalid"
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    plan = OutputFile("out", 4, (Piece(0, 4, b"abcd"),))
    with pytest.raises(CkptError) as caught:
        write_file(plan, tmp_path / "absent" / "out")
    assert caught.value.code == "io-error"


def test_the_bound_counts_what_two_threads_hold(tmp_path: Path) -> None:
    file, data = source_file(tmp_path, 1000)
    plain = Piece(0, 1000, Tensor(U8, (1000,), file, 0))
    made = [Piece(1000 * (i + 1), 1000, Tensor(U8, (1000,), source=Produced(data))) for i in range(3)]
    assert (
        memory_bound(OutputFile("out", 4000, (plain, *made)))
        == memory_bound(OutputFile("o", 1000, (plain,))) + 2000
    )


class Runs(Produced):
    """A source that is ranges of a file; its chunks must not be asked for."""

    def stored_runs(self) -> tuple[Extent, ...]:
        return self.extents

    def chunks(self, limit: int, tally: Tally | None = None) -> Iterator[Buffer]:
        raise AssertionError("ranges are copied")


def test_ranges_of_one_tensor_are_copied_and_checksummed(tmp_path: Path) -> None:
    file, data = source_file(tmp_path, SEGMENT + 1000)
    ranges = (Extent(file, 500, 400), Extent(file, 900, SEGMENT + 7), Extent(file, 0, 3))
    expected = data[500 : 900 + SEGMENT + 7] + data[:3]
    tensor = Tensor(DTYPES["uint8"], (len(expected),), source=Runs(b"", extents=ranges))
    plan = OutputFile("x", 5 + len(expected), (Piece(0, 5, b"abcde"), Piece(5, len(expected), tensor, "t")))
    seen: list[int] = []

    class Sealed:
        def patches(self, checksums: Sequence[int]) -> Iterator[tuple[int, bytes]]:
            seen.extend(checksums)
            return iter(())

    write_file(plan, tmp_path / "plain")
    write_file(OutputFile("x", plan.size, plan.pieces, Sealed()), tmp_path / "sealed")
    assert (tmp_path / "plain").read_bytes() == (tmp_path / "sealed").read_bytes() == b"abcde" + expected
    assert seen == [zlib.crc32(b"abcde"), zlib.crc32(expected)]
    assert memory_bound(plan) == memory_bound(OutputFile("x", 5, plan.pieces[:1]))
    short = OutputFile("x", 9 + len(expected), (Piece(0, 1 + len(expected), tensor, "t"),))
    with pytest.raises(CkptError) as caught:
        write_file(short, tmp_path / "short")
    assert caught.value.code == "source-length"

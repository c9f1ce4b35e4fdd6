"""Each budget has a file that trips it, and the attacks on hashing cost what they should: nothing."""

import struct
import time
import zipfile
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest

import ckptkit as ck
from ckptkit.core.budgets import DEFAULT_BUDGETS, Budgets
from tests.support import ROOT

FIXTURES = ROOT / "fixtures"


def bare(body: bytes) -> Callable[[Path], Path]:
    """A bare pickle of protocol 2."""

    def make(folder: Path) -> Path:
        path = folder / "x.pkl"
        path.write_bytes(b"\x80\x02" + body + b".")
        return path

    return make


# The beginning of a state dict of one tensor, up to the length of its storage.
TENSOR = b"\x80\x02}X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\n"
TENSOR += b"X\x01\0\0\x000X\x03\0\0\0cpu"


def deflated(folder: Path) -> Path:
    """A checkpoint whose only storage is a megabyte of zeros, deflated to a kilobyte."""
    count = 1 << 18
    data = TENSOR
    data += (
        b"J"
        + struct.pack("<i", count)
        + b"tQK\0J"
        + struct.pack("<i", count)
        + b"\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtRs."
    )
    path = folder / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/data/0", bytes(4 * count), zipfile.ZIP_DEFLATED)
    return path


def fixture(name: str) -> Callable[[Path], Path]:
    return lambda folder: FIXTURES / name


# Budget → (a file that is fine by default, a limit that it passes, the code it is then refused with).
TRIPS: dict[str, tuple[Callable[[Path], Path], int, str]] = {
    "opcodes": (bare(b"}" + b"N0" * 100), 50, "over-budget"),
    "memo": (
        bare(b"}" + b"".join(b"r" + struct.pack("<I", 7 * i + 9) for i in range(100))),
        50,
        "over-budget",
    ),
    "nesting": (bare(b"}" + b"(" * 100 + b"1" * 100), 50, "over-budget"),
    "string_bytes": (bare(b"}X\1\0\0\0aX\x40\0\0\0" + b"x" * 64 + b"s"), 32, "over-budget"),
    "entries": (fixture("good/pytorch/zip-torch-1.6.pt"), 2, "over-budget"),
    "header_bytes": (fixture("good/safetensors/tied.safetensors"), 32, "header-too-large"),
    "index_bytes": (fixture("good/folders/sharded/model.safetensors.index.json"), 16, "over-budget"),
    "pickle_bytes": (fixture("good/pytorch/zip-torch-1.6.pt"), 32, "over-budget"),
    "inflate_ratio": (deflated, 10, "archive-bomb"),
    "inflate_bytes": (deflated, 1 << 16, "archive-bomb"),
}


def test_every_budget_has_a_file() -> None:
    assert {field.name for field in fields(Budgets)} == {*TRIPS, "integer_bytes", "unpacked_bytes"}


@pytest.mark.parametrize("name", TRIPS)
def test_a_file_trips_it(name: str, tmp_path: Path) -> None:
    from ckptkit.format import read

    make, limit, code = TRIPS[name]
    path = make(tmp_path)
    read(path, "all")
    with pytest.raises(ck.CkptError) as refusal:
        graph = read(path, "all", budgets=replace(DEFAULT_BUDGETS, **{name: limit}))
        [tensor.tobytes() for tensor in graph.values()]
    assert refusal.value.code == code


def test_an_integer_of_more_bytes_is_passed_over(tmp_path: Path) -> None:
    from ckptkit.format import read

    path = bare(b"}X\1\0\0\0a\x8a\x10" + b"\1" * 16 + b"s")(tmp_path)
    for limit, value in ((16, int.from_bytes(b"\1" * 16, "little")), (15, None)):
        graph = read(path, "all", budgets=replace(DEFAULT_BUDGETS, integer_bytes=limit))
        assert [(leaf.path, leaf.type, leaf.value) for leaf in graph.objects] == [("a", "int", value)]


def test_a_scan_unpacks_no_more_than_it_may(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", b" " * (1 << 20))
    assert ck.scan(path).verdict == "clean"
    found = ck.scan(path, budgets=replace(DEFAULT_BUDGETS, unpacked_bytes=1 << 16))
    assert found.verdict == "unread"
    assert [finding.code for finding in found.findings] == ["over-budget"]


MERSENNE = (1 << 61) - 1  # what Python's hash of integers is taken modulo


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(
            b"}" + b")" + b"\x85" * 2_000_000 + b"Ns", id="a tuple nested two million deep, as a key"
        ),
        pytest.param(b"}" + b")" + b"2\x86" * 200 + b"Ns", id="a tuple of itself twice, 200 times over"),
        pytest.param(
            b"}("
            + b"".join(b"\x8a\x0a" + (i * MERSENNE).to_bytes(10, "little") + b"N" for i in range(20_000))
            + b"u",
            id="20,000 integers of one hash",
        ),
        pytest.param(b"\x8f(" + b")" + b"2\x86" * 200 + b"\x90", id="the same in a set"),
        pytest.param(
            b"ccollections\nOrderedDict\n]](" + b")" + b"2\x86" * 200 + b"Nea\x85R", id="the same in pairs"
        ),
    ],
)
def test_hashing_is_no_attack(body: bytes, tmp_path: Path) -> None:
    path = bare(body)(tmp_path)
    started = time.process_time()
    code = ""
    try:
        ck.read(path, "all")
    except ck.CkptError as error:
        code = error.code
    assert code in ("", "over-budget")
    assert ck.scan(path).verdict in ("clean", "unread")
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"cos\nsystem\n" + b")R" * 20_000, id="calls of what calls return"),
        pytest.param(b"".join(b"ca%d\nb\n0" % i for i in range(30_000)) + b"N", id="30,000 names"),
        pytest.param(b"cos\nsystem\n" + b"]" * 50_000 + b"\x85R", id="a call with deep arguments"),
        pytest.param(b"cos\nsystem\n)" + b"2\x86" * 2_000 + b"R", id="a call with arguments that double"),
        pytest.param(b"N" + b".\x80\x02N" * 5_000, id="5,000 streams"),
        pytest.param(b"N." + b"\x80\x02" * 100_000, id="100,000 beginnings"),
        pytest.param(b"\x80\x02cos\nsystem\n(" + b"\x80\x02N." * 20_000 + b"tR", id="pickles in pickles"),
    ],
)
def test_a_scan_is_bounded(body: bytes, tmp_path: Path) -> None:
    path = bare(body)(tmp_path)
    started = time.process_time()
    ck.scan(path)
    assert time.process_time() - started < 2


@pytest.mark.parametrize("body", [b"]" * (60 << 20), b"N0" * (30 << 20)], ids=["objects", "steps"])
def test_a_small_archive_of_a_large_pickle_is_no_attack(body: bytes, tmp_path: Path) -> None:
    import gzip

    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + body)
        archive.writestr("archive/version", "3\n")
    packed = tmp_path / "x.pkl.gz"
    packed.write_bytes(gzip.compress(b"\x80\x02" + body))
    started = time.process_time()
    with pytest.raises(ck.CkptError) as refusal:
        ck.read(path, "all")
    assert refusal.value.code == "over-budget"
    assert ck.scan(path).verdict == "unread"
    assert ck.scan(packed).verdict == "unread"
    assert time.process_time() - started < 4


def test_logical_bytes_are_bounded(tmp_path: Path) -> None:
    """A tensor that says one number a trillion times is listed, and not written."""
    data = TENSOR
    data += (
        b"K\x01tQK\0\x8a\x06"
        + (1 << 40).to_bytes(6, "little")
        + b"\x85K\0\x85\x89ccollections\nOrderedDict\n)RtRs."
    )
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/data/0", bytes(4))
    assert ck.read(path)["w"].nbytes == 4 << 40
    with pytest.raises(ck.CkptError) as refusal:
        ck.convert(path, tmp_path / "y.safetensors", allow_loss=["sharing-lost"])
    assert refusal.value.code == "expands"


def test_the_budgets_are_documented() -> None:
    text = (ROOT / "docs" / "security.md").read_text("utf-8")
    assert [field.name for field in fields(Budgets) if f"`{field.name}`" not in text] == []

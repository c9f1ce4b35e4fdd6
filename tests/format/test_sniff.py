"""What a file is, by its content alone; what is no checkpoint is said by name, with the next step."""

import io
import struct
import tarfile
import time
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ckptkit as ck
from ckptkit.core.files import File
from ckptkit.format import registry, sniff

NAMES = {line.name for line in registry.FORMATS}


def judge(path: Path, data: bytes) -> str:
    """Name of the format, or code of the refusal."""
    path.write_bytes(data)
    try:
        return registry.identify(File.at(path)).name
    except ck.CkptError as error:
        return error.code


def zipped(*names: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in names:
            archive.writestr(zipfile.ZipInfo(name), b"x")
    return out.getvalue()


def tarred(*names: str, kind: int = tarfile.USTAR_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=kind) as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 1
            archive.addfile(info, io.BytesIO(b"x"))
    return out.getvalue()


def old_tar(name: str) -> bytes:
    """A header without a magic, as tar wrote before POSIX: only the checksum tells."""
    block = bytearray(tarred(name)[:512])
    block[257:265] = bytes(8)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + b"x".ljust(512, b"\0") + bytes(1024)


LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
GRAPH = b"\x3a\x04\x12\x02ab"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (zipped("archive/data.pkl", "archive/version"), "pytorch"),
        (zipped("archive/", "archive/version", "archive/data.pkl"), "pytorch"),
        (zipped("data.pkl"), "pytorch"),
        (zipped("m/code/x.py", "m/constants.pkl"), "pytorch"),
        (zipped("m/archive_format", "m/models/model.json"), "pytorch"),
        (zipped("m/data.pkl.txt"), "not-a-checkpoint"),
        (zipped("m/data.pkl", "m/version")[:60], "pytorch"),
        (LEGACY, "pytorch"),
        (b"\x80\x04N.", "pytorch"),
        (b"L119547037146038801333356L\n.", "pytorch"),
        (b"(dp0\nS'a'\np1\nI1\ns.", "pytorch"),
        (b"ccollections\nOrderedDict\n(tR.", "pytorch"),
        (b"\x80\x01N.", "format-unknown"),
        (tarred("sys_info", "pickle", "storages", "tensors"), "pytorch"),
        (tarred("./storages"), "pytorch"),
        (old_tar("storages"), "pytorch"),
        (old_tar("notes.txt"), "not-a-checkpoint"),
        (b"\x08\x08" + GRAPH, "onnx"),
        (b"\x08\x08\x12\x07pytorch" + GRAPH + b"\x42\x02\x10\x11", "onnx"),
        (GRAPH + b"\x08\x08", "onnx"),
        (b"\x08\x08\x3a\xff\xff\xff\x0f\x0a\x02\x0a\0", "onnx"),
        (b"\x08\x08\x12\x7fcut", "format-unknown"),
        (b": a text that begins with a colon\n", "not-a-checkpoint"),
        (struct.pack("<Q", 2) + b"{}", "safetensors"),
        (struct.pack("<Q", 2**39) + b"{", "safetensors"),
        (struct.pack("<Q", 2**40) + b"{}", "format-unknown"),
        (b'{"weight_map": {}}', "index"),
        (b'\xef\xbb\xbf{"weight_map": {}}', "index"),
    ],
)
def test_content_decides(tmp_path: Path, data: bytes, expected: str) -> None:
    assert judge(tmp_path / "model", data) == expected


def test_an_index_is_known_by_its_map_or_by_its_name(tmp_path: Path) -> None:
    text = b'{"metadata": {"x": "' + b"y" * 5000 + b'"}, "weight_map": {}}'
    assert judge(tmp_path / "model.safetensors.index.json", text) == "index"
    assert judge(tmp_path / "config.json", text) == "not-a-checkpoint"


@given(st.binary(max_size=300))
def test_every_content_is_a_format_or_refused_with_a_code(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    verdict = judge(path, data)
    assert verdict in NAMES or verdict.replace("-", "").isalpha()


STARTS = [
    zipped("a/b"),
    tarred("x"),
    LEGACY,
    b"\x08\x08" + GRAPH,
    b"\x93NUMPY",
    b"\x81\xa6params\xc7\x12\x01",
    b"<html>",
]


@given(st.sampled_from(STARTS), st.randoms(use_true_random=False))
def test_damaged_beginnings_never_raise_anything_else(
    tmp_path_factory: pytest.TempPathFactory, start: bytes, chance: object
) -> None:
    data = bytearray(start)
    for _ in range(3):
        data[chance.randrange(len(data))] = chance.randrange(256)  # type: ignore[attr-defined]
    judge(tmp_path_factory.getbasetemp() / "damaged", bytes(data))


def test_a_pointer_tells_size_and_checksum(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"ab" * 32 + b"\nsize 123456\n"
    )
    with pytest.raises(ck.CkptError) as refusal:
        ck.read(path)
    assert refusal.value.code == "lfs-pointer"
    assert "123,456 bytes" in str(refusal.value)
    assert "sha256:" + "ab" * 32 in str(refusal.value)
    assert refusal.value.hint == "git lfs pull fetches the file itself"


def test_text_of_the_file_is_shown_escaped(tmp_path: Path) -> None:
    path = tmp_path / "model"
    for data in (
        b"\x1b[31mred\x1b]0;title\x07",
        "Modell \u202eabc\n".encode(),
        b"<html><title>\x1b[2J</title>",
    ):
        path.write_bytes(data)
        with pytest.raises(ck.CkptError) as refusal:
            ck.read(path)
        assert refusal.value.message.isascii()
        assert refusal.value.message.isprintable()


def test_a_download_in_progress_is_hinted_at(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors.part"
    path.write_bytes(bytes(range(200, 256)) * 4)
    with pytest.raises(ck.CkptError) as refusal:
        ck.read(path)
    assert (refusal.value.code, refusal.value.hint) == ("format-unknown", "download it again")


def test_a_file_with_a_known_suffix_gets_its_readers_verdict(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(range(200, 256)) * 4)
    with pytest.raises(ck.CkptError) as refusal:
        ck.read(path)
    assert refusal.value.code == "header-too-large"


def test_recognising_reads_little(tmp_path: Path) -> None:
    """A sparse file of 1 TiB: only places that matter are looked at."""
    path = tmp_path / "huge"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 100) + b"{")
        file.truncate(1 << 40)
    with File.at(path).open() as reader:
        head = sniff.Head(reader)
        assert len(head.data) == 4096
        assert sniff.is_safetensors(head)
        assert not sniff.is_pytorch(head)
        assert not sniff.is_onnx(head)
    path.write_bytes(b"")
    with path.open("wb") as file:
        file.truncate(1 << 40)
    assert judge_existing(path) == "zero-filled"


def judge_existing(path: Path) -> str:
    with pytest.raises(ck.CkptError) as refusal:
        registry.identify(File.at(path))
    return refusal.value.code


@pytest.mark.parametrize(("last", "expected"), [("x", "not-a-checkpoint"), ("a/data.pkl", "pytorch")])
def test_a_zip_of_many_members_is_judged_quickly(tmp_path: Path, last: str, expected: str) -> None:
    names = [*(f"{n:08}" for n in range(300_000)), last]
    entries = b"".join(
        b"PK\x01\x02" + bytes(24) + struct.pack("<H", len(name)) + bytes(16) + name.encode() for name in names
    )
    start = b"PK\x03\x04" + bytes(22) + struct.pack("<HH", 8, 0) + b"00000000"
    record = b"PK\x05\x06" + bytes(6) + struct.pack("<HII", 65535, len(entries), len(start)) + bytes(2)
    begin = time.perf_counter()
    assert judge(tmp_path / "many.zip", start + entries + record) == expected
    assert time.perf_counter() - begin < 1

"""Files are checked when seen and again when opened, and names found in files stay in their folder."""

import os
from pathlib import Path

import pytest

from ckptkit.core.errors import CkptError
from ckptkit.core.files import File, beside, beside_file


@pytest.fixture
def ten(tmp_path: Path) -> Path:
    path = tmp_path / "ten"
    path.write_bytes(b"0123456789")
    return path


def test_reads_are_exact(ten: Path) -> None:
    with File.at(ten).open() as reader:
        assert reader.read(3, 4) == b"3456"
        assert reader.read(10, 0) == b""
        buffer = bytearray(3)
        reader.read_into(7, memoryview(buffer))
        assert buffer == b"789"


@pytest.mark.parametrize(("offset", "size"), [(8, 3), (10, 1), (99, 1)])
def test_reading_past_the_end_is_truncated(ten: Path, offset: int, size: int) -> None:
    with File.at(ten).open() as reader:
        with pytest.raises(CkptError) as caught:
            reader.read(offset, size)
        assert caught.value.code == "truncated"
        with pytest.raises(CkptError) as caught:
            reader.read_into(offset, memoryview(bytearray(size)))
        assert caught.value.code == "truncated"


def test_what_is_no_file_is_refused_without_blocking(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, code in [
        (tmp_path, "not-a-file"),
        (tmp_path / "pipe", "not-a-file"),
        (Path("/dev/zero"), "not-a-file"),
        (tmp_path / "absent", "not-found"),
        (tmp_path / "a\0b", "not-found"),
    ]:
        with pytest.raises(CkptError) as caught:
            File.at(path)
        assert caught.value.code == code


@pytest.mark.parametrize("change", ["grow", "replace", "remove"])
def test_a_file_that_changed_since_it_was_seen_is_not_opened(ten: Path, change: str) -> None:
    seen = File.at(ten)
    if change == "grow":
        ten.write_bytes(b"0123456789A")
    elif change == "replace":
        other = ten.with_name("other")
        other.write_bytes(b"0123456789")
        other.replace(ten)
    else:
        ten.unlink()
    with pytest.raises(CkptError) as caught:
        seen.open()
    assert caught.value.code == "changed-on-disk"


WINDOWS = [r"C:\x", "C:x", r"\\host\x", r"a\..\..\x"]


@pytest.mark.parametrize(
    "name", ["../x", "a/../../x", "/etc/passwd", "x\0y", "", "https://h/x", "/", *WINDOWS]
)
def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(CkptError) as caught:
        beside(tmp_path, name)
    assert caught.value.code == "outside-folder"


def test_links_must_stay_inside_too(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    (outside / "x").touch()
    (inside / "escape").symlink_to(outside / "x")
    (inside / "folder").symlink_to(outside)
    (inside / "fine").symlink_to("real")
    (inside / "real").touch()
    assert beside(inside, "fine") == inside / "fine"
    for name in ("escape", "folder/x"):
        with pytest.raises(CkptError) as caught:
            beside(inside, name)
        assert caught.value.code == "outside-folder"


def test_a_hub_cache_keeps_model_and_data_as_links_into_one_folder(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "main"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for blob, name in [("b1", "model.onnx"), ("b2", "model.onnx.data")]:
        (blobs / blob).touch()
        (snapshot / name).symlink_to(blobs / blob)
    assert beside_file(snapshot / "model.onnx", "model.onnx.data") == snapshot / "model.onnx.data"

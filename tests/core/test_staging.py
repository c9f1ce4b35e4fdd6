"""Outputs appear whole or not at all, and nothing existing is harmed by a failure."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ckptkit.core.errors import CkptError
from ckptkit.core.staging import Staging
from tests.support import ROOT


def listing(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def test_a_file_appears_at_the_end_only(tmp_path: Path) -> None:
    with Staging(tmp_path / "x.bin", folder=False, overwrite=False) as staging:
        (staging.path / "x.bin").write_bytes(b"new")
        assert not (tmp_path / "x.bin").exists()
        staging.publish(["x.bin"])
    assert listing(tmp_path) == ["x.bin"]
    assert (tmp_path / "x.bin").read_bytes() == b"new"


def test_companions_come_before_the_target(tmp_path: Path) -> None:
    with Staging(tmp_path / "m.onnx", folder=False, overwrite=False) as staging:
        for name in ("m.onnx.data", "m.onnx"):
            (staging.path / name).write_bytes(b"")
        (tmp_path / "m.onnx.data").write_bytes(b"somebody else's")
        with pytest.raises(CkptError) as caught:
            staging.publish(["m.onnx.data", "m.onnx"])
    assert caught.value.code == "exists"
    assert listing(tmp_path) == ["m.onnx.data"]
    assert (tmp_path / "m.onnx.data").read_bytes() == b"somebody else's"


@pytest.mark.parametrize("folder", [False, True])
def test_a_failure_leaves_nothing_and_keeps_the_old(tmp_path: Path, folder: bool) -> None:
    target = tmp_path / "out"
    if folder:
        target.mkdir()
        (target / "old").write_bytes(b"old")
    else:
        target.write_bytes(b"old")
    before = listing(tmp_path)

    def fail_halfway() -> None:
        with Staging(target, folder=folder, overwrite=True) as staging:
            (staging.path / "out").write_bytes(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_halfway()
    assert listing(tmp_path) == before


def test_a_folder_replaces_a_folder_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    with Staging(tmp_path / "out", folder=True, overwrite=True) as staging:
        (staging.path / "new").touch()
        staging.publish(["new"])
    assert listing(tmp_path) == ["out", "out/new"]


@pytest.mark.parametrize(
    ("make", "folder", "code"),
    [
        (lambda p: p.write_bytes(b""), False, "exists"),
        (lambda p: p.mkdir(), False, "exists"),
        (lambda p: p.write_bytes(b""), True, "exists"),
        (lambda p: (p.mkdir(), (p / "x").touch()), True, "exists"),
        (os.mkfifo, False, "not-a-file"),
        (lambda p: p.symlink_to("nowhere"), False, "exists"),
    ],
)
def test_what_exists_is_not_touched_without_consent(
    tmp_path: Path, make: object, folder: bool, code: str
) -> None:
    assert callable(make)
    make(tmp_path / "out")
    before = listing(tmp_path)
    with pytest.raises(CkptError) as caught:
        Staging(tmp_path / "out", folder=folder, overwrite=False)
    assert caught.value.code == code
    assert listing(tmp_path) == before


def test_the_first_of_two_writers_wins(tmp_path: Path) -> None:
    first = Staging(tmp_path / "x", folder=False, overwrite=False)
    second = Staging(tmp_path / "x", folder=False, overwrite=False)
    with first, second:
        (first.path / "x").write_bytes(b"first")
        (second.path / "x").write_bytes(b"second")
        first.publish(["x"])
        with pytest.raises(CkptError) as caught:
            second.publish(["x"])
    assert caught.value.code == "exists"
    assert (tmp_path / "x").read_bytes() == b"first"


def test_new_files_follow_the_umask(tmp_path: Path) -> None:
    from ckptkit.core.plan import OutputFile, Piece
    from ckptkit.core.stream import write_file

    old = os.umask(0o027)
    try:
        with Staging(tmp_path / "x", folder=False, overwrite=False) as staging:
            write_file(OutputFile("x", 1, (Piece(0, 1, b"1"),)), staging.path / "x")
            staging.publish(["x"])
    finally:
        os.umask(old)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640


def test_what_a_killed_process_leaves_is_recognisable(tmp_path: Path) -> None:
    script = (
        "import sys, time; from ckptkit.core.staging import Staging\n"
        "with Staging(sys.argv[1], folder=False, overwrite=True) as s:\n"
        "    (s.path / 'x').write_bytes(b'half'); print('ready', flush=True); time.sleep(60)"
    )
    (tmp_path / "x").write_bytes(b"old")
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "x")], stdout=subprocess.PIPE, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.wait()
    left = [name for name in os.listdir(tmp_path) if name != "x"]
    assert len(left) == 1
    assert left[0].startswith(".x.ckptkit-")
    assert left[0].endswith(".tmp")
    assert (tmp_path / "x").read_bytes() == b"old"

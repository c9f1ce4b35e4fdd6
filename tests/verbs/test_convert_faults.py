"""Whatever stops a conversion, the target is whole or absent and the old one untouched."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import ckptkit as ck
from ckptkit.core import files, stream
from tests.support import ROOT

# Converts with a progress callback that says where it is and waits for a line of input.
SCRIPT = """
import sys, ckptkit as ck
def pause(phase, done, total):
    print(phase, flush=True)
    sys.stdin.readline()
size = int(sys.argv[3]) or None
ck.convert(sys.argv[1], sys.argv[2], overwrite=True, verify=True, progress=pause, max_shard_size=size)
"""


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes pass through this process, where faults can be put in, as on systems that do not copy themselves."""
    monkeypatch.setattr(files, "_copy_file_range", None)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.safetensors"
    save_file({f"w{i}": np.full((1 << 18,), i, np.float32) for i in range(4)}, path)
    return path


def old(target: Path) -> list[tuple[str, bytes]]:
    """Put something at the target; returns how it looks."""
    if target.suffix:
        target.write_bytes(b"old")
    else:
        target.mkdir()
        (target / "model.safetensors").write_bytes(b"old")
    return look(target)


def look(target: Path) -> list[tuple[str, bytes]]:
    paths = [target] if target.is_file() else sorted(p for p in target.rglob("*") if p.is_file())
    return [(str(p), p.read_bytes()) for p in paths]


@pytest.mark.parametrize("name", ["out.safetensors", "out"])
@pytest.mark.parametrize("steps", [1, 3, 5])
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_a_process_stopped_at_any_stage(
    source: Path, tmp_path: Path, name: str, steps: int, sent: signal.Signals
) -> None:
    target = tmp_path / name
    before = old(target)
    shard = 0 if target.suffix else 1 << 20
    command = [sys.executable, "-c", SCRIPT, str(source), str(target), str(shard)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for _ in range(steps):
            assert process.stdout.readline().strip() in ("write", "verify")
            process.stdin.write("\n")
            process.stdin.flush()
        process.stdout.readline()
        process.send_signal(sent)
        process.stdin.close()
        process.wait(timeout=30)
    assert process.returncode != 0
    assert look(target) == before
    leftovers = [p.name for p in tmp_path.iterdir() if p not in (source, target)]
    assert all(p.startswith(f".{name}.ckptkit-") and p.endswith(".tmp") for p in leftovers)
    assert sent == signal.SIGKILL or not leftovers


# Runs the command; each write takes a second.
HANGING = """
import os, sys, time
from ckptkit.core import files, stream
from ckptkit.cli import main
files._copy_file_range = None
real = stream._pwrite
def slow(fd, data, offset):
    os.write(1, b"writing\\n")
    time.sleep(1)
    return real(fd, data, offset)
stream._pwrite = slow
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(("name", "output"), [("SIGTERM", "out.safetensors"), ("SIGHUP", "out/")])
def test_a_command_asked_to_end_leaves_nothing(source: Path, tmp_path: Path, name: str, output: str) -> None:
    sent = getattr(signal, name)
    with subprocess.Popen(
        [sys.executable, "-c", HANGING, "convert", "-q", source, tmp_path / output],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        process.send_signal(sent)
        _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (128 + sent, "")
    assert os.listdir(tmp_path) == ["source.safetensors"]


@pytest.mark.usefixtures("seen")
@pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, "no-space"), (errno.EIO, "io-error")])
def test_a_write_that_fails(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: str
) -> None:
    written = 0
    real = stream._pwrite

    def failing(fd: int, data: bytes, offset: int) -> int:
        nonlocal written
        written += len(data)
        if written > 2 << 20:
            raise OSError(number, os.strerror(number))
        return real(fd, data, offset)

    monkeypatch.setattr(stream, "_pwrite", failing)
    with pytest.raises(ck.CkptError) as caught:
        ck.convert(source, tmp_path / "out.safetensors")
    assert caught.value.code == code
    assert os.listdir(tmp_path) == ["source.safetensors"]


def test_a_limit_on_file_sizes(source: Path, tmp_path: Path) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))"
    convert = f"{limit}; import ckptkit.cli; sys.exit(ckptkit.cli.main(sys.argv[1:]))"
    result = subprocess.run(
        [sys.executable, "-c", f"import sys; {convert}", "convert", source, tmp_path / "out.safetensors"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert result.returncode == 2
    assert result.stderr.count("error[io-error]") == 1
    assert "Traceback" not in result.stderr
    assert os.listdir(tmp_path) == ["source.safetensors"]


def test_a_folder_that_cannot_be_written(source: Path, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        target = Path("/proc/out.safetensors")  # root writes everywhere else
    else:
        (tmp_path / "locked").mkdir(mode=0o555)
        target = tmp_path / "locked" / "out.safetensors"
    with pytest.raises(ck.CkptError) as caught:
        ck.convert(source, target)
    assert caught.value.code == "io-error"


def test_a_source_replaced_after_planning(source: Path, tmp_path: Path) -> None:
    plan = ck.plan(source, tmp_path / "out.safetensors")
    save_file({f"w{i}": np.full((1 << 18,), 9, np.float32) for i in range(4)}, tmp_path / "other")
    (tmp_path / "other").replace(source)
    with pytest.raises(ck.CkptError) as caught:
        ck.write(plan)
    assert caught.value.code == "changed-on-disk"
    assert os.listdir(tmp_path) == ["source.safetensors"]


@pytest.mark.usefixtures("seen")
def test_verify_catches_a_bit_flipped_while_writing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = stream._pwrite

    def flipping(fd: int, data: bytes, offset: int) -> int:
        broken = bytearray(data)
        if offset > 1 << 20:
            broken[-1] ^= 1
        return real(fd, broken, offset)

    monkeypatch.setattr(stream, "_pwrite", flipping)
    with pytest.raises(ck.CkptError) as caught:
        ck.convert(source, tmp_path / "out.safetensors", verify=True)
    assert caught.value.code == "verify-failed"
    assert os.listdir(tmp_path) == ["source.safetensors"]

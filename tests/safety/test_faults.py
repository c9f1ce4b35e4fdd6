"""Faults at every write: whichever one fails, the target is whole or absent and nothing old is lost.

`tests/verbs/test_convert_faults.py` has the stages of a conversion; here each single system call fails once, two
processes meet at one target, the source changes while it is copied, and the disk is really full.
"""

import errno
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import ckptkit as ck
from ckptkit.core import files, staging, stream
from tests.support import ROOT, environment

TENSORS = {f"w{i}": np.full((3000,), i, np.float32) for i in range(6)}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.safetensors"
    save_file(TENSORS, path)
    return path


# How a conversion is asked for: target, its options, what is there before.
KINDS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "a new file": ("out.safetensors", {}, False),
    "a file replaced": ("out.pt", {"overwrite": True}, True),
    "a new folder of shards": ("out", {"max_shard_size": 30_000}, False),
    "a folder replaced": ("out", {"max_shard_size": 30_000, "overwrite": True}, True),
    "verified": ("out.safetensors", {"verify": True, "overwrite": True}, True),
}


class Fault:
    """Lets the nth call of some functions fail with an error number."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.nth = -1
        self.calls = 0

    def wrap(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls - 1 == self.nth:
                raise OSError(self.number, os.strerror(self.number))
            return real(*args, **kwargs)

        return call


def look(target: Path) -> dict[str, bytes] | None:
    if not target.exists():
        return None
    if target.is_file():
        return {"": target.read_bytes()}
    return {
        p.relative_to(target).as_posix(): p.read_bytes() for p in sorted(target.rglob("*")) if p.is_file()
    }


def whole(target: Path) -> bool:
    """Whether the target is a whole new checkpoint."""
    graph = ck.read(target)
    return {name: graph[name].numpy().tolist() for name in graph} == {
        n: a.tolist() for n, a in TENSORS.items()
    }


def points(monkeypatch: pytest.MonkeyPatch, fault: Fault) -> None:
    """Every call through which a conversion touches the disk."""
    for module, names in {
        stream: ("_pwrite",),
        files: ("_pread", "_preadinto", "_copy_file_range"),
        staging.os: ("open", "mkdir", "rename", "replace", "link", "fsync", "ftruncate"),
    }.items():
        for name in names:
            if hasattr(module, name):
                monkeypatch.setattr(module, name, fault.wrap(getattr(module, name)))


def faults() -> Iterator[tuple[str, int]]:
    for kind in KINDS:
        for number in (errno.ENOSPC, errno.EIO, errno.EACCES):
            yield kind, number


@pytest.mark.parametrize(("kind", "number"), list(faults()))
def test_every_single_call_may_fail(source: Path, tmp_path: Path, kind: str, number: int) -> None:
    name, options, there = KINDS[kind]
    target = tmp_path / name
    injected = 0
    codes: set[str] = set()
    for nth in range(400):
        if target.is_dir():
            shutil.rmtree(target)
        target.unlink(missing_ok=True)
        if there:
            ck.convert(source, target, **{**options, "overwrite": False, "verify": False}, rules=["add:old."])
        before = look(target)
        fault = Fault(number)
        with pytest.MonkeyPatch.context() as patch:
            points(patch, fault)
            fault.nth = nth
            fault.calls = 0
            try:
                ck.convert(source, target, **options)
                failed = False
            except ck.CkptError as error:
                failed = True
                codes.add(error.code)
        done = fault.calls <= nth
        if failed:
            assert look(target) in (before, None) if not there else look(target) == before
            injected += 1
        else:
            assert whole(target)
        left = {p.name for p in tmp_path.iterdir()} - {source.name, name}
        assert all(p.startswith(f".{name}.ckptkit-") and p.endswith((".tmp", ".old")) for p in left), left
        for path in left:
            shutil.rmtree(tmp_path / path)
        if done:
            break
    else:
        pytest.fail("the conversion never ends")
    assert injected >= 10
    assert codes <= {"io-error", "no-space"}


def test_two_converters_onto_one_target(source: Path, tmp_path: Path) -> None:
    """Without leave to overwrite one of them wins; with it, the last. What is there is always whole."""
    other = tmp_path / "other.safetensors"
    save_file({name: value + 100 for name, value in TENSORS.items()}, other)
    target = tmp_path / "out.safetensors"
    for overwrite in (False, True):
        for _ in range(10):
            target.unlink(missing_ok=True)
            results: list[str] = []

            def work(path: Path, overwrite: bool = overwrite, results: list[str] = results) -> None:
                try:
                    ck.convert(path, target, overwrite=overwrite)
                    results.append("ok")
                except ck.CkptError as error:
                    results.append(error.code)

            threads = [threading.Thread(target=work, args=(path,)) for path in (source, other)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert sorted(results) == (["ok", "ok"] if overwrite else ["exists", "ok"]) or results == [
                "ok",
                "ok",
            ]
            values = {int(t.numpy()[0]) >= 100 for t in ck.read(target).values()}
            assert len(values) == 1
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_two_processes_onto_one_folder(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    command = [sys.executable, "-m", "ckptkit", "convert", str(source), str(target), "--to", "safetensors"]
    command += ["--max-shard-size", "30kB", "-y", "-q"]
    started = [
        subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True) for _ in range(3)
    ]
    said = [(process.communicate(timeout=60)[1], process.returncode) for process in started]
    assert all(code in (0, 2) and "Traceback" not in text for text, code in said), said
    assert 0 in [code for _, code in said], said
    assert whole(target)


def test_a_reader_never_sees_half_a_set(source: Path, tmp_path: Path) -> None:
    """While a folder is replaced again and again, it reads as one of the two, or is not there for a moment."""
    target = tmp_path / "out"
    ck.convert(source, target, max_shard_size=30_000)
    stop = threading.Event()
    seen: list[object] = []

    def watch() -> None:
        while not stop.is_set():
            try:
                seen.append(tuple(sorted(name.removeprefix("new.") for name in ck.read(target))))
            except ck.CkptError as error:
                seen.append(error.code)

    thread = threading.Thread(target=watch)
    thread.start()
    for i in range(20):
        ck.convert(source, target, max_shard_size=30_000, overwrite=True, rules=["add:new."] if i % 2 else [])
    stop.set()
    thread.join()
    all_there = tuple(sorted(TENSORS))
    assert all_there in seen
    # A reader that meets the change is told so: by name, or when it opens a file that is another one now.
    told = {
        "changed-on-disk",
        "io-error",
        "no-weights",
        "not-a-file",
        "not-found",
        "not-in-shard",
        "shard-missing",
    }
    assert {code for code in seen if code != all_there} <= told


@pytest.mark.parametrize("how", ["truncated", "replaced", "removed", "rewritten"])
def test_a_source_that_changes_during_the_copy(source: Path, tmp_path: Path, how: str) -> None:
    target = tmp_path / "out.safetensors"
    target.write_bytes(b"old")
    changed = False

    def change(phase: str, done: int, total: int) -> None:
        nonlocal changed
        if changed:
            return
        changed = True
        if how == "truncated":
            os.truncate(source, 100)
        elif how == "removed":
            source.unlink()
        elif how == "replaced":
            shutil.copy(source, tmp_path / "copy")
            (tmp_path / "copy").replace(source)
        else:
            with source.open("r+b") as file:
                file.seek(-8, os.SEEK_END)
                file.write(b"\xff" * 8)
            os.utime(source, ns=(1, 1))

    decided = ck.plan(source, target, dtype="float16")
    change("before", 0, 1)
    with pytest.raises(ck.CkptError) as refusal:
        ck.write(decided, overwrite=True, progress=change)
    assert refusal.value.code in ("changed-on-disk", "truncated", "not-found")
    assert target.read_bytes() == b"old"
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs a file system of its own")
def test_a_disk_that_is_really_full(source: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("may not mount")
    try:
        (disk / "out.safetensors").write_bytes(b"old")
        with pytest.raises(ck.CkptError) as refusal:
            ck.convert(source, disk / "out.safetensors", overwrite=True)
        assert refusal.value.code == "no-space"
        assert [p.name for p in disk.iterdir()] == ["out.safetensors"]
        assert (disk / "out.safetensors").read_bytes() == b"old"
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_the_parts_of_a_killed_process_are_recognised(source: Path, tmp_path: Path) -> None:
    """What a killed process leaves is named for it, and is no obstacle."""
    script = "import os, sys, ckptkit as ck; ck.convert(*sys.argv[1:], progress=lambda *a: os.kill(os.getpid(), 9))"
    target = tmp_path / "out.safetensors"
    subprocess.run([sys.executable, "-c", script, str(source), str(target)], cwd=ROOT, check=False)
    (left,) = [p for p in tmp_path.iterdir() if p != source]
    assert left.name.startswith(".out.safetensors.ckptkit-")
    ck.convert(source, target)
    assert whole(target)

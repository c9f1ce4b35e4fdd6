"""Faults at every write: whichever one fails, the target is whole or absent and nothing old is lost.

`tests/verbs/test_convert_faults.py` has the stages of a conversion; here each single system call fails once, two
processes meet at one target, the source changes while it is copied, and the disk is really full.
"""

import errno
import importlib.util
import io
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import ckptkit as ck
from ckptkit.core import files, leftovers, stream
from tests.support import ROOT, environment, run

TENSORS = {f"w{i}": np.full((3000,), i, np.float32) for i in range(6)}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.safetensors"
    save_file(TENSORS, path)
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """An ONNX model with weights of those names, in a file of their own."""
    onnx = pytest.importorskip("onnx", reason="needs the onnx extra")
    helper, path = onnx.helper, tmp_path / "base.onnx"
    weights = [onnx.numpy_helper.from_array(np.zeros_like(array), name) for name, array in TENSORS.items()]
    nodes = [helper.make_node("Add", [f"x{i}" if i else "x", f"w{i}"], [f"x{i + 1}"]) for i in range(6)]
    ends = [helper.make_tensor_value_info(name, 1, [3000]) for name in ("x", "x6")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])
    onnx.save(model, path, save_as_external_data=True, location="base.data", size_threshold=0)
    return path


# How a conversion is asked for: target, its options, what is there before. BASE and SIDE stand for paths.
KINDS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "a new file": ("out.safetensors", {}, False),
    "a file replaced": ("out.pt", {"overwrite": True}, True),
    "a new folder of shards": ("out", {"max_shard_size": 30_000}, False),
    "a folder replaced": ("out", {"max_shard_size": 30_000, "overwrite": True}, True),
    "verified": ("out.safetensors", {"verify": True, "overwrite": True}, True),
    "into a graph": ("out.onnx", {"into": "BASE", "external": "inline"}, False),
    "into a graph with its data beside it": ("out.onnx", {"into": "BASE", "external": "external"}, False),
    "with a receipt": ("out.safetensors", {"receipt": "SIDE", "overwrite": True}, True),
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


class Kill(Fault):
    """Lets the nth call be the last thing that the process does."""

    def wrap(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls - 1 == self.nth:
                os.kill(os.getpid(), signal.SIGKILL)
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


def clear(target: Path) -> None:
    """Take away a target and what stands beside it under its name."""
    for path in target.parent.glob(f"{target.name}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


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
        os: (
            "open",
            "mkdir",
            "rename",
            "replace",
            "link",
            "fsync",
            "ftruncate",
            "stat",
            "listdir",
            "scandir",
        ),
    }.items():
        for name in names:
            if hasattr(module, name):
                monkeypatch.setattr(module, name, fault.wrap(getattr(module, name)))


def faults() -> Iterator[tuple[str, int]]:
    for kind in KINDS:
        for number in (errno.ENOSPC, errno.EIO):
            yield kind, number


INJECTED: dict[tuple[str, int], int] = {}


@pytest.mark.parametrize(("kind", "number"), list(faults()))
def test_every_single_call_may_fail(source: Path, base: Path, tmp_path: Path, kind: str, number: int) -> None:
    target, options, there = pick(kind, source, base, tmp_path)
    name, side = target.name, tmp_path / "receipt.json"
    own = {path.name for path in (source, base, base.with_name("base.data"), target, side)}
    injected = 0
    codes: set[str] = set()
    for nth in range(600):
        clear(target)
        if there:
            old = {"max_shard_size": options.get("max_shard_size")}
            ck.convert(source, target, **old, rules=["add:old."])
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
            # A receipt is put in place behind what it is of, which then is whole.
            assert look(target) == before or (side in options.values() and whole(target))
            injected += 1
        else:
            assert whole(target)
        left = {p.name for p in tmp_path.iterdir()} - own - (set() if failed else {f"{name}.data"})
        assert all(p.startswith(".") and ".ckptkit-" in p and p.endswith((".tmp", ".old")) for p in left), (
            left
        )
        for path in left:
            shutil.rmtree(tmp_path / path)
        if done:
            break
    else:
        pytest.fail("the conversion never ends")
    INJECTED[kind, number] = injected
    assert injected >= 10
    # A file that cannot be looked at may as well not be there, or be another one now.
    missed = {"not-found", "changed-on-disk", "exists", "outside-folder", "not-a-file", "shard-missing"}
    assert codes <= {"io-error", "no-space", *missed}


def pick(kind: str, source: Path, base: Path, folder: Path) -> tuple[Path, dict[str, Any], bool]:
    """The target, the options and whether something is there before."""
    name, options, there = KINDS[kind]
    paths = {"BASE": base, "SIDE": folder / "receipt.json"}
    return folder / name, {key: paths.get(str(value), value) for key, value in options.items()}, there


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
@pytest.mark.parametrize("kind", KINDS)
def test_a_process_killed_at_any_call(
    source: Path, base: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The target is the old one or whole; a folder between two renames stands aside, and the next run clears up."""
    target, options, there = pick(kind, source, base, tmp_path)
    monkeypatch.setattr(leftovers, "_NEW", -1.0)  # a process that died just now left nothing brand-new
    fine = {**options, "overwrite": True}
    killed = 0
    for nth in range(0, 600, 2):
        clear(target)
        if there:
            ck.convert(source, target, max_shard_size=options.get("max_shard_size"), rules=["add:old."])
        before = look(target)
        child = os.fork()
        if not child:
            with pytest.MonkeyPatch.context() as patch:
                fault = Kill(0)
                points(patch, fault)
                fault.nth = nth
                fault.calls = 0
                try:
                    ck.convert(source, target, **options)
                finally:
                    os._exit(0)
        if os.waitpid(child, 0)[1] == 0:
            assert whole(target)
            break
        killed += 1
        after = look(target)
        if after is None and there:
            (aside,) = tmp_path.glob(f".{target.name}.ckptkit-*.old")
            assert look(aside) == before
        else:
            assert after == before or whole(target)
        ck.convert(source, target, **fine)
        assert whole(target)
        assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    else:
        pytest.fail("the conversion never ends")
    INJECTED[kind, signal.SIGKILL] = killed
    assert killed >= 10


def test_leftovers_of_the_living_are_left_alone(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a process that runs, of one elsewhere that holds its folder, brand-new ones, and strangers."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    old = 1_000_000_000
    names = {
        f".out.pt.ckptkit-{os.getpid()}-aaaaaa.tmp": old,  # alive
        f".out.pt.ckptkit-{dead.pid}-bbbbbb.tmp": old,  # held
        f".out.pt.ckptkit-{dead.pid}-cccccc.tmp": None,  # brand-new
        f".other.pt.ckptkit-{dead.pid}-dddddd.tmp": old,  # of another target
        f".out.pt.ckptkit-{dead.pid}-eeeeee.tmp": old,
    }
    for name, when in names.items():
        (tmp_path / name).mkdir()
        if when is not None:
            os.utime(tmp_path / name, (when, when))
    (tmp_path / f".out.pt.ckptkit-{dead.pid}-ffffff.tmp").write_text("a file")
    staged = (
        tmp_path / f".out.pt.ckptkit-{dead.pid}-111111"
    )  # as ONNX models are that refer to their old data
    staged.write_text("")
    (tmp_path / f".out.pt.ckptkit-{dead.pid}-000000.tmp").symlink_to(tmp_path)
    monkeypatch.setattr(leftovers, "_NEW", 0.2)
    time.sleep(0.3)
    (tmp_path / f".out.pt.ckptkit-{dead.pid}-cccccc.tmp").touch()
    held = leftovers.hold(tmp_path / f".out.pt.ckptkit-{dead.pid}-bbbbbb.tmp")
    try:
        ck.convert(source, tmp_path / "out.pt")
    finally:
        leftovers.release(held)
    gone = {name for name in names if not (tmp_path / name).exists()}
    assert gone == {f".out.pt.ckptkit-{dead.pid}-eeeeee.tmp"}
    assert len([p for p in tmp_path.iterdir() if p.name.endswith(".tmp")]) == 6
    assert not staged.exists()


def writers(base: Path, source: Path) -> dict[str, Callable[[Path], object]]:
    """What else writes files, by the name of what it writes."""
    from ckptkit.targets.contract import Contract
    from ckptkit.verbs.show import save_npy, show

    graph = ck.read(source)
    found: dict[str, Callable[[Path], object]] = {
        "w.npy": lambda path: save_npy(show(graph, "w0"), path),
        "c.yaml": lambda path: Contract.from_graph(graph).save(path),
    }
    if importlib.util.find_spec("onnxruntime") is not None:
        found["runs"] = lambda path: ck.prove(base, against=base, save=path, count=1)
    return found


@pytest.mark.parametrize("name", ["w.npy", "c.yaml", "runs"])
def test_other_writers_fail_as_well(source: Path, base: Path, tmp_path: Path, name: str) -> None:
    if name == "runs":
        pytest.importorskip("onnxruntime", reason="needs the onnx extra")
    target = tmp_path / name
    write = writers(base, source)[name]
    write(target)  # what is imported at need is imported
    wanted = look(target)
    injected = 0
    for nth in range(300):
        clear(target)
        fault = Fault(errno.EIO)
        with pytest.MonkeyPatch.context() as patch:
            points(patch, fault)
            patch.setattr("builtins.open", fault.wrap(open))
            patch.setattr("io.open", fault.wrap(io.open))
            fault.nth = nth
            fault.calls = 0
            try:
                write(target)
                failed = False
            except ck.CkptError:
                failed = True
        assert look(target) == (None if failed else wanted)
        injected += failed
        for left in tmp_path.glob(".*"):
            shutil.rmtree(left)
        if fault.calls <= nth:
            break
    else:
        pytest.fail("it never ends")
    INJECTED[name, errno.EIO] = injected
    assert injected >= 3


def test_the_faults_are_many() -> None:
    if len(INJECTED) < 3 * len(KINDS) + 3:
        pytest.skip("counts those of the tests above, when all of them have run")
    assert sum(INJECTED.values()) >= 1000


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


@pytest.mark.parametrize("name", ["out.safetensors", "out.pt", "out"])
def test_a_bit_flipped_later_is_found_by_the_receipt(source: Path, tmp_path: Path, name: str) -> None:
    target, receipt = tmp_path / name, tmp_path / "r.json"
    ck.convert(source, target, receipt=receipt, verify=True, max_shard_size=None if target.suffix else 30_000)
    assert run("digest", "--check", receipt).code == 0
    file = target if target.is_file() else target / "model-00002-of-00003.safetensors"
    data = bytearray(file.read_bytes())
    at = data.index(np.float32(2).tobytes() * 8) + 5 * 4
    data[at] ^= 1
    file.write_bytes(data)
    done = run("digest", "--check", receipt, "--json")
    assert done.code == 1
    wrong = [row["name"] for row in done.json["results"] if row["status"] != "ok"]
    assert wrong == [None, "w2"]


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

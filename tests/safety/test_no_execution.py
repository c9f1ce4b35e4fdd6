"""Every command over every fixture, watched by Python's audit hooks in a child with limits: nothing of a file runs.

The same run shows that no command ends in a traceback, prints a control character of a file, or takes more than a
second and 300 MB.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from tests.support import ROOT, environment

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")

FIXTURES = ROOT / "fixtures"
SECONDS = 1.0
MEGABYTES = 300
COMMANDS: dict[str, list[str]] = {
    "inspect": ["inspect", "@", "--objects"],
    "show": ["show", "@", "x"],
    "diff": ["diff", "@", str(FIXTURES / "good" / "pickles" / "views.pt"), "--json"],
    "digest": ["digest", "@", "--tensors"],
    "scan": ["scan", "@", "--crc"],
    "convert": ["convert", "@", "@out/x.safetensors", "--ties", "copy"],
    "repack": ["convert", "@", "@out/x.pt", "--section", "all"],
    "check": ["check", "@", "--values", "--format", "github"],
    "contract": ["contract", "@", "--files", "-o", "@out/c.yaml"],
}
# Commands that take the file in another role, or do more with it: each is given a share of the files, every one
# of them all of them with CKPTKIT_ALL=1.
GOOD = str(FIXTURES / "good" / "pickles" / "views.pt")
MODEL = str(FIXTURES / "good" / "onnx" / "raw.onnx")
ROLES: dict[str, list[str]] = {
    "stats": ["inspect", "@", "--stats", "--format", "markdown"],
    "fit": ["check", "@", "--target", GOOD, "--json"],
    "rules": [
        "convert",
        "@",
        "@out/x.safetensors",
        "--rules",
        "auto",
        "--verify",
        "--receipt",
        "@out/r.json",
    ],
    "rules check": ["rules", "check", "strip:module.", "--on", "@"],
    "cast": [
        "convert",
        "@",
        "@out/x",
        "--to",
        "safetensors",
        "--dtype",
        "float16",
        "--max-shard-size",
        "1kB",
    ],
    "graph": ["convert", "@", "@out/x.onnx", "--into", MODEL],
    "graph from": ["convert", GOOD, "@out/x.onnx", "--into", "@"],
    "a contract": ["check", GOOD, "--target", "@"],
    "rule file": ["convert", GOOD, "@out/x.pt", "--rules", "@"],
    "a listing": ["digest", "--check", "@"],
    "textconv": ["digest", "--textconv", "@"],
    "sarif": ["scan", "@", "--format", "sarif"],
    "moved": ["diff", GOOD, "@", "--rules", "strip:a."],
    "prove": ["prove", "@", "--against", "@", "--count", "1"],
    "inputs": ["prove", MODEL, "--against", MODEL, "--inputs", "@"],
    "export": [
        "export",
        "@",
        "@out/x.onnx",
        "--module",
        "collections:OrderedDict",
        "--input",
        "x:float32[1]",
    ],
}
SHARE = 1 if os.environ.get("CKPTKIT_ALL") else 8


def corpus() -> list[str]:
    """Every path that a row names, and every file in hostile/ beside them."""
    rows = [
        row
        for name in ("index.json", "scan.json")
        for row in json.loads((FIXTURES / name).read_text("utf-8"))
    ]
    paths = {str(FIXTURES / row["path"]) for row in rows}
    paths |= {str(path) for path in (FIXTURES / "hostile").rglob("*") if path.is_file()}
    return sorted(paths)


def watched(jobs: list[tuple[str, list[str], str]], out: Path, *roots: Path) -> list[list[Any]]:
    """Run the jobs in a child of limited memory and time."""
    limits = "import resource; resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30)); "
    limits += "resource.setrlimit(resource.RLIMIT_CPU, (300, 300)); "
    script = Path(__file__).with_name("watched.py")
    start = f"import runpy, sys; {limits}sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", start, str(script), str(out), *map(str, roots)],
        input=json.dumps(jobs),
        env=environment(),
        cwd=out.parent,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_corpus_is_large() -> None:
    rows = [
        row
        for name in ("index.json", "scan.json")
        for row in json.loads((FIXTURES / name).read_text("utf-8"))
    ]
    assert sum(row["path"].startswith("hostile/") for row in rows) >= 400


@pytest.mark.parametrize("command", [*COMMANDS, *ROLES])
def test_nothing_of_a_file_runs(command: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    paths = corpus()
    if command in ROLES:
        paths = paths[list(ROLES).index(command) % SHARE :: SHARE]
    if command in ("prove", "inputs"):
        pytest.importorskip("onnxruntime", reason="needs the onnx extra")
    if command == "prove":
        paths = [path for path in corpus() if path.endswith(".onnx")][::SHARE]
    if (
        command == "a contract"
    ):  # a folder's config.json is made a module of transformers, in a process of its own
        paths = [path for path in paths if os.path.isfile(path) and not path.endswith("config.json")]
    if command == "export":
        pytest.importorskip("torch", reason="needs the torch extra")
    line = (COMMANDS | ROLES)[command]
    limit = MEGABYTES + (700 if command in ("export", "prove", "inputs") else 0)  # for torch or onnxruntime
    jobs = [(path, line, path) for path in paths]
    results = watched(jobs, out, FIXTURES)
    assert len(results) == len(jobs)
    assert [(path, events) for path, _, _, _, _, events in results if events] == []
    assert [(path, said) for path, _, _, _, said, _ in results if said] == []
    assert [(path, code) for path, code, *_ in results if code not in (0, 1, 2)] == []
    assert [(path, seconds) for path, _, seconds, *_ in results if seconds > SECONDS] == []
    assert [(path, megabytes) for path, _, _, megabytes, *_ in results if megabytes > limit] == []


def test_every_command_is_watched() -> None:
    from ckptkit.cli import group

    names = set(group.list_commands(click.Context(group)))
    assert {line[0] for line in (COMMANDS | ROLES).values()} == names - {
        "architectures",
        "formats",
    }  # which take no file


@pytest.mark.parametrize(
    ("probe", "event"),
    [
        ("import colorsys", "import colorsys"),
        ("exec('1')", "exec"),
        ("compile('1', 'x', 'eval')", "compile"),
        ("import os; os.system('true')", "os.system"),
        ("import subprocess; subprocess.run(['true'])", "subprocess.Popen"),
        ("import socket; socket.socket()", "socket.__new__"),
        ("open(OUT + '/../x', 'w')", "open"),
        ("open('/etc/hostname')", "open"),
        ("import os; os.mkdir(OUT + '/../y')", "os.mkdir"),
        ("import os; os.rename(OUT + '/no', OUT + '/../z')", "os.rename"),
        ("import marshal; marshal.loads(b'N')", "marshal.loads"),
        ("import pickle; pickle.loads(b'cos\\nsystem\\n.')", "pickle.find_class"),
    ],
)
def test_the_watch_sees_each_kind(probe: str, event: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (result,) = watched([("probe", ["probe", probe], "")], out, FIXTURES)
    assert any(seen.startswith(event) for seen in result[5]), result[5]


def test_the_watch_sees(tmp_path: Path) -> None:
    """What must not happen is noticed when it happens."""
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "far.pt").write_bytes(b"x")
    (result,) = watched([("far", COMMANDS["inspect"], str(tmp_path / "far.pt"))], out, FIXTURES)
    assert any("for reading" in event for event in result[5])
    jobs = [
        ("away", ["convert", "@", str(tmp_path / "y.pt")], str(FIXTURES / "good" / "pickles" / "tensor.pt"))
    ]
    (result,) = watched(jobs, out, FIXTURES)
    assert any(event.startswith(("os.mkdir", "open")) for event in result[5])

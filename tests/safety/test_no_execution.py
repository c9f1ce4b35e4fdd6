"""Every command over every fixture, watched by Python's audit hooks in a child with limits: nothing of a file runs.

The same run shows that no command ends in a traceback, prints a control character of a file, or takes more than a
second and 300 MB.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

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
}


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


@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_of_a_file_runs(command: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    jobs = [(path, COMMANDS[command], path) for path in corpus()]
    results = watched(jobs, out, FIXTURES)
    assert len(results) == len(jobs)
    assert [(path, events) for path, _, _, _, _, events in results if events] == []
    assert [(path, said) for path, _, _, _, said, _ in results if said] == []
    assert [(path, code) for path, code, *_ in results if code not in (0, 1, 2)] == []
    assert [(path, seconds) for path, _, seconds, *_ in results if seconds > SECONDS] == []
    assert [(path, megabytes) for path, _, _, megabytes, *_ in results if megabytes > MEGABYTES] == []


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

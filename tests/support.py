"""Running the command line, in this process or in a fresh one."""

import contextlib
import io
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True)
class Result:
    """How a command ended and what it said."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """stdout parsed as one JSON document."""
        import json

        return json.loads(self.stdout)


def environment(**changes: str) -> dict[str, str]:
    """The environment for a fresh process: this checkout importable, plain output of 80 columns."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("CKPTKIT_", "PYTEST_"))}
    plain = {"PYTHONPATH": str(ROOT), "COLUMNS": "80", "NO_COLOR": "1", "TERM": "dumb", "PYTHONUTF8": "1"}
    return kept | plain | changes


def run(*argv: str | os.PathLike[str]) -> Result:
    """Run `ckptkit ARGV…` in this process. Quick; what it imports stays imported."""
    from ckptkit.cli import main

    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="") for _ in range(2))
    code: object
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([os.fspath(arg) for arg in argv])
        except SystemExit as stop:
            code = stop.code
    texts = []
    for stream in (out, err):
        stream.flush()
        texts.append(stream.buffer.getvalue().decode())
    return Result(code if isinstance(code, int) else int(bool(code)), *texts)


def run_process(
    *argv: str | os.PathLike[str],
    cwd: str | os.PathLike[str] | None = None,
    env: dict[str, str] | None = None,
    timeout: float = 120,
) -> Result:
    """Run `python -m ckptkit ARGV…` in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-m", "ckptkit", *(os.fspath(arg) for arg in argv)],
        cwd=cwd,
        env=environment(**(env or {})),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=timeout,
        check=False,
    )
    return Result(done.returncode, done.stdout, done.stderr)

"""Run by `test_memory.py` in a process of its own: for each case the peak of resident memory while converting.

python -m tests.rules.peaks FOLDER < CASES prints a JSON object: case → [bytes planned, bytes measured]. FOLDER holds
`in.safetensors`; each conversion runs in a fork, so that a peak is its own.
"""

import json
import os
import resource
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - loaded before anything is measured

import ckptkit as ck
from ckptkit.verbs.convert import plan, write


def peak() -> int:
    """The most bytes that this process had resident."""
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found if sys.platform == "darwin" else found * 1024


def measured(folder: Path, rules: list[Any]) -> tuple[int, int]:
    target = folder / f"{os.getpid()}.safetensors"
    names = [name for rule in rules for name in rule.pop("reads")]
    made = ck.Rules.of(rules)
    decided = plan(folder / "in.safetensors", target, rules=[made], include=names)
    before = peak()
    write(decided)
    found = peak() - before
    target.unlink()
    return decided.memory, found


def forked(run: Callable[[], tuple[int, int]]) -> tuple[int, int]:
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(writer, json.dumps(run()).encode())
            os._exit(0)
        except BaseException as error:  # told to the parent by the exit code
            print(error, file=sys.stderr, flush=True)
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    if status:
        sys.exit(f"a conversion failed: {status}")
    planned, found = json.loads(answer)
    return planned, found


if __name__ == "__main__":
    cases = json.load(sys.stdin)
    folder = Path(sys.argv[1])
    print(json.dumps({name: forked(partial(measured, folder, rules)) for name, rules in cases.items()}))

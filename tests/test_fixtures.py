"""Every row of fixtures/index.json: a good file gives what its row says, a hostile one is refused with its code.

All rows are also read once in one fresh process, which measures time and memory: one second and 300 MB at most.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import ckptkit as ck
from tests.support import ROOT, environment

FIXTURES = ROOT / "fixtures"
ROWS: list[dict[str, Any]] = json.loads((FIXTURES / "index.json").read_text("utf-8"))
GOOD = [row for row in ROWS if "error" not in row["expect"]]
HOSTILE = [row for row in ROWS if "error" in row["expect"]]

SECONDS = 1.0
MEGABYTES = 300


def described(graph: ck.TensorGraph) -> dict[str, str]:
    return {name: f"{t.dtype}[{','.join(map(str, t.shape))}]" for name, t in graph.items()}


# What a row may expect of a good file → how the graph tells it.
FACTS: Mapping[str, Callable[[ck.TensorGraph], object]] = {
    "container": lambda graph: graph.origin.container,
    "findings": lambda graph: [finding.code for finding in graph.findings],
    "format": lambda graph: graph.origin.format,
    "metadata": lambda graph: dict(graph.metadata),
    "objects": lambda graph: {leaf.path: leaf.type for leaf in graph.objects},
    "opaque": lambda graph: sorted({leaf.type for leaf in graph.objects if leaf.opaque}),
    "section": lambda graph: graph.origin.section,
    "sections": lambda graph: [section.name for section in graph.origin.sections],
    "tensors": described,
    "ties": lambda graph: graph.ties(),
}


def name_of(row: dict[str, Any]) -> str:
    return str(row["path"])


@pytest.mark.parametrize("row", GOOD, ids=name_of)
def test_a_good_file_gives_what_its_row_says(row: dict[str, Any]) -> None:
    graph = ck.read(FIXTURES / row["path"])
    found = {fact: FACTS[fact](graph) for fact in row["expect"]}
    assert found == row["expect"]
    for name, tensor in graph.items():
        if tensor.nbytes < 1 << 20:
            assert len(tensor.tobytes()) == tensor.nbytes, name


@pytest.mark.parametrize("row", HOSTILE, ids=name_of)
def test_a_hostile_file_is_refused_with_its_code(row: dict[str, Any]) -> None:
    with pytest.raises(ck.CkptError) as refusal:
        ck.read(FIXTURES / row["path"])
    assert refusal.value.code == row["expect"]["error"], refusal.value
    message = refusal.value.message
    assert message
    assert "\n" not in message
    assert len(message) < 500


def test_every_row_says_what_it_is_about() -> None:
    paths = [row["path"] for row in ROWS]
    assert paths == sorted(paths)
    assert len(set(paths)) == len(paths)
    for row in ROWS:
        assert row["about"], row["path"]
        assert row["path"].startswith("hostile/" if "error" in row["expect"] else "good/"), row["path"]
        assert "error" in row["expect"] or {"format", "tensors"} <= row["expect"].keys(), row["path"]


READ_ALL = """
import json, resource, sys, time
import ckptkit as ck

def peak():
    # getrusage also counts what the parent held when it forked; the kernel's own mark of this program does not
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

for path in json.load(sys.stdin):
    start = time.perf_counter()
    try:
        ck.read(path)
    except ck.CkptError:
        pass
    seconds = time.perf_counter() - start
    print(json.dumps([path, seconds, peak()]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no resource module")
def test_no_fixture_costs_more_than_a_second_or_300_megabytes() -> None:
    done = subprocess.run(
        [sys.executable, "-c", READ_ALL],
        input=json.dumps([str(FIXTURES / row["path"]) for row in ROWS]),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    costs = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(costs) == len(ROWS)
    unit = 1 if sys.platform == "darwin" else 1024
    slow = [(Path(path).name, seconds) for path, seconds, _ in costs if seconds > SECONDS]
    assert slow == []
    large = [(Path(path).name, rss * unit >> 20) for path, _, rss in costs if rss * unit > MEGABYTES << 20]
    assert large[:1] == []  # the peak of a process only grows: the first one is to blame

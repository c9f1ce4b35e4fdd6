"""Every case of fixtures/scan.json really runs under the loader that it names, and scan tells it."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import ckptkit as ck
from tests.support import ROOT, environment, run

FIXTURES = ROOT / "fixtures"
ROWS: list[dict[str, Any]] = json.loads((FIXTURES / "scan.json").read_text("utf-8"))
PACKAGES = {"torch": "torch", "package": "torch", "numpy": "numpy", "joblib": "joblib"}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["path"].rpartition("/")[2])
def test_what_a_loader_would_run_is_told(row: dict[str, Any]) -> None:
    found = ck.scan(FIXTURES / row["path"])
    assert found.verdict == ("unread" if row["kind"] == "unread" else "unsafe")
    assert row["kind"] in {finding.kind for finding in found.findings}
    told = {finding.name for finding in found.findings}
    assert told.issuperset(row["names"])


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
@pytest.mark.parametrize("loader", sorted({row["loader"] for row in ROWS} - {""}))
def test_the_cases_do_run(loader: str) -> None:
    """A case that no loader runs would prove nothing."""
    package = PACKAGES.get(loader)
    if package and importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}")
    jobs = [[str(FIXTURES / row["path"]), loader] for row in ROWS if row["loader"] == loader]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("loading.py"))],
        input=json.dumps(jobs),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == len(jobs)
    assert [(Path(path).name, said) for path, ran, said in results if not ran] == []


def test_the_same_from_the_command_line() -> None:
    for row in ROWS[::10]:
        result = run("scan", FIXTURES / row["path"], "--json")
        assert (result.code, result.json["verdict"]) == (
            (2, "unread") if row["kind"] == "unread" else (1, "unsafe")
        )

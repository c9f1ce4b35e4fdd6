"""Of every kind of damage: the cause that `check` states is the right one, and the command it suggests mends it."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.damage.kinds import KINDS, Kind
from tests.support import ROOT, Result

Run = Callable[..., Result]


@pytest.mark.parametrize("kind", KINDS, ids=[kind.name for kind in KINDS])
def test_the_cause_is_right_and_the_command_mends(
    kind: Kind, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = kind.make()
    options = [option for option in kind.options if option.startswith("-")]
    if "contract" in kind.options:
        assert run("contract", "base.safetensors", "-o", "base.ckpt.yaml", "-q").code == 0
        options += ["--target", "base.ckpt.yaml"]
    elif Path("base.safetensors").exists() and "health" not in kind.options:
        options += ["--target", "base.safetensors"]
    done = run("check", path, *options, "--json")
    said = done.json
    assert stated(said, kind), told(said)
    if not kind.mends.strip("-"):
        return
    fix = next((fix for fix in said["fixes"] if kind.mends in fix), "")
    assert fix, told(said)
    words = shlex.split(fix)
    assert words[0] == "ckptkit"
    mended = run(*words[1:])
    assert mended.code == 0, mended.stderr
    if words[1] == "convert":
        again = run("check", words[3], *options, "--json").json
        assert again["verdict"] == "fits", told(again)
        assert kind.code not in {finding["code"] for finding in again["findings"]}


def stated(said: dict[str, Any], kind: Kind) -> bool:
    """Whether the answer has the code, and the words are in what is said of it."""
    if said["schema"] == "ckptkit.error/1":
        return said["code"] == kind.code and kind.says in f"{said['message']} {said['where']}"
    findings = [finding for finding in said["findings"] if finding["code"] == kind.code]
    causes = [
        f"{finding['name']} {finding['found']} {finding['cause']} {said['summary']}" for finding in findings
    ]
    return bool(causes) and any(kind.says in cause for cause in causes)


def told(said: dict[str, Any]) -> str:
    if said["schema"] == "ckptkit.error/1":
        return f"{said['code']}: {said['message']} — {said['where']}"
    findings = [f"{f['code']} {f['name']}: {f['found']}; {f['cause']}" for f in said["findings"][:12]]
    return "\n".join([said["summary"], *findings, *said["fixes"]])


def test_most_that_can_be_mended_are() -> None:
    """The share that the documentation states; that each row is true is what the test above shows."""
    mendable = [kind for kind in KINDS if kind.mends]
    assert len(KINDS) >= 80
    assert sum(kind.mends != "-" for kind in mendable) >= 0.8 * len(mendable)


CODE = re.compile(r"`([a-z]+(?:-[a-z]+)+|truncated)`")


def made() -> set[str]:
    """Codes that a kind of damage or a committed example gives."""
    rows = json.loads((ROOT / "fixtures" / "index.json").read_text("utf-8"))
    fixtures = {
        code for row in rows for code in (row["expect"].get("error"), *row["expect"].get("findings", ()))
    }
    return {kind.code for kind in KINDS} | {code for code in fixtures if code}


def test_every_ill_that_the_documentation_names_is_made() -> None:
    page = (ROOT / "docs" / "check.md").read_text("utf-8").split("\n## Health\n")[1].split("\n## ")[0]
    codes = {code for line in page.splitlines() if line.startswith("|") for code in CODE.findall(line)}
    assert len(codes) > 20
    assert codes - made() == set()


def test_every_finding_of_health_is_made() -> None:
    source = (ROOT / "ckptkit" / "verbs" / "check" / "health.py").read_text("utf-8")
    source += (ROOT / "ckptkit" / "verbs" / "check" / "values.py").read_text("utf-8")
    codes = set(re.findall(r'Misfit\(\s*"([a-z-]+)"', source))
    assert {"scales-missing", "not-finite"} <= codes
    assert codes - made() == set()

"""Text that must not stand in any tracked file."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ROOT

NAME = "ckpt" + "kit"
# A stranger owns that name on the public index: installing by name would run their code. Installing from a
# path (`pip install .`) is fine, and so is a later command on the same line.
INSTALLER = r"(?:pip3?|pipx|uv|uvx|conda|poetry|easy_install)"
INSTALL = re.compile(
    rf"\b{INSTALLER}\s+(?:pip\s+)?(?:install|download|add|run)\s+(?:[^\s&|;`'\"]+\s+)*['\"]?{NAME}\b(?!/)"
    rf"|\buvx\s+['\"]?{NAME}\b"
)
# Between two string literals that Python joins.
SEAM = re.compile(r"(['\"])\s*\n\s*[frb]*\1")

FORBIDDEN = {
    "install by name": INSTALL,
    "machine path": re.compile(r"(?<![\w.])/(?:wo" + r"rk|ro" + r"ot|far" + r"m|opt|tmp/[a-z]+|home/\w+)/"),
    "folder outside the project": re.compile(r"\.\./sha" + "red"),
    "package index": re.compile(
        r"py" + r"pi\.(?:org|python)|python" + r"hosted\.org|download\.py" + r"torch\.org|simple in" + "dex"
    ),
}
# The one place that looks beside the project, and only if there is something.
EXEMPT = {(".ci/run", "folder outside the project")}
IGNORED = {".git", ".venv", "__pycache__", ".hypothesis", ".mypy_cache", ".pytest_cache", ".ruff_cache"}


def tracked(root: Path) -> Iterator[Path]:
    """The files git knows and new ones it does not ignore; outside a repository, all but caches and such."""
    if shutil.which("git") and (root / ".git").exists():
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=root, capture_output=True, check=True).stdout.decode()
        files = (root / name for name in listed.split("\0") if name)
    else:
        files = (path for path in root.rglob("*") if not IGNORED & set(path.relative_to(root).parts))
    yield from (path for path in sorted(files) if path.is_file())


def faults(name: str, text: str) -> list[str]:
    """What of the forbidden stands in a text."""
    rules = {what: rule for what, rule in FORBIDDEN.items() if (name, what) not in EXEMPT}
    joined = SEAM.sub("", text)
    return [f"{name}: {what}: {hit[0]}" for what, rule in rules.items() if (hit := rule.search(joined))]


def test_no_tracked_file_holds_what_must_not_be_said() -> None:
    found = []
    for path in tracked(ROOT):
        name = path.relative_to(ROOT).as_posix()
        found += faults(name, path.read_bytes().decode("latin-1"))
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        f"pip install {NAME}",
        f"pip3 install -U {NAME}",
        f"python -m pip install --upgrade '{NAME}[torch]'",
        f'pip install -q torch "{NAME}[all]==0.1"',
        f"uv pip install {NAME}",
        f"uv add {NAME}",
        f"uvx {NAME}",
        f"pipx install {NAME}",
        f'hint = (\n    "pip install "\n    "{NAME}"\n)',
        "open('/wo" + "rk/x')",
        "/ho" + "me/someone/x",
        "https://py" + "pi.org/x",
        "../sha" + "red/data",
    ],
)
def test_forbidden_text_is_found(text: str) -> None:
    assert faults("x", f"some words\n{text}\nmore")


@pytest.mark.parametrize(
    "text",
    [
        f"python3 -m venv .venv && .venv/bin/pip install -q . && .venv/bin/{NAME} inspect x",
        f"pip install -e . ; {NAME} --help",
        f"`pip install onnx onnxruntime` lets {NAME} read it",
        f"pip install -e '.[all,test]' in the clone of {NAME}",
    ],
)
def test_other_text_is_not(text: str) -> None:
    assert faults("x", text) == []

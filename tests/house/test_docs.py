"""The documentation tells the truth: its blocks run as shown, and what is generated is up to date."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.house.blocks import RUN, SHOWN, Block, Command, blocks, commands, matches
from tests.support import ROOT, environment

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# The commands that install, each named once in the README, are run by .ci/run on a clean copy.
BY_CI = {"README.md": {"install", "test"}}

# Runs the python blocks of one document, given as JSON on stdin, in one namespace; a block with `>>>` is
# compared with what it shows, any other must run. Exits with the first failure told on stderr.
DRIVER = """
import doctest, json, sys
names = {"__name__": "__main__"}
for line, source in json.load(sys.stdin):
    place = f"{sys.argv[1]}:{line}"
    if source.lstrip().startswith(">>>"):
        case = doctest.DocTestParser().get_doctest(source, names, place, sys.argv[1], line)
        flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        runner = doctest.DocTestRunner(optionflags=flags, verbose=False)
        if runner.run(case, out=sys.stderr.write, clear_globs=False).failed:
            sys.exit(1)
        names.update(case.globs)
    else:
        exec(compile("\\n" * line + source, sys.argv[1], "exec"), names)
"""


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.fixture
def playground(tmp_path: Path) -> Path:
    """A folder with a copy of fixtures/ and, for its PATH, `ckptkit` and `python` of this environment."""
    if (ROOT / "fixtures").is_dir():
        shutil.copytree(ROOT / "fixtures", tmp_path / "fixtures")
    bin_dir = tmp_path / ".bin"
    bin_dir.mkdir()
    for name, arguments in {"ckptkit": "-m ckptkit", "python": ""}.items():
        script = bin_dir / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n', "utf-8")
        script.chmod(0o755)
    return tmp_path


def shell(command: Command, folder: Path) -> str | None:
    """Run one command; None if all is as shown, else what is not."""
    path = f"{folder / '.bin'}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command.text],
        cwd=folder,
        env=environment(PATH=path),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=300,
        check=False,
    )
    if done.returncode != command.code:
        return f"exit code {done.returncode}, expected {command.code}; it printed:\n{done.stdout}"
    if not matches(command.output, done.stdout):
        return f"shown:\n{command.output}\n--- printed:\n{done.stdout}"
    return None


def python(found: list[Block], folder: Path, name: str) -> str | None:
    """Run the python blocks of a document in one process; None if all is as shown, else what is not."""
    source = json.dumps([(block.line, "\n".join(block.lines) + "\n") for block in found])
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, name],
        cwd=folder,
        env=environment(),
        input=source,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )
    return None if done.returncode == 0 else done.stdout + done.stderr


def faults(text: str, folder: Path, name: str) -> Iterator[str]:
    """What a document claims and is not so. Commands run in the order of the page, then the python blocks."""
    pythons = []
    for block in blocks(text):
        if block.language not in RUN + SHOWN:
            yield f"{name}:{block.line}: a block of {block.language!r}; use one of {', '.join(RUN + SHOWN)}"
        elif block.ci:
            continue
        elif block.language == "python":
            pythons.append(block)
        elif block.language == "console":
            for command in commands(block):
                if fault := shell(command, folder):
                    yield f"{name}:{command.line}: $ {command.text}\n{fault}"
    if pythons and (fault := python(pythons, folder, name)):
        yield fault


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_blocks_do_what_they_show(document: Path, playground: Path) -> None:
    assert list(faults(document.read_text("utf-8"), playground, named(document))) == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_only_the_installing_blocks_are_left_to_ci(document: Path) -> None:
    left = {block.ci for block in blocks(document.read_text("utf-8")) if block.ci}
    assert left == BY_CI.get(named(document), set())


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("```console\n$ echo one\ntwo\n```", "shown:\ntwo"),
        ("```console\n$ echo one\n```", "printed:\none"),
        ("```console\n$ false\n```", "exit code 1, expected 0"),
        ("<!-- exit 2 -->\n```console\n$ true\n```", "exit code 0, expected 2"),
        ("<!-- exit 2 -->\n```console\n$ false\n$ sh -c 'exit 2'\n```", "exit code 1, expected 0"),
        ("```sh\necho one\n```", "a block of 'sh'"),
        ("```\necho one\n```", "a block of ''"),
        ("```python\nx = 1\n```\n\n```python\nassert x == 2\n```", "AssertionError"),
        ("```python\n>>> 1 + 1\n3\n```", "Expected:\n    3"),
    ],
)
def test_a_false_block_is_found(text: str, fault: str, playground: Path) -> None:
    assert [found for found in faults(text, playground, "x.md") if fault in found]


@pytest.mark.parametrize(
    "text",
    [
        "```console\n$ echo one; echo two\n...\n```",
        "```console\n$ echo one; echo two; echo three\none\n...\nthree\n```",
        "```console\n$ echo one \\\n  two\none t...\n$ true\n```",
        "<!-- exit 2 -->\n```console\n$ sh -c 'exit 2'\n```",
        "```python\n>>> x = [1, 2]\n>>> x\n[1, ...]\n```\n\n```python\nassert x\n```",
        "```text\nanything\n```",
    ],
)
def test_a_true_block_is_not(text: str, playground: Path) -> None:
    assert list(faults(text, playground, "x.md")) == []


def test_generated_pages_are_up_to_date(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "docs.generate", str(tmp_path)],
        env=environment(),
        check=True,
        timeout=120,
    )
    pages = sorted(tmp_path.iterdir())
    homes = {
        "index.json": ROOT / "ckptkit" / "targets" / "catalogue",
        "presets.md": ROOT / "docs" / "rules",
        "schema.json": ROOT / "ckptkit" / "rules",
    }
    names = ["catalogue.md", "causes.md", "cli.md", "errors.md", "formats.md", *homes]
    assert [page.name for page in pages] == names
    for page in pages:
        committed = homes.get(page.name, ROOT / "docs") / page.name
        assert committed.exists(), "run: python -m docs.generate"
        assert committed.read_text("utf-8") == page.read_text("utf-8"), "run: python -m docs.generate"

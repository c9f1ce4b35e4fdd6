"""The committed fixtures are what their script makes, byte for byte, and the index knows each of them."""

import json
import subprocess
import sys
from pathlib import Path

from tests.support import ROOT, environment

FIXTURES = ROOT / "fixtures"


def contents(root: Path) -> dict[str, bytes]:
    """Relative path → bytes of every fixture and of the lists."""
    files = [root / "index.json", root / "scan.json"]
    files += (path for name in ("good", "hostile") for path in (root / name).rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(files)}


def test_making_them_again_gives_the_same_bytes(tmp_path: Path) -> None:
    # A fixed hash seed that is unlikely to be the one they were made with: no order may come from a set.
    subprocess.run(
        [sys.executable, str(FIXTURES / "make.py"), str(tmp_path)],
        cwd=tmp_path,
        env=environment(PYTHONHASHSEED="4321"),
        check=True,
        timeout=300,
    )
    committed, made = contents(FIXTURES), contents(tmp_path)
    assert committed.keys() == made.keys()
    changed = [name for name in committed if committed[name] != made[name]]
    assert changed == [], "run: python fixtures/make.py"


def test_the_index_names_every_fixture() -> None:
    """Every entry's path exists, and every file or folder directly in good/ or hostile/ has an entry."""
    lists = ("index.json", "scan.json")
    paths = [row["path"] for name in lists for row in json.loads((FIXTURES / name).read_text("utf-8"))]
    assert [path for path in paths if not (FIXTURES / path).exists()] == []
    named = {tuple(path.split("/")[:2]) for path in paths}
    there = {tuple(name.split("/")[:2]) for name in contents(FIXTURES)}
    assert there - named == {(name,) for name in lists}

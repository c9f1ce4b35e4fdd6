"""docs/security.md names tests that exist, and docs/references.md says what the libraries installed here do."""

import ast
import re

import pytest

from tests.support import ROOT

PAGE = (ROOT / "docs" / "security.md").read_text("utf-8")
NAMED = re.compile(r"`(test_\w+\.py)::(test_\w+)`")


def functions_of(file: str) -> set[str]:
    """The functions in all files of that name."""
    trees = [ast.parse(path.read_text("utf-8")) for path in (ROOT / "tests").rglob(file)]
    return {node.name for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_test_that_is_named_exists() -> None:
    named = NAMED.findall(PAGE)
    assert len(named) > 15
    assert [f"{file}::{name}" for file, name in named if name not in functions_of(file)] == []


def test_every_threat_has_a_test() -> None:
    table = PAGE.partition("| threat |")[2].partition("\n\n")[0]
    rows = [row for row in table.split("\n")[2:] if row]
    assert [row for row in rows if not NAMED.search(row)] == []


def test_the_reference_libraries_still_do_that() -> None:
    for package in ("torch", "safetensors", "huggingface_hub", "onnx"):
        pytest.importorskip(package, reason="needs all extras")
    from importlib.metadata import version

    from tests.safety.references import PACKAGES, page

    text = (ROOT / "docs" / "references.md").read_text("utf-8")
    for package in PACKAGES:
        if f"{package} {version(package).partition('+')[0]}" not in text:
            pytest.skip(f"the page was measured with another {package}")
    assert page() == text

"""What `import ckptkit` gives, and what it costs."""

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

import pytest

import ckptkit
from tests.support import ROOT, environment

# All that importing the package may load besides itself: what the lazy names need, and what typing imports.
ALLOWED = {"collections", "contextlib", "copyreg", "enum", "functools", "importlib", "itertools", "keyword"}
ALLOWED |= {"operator", "re", "reprlib", "types", "typing", "warnings"}


def test_the_names_are_those_listed() -> None:
    listed = (ROOT / "tests" / "house" / "public_api.txt").read_text("utf-8").split()
    assert sorted(ckptkit.__all__) == listed, "a change of the public API goes into CHANGELOG.md too"


def test_every_name_is_there_and_documented() -> None:
    for name in ckptkit.__all__:
        value = getattr(ckptkit, name)
        assert value.__doc__, name
        assert name in dir(ckptkit)


def test_names_stay_what_they_are_whatever_is_imported_first() -> None:
    """No submodule may hide a public name: `ckptkit.convert` is a function after any import."""
    folder = ROOT / "ckptkit"
    modules = {path.stem for path in folder.glob("*.py")} | {
        path.parent.name for path in folder.glob("*/*.py")
    }
    assert modules & set(ckptkit.__all__) == set()


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(ckptkit, "no_such_name")


def test_importing_it_imports_next_to_nothing() -> None:
    code = "import sys; before = set(sys.modules); import ckptkit; print(*set(sys.modules) - before)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True
    )
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert "ckptkit" in loaded
    assert {name.removeprefix("_") for name in loaded} - ALLOWED - {"ckptkit", "abc", "sre"} == set()


def test_the_version_is_stated_once() -> None:
    try:
        installed = version("ckptkit")
    except PackageNotFoundError:
        pytest.skip("runs from the checkout, not installed")
    assert installed == ckptkit.__version__

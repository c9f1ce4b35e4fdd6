"""Fixtures and settings shared by all tests."""

import os
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest

from tests import support

hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(scope="session")
def fixtures_dir() -> Path:
    """The committed example files: good/, hostile/, index.json."""
    return support.ROOT / "fixtures"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """A folder of real checkpoints, laid out as `<package>/…`; where there is none, its tests are skipped."""
    places = [os.environ.get("CKPTKIT_DATA"), support.ROOT.parent / "shared" / "data"]
    for place in places:
        if place and Path(place).is_dir():
            return Path(place)
    pytest.skip("needs real checkpoints: set CKPTKIT_DATA to their folder")


@pytest.fixture(scope="session")
def run() -> Callable[..., support.Result]:
    """`run("inspect", path)` runs the command in this process and returns code, stdout and stderr."""
    return support.run


@pytest.fixture(scope="session")
def run_process() -> Callable[..., support.Result]:
    """`run_process("inspect", path)` runs it in a fresh process."""
    return support.run_process

"""The sources are clean for ruff (lint and format) and for mypy --strict; pyproject.toml has the settings."""

import subprocess
import sys

import pytest

from tests.support import ROOT, environment

TOOLS = ("ruff check", "ruff format --check", "mypy")


@pytest.mark.parametrize("tool", TOOLS)
def test_the_sources_are_clean(tool: str) -> None:
    name, *arguments = tool.split()
    pytest.importorskip(name, reason="needs the test extra")
    done = subprocess.run(
        [sys.executable, "-m", name, *arguments],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_heavy_imports_at_module_level_are_refused() -> None:
    """The rule that keeps start-up short is switched on for the package."""
    packages = (
        "blake3",
        "ml_dtypes",
        "numpy",
        "onnx",
        "onnxruntime",
        "safetensors",
        "tabulate",
        "torch",
        "yaml",
    )
    source = "".join(f"import {name}\n" for name in (*packages, "transformers"))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "ruff",
            "check",
            "--select",
            "TID253",
            "--stdin-filename",
            "ckptkit/core/x.py",
            "-",
        ],
        cwd=ROOT,
        input=source,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.count("TID253") == len(packages) + 1, done.stdout + done.stderr

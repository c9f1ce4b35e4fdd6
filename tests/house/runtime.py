"""What must hold where ckptkit is installed with its runtime dependencies only; .ci/run runs it there.

`python -m tests.house.runtime` in the root of the project. Imports nothing but the standard library.
"""

import importlib.metadata
import os
import subprocess
import sys
import sysconfig
import tempfile
from importlib.util import find_spec
from pathlib import Path

from tests.house.samples import onnx, pytorch, safetensors

SITE = Path(sysconfig.get_path("purelib"))
COMMAND = Path(sysconfig.get_path("scripts")) / "ckptkit"
LIMIT = 150_000_000  # bytes installed, pip and setuptools apart
INSTALLERS = ("pip", "setuptools", "pkg_resources", "_distutils_hack", "distutils-precedence")
EXTRAS = ("torch", "onnx", "onnxruntime", "transformers")


def installed_size(site: Path) -> int:
    """Bytes of everything installed there, bytecode included, the installers excluded."""
    return sum(
        path.lstat().st_size
        for path in site.rglob("*")
        if path.is_file() and not path.relative_to(site).parts[0].startswith(INSTALLERS)
    )


def ckptkit(*arguments: str | Path) -> str:
    """stdout of the installed command, which must succeed."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [COMMAND, *arguments],
        cwd=tempfile.gettempdir(),
        env=environment,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    if done.returncode:
        sys.exit(
            f"ckptkit {' '.join(map(str, arguments))}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        )
    return done.stdout


def check(true: bool, promise: str) -> None:
    """Tell a promise that holds, stop at one that does not."""
    if not true:
        sys.exit(f"broken: {promise}")
    print(f"holds: {promise}")


def main() -> None:
    """Check the promises one by one."""
    extras = [name for name in EXTRAS if find_spec(name)]
    check(not extras, f"no extra is installed {extras or ''}")
    size = installed_size(SITE)
    check(size < LIMIT, f"{size / 1e6:.0f} MB installed, less than {LIMIT / 1e6:.0f}")
    check("Usage: ckptkit" in ckptkit("--help"), "--help")
    check(importlib.metadata.version("ckptkit") in ckptkit("--version"), "--version is that of the package")
    check("safetensors" in ckptkit("formats"), "formats")
    check((SITE / "ckptkit" / "py.typed").is_file(), "the package carries its types")

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for make, suffix in ((safetensors, ".safetensors"), (pytorch, ".pt"), (onnx, ".onnx")):
            source = make(folder / f"x{suffix}")
            check("fc.weight" in ckptkit("inspect", source, "--lines"), f"inspect {suffix}")
            check(bool(ckptkit("show", source, "fc.weight")), f"show {suffix}")
            for other in {".safetensors", ".pt", suffix}:
                target = folder / f"from{suffix}{other}"
                ckptkit("convert", source, target)
                check("fc.weight" in ckptkit("inspect", target, "--lines"), f"convert {suffix} to {other}")
                check("all equal" in ckptkit("diff", source, target), f"diff of {suffix} and {other}")
                digests = {ckptkit("digest", path).split()[0] for path in (source, target)}
                check(len(digests) == 1, f"one digest for {suffix} and {other}")
            half = folder / f"half{suffix}.safetensors"
            ckptkit("convert", source, half, "--dtype", "bfloat16")
            check("bfloat16" in ckptkit("inspect", half, "--lines"), f"convert {suffix} to bfloat16")


if __name__ == "__main__":
    main()

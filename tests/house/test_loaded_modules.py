"""What each command loads: a heavy package only where the work needs it."""

import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house import samples
from tests.support import environment

HEAVY = {
    "blake3",
    "ml_dtypes",
    "numpy",
    "onnx",
    "onnxruntime",
    "safetensors",
    "tabulate",
    "torch",
    "transformers",
    "yaml",
}

NONE: set[str] = set()
NUMBERS = {"numpy", "ml_dtypes"}
COMMANDS = (
    "inspect", "show", "diff", "digest", "check", "contract", "scan", "convert", "rules", "export", "prove",
    "architectures", "formats",
)  # fmt: skip
INPUTS = ("x.safetensors", "x.pt", "x.onnx")

# (command line, heavy packages it may load, exit code). x.* are the samples, changed.pt is x.pt
# with another bias, lfs.bin a git-LFS pointer.
CASES: list[tuple[str, set[str], int]] = [
    ("--help", NONE, 0),
    ("--version", NONE, 0),
    ("no-such-command", NONE, 2),
    ("formats", {"tabulate"}, 0),
    ("formats --json", NONE, 0),
    ("architectures bert", NONE, 0),
    ("check x.pt --target resnet18", {"yaml"}, 1),
    ("contract resnet18", {"yaml"}, 0),
    *((f"{command} --help", NONE, 0) for command in COMMANDS),
    *((f"inspect {path}", NONE, 0) for path in INPUTS),
    *((f"inspect {path} --json", NONE, 0) for path in INPUTS),
    *((f"inspect {path} --lines", NONE, 0) for path in INPUTS),
    *((f"inspect {path} --objects", NONE, 0) for path in INPUTS),
    ("inspect x.pt --sort size", NONE, 0),
    ("inspect x.pt x.safetensors x.onnx", NONE, 0),
    ("inspect lfs.bin", NONE, 2),
    ("inspect missing.pt", NONE, 2),
    *((f"inspect {path} --stats", NUMBERS, 0) for path in INPUTS),
    *((f"show {path} fc.weight", NUMBERS, 0) for path in INPUTS),
    ("diff x.pt x.safetensors", NONE, 0),
    ("diff x.pt x.onnx", NONE, 0),
    ("diff x.pt x.safetensors --json", NONE, 0),
    ("diff x.pt x.safetensors --format markdown", NONE, 0),
    ("diff x.pt changed.pt --no-values", NONE, 0),
    ("diff x.pt changed.pt", {"blake3", *NUMBERS}, 1),
    ("diff x.pt missing.pt", NONE, 2),
    *((f"digest {path}", {"blake3"}, 0) for path in INPUTS),
    ("digest x.pt --tensors", {"blake3"}, 0),
    ("digest x.pt --json", {"blake3"}, 0),
    ("digest --textconv x.onnx", {"blake3"}, 0),
    ("digest --textconv lfs.bin", NONE, 0),
    *((f"scan {path}", NONE, 0) for path in INPUTS),
    ("scan x.pt --json", NONE, 0),
    ("scan x.pt --format sarif", NONE, 0),
    ("scan lfs.bin", NONE, 2),
    *((f"check {path} --target x.ckpt.yaml", {"yaml"}, 0) for path in INPUTS),
    ("check x.safetensors", {"yaml"}, 0),
    ("check x.pt --target x.onnx", NONE, 0),
    ("check x.pt --target models:build", NONE, 2),
    ("check x.pt --target config.json", NONE, 2),
    ("check x.pt lfs.bin --format junit", {"yaml"}, 2),
    ("check x.safetensors x.pt --json", {"yaml"}, 0),
    ("check x.pt --values", {"yaml", *NUMBERS}, 0),
    ("contract x.pt", {"yaml"}, 0),
    ("contract x.pt -o new.ckpt.yaml --files", {"yaml"}, 0),
    ("contract x.pt --digest", {"yaml", "blake3"}, 0),
    ("convert x.pt y.safetensors", NONE, 0),
    ("convert x.pt y.pt", NONE, 0),
    ("convert x.safetensors y.pt", NONE, 0),
    ("convert x.safetensors y.safetensors", NONE, 0),
    ("convert x.pt y.safetensors --fit x.safetensors", {"yaml"}, 0),
    ("convert x.onnx y.safetensors", NONE, 0),
    ("convert x.onnx y.pt", NONE, 0),
    ("convert x.onnx y.onnx", NONE, 0),
    ("convert x.onnx y.onnx --dtype float16", NONE, 0),
    ("convert x.onnx y.onnx --onnx-data safetensors", NONE, 0),
    ("convert x.safetensors y.onnx --into x.onnx --onnx-data shared", NONE, 2),  # too small to be worth it
    ("convert x.pt y.safetensors --dry-run", NONE, 0),
    ("convert x.pt y.safetensors --include *.weight", NONE, 0),
    ("convert x.pt y.safetensors --rules strip:fc.", NONE, 0),
    ("convert x.pt y.safetensors --rules unwrap-data-parallel", {"yaml"}, 2),
    ("rules check strip:fc. --on x.pt", NONE, 0),
    ("rules check weight-norm-fold --on x.pt", {"yaml"}, 1),
    ("rules list", {"yaml"}, 0),
    ("convert x.pt out --to safetensors --max-shard-size 1MB", NONE, 0),
    ("convert x.pt y.safetensors --dtype bfloat16 --dry-run", NONE, 0),
    ("convert x.pt y.safetensors --dtype bfloat16", NUMBERS, 0),
    ("convert x.pt y.safetensors --receipt r.json", {"blake3"}, 0),
    ("convert x.pt y.safetensors --verify", {"safetensors", *NUMBERS}, 0),
    ("convert x.safetensors y.onnx", NONE, 2),
    ("convert x.pt y.onnx --into x.onnx", NONE, 0),
    ("convert x.pt y.onnx --into x.onnx --exported-from x.safetensors", NUMBERS, 0),
    ("export x.pt y.onnx", NONE, 2),
    ("export missing.pt y.onnx --module m:f --input x:float32[1,3]", NONE, 2),
    ("prove x.onnx", NONE, 2),
    ("prove x.onnx --against x.onnx --module m:f", NONE, 2),
    ("prove x.onnx --module m:f", NONE, 2),
    ("prove x.safetensors --against x.onnx", NONE, 2),
]

# Runs the command line in argv[2:] and writes what it loaded to the file argv[1].
DRIVER = """
import sys
before = set(sys.modules)
code = 0
try:
    from ckptkit.cli import main
    code = main(sys.argv[2:])
except SystemExit as stop:
    code = stop.code
loaded = sorted({name.partition(".")[0] for name in set(sys.modules) - before})
with open(sys.argv[1], "w", encoding="utf-8") as file:
    file.write("\\n".join(loaded))
sys.exit(code)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    samples.safetensors(tmp_path / "x.safetensors")
    samples.pytorch(tmp_path / "x.pt")
    samples.onnx(tmp_path / "x.onnx")
    weights = struct.pack("<2f", 0.25, -0.25)
    (tmp_path / "changed.pt").write_bytes((tmp_path / "x.pt").read_bytes().replace(weights, weights[::-1]))
    samples.lfs_pointer(tmp_path / "lfs.bin")
    contract = "ckptkit-contract: 1\ntensors:\n  fc.weight: float32 [2, 3]\n  fc.bias: float32 [2]\n"
    (tmp_path / "x.ckpt.yaml").write_text(contract, "utf-8")
    (tmp_path / "config.json").write_text('{"model_type": "no such"}', "utf-8")
    return tmp_path


@pytest.mark.parametrize(("line", "allowed", "code"), CASES, ids=[line for line, _, _ in CASES])
def test_only_what_the_command_needs_is_loaded(folder: Path, line: str, allowed: set[str], code: int) -> None:
    report = folder / "loaded.txt"
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(report), *line.split()],
        cwd=folder,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    loaded = set(report.read_text("utf-8").split())
    assert "ckptkit" in loaded
    assert loaded & HEAVY <= allowed, f"{line} loads {sorted(loaded & HEAVY - allowed)}"


def test_every_command_has_a_case() -> None:
    """A command added to the group is added to COMMANDS, and to the table above."""
    import click

    import ckptkit.cli

    (group,) = {
        id(value): value for value in vars(ckptkit.cli).values() if isinstance(value, click.Group)
    }.values()
    names = set(group.list_commands(click.Context(group)))
    assert names == set(COMMANDS)
    for name in names:
        assert any(line.startswith(f"{name} ") or line == name for line, _, _ in CASES), name

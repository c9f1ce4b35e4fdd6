"""The project's measured promises. See README.md beside this file."""

import argparse
import compileall
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from measure import Command, in_turn, report

PYTHON = sys.executable
CKPTKIT = [PYTHON, "-m", "ckptkit"]

MAKE_PLAIN = """
import sys, torch
path, megabytes, dtype = sys.argv[1], int(sys.argv[2]), getattr(torch, sys.argv[3])
width = (32 << 20) // 4096 // dtype.itemsize
torch.save({f"layers.{i}.weight": torch.randn(4096, width).to(dtype) for i in range(megabytes // 32)}, path)
"""
MAKE_MANY = """
import sys, torch
from safetensors.torch import save_file
base = {f"model.layers.{i // 20}.block_{i % 20}.weight": torch.full((2, 3), float(i)) for i in range(200_000)}
torch.save(base, sys.argv[1]); save_file(base, sys.argv[2])
"""
MAKE_ONNX = """
import sys, numpy as np, onnx
from onnx import helper, numpy_helper, TensorProto
count = int(sys.argv[2]) // 8
weights = [numpy_helper.from_array(np.random.rand(1024, 2048).astype(np.float32), f"w{i}") for i in range(count)]
nodes, last = [], "x"
for i in range(count):
    nodes.append(helper.make_node("Gemm", [last, f"w{i}"], [f"h{i}"], transB=i % 2)); last = f"h{i}"
value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
onnx.save(helper.make_model(helper.make_graph(nodes, "g", [value("x")], [value(last)], weights)), sys.argv[1])
"""
TORCH_LOAD = "import sys, torch; torch.load(sys.argv[1], mmap=True, weights_only=True)"
TORCH_CONVERT = """
import sys, torch
from safetensors.torch import save_file
state = torch.load(sys.argv[1], mmap=True, weights_only=True)
save_file({k: v.to(getattr(torch, sys.argv[3])) if len(sys.argv) > 3 else v for k, v in state.items()}, sys.argv[2])
"""
SAFE_LIST = """
import sys
from safetensors import safe_open
with safe_open(sys.argv[1], "np") as f:
    for name in f.keys():
        part = f.get_slice(name); print(name, part.get_dtype(), part.get_shape())
"""
ONNX_LOAD = "import sys, onnx; onnx.load(sys.argv[1])"


class Bench:
    def __init__(self, work: Path, size: int, rounds: int) -> None:
        self.work, self.size, self.rounds = work, size, rounds
        self.out = work / "out"
        self.warm: str | None = None  # a file of the size that runs write

    def path(self, name: str) -> str:
        return str(self.work / name)

    def make(self, script: str, *args: object) -> None:
        subprocess.run([PYTHON, "-c", script, *map(str, args)], check=True)

    def clear(self) -> None:
        """Empty the output, and give every run the same start: a virtual machine pays for memory it has given back."""
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir()
        if self.warm is not None:
            subprocess.run(["cp", self.warm, self.target("warm")], check=True)
            Path(self.target("warm")).unlink()

    def compare(self, title: str, goal: str, rounds: int | None = None, **commands: Command) -> None:
        named = {name.replace("_", " "): command for name, command in commands.items()}
        report(title, in_turn(named, rounds or self.rounds, self.clear), goal)

    def plain(self, dtype: str = "float16") -> str:
        path = self.path(f"plain-{dtype}.pt")
        if not Path(path).exists():
            self.make(MAKE_PLAIN, path, self.size, dtype)
        self.warm = path
        return path

    def target(self, name: str) -> str:
        return str(self.out / name)


def small(b: Bench) -> None:
    path = b.path("small.pt")
    b.make("import sys, torch; torch.save(torch.nn.Linear(8, 8).state_dict(), sys.argv[1])", path)
    b.compare(
        "inspect a small .pt",
        "≤ 2.5× importing click, ≤ 0.083× torch",
        rounds=15,
        ckptkit=[*CKPTKIT, "inspect", path],
        import_click=[PYTHON, "-c", "import click"],
        torch_load=[PYTHON, "-c", TORCH_LOAD, path],
    )


def many(b: Bench) -> None:
    pt, st = b.path("many.pt"), b.path("many.safetensors")
    b.make(MAKE_MANY, pt, st)
    b.compare(
        "inspect --json of 200,000 tensors, .pt",
        "≤ 0.25×",
        ckptkit=[*CKPTKIT, "inspect", "--json", pt],
        torch_load=[PYTHON, "-c", TORCH_LOAD, pt],
    )
    b.compare(
        "inspect --json of 200,000 tensors, .safetensors",
        "≤ 2×",
        ckptkit=[*CKPTKIT, "inspect", "--json", st],
        safe_open=[PYTHON, "-c", SAFE_LIST, st],
    )


def copy(b: Bench) -> None:
    pt = b.plain()
    st, cp = b.target("x.safetensors"), b.target("copy")
    b.compare(
        f"{b.size} MB float16 .pt to .safetensors",
        "≤ 1.3× cp, < 64 MB",
        ckptkit=[*CKPTKIT, "convert", "-q", pt, st],
        cp=["cp", pt, cp],
        torch_and_save_file=[PYTHON, "-c", TORCH_CONVERT, pt, st],
    )
    b.compare(
        "the same into shards of 500 MB",
        "≤ 1.3× cp, < 64 MB",
        ckptkit=[*CKPTKIT, "convert", "-q", "--max-shard-size", "500MB", pt, b.target("sharded/")],
        cp=["cp", pt, cp],
    )
    source = b.path("plain.safetensors")
    subprocess.run([*CKPTKIT, "convert", "-q", "-y", pt, source], check=True)
    b.compare(
        "and back to .pt",
        "≤ 1.3× cp, < 64 MB",
        ckptkit=[*CKPTKIT, "convert", "-q", source, b.target("x.pt")],
        cp=["cp", source, cp],
    )


def cast(b: Bench) -> None:
    pt = b.plain("float32")
    st = b.target("x.safetensors")
    b.compare(
        f"{b.size} MB float32 to bfloat16",
        "≤ 0.5× torch, < 160 MB",
        ckptkit=[*CKPTKIT, "convert", "-q", "--dtype", "bfloat16", pt, st],
        torch_and_save_file=[PYTHON, "-c", TORCH_CONVERT, pt, st, "bfloat16"],
    )


def onnx(b: Bench) -> None:
    path = b.path("inline.onnx")
    b.make(MAKE_ONNX, path, min(b.size, 800))
    b.compare(
        f"inspect of a {min(b.size, 800)} MB inline ONNX",
        "≤ 0.15×, < 64 MB",
        ckptkit=[*CKPTKIT, "inspect", path],
        onnx_load=[PYTHON, "-c", ONNX_LOAD, path],
    )
    b.compare(
        "the same to .safetensors",
        "≤ 1.5× cp",
        ckptkit=[*CKPTKIT, "convert", "-q", path, b.target("x.safetensors")],
        cp=["cp", path, b.target("copy")],
    )


MAKE_EXPORTED = """
import sys, torch, numpy as np, onnx
from onnx import helper, numpy_helper, TensorProto
folder, count, named = sys.argv[1], int(sys.argv[2]) // 8, sys.argv[3] == "named"
torch.manual_seed(0)
base = {f"layers.{i}.weight": torch.randn(1024, 2048) for i in range(count)}
torch.save(base, folder + "/base.pt")
torch.save({name: torch.randn(1024, 2048) for name in base}, folder + "/tuned.pt")
weights, nodes, last = [], [], "x"
for i, (name, tensor) in enumerate(base.items()):
    turned = not named and i % 2
    label = name if named else f"onnx::MatMul_{i + 100}"
    weights.append(numpy_helper.from_array((tensor.T if turned else tensor).numpy().copy(), label))
    nodes.append(helper.make_node("Gemm", [last, label], [f"h{i}"], transB=i % 2)); last = f"h{i}"
value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
graph = helper.make_graph(nodes, "g", [value("x")], [value(last)], weights)
onnx.save(helper.make_model(graph), folder + "/base.onnx")
"""


def transplant(b: Bench) -> None:
    size = min(b.size, 1024)
    for kind, goal in (("named", "≤ 2× cp, < 128 MB"), ("renamed", "content")):
        folder = Path(b.path(f"exported-{kind}"))
        folder.mkdir()
        b.make(MAKE_EXPORTED, folder, size, kind)
        b.warm = str(folder / "base.onnx")
        own = [*CKPTKIT, "convert", "-q", str(folder / "tuned.pt"), b.target("x.onnx"), "--into", b.warm]
        by_content = [*own, "--exported-from", str(folder / "base.pt")]
        cp = ["cp", b.warm, b.target("copy")]
        if kind == "named":
            b.compare(f"{size} MB into a graph, by name", goal, ckptkit=own, cp=cp)
        b.compare(
            f"the same by content, {kind}, half of them transposed"
            if kind == "renamed"
            else "the same, proved by content",
            "≤ 2× digest of both",
            ckptkit=by_content,
            cp=cp,
            digest=[*CKPTKIT, "digest", "-q", b.warm, str(folder / "base.pt")],
        )
        shutil.rmtree(folder)


MAKE_CHANGED = """
import sys
with open(sys.argv[1], "r+b") as f:
    f.seek(-(16 << 20), 2); byte = f.read(1)[0]; f.seek(-1, 1); f.write(bytes([byte ^ 1]))
"""
MAKE_RENAMED = """
import sys, torch
from safetensors.torch import save_file
torch.manual_seed(0)
base = {f"model.layers.{i // 10}.part_{i % 10}.weight": torch.randn(96, 64 + i % 7) for i in range(5000)}
turn = lambda i, t: t.T.contiguous() if i % 2 and sys.argv[3] == "half" else t
save_file(base, sys.argv[1])
save_file({f"other.{i:04}": turn(i, t) for i, t in enumerate(base.values())}, sys.argv[2])
"""


def diff(b: Bench) -> None:
    pt, a, c = b.plain(), b.path("diff-a.safetensors"), b.path("diff-b.safetensors")
    for target in (a, c):
        subprocess.run([*CKPTKIT, "convert", "-q", "-y", pt, target], check=True)
    for title, one in ((f"diff of 2 × {b.size} MB, equal", a), ("the same, .pt against .safetensors", pt)):
        b.compare(title, "≤ 1.3× cmp, < 100 MB", ckptkit=[*CKPTKIT, "diff", "-q", one, c], cmp=["cmp", a, c])
    b.make(MAKE_CHANGED, c)
    b.compare(
        "the same, one tensor changed",
        "≤ 1.5× (numpy is loaded, one tensor measured)",
        ckptkit=["sh", "-c", '"$@" || true', "sh", *CKPTKIT, "diff", "-q", a, c],
        equal=[*CKPTKIT, "diff", "-q", pt, a],
    )


def digest(b: Bench) -> None:
    pt = b.plain()
    b.compare(
        f"digest of {b.size} MB",
        "≤ 0.5× sha256sum",
        ckptkit=[*CKPTKIT, "digest", "-q", pt],
        sha256sum=["sha256sum", pt],
    )


def renames(b: Bench) -> None:
    for kind, goal in (("none", "≤ 4× digesting both"), ("half", "≤ 8× digesting both")):
        a, c = b.path(f"{kind}-a.safetensors"), b.path(f"{kind}-b.safetensors")
        b.make(MAKE_RENAMED, a, c, kind)
        b.compare(
            f"5,000 tensors, all renamed, {kind} transposed",
            goal,
            ckptkit=["sh", "-c", '"$@" || true', "sh", *CKPTKIT, "diff", "-q", a, c],
            digest=[*CKPTKIT, "digest", "-q", a, c],
        )


RULES = {
    "stack": '- {from: "layers.{i}.weight", to: w, stack: {over: i, dim: 0}}',
    "concat": '- {from: "layers.{i}.weight", to: w, concat: {over: i, dim: 0}}',
    "split": '- {from: "layers.{i}.weight", to: ["a.{i}", "b.{i}"], split: {dim: 0}}',
}


def rules(b: Bench) -> None:
    source, target = b.path("rules.safetensors"), b.target("x.safetensors")
    subprocess.run([*CKPTKIT, "convert", "-q", "-y", b.plain(), source], check=True)
    convert = [*CKPTKIT, "convert", "-q", source, target]
    b.compare(
        f"{b.size} MB, every tensor renamed",
        "≤ 1.05× a plain conversion",
        ckptkit=[*convert, "--rules", "add:model."],
        plain=convert,
        cp=["cp", source, b.target("copy")],
    )
    for name, rule in RULES.items():
        path = Path(b.path(f"{name}.yaml"))
        path.write_text(f"ckptkit-rules: 1\nrules:\n{rule}\n")
        b.compare(
            f"{b.size} MB, {name} along dimension 0",
            "≤ 1.5× cp",
            ckptkit=[*convert, "--rules", str(path)],
            cp=["cp", source, b.target("copy")],
        )


CASES: dict[str, Callable[[Bench], None]] = {
    "small": small,
    "many": many,
    "copy": copy,
    "cast": cast,
    "onnx": onnx,
    "diff": diff,
    "digest": digest,
    "renames": renames,
    "rules": rules,
    "transplant": transplant,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--size", type=int, default=2048, help="megabytes of the large files")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", type=Path, help="an existing folder to make the files in")
    options = parser.parse_args()
    compileall.compile_dir(Path(__file__).parents[1] / "ckptkit", quiet=1)  # as pip does when it installs
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        bench = Bench(Path(work), options.size, options.rounds)
        for case in options.cases or CASES:
            CASES[case](bench)


if __name__ == "__main__":
    main()

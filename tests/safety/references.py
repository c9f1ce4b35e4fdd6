"""How reference libraries behave on files that give wrong weights without an error, measured, beside ckptkit.

`python -m tests.safety.references` prints the table that docs/references.md holds; a test compares the two.
"""

import io
import json
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import ckptkit as ck
from tests.support import ROOT

HOSTILE = ROOT / "fixtures" / "hostile"
RIGHT, WRONG = "right", "**wrong numbers, no error**"


class Row(NamedTuple):
    """One case: what the file is, which library reads it and what comes of it, and what ckptkit does."""

    case: str
    library: str
    theirs: str
    ours: str


def theirs(load: Callable[[], object], expected: object) -> str:
    """What a library makes of a file."""
    try:
        found = load()
    except Exception:
        return "refused"
    return RIGHT if found == expected else WRONG


def ours(load: Callable[[], object], expected: object) -> str:
    try:
        found = load()
    except ck.CkptError as error:
        return f"refused: `{error.code}`"
    return RIGHT if found == expected else WRONG


def rezip(data: bytes, method: int, **changes: bytes) -> bytes:
    """A torch archive written again by Python's zipfile."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", method) as new:
        for name in old.namelist():
            base = name.partition("/")[2]
            new.writestr(name, changes.get(base, old.read(name)))
    return out.getvalue()


def saved(value: object) -> bytes:
    import torch

    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


def conjugates(folder: Path) -> Row:
    import safetensors.torch
    import torch

    value = torch.tensor([1 + 2j, 3 - 4j]).conj()
    source, theirs_path, ours_path = folder / "x.pt", folder / "t.safetensors", folder / "o.safetensors"
    source.write_bytes(saved({"x": value}))
    safetensors.torch.save_file({"x": value}, theirs_path)
    ck.convert(source, ours_path)
    expected = value.tolist()
    return Row(
        "a conjugated tensor, written as safetensors",
        "safetensors.torch.save_file",
        theirs(lambda: safetensors.torch.load_file(theirs_path)["x"].tolist(), expected),
        ours(lambda: safetensors.torch.load_file(ours_path)["x"].tolist(), expected),
    )


def deflated(folder: Path) -> Row:
    import torch

    path = folder / "x.pt"
    path.write_bytes(rezip(saved({"x": torch.zeros(64)}), zipfile.ZIP_DEFLATED))
    return Row(
        "a checkpoint packed again with compression",
        "torch.load(mmap=True)",
        theirs(lambda: torch.load(path, mmap=True, weights_only=True)["x"].tolist(), [0.0] * 64),
        ours(lambda: ck.read(path)["x"].numpy().tolist(), [0.0] * 64),
    )


def key_missing(folder: Path) -> Row:
    import torch

    path = HOSTILE / "pytorch" / "legacy-key-missing.pth"
    return Row(
        "a legacy file that lacks a storage",
        "torch.load",
        theirs(lambda: torch.load(path, weights_only=True) and None, "no weights"),
        ours(lambda: ck.read(path), "no weights"),
    )


def big_endian(folder: Path) -> Row:
    import torch

    path = folder / "x.pt"
    changes = {"byteorder": b"big", "data/0": (1).to_bytes(2, "big") * 4}
    path.write_bytes(rezip(saved({"x": torch.ones(4, dtype=torch.uint16)}), zipfile.ZIP_STORED, **changes))
    return Row(
        "uint16 weights of a big-endian machine",
        "torch.load",
        theirs(lambda: torch.load(path, weights_only=True)["x"].tolist(), [1] * 4),
        ours(lambda: ck.read(path)["x"].numpy().tolist(), [1] * 4),
    )


def duplicate(folder: Path) -> Row:
    import safetensors.numpy

    path = folder / "x.safetensors"
    entry = '"x":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}'
    raw = f"{{{entry},{entry}}}".encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(4))
    return Row(
        "one name twice in a safetensors header",
        "safetensors.numpy.load_file",
        theirs(lambda: bool(safetensors.numpy.load_file(path)), "refused").replace(
            "wrong numbers", "takes the last"
        ),
        ours(lambda: ck.read(path), "refused"),
    )


def external(folder: Path, length: str, what: str, **more: str) -> Row:
    import onnx
    from onnx import TensorProto, helper

    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": "w.bin", "offset": "0", "length": length, **more}.items():
        tensor.external_data.add(key=key, value=value)
    graph = helper.make_graph([helper.make_node("Identity", ["w"], ["y"])], "g", [], [], [tensor])
    path = folder / "x.onnx"
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]).SerializeToString()
    )
    (folder / "w.bin").write_bytes(bytes(64))

    def load() -> object:
        model = onnx.load(path)
        return len(model.graph.initializer[0].raw_data)

    return Row(
        what,
        "onnx.load",
        theirs(load, "refused").replace("wrong numbers", "takes it"),
        told(path) if more else ours(lambda: ck.convert(path, folder / "y.safetensors"), "refused"),
    )


def told(path: Path) -> str:
    """What `scan --crc` says."""
    codes = sorted({finding.code for finding in ck.scan(path, crc=True).findings})
    return "`scan --crc`: " + ", ".join(f"`{code}`" for code in codes)


def truncated(folder: Path) -> Row:
    import safetensors.numpy

    path = folder / "x.safetensors"
    header = json.dumps({"x": {"dtype": "U8", "shape": [64], "data_offsets": [0, 64]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(32))
    return Row(
        "a shard that is half there",
        "safetensors.numpy.load_file",
        theirs(lambda: safetensors.numpy.load_file(path) and None, "refused"),
        ours(lambda: ck.read(path), "refused"),
    )


def tied(folder: Path) -> Row:
    import safetensors.torch
    import torch

    one = torch.ones(2)
    source, target = folder / "x.pt", folder / "x.safetensors"
    source.write_bytes(saved({"a": one, "b": one}))

    def load() -> object:
        safetensors.torch.save_file({"a": one, "b": one}, folder / "t.safetensors")
        return sorted(safetensors.torch.load_file(folder / "t.safetensors"))

    def convert() -> object:
        ck.convert(source, target)
        return sorted(ck.read(target))

    return Row(
        "two names of one tensor, written as safetensors",
        "safetensors.torch.save_file",
        theirs(load, ["a", "b"]),
        ours(convert, ["a", "b"]),
    )


def overwrite(folder: Path) -> Row:
    import torch

    path = folder / "x.pt"
    path.write_bytes(saved({"x": torch.ones(1 << 18)}))

    def load() -> object:
        value = torch.load(path, mmap=True, weights_only=True)
        torch.save({"x": value["x"][:4].clone()}, path)
        return value["x"][-1].item()

    in_child = theirs_in_child(load)
    path.write_bytes(saved({"x": torch.ones(1 << 18)}))
    return Row(
        "writing onto the file that is being read",
        "torch.save over torch.load(mmap=True)",
        in_child,
        ours(lambda: ck.convert(path, path, overwrite=True), "refused"),
    )


def theirs_in_child(load: Callable[[], object]) -> str:
    """As `theirs`, where the process itself may die."""
    import faulthandler
    import os

    child = os.fork()
    if not child:
        faulthandler.disable()
        try:
            os._exit(0 if load() == 1.0 else 3)
        except BaseException:
            os._exit(4)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return "**the process is killed (SIGBUS)**"
    return {0: RIGHT, 3: WRONG, 4: "refused"}[os.waitstatus_to_exitcode(status)]


def rows() -> list[Row]:
    """Every case, measured now."""
    cases: list[Callable[[Path], Row]] = [
        conjugates, deflated, key_missing, big_endian, truncated, overwrite, duplicate, tied,
        lambda folder: external(folder, "32", "ONNX external data longer than the shape"),
        lambda folder: external(folder, "16", "ONNX external data with a wrong checksum", checksum="0" * 40),
    ]  # fmt: skip
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in cases:
            with tempfile.TemporaryDirectory() as folder:
                found.append(case(Path(folder)))
    return found


def page() -> str:
    """docs/references.md."""
    from importlib.metadata import version

    versions = ", ".join(
        f"{name} {version(name).partition('+')[0]}" for name in ("torch", "safetensors", "onnx")
    )
    lines = [
        "<!-- generated by `python -m tests.safety.references`; do not edit -->",
        "",
        "# Beside the reference libraries",
        "",
        "What happens to files that give wrong weights silently, or that no reader should take. Measured with",
        f"{versions}.",
        "",
        "| file | library | what it does | ckptkit |",
        "|---|---|---|---|",
        *(f"| {row.case} | `{row.library}` | {row.theirs} | {row.ours} |" for row in rows()),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(page(), end="")

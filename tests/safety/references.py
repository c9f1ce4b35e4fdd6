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
from typing import Any, NamedTuple

import ckptkit as ck
from tests.support import ROOT

HOSTILE = ROOT / "fixtures" / "hostile"
RIGHT, WRONG = "right", "**wrong numbers, no error**"


PACKAGES = ("torch", "safetensors", "huggingface_hub", "onnx")


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


def weights(path: Path, **arrays: Any) -> Path:
    """A safetensors file of torch tensors or numpy arrays."""
    import safetensors.torch
    import torch

    safetensors.torch.save_file({name: torch.as_tensor(array) for name, array in arrays.items()}, path)
    return path


def index(folder: Path, **places: str) -> Path:
    """An index of shards, for huggingface's loaders."""
    path = folder / "model.safetensors.index.json"
    names = {name.replace("__", "."): place for name, place in places.items()}
    path.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return path


def sharded(folder: Path, expected: object) -> str:
    """What torch's own module gets from huggingface_hub's loader of shards, not asked to be strict."""
    import torch
    from huggingface_hub import load_torch_model

    def load() -> object:
        module = torch.nn.Linear(2, 1, bias=False)
        torch.nn.init.constant_(module.weight, 7.0)
        load_torch_model(module, folder, strict=False)
        return module.weight.tolist()

    return theirs(load, expected)


def shard_missing(folder: Path) -> Row:
    import torch

    weights(folder / "a.safetensors", other=torch.zeros(1))
    index(folder, weight="b.safetensors", other="a.safetensors")
    return Row(
        "an index that names a shard which is not there",
        "huggingface_hub.load_torch_model(strict=False)",
        sharded(folder, "refused"),
        ours(lambda: ck.read(folder), "refused"),
    )


def overlaid(folder: Path) -> Row:
    import torch

    weights(folder / "a.safetensors", weight=torch.tensor([[1.0, 1.0]]))
    weights(folder / "b.safetensors", weight=torch.tensor([[2.0, 2.0]]), other=torch.zeros(1))
    index(folder, weight="a.safetensors", other="b.safetensors")

    def load() -> object:
        from safetensors.torch import load_file

        state: dict[str, Any] = {}
        for path in sorted(folder.glob("*.safetensors")):
            state |= load_file(path)
        return state["weight"].tolist()

    return Row(
        "one name in two shards, of which the index says one",
        "safetensors.torch.load_file, shard by shard",
        theirs(load, [[1.0, 1.0]]),
        ours(lambda: ck.read(folder)["weight"].numpy().tolist(), [[1.0, 1.0]]),
    )


def scale_lost(folder: Path) -> Row:
    import torch

    small = torch.tensor([[2.0, 4.0]]).to(torch.float8_e4m3fn)
    path = weights(folder / "x.safetensors", **{"l.weight": small, "l.weight_scale_inv": torch.tensor(0.01)})

    def load() -> object:
        from safetensors.torch import load_file

        module = torch.nn.Linear(2, 1, bias=False)
        state = {name.removeprefix("l."): value for name, value in load_file(path).items()}
        module.load_state_dict({"weight": state["weight"]}, strict=False)
        return [round(value, 3) for value in module.weight.flatten().tolist()]

    return Row(
        "float8 weights without the scale that stands beside them",
        "torch.nn.Module.load_state_dict",
        theirs(load, [0.02, 0.04]),
        ours(lambda: ck.convert(path, folder / "y.safetensors", include=["l.weight"]), "refused"),
    )


def scale_cast(folder: Path) -> Row:
    import torch

    scale = torch.tensor([127, 128], dtype=torch.uint8).view(torch.float8_e8m0fnu)
    path = weights(folder / "x.safetensors", **{"l.weight_scale": scale})
    target = folder / "y.safetensors"

    def convert() -> object:
        ck.convert(path, target, dtype="float32")
        return bytes(ck.read(target)["l.weight_scale"].tobytes())

    return Row(
        "e8m0 scales, cast as all the other tensors are",
        "torch.Tensor.to(torch.uint8)",
        theirs(lambda: bytes(scale.to(torch.uint8).tolist()), b"\x7f\x80"),
        ours(convert, b"\x7f\x80"),
    )


def renamed_twice(folder: Path) -> Row:
    import torch

    state = {"a.gamma": torch.ones(1), "a.weight": torch.zeros(1)}
    path = weights(folder / "x.safetensors", **state)

    def load() -> object:
        return len({name.replace("gamma", "weight"): value for name, value in state.items()})

    return Row(
        "a rename that gives two tensors one name",
        "str.replace over a state dict",
        theirs(load, 2).replace("wrong numbers", "the last stays"),
        ours(
            lambda: ck.convert(path, folder / "y.safetensors", rules=["{from: a.gamma, to: a.weight}"]),
            "refused",
        ),
    )


def renamed_within(folder: Path) -> Row:
    import torch

    path = weights(folder / "x.safetensors", **{"norm.gamma": torch.ones(1), "block.gamma_1": torch.zeros(1)})
    target, names = folder / "y.safetensors", ["block.gamma_1", "norm.weight"]

    def convert() -> object:
        ck.convert(path, target, rules=["{from: norm.gamma, to: norm.weight}"])
        return sorted(ck.read(target))

    return Row(
        "gamma renamed to weight, where another name has gamma within",
        "str.replace over a state dict",
        theirs(lambda: sorted(name.replace("gamma", "weight") for name in ck.read(path)), names).replace(
            "wrong numbers", "renames both"
        ),
        ours(convert, names),
    )


def two_paths(folder: Path) -> Row:
    import torch

    path = folder / "x.pt"
    torch.save({"a": {"b": torch.ones(1)}, "a.b": torch.zeros(1)}, path)

    def load() -> object:
        flat: dict[str, object] = {}
        for key, value in torch.load(path, weights_only=True).items():
            inner = value if isinstance(value, dict) else {"": value}
            flat |= {".".join(filter(None, (key, name))): one for name, one in inner.items()}
        return len(flat)

    return Row(
        "two paths that flatten to one name",
        "a loop over nested dicts",
        theirs(load, 2).replace("wrong numbers", "the last stays"),
        ours(lambda: ck.read(path, "all"), "refused"),
    )


def renamed_by_exporter(folder: Path) -> Row:
    """A transposed, renamed weight, as constant folding leaves it: told by name, both sides look new."""
    import torch

    value = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    a = weights(folder / "a.safetensors", **{"fc.weight": value})
    b = weights(folder / "b.safetensors", **{"onnx::MatMul_12": value.T.contiguous()})

    def names() -> object:
        from safetensors.torch import load_file

        return bool(load_file(a).keys() & load_file(b).keys())

    def moved() -> object:
        return [(m.sources, m.target) for m in ck.diff(a, b).renamed] == [(("fc.weight",), "onnx::MatMul_12")]

    return Row(
        "a Linear weight that an exporter transposed and renamed, compared",
        "names of safetensors.torch.load_file",
        theirs(names, True).replace("wrong numbers", "two unrelated tensors"),
        ours(moved, True),
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
        conjugates, deflated, key_missing, big_endian, truncated, shard_missing, overlaid, scale_lost, scale_cast,
        overwrite, renamed_twice, renamed_within, two_paths, duplicate, tied, renamed_by_exporter,
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

    versions = ", ".join(f"{name} {version(name).partition('+')[0]}" for name in PACKAGES)
    lines = [
        "<!-- generated by `python -m tests.safety.references`; do not edit -->",
        "",
        "# Beside the reference libraries",
        "",
        "What happens to files that give wrong weights silently, or that no reader should take. Measured with",
        f"{versions}.",
        "",
        "| file | read or made by | what comes of it | ckptkit |",
        "|---|---|---|---|",
        *(f"| {row.case} | `{row.library}` | {row.theirs} | {row.ours} |" for row in rows()),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(page(), end="")

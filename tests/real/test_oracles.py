"""Every tensor of every real checkpoint equals what torch, safetensors and onnx read, and survives conversion."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import ckptkit as ck
from tests.real import oracles
from tests.support import ROOT

pytest.importorskip("torch", reason="needs the torch extra")
pytest.importorskip("onnx", reason="needs the onnx extra")

Oracle = Callable[[Path], dict[str, oracles.Content]]

BY_SUFFIX: dict[str, Oracle] = {
    ".pt": oracles.pytorch,
    ".pth": oracles.pytorch,
    ".th": oracles.pytorch,
    ".jit": oracles.torchscript,
    ".safetensors": oracles.safetensors,
    ".onnx": oracles.onnx_initializers,
}


def checkpoints() -> Iterator[tuple[Path, str]]:
    """(file, name for the test) of every real checkpoint that is at hand, each once."""
    seen = set()
    for place in (os.environ.get("CKPTKIT_DATA"), ROOT.parent / "shared" / "data"):
        if place and Path(place).is_dir():
            for path in sorted(Path(place).rglob("*")):
                name = str(path.relative_to(place))
                if path.suffix in BY_SUFFIX and path.is_file() and name not in seen:
                    seen.add(name)
                    yield path, name


FILES = list(checkpoints())
if not FILES:
    pytest.skip(
        "needs real checkpoints: tests/real/fetch.py OUT, then CKPTKIT_DATA=OUT", allow_module_level=True
    )


def content(graph: ck.TensorGraph) -> dict[str, oracles.Content]:
    return {name: (t.dtype.name, t.shape, t.tobytes()) for name, t in graph.items()}


@pytest.mark.parametrize("path", [p for p, _ in FILES], ids=[n for _, n in FILES])
def test_every_tensor_and_the_way_there_and_back(path: Path, tmp_path: Path) -> None:
    expected = BY_SUFFIX[path.suffix](path)
    # A trainer checkpoint whole; of TorchScript the state dict, beside which stand constants and plain attributes.
    section = None if path.suffix == ".jit" else "all"
    graph = ck.read(path, section)
    found = content(graph)
    if path.suffix == ".onnx":  # subgraphs and attributes hold more than the top level
        assert {name: found[name] for name in expected} == expected
    else:
        assert found == expected

    strings = [name for name, tensor in graph.items() if tensor.dtype.name == "string"]
    numbers = {name: values for name, values in found.items() if name not in strings}
    if not numbers:
        return
    there, back = tmp_path / "there.safetensors", tmp_path / "back.pt"
    ck.convert(path, there, section=section, exclude=strings)
    assert content(ck.read(there)) == numbers
    assert {n: v for n, v in oracles.safetensors(there).items() if n in numbers} == {
        n: v for n, v in numbers.items() if n not in ck.read(there).ties()
    }
    ck.convert(there, back)
    assert content(ck.read(back)) == numbers
    assert oracles.pytorch(back) == numbers
    if path.suffix == ".onnx":
        ck.convert(path, tmp_path / "again.onnx", external="external")
        again = oracles.onnx_initializers(tmp_path / "again.onnx")
        assert again == expected

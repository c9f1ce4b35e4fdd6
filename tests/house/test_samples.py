"""The handmade samples are real checkpoints: the reference libraries read in them what was put in."""

import struct
from pathlib import Path

import pytest

from tests.house import samples


def expected() -> dict[str, tuple[tuple[int, ...], tuple[float, ...]]]:
    return {
        name: (shape, struct.unpack(f"<{len(data) // 4}f", data))
        for name, (shape, data) in samples.TENSORS.items()
    }


def test_safetensors(tmp_path: Path) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    got = numpy.load_file(samples.safetensors(tmp_path / "x.safetensors"))
    assert {name: (array.shape, tuple(array.ravel())) for name, array in got.items()} == expected()


def test_pytorch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs the torch extra")
    got = torch.load(samples.pytorch(tmp_path / "x.pt"), weights_only=True)
    assert {
        name: (tuple(value.shape), tuple(value.ravel().tolist())) for name, value in got.items()
    } == expected()


def test_onnx(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="needs the onnx extra")
    model = onnx.load(samples.onnx(tmp_path / "x.onnx"))
    onnx.checker.check_model(model, full_check=True)
    got = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert {name: (array.shape, tuple(array.ravel())) for name, array in got.items()} == expected()

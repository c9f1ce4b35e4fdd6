"""Pickled quantised modules: what is read is what torch's own state dict of them reads as."""

from pathlib import Path
from typing import Any

import pytest

import ckptkit as ck
from tests.format.pytorch.unpickling import same

torch = pytest.importorskip("torch", reason="needs the torch extra")
nn = torch.nn

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def engine() -> None:
    torch.backends.quantized.engine = torch.backends.quantized.supported_engines[-1]


class Net(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.quant = torch.ao.quantization.QuantStub()
        self.conv = nn.Conv2d(1, 2, 1)
        self.bare = nn.Conv2d(2, 1, 1, bias=False)
        self.fused = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.fc = nn.Linear(4, 3, bias=False)
        self.add = torch.ao.nn.quantized.FloatFunctional()

    def forward(self, x: "torch.Tensor") -> "torch.Tensor":
        y = self.fused(self.bare(self.conv(self.quant(x))))
        return self.fc(self.add.add(y, y))


def static() -> Any:
    quantization = torch.ao.quantization
    net = Net().eval()
    net.qconfig = quantization.get_default_qconfig("fbgemm")
    net = quantization.fuse_modules(net, [["fused.0", "fused.1"]])
    quantization.prepare(net, inplace=True)
    net(torch.randn(2, 1, 4, 4))
    return quantization.convert(net)


def dynamic(*layers: Any, dtype: Any = None) -> Any:
    kinds = {nn.Linear, nn.LSTM, nn.GRUCell}
    return torch.ao.quantization.quantize_dynamic(nn.Sequential(*layers), kinds, dtype=dtype or torch.qint8)


MODULES = {
    "static": static,
    "dynamic": lambda: dynamic(nn.Linear(4, 3), nn.ReLU(), nn.LayerNorm(3), nn.Linear(3, 2, bias=False)),
    "half": lambda: dynamic(nn.Linear(4, 3), dtype=torch.float16),
    "embedding": lambda: nn.Sequential(torch.ao.nn.quantized.Embedding(6, 8)),
}


@pytest.mark.parametrize("name", MODULES)
def test_a_quantised_module_is_its_state_dict(tmp_path: Path, name: str) -> None:
    module = MODULES[name]()
    torch.save(module, tmp_path / "module.pt")
    torch.save(module.state_dict(), tmp_path / "state.pt")
    found, expected = ck.read(tmp_path / "module.pt"), ck.read(tmp_path / "state.pt")
    assert list(found) == list(expected)
    for key, tensor in found.items():
        assert (tensor.dtype, tensor.shape) == (expected[key].dtype, expected[key].shape), key
        assert tensor.tobytes() == expected[key].tobytes(), key
        assert not tensor.loss
    for key, value in module.state_dict().items():
        if isinstance(value, torch.Tensor):
            same(found[key], value)


@pytest.mark.parametrize("layer", [nn.LSTM(4, 3), nn.GRUCell(4, 3)], ids=["lstm", "cell"])
def test_what_only_code_could_unpack_is_kept_in_parts_and_that_is_a_loss(tmp_path: Path, layer: Any) -> None:
    module = dynamic(layer, nn.LayerNorm(3))
    torch.save(module, tmp_path / "module.pt")
    torch.save(module.state_dict(), tmp_path / "state.pt")
    found, expected = ck.read(tmp_path / "module.pt"), ck.read(tmp_path / "state.pt")
    packed = {key for key, tensor in found.items() if tensor.loss == "packed-as-parts"}
    assert set(found) - packed == {"1.weight", "1.bias"}
    assert sum(found[key].dtype.name == "qint8" for key in packed) == 2
    assert packed <= set(expected)
    with pytest.raises(ck.CkptError) as caught:
        ck.convert(tmp_path / "module.pt", tmp_path / "out.pt")
    assert caught.value.code == "packed-as-parts"

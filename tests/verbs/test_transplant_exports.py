"""Transplants into what torch's exporters make of well-known architectures, judged by fresh exports."""

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ckptkit as ck
from ckptkit.match.transplant import Transplant, transplant

torch = pytest.importorskip("torch", reason="needs the torch extra")
onnx = pytest.importorskip("onnx", reason="needs the onnx extra")
runtime = pytest.importorskip("onnxruntime", reason="needs the onnx extra")
pytest.importorskip("onnxscript", reason="the exporter needs it")
pytest.importorskip("transformers", reason="the architectures need it")
nets = pytest.importorskip("tests.nets", reason="needs the torch extra")

pytestmark = pytest.mark.filterwarnings("ignore")
nn = torch.nn
CLOSE = 1e-5  # relative to the greatest output


def pair(folder: Path, base: Any, tuned: Any, inputs: Any, how: str) -> None:
    """Both modules as checkpoints and exports: base.pt, base.onnx, tuned.pt, fresh.onnx."""
    for module, checkpoint, model in ((base, "base", "base"), (tuned, "tuned", "fresh")):
        torch.save(module.state_dict(), folder / f"{checkpoint}.pt")
        with contextlib.redirect_stdout(io.StringIO()):
            nets.export(module, inputs, folder / f"{model}.onnx", how)


def done(folder: Path) -> Transplant:
    names = ("tuned.pt", "base.onnx", "base.pt")
    return transplant(*(ck.read(str(folder / name)) for name in names))


def put(folder: Path, weights: str, target: str, **options: Any) -> Path:
    into = {"into": folder / "base.onnx", "exported_from": folder / "base.pt"}
    ck.convert(folder / weights, folder / target, **into, **options)
    return folder / target


def outputs(model: Path, inputs: Any) -> list[Any]:
    session = runtime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    return list(session.run(None, {session.get_inputs()[0].name: inputs.numpy()}))


def off(a: list[Any], b: list[Any]) -> float:
    """Greatest difference, relative to the greatest output."""
    return max(float(np.abs(x - y).max() / np.abs(y).max()) for x, y in zip(a, b, strict=True))


# Every exporter and every architecture; benchmarks/exports.py has all pairs, in full size.
PAIRS = [
    ("resnet18", "torchscript"), ("resnet18", "dynamo"), ("resnet18", "torchscript-kept"),
    ("resnet50", "torchscript-unfolded"), ("bert", "torchscript"), ("bert", "dynamo"),
    ("vit", "torchscript"), ("vit", "dynamo-unoptimized"),
]  # fmt: skip


@pytest.mark.parametrize(("net", "how"), PAIRS)
def test_like_a_fresh_export(net: str, how: str, tmp_path: Path) -> None:
    (base, sample), (tuned, _) = nets.NETS[net](False), nets.NETS[net](False)
    inputs = sample()
    pair(tmp_path, nets.shaken(base, 0), nets.shaken(tuned, 1), inputs, how)
    result = done(tmp_path)
    assert not result.unused
    assert not result.losses
    weights = {name for name, tensor in base.state_dict().items() if tensor.dtype.is_floating_point}
    assert {name for placed in result.weights for name in placed.sources} == weights
    put(tmp_path, "tuned.pt", "new.onnx")
    fresh = outputs(tmp_path / "fresh.onnx", inputs)
    assert off(outputs(tmp_path / "new.onnx", inputs), fresh) < CLOSE
    assert off(outputs(tmp_path / "base.onnx", inputs), fresh) > 0.01
    with torch.no_grad():
        expected = tuned(inputs)
    assert off(fresh, [x.numpy() for x in (expected if isinstance(expected, tuple) else (expected,))]) < CLOSE
    folded = any(placed.operation.startswith("fold") for placed in result.weights)
    assert folded == ("resnet" in net and how in ("torchscript", "dynamo"))
    if not (folded and how == "torchscript"):  # whose square root is not rounded as others are
        assert (tmp_path / "new.onnx").read_bytes() == (tmp_path / "fresh.onnx").read_bytes()
    back = put(tmp_path, "base.pt", "back.onnx")
    assert back.read_bytes() == (tmp_path / "base.onnx").read_bytes()
    outside_the_weights(tmp_path, result)


def outside_the_weights(folder: Path, result: Transplant) -> None:
    """Every byte of the new file that is no weight's is the base's, at the same place."""
    was, now = ((folder / name).read_bytes() for name in ("base.onnx", "new.onnx"))
    assert len(was) == len(now)
    mask = np.ones(len(was), bool)
    base = ck.read(str(folder / "base.onnx"))
    for placed in result.weights:
        tensor = base[placed.name]
        mask[tensor.offset : tensor.offset + tensor.nbytes] = False
    assert np.array_equal(np.frombuffer(was, "u1")[mask], np.frombuffer(now, "u1")[mask])


class Recurrent(nn.Module):  # type: ignore[misc]
    def __init__(self, kind: str, **settings: Any) -> None:
        super().__init__()
        self.rnn = getattr(nn, kind)(5, 8, batch_first=True, **settings)

    def forward(self, x: Any) -> Any:
        return self.rnn(x)[0]


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("LSTM", "torchscript"),
        ("LSTM", "dynamo"),
        ("GRU", "torchscript"),
        ("RNN", "torchscript"),
        ("RNN", "dynamo"),
    ],
)
def test_recurrent_layers_both_ways(kind: str, how: str, tmp_path: Path) -> None:
    base, tuned = (nets.shaken(Recurrent(kind, num_layers=2, bidirectional=True), seed) for seed in (0, 1))
    pair(tmp_path, base, tuned, torch.randn(1, 6, 5), how)
    put(tmp_path, "tuned.pt", "new.onnx")
    assert (tmp_path / "new.onnx").read_bytes() == (tmp_path / "fresh.onnx").read_bytes()


def plain_biases(module: Any, forget: bool) -> Any:
    """Biases of zeros, as before training; ones for the gate that forgets, as is usual for an LSTM."""
    for name, parameter in module.named_parameters():
        if "bias" in name:
            parameter.data.zero_()
            parameter.data[8:16] = float(forget and "bias_ih" in name)
    return module


@pytest.mark.parametrize(
    ("kind", "how", "forget"),
    [("LSTM", "torchscript", True), ("LSTM", "dynamo", False), ("GRU", "torchscript", False)],
)
def test_the_order_of_biases_of_zeros_is_that_of_the_gates(
    kind: str, how: str, forget: bool, tmp_path: Path
) -> None:
    base, tuned = (nets.shaken(Recurrent(kind, bidirectional=True), seed) for seed in (0, 1))
    # A batch of 2: the initial states are zeros in as many elements as a bias.
    inputs = torch.randn(2, 6, 5)
    pair(tmp_path, plain_biases(base, forget), tuned, inputs, how)
    put(tmp_path, "tuned.pt", "new.onnx")
    assert off(outputs(tmp_path / "new.onnx", inputs), outputs(tmp_path / "fresh.onnx", inputs)) < CLOSE
    back = put(tmp_path, "base.pt", "back.onnx")
    assert back.read_bytes() == (tmp_path / "base.onnx").read_bytes()


def test_biases_of_zeros_that_two_layers_share_are_not_guessed(tmp_path: Path) -> None:
    base, tuned = (nets.shaken(Recurrent("LSTM", num_layers=2), seed) for seed in (0, 1))
    pair(tmp_path, plain_biases(base, False), tuned, torch.randn(1, 6, 5), "torchscript")
    with pytest.raises(ck.CkptError, match="holds one tensor for both") as caught:
        put(tmp_path, "tuned.pt", "new.onnx")
    assert caught.value.code == "weights-unused"


class Looking(nn.Module):  # type: ignore[misc]
    """Tables looked up at places that are known at the export: types, and distances for each head."""

    def __init__(self) -> None:
        super().__init__()
        self.types = nn.Embedding(3, 8)
        self.bias = nn.Parameter(torch.zeros(7, 2))
        self.register_buffer("index", torch.tensor([[3, 2, 1, 0], [4, 3, 2, 1], [5, 4, 3, 2], [6, 5, 4, 3]]))

    def forward(self, x: Any) -> Any:
        x = x + self.types(torch.tensor([[1, 1, 2, 1]]))
        heads = x.reshape(1, 4, 2, 4).transpose(1, 2)
        near = self.bias[self.index.view(-1)].view(4, 4, 2).permute(2, 0, 1).unsqueeze(0)
        return torch.softmax(heads @ heads.transpose(2, 3) + near, -1)


@pytest.mark.parametrize("how", ["torchscript", "dynamo"])
def test_tables_looked_up_by_the_exporter(how: str, tmp_path: Path) -> None:
    base, tuned = (nets.shaken(Looking(), seed) for seed in (0, 1))
    pair(tmp_path, base, tuned, torch.randn(1, 4, 8), how)
    put(tmp_path, "tuned.pt", "new.onnx")
    assert (tmp_path / "new.onnx").read_bytes() == (tmp_path / "fresh.onnx").read_bytes()


def test_equal_rows_of_a_table_are_not_guessed(tmp_path: Path) -> None:
    base, tuned = (nets.shaken(Looking(), seed) for seed in (0, 1))
    base.state_dict()["types.weight"][0] = base.state_dict()["types.weight"][1]
    pair(tmp_path, base, tuned, torch.randn(1, 4, 8), "dynamo")
    assert [loss.code for loss in done(tmp_path).losses] == ["weights-ambiguous"]


def stages(seed: int, fresh: bool) -> Any:
    """Convolutions with normalizations, as they are before training or at random."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        *(
            layer
            for _ in range(4)
            for layer in (nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        )
    ).eval()
    return net if fresh else nets.shaken(net, seed)


@pytest.mark.parametrize("how", ["torchscript", "dynamo"])
def test_equal_normalizations_are_not_guessed(how: str, tmp_path: Path) -> None:
    """Which of four untrained normalizations was folded into which layer no bytes tell."""
    inputs = torch.randn(1, 8, 8, 8)
    pair(tmp_path, stages(0, True), stages(1, False), inputs, how)
    with pytest.raises(ck.CkptError, match="others would fit as well") as caught:
        put(tmp_path, "tuned.pt", "new.onnx")
    assert caught.value.code == "weights-ambiguous"
    assert put(tmp_path, "base.pt", "back.onnx").read_bytes() == (tmp_path / "base.onnx").read_bytes()


@pytest.mark.parametrize("how", ["torchscript"])
def test_layers_nearly_equal_are_told_apart_or_not_guessed(how: str, tmp_path: Path) -> None:
    """Layers a few units of the last place apart, with different normalizations."""
    base, tuned = stages(0, False), stages(1, False)
    state = base.state_dict()
    for layer in (3, 6, 9):
        state[f"{layer}.weight"].copy_(state["0.weight"] * (1 + layer * 2e-7))
    inputs = torch.randn(1, 8, 8, 8)
    pair(tmp_path, base, tuned, inputs, how)
    if done(tmp_path).losses:
        assert {loss.code for loss in done(tmp_path).losses} == {"weights-ambiguous"}
    else:
        put(tmp_path, "tuned.pt", "new.onnx")
        fresh = outputs(tmp_path / "fresh.onnx", inputs)
        assert off(outputs(tmp_path / "new.onnx", inputs), fresh) < CLOSE


@pytest.mark.parametrize("how", ["torchscript"])
def test_stored_once_and_different_now(how: str, tmp_path: Path) -> None:
    """Exporters store equal tensors once: such a graph has no place for two."""
    base = nn.Sequential(*(nn.Linear(6, 6) for _ in range(3))).eval()
    for layer in base:
        layer.load_state_dict(base[0].state_dict())
    tuned = nets.shaken(nn.Sequential(*(nn.Linear(6, 6) for _ in range(3))), 1)
    pair(tmp_path, base, tuned, torch.randn(1, 6), how)
    with pytest.raises(ck.CkptError, match="holds one tensor for both") as caught:
        put(tmp_path, "tuned.pt", "new.onnx")
    assert caught.value.code == "weights-unused"

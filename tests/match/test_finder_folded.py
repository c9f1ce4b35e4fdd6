"""Folded batch normalization: the layer, the normalization and the arithmetic are found."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ckptkit
from ckptkit.core.tensor import Tensor
from ckptkit.match.finder import Folded, evaluate, find
from ckptkit.match.finder.arithmetic import BIAS, FORMULAS, WEIGHT
from tests.match.test_finder import normal, tensor

Array = np.ndarray[Any, Any]


def layer(name: str, shape: tuple[int, ...], seed: int, bias: bool, dim: int = 0) -> dict[str, Array]:
    """A layer and the normalization after it, as a state dict."""
    channels = shape[dim]
    arrays = {
        f"{name}.conv.weight": normal(*shape, seed=seed),
        f"{name}.bn.weight": normal(channels, seed=seed + 1),
        f"{name}.bn.bias": normal(channels, seed=seed + 2),
        f"{name}.bn.running_mean": normal(channels, seed=seed + 3),
        f"{name}.bn.running_var": normal(channels, seed=seed + 4) ** 2 + np.float32(0.01),
        f"{name}.bn.num_batches_tracked": np.array(7),
    }
    if bias:
        arrays[f"{name}.conv.bias"] = normal(channels, seed=seed + 5)
    return arrays


def wrap(arrays: Mapping[str, Array]) -> dict[str, Tensor]:
    return {name: tensor(array) for name, array in arrays.items()}


def fold(
    arrays: dict[str, Array], name: str, eps: float, weight: str, bias: str, dim: int = 0
) -> dict[str, Array]:
    """Fold by a formula of the table, in plain numpy."""
    w = arrays[f"{name}.conv.weight"]
    b = arrays.get(f"{name}.conv.bias", np.zeros(w.shape[dim], "f4"))
    vectors = [arrays[f"{name}.bn.{part}"] for part in ("weight", "bias", "running_mean", "running_var")]
    folded = {}
    for key, values, formula, shape in (
        ("w", w, weight, [-1 if d == dim else 1 for d in range(w.ndim)]),
        ("b", b, bias, [-1]),
    ):
        precision, function = FORMULAS[formula]
        g, beta, mean, variance = (v.astype(precision).reshape(shape) for v in vectors)
        root = np.sqrt(variance + np.dtype(precision).type(eps))
        folded[key] = function(values.astype(precision), g, beta, mean, root).astype("f4")
    return folded


@pytest.mark.parametrize("eps", [1e-5, 1e-3, 1e-4])
@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize(("weight", "bias"), [*zip([*WEIGHT] * 2, BIAS, strict=False)])
def test_every_formula_gives_the_very_bytes(eps: float, precision: str, weight: str, bias: str) -> None:
    a = {**layer("one", (16, 8, 3, 3), 1, True), **layer("two", (16, 8, 3, 3), 20, False)}
    b = {}
    for name in ("one", "two"):
        made = fold(a, name, eps, f"{precision} {weight}", f"{precision} {bias}")
        b |= {f"{name}_w": made["w"], f"{name}_b": made["b"]}
    result = find(wrap(a), wrap(b))
    assert {m.target: (m.how, m.ulp) for m in result.pairs} == dict.fromkeys(b, ("folded", 0))
    for match in result.pairs:
        assert isinstance(match.expression, Folded)
        assert match.expression.eps == eps
        assert match.expression.norm.mean == f"{match.target[:3]}.bn.running_mean"
        assert evaluate(match.expression, wrap(a)).tobytes() == b[match.target].tobytes()
    own = {m.target: m.expression.of for m in result.pairs if isinstance(m.expression, Folded)}
    assert own["two_b"] is None
    assert own["one_b"] is not None
    assert all("num_batches_tracked" in name for name in (*result.unmatched_a, *result.constants_a))


def test_a_transposed_linear_layer() -> None:
    a = layer("fc", (12, 20), 3, True)
    made = fold(a, "fc", 1e-5, "float32 W·(γ/√(σ²+ε))", "float32 (b−μ)·(γ/√(σ²+ε))+β")
    result = find(wrap(a), wrap({"w": made["w"].T, "b": made["b"]}))
    assert [(m.target, m.how, m.ulp) for m in result.pairs] == [("w", "folded", 0), ("b", "folded", 0)]
    assert (
        evaluate(result.pairs[0].expression, wrap(a)).tobytes() == np.ascontiguousarray(made["w"].T).tobytes()
    )


def test_a_depthwise_layer_of_single_numbers() -> None:
    a = {**layer("one", (24, 1, 1, 1), 1, False), **layer("two", (24, 1, 1, 1), 30, False)}
    b = {}
    for name in ("one", "two"):
        made = fold(a, name, 1e-3, "float32 W·(γ/√(σ²+ε))", "float32 (b−μ)·(γ/√(σ²+ε))+β")
        b |= {f"{name}_w": made["w"], f"{name}_b": made["b"]}
    result = find(wrap(a), wrap(b))
    assert {m.target: m.sources[0] for m in result.pairs if m.target.endswith("w")} == {
        "one_w": "one.conv.weight",
        "two_w": "two.conv.weight",
    }


def test_channels_scaled_to_zero() -> None:
    a = layer("one", (16, 4, 3, 3), 1, True)
    a["one.bn.weight"][[2, 5]] = 0
    made = fold(a, "one", 1e-5, "float32 W·(γ/√(σ²+ε))", "float32 (b−μ)·(γ/√(σ²+ε))+β")
    result = find(wrap(a), wrap({"w": made["w"], "b": made["b"]}))
    assert [m.ulp for m in result.pairs] == [0, 0]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [np.nan, np.inf, -1e30, 3e38])
@pytest.mark.parametrize(
    "where", ["conv.weight", "conv.bias", "bn.weight", "bn.running_mean", "bn.running_var"]
)
def test_numbers_that_make_no_sense(value: float, where: str) -> None:
    a = layer("one", (16, 4, 3, 3), 1, True)
    a[f"one.{where}"].reshape(-1)[3] = value
    with np.errstate(all="ignore"):
        made = fold(a, "one", 1e-5, "float32 W·(γ/√(σ²+ε))", "float32 (b−μ)·(γ/√(σ²+ε))+β")
    result = find(wrap(a), wrap(made))
    assert [(m.how, m.ulp) for m in result.pairs] == [("folded", 0), ("folded", 0)]
    assert evaluate(result.pairs[0].expression, wrap(a)).tobytes() == made["w"].tobytes()


def test_a_distance_is_told() -> None:
    a = layer("one", (16, 4, 3, 3), 1, True)
    made = fold(a, "one", 1e-5, "float32 W·(γ/√(σ²+ε))", "float32 (b−μ)·(γ/√(σ²+ε))+β")
    made["w"].reshape(-1).view("i4")[11] += 5
    result = find(wrap(a), wrap({"w": made["w"], "b": made["b"]}))
    match = result.pairs[0]
    assert (match.ulp, match.why) == (5, "computed, within 5 ulp")


def test_other_weights_are_no_fold() -> None:
    a = layer("one", (16, 4, 3, 3), 1, True)
    made = fold(a, "one", 1e-5, "float32 W·(γ/√(σ²+ε))", "float32 (b−μ)·(γ/√(σ²+ε))+β")
    made["w"][3, 2, 1, 1] *= 1.5
    assert not find(wrap(a), wrap(made)).pairs
    assert not find(wrap(a), wrap({"w": a["one.conv.weight"] * np.float32(1.25)})).pairs


def test_torch_folds() -> None:
    torch = pytest.importorskip("torch", reason="needs the torch extra")
    from torch.nn.utils.fusion import fuse_conv_bn_weights

    a = layer("one", (64, 16, 3, 3), 1, True)
    t = {name: torch.from_numpy(array) for name, array in a.items()}
    w, b = fuse_conv_bn_weights(
        t["one.conv.weight"], t["one.conv.bias"], t["one.bn.running_mean"], t["one.bn.running_var"],
        1e-5, t["one.bn.weight"], t["one.bn.bias"],
    )  # fmt: skip
    result = find(wrap(a), wrap({"w": w.detach().numpy(), "b": b.detach().numpy()}))
    assert [m.how for m in result.pairs] == ["folded", "folded"]
    assert result.pairs[0].ulp <= 4  # its reciprocal square root is not rounded correctly


@pytest.mark.parametrize("dynamo", [False, True])
def test_an_exported_module(dynamo: bool, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs the torch extra")
    pytest.importorskip("onnx", reason="needs the onnx extra")
    if dynamo:
        pytest.importorskip("onnxscript", reason="the exporter needs it")
    torch.manual_seed(0)
    nn = torch.nn
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, groups=16), nn.BatchNorm2d(16, eps=1e-3), nn.ReLU(),
        nn.Flatten(), nn.Linear(16 * 16, 10), nn.LayerNorm(10),
    )  # fmt: skip
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.1, 2)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    torch.onnx.export(model.eval(), torch.randn(1, 3, 8, 8), str(tmp_path / "model.onnx"), dynamo=dynamo)
    result = find(ckptkit.read(str(tmp_path / "model.pt")), ckptkit.read(str(tmp_path / "model.onnx")))
    folded = [m for m in result.pairs if m.how == "folded"]
    assert len(folded) == 4
    used = sorted(
        (m.expression.norm.mean, m.expression.eps) for m in folded if isinstance(m.expression, Folded)
    )
    assert used == [("1.running_mean", 1e-5)] * 2 + [("4.running_mean", 1e-3)] * 2
    assert max(m.ulp for m in folded if "weight" in m.sources[0] and not m.target.endswith("bias")) <= 64
    assert not result.unmatched_b


def test_far_from_the_formula_is_near_but_not_certain() -> None:
    a = layer("one", (16, 4, 3, 3), 1, True)
    made = fold(a, "one", 1e-5, "float32 W·(γ/√(σ²+ε))", "float32 (b−μ)·(γ/√(σ²+ε))+β")
    made["b"][3] += np.float32(1e-3)
    made["w"].reshape(-1).view("i4")[11] += 65
    for match in find(wrap(a), wrap({"w": made["w"], "b": made["b"]})).pairs:
        assert match.ulp > 64
        assert not match.certain
        assert match.why == f"near, but {match.ulp} ulp from the formula"


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("eps", [1e-5, 1e-3])
def test_in_half_precision_the_usual_epsilon_is_named(seed: int, eps: float) -> None:
    a = layer("one", (8, 4, 3, 3), 10 * seed, False)
    a["one.bn.running_var"] = np.random.default_rng(seed).uniform(0.5, 1.5, 8).astype("f4")
    made = fold(a, "one", eps, "float32 W·(γ/√(σ²+ε))", "float32 (b−μ)·(γ/√(σ²+ε))+β")
    halves = {name: x.astype("f2") if x.dtype.kind == "f" else x for name, x in a.items()}
    result = find(wrap(halves), wrap({"w": made["w"].astype("f2")}))
    (match,) = result.pairs
    assert isinstance(match.expression, Folded)
    assert match.expression.eps == eps

